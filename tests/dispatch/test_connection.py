"""The cluster behind a Ray Client server; a real one is asked in test_crowded."""

from __future__ import annotations

import pytest

from mptune.dispatch import cluster
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
