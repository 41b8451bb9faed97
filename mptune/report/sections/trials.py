"""Every trial, whatever became of it, with its policy drawn small."""

from __future__ import annotations

from mptune.report.blocks import Cell, Column, Section, Table, Text
from mptune.report.layout import Area, Drawing, Stroke
from mptune.report.sections import Context
from mptune.report.words import minus
from mptune.trial import Trial

ORDER = 100

TONES = {"COMPLETE": "good", "PRUNED": "open", "FAIL": "bad"}

SPARK_WIDTH, SPARK_HEIGHT = 72, 24


def section(context: Context) -> Section | None:
    say, trials = context.say, context.report.trials
    title = say("section.trials")
    if not trials:
        return Section("trials", title, (Text(say("trials.none")),))
    kpi = any(t.kpi and t.kpi.value is not None for t in trials)
    head = (
        Column(say("column.trial")),
        Column(say("column.policy"), numeric=False),
        Column(say("column.rate_over_training"), numeric=False),
        Column(say("column.state"), numeric=False),
        Column(say("column.lml")),
        *([Column("KPI")] if kpi else []),
        Column(say("column.rungs"), numeric=False),
        Column(say("column.time")),
    )
    rows = tuple(_row(context, trial, kpi) for trial in trials)
    table = Table(title, head, rows, searchable=True, filters=(3,))
    return Section("trials", title, (Text(say("trials.spark"), soft=True), table))


def _row(context: Context, trial: Trial, kpi: bool) -> tuple[Cell, ...]:
    say = context.say
    lml = trial.result.lml.nats_per_token if trial.result else None
    state = say.optional(f"state.{trial.state}", trial.state.lower())
    value = trial.kpi.value if trial.kpi else None
    return (
        Cell(str(trial.number), trial.number),
        Cell(trial.policy_label, below=trial.size_label, tag=trial.arm or ""),
        Cell(
            rate_words(trial),
            _mean_rate(trial),
            drawing=_spark(trial),
            label=f"{say('trials.spark_label')}: {rate_words(trial)}",
        ),
        Cell(state, tone=TONES.get(trial.state, ""), title=trial.detail or ""),
        Cell("–" if lml is None else minus(lml, 3), lml),
        *([Cell("–" if value is None else f"{value:.4g}", value)] if kpi else []),
        Cell(rung_words(context, trial)),
        Cell(say.duration(trial.seconds) if trial.seconds else "–", trial.seconds),
    )


def _mean_rate(trial: Trial) -> float | None:
    means = [mean for _, mean, _ in trial.mask_rates]
    return sum(means) / len(means) if means else None


def rate_words(trial: Trial) -> str:
    """Its mean mask rate, or where it begins and ends: `60 → 15 %`."""
    if not trial.mask_rates:
        return "–"
    first, last = (round(100 * trial.mask_rates[k][1]) for k in (0, -1))
    return f"{first} %" if first == last else f"{first} → {last} %"


def rung_words(context: Context, trial: Trial) -> str:
    """`−2.012 at 50 %` for each rung that the trial reached."""
    return context.say.join([
        context.say("trials.rung", value=minus(value, 3), progress=f"{100 * progress:.0f}")
        for progress, value in trial.rungs
    ])  # fmt: skip


def _spark(trial: Trial) -> Drawing | None:
    """The mask rate over training: its mean, and the band that holds nine draws in ten."""
    if not trial.mask_rates:
        return None
    last = len(trial.mask_rates) - 1
    xs = [1 + k * (SPARK_WIDTH - 2) / max(1, last) for k in range(last + 1)]
    low, mean, high = (
        [
            (x, 1 + (SPARK_HEIGHT - 2) * (1 - rates[k]))
            for x, rates in zip(xs, trial.mask_rates, strict=True)
        ]
        for k in range(3)
    )
    band = Area((*low, *reversed(high)), "series-1", 0.25)
    return Drawing(SPARK_WIDTH, SPARK_HEIGHT, (band, Stroke(tuple(mean), "series-1", 1.8)))
