"""Masked-prediction curves as a picture, for `mptune score`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mptune.analysis.intervals import NORMAL_95
from mptune.report.blocks import Axis, Chart, ChartSeries, Point, percent_tick
from mptune.report.language import language
from mptune.report.layout import lay_out
from mptune.report.svg import png

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mptune.lml.estimator import MPTCurve


def curves_png(curves: Mapping[str, MPTCurve]) -> bytes:
    """The masked-prediction curves of models, by label, as a PNG in light colours."""
    say = language()
    series = tuple(
        ChartSeries(label, _points(curve), number)
        for number, (label, curve) in enumerate(curves.items())
    )
    chart = Chart(
        name="curves",
        title=say("figure.curve.title"),
        caption="",
        x=Axis(say("axis.mask_rate"), low=0.0, high=1.0, tick=percent_tick),
        y=Axis(say("figure.curve.y"), high=0.0),
        series=series,
        guides=(("x", 0.15),),
        height=380,
    )
    return png(lay_out(chart))


def _points(curve: MPTCurve) -> tuple[Point, ...]:
    half = NORMAL_95 * curve.se
    low, high = curve.mean_log_prob - half, curve.mean_log_prob + half
    rows = zip(curve.mask_rate, curve.mean_log_prob, low, high, strict=True)
    return tuple(Point(float(r), float(s), y_low=float(a), y_high=float(b)) for r, s, a, b in rows)
