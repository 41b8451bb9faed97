"""Trainings that go on elsewhere: on another number of workers, and from an object store."""

from __future__ import annotations

import json
import os

import pytest
import torch

from mptune.artifacts import Remote, sha256
from mptune.paths import TrialDirectory
from mptune.training.execution import prepare
from mptune.trial import Finished, PrepareRequest, Stopped
from tests.objects import bucket
from tests.training.trials import SCORE, Script, trial


def curve(events):
    assert isinstance(events[-1], Finished), events[-1]
    return [loss for _, loss in events[-1].result.loss_curve]


# Groups of their own learning rate and weight decay, which a conversion could mix up.
CHANGES = {
    "training": {
        "optimizer": {
            "learning_rate": 1e-2,
            "weight_decay": 0.3,
            "width_rule": "mup",
            "base_width": 8,
        }
    }
}


def changes(stage, precision):
    training = {**CHANGES["training"], "zero_stage": stage, "precision": precision}
    return {"training": training}


@pytest.fixture(scope="module")
def undisturbed(study, alone, tmp_path_factory):
    """The loss curve of the training on one worker, by precision."""

    def of(precision):
        if precision not in curves:
            folder = tmp_path_factory.mktemp(precision)
            curves[precision] = curve(alone(study(folder, **changes(0, precision))))
        return curves[precision]

    curves = {}
    return of


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("workers", [(2, 1), (1, 2)], ids=["2to1", "1to2"])
def test_a_training_goes_on_with_another_number_of_workers(
    study, alone, pair, undisturbed, tmp_path, stage, workers, precision
):
    before, after = workers
    run = {1: alone, 2: pair}
    first = run[before](study(tmp_path, before, **changes(stage, precision)), Script(stop_at=10))
    assert first[-1] == Stopped(number=7, reason="interrupted", step=10)
    events = run[after](study(tmp_path, after, **changes(stage, precision)))
    assert events[0].resumed_at == 10, events
    near = {"fp32": 1e-4, "bf16": 0.02}[precision]
    assert curve(events) == pytest.approx(undisturbed(precision), rel=near)


class Harm:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("after", [2, 1])
def test_code_in_a_checkpoint_is_not_run(study, alone, pair, tmp_path, after):
    """Whoever can write to `storage.artifacts` can write the checksums, too."""
    pair(study(tmp_path / "run", 2, **changes(1, "fp32")), Script(stop_at=10))
    files = TrialDirectory(tmp_path / "run")
    marker = json.loads(files.checkpoint_marker.read_text())
    for name in marker["files"]:
        path = files.checkpoint / name
        torch.save({"optimizer_state_dict": Harm(tmp_path / "harm")}, path)
        marker["files"][name] = path.stat().st_size, sha256(path)
    files.checkpoint_marker.write_text(json.dumps(marker))
    (failed,) = {1: alone, 2: pair}[after](study(tmp_path / "run", after, **changes(1, "fp32")))
    assert failed.reason == "damaged_checkpoint"
    assert "Weights only load failed" in failed.detail
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("after", [2, 1])
@pytest.mark.parametrize("stage", [0, 3])
def test_all_of_it_is_in_an_object_store(study, alone, pair, undisturbed, tmp_path, stage, after):
    from transformers import AutoModelForMaskedLM

    artifacts = f"{bucket(tmp_path / 'bucket')}/search/trials/0007"
    asked = changes(stage, "fp32")
    asked["training"] |= {"keep_weights": True}
    pair(study(tmp_path, 2, artifacts=artifacts, **asked), Script(stop_at=10))
    assert not TrialDirectory(tmp_path).checkpoint.exists()
    run = {1: alone, 2: pair}[after]
    events = run(study(tmp_path, after, artifacts=artifacts, **asked))
    assert events[0].resumed_at == 10, events
    assert curve(events) == pytest.approx(undisturbed("fp32"), rel=1e-4)
    assert Remote(artifacts).children() == ["model"]
    model = Remote(f"{artifacts}/model")
    with model.fetched(model.children()) as folder:
        assert AutoModelForMaskedLM.from_pretrained(folder).config.vocab_size == 13
    assert not TrialDirectory(tmp_path).weights.exists()


def test_sources_and_contexts_go_on_bit_for_bit_and_rows_are_counted(alone, tmp_path):
    (tmp_path / "new.txt").write_text("\n".join(f"new {n:03d} {n**3:09d}" for n in range(60)))
    (tmp_path / "old.txt").write_text("\n".join(f"old {n:03d} {n**5:09d}" for n in range(30)))
    old = {"source": str(tmp_path / "old.txt"), "heldout": 0.3}
    data = {"kind": "text", "source": str(tmp_path / "new.txt"), "documents": "line", "length": 16,
            "heldout": 0.3, "domains": {"old": old}}  # fmt: skip
    plan, cache = str(tmp_path / "plan.npz"), str(tmp_path / "cache")
    prepared = prepare(PrepareRequest(data=data, score=SCORE, cache=cache, plan=plan))

    def run(name, control=None, **mix):
        context = {"length": 8, "until": 0.5}  # the step after the twelfth is of whole sequences
        training = {"mix": mix, "batch_size": 8, "budget_tokens": 24 * 8 * 16, "context": context}
        return alone(trial(prepared, data, tmp_path / name, training=training), control)

    whole = run("whole", old=0.25)[-1].result
    assert run("parts", Script(stop_at=10), old=0.25)[-1].step == 10
    parts = run("parts", old=0.25)
    assert parts[0].resumed_at == 10
    for part in ("lml", "lml_shift", "loss_curve", "rows_drawn", "fingerprint"):
        assert getattr(parts[-1].result, part) == getattr(whole, part)
    assert (whole.cost.steps, whole.cost.tokens) == (24, 24 * 8 * 16)
    assert set(whole.lml_shift) == {"old"}
    assert whole.rows_drawn == {"data.source": round(0.8 * 24 * 8), "old": round(0.2 * 24 * 8)}
    none = run("none")[-1].result
    assert none.rows_drawn == {"data.source": 24 * 8}
    zero = run("zero", old=0)[-1].result
    assert zero.lml == none.lml
    assert zero.rows_drawn == {"data.source": 24 * 8, "old": 0}
    assert whole.lml_shift["old"].nats_per_token > none.lml_shift["old"].nats_per_token
