"""How Ray is started or attached to; real clusters are in test_crowded."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from mptune.dispatch import cluster
from mptune.errors import DispatchError
from mptune.paths import free_port


def test_a_ray_client_server_is_refused_with_what_to_give():
    with pytest.raises(DispatchError, match=r"ray://head:10001 is a Ray Client .* auto"):
        cluster.ClusterConnection("ray://head:10001")


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


def test_a_head_that_does_not_answer_is_one_line(monkeypatch):
    """Ray alone tries for many minutes."""
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 0.0)
    monkeypatch.setattr(cluster, "_init", Mock())
    port = free_port()
    with pytest.raises(DispatchError) as error:
        cluster.ClusterConnection(f"127.0.0.1:{port}")
    assert f"cannot reach the Ray cluster at 127.0.0.1:{port}: nothing answers" in str(error.value)
    assert "Connection refused" in str(error.value)
    cluster._init.assert_not_called()
