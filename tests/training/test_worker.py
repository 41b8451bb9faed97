"""A worker's life: prepare, run, fail, and replay from the JSON file alone."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from mptune.errors import InputError
from mptune.paths import TrialDirectory
from mptune.spec.schema import Resources
from mptune.training.worker import Worker
from mptune.trial import Failed, Finished, TrialResult, event_from_json
from mptune.worker import main
from tests.training import trials


def as_numbers(result):
    return result.model_dump(exclude={"cost", "learning"})


def test_prepare_freezes_the_plan(tmp_path):
    request = trials.request(tmp_path)
    first = Worker(0, 1).prepare(request)
    written = (tmp_path / "plan.npz").stat().st_mtime_ns
    assert Worker(0, 1).prepare(request) == first
    assert (tmp_path / "plan.npz").stat().st_mtime_ns == written
    assert (first.vocabulary_size, first.length) == (trials.SYMBOLS, trials.LENGTH)
    assert first.heldout_sequences == trials.SCORE.sequences
    assert first.heldout_tokens < trials.SCORE.sequences * trials.LENGTH


def test_prepare_inspects_the_data_once(tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(
        "mptune.data._inspect.inspect", lambda table: looks.append(table) or {"warnings": ["leak"]}
    )
    found = [Worker(0, 1).prepare(trials.request(tmp_path)).warnings for _ in range(2)]
    assert (found, len(looks)) == ([("leak",)] * 2, 1)


def test_prepare_names_the_precision_if_it_is_asked_to(tmp_path, monkeypatch):
    asked = trials.request(tmp_path)
    monkeypatch.setattr("mptune.training.execution.has_bf16", lambda: True)
    assert Worker(0, 1).prepare(asked).precision == "fp32"
    asked = asked.model_copy(update={"measure_precision": True})
    assert Worker(0, 1).prepare(asked).precision == "bf16"


def test_prepare_refuses_a_plan_of_another_score(tmp_path):
    Worker(0, 1).prepare(trials.request(tmp_path))
    other = trials.SCORE.model_copy(update={"seed": 5})
    with pytest.raises(InputError, match="use another run directory"):
        Worker(0, 1).prepare(trials.request(tmp_path, other))


def test_prepare_names_what_is_missing(tmp_path):
    request = trials.request(tmp_path)
    (tmp_path / "cycle.npy").unlink()
    with pytest.raises(InputError, match=r"cycle\.npy"):
        Worker(0, 1).prepare(request)


TWO_WORKERS = """
import sys
from mptune.paths import free_port
from mptune.training.worker import Worker
from mptune.trial import Finished, TrialSpec
from tests.training.trials import Script

for path in sys.argv[1:]:
    worker = Worker(0, 1)
    worker.join("127.0.0.1", free_port())
    spec = TrialSpec.model_validate_json(open(path, encoding="utf-8").read())
    assert isinstance(list(worker.run(spec, Script()))[-1], Finished)
    worker.close()
"""
"""What two searches in one notebook do with `local=True`."""


def test_a_process_may_have_one_worker_after_the_other(study, tmp_path):
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(study(tmp_path / str(number)).model_dump_json(), encoding="utf-8")
    root = Path(__file__).parents[2]
    asked = [sys.executable, "-c", TWO_WORKERS, *map(str, paths)]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=root, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_ranks_of_one_machine_listen_on_loopback_only(study, alone, tmp_path):
    assert isinstance(alone(study(tmp_path))[-1], Finished)
    listening = [c for c in psutil.Process().net_connections() if c.status == "LISTEN"]
    assert listening
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


def test_a_trial_leaves_its_files(study, alone, tmp_path):
    spec = study(tmp_path)
    events = alone(spec)
    files = TrialDirectory(tmp_path)
    assert json.loads(files.spec.read_text()) == spec.model_dump(mode="json")
    assert [event_from_json(line) for line in files.events.read_text().splitlines()] == events
    result = TrialResult.model_validate_json(files.result.read_text())
    assert result == events[-1].result
    assert result.fingerprint == spec.fingerprint()
    assert result.lml.plan_hash == spec.prepared.plan_hash
    assert result.cost.parameters == events[0].parameters
    cost = result.cost
    assert 0 < cost.setting_up_s < cost.total_s - cost.training_s - cost.scoring_s
    scores = np.load(files.scores)
    assert scores["nats_per_sequence"].mean() == pytest.approx(result.lml.nats_per_sequence)
    assert len(set(scores["rows"])) == trials.SCORE.sequences


def test_trials_on_the_same_worker_do_not_influence_each_other(study, alone, tmp_path):
    first = alone(study(tmp_path / "a"))[-1].result
    alone(study(tmp_path / "b", seed=9, model={"family": "roberta", "width": 32, "depth": 1}))
    assert as_numbers(alone(study(tmp_path / "c"))[-1].result) == as_numbers(first)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"batch_size": 31}}, "cannot be shared evenly by 2 workers"),
        ({"policy": {"kind": "fixed", "rate": 3.0}}, "rate"),
        ({"model": {"family": "bert", "width": 30, "heads": 4}}, "not a multiple of heads"),
        ({"score": trials.SCORE.model_copy(update={"forwards": 3})}, "the frozen scoring plan"),
    ],
)
def test_wrong_input_fails_on_all_ranks_and_the_gang_goes_on(
    study,
    pair,
    tmp_path,
    changes,
    words,
):
    (failed,) = pair(study(tmp_path / "bad", workers=2, **changes))
    assert isinstance(failed, Failed)
    assert failed.reason == "wrong_input"
    assert words in failed.detail
    assert "\n" not in failed.detail
    assert words in TrialDirectory(tmp_path / "bad").traceback.read_text()
    assert isinstance(pair(study(tmp_path / "good", workers=2))[-1], Finished)


def test_a_score_that_is_not_finite(study, alone, tmp_path, monkeypatch):
    from mptune.training import scoring

    monkeypatch.setattr(scoring, "cross_entropy", lambda logits, target, reduction: target * np.nan)
    failed = alone(study(tmp_path))[-1]
    assert isinstance(failed, Failed)
    assert failed.reason == "non_finite_score"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_nothing_of_a_trial_is_left_in_its_worker(study, alone, tmp_path, stage):
    gc.unfreeze()  # so that all is seen
    assert isinstance(alone(study(tmp_path, training={"zero_stage": stage}))[-1], Finished)
    gc.unfreeze()
    kinds = {type(known).__name__ for known in gc.get_objects()}
    assert kinds & {"DeepSpeedEngine", "MaskedPredictor"} == set()
    assert Worker(0, 1).device_bytes() == 0


def test_autocast_of_a_trial_is_not_seen_by_later_engines(study, alone, tmp_path):
    from deepspeed.runtime.torch_autocast import is_autocast_initialized

    assert isinstance(alone(study(tmp_path, training={"precision": "bf16"}))[-1], Finished)
    assert not is_autocast_initialized()


def test_a_worker_runs_nothing_before_it_has_joined(study, tmp_path):
    (failed,) = Worker(0, 1).run(study(tmp_path), trials.Script())
    assert "has not joined" in failed.detail


def test_replay_of_a_file_that_is_no_trial(tmp_path, capsys):
    (tmp_path / "trial.json").write_text("{}")
    assert main([str(tmp_path / "trial.json")]) == 2
    assert "trial.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_replay_from_the_file_alone_is_the_same_bit_for_bit(pair, tmp_path):
    request = trials.request(tmp_path)
    prepared = Worker(0, 1).prepare(request)
    spec = trials.trial(prepared, request.data, tmp_path / "trial", workers=2, rungs=(0.5,))
    first = pair(spec)[-1].result
    shutil.rmtree(request.cache)
    Path(request.plan).unlink()
    command = [
        sys.executable,
        "-m",
        "mptune.worker",
        str(tmp_path / "trial" / "trial.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *events, result = done.stdout.splitlines()
    assert events[0].startswith("started ")
    assert events[-1] == "finished"
    assert as_numbers(TrialResult.model_validate_json(result)) == as_numbers(first)
    replayed = np.load(TrialDirectory(tmp_path / "trial" / "replay").scores)
    original = np.load(TrialDirectory(tmp_path / "trial").scores)
    assert (replayed["nats_per_sequence"] == original["nats_per_sequence"]).all()


def test_a_course_is_that_of_any_number_of_workers(study, tmp_path):
    one = study(tmp_path, training={"micro_batch_size": 8})
    two = study(tmp_path / "elsewhere", workers=2, artifacts="file:///kept")
    assert one.course() == two.course()
    assert one.fingerprint() != two.fingerprint()
    other = study(tmp_path, training={"batch_size": 64})
    assert other.course() != one.course()


@pytest.mark.parametrize("cpus", [2.0, 1.0])
def test_a_worker_computes_on_as_many_threads_as_it_has_cores(study, alone, tmp_path, cpus):
    resources = Resources(cpus_per_worker=cpus)
    spec = study(tmp_path).model_copy(update={"resources": resources})
    alone(spec, trials.Script(stop_at=1))
    assert torch.get_num_threads() == cpus
