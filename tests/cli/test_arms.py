"""Arms named in words, and the comparison of a finished search's trials."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mptune.cli import main
from mptune.errors import InputError
from mptune.paths import RunDirectory
from mptune.search.arms import Arms
from mptune.search.run import TrialList
from mptune.spec.source import SpecFile
from mptune.spec.space import Space
from mptune.trial import TrialSpec
from tests import fakes, studies
from tests.cli.conftest import leave_figures_out, use_fakes
from tests.cli.test_commands import SPEC

BEST = {"kind": "fixed", "rate": 0.4}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search without a comparison; its best trial is fixed 40 % at width 64."""
    root = tmp_path_factory.mktemp("arms")
    spec = SPEC[: SPEC.index("compare:")].replace("trials: 4", "trials: 12")
    (root / "spec.yaml").write_text(spec, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        use_fakes(patch, root)
        leave_figures_out(patch)
        assert main(["search", "spec.yaml"]) == 0
    return root


@pytest.fixture
def run(searched: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    use_fakes(monkeypatch, searched)
    return RunDirectory(Path("runs/demo"))


@pytest.fixture
def arms(run: RunDirectory) -> Arms:
    found = studies.trials(run, None, "demo")
    return Arms(Space(SpecFile.read(run.resolved)), found, TrialList(found).best())


def part(tree: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    return {key: tree.get(key) for key in wanted}


@pytest.mark.parametrize(
    ("words", "policy", "model"),
    [
        ("best", BEST, {"width": 64}),
        ("fixed r=0.25", {"kind": "fixed", "rate": 0.25}, {"width": 64}),
        ("fixed 40 %", BEST, {"width": 64}),
        ("fixed 15 %", {"kind": "fixed", "rate": 0.15}, {}),
        ("accumulated", {"kind": "uniform"}, {"width": 64}),
        ("beta a=2 b=1e0", {"kind": "beta", "a": 2, "b": 1.0}, {}),
        ("fixed rate=0.3 on width=128 depth=3", {"rate": 0.3}, {"width": 128, "depth": 3}),
        ("best on bert 32×1", BEST, {"width": 32}),
        ("best on size=1e6", BEST, {"size": 1e6, "width": None}),
    ],
)
def test_words(arms: Arms, words: str, policy: dict[str, Any], model: dict[str, Any]) -> None:
    tree = arms.one(words)
    assert part(tree["policy"], policy) == policy
    assert part(tree["model"], model) == model
    of_a_trial = words in ("best", "fixed 40 %", "fixed 15 %")
    assert ("training" in tree) == of_a_trial, "what an arm leaves open is taken from its own trial"


def test_a_trial_by_its_number(arms: Arms) -> None:
    for record in arms.found:
        tree = arms.one(f"trial {record.number}")
        assert record.spec is not None
        assert record.spec.policy["kind"] == tree["policy"]["kind"]
        assert record.spec.model["width"] == tree["model"]["width"]
        assert arms.one(f"best on trial {record.number}")["model"] == tree["model"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("bst", "--arms 'bst': not an arm; give best, trial N, .*; did you mean 'best'"),
        ("unifrom", "did you mean 'uniform'"),
        ("fixed rte=0.3", "'rte=0.3' is not KEY=VALUE with a key of .*rate.*; did you mean 'rate'"),
        ("fixed 0.3", "'0.3' is not KEY=VALUE"),
        ("trial 99", "no finished trial '99'; finished: 0, 1, "),
        ("best on bert 32x1", "no trial has the size 'bert 32x1'.*did you mean 'bert 32×1'"),
    ],
)
def test_words_that_are_not_understood(arms: Arms, words: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        arms.one(words)


def report(run: RunDirectory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.report_json.read_text())["input"]["comparison"]
    return found


def test_trials_of_a_finished_search_are_compared(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--set", "compare.seeds=2"]
    assert main(["compare", "runs/demo", "--arms", "fixed r=0.15", "best", *few]) == 0
    assert "best beats fixed r=0.15" in capsys.readouterr().out
    found = report(run)
    assert found["baseline"] == "fixed r=0.15"
    assert [len(arm) for arm in found["arms"].values()] == [2, 2]
    assert {r["seed"] for arm in found["arms"].values() for r in arm} == {
        1_000_000,
        1_000_001,
    }

    assert [len(points) for points in found["learning"].values()] == [5, 5]
    flops = next(e for e in found["compute"] if (e["arm"], e["unit"]) == ("best", "flops"))
    assert flops["reading"] == "factor"
    assert 0 < flops["low"] < flops["factor"] < flops["high"] < 1

    more = ["--arms", "best", "fixed r=0.15", "best on width=128", *few]
    assert main(["compare", "runs/demo", *more]) == 0
    assert [len(arm) for arm in report(run)["arms"].values()] == [2, 2, 2]
    runs = studies.trials(run, None, "demo/compare")
    assert len(runs) == 6, "runs of an earlier comparison count, whatever their arm was called"

    before = run.report_json.read_text()
    assert main(["report", "runs/demo"]) == 0
    assert json.loads(before)["input"]["comparison"] == report(run), "the last one is shown"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs/demo", "--arms", "best"], "--arms needs at least two different arms; got best"),
        (["runs/demo", "--arms", "best", "fixed r=0.4"], "'best' and 'fixed r=0.4' are the same"),
        (["runs/demo", "--arms", "best", "fixed r=7"], "7 is not a mask rate"),
        (["runs/demo", "--fresh"], "--fresh would delete the search"),
        (["runs", "--arms", "best", "uniform"], "no search in it"),
        (
            ["spec.yaml", "--run-dir", "x", "--arms", "best", "uniform"],
            "no trial of x has finished",
        ),
    ],
)
def test_a_comparison_that_cannot_be_made_is_one_line(
    run: RunDirectory, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1


RATES = (
    SPEC[: SPEC.index("compare:")]
    .replace(
        "training: {budget_tokens: 1e5, batch_size: 8}",
        "training: {budget_tokens: 1e5, batch_size: 8, optimizer: {learning_rate: "
        "{choice: [0.001, 0.004]}}}",
    )
    .replace("trials: 4", "trials: 24")
)


def test_every_arm_has_a_learning_rate_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_fakes(monkeypatch, tmp_path)
    leave_figures_out(monkeypatch)
    score = fakes.nats_per_token

    def by_rate(trial: TrialSpec, progress: float = 1.0) -> float:
        rate = trial.training.optimizer.learning_rate
        return score(trial, progress) - 0.1 * abs(math.log(rate / 0.012))

    monkeypatch.setattr(fakes, "nats_per_token", by_rate)
    Path("spec.yaml").write_text(RATES, encoding="utf-8")
    assert main(["search", "spec.yaml"]) == 0
    run, rate = RunDirectory(Path("runs/demo")), "training.optimizer.learning_rate"
    best = TrialList(studies.trials(run, None, "demo")).best()
    command = ["compare", "runs/demo", "--arms", "best", "fixed r=0.16", "beta a=2 b=2",
               "--set", "compare.seeds=2"]  # fmt: skip
    capsys.readouterr()
    assert main(command) == 0
    out = " ".join(capsys.readouterr().out.split())
    given, own, ladder = report(run)["values"]
    assert (given["source"], given["values"][rate]) == ("arm", best.params[rate])

    trials = {t.number: t for t in studies.trials(run, None, "demo")}
    alike = [t for t in trials.values() if t.policy_label == "fixed 15 %" if t.finished]
    same_size = [t for t in alike if t.size_label == best.size_label]
    expected = max(same_size, key=lambda t: t.nats_per_token)
    assert (own["source"], own["trial"]) == ("own trial", expected.number)
    assert own["values"][rate] == expected.params[rate]
    assert f"of trial {expected.number}, the best one of its policy and size" in out

    middle = best.params[rate]
    tried = dict(ladder["tried"])
    assert list(tried) == pytest.approx([middle / 3, middle, 3 * middle])
    assert ladder["values"][rate] == max(tried) == max(tried, key=lambda each: tried[each])
    assert "the best of a ladder on seeds that are not compared" in out
    climbed = studies.trials(run, None, "demo/ladder")
    assert {t.seed for t in climbed} == {3_000_000}, "no seed that is compared"
    compared = studies.trials(run, None, "demo/compare")
    assert {t.spec.training.optimizer.learning_rate for t in compared if t.spec} == {
        given["values"][rate], own["values"][rate], ladder["values"][rate]
    }  # fmt: skip

    before = len(climbed)
    assert main(command) == 0
    assert len(studies.trials(run, None, "demo/ladder")) == before
    assert [a["values"] for a in report(run)["values"]] == [
        a["values"] for a in (given, own, ladder)
    ]


def test_laws_over_size_are_stated_at_a_named_size(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["fixed 15 %", "accumulated", "fixed 15 % on width=32", "accumulated on width=32"]
    few = ["--set", "compare.seeds=2"]
    assert main(["compare", "runs/demo", "--arms", *arms, *few]) == 0
    assert main(["report", "runs/demo", "--size", "110M"]) == 0
    laws = json.loads(run.report_json.read_text())["input"]["by_size"]
    far = laws["gap"]["extrapolation"][0]
    assert far["parameters"] == 1.1e8
    assert far["beyond"] > 100
    assert (far["at"], far["verdict"]) == (None, "few sizes")
    assert "three rates or more" in laws["best_rate_missing"]
    out = capsys.readouterr().out
    assert "\nGap, nats per token: 110 M, –, –, refused: needs three sizes or more\n" in out
    assert "\nBest mask rate by size: needs one kind of policy at three rates or more" in out
    assert main(["report", "runs/demo", "--size", "big"]) == 2
    assert (
        capsys.readouterr().err
        == "argument --size: 'big' is not a size; give parameters, e.g. 110M or 1.1e8\n"
    )
