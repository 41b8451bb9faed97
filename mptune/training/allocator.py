"""The C library's memory: kept while a trial trains on a CPU, given back after it.

A training asks for the same large tensors in every step. glibc maps every block of more than 32 MiB
anew, and the kernel then clears it page by page: with a vocabulary of 8192 that was up to a third
of a step. Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""


def keep_freed_memory() -> None:
    """Let this process use freed memory again, of blocks of any size."""
    tune = _of_c("mallopt")
    if tune is not None:
        tune(M_MMAP_MAX, 0)
        tune(M_TRIM_THRESHOLD, -1)


def give_back_freed_memory() -> None:
    """Return to the machine what nobody uses now."""
    trim = _of_c("malloc_trim")
    if trim is not None:
        trim(0)


def _of_c(name: str) -> Any:
    """A function of the C library, or None if it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None)
