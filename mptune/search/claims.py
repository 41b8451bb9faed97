"""Published claims about mask rates, rerun in miniature: a comparison each, judged by intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import yaml
from pydantic import Field

from mptune.analysis.arms import Difference
from mptune.analysis.comparison import ComparisonReport
from mptune.analysis.intervals import half_width
from mptune.analysis.ranking import loss_at
from mptune.errors import InputError, did_you_mean, plural
from mptune.paths import read_model, write_json
from mptune.search.run import Run
from mptune.spec.schema import Section
from mptune.trial import Message

Judgement: TypeAlias = Literal["refuted", "undecided", "confirmed"]

RATE = 0.15


class Claim(Section):
    """One claim, and the comparison that tests it.

    Attributes:
        claim: one sentence.
        source: who makes it.
        best: arm that is claimed to be better than every other one.
        by: what judges it; by the loss, the claim is that it chooses as the likelihood does.
        spec: of the comparison.
        larger: changes of the spec for a second comparison, of a larger model; the claim is then
            that the difference grows.
    """

    claim: str
    source: str
    best: str
    by: Literal["likelihood", "loss at 15 %"] = "likelihood"
    spec: dict[str, Any]
    larger: dict[str, Any] | None = None
    start: dict[str, Any] | None = None


class ClaimVerdict(Message):
    """What the comparison of a claim says.

    Attributes:
        figures: differences with their intervals, one sentence each.
        compute: of what the others spent, the share that the best arm needs for their likelihood,
            if that can be stated; FLOPs.
        parameters: of the model, or of both.
        tokens: of each training.
        seeds: paired seeds of the comparison, of both if there are two.
    """

    name: str
    claim: str
    source: str
    verdict: Judgement
    figures: tuple[str, ...]
    compute: str | None
    parameters: tuple[int, ...]
    tokens: float
    seeds: tuple[int, ...] = Field(min_length=1)


@cache
def known_claims() -> dict[str, Claim]:
    """The claims that come with mptune, by name."""
    text = (files("mptune.search") / "claims.yaml").read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    return {n: Claim(**values) for n, values in found.items() if not n.startswith(".")}


def chosen(names: Sequence[str]) -> list[str]:
    """The names; all of them for `all`.

    Raises:
        InputError: there is no claim of such a name.
    """
    known = known_claims()
    for name in names:
        if name not in known and name != "all":
            raise InputError(
                f"no claim {name!r}; claims: {', '.join(known)}{did_you_mean(name, known)}"
            )
    return list(known) if "all" in names else list(names)


def stored(folder: Path) -> list[ClaimVerdict]:
    """The verdicts of earlier calls with this folder on claims that are still as they were."""
    known = known_claims()
    found = (read_model(folder / f"{name}.json", ClaimVerdict) for name in known)
    return [v for v in found if v is not None and v.claim == known[v.name].claim]


def reproduce(
    name: str, folder: Path, run: Callable[[str, dict[str, Any], Path], Run]
) -> ClaimVerdict:
    """Run the comparisons of a claim, each in a folder below `folder`, and store the verdict there.

    Args:
        run: calls `mptune.search` or `mptune.compare`, as its first argument says, with a spec and
            a run directory.
    """
    claim, reports = known_claims()[name], []
    checkpoint: dict[str, Any] = {}
    if claim.start:
        started = run("search", {"name": f"{name}-start", **claim.start}, folder / f"{name}-start")
        checkpoint = {"model": {"from": started.weights(started.best())}}
    for changes in ({}, claim.larger) if claim.larger else ({},):
        own = f"{name}-larger" if changes else name
        spec = {"name": own, **claim.spec, **checkpoint, **changes}
        report = run("compare", spec, folder / own).report().comparison
        if report is None or not report.differences:
            raise InputError(f"{folder / own}: the comparison has no pair of finished runs")
        reports.append(report)
    verdict = judge(name, claim, reports)
    write_json(folder / f"{name}.json", verdict.model_dump(mode="json"))
    return verdict


def judge(name: str, claim: Claim, reports: list[ComparisonReport]) -> ClaimVerdict:
    """The verdict on a claim by its comparison, or by both."""
    differences = [d for d in reports[0].differences if claim.best in (d.arm, d.baseline)]
    figures = [_sentence(claim.best, d) for d in differences]
    # One that is refuted decides, then one that is undecided.
    verdict = min((_for(claim.best, d) for d in differences), key=get_args(Judgement).index)
    if claim.larger:
        verdict, sentence = _growth(claim.best, [r.differences[0] for r in reports])
        figures.append(sentence)
    elif claim.by != "likelihood":
        chosen_by_loss, sentence = _by_loss(claim.best, reports[0])
        if "undecided" in (verdict, chosen_by_loss):
            verdict = "undecided"
        else:
            verdict = "confirmed" if verdict == chosen_by_loss else "refuted"
        figures.append(sentence)
    compute = [
        f"{c.reading} {c.factor or c.high or c.low:.2g}".removeprefix("factor ")
        for c in reports[0].compute
        if c.arm == claim.best and c.unit == "flops" and c.reading != "unknown"
    ]
    first = [next(iter(report.finished(claim.best))) for report in reports]
    return ClaimVerdict(
        name=name,
        claim=claim.claim,
        source=claim.source,
        verdict=verdict,
        figures=tuple(figures),
        compute=", ".join(compute) or None,
        parameters=tuple(trial.require_result().cost.parameters for trial in first),
        tokens=first[0].require_result().cost.tokens,
        seeds=tuple(max(d.seeds for d in report.differences) for report in reports),
    )


def _for(best: str, difference: Difference) -> Judgement:
    """Whether `best` is better than the other one of the pair."""
    wanted = "better" if difference.arm == best else "worse"
    if difference.verdict == "undecided":
        return "undecided"
    return "confirmed" if difference.verdict == wanted else "refuted"


def _of_sign(value: float, half_width: float) -> Judgement:
    """Whether what a claim says is positive is so; undecided also if the interval is unknown."""
    if not abs(value) > half_width:
        return "undecided"
    return "confirmed" if value > 0 else "refuted"


def _signed(best: str, difference: Difference) -> tuple[float, float, float]:
    """Nats per sequence by which `best` is ahead, and the ends of the interval."""
    d = difference
    if d.arm == best:
        return d.nats_per_sequence, d.low, d.high
    return -d.nats_per_sequence, -d.high, -d.low


def _sentence(best: str, difference: Difference) -> str:
    gap, low, high = _signed(best, difference)
    other = difference.baseline if difference.arm == best else difference.arm
    return f"{best} − {other}: {gap:+.2f} ({low:.2f} to {high:.2f}) nats per sequence"


def _growth(best: str, differences: list[Difference]) -> tuple[Judgement, str]:
    """By how much the difference is larger for the larger model.

    The interval takes both for independent; they share sequences, so it is rather too wide.
    """
    (small, *_), (large, *_) = (_signed(best, d) for d in differences)
    half = math.hypot(*(d.half_width for d in differences))
    grows = large - small
    text = f"larger model {large:+.2f}, so {grows:+.2f} ({grows - half:.2f} to {grows + half:.2f})"
    return _of_sign(grows, half), text


def _by_loss(best: str, report: ComparisonReport) -> tuple[Judgement, str]:
    """Whether `best` has the lower loss at 15 %, over paired seeds."""
    other = next(name for name in report.arms if name != best)
    gaps = np.array([*_paired_losses(report, other, best)])
    mean, n = float(gaps.mean()), len(gaps)
    half = half_width(float(gaps.std(ddof=1)) / math.sqrt(n), n - 1)
    text = (
        f"loss at 15 %, {other} − {best}: {mean:+.4f} ({mean - half:.4f} to {mean + half:.4f}) "
        f"nats per masked position, {plural(n, 'seed')}"
    )
    return _of_sign(mean, half), text


def _paired_losses(report: ComparisonReport, a: str, b: str) -> Iterator[float]:
    """Loss of arm `a` minus that of arm `b`, of each seed that both have."""
    losses = {
        name: {t.seed: loss_at(t.require_result(), RATE) for t in report.finished(name)}
        for name in (a, b)
    }
    for seed, loss in losses[a].items():
        other = losses[b].get(seed)
        if loss is not None and other is not None:
            yield loss - other
