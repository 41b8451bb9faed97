"""The progress of `mptune score`, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mptune.tools.score import ModelScore, Options, Race

Result = TypeVar("Result")


def watch(results: Iterator[Result], describe: Callable[[Result], str]) -> Result:
    """Print a line for each intermediate result; Ctrl-C ends the scoring early.

    Returns:
        The last result.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first result.
    """
    last: Result | None = None
    live = sys.stderr.isatty()
    try:
        for last in results:
            line = describe(last)
            print(f"\r\x1b[K{line}" if live else line, end="" if live else "\n",
                  file=sys.stderr, flush=True)  # fmt: skip
    except KeyboardInterrupt:
        if last is None:
            raise
        print("\ninterrupted: the result so far", file=sys.stderr)
    if live:
        print(file=sys.stderr)
    assert last is not None, "scoring yields at least one result"
    return last


def _bar(share: float) -> str:
    done = round(20 * min(max(share, 0.0), 1.0))
    return "█" * done + "░" * (20 - done)


def model_progress(now: ModelScore, options: Options) -> str:
    """One line: progress towards the target standard error, forwards, seconds, error."""
    error = now.error
    # The error falls with the square root of the forwards.
    share = (options.target_se / error) ** 2 if error > 0 else 1.0
    return (
        f"{_bar(share)} {now.estimate.forwards_used} forwards in {now.seconds:.0f} s, "
        f"standard error {error:.4f} of {options.target_se} nats per token"
    )


def race_progress(now: Race) -> str:
    """One line: progress towards a decision, forwards, seconds, difference with its interval."""
    found = now.comparison
    share = abs(found.difference) / found.half_width if found.half_width else 1.0
    return (
        f"{_bar(share)} {found.forwards} forwards of each in {now.seconds:.0f} s, difference "
        f"{found.difference:+.2f} ± {found.half_width:.2f} nats per sequence"
    )
