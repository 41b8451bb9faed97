"""What Ray's autoscaler is asked for, and when; tests/dispatch/test_elastic.py has a real one."""

from __future__ import annotations

import pytest

from mptune.dispatch import claims, ray_private
from mptune.dispatch.claims import REPEAT_S, Autoscaler, requester
from mptune.dispatch.placement import Shape

PAIR = Shape(2, 1, 0.5)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, float]]]:
    found: list[list[dict[str, float]]] = []
    monkeypatch.setattr(claims, "request_resources", lambda bundles: found.append(bundles))
    return found


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Replaces the key-value store of the cluster's head."""
    kept: dict[str, bytes] = {}

    def write(key: str, value: str | None) -> None:
        if value is None:
            kept.pop(key, None)
        else:
            kept[key] = value.encode()

    monkeypatch.setattr(ray_private, "write_key", write)
    monkeypatch.setattr(ray_private, "read_key", kept.get)
    return kept


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_one_bundle_for_each_worker_and_only_when_it_changes(requests, clock):
    one = Autoscaler("mine")
    for _ in range(3):
        one.request([PAIR])
    one.request([])
    assert requests == [[{"CPU": 1, "GPU": 0.5}] * 2, []]


def test_the_request_of_a_dead_driver_is_replaced_even_by_none(requests, clock):
    Autoscaler("mine").request([])
    assert requests == [[]]


def test_a_request_is_repeated_because_another_driver_may_have_replaced_it(requests, clock):
    one = Autoscaler("mine")
    one.request([PAIR])
    clock[0] += REPEAT_S
    one.request([PAIR])
    assert len(requests) == 1
    clock[0] += 1
    one.request([PAIR])
    assert len(requests) == 2


def test_the_note_has_the_last_driver_until_its_request_is_withdrawn(requests, clock):
    assert requester() == ""
    one = Autoscaler("mine")
    one.request([PAIR])
    assert requester() == "mine"
    Autoscaler("another").request([Shape(1, 1, 0)])
    assert requester() == "another"
    one.request([])
    assert requester() == ""


def test_orphans_are_what_carries_the_mark(monkeypatch, requests, clock):
    groups = {
        "01": {"name": "mptune/run/0a/gang-1", "state": "CREATED", "bundles": {0: {}, 1: {}}},
        "02": {"name": "mptune/run/0a/gang-2", "state": "REMOVED", "bundles": {0: {}}},
        "03": {"name": "mptune/run-2/0a/gang-1", "state": "CREATED", "bundles": {0: {}}},
    }
    monkeypatch.setattr(claims, "placement_group_table", lambda: groups)
    Autoscaler("mptune/run/0a").request([PAIR])
    gang, request = claims.find_orphans("mptune/run")
    assert gang.problem == "gang mptune/run/0a/gang-1 (created, 2 workers) has no driver"
    assert request.problem == "its autoscaler is asked for machines by a driver that has ended"
    request.remove()
    assert requests[-1] == []
    assert [orphan.problem for orphan in claims.find_orphans("mptune/run")] == [gang.problem]
    (other,) = claims.find_orphans("mptune/run-2")
    assert "gang mptune/run-2/0a/gang-1" in other.problem
