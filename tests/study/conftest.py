"""A run directory for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from mptune.paths import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")
