"""One driver at a time."""

from __future__ import annotations

import os

import pytest

from mptune.errors import InputError
from mptune.paths import RunDirectory
from mptune.study.lease import driver_lock, is_driven


def test_a_second_driver_is_refused_and_names_the_first(run: RunDirectory) -> None:
    with driver_lock(run):
        assert is_driven(run)
        with pytest.raises(InputError, match=f"process {os.getpid()} on"), driver_lock(run):
            pass
    assert not is_driven(run)
