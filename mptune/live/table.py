"""The live view of a running search: a table and a bar, or plain lines for a log.

rich draws the table in a terminal and in Jupyter, from any thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
    queue_table,
    spend_words,
    summary,
)
from mptune.report.formatting import about, count, duration, per_token
from mptune.status import Status
from mptune.trial import (
    Event,
    Failed,
    Finished,
    GangChanged,
    Progress,
    Rung,
    Scoring,
    Started,
    Stopped,
)

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
    "waiting": "dim",
    "starting": "dim",
    "complete": "green",
    "pruned": "yellow",
    "failed": "red",
    "interrupted": "yellow",
}

Clock: TypeAlias = Callable[[], float]


@dataclass
class _Row:
    """The current state of one trial in the table."""

    number: int
    label: str
    size: str
    state: str = "waiting"
    progress: float = 0.0
    loss: float | None = None
    tokens_per_s: float = 0.0
    score: str = ""
    ended: bool = False
    last_line_at: float = field(default=float("-inf"))


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
        self._rows: dict[int, _Row] = {}
        self._ended: list[int] = []
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
            self._rows[number] = _Row(number, label, size)

    def on_event(self, event: Event) -> None:
        """Show an event of a trial or a gang."""
        with self._lock:
            line = self._take(event)
        if line:
            self._plain(line)

    def hold_trial(self, number: int, why: str) -> None:
        """Show that a trial is on hold until running trials release enough budget."""
        with self._lock:
            self._row(number).state = "held back"
        self._plain(f"{self._name(number)}: held back: {why}")

    def finish_trial(self, number: int, state: str) -> None:
        """Show that a trial has ended, with its `state`, e.g. `failed: out_of_memory`."""
        with self._lock:
            row = self._row(number)
            row.state, row.ended = state, True
            if number not in self._ended:
                self._ended.append(number)
                self._done += state != "interrupted"
        self._plain(f"{self._name(number)}: {state} ({self._done} of {self._total} done)")

    def look(self, status: Status) -> None:
        """Show a new status of the study."""
        with self._lock:
            self._status = status
            for trial in status.queue:
                self._row(trial.number).state = "waiting"
            for running in status.running:
                if running.state == "starting":
                    self._row(running.number).state = "starting"
        if self._clock() - self._status_printed_at >= PLAIN_STATUS_S:
            self._status_printed_at = self._clock()
            self._plain(f"{self._title}: {summary(status)}")

    def note(self, line: str) -> None:
        """Print one line above the table, or among the plain lines."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _row(self, number: int) -> _Row:
        return self._rows.setdefault(number, _Row(number, f"trial {number}", ""))

    def _take(self, event: Event) -> str | None:
        """Update the rows; returns the plain line of the event, or None if it has none."""
        if isinstance(event, GangChanged):
            return event_words(event)
        row = self._row(event.number)
        match event:
            case Started():
                row.state = "training"
                row.progress = event.resumed_at / max(1, event.total_steps)
            case Progress():
                row.state, row.progress = "training", event.progress
                row.tokens_per_s, row.loss = event.tokens_per_s, event.loss
                if self._clock() - row.last_line_at < PLAIN_PROGRESS_S:
                    return None
                row.last_line_at = self._clock()
            case Rung():
                row.score = per_token(event.nats_per_token, half_width(event.se))
            case Scoring():
                row.state, row.progress = "scoring", 1.0
            case Finished():
                row.state, row.progress = "finished", 1.0
                lml = event.result.lml
                row.score = per_token(lml.nats_per_token, lml_half_width(lml))
            case Stopped():
                row.state = event.reason
            case Failed():
                row.state = f"failed: {event.reason}"
        return f"{self._name(row.number)}: {event_words(event)}"

    def _name(self, number: int) -> str:
        row = self._row(number)
        return f"trial {number} ({row.label})" if row.size else row.label

    # --- plain lines ---------------------------------------------------------------------------

    def _plain(self, line: str) -> None:
        if not self._is_live:
            self.note(line)

    # --- the table -----------------------------------------------------------------------------

    def __rich__(self) -> RenderableType:
        with self._lock:
            return Group(self._table(), *self._study_tables(), self._bar())

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
        running = self._status.running if self._status else ()
        left = {t.number: about(t.left_s) for t in running if t.left_s is not None}
        for row in self._shown():
            cells = _cells(row, left.get(row.number, ""))
            style = "dim" if row.ended and row.state != "complete" else ""
            table.add_row(*(cells[:2] + cells[3:] if narrow else cells), style=style)
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
        words = (spend_words(self._status.spend, self._status.forecast), limit_words(self._status))
        line = f" {' · '.join(filter(None, words))}"
        return [*found, Text(line)]

    def _shown(self) -> list[_Row]:
        """The running trials and as many of the last ended ones as fit, by number."""
        queue, gangs = (self._status.queue, self._status.gangs) if self._status else ((), ())
        fourth = self._room // 4
        used = sum(min(len(table) + 1, fourth) for table in (gangs, queue) if table)
        room = max(LEAST_ROWS, self._room - used)
        queued = {trial.number for trial in queue}
        running = [r for r in self._rows.values() if not r.ended and r.number not in queued]
        left = min(FINISHED_SHOWN, room - len(running[:room]))
        ended = [self._rows[n] for n in self._ended[-left:]] if left > 0 else []
        return sorted([*ended, *running[:room]], key=lambda row: row.number)

    def _bar(self) -> Table:
        # A running trial counts by its progress.
        running = sum(row.progress for row in self._rows.values() if not row.ended)
        share = min(1.0, (self._done + running) / max(1, self._total))
        elapsed = self._clock() - self._started_at
        end = end_words(self._status) if self._status else ""
        here = share - self._done_before / max(1, self._total)
        if not end and here > 0.01:
            end = f"{duration(elapsed * (1 - share) / here)} left"
        grid = Table.grid(Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True), expand=True)
        grid.padding = (0, 1)
        bar = ProgressBar(total=1.0, completed=share, complete_style="cyan")
        grid.add_row(
            f" {self._done}/{self._total} trials",
            bar,
            f"{duration(elapsed)}{' · ' * bool(end)}{end} ",
        )
        return grid


def _cells(row: _Row, left: str) -> list[RenderableType]:
    """One cell per column, with `left` as the time to the end; labels are never read as markup."""
    bar: RenderableType = (
        ProgressBar(total=1.0, completed=row.progress, complete_style="cyan")
        if not row.ended
        else Text("")
    )
    speed = count(row.tokens_per_s) if row.tokens_per_s and not row.ended else ""
    loss = f"{row.loss:.3f}" if row.loss is not None and not row.ended else ""
    state = Text(row.state, style=_STYLES.get(row.state.split(":")[0], ""))
    label, size, score = Text(row.label), Text(row.size), Text(row.score)
    return [str(row.number), label, size, bar, loss, speed, left, score, state]
