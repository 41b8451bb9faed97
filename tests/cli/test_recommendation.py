"""One recommendation and one count of trials, whichever command or method is asked."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import mptune
from mptune.cli import main
from tests.cli.conftest import leave_figures_out, use_fakes
from tests.report.test_contradictions import contradictions

LICENSE = Path(__file__).parents[2] / "LICENSE"

SPEC = f"""\
name: demo
data: {{kind: text, source: {LICENSE}, documents: paragraph, length: 32}}
model: {{choice: [{{family: bert, width: 32, depth: 1}}, {{family: bert, width: 64, depth: 1}}]}}
policy: {{kind: fixed, rate: 0.15}}
training: {{budget_tokens: 1e5, batch_size: 8}}
search: {{trials: 6, pruner: {{kind: none}}, confirm: {{top: 2, seeds: 2}}}}
compare:
  seeds: 2
  arms:
    usual: {{policy: {{kind: fixed, rate: 0.15}}}}
    more: {{policy: {{kind: fixed, rate: 0.4}}}}
"""

ALONE = """\
compare:
  seeds: 2
  max_seeds: 8
  arms:
    usual: {policy: {kind: fixed, rate: 0.15}}
    almost: {policy: {kind: fixed, rate: 0.1501}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """runs/demo: a search that its comparison overrules; runs/alone: a comparison without one."""
    folder = tmp_path_factory.mktemp("recommended")
    alone = SPEC[: SPEC.index("compare:")].replace("name: demo", "name: alone")
    model = "{family: bert, width: 32, depth: 1}"
    alone = alone.replace(alone[alone.index("{choice") : alone.index("\npolicy")], model)
    (folder / "demo.yaml").write_text(SPEC, encoding="utf-8")
    (folder / "alone.yaml").write_text(alone + ALONE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        use_fakes(patch, folder)
        leave_figures_out(patch)
        assert main(["search", "demo.yaml"]) == 0
        assert main(["compare", "alone.yaml"]) == 0
        yield folder


@pytest.fixture(params=["demo", "alone"])
def run(request: pytest.FixtureRequest, folder: Path, use: None) -> str:
    return f"runs/{request.param}"


@pytest.fixture
def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch, folder)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def printed(*words: str) -> str:
        capsys.readouterr()
        assert main(list(words)) == 0
        return capsys.readouterr().out

    return printed


def report(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "report/report.json").read_text("utf-8"))
    return found


def test_every_command_recommends_what_the_report_recommends(
    run: str, printed: Callable[..., str]
) -> None:
    assert main(["report", run]) == 0
    policy, label = (report(run)["recommended"][key] for key in ("policy", "policy_label"))
    assert json.loads(printed("best", run, "--json"))["policy"] == policy
    text = printed("best", run)
    assert label in text
    for words in report(run)["findings"]["certainty"]:
        assert words in text
    opened = mptune.Run.open(run)
    assert opened.best().policy == policy
    assert opened.export_policy("policy.yaml") == policy
    assert yaml.safe_load(Path("policy.yaml").read_text()) == policy
    page = Path(run, "report/report.md").read_text("utf-8")
    assert contradictions(page) == []
    if run == "runs/demo":
        assert "6 of 6 trials finished (2 candidates: 4 trials repeated an earlier point" in page


def test_the_arm_that_beat_the_search_is_the_best_one_of_later_comparisons(
    folder: Path, use: None
) -> None:
    opened = mptune.Run.open("runs/demo")
    choice, before = opened.choice(), len(opened.trials("comparison"))
    assert choice.searched is not None
    assert (choice.searched.policy["rate"], opened.best().policy["rate"]) == (0.15, 0.4)
    assert report("runs/demo")["recommended"]["policy"]["rate"] == 0.4
    assert [fact in Path("runs/demo/report/report.html").read_text("utf-8")
            for fact in ("nats per token, mean of 2 seeds", "LML of the recommended policy")
            ] == [True, True]  # fmt: skip
    assert main(["compare", "runs/demo", "--arms", "trial 1", "best"]) == 0
    assert "best" in report("runs/demo")["input"]["comparison"]["arms"]
    assert mptune.Run.open("runs/demo").best().policy["rate"] == 0.4
    assert len(opened.trials("comparison")) == before, "the runs of the same point count"


def test_best_computes_the_selection_once_and_loads_each_score_once(
    folder: Path, use: None, monkeypatch: pytest.MonkeyPatch, printed: Callable[..., str]
) -> None:
    from mptune.analysis import results, selection

    calls: list[str] = []
    chosen, scored = results.select_trial, selection._scored

    def select(*arguments: Any) -> Any:
        calls.append("selection")
        return chosen(*arguments)

    def load(trials: Any, prepared: Any, scores: Any, required: Any = None) -> Any:
        calls.extend(f"{trial.stage} {trial.number}" for trial in trials)
        return scored(trials, prepared, scores, required)

    monkeypatch.setattr(results, "select_trial", select)
    monkeypatch.setattr(selection, "_scored", load)
    printed("best", "runs/demo")
    assert len(calls) == len(set(calls)), calls


def test_status_counts_every_stage_and_adds_up_their_spend(
    folder: Path, use: None, printed: Callable[..., str]
) -> None:
    text = printed("status", "runs/demo")
    for line in ("search: 6 of 6 trials", "confirmation: 4 of 4 trials", "comparison: 4 of 4"):
        assert line in text
    told = json.loads(printed("status", "runs/demo", "--json"))
    assert told["ladder"] is None
    stages = ("search", "confirmation", "comparison")
    used = sum(mptune.Run.open("runs/demo").used(stage).worker_s for stage in stages)
    assert told["spent"]["worker_seconds"] == pytest.approx(used, abs=0.1)
    alone = json.loads(printed("status", "runs/alone", "--json"))
    assert (alone["search"], alone["best"]) == (None, None)
    runs = len(mptune.Run.open("runs/alone").trials("comparison"))
    assert runs > 4, "seeds were added until the arms were decided"
    assert alone["comparison"] == {"total": runs, "used": runs, "complete": runs}


def test_logs_of_every_stage(folder: Path, use: None, printed: Callable[..., str]) -> None:
    for stage in mptune.Run.open("runs/demo").stages:
        assert "started, " in printed("logs", "runs/demo", "0", "--stage", stage)


def test_a_report_says_with_which_commands_it_was_made(folder: Path, use: None) -> None:
    assert main(["report", "runs/alone"]) == 0
    again = "mptune compare runs/alone/resolved.yaml --run-dir runs/alone"
    page = Path("runs/alone/report/report.md").read_text("utf-8")
    assert f"\n{again}\n" in page
    assert "mptune search" not in page
    assert "## Ranking" not in page
    assert "## Every trial" not in page
    assert main(again.split()[1:]) == 0
    opened = mptune.Run.open("runs/demo")
    assert opened.commands()[0] == "mptune search runs/demo/resolved.yaml --run-dir runs/demo"


def test_the_replay_command_names_what_was_compared_not_the_present_best(
    folder: Path, use: None
) -> None:
    opened = mptune.Run.open("runs/demo")
    few = ["--set", "compare.level=0.9"]
    assert main(["compare", "runs/demo", *few, "--arms", "fixed r=0.15", "best"]) == 0
    again = shlex.split(opened.commands()[1])
    before, asked = opened.trials("comparison"), opened.asked()
    assert main(again[1:]) == 0
    assert len(opened.trials("comparison")) == len(before), "the same runs"
    assert asked is not None
    assert opened.asked().keys.keys() >= {"fixed r=0.15"}  # type: ignore[union-attr]
    assert sorted(opened.asked().keys.values()) == sorted(asked.keys.values())  # type: ignore[union-attr]
