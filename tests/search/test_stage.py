"""Where the trials of a stage may share what they agree on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mptune.paths import RunDirectory
from mptune.search.stage import Stage
from mptune.spec.source import Concrete, SpecFile
from mptune.spec.space import Space
from mptune.study.queue import PlannedRun
from tests.fakes import prepared


def step(*stages: tuple[float, Any]) -> dict[str, Any]:
    return {"kind": "step", "stages": [{"at": at, "policy": policy} for at, policy in stages]}


FIXED, UNIFORM = {"kind": "fixed", "rate": 0.3}, {"kind": "uniform"}
LATE, EARLY = step((0, 0.3), (0.75, UNIFORM)), step((0, UNIFORM), (0.25, 0.15))


def tree(policy: dict[str, Any], **resources: Any) -> dict[str, Any]:
    return {
        "name": "shared",
        "data": {"kind": "text", "source": "python-stdlib", "length": 32},
        "model": {"family": "bert", "width": 32, "depth": 1, "heads": 2},
        "policy": policy,
        "training": {"budget_tokens": 1e5, "batch_size": 8},
        "resources": resources,
    }


def planned(*policies: dict[str, Any]) -> tuple[PlannedRun, ...]:
    return tuple(PlannedRun(str(i), str(i), 0, tree(p)) for i, p in enumerate(policies))


def stage(folder: Path, **values: Any) -> Stage:
    return Stage("comparison", RunDirectory(folder), "study", prepared(), {}, 0, **values)


def shared(made: Stage, policy: dict[str, Any], **resources: Any) -> tuple[float, ...]:
    forks = made.make(Concrete(tree(policy, **resources), {}), 0, 0).forks
    return () if forks is None else forks.at


def test_arms_share_where_they_agree_up_to_a_change(tmp_path: Path) -> None:
    later = step((0, 0.3), (0.75, 0.6))
    made = stage(tmp_path, runs=planned(FIXED, UNIFORM, LATE, later, EARLY))
    assert shared(made, FIXED) == (0.25, 0.75)
    assert shared(made, LATE) == (0.25, 0.75)
    assert shared(made, UNIFORM) == (0.25,)
    assert shared(made, EARLY) == (0.25,)
    assert shared(made, FIXED, share_prefixes=False) == ()
    alone = stage(tmp_path, runs=planned({"kind": "fixed", "rate": 0.2}, LATE, EARLY))
    assert shared(alone, LATE) == ()
    assert shared(stage(tmp_path, runs=planned(LATE, LATE)[:1] * 2), LATE) == (), "seeds of one arm"


def test_other_models_share_nothing(tmp_path: Path) -> None:
    runs = planned(FIXED, LATE)
    wide = {**runs[0].tree, "model": {**runs[0].tree["model"], "width": 64}}
    made = stage(tmp_path, runs=(replace(runs[0], tree=wide), runs[1]))
    assert shared(made, LATE) == ()


def test_a_search_shares_nothing(tmp_path: Path) -> None:
    file = SpecFile.of({**tree(UNIFORM), "policy": {"choice": [FIXED, UNIFORM, LATE, EARLY]}})
    assert shared(stage(tmp_path, space=Space(file)), FIXED) == ()


def test_nothing_is_shared_where_no_policy_changes(tmp_path: Path) -> None:
    assert shared(stage(tmp_path, runs=planned(FIXED, UNIFORM)), FIXED) == ()


def test_checkpoints_are_shared_beside_the_artifacts(tmp_path: Path) -> None:
    assert stage(tmp_path).forks == str(tmp_path / "forks")
    assert stage(tmp_path, artifacts="s3://bucket/name").forks == "s3://bucket/name/forks"
