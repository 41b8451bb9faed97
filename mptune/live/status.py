"""The status of a running search as text and tables, for the live view and `mptune status`."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.table import Column, Table
from rich.text import Text

from mptune.analysis.intervals import half_width, lml_half_width
from mptune.report.formatting import about, count, per_token
from mptune.status import Forecast, GangStatus, QueuedTrial, RunningTrial, Spend, Status
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
            return f"started{gang}, {parameters}, {event.total_steps} steps{resumed}"
        case Progress():
            return (
                f"{event.progress:.0%}, loss {event.loss:.3f} at mask rate {event.mask_rate:.2f}, "
                f"{count(event.tokens_per_s)} tokens/s"
            )
        case Rung():
            score = per_token(event.nats_per_token, half_width(event.se))
            at = f"rung {event.index} at {event.progress:.0%}"
            return f"{at}: LML {score} nats per token (95 %)"
        case Scoring():
            return "trained, scoring"
        case Finished():
            lml = event.result.lml
            score = per_token(lml.nats_per_token, lml_half_width(lml))
            return f"LML {score} nats per token (95 %)"
        case Stopped():
            return f"{event.reason} at step {event.step}"
        case Failed():
            return f"failed, {event.reason}: {event.detail}"


def running_table(running: Sequence[RunningTrial]) -> Table:
    """The running trials."""
    table = _table(
        ">running", "policy and size", ">progress", ">loss", ">tokens/s", ">left", "state"
    )
    table.expand, table.columns[1].ratio = True, 1
    for trial in running:
        table.add_row(
            str(trial.number),
            Text(f"{trial.policy_label} · {trial.size_label}"),
            f"{trial.progress:.0%}",
            "" if trial.loss is None else f"{trial.loss:.3f}",
            "" if trial.tokens_per_s is None else count(trial.tokens_per_s),
            "" if trial.left_s is None else about(trial.left_s),
            trial.state,
        )
    return table


def gangs_table(gangs: Sequence[GangStatus], lines: int) -> Table:
    """The gangs, busy ones first, on at most `lines` lines, the header included."""
    table = _table("gang", "workers", ">nodes", ">trial", ">trials run", ">memory", "state")
    shown = sorted(gangs, key=lambda gang: gang.state == "idle")
    for gang in shown[: _fit(len(gangs), lines)]:
        gpus = f", {gang.gpus_per_worker:g} GPU" if gang.gpus_per_worker else ""
        table.add_row(
            gang.name,
            f"{gang.workers} x {gang.cpus_per_worker:g} CPU{gpus}",
            str(len(gang.nodes)),
            "" if gang.trial is None else str(gang.trial),
            str(gang.trials),
            "" if gang.resident_bytes is None else f"{count(gang.resident_bytes)}B",
            gang.state,
        )
    return _with_rest(table, len(gangs), lines)


def queue_table(queue: Sequence[QueuedTrial], lines: int) -> Table:
    """The queue in order, on at most `lines` lines, the header included."""
    table = _table(">queued", ">workers", ">waits since", ">starts in about", "why it waits")
    for trial in queue[: _fit(len(queue), lines)]:
        table.add_row(
            str(trial.number),
            str(trial.workers),
            "" if trial.waited_s is None else about(trial.waited_s),
            "–" if trial.starts_in_s is None else about(trial.starts_in_s),
            trial.wait.words(),
        )
    return _with_rest(table, len(queue), lines)


def _table(*headers: str) -> Table:
    """A table whose columns are right-aligned if their header begins with `>`."""
    columns = [
        Column(
            header.removeprefix(">"),
            justify="right" if header.startswith(">") else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
        for header in headers
    ]
    return Table(*columns, box=None, padding=(0, 1), header_style="dim")


def _fit(rows: int, lines: int) -> int:
    """Rows that fit, with one line for the header and one for the number of hidden rows."""
    return rows if rows < lines else max(0, lines - 2)


def _with_rest(table: Table, rows: int, lines: int) -> Table:
    if rows > _fit(rows, lines):
        table.add_row(f"+{rows - _fit(rows, lines)}", style="dim")
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
    return f"{LIMITS[forecast.limited_by]} end it at {at}, after {forecast.trials} trials"


def summary(status: Status) -> str:
    """The status on one line, for a log."""
    busy = sum(gang.state == "busy" for gang in status.gangs)
    queued = ""
    if status.queue:
        first = status.queue[0]
        when = "" if first.starts_in_s is None else f", about {about(first.starts_in_s)}"
        queued = f"{len(status.queue)} queued (trial {first.number} {first.wait.words()}{when})"
    parts = [
        f"{status.trials.ended} of {status.trials.total} trials ended, "
        f"{len(status.running)} running on {busy} of {len(status.gangs)} gangs",
        queued,
        spend_words(status.spend, status.forecast),
        end_words(status),
        limit_words(status),
    ]
    return "; ".join(filter(None, parts))
