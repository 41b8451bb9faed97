"""Where the trials of a stage may share what they agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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


def stage(folder: Path, **values: Any) -> Stage:
    return Stage("comparison", RunDirectory(folder), "study", prepared(), {}, 0, **values)


def shared(made: Stage, policy: dict[str, Any], **resources: Any) -> tuple[float, ...]:
    forks = made.make(Concrete(tree(policy, **resources), {}), 0, 0).forks
    return () if forks is None else forks.at


@pytest.mark.parametrize("planned", [True, False])
def test_a_trial_may_share_where_a_policy_of_its_kind_changes(
    tmp_path: Path, planned: bool
) -> None:
    policies = [FIXED, UNIFORM, LATE, EARLY]
    if planned:
        runs = tuple(PlannedRun(str(i), "", 0, tree(p)) for i, p in enumerate(policies))
        made = stage(tmp_path, runs=runs)
    else:
        file = SpecFile.of({**tree(UNIFORM), "policy": {"choice": policies}})
        made = stage(tmp_path, space=Space(file))
    assert shared(made, FIXED) == (0.75,)
    assert shared(made, LATE) == (0.75,)
    assert shared(made, UNIFORM) == (0.25,)
    assert shared(made, EARLY) == (0.25,)
    assert shared(made, {"kind": "beta", "a": 2, "b": 5}) == ()
    assert shared(made, FIXED, share_prefixes=False) == ()


def test_nothing_is_shared_where_no_policy_changes(tmp_path: Path) -> None:
    runs = tuple(PlannedRun(str(i), "", 0, tree(p)) for i, p in enumerate((FIXED, UNIFORM)))
    assert shared(stage(tmp_path, runs=runs), FIXED) == ()


def test_checkpoints_are_shared_beside_the_artifacts(tmp_path: Path) -> None:
    assert stage(tmp_path).forks == str(tmp_path / "forks")
    assert stage(tmp_path, artifacts="s3://bucket/name").forks == "s3://bucket/name/forks"
