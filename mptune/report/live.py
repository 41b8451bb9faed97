"""The live view of a running search: one table and one bar, or plain lines without a terminal."""

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

from mptune.report.words import count, duration, minus
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
"""Ended trials that stay in the table, fewer where the terminal is low."""

PLAIN_PROGRESS_S = 10.0
"""Without a terminal, seconds between two progress lines of one trial."""

LINES_AROUND = 8
"""Terminal lines that are not trials: title, header, rules, the search's bar, the prompt."""

_STYLES = {
    "waiting": "dim",
    "complete": "green",
    "pruned": "yellow",
    "failed": "red",
    "interrupted": "yellow",
}

Clock: TypeAlias = Callable[[], float]


@dataclass
class _Row:
    """What is known about one trial now."""

    number: int
    label: str
    size: str
    state: str = "waiting"
    progress: float = 0.0
    tokens_per_s: float = 0.0
    score: str = ""
    ended: bool = False
    last_line_at: float = field(default=float("-inf"))


class LiveView:
    """Shows what happens in a search while it happens.

    Args:
        console: where to; without a terminal every event becomes one plain line.
        title: name of what runs.
        total_trials: trials of the whole search.
        done: trials that an earlier driver of the same search has ended.
        clock: seconds from any origin; `time.monotonic` unless a test says otherwise.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        total_trials: int,
        *,
        done: int = 0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._console = console
        self._title = title
        self._total = total_trials
        self._done_before = done
        self._clock = clock
        self._started_at = clock()
        self._rows: dict[int, _Row] = {}
        self._ended: list[int] = []
        self._gangs: dict[str, str] = {}
        self._lock = RLock()  # rich refreshes from a thread of its own
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(self, console=self._console, refresh_per_second=4, transient=False)
            self._live.start()
        else:
            self._print(f"{self._title}: {self._total} trials, {self._done_before} of them done")
        return self

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
            self._print(f"{self._title}: {self._done} of {self._total} trials done")

    # --- what happens --------------------------------------------------------------------------

    def trial(self, number: int, label: str, size: str) -> None:
        """A trial was submitted: its policy in words and its size."""
        with self._lock:
            self._rows[number] = _Row(number, label, size)

    def on_event(self, event: Event) -> None:
        """Something happened to a trial or a gang."""
        with self._lock:
            line = self._take(event)
        if line:
            self._plain(line)

    def finish_trial(self, number: int, state: str) -> None:
        """A trial was told to the study; `state` in words, e.g. `failed: out_of_memory`."""
        with self._lock:
            row = self._row(number)
            row.state, row.ended = state, True
            if number not in self._ended:
                self._ended.append(number)
        self._plain(f"{self._name(number)}: {state} ({self._done} of {self._total} done)")

    def note(self, line: str) -> None:
        """One line above the table, or among the plain lines."""
        self._print(line)

    def _row(self, number: int) -> _Row:
        return self._rows.setdefault(number, _Row(number, f"trial {number}", ""))

    def _take(self, event: Event) -> str | None:
        """Update the rows; returns the plain line of the event, if it deserves one."""
        if isinstance(event, GangChanged):
            return self._gang(event)
        row = self._row(event.number)
        match event:
            case Started():
                row.state = "training"
                row.progress = event.resumed_at / max(1, event.total_steps)
                return f"{self._name(row.number)}: {_started_words(event)}"
            case Progress():
                row.state, row.progress = "training", event.progress
                row.tokens_per_s = event.tokens_per_s
                return self._progress_line(row, event)
            case Rung():
                row.score = f"{minus(event.nats_per_token, 3)} ± {event.se:.3f}"
                at = f"rung {event.index} at {event.progress:.0%}"
                return f"{self._name(row.number)}: {at}: LML {row.score} nats per token"
            case Scoring():
                row.state, row.progress = "scoring", 1.0
                return f"{self._name(row.number)}: trained, scoring"
            case Finished():
                row.state, row.progress = "finished", 1.0
                row.score = _score_words(event)
                return f"{self._name(row.number)}: LML {row.score} nats per token"
            case Stopped():
                row.state = event.reason
                return f"{self._name(row.number)}: {event.reason} at step {event.step}"
            case Failed():
                row.state = f"failed: {event.reason}"
                return f"{self._name(row.number)}: failed, {event.reason}: {event.detail}"

    def _gang(self, event: GangChanged) -> str:
        if event.state == "gone":
            self._gangs.pop(event.gang, None)
        else:
            self._gangs[event.gang] = event.state
        return f"gang {event.gang} {event.state}" + (f": {event.detail}" if event.detail else "")

    def _progress_line(self, row: _Row, event: Progress) -> str | None:
        if self._clock() - row.last_line_at < PLAIN_PROGRESS_S:
            return None
        row.last_line_at = self._clock()
        return (
            f"{self._name(row.number)}: {event.progress:.0%}, loss {event.loss:.3f} at mask rate "
            f"{event.mask_rate:.2f}, {count(event.tokens_per_s)} tokens/s"
        )

    def _name(self, number: int) -> str:
        row = self._row(number)
        return f"trial {number} ({row.label})" if row.size else row.label

    # --- plain lines ---------------------------------------------------------------------------

    def _plain(self, line: str) -> None:
        if not self._console.is_terminal:
            self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    # --- the table -----------------------------------------------------------------------------

    @property
    def _done(self) -> int:
        return self._done_before + len(self._ended)

    def __rich__(self) -> RenderableType:
        with self._lock:
            return Group(self._table(), self._bar())

    def _table(self) -> Table:
        narrow = self._console.width < 100
        table = Table(
            Column("#", justify="right", no_wrap=True),
            Column("policy", ratio=3, no_wrap=True, overflow="ellipsis"),
            *([] if narrow else [Column("size", ratio=2, no_wrap=True, overflow="ellipsis")]),
            Column("progress", width=8 if narrow else 14),
            Column("tokens/s", justify="right", no_wrap=True),
            Column("LML, nats/token", justify="right", no_wrap=True, min_width=15),
            Column("state", no_wrap=True, overflow="ellipsis", max_width=12 if narrow else 24),
            title=Text(self._title, style="bold"),
            title_justify="left",
            box=None,
            expand=True,
            padding=(0, 1),
            header_style="dim",
        )
        for row in self._shown():
            cells = _cells(row)
            table.add_row(*(cells[:2] + cells[3:] if narrow else cells), style=_dim(row))
        return table

    def _shown(self) -> list[_Row]:
        """Running trials, and as many of the last ended ones as fit; in order of number."""
        room = max(3, self._console.height - LINES_AROUND)
        running = [row for row in self._rows.values() if not row.ended][:room]
        left = min(FINISHED_SHOWN, room - len(running))
        ended = [self._rows[n] for n in self._ended[-left:]] if left > 0 else []
        return sorted([*ended, *running], key=lambda row: row.number)

    def _bar(self) -> Table:
        share = self._share()
        grid = Table.grid(Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True), expand=True)
        grid.padding = (0, 1)
        bar = ProgressBar(total=1.0, completed=share, complete_style="cyan")
        grid.add_row(f" {self._done}/{self._total} trials", bar, self._time_words(share))
        return grid

    def _share(self) -> float:
        """Share of the search that is done, running trials counted by their progress."""
        running = sum(row.progress for row in self._rows.values() if not row.ended)
        return min(1.0, (self._done + running) / max(1, self._total))

    def _time_words(self, share: float) -> str:
        elapsed = self._clock() - self._started_at
        ready = sum(state == "ready" for state in self._gangs.values())
        gangs = f" · {ready} gang{'s' * (ready != 1)}" if self._gangs else ""
        here = share - self._done_before / max(1, self._total)
        left = f" · {duration(elapsed * (1 - share) / here)} left" if here > 0.01 else ""
        return f"{duration(elapsed)}{left}{gangs} "


def _cells(row: _Row) -> list[RenderableType]:
    """One cell per column, labels taken literally whatever they contain."""
    bar: RenderableType = (
        ProgressBar(total=1.0, completed=row.progress, complete_style="cyan")
        if not row.ended
        else Text("")
    )
    speed = count(row.tokens_per_s) if row.tokens_per_s and not row.ended else ""
    state = Text(row.state, style=_STYLES.get(row.state.split(":")[0], ""))
    return [str(row.number), Text(row.label), Text(row.size), bar, speed, Text(row.score), state]


def _dim(row: _Row) -> str:
    return "dim" if row.ended and row.state != "complete" else ""


def _started_words(event: Started) -> str:
    resumed = f", resumed at step {event.resumed_at}" if event.resumed_at else ""
    return (
        f"started on gang {event.gang}, {count(event.parameters)} parameters, "
        f"{event.total_steps} steps{resumed}"
    )


def _score_words(event: Finished) -> str:
    lml = event.result.lml
    tokens = lml.nats_per_sequence / lml.nats_per_token if lml.nats_per_token else 1.0
    return f"{minus(lml.nats_per_token, 3)} ± {lml.se_population / tokens:.3f}"
