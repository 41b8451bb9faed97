"""The status of a running search as text and tables, for the live view and `mptune status`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from rich.table import Table
from rich.text import Text

from mptune.analysis.intervals import half_width, lml_half_width
from mptune.errors import plural
from mptune.report.formatting import about, count, per_token
from mptune.status import Forecast, GangStatus, Outlook, QueuedTrial, RunningTrial, Spend, Status
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

Row = TypeVar("Row")

LIMITS = {
    "budget_seconds": "its seconds",
    "budget_worker_seconds": "its worker-seconds",
    "budget_gpu_hours": "its GPU-hours",
}


def event_words(event: Event) -> str:
    """An event of a trial or a gang in one line."""
    match event:
        case GangChanged():
            return f"gang {event.gang} {event.state}{f': {event.detail}' if event.detail else ''}"
        case Started():
            gang = f" on gang {event.gang}" if event.gang else ""
            resumed = f", resumed at step {event.resumed_at}" if event.resumed_at else ""
            parameters = f"{count(event.parameters)} parameters"
            return f"started{gang}, {parameters}, {plural(event.total_steps, 'step')}{resumed}"
        case Progress():
            return (
                f"{event.progress:.0%}, loss {event.loss:.3f} at mask rate {event.mask_rate:.2f}, "
                f"{count(event.tokens_per_s)} tokens/s"
            )
        case Rung():
            score = per_token(event.nats_per_token, half_width(event.se))
            at = f"rung {event.index} at {100 * event.progress:.3g}%"
            return f"{at}: LML {score} nats per token (95 %)"
        case Scoring():
            return "trained, scoring"
        case Finished():
            lml = event.result.lml
            score = per_token(lml.nats_per_token, lml_half_width(lml))
            unkept = event.result.unkept
            kept = "" if unkept is None else f"; its weights were not kept: {unkept}"
            return f"LML {score} nats per token (95 %){kept}"
        case Stopped():
            return f"{event.reason} at step {event.step}"
        case Failed():
            return f"failed, {event.reason}: {event.detail}"


def running_table(running: Sequence[RunningTrial], lines: int) -> Table:
    """The running trials, on at most `lines` lines, the header included."""
    table = _table(running, lines, {
        ">running": lambda t: t.number,
        "policy and size": lambda t: f"{t.policy_label} · {t.size_label}",
        ">progress": lambda t: f"{t.progress:.0%}",
        ">loss": lambda t: None if t.loss is None else f"{t.loss:.3f}",
        ">tokens/s": lambda t: None if t.tokens_per_s is None else count(t.tokens_per_s),
        ">left": lambda t: None if t.left_s is None else about(t.left_s),
        "state": lambda t: t.state,
    })  # fmt: skip
    table.expand, table.columns[1].ratio = True, 1
    return table


def gangs_table(gangs: Sequence[GangStatus], lines: int) -> Table:
    """The gangs, busy ones first, on at most `lines` lines, the header included."""

    def workers(gang: GangStatus) -> str:
        gpus = f", {gang.gpus_per_worker:g} GPU" if gang.gpus_per_worker else ""
        return f"{gang.workers} x {gang.cpus_per_worker:g} CPU{gpus}"

    shown = sorted(gangs, key=lambda gang: gang.state == "idle")
    return _table(shown, lines, {
        "gang": lambda g: g.name,
        "workers": workers,
        ">nodes": lambda g: len(g.nodes),
        ">trial": lambda g: g.trial,
        ">trials run": lambda g: g.trials,
        "state": lambda g: g.state,
    })  # fmt: skip


def queue_table(queue: Sequence[QueuedTrial], lines: int) -> Table:
    """The queue in order, on at most `lines` lines, the header included."""
    return _table(queue, lines, {
        ">queued": lambda t: t.number,
        ">workers": lambda t: t.workers,
        ">waits since": lambda t: None if t.waited_s is None else about(t.waited_s),
        "why it waits": lambda t: t.wait.words(),
    })  # fmt: skip


def _table(
    rows: Sequence[Row], lines: int, columns: Mapping[str, Callable[[Row], object]]
) -> Table:
    """A table on at most `lines` lines, the header and the number of hidden rows included.

    A column whose title begins with `>` is right-aligned; a value that is None is left empty.
    """
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for title in columns:
        side: Literal["left", "right"] = "right" if title.startswith(">") else "left"
        table.add_column(title.removeprefix(">"), justify=side, no_wrap=True, overflow="ellipsis")
    fit = len(rows) if len(rows) < lines else max(0, lines - 2)
    for row in rows[:fit]:
        values = (value(row) for value in columns.values())
        table.add_row(*("" if value is None else Text(str(value)) for value in values))
    if fit < len(rows):
        table.add_row(f"+{len(rows) - fit}", style="dim")
    return table


def spend_words(spend: Spend, forecast: Forecast) -> str:
    """The consumption of each budget, with its limit and its forecast."""
    parts = [_used("worker-s", spend.worker_seconds, spend.budget_worker_seconds,
                   forecast.worker_seconds)]  # fmt: skip
    if spend.gpu_hours or spend.budget_gpu_hours is not None:
        parts.append(
            _used("GPU-hours", spend.gpu_hours, spend.budget_gpu_hours, forecast.gpu_hours)
        )
    if spend.budget_seconds is not None:
        parts.append(f"{about(spend.seconds)} of {about(spend.budget_seconds)}")
    return "spent " + ", ".join(parts)


def _used(unit: str, used: float, budget: float | None, predicted: float | None) -> str:
    of = "" if budget is None else f" of {count(budget)}"
    to = "" if predicted is None else f" (forecast {count(predicted)})"
    return f"{count(used)}{of} {unit}{to}"


def end_words(status: Status) -> str:
    """The predicted time to the end of the study; empty without a prediction."""
    if status.stopping:
        return "stopping"
    left_s = status.forecast.left_s
    return "" if left_s is None else f"about {about(left_s)} left"


def limit_words(status: Status) -> str:
    """When the study will end, and whether a budget ends it; empty without a prediction."""
    forecast = status.forecast
    if forecast.left_s is None:
        return ""
    at = time.strftime("%H:%M", time.localtime(status.time + forecast.left_s))
    if forecast.limited_by is None:
        return f"ends at {at}"
    return f"{LIMITS[forecast.limited_by]} end it at {at}, after {plural(forecast.trials, 'trial')}"


def outlook_words(outlook: Outlook | None) -> str:
    """How sure a search is; empty where it is not known."""
    if outlook is None or outlook.probability is None:
        return ""
    of = "" if outlook.wanted is None else f" of {outlook.wanted:.1%}"
    end = "" if outlook.ended_by is None else ": the search ends, running trials finish"
    words = (
        f"within {outlook.delta:.2g} nats per sequence of the best with {outlook.probability:.1%}"
    )
    return f"{words}{of}{end}"


def summary(status: Status) -> str:
    """The status on one line, for a log."""
    busy = sum(gang.state == "busy" for gang in status.gangs)
    queued = ""
    if status.queue:
        first = status.queue[0]
        queued = f"{len(status.queue)} queued (trial {first.number} {first.wait.words()})"
    parts = [
        f"{status.trials.used:g} of {plural(status.trials.total, 'trial')} done, "
        f"{len(status.running)} running on {busy} of {plural(len(status.gangs), 'gang')}",
        queued,
        spend_words(status.spend, status.forecast),
        end_words(status),
        limit_words(status),
        outlook_words(status.outlook),
    ]
    return "; ".join(filter(None, parts))
