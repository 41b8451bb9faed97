"""The cluster behind a Ray Client server; a real one is asked in test_crowded."""

from __future__ import annotations

from subprocess import CompletedProcess, TimeoutExpired
from unittest.mock import Mock

import pytest

from mptune.dispatch import cluster
from mptune.dispatch.ray_private import NO_CLIENT_SERVER
from mptune.errors import DispatchError


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        ("raise ConnectionError('ray client connection timeout')", "does not answer: Connection"),
        ("pass", "does not answer: no answer"),
    ],
)
def test_one_that_does_not_answer_is_named(monkeypatch, ask, why):
    monkeypatch.setattr(cluster, "CLIENT_QUESTION", ask)
    with pytest.raises(DispatchError, match=f"^--address: ray://head:10001 {why}"):
        cluster.resolve_client_address("ray://head:10001")


def test_one_that_takes_too_long_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(cluster, "CLIENT_QUESTION", "import time; time.sleep(60)")
    monkeypatch.setattr(cluster, "CLIENT_TIMEOUT_S", 0.5)
    with pytest.raises(DispatchError, match="did not answer in 0 s"):
        cluster.resolve_client_address("ray://head:10001")


def test_the_head_is_told_among_other_lines(monkeypatch):
    monkeypatch.setattr(cluster, "CLIENT_QUESTION", "print('hello'); print('head 192.0.2.1:6379')")
    assert cluster.resolve_client_address("ray://head:10001") == "192.0.2.1:6379"


BUSY = """
import os, sys

if not os.path.exists({seen!r}):
    open({seen!r}, "w").close()
    sys.exit("RuntimeError: {error}. See ray_client_server_23000.err for detailed logs.")
print("head 192.0.2.1:6379")
"""


@pytest.mark.parametrize("error", NO_CLIENT_SERVER)
def test_a_head_too_busy_for_a_client_is_asked_again(monkeypatch, tmp_path, error):
    question = BUSY.format(seen=str(tmp_path / "seen"), error=error)
    monkeypatch.setattr(cluster, "CLIENT_QUESTION", question)
    assert cluster.resolve_client_address("ray://head:10001") == "192.0.2.1:6379"


def test_a_head_that_stays_too_busy_is_named_with_its_reason(monkeypatch):
    busy = CompletedProcess([], 1, stdout="", stderr=f"RuntimeError: {NO_CLIENT_SERVER[0]}")
    answers = Mock(side_effect=[busy, busy, TimeoutExpired([], 0)])
    monkeypatch.setattr(cluster.subprocess, "run", answers)
    with pytest.raises(DispatchError, match=f"in 120 s: RuntimeError: {NO_CLIENT_SERVER[0]}$"):
        cluster.resolve_client_address("ray://head:10001")


TIMED_OUT = Exception("The current node timed out during startup. This could happen because ...")


def test_ray_is_started_again_on_a_busy_machine(monkeypatch):
    starts = Mock(side_effect=[TIMED_OUT, TIMED_OUT, None])
    monkeypatch.setattr(cluster, "_init", starts)
    connection = object.__new__(cluster.ClusterConnection)
    connection._start()
    connection._cleanup.kill()
    connection._cleanup.wait()
    assert starts.call_count == 3


def test_a_machine_too_busy_for_ray_is_named_with_the_way_without_it(monkeypatch):
    monkeypatch.setattr(cluster, "START_TIMEOUT_S", 0.0)
    monkeypatch.setattr(cluster, "_init", Mock(side_effect=TIMED_OUT))
    with pytest.raises(DispatchError, match=r"^cannot start Ray here: .*; `--local` runs the"):
        cluster.ClusterConnection(None)
