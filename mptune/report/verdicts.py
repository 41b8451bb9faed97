"""What a comparison says, in sentences of any language."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from mptune.analysis import Difference
from mptune.analysis.compute import EquivalentCompute
from mptune.report.formatting import decimals, signed
from mptune.report.language import Language


def sentence(difference: Difference, say: Language) -> str:
    """The verdict with its interval, in nats per sequence; starts in lower case."""
    sign = -1 if difference.verdict == "worse" else 1
    return say(
        f"verdict.{difference.verdict}",
        arm=difference.arm,
        baseline=difference.baseline,
        margin=f"{difference.margin:g}" if difference.margin else "",
        measure=_measure(difference, sign, say),
    )


def _measure(difference: Difference, sign: int, say: Language) -> str:
    digits = decimals(difference.half_width)
    mean, low, high = (
        sign * x for x in (difference.nats_per_sequence, difference.low, difference.high)
    )
    return say(
        "verdict.measure",
        value=f"{signed(mean, digits)} ± {difference.half_width:.{digits}f}",
        level=f"{100 * difference.level:g}",
        low=signed(min(low, high), digits),
        high=signed(max(low, high), digits),
        seeds=say("verdict.seeds", n=difference.seeds),
        p=_p_words(difference, say),
    )


def _p_words(difference: Difference, say: Language) -> str:
    """The p-value, where the interval alone does not say what the verdict is."""
    apart = difference.low * difference.high > 0
    hidden = apart and difference.verdict == "undecided"
    if difference.challengers == 1 and not hidden:
        return ""
    over = difference.challengers
    words = say("verdict.over", n=over) if over > 1 else ""
    return say("verdict.p", p=p_value(difference.p_value), over=words)


def p_value(p: float) -> str:
    """`p < 0.001` or `p = 0.012`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def what_would_decide(difference: Difference, say: Language) -> str:
    """For an undecided pair, how much more would probably decide it, in one sentence."""
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


def said(difference: Difference, say: Language) -> str:
    """A whole sentence, and for an undecided pair what would decide it."""
    first = say("sentence", words=say.capital(sentence(difference, say)))
    if difference.verdict != "undecided":
        return first
    return say.sentences([first, what_would_decide(difference, say)])


def compute_words(
    difference: Difference, compute: Sequence[EquivalentCompute], say: Language
) -> str:
    """What the arm that is ahead saves, in FLOPs; empty if nothing is known of it."""
    ahead, behind = difference.arm, difference.baseline
    if difference.nats_per_sequence < 0:
        ahead, behind = behind, ahead
    found = next(
        (c for c in compute if (c.arm, c.reaches, c.unit) == (ahead, behind, "flops")), None
    )
    if found is None:
        return ""
    return say.capital(reading_words(found, say))


def reading_words(found: EquivalentCompute, say: Language) -> str:
    """One reading off the learning curves, as a sentence."""
    key = "not_reached" if found.factor is None else found.reading.replace(" ", "_")
    return say(
        f"compute.{key}",
        arm=found.arm,
        reaches=found.reaches,
        unit=say(f"unit.{found.unit}"),
        factor=factor(found.factor),
        interval=_ends(found, say),
        spent=factor(found.spent),
    )


def _ends(found: EquivalentCompute, say: Language) -> str:
    low = "0" if found.low is None else factor(found.low)
    if found.high is None:
        return say("compute.from", level=f"{100 * found.confidence:g}", low=low)
    return say(
        "compute.interval", level=f"{100 * found.confidence:g}", low=low, high=factor(found.high)
    )


def factor(value: float | None) -> str:
    """Two digits after the point, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def others_first(main: Difference, all_: Sequence[Difference]) -> Iterator[Difference]:
    """The pair that the study is about, then every other one."""
    yield main
    yield from (d for d in all_ if d is not main)
