"""What Ray's autoscaler is asked for, and when; tests/dispatch/test_elastic.py has a real one."""

from __future__ import annotations

import pytest
from ray.experimental import internal_kv

from mptune.dispatch import autoscaler
from mptune.dispatch.autoscaler import AGAIN_S, NOTE, Autoscaler, Wish, wish
from mptune.dispatch.placement import Shape

PAIR = Shape(2, 1, 0.5)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, float]]]:
    found: list[list[dict[str, float]]] = []
    monkeypatch.setattr(autoscaler, "request_resources", lambda bundles: found.append(bundles))
    return found


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """In place of the one of the cluster's head."""
    kept: dict[str, bytes] = {}

    def put(key: str, value: str, **_: object) -> None:
        kept[key] = value.encode()

    monkeypatch.setattr(internal_kv, "_internal_kv_put", put)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key, **_: kept.get(key))
    monkeypatch.setattr(internal_kv, "_internal_kv_del", lambda key, **_: kept.pop(key, None))
    return kept


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_one_bundle_for_each_worker_and_only_when_it_changes(asked, clock):
    one = Autoscaler("mine")
    for _ in range(3):
        one.want([PAIR])
    one.want([])
    assert asked == [[{"CPU": 1, "GPU": 0.5}] * 2, []]


def test_a_dead_drivers_wish_is_replaced_even_by_none(asked, clock):
    Autoscaler("mine").want([])
    assert asked == [[]]


def test_what_another_driver_may_have_replaced_is_asked_again(asked, clock):
    one = Autoscaler("mine")
    one.want([PAIR])
    clock[0] += AGAIN_S + 1
    one.want([PAIR])
    assert len(asked) == 2


def test_it_is_noted_whose_wish_it_is_as_long_as_there_is_one(asked, clock):
    assert wish() is None
    one = Autoscaler("mine")
    one.want([PAIR])
    assert wish() == Wish("mine", workers=2, cpus=2, gpus=1)
    assert str(wish()) == "2 workers (2 CPU and 1 GPU)"
    Autoscaler("another").want([Shape(1, 1, 0)])
    assert wish() == Wish("another", workers=1, cpus=1, gpus=0)
    one.want([])
    assert wish() is None


@pytest.mark.parametrize("noted", [b"", b"[]", b"7", b'{"mark": "mine", "later": 1}'])
def test_a_note_that_cannot_be_read_is_none(store, noted):
    store[NOTE] = noted
    assert wish() is None
