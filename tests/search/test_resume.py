"""How far a trial has come, as its directory says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mptune.paths import TrialDirectory
from mptune.search.in_flight import trained_share
from mptune.trial import Started, TrialSpec
from tests import fakes


@pytest.fixture
def trial(tmp_path: Path) -> TrialSpec:
    return fakes.trial(0, tmp_path)


@pytest.fixture
def files(trial: TrialSpec) -> TrialDirectory:
    found = TrialDirectory.of(trial.directory)
    found.checkpoint.mkdir(parents=True)
    return found


def mark(files: TrialDirectory, **marker: object) -> None:
    files.checkpoint_marker.write_text(json.dumps(marker))


def start(files: TrialDirectory, total_steps: int) -> None:
    told = Started(number=0, gang="g", pids=(1,), total_steps=total_steps, parameters=1)
    with files.events.open("a") as lines:
        lines.write(told.model_dump_json() + "\n")


def test_the_newest_checkpoint_counts_and_the_last_start(trial, files):
    assert trained_share(trial) == 0
    mark(files, tag="step00000120", fingerprint=trial.course())
    assert trained_share(trial) == 0, "nobody knows of how many"
    start(files, 999)
    assert trained_share(trial) == 120 / 999
    start(files, 480)
    with files.events.open("a") as lines:
        lines.write('{"type": "started", "numb')
    assert trained_share(trial) == 0.25


@pytest.mark.parametrize(
    "marker", [{}, {"tag": "step00000120", "fingerprint": "another's"}, {"tag": 7}]
)
def test_a_checkpoint_of_another_training_or_a_damaged_one_is_none(trial, files, marker):
    start(files, 480)
    mark(files, **{"fingerprint": trial.course(), **marker})
    assert trained_share(trial) == 0


def test_of_one_that_is_kept_elsewhere_nothing_is_known(trial, files):
    start(files, 480)
    mark(files, tag="step00000120", fingerprint=trial.course())
    away = trial.model_copy(update={"artifacts": "s3://bucket/run"})
    assert (trained_share(trial), trained_share(away)) == (0.25, 0)
