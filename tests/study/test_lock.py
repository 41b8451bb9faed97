"""One driver at a time."""

from __future__ import annotations

import os

import pytest

from mptune import study
from mptune.errors import InputError
from mptune.paths import RunDirectory


def test_a_second_driver_is_refused_and_names_the_first(run: RunDirectory) -> None:
    with study.driver_lock(run):
        assert study.is_driven(run)
        with pytest.raises(InputError, match=f"process {os.getpid()} on"), study.driver_lock(run):
            pass
    assert not study.is_driven(run)
