"""What large blocks cost; in a process of its own, because mallopt cannot be undone."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np, psutil
from mptune.paths import release_freed_memory
from mptune.training import engine

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(48 << 20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    engine.keep_freed_memory()
step()
faults = step()
release_freed_memory()
print(faults, psutil.Process().memory_info().rss)
"""


def faults(how: str) -> tuple[int, int]:
    """Page faults of the second of two equal steps, and resident bytes after giving back."""
    command = [sys.executable, "-c", FAULTS, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = done.stdout.split()
    return int(first), int(second)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_blocks_are_used_again_and_given_back_at_the_end():
    (default, base), (kept, after) = faults("default"), faults("kept")
    assert default > 10
    assert kept < default / 10
    assert after < base + (16 << 20)
