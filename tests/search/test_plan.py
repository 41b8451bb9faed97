"""What a run will take, predicted from short real trainings."""

from __future__ import annotations

from pathlib import Path

import pytest

from mptune.errors import InputError
from mptune.search.preflight import LAUNCHES, Measuring, plan
from mptune.trial import Failed, Stopped, TrialSpec
from tests import fakes

SPEC = {
    "name": "planned",
    "data": {"kind": "text", "source": "package:email/*.py", "length": 64},
    "model": {"family": "bert", "width": {"int": [32, 64], "step": 32}, "depth": 1},
    "policy": {"kind": "fixed", "rate": {"float": [0.1, 0.6]}},
    "training": {"budget_tokens": 1e6, "batch_size": 8, "keep_weights": True},
    "score": {"sequences": 64, "rung_sequences": 16},
    "search": {"trials": 3, "confirm": {"top": 2, "seeds": 2}, "budget_seconds": 60},
}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("plan")
        patch.chdir(folder)
        said: list[str] = []
        found = plan(SPEC, local=True, seconds=0.3, say=said.append)
        assert not list(folder.iterdir())
    return {**found, "said": said}


def test_every_size_is_measured_once(planned: dict) -> None:
    assert [model["model"] for model in planned["models"]] == ["bert 32×1", "bert 64×1"]
    assert len(planned["said"]) == 2


def test_a_run_takes_its_training_and_more(planned: dict) -> None:
    for model in planned["models"]:
        assert model["training_s"] * model["tokens_per_s"] >= 1e6 * (1 - 1e-9)
        assert model["steps"] == pytest.approx(1e6 / (8 * 64))
        assert model["trial_s"] > model["training_s"] + model["scoring_s"]
        # A rung has 16 of the 64 sequences, and no forwards at the score's own rates.
        assert model["rung_s"] == pytest.approx(model["scoring_s"] * 16 * 2 / (64 * (2 + 1)))
        assert model["why_not"] is None


def test_all_runs_together(planned: dict) -> None:
    assert planned["runs"] == {"search": 3, "confirmation": 4}
    # Runs of the search have four rungs, and are paused.
    pauses = LAUNCHES - 1
    each = [
        7 * model["trial_s"] + 3 * (4 * model["rung_s"] + pauses * model["save_s"])
        for model in planned["models"]
    ]
    assert planned["worker_s"] == pytest.approx([min(each), max(each)])
    assert planned["at_once"] == 1
    training_s = 7 * sum(model["training_s"] for model in planned["models"]) / 2
    assert planned["wall_s"] == pytest.approx(planned["fixed_s"] + training_s)
    setting_up_s = sum(model["setting_up_s"] for model in planned["models"]) / 2
    others_s = planned["fixed_s"] - (sum(each) / 2 - training_s)
    assert others_s > (4 + 3 * LAUNCHES) * setting_up_s, "the first one starts the worker, too"
    assert planned["limits"] == {"search.budget_seconds": 60}
    # A checkpoint and the one before it, of a trial that runs and of 3 / 0.125 paused ones, and the
    # weights of seven runs.
    parameters = planned["models"][1]["parameters"]
    assert planned["disk_bytes"] == pytest.approx(parameters * (25 * 2 * 12 + 7 * 4))


def test_a_model_that_does_not_fit_is_told_and_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = plan(SPEC, overrides=["resources.memory_gb=0.0001"], local=True, seconds=0.1)
    assert {model["trial_s"] for model in found["models"]} == {None}
    assert "needs" in found["models"][0]["why_not"]
    assert found["worker_s"] is None
    assert all(model["flops"] > 6 * model["parameters"] * 1e6 * 0.1 for model in found["models"])


def test_a_trial_whose_machine_was_taken_away_is_measured_again(tmp_path: Path) -> None:
    submitted: list[TrialSpec] = []

    class Preempted:
        def submit(self, trial: TrialSpec) -> None:
            submitted.append(trial)

        def events(self, timeout_s: float) -> list[Stopped | Failed]:
            if len(submitted) == 1:
                return [Stopped(number=0, reason="preempted", step=1)]
            assert len(submitted) == 2, "it is not submitted again"
            return [Failed(number=0, reason="out_of_memory", detail="2 GiB asked")]

    measuring = Measuring(Preempted(), beside=1, seconds=0.1)  # type: ignore[arg-type]
    trial = fakes.trial(0, tmp_path)
    found = measuring.run(trial, trial.prepared.heldout_sequences, {"budget_seconds": 0.1})
    assert isinstance(found, Failed)
    assert submitted[0] == submitted[1]


@pytest.mark.parametrize("seconds", [0.0, float("inf"), float("nan")])
def test_a_length_of_time_is_positive(seconds: float) -> None:
    with pytest.raises(InputError, match="give a positive number"):
        plan(SPEC, local=True, seconds=seconds)
