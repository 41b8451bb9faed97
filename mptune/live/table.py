"""The live view of a running search: tables and a bar below its lines, or lines alone for a log.

rich draws the tables in a terminal and in Jupyter, from any thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from threading import RLock
from types import TracebackType
from typing import Self, TypeAlias

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from mptune.analysis.intervals import lml_half_width
from mptune.errors import plural
from mptune.live.status import (
    end_words,
    event_words,
    gangs_table,
    limit_words,
    outlook_words,
    queue_table,
    running_table,
    spend_words,
    summary,
)
from mptune.report.formatting import duration, per_token
from mptune.status import Status
from mptune.trial import Event, Finished, GangChanged, Progress, Rung

PLAIN_PROGRESS_S = 10.0
"""Without a terminal, seconds between two progress lines of one trial."""

PLAIN_STATUS_S = 60.0
"""Without a terminal, seconds between two lines on the status of the search."""

LINES_AROUND = 4
"""Terminal lines outside the tables: spend, bar, prompt, and one of the log."""

LEAST_LINES = 8
"""Fewest lines of the tables together, whatever the height of the terminal."""

Clock: TypeAlias = Callable[[], float]


class LiveView:
    """Shows the trials of a search while it runs.

    Args:
        console: where to print; without a terminal and Jupyter, each event is one plain line.
        title: name of the search.
        total_trials: number of trials of the whole search.
        done: trials that were used before this driver started, see `Trials.used`.
        clock: seconds since any origin.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        total_trials: int,
        done: float = 0,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._console = console
        self._title = title
        self._total = total_trials
        self._done_before = self._done_then = done
        """Trials that were used at the start, and at the last status."""
        self._shares: dict[int, float] = {}
        """Which part of a training each trial has used that ended or was paused since then."""
        self._clock = clock
        self._started_at = clock()
        self._labels: dict[int, str] = {}
        """Policies of the trials."""
        self._scores: dict[int, str] = {}
        self._reported_at: dict[int, float] = {}
        """Progress at the last rung of each trial."""
        self._ended: set[int] = set()
        self._last_line_at: dict[int, float] = {}
        self._status: Status | None = None
        self._status_printed_at = self._started_at
        self._lock = RLock()  # rich refreshes from a thread of its own
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self.note(
            f"{self._title}: {plural(self._total, 'trial')}, {self._done_before:g} of them done"
        )
        if self._is_live:
            self._live = Live(self, console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    @property
    def _is_live(self) -> bool:
        """Whether tables can be redrawn: in a terminal or in Jupyter."""
        return self._console.is_terminal or self._console.is_jupyter

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self.note(f"{self._title}: {self._done:g} of {plural(self._total, 'trial')} done")

    @property
    def _done(self) -> float:
        """Trials that are used."""
        return round(min(self._total, self._done_then + sum(self._shares.values())), 2)

    # --- events ----------------------------------------------------------------------------------

    def trial(self, number: int, label: str, size: str) -> None:
        """Name a submitted trial by the label of its policy."""
        with self._lock:
            self._labels[number] = label
            self._ended.discard(number)
            self._shares.pop(number, None)

    def on_event(self, event: Event) -> None:
        """Keep the score of a trial, and without a terminal print the event."""
        if isinstance(event, GangChanged):
            self._plain(event_words(event))
            return
        number = event.number
        match event:
            case Rung():
                self._reported_at[number] = event.progress
            case Finished():
                lml = event.result.lml
                score = per_token(lml.nats_per_token, lml_half_width(lml))
                self._scores[number] = f", LML {score} nats per token"
            case Progress():
                if self._clock() - self._last_line_at.get(number, -math.inf) < PLAIN_PROGRESS_S:
                    return
                self._last_line_at[number] = self._clock()
        self._plain(f"{self._name(number)}: {event_words(event)}")

    def hold_trial(self, number: int, why: str) -> None:
        """Print that a trial is on hold until running trials release enough budget."""
        self.note(f"{self._name(number)}: held back: {why}")

    def finish_trial(self, number: int, state: str) -> None:
        """Print that a trial has ended, with its `state`, e.g. `failed: out_of_memory`."""
        with self._lock:
            # One that this driver did not start was paused before, and counts already.
            begun = number in self._labels and number not in self._ended
            if state != "interrupted" and begun:
                share = self._reported_at.get(number, 0.0) if state == "paused" else 1.0
                self._shares[number] = share
            self._ended.add(number)
        score = self._scores.get(number, "") if self._is_live else ""  # a log has it already
        self.note(f"{self._name(number)}: {state}{score} ({self._done:g} of {self._total} done)")

    def look(self, status: Status) -> None:
        """Show a new status of the study."""
        had_enough = self._has_enough
        with self._lock:
            self._status, self._done_then = status, status.trials.used
            self._shares.clear()
        if self._has_enough and not had_enough:
            self.note(f"{self._title}: {outlook_words(status.outlook)}")
        if self._clock() - self._status_printed_at >= PLAIN_STATUS_S:
            self._status_printed_at = self._clock()
            self._plain(f"{self._title}: {summary(status)}")

    def note(self, line: str) -> None:
        """Print one line above the tables, or among the plain lines."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @property
    def _has_enough(self) -> bool:
        """Whether the search ends by itself."""
        outlook = self._status.outlook if self._status else None
        return outlook is not None and outlook.ended_by is not None

    def _name(self, number: int) -> str:
        label = self._labels.get(number)
        return f"trial {number} ({label})" if label else f"trial {number}"

    def _plain(self, line: str) -> None:
        if not self._is_live:
            self.note(line)

    # --- the tables ----------------------------------------------------------------------------

    def __rich__(self) -> RenderableType:
        with self._lock:
            return Group(*self._tables(), self._progress())

    def _tables(self) -> list[RenderableType]:
        """The running trials on half of the lines, gangs and queue on a fourth each, budgets."""
        now = self._status
        if now is None:
            return []
        lines = max(LEAST_LINES, self._console.height - LINES_AROUND)
        words = spend_words(now.spend, now.forecast), limit_words(now), outlook_words(now.outlook)
        return [
            *([running_table(now.running, lines // 2)] if now.running else ()),
            *([gangs_table(now.gangs, lines // 4)] if now.gangs else ()),
            *([queue_table(now.queue, lines // 4)] if now.queue else ()),
            Text(f" {' · '.join(filter(None, words))}"),
        ]

    def _progress(self) -> Table:
        # A running trial counts by its progress.
        running = self._status.running if self._status else ()
        done = self._done + sum(t.progress for t in running if t.number not in self._ended)
        share = min(1.0, done / max(1, self._total))
        elapsed = self._clock() - self._started_at
        end = end_words(self._status) if self._status else ""
        here = share - self._done_before / max(1, self._total)
        if not end and here > 0.01:
            end = f"{duration(elapsed * (1 - share) / here)} left"
        grid = Table.grid(Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True), expand=True)
        grid.padding = (0, 1)
        ends = f"{duration(elapsed)}{' · ' * bool(end)}{end} "
        bar = ProgressBar(total=1.0, completed=share, complete_style="cyan")
        grid.add_row(f" {self._done:g}/{self._total} trials", bar, ends)
        return grid
