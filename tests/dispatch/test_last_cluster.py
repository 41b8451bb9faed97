"""Which cluster a run directory was searched on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mptune import dispatch
from mptune.paths import RunDirectory

HEAD = "10.0.0.1:6379"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.root.mkdir()
    dispatch.store_address(made, HEAD)
    monkeypatch.setattr("mptune.dispatch.is_reachable", lambda address: address == HEAD)
    return made


def test_the_cluster_of_the_last_search_is_known(run: RunDirectory) -> None:
    assert dispatch.last_cluster(run) == HEAD


def test_a_copy_does_not_know_the_gangs_of_the_original(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = run.root.with_name("copy")
    shutil.copytree(run.root, beside)
    assert dispatch.last_cluster(RunDirectory(beside)) is None
    monkeypatch.setattr("socket.gethostname", lambda: "another-machine")
    assert dispatch.last_cluster(run) is None


@pytest.mark.parametrize("damaged", ["", "[]", '{"address": "10.0.0.1:6379"}'])
def test_what_cannot_be_read_is_not_known(run: RunDirectory, damaged: str) -> None:
    run.cluster.write_text(damaged)
    assert dispatch.last_cluster(run) is None


def test_a_cluster_that_does_not_answer_is_not_asked(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mptune.dispatch.is_reachable", lambda address: False)
    assert dispatch.last_cluster(run) is None
