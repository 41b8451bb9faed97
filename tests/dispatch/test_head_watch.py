"""The watch over the cluster's head, with a listening socket in its place."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mptune.dispatch import cluster
from mptune.dispatch.cluster import HeadWatch
from mptune.errors import DispatchError


class Place:
    """Where a head may live; `who` lives there."""

    def __init__(self) -> None:
        self.who = "the first"
        self.asked = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]

    def identity(self) -> str:
        self.asked.set()
        return self.who

    def go_away(self, visitor: socket.socket) -> None:
        self._server.close()
        visitor.close()

    def visitor(self) -> socket.socket:
        return self._server.accept()[0]

    def come_back(self, who: str) -> None:
        self.who = who
        self.asked.clear()
        self._server = socket.create_server(("127.0.0.1", self.port))


@contextmanager
def watched(place: Place) -> Iterator[tuple[HeadWatch, socket.socket]]:
    head = HeadWatch(f"127.0.0.1:{place.port}", place.identity)
    try:
        yield head, place.visitor()
    finally:
        head.close()


@pytest.fixture
def place(monkeypatch) -> Place:
    monkeypatch.setattr(cluster, "HEAD_RETRY_S", 0.01)
    return Place()


def until(condition) -> None:
    met = threading.Event()
    for _ in range(1000):
        if condition():
            return
        met.wait(0.01)
    raise AssertionError("it did not come to that")


def test_one_that_stays_is_there(place):
    with watched(place) as (head, _):
        assert head.is_reachable()


def test_one_that_comes_back_with_its_memory_is_there_again(place):
    with watched(place) as (head, visitor):
        place.go_away(visitor)
        until(lambda: not head.is_reachable())
        place.come_back("the first")
        until(head.is_reachable)
        assert place.asked.is_set()


def test_one_that_comes_back_as_another_is_lost(place):
    with watched(place) as (head, visitor):
        place.go_away(visitor)
        place.come_back("the second")
        with pytest.raises(DispatchError, match=r"was restarted; .* the same command continues"):
            until(lambda: head.is_reachable() and False)


def test_one_that_stays_away_is_lost_in_time(place, monkeypatch):
    with watched(place) as (head, visitor):
        place.go_away(visitor)
        until(lambda: not head.is_reachable())
        monkeypatch.setattr(cluster, "HEAD_TIMEOUT_S", 0.0)
        with pytest.raises(DispatchError, match="has been away for 0 s"):
            head.is_reachable()


def test_a_failure_is_excused_by_an_absence_that_the_watch_sees_in_time(place):
    with watched(place) as (head, visitor):
        place.go_away(visitor)
        assert head.explains(RuntimeError("no answer"))
        place.come_back("the first")
        until(head.is_reachable)


def test_an_absence_that_is_over_explains_one_failure(place, monkeypatch):
    monkeypatch.setattr(cluster, "HEAD_NOTICE_S", 0.05)
    with watched(place) as (head, visitor):
        place.go_away(visitor)
        until(lambda: not head.is_reachable())
        place.come_back("the first")
        until(head.is_reachable)
        assert head.explains(RuntimeError("no answer"))
        assert not head.explains(RuntimeError("no answer"))


def test_a_head_that_does_not_know_this_search_was_restarted(place):
    with watched(place) as (head, _):
        message = r"was restarted; .* the same command continues"
        with pytest.raises(DispatchError, match=message):
            head.explains(RuntimeError("RPC error: WrongClusterID: Perhaps the client ..."))
