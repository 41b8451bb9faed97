"""Fixtures of the search tests: those of the study tests, and a virtual clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests import fakes
from tests.search import drivers
from tests.study.conftest import *  # noqa: F403


@pytest.fixture
def virtual_clock(monkeypatch: pytest.MonkeyPatch) -> drivers.VirtualClock:
    """The clock of drivers and fake workers; a step of a fake worker takes exactly `step_s`."""
    clock = drivers.VirtualClock()
    monkeypatch.setattr(drivers, "clock", clock)
    monkeypatch.setattr(fakes, "time", SimpleNamespace(sleep=clock.sleep, monotonic=clock))
    return clock
