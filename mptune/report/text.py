"""The report for a terminal (rich) and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mptune.report.findings import Findings, findings
from mptune.report.model import Ranked, ReportInput, TrialRow, accuracy_at, loss_at, shifts
from mptune.report.words import count, duration, minus, per_token, power

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TERMINAL_ROWS = 20
"""Ranked trials that the terminal shows; the report has all."""

METHOD = (
    "Every finished trial is scored by one law, whatever mask rate it trained with: the "
    "accumulated masked-prediction log-marginal-likelihood estimate (LML).",
    "LML = sum over M = 1..D of S(M), where S(M) is the mean log probability of a masked position "
    "when M of the D observed positions are masked uniformly at random (Moreno-Muñoz et al. 2023, "
    "arXiv 2306.00520, Proposition 1).",
    "Masked positions are all replaced by [MASK], the [MASK] symbol cannot be predicted, and "
    "padding, special symbols and missing values are never scored.",
    "For a neural model it is a lower bound on the log of a proper mixture over orders, so a true "
    "code length; higher is better, and nats per sequence become nats per token and, for text, "
    "bits per byte.",
    "All trials share one frozen plan: the same held-out sequences, mask counts and masks, so "
    "that differences carry less noise than scores.",
    "Mask counts are drawn by systematic sampling with importance weights; control variates "
    "of known mean and a cross-fitted regression on M take out most of the variance.",
    "Intervals in the ranking are 95 %, Student t over held-out sequences, for one training run.",
    "Comparisons pair training seeds and sequences; their interval adds the noise of both in a "
    "crossed random-effects model, with quantiles after Cochran and Cox, and Holm's correction "
    "over challengers.",
    "Loss and accuracy at single rates are recorded beside the LML and choose nothing: a low rate "
    "favours models that trained at that rate.",
)
"""What the numbers mean, a sentence a line; the plan's hash makes the last."""


def plan_words(report: ReportInput) -> str:
    """The last line of the method: what exactly was scored."""
    prepared = report.prepared
    if prepared is None:
        return f"Scoring plan {report.plan_hash or 'not frozen yet'}."
    return (
        f"Scoring plan {report.plan_hash or prepared.plan_hash}: "
        f"{prepared.heldout_sequences} held-out sequences of up to D = {prepared.length} "
        f"positions, {prepared.heldout_tokens:,} observed positions in all."
    )


# --- terminal ----------------------------------------------------------------------------------


def ranking_table(ranked: Sequence[Ranked]) -> Table:
    """Finished trials by LML, as many as a terminal is good for."""
    from rich.table import Column, Table

    shown = ranked[:TERMINAL_ROWS]
    text = any(row.bits_per_byte is not None for row in shown)
    table = Table(
        Column("", justify="right"),
        Column("trial", justify="right"),
        Column("policy", overflow="fold"),
        Column("size"),
        Column("LML, nats/token (95 %)", justify="right"),
        *([Column("bits/byte", justify="right")] if text else []),
        Column("loss at 15 %", justify="right"),
        Column("accuracy at 15 %", justify="right"),
        box=None,
        header_style="bold",
        padding=(0, 1),
    )
    for row in shown:
        table.add_row(*_cells(row, text), style="bold green" if row.place == 1 else "")
    return table


def _cells(row: Ranked, text: bool) -> list[str]:
    from rich.markup import escape

    bits = [f"{row.bits_per_byte:.3f}" if row.bits_per_byte else "–"] if text else []
    return [
        str(row.place),
        str(row.trial.number),
        escape(row.trial.policy_words),
        escape(row.trial.model_words),
        per_token(row.nats_per_token, row.half_width),
        *bits,
        loss_words(row),
        accuracy_words(row),
    ]


def loss_words(row: Ranked) -> str:
    """Loss at 15 % masking in nats per masked position, if it was recorded."""
    loss = loss_at(row.result, 0.15)
    return "–" if loss is None else f"{loss:.3f}"


def accuracy_words(row: Ranked) -> str:
    """Share of the positions predicted exactly at 15 % masking, if it was recorded."""
    accuracy = accuracy_at(row.result, 0.15)
    return "–" if accuracy is None else f"{100 * accuracy:.1f} %"


def show(console: Console, report: ReportInput) -> None:
    """Print ranking, recommendation, verdict, cost, and what the checklist finds missing."""
    from rich.text import Text

    found = findings(report)

    def say(style: str, *lines: str) -> None:
        for line in lines:
            console.print(Text(line, style=style))

    if found.ranked:
        console.print(ranking_table(found.ranked))
        hidden = len(found.ranked) - TERMINAL_ROWS
        if hidden > 0:
            say("dim", f"  and {hidden} more in the report")
    if found.ranked:
        say("", *shift_words(found.ranked[0]))
    for reason, trials in found.failures:
        say("red", f"{len(trials)} failed, {reason}: {trials[0].detail or 'no detail'}")
    console.print()
    say("bold", found.headline)
    say("", *found.recommendation)
    say("bold", f"\n{found.verdict_title}: {found.verdict_label}")
    say("", *found.verdict, *(flip.words for flip in found.flips))
    say("dim", "", found.certainty, found.cost)
    say("yellow", *(f"! {check.words}" for check in found.checks if not check.ok))


def shift_words(row: Ranked) -> list[str]:
    """A line for each domain: the score there, and how much lower it is than at home."""
    return [
        f"On {s.domain}: {per_token(s.nats_per_token, s.half_width)} nats per token, "
        f"{per_token(s.drop, s.drop_half_width)} lower than at home."
        for s in shifts(row)
    ]


# --- Markdown ----------------------------------------------------------------------------------


def markdown(report: ReportInput, figures: Sequence[tuple[str, str]] = ()) -> str:
    """The report as Markdown; `figures` are (relative path, caption)."""
    found = findings(report)
    lines = [f"# {_literal(report.study)}", "", _literal(report.data), ""]
    lines += _first_screen(found)
    for path, caption in figures:
        lines += [f"![{caption}]({path})", "", f"*{caption}*", ""]
    lines += _ranking_markdown(found.ranked)
    lines += _shifts_markdown(found.ranked)
    lines += _trials_markdown(report.trials)
    lines += _failures_markdown(found)
    lines += ["## Method", ""]
    lines += [f"{n}. {line}" for n, line in enumerate((*METHOD, plan_words(report)), start=1)]
    lines += ["", "## Replay", "", *_code(report.commands)]
    lines += ["", ", ".join(f"{_literal(k)} {_literal(v)}" for k, v in report.versions.items())]
    return "\n".join([*lines, "", f"Written {report.created}", ""])


def _first_screen(found: Findings) -> list[str]:
    lines = ["## Recommendation", "", f"**{_literal(found.headline)}**", ""]
    lines += [_literal(" ".join(found.recommendation)), ""]
    lines += [f"## {_literal(found.verdict_title)}: {found.verdict_label}", ""]
    flipped = (flip.words for flip in found.flips)
    for sentence in (*found.verdict, *flipped, found.certainty, found.cost):
        lines += [_literal(sentence), ""]
    return (
        lines
        + [f"- [{'x' if check.ok else ' '}] {_literal(check.words)}" for check in found.checks]
        + [""]
    )


def _ranking_markdown(ranked: Sequence[Ranked]) -> list[str]:
    if not ranked:
        return ["## Ranking", "", "No trial has finished.", ""]
    head = (
        "place", "trial", "policy", "size", "LML, nats/token (95 %)", "bits/byte", "loss at 15 %",
        "accuracy at 15 %", "parameters", "FLOPs", "time",
    )  # fmt: skip
    rows = [
        [*_cells_markdown(row), power(row.result.cost.flops), duration(row.result.cost.total_s)]
        for row in ranked
    ]
    return ["## Ranking", "", *_table(head, rows), ""]


def _shifts_markdown(ranked: Sequence[Ranked]) -> list[str]:
    domains = [s.domain for s in shifts(ranked[0])] if ranked else []
    if not domains:
        return []
    rows = [
        [
            str(row.place),
            row.trial.policy_words,
            per_token(row.nats_per_token, row.half_width),
            *(per_token(s.nats_per_token, s.half_width) for s in shifts(row)),
        ]
        for row in ranked
    ]
    note = "LML in nats per token with 95 % intervals, at home and on each shifted domain."
    head = ("place", "policy", "home", *domains)
    return ["## Shifted domains", "", note, "", *_table(head, rows), ""]


def _cells_markdown(row: Ranked) -> list[str]:
    bits = f"{row.bits_per_byte:.3f}" if row.bits_per_byte else "–"
    return [
        str(row.place),
        str(row.trial.number),
        row.trial.policy_words,
        row.trial.model_words,
        per_token(row.nats_per_token, row.half_width),
        bits,
        loss_words(row),
        accuracy_words(row),
        count(row.parameters),
    ]


def _trials_markdown(trials: Sequence[TrialRow]) -> list[str]:
    head = ("trial", "policy and size", "arm", "state", "rungs, nats/token")
    rows = [[str(t.number), t.label, t.arm or "", t.state, rung_words(t)] for t in trials]
    return ["## Every trial", "", *_table(head, rows), ""]


def rung_words(trial: TrialRow) -> str:
    """`−2.012 at 50 %` for each rung that the trial reached."""
    return ", ".join(f"{minus(value, 3)} at {progress:.0%}" for progress, value in trial.rungs)


def _failures_markdown(found: Findings) -> list[str]:
    lines = [] if not found.failures else ["## Failures", ""]
    for reason, trials in found.failures:
        numbers = ", ".join(str(t.number) for t in trials)
        detail = _literal(trials[0].detail or "no detail")
        lines.append(f"- {_literal(reason)} (trial {numbers}): {detail}")
    return [*lines, ""] if lines else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(_literal(cell) for cell in row) + " |" for row in rows]


def _code(commands: Sequence[str]) -> list[str]:
    return ["```sh", *commands, "```"]


def _literal(words: str) -> str:
    """Text that Markdown shows as it is: no HTML, no table cell ends, no emphasis."""
    for sign in "\\`*_[]<>|":
        words = words.replace(sign, "\\" + sign)
    return words.replace("\n", " ")
