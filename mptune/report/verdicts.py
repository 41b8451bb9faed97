"""The differences of a comparison as sentences, in any language."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mptune.analysis.arms import Difference
from mptune.analysis.compute import EquivalentCompute
from mptune.report.formatting import decimals, interval, minus
from mptune.report.language import Language


def sentence(difference: Difference, say: Language) -> str:
    """The verdict with its interval, in nats per sequence; starts in lower case."""
    sign = -1 if difference.verdict == "worse" else 1
    digits = decimals(difference.half_width)
    mean, low, high = (
        sign * x + 0.0 for x in (difference.nats_per_sequence, difference.low, difference.high)
    )
    # The end of a decided interval is printed as 0 only if it is 0.
    cut = not low * high
    ends, is_decided = digits, difference.verdict in ("better", "worse") and not cut
    while is_decided and ends < 6 and not round(min(low, high), ends):
        ends += 1
    measure = say(
        "verdict.measure",
        value=minus(mean, digits) + ("" if cut else f" ± {difference.half_width:.{digits}f}"),
        level=f"{100 * difference.level:g}",
        low=minus(min(low, high), ends),
        high=minus(max(low, high), ends),
        seeds=say("verdict.seeds", n=difference.seeds),
        over=say("verdict.over", n=difference.challengers),
        few=say("verdict.few", n=difference.few_groups) if difference.few_groups else "",
    )
    carried = difference.verdict == "undecided" and difference.carried_by is not None
    return say(
        "verdict.carried" if carried else f"verdict.{difference.verdict}",
        seed=difference.carried_by,
        arm=difference.arm,
        baseline=difference.baseline,
        margin=f"{difference.margin:g}" if difference.margin else "",
        measure=measure,
    )


def plus_minus(difference: Difference, unit: float = 1.0) -> str:
    """Mean and half-width, or the ends of an interval that is cut at 0, in `unit` nats."""
    mean, half, low, high = (
        x / unit + 0.0
        for x in (
            difference.nats_per_sequence,
            difference.half_width,
            difference.low,
            difference.high,
        )
    )
    if low * high:
        return interval(mean, half)
    digits = decimals(half)
    return f"{minus(mean, digits)} ({minus(low, digits)}, {minus(high, digits)})"


def p_value(p: float) -> str:
    """`p < 0.001` or `p = 0.012`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def what_would_decide(difference: Difference, say: Language) -> str:
    """How many more seeds or sequences would probably decide an undecided pair, in a sentence."""
    if difference.seeds < 2:
        return say("verdict.needs_seeds")
    more = []
    if difference.more_seeds is not None:
        more.append(say("verdict.more_seeds", n=difference.more_seeds))
    if difference.sequences_needed is not None:
        wanted = difference.sequences_needed
        times = f"{wanted / difference.sequences:.2g}"
        more.append(say("verdict.more_sequences", wanted=wanted, times=times))
    if not more:
        return say("verdict.unaffordable")
    return say("verdict.would_decide", what=say("number.or").join(more))


def full_sentence(difference: Difference, say: Language) -> str:
    """The verdict as a whole sentence; for an undecided pair, also what would decide it."""
    first = say("sentence", words=say.capital(sentence(difference, say)))
    if difference.verdict != "undecided":
        return first
    return say.sentences([first, what_would_decide(difference, say)])


def compute_words(
    difference: Difference, compute: Sequence[EquivalentCompute], say: Language
) -> str:
    """The share of FLOPs that the arm that is ahead needs; empty if it was not measured."""
    ahead, behind = difference.arm, difference.baseline
    if difference.nats_per_sequence < 0:
        ahead, behind = behind, ahead
    found = next(
        (c for c in compute if (c.arm, c.reaches, c.unit) == (ahead, behind, "flops")), None
    )
    if found is None or found.reading == "unknown":
        return ""
    words = say(
        f"compute.{found.reading.replace(' ', '_')}",
        arm=found.arm,
        reaches=found.reaches,
        unit=say(f"unit.{found.unit}"),
        factor=factor(found.factor),
        level=f"{100 * found.confidence:g}",
        low=factor(found.low),
        high=factor(found.high),
    )
    return say.capital(words)


def factor(value: float | None) -> str:
    """Two digits after the decimal point; a dash without a finite value."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"
