"""Two trials with the real engine give the stored scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import cases, stored

pytestmark = pytest.mark.slow

REL = 1e-4
"""Between types of CPU; on one machine the scores are the same to the last digit."""


def test_real_trials_give_the_stored_scores_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPTUNE_CACHE", str(tmp_path / "cache"))
    first = cases.real(tmp_path / "first")
    assert stored.differences("real", first, REL) == []
    assert list(stored.compare(first, cases.real(tmp_path / "second"))) == []
