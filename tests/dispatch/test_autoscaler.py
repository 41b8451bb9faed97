"""What Ray's autoscaler is asked for, and when; tests/dispatch/test_elastic.py has a real one."""

from __future__ import annotations

import pytest

from mptune.dispatch import autoscaler
from mptune.dispatch.autoscaler import AGAIN_S, Autoscaler
from mptune.dispatch.room import Shape

PAIR = Shape(2, 1, 0.5)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, float]]]:
    found: list[list[dict[str, float]]] = []
    monkeypatch.setattr(autoscaler, "request_resources", lambda bundles: found.append(bundles))
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_one_bundle_for_each_worker_and_only_when_it_changes(asked, clock):
    one = Autoscaler()
    for _ in range(3):
        one.want([PAIR])
    one.want([])
    assert asked == [[{"CPU": 1, "GPU": 0.5}] * 2, []]


def test_a_dead_drivers_wish_is_replaced_even_by_none(asked, clock):
    Autoscaler().want([])
    assert asked == [[]]


def test_what_another_driver_may_have_replaced_is_asked_again(asked, clock):
    one = Autoscaler()
    one.want([PAIR])
    clock[0] += AGAIN_S + 1
    one.want([PAIR])
    assert len(asked) == 2
