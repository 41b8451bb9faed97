"""The figures of a report: the masked-prediction curve, the ranking, the comparison.

Each is drawn twice, for a wide and for a narrow page, as SVG without a background that takes its
ink from the page (light or dark), and once as PNG on white. Colours are those of Okabe and Ito
(2008), told apart with every common colour blindness; line styles tell them apart without colour.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mptune.compare import Difference
from mptune.report.model import (
    ComparisonReport,
    Ranked,
    ReportInput,
    best_per_policy,
    is_fixed_15,
    policy_kind,
    ranking,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

INK, FAINT, LINE = "#1c2430", "#66707f", "#d8dde4"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))

_PAGE_COLOURS = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    LINE: "var(--line)",
    **{colour: f"var(--series-{k})" for k, colour in enumerate(SERIES, start=1)},
}

CURVES_SHOWN = len(SERIES)
RANKED_SHOWN = 16


class Curve(Protocol):
    """S(r) in nats per masked position with its standard error, in bins [bins]."""

    @property
    def mask_rate(self) -> NDArray[np.float64]: ...
    @property
    def mean_log_prob(self) -> NDArray[np.float64]: ...
    @property
    def se(self) -> NDArray[np.float64]: ...


Painter: TypeAlias = Callable[["Canvas", bool], None]


@dataclass(frozen=True)
class Figure:
    """One figure in all the forms that the report needs.

    Attributes:
        name: file name without its ending.
        caption: one or two sentences below it; also its text alternative.
        png: for report.md and for other documents, on white.
        wide: SVG element for pages of at least 700 px.
        narrow: SVG element for a phone.
    """

    name: str
    title: str
    caption: str
    png: bytes
    wide: str
    narrow: str


def draw(report: ReportInput) -> list[Figure]:
    """Every figure that the report has data for."""
    ranked = ranking(report.trials)
    colours = _colours(ranked)
    figures = [_curve_figure(ranked, colours), _ranking_figure(ranked, colours)]
    if report.comparison is not None and report.comparison.differences:
        figures.insert(0, _comparison_figure(report.comparison))
    return [figure for figure in figures if figure is not None]


def _colours(ranked: Sequence[Ranked]) -> dict[str, str]:
    """A colour for each kind of policy, the same in every figure."""
    kinds = [policy_kind(row.trial) for row in best_per_policy(ranked)]
    return dict(zip(kinds, cycle(SERIES)))


# --- the masked-prediction curve ---------------------------------------------------------------


def _curve_figure(ranked: Sequence[Ranked], colours: dict[str, str]) -> Figure | None:
    rows = [row for row in best_per_policy(ranked) if len(row.result.lml.curve) > 1]
    rows = rows[:CURVES_SHOWN]
    if not rows:
        return None
    reference = next((row for row in rows if is_fixed_15(row.trial.policy)), rows[0])

    def paint(canvas: Canvas, narrow: bool) -> None:
        panels = canvas.subplots(2, 1) if narrow else canvas.subplots(1, 2)
        _paint_curves(panels[0], rows, colours)
        _paint_differences(panels[1], rows, reference, colours)
        _legend(canvas, panels[0], 1 if narrow else 2)

    height = 6.2 + 0.2 * len(rows)
    return _figure(
        "curve",
        "Score at every mask rate",
        "S(r): mean log probability of a masked position when a share r of the positions is "
        "masked, for the best trial of each policy, with ±1.96 standard errors. The area between "
        "a curve and zero is its LML per token. The second panel shows the difference to "
        f"{reference.trial.policy_words}: above zero is better at that mask rate.",
        paint,
        wide=(9.4, 4.0 + 0.2 * ((len(rows) + 1) // 2)),
        narrow=(3.5, height),
    )


def curves_png(curves: Mapping[str, Curve]) -> bytes:
    """The masked-prediction curves of some models, by label, as a PNG on white."""

    def paint(canvas: Canvas, _narrow: bool) -> None:
        axes = canvas.subplots()
        for (label, curve), colour, dash in zip(curves.items(), SERIES, DASHES, strict=False):
            rates, scores, errors = curve.mask_rate, curve.mean_log_prob, curve.se
            axes.plot(rates, scores, ls=dash, color=colour, lw=1.8, label=_short(label))
            low, high = scores - 1.96 * errors, scores + 1.96 * errors
            axes.fill_between(rates, low, high, color=colour, alpha=0.12, lw=0)
        axes.axvline(0.15, color=LINE, lw=1, zorder=0)
        axes.set_xlabel("mask rate r")
        axes.set_ylabel("S(r), nats per masked position")
        axes.set_xlim(0, 1)
        axes.set_ylim(top=0)
        _legend(canvas, axes, 1)

    return _render(paint, (6.4, 4.4), narrow=False, form="png")


def _points(row: Ranked) -> tuple[Any, Any, Any]:
    curve = sorted(row.result.lml.curve, key=lambda point: point.mask_rate)
    rates, scores, errors = (
        np.array([getattr(point, name) for point in curve])
        for name in ("mask_rate", "nats_per_token", "se")
    )
    return rates, scores, errors


def _paint_curves(axes: Axes, rows: Sequence[Ranked], colours: dict[str, str]) -> None:
    for row, label, dash in zip(rows, _labels(rows), DASHES, strict=False):
        rates, scores, errors = _points(row)
        colour = colours[policy_kind(row.trial)]
        width = 2.0 if row is rows[0] else 1.4
        axes.plot(rates, scores, ls=dash, color=colour, lw=width, label=_short(label))
        low, high = scores - 1.96 * errors, scores + 1.96 * errors
        axes.fill_between(rates, low, high, color=colour, alpha=0.12, lw=0)
    rates, scores, _ = _points(rows[0])
    axes.fill_between(rates, scores, 0, color=colours[policy_kind(rows[0].trial)], alpha=0.05, lw=0)
    axes.set_xlabel("mask rate r")
    axes.set_ylabel("S(r), nats per masked position")
    axes.set_xlim(0, 1)
    axes.set_ylim(top=0)


def _paint_differences(
    axes: Axes, rows: Sequence[Ranked], reference: Ranked, colours: dict[str, str]
) -> None:
    base_rates, base_scores, _ = _points(reference)
    axes.axvline(0.15, color=LINE, lw=1, zorder=0)
    for row, dash in zip(rows, DASHES, strict=False):
        rates, scores, _ = _points(row)
        difference = scores - np.interp(rates, base_rates, base_scores)
        axes.plot(rates, difference, ls=dash, color=colours[policy_kind(row.trial)], lw=1.6)
    axes.set_xlabel("mask rate r")
    axes.set_ylabel(f"S(r) against {_short(reference.trial.policy_words, 24)}")
    axes.set_xlim(0, 1)


def _legend(canvas: Canvas, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    canvas.legend(
        handles, labels, loc="outside upper left", ncols=columns, frameon=False, handlelength=2.6
    )


# --- the ranking -------------------------------------------------------------------------------


def _ranking_figure(ranked: Sequence[Ranked], colours: dict[str, str]) -> Figure | None:
    rows = ranked[:RANKED_SHOWN]
    if not rows:
        return None

    def paint(canvas: Canvas, narrow: bool) -> None:
        axes = canvas.subplots()
        _row_labels(axes, _labels(rows), narrow)
        for y, row in enumerate(rows):
            colour = colours[policy_kind(row.trial)]
            _interval_mark(axes, row.nats_per_token, row.half_width, y, colour)
        axes.set_xlabel("LML, nats per token (95 % interval)")

    hidden = len(ranked) - len(rows)
    return _figure(
        "ranking",
        "Ranking",
        "Accumulated LML estimate of each finished trial, best first"
        + (f" ({hidden} more in the table)" if hidden else "")
        + ". Intervals are over new held-out sequences; as all trials are scored on the same "
        "ones, differences between trials are more certain than the intervals suggest.",
        paint,
        wide=(9.4, 1.1 + 0.27 * len(rows)),
        narrow=(3.5, 0.9 + 0.46 * len(rows)),
    )


def _row_labels(axes: Axes, labels: Sequence[str], narrow: bool) -> None:
    """Labels beside the rows, or above them where there is no room beside."""
    axes.set_ylim(len(labels) - 0.4, -0.9 if narrow else -0.6)
    axes.tick_params(axis="y", length=0)
    if not narrow:
        axes.set_yticks(range(len(labels)), [_short(label) for label in labels])
        return
    axes.set_yticks([])
    for y, label in enumerate(labels):
        axes.annotate(
            _short(label), (0, y), (0, 6), xycoords=("axes fraction", "data"),
            textcoords="offset points", color=INK,
        )  # fmt: skip


def _interval_mark(axes: Axes, value: float, half_width: float, y: float, colour: str) -> None:
    reach = half_width if np.isfinite(half_width) else 0.0
    axes.plot([value - reach, value + reach], [y, y], color=colour, lw=2.2, solid_capstyle="round")
    axes.plot([value], [y], "o", color=colour, ms=6.5)


# --- the comparison ----------------------------------------------------------------------------


def _comparison_figure(comparison: ComparisonReport) -> Figure:
    differences = comparison.differences

    def paint(canvas: Canvas, narrow: bool) -> None:
        axes = canvas.subplots()
        axes.axvline(0, color=FAINT, lw=1)
        _row_labels(axes, [d.arm for d in differences], narrow)
        for y, difference in enumerate(differences):
            colour = SERIES[y % len(SERIES)]
            _interval_mark(axes, difference.nats_per_sequence, difference.half_width, y, colour)
            seeds = _seed_differences(comparison, difference)
            axes.plot(seeds, [y + 0.26] * len(seeds), "|", color=FAINT, ms=7, mew=1.2)
        axes.set_xlabel(f"nats per sequence against {_short(comparison.baseline, 30)}")

    return _figure(
        "comparison",
        f"Against {comparison.baseline}",
        f"Difference in LML to {comparison.baseline} on paired seeds, with its "
        f"{100 * comparison.level:g} % interval over training seeds and held-out sequences. "
        "Right of zero is better. Small strokes are single seeds.",
        paint,
        wide=(9.4, 1.15 + 0.5 * len(differences)),
        narrow=(3.5, 1.0 + 0.6 * len(differences)),
    )


def _seed_differences(comparison: ComparisonReport, difference: Difference) -> list[float]:
    scores = {
        arm.name: {run.seed: run.result.lml.nats_per_sequence for run in arm.runs}
        for arm in comparison.arms
    }
    arm, baseline = scores.get(difference.arm, {}), scores.get(difference.baseline, {})
    return [arm[seed] - baseline[seed] for seed in sorted(arm.keys() & baseline.keys())]


# --- canvas ------------------------------------------------------------------------------------

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": INK,
    "legend.fontsize": 9.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "mptune",
}


@contextmanager
def _styled() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


def _figure(
    name: str,
    title: str,
    caption: str,
    paint: Painter,
    *,
    wide: tuple[float, float],
    narrow: tuple[float, float],
) -> Figure:
    """Sizes in inches."""
    return Figure(
        name=name,
        title=title,
        caption=caption,
        png=_render(paint, wide, narrow=False, form="png"),
        wide=_inline(_render(paint, wide, narrow=False, form="svg"), f"{name}-wide-"),
        narrow=_inline(_render(paint, narrow, narrow=True, form="svg"), f"{name}-narrow-"),
    )


def _render(paint: Painter, size: tuple[float, float], *, narrow: bool, form: str) -> bytes:
    from matplotlib.figure import Figure as Canvas

    with _styled():
        canvas = Canvas(figsize=size, layout="constrained")
        paint(canvas, narrow)
        out = io.BytesIO()
        dated = {"Date": None} if form == "svg" else None
        canvas.savefig(out, format=form, dpi=160, transparent=form == "svg", metadata=dated)
    return out.getvalue()


def _inline(svg: bytes, prefix: str) -> str:
    """An SVG element for the body of a page: scales, takes the page's font and colours.

    Identifiers get a prefix, as several figures share a page; namespaces and metadata go, as
    HTML needs neither.
    """
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", text, count=5)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for colour, variable in _PAGE_COLOURS.items():
        text = text.replace(colour, variable)
    return text


def _labels(rows: Sequence[Ranked]) -> list[str]:
    """Policies in words, with the size where there is more than one."""
    if len({row.trial.model_words for row in rows}) == 1:
        return [row.trial.policy_words for row in rows]
    return [f"{row.trial.policy_words} · {row.trial.model_words}" for row in rows]


def _short(words: str, length: int = 46) -> str:
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"
