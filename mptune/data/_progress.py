"""How far a long preparation is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET_S = 2.0
"""Nothing is shown of what takes less."""

LINE_EVERY_S = 10.0


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(n)`; `total` and `n` are bytes. Written to stderr."""
    state = _State(what, total)
    yield state.advance
    state.end()


class _State:
    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._began = self._told = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._open = False

    def advance(self, size: int) -> None:
        self._done += size
        now = time.monotonic()
        every = 0.2 if self._terminal else LINE_EVERY_S
        if now - self._began > QUIET_S and now - self._told > every:
            self._told = now
            self._tell(now)

    def _tell(self, now: float) -> None:
        rate = self._done / (now - self._began)
        share = min(1.0, self._done / self._total) if self._total else 0.0
        bar = "━" * round(24 * share)
        words = f"{self._what} {bar:24} {share:4.0%} {self._done / 1e6:,.0f} MB, "
        words += f"{rate / 1e6:.1f} MB/s"
        print(words, end="\r" if self._terminal else "\n", file=sys.stderr, flush=True)
        self._open = self._terminal

    def end(self) -> None:
        if self._open:
            print(" " * 78, end="\r", file=sys.stderr, flush=True)
