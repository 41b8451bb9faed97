"""The live view of a running search: a table and a bar, or plain lines for a log.

rich draws the table in a terminal and in Jupyter, from any thread.
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

from mptune.analysis.intervals import half_width, lml_half_width
from mptune.live.status import (
    end_words,
    event_words,
    gangs_table,
    limit_words,
    outlook_words,
    queue_table,
    spend_words,
    summary,
)
from mptune.report.formatting import about, count, duration, per_token
from mptune.status import Status
from mptune.trial import Event, Finished, GangChanged, Progress, Rung

FINISHED_SHOWN = 12
"""Ended trials that stay in the table; fewer in a low terminal."""

PLAIN_PROGRESS_S = 10.0
"""Without a terminal, seconds between two progress lines of one trial."""

PLAIN_STATUS_S = 60.0
"""Without a terminal, seconds between two lines on the status of the search."""

LINES_AROUND = 8
"""Terminal lines outside the tables: title, header, spend, bar, prompt."""

LEAST_ROWS = 3
"""Fewest rows of trials, whatever the height of the terminal."""

_STYLES = {
    "held back": "dim",
    "starting": "dim",
    "complete": "green",
    "paused": "yellow",
    "pruned": "yellow",
    "failed": "red",
    "interrupted": "yellow",
}

Clock: TypeAlias = Callable[[], float]
Row: TypeAlias = tuple[float | None, str, str, str, str]
"""Progress, loss, tokens per second, time to the end, and state of a trial."""


class LiveView:
    """Shows the trials of a search while it runs.

    Args:
        console: where to print; without a terminal and Jupyter, each event is one plain line.
        title: name of the search.
        total_trials: number of trials of the whole search.
        done: trials that ended before this driver started.
        clock: seconds since any origin.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        total_trials: int,
        done: int = 0,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._console = console
        self._title = title
        self._total = total_trials
        self._done_before = self._done = done
        self._clock = clock
        self._started_at = clock()
        self._labels: dict[int, tuple[str, str]] = {}
        """Policy and size of the trials."""
        self._scores: dict[int, str] = {}
        self._held: set[int] = set()
        self._ended: dict[int, str] = {}
        """The state of each ended trial, the last one last."""
        self._last_line_at: dict[int, float] = {}
        self._status: Status | None = None
        self._status_printed_at = self._started_at
        self._lock = RLock()  # rich refreshes from a thread of its own
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._is_live:
            self._live = Live(self, console=self._console, refresh_per_second=4, transient=False)
            self._live.start()
        else:
            self.note(f"{self._title}: {self._total} trials, {self._done_before} of them done")
        return self

    @property
    def _is_live(self) -> bool:
        """Whether the table can be redrawn: in a terminal or in Jupyter."""
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
        else:
            self.note(f"{self._title}: {self._done} of {self._total} trials done")

    # --- events ----------------------------------------------------------------------------------

    def trial(self, number: int, label: str, size: str) -> None:
        """Add a submitted trial; `label` is that of its policy."""
        with self._lock:
            self._labels[number] = label, size
            self._held.discard(number)
            self._ended.pop(number, None)

    def on_event(self, event: Event) -> None:
        """Keep the score of a trial, and without a terminal print the event."""
        if isinstance(event, GangChanged):
            self._plain(event_words(event))
            return
        number = event.number
        match event:
            case Rung():
                self._scores[number] = per_token(event.nats_per_token, half_width(event.se))
            case Finished():
                lml = event.result.lml
                self._scores[number] = per_token(lml.nats_per_token, lml_half_width(lml))
            case Progress():
                if self._clock() - self._last_line_at.get(number, -math.inf) < PLAIN_PROGRESS_S:
                    return
                self._last_line_at[number] = self._clock()
        self._plain(f"{self._name(number)}: {event_words(event)}")

    def hold_trial(self, number: int, why: str) -> None:
        """Show that a trial is on hold until running trials release enough budget."""
        with self._lock:
            self._held.add(number)
        self._plain(f"{self._name(number)}: held back: {why}")

    def finish_trial(self, number: int, state: str) -> None:
        """Show that a trial has ended, with its `state`, e.g. `failed: out_of_memory`."""
        with self._lock:
            self._done += state != "interrupted" and number not in self._ended
            self._ended[number] = state
        self._plain(f"{self._name(number)}: {state} ({self._done} of {self._total} done)")

    def look(self, status: Status) -> None:
        """Show a new status of the study."""
        had_enough = self._has_enough
        with self._lock:
            self._status = status
        if self._has_enough and not had_enough:
            self.note(f"{self._title}: {outlook_words(status.outlook)}")
        if self._clock() - self._status_printed_at >= PLAIN_STATUS_S:
            self._status_printed_at = self._clock()
            self._plain(f"{self._title}: {summary(status)}")

    def note(self, line: str) -> None:
        """Print one line above the table, or among the plain lines."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @property
    def _has_enough(self) -> bool:
        """Whether the search ends by itself."""
        outlook = self._status.outlook if self._status else None
        return outlook is not None and outlook.ended_by is not None

    def _name(self, number: int) -> str:
        label = self._labels.get(number)
        return f"trial {number} ({label[0]})" if label else f"trial {number}"

    # --- plain lines ---------------------------------------------------------------------------

    def _plain(self, line: str) -> None:
        if not self._is_live:
            self.note(line)

    # --- the table -----------------------------------------------------------------------------

    def __rich__(self) -> RenderableType:
        with self._lock:
            return Group(self._table(), *self._study_tables(), self._progress())

    def _table(self) -> Table:
        narrow = self._console.width < 100
        table = Table(
            Column("#", justify="right", no_wrap=True),
            Column("policy", ratio=3, no_wrap=True, overflow="ellipsis"),
            *([] if narrow else [Column("size", ratio=2, no_wrap=True, overflow="ellipsis")]),
            Column("progress", width=8 if narrow else 10),
            Column("loss", justify="right", no_wrap=True),
            Column("tokens/s", justify="right", no_wrap=True),
            Column("left", justify="right", no_wrap=True),
            Column("nats/token ±95%", justify="right", no_wrap=True, min_width=15),
            Column("state", no_wrap=True, overflow="ellipsis", max_width=10 if narrow else 24),
            title=Text(self._title, style="bold"),
            title_justify="left",
            box=None,
            expand=True,
            padding=(0, 1),
            header_style="dim",
        )
        for number, (progress, loss, speed, left, state) in self._rows().items():
            label, size = map(Text, self._labels.get(number, (f"trial {number}", "")))
            bar = "" if progress is None else _bar(progress)
            score = self._scores.get(number, "")
            shown = Text(state, style=_STYLES.get(state.split(":")[0], ""))
            sizes = [] if narrow else [size]
            style = "dim" if number in self._ended and state != "complete" else ""
            table.add_row(
                str(number), label, *sizes, bar, loss, speed, left, score, shown, style=style
            )
        return table

    @property
    def _room(self) -> int:
        """Terminal lines for trials, gangs and queue together."""
        return max(LEAST_ROWS, self._console.height - LINES_AROUND)

    def _study_tables(self) -> list[RenderableType]:
        """Gangs and queue, each on at most a fourth of the lines, and a line on the budgets."""
        if self._status is None:
            return []
        lines = self._room // 4
        found: list[RenderableType] = []
        if lines >= 2 and self._status.gangs:
            found.append(gangs_table(self._status.gangs, lines))
        if lines >= 2 and self._status.queue:
            found.append(queue_table(self._status.queue, lines))
        words = (
            spend_words(self._status.spend, self._status.forecast),
            limit_words(self._status),
            outlook_words(self._status.outlook),
        )
        line = f" {' · '.join(filter(None, words))}"
        return [*found, Text(line)]

    def _rows(self) -> dict[int, Row]:
        """The running trials and as many of the last ended ones as fit, by number."""
        rows: dict[int, Row] = {}
        used = 0
        if self._status is not None:
            lists = (self._status.gangs, self._status.queue)
            used = sum(min(len(rest) + 1, self._room // 4) for rest in lists if rest)
            for trial in self._status.running:
                rows[trial.number] = (
                    trial.progress,
                    "" if trial.loss is None else f"{trial.loss:.3f}",
                    count(trial.tokens_per_s) if trial.tokens_per_s else "",
                    "" if trial.left_s is None else about(trial.left_s),
                    trial.state,
                )
        rows |= dict.fromkeys(self._held, (None, "", "", "", "held back"))
        room = max(LEAST_ROWS, self._room - used)
        active = [number for number in rows if number not in self._ended][:room]
        left = min(FINISHED_SHOWN, room - len(active))
        ended = list(self._ended)[-left:] if left > 0 else []
        ending: dict[int, Row] = {n: (None, "", "", "", self._ended[n]) for n in ended}
        return dict(sorted(({n: rows[n] for n in active} | ending).items()))

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
        grid.add_row(f" {self._done}/{self._total} trials", _bar(share), ends)
        return grid


def _bar(share: float) -> ProgressBar:
    return ProgressBar(total=1.0, completed=share, complete_style="cyan")
