"""The input of the sections of the report, and functions that several sections use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

from mptune.analysis.intervals import half_width, lml_half_width
from mptune.analysis.ranking import best_per_policy, policy_kind
from mptune.analysis.results import Report
from mptune.analysis.selection import Candidate
from mptune.report.blocks import Axis, Cell, Chart, ChartSeries, Column, Point, Table
from mptune.report.findings import Findings, findings
from mptune.report.formatting import per_token
from mptune.report.language import Language
from mptune.trial import Trial

Row: TypeAlias = Mapping[str, Cell | None]
"""Cells of a table by column, see `Context.table`."""


@dataclass(frozen=True)
class Context:
    """A report, and the language that it is shown in."""

    report: Report
    say: Language

    @cached_property
    def found(self) -> Findings:
        """The findings in this language."""
        return findings(self.report, self.say)

    @property
    def ranked(self) -> tuple[Trial, ...]:
        return self.found.ranked

    @cached_property
    def _kinds(self) -> dict[str, int]:
        kinds = [policy_kind(trial) for trial in best_per_policy(self.ranked)]
        comparison = self.report.comparison
        arms = comparison.arms.values() if comparison else ()
        kinds += [policy_kind(arm[0]) for arm in arms if arm]
        return {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}

    @cached_property
    def candidates(self) -> dict[int, Candidate]:
        """The candidates of the search by the number of their trial."""
        selection = self.report.selection
        return {c.trial: c for c in selection.candidates} if selection else {}

    @property
    def has_arms_only(self) -> bool:
        """Whether arms were compared and nothing was searched."""
        return not self.report.trials and self.report.comparison is not None

    def trial(self, number: int | None) -> Trial:
        """The trial of the search with this number."""
        return next(trial for trial in self.report.trials if trial.number == number)

    def colour(self, trial: Trial) -> int:
        """Number of the colour of the trial's kind of policy, the same in every figure."""
        return self._kinds.get(policy_kind(trial), len(self._kinds))

    def best_per_policy(self) -> list[tuple[str, Trial]]:
        """The best trial of each kind of policy with its label, best first."""
        trials = best_per_policy(self.ranked)
        return list(zip(self.labels(trials), trials, strict=True))

    @staticmethod
    def labels(trials: Sequence[Trial]) -> list[str]:
        """Labels of the policies, with the size if these trials have more than one."""
        one_size = len({trial.size_label for trial in trials}) < 2
        return [trial.policy_label if one_size else trial.label for trial in trials]

    @property
    def few(self) -> str:
        """With few groups of sequences: the sentence that says what intervals hold for."""
        lml = self.report.scored
        return self.say("few.caption", n=lml.few_groups) if lml and lml.few_groups else ""

    @property
    def seeds_known(self) -> bool:
        """Whether the intervals of the search's trials include the noise of training seeds."""
        return any(c.half_width_total is not None for c in self.candidates.values())

    def interval(self, trial: Trial) -> tuple[float, float]:
        """Score of a finished trial and half of its 95 % interval, nats per token.

        Over new training seeds, sequences and masks where the noise of seeds is known, else over
        new sequences and masks.
        """
        candidate = self.candidates.get(trial.number)
        half = candidate.half_width_total if candidate else None
        return trial.nats_per_token, half or lml_half_width(trial.require_result().lml)

    def score(self, value: float, half: float) -> str:
        """A score with its interval and unit."""
        return f"{per_token(value, half)} {self.say('unit.nats_per_token')}"

    def table(self, label: str, rows: Sequence[Row], **options: Any) -> Table:
        """A table of rows as {column: cell}; None is a dash, and a column of dashes is left out.

        A column is a key in `column.`, the key of a unit, or a title that needs no translation. If
        it begins with `<` it has text, else numbers. The longest row gives their order.
        """
        keys = [key for key in max(rows, key=len) if any(row.get(key) for row in rows)]
        cells = tuple(tuple(row.get(key) or Cell("–") for key in keys) for row in rows)
        head = []
        for key in keys:
            name = key.removeprefix("<")
            is_unit = name.startswith("unit.")
            title = self.say.optional(name if is_unit else f"column.{name}", name)
            title = self.say.capital(title) if is_unit else title
            head.append(Column(title, name == key, name))
        return Table(label, tuple(head), cells, **options)


def chart(
    say: Language,
    key: str,
    x: Axis,
    y: Axis,
    series: Iterable[ChartSeries],
    *,
    name: str = "",
    note: str = "",
    rows: Iterable[str] = (),
    guides: tuple[tuple[Literal["x", "y"], float], ...] = (),
    height: int = 280,
    short: bool = False,
    **values: object,
) -> Chart:
    """A chart with title and caption from the texts in `figure.KEY`, filled in with `values`.

    Args:
        name: of its file; default: the key.
        note: a sentence that is added to the caption.
        rows, guides, height, short: see `Chart`.
    """
    return Chart(
        name=name or key.replace("_", "-"),
        title=say(f"figure.{key}.title", **values),
        caption=say.sentences([say(f"figure.{key}.caption", **values), note]),
        x=x,
        y=y,
        series=tuple(series),
        rows=tuple(rows),
        guides=guides,
        height=height,
        short=short,
    )


def number(value: float | None, words: Callable[[float], str]) -> Cell | None:
    """A cell with a number in words, by which it is sorted; None without one."""
    return None if value is None else Cell(words(value), value)


def percent(value: float) -> str:
    """A share with one digit, `27.5 %`."""
    return f"{100 * value:.1f} %"


def policy_cell(trial: Trial) -> Cell:
    """A trial's policy, with its size below and the name of its arm beside it."""
    return Cell(trial.policy_label, below=trial.size_label, tag=trial.arm or "")


def estimate(x: float, y: float, se: float, tip: str) -> Point:
    """A point with the 95 % interval of its y."""
    return Point(x, y, tip, y - half_width(se), y + half_width(se))
