"""What the numbers say, in sentences: recommendation, verdict, certainty, cost, checklist.

Every renderer shows these same sentences, so that terminal, Markdown and HTML cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mptune.compare import Difference, Selection, sentence, what_would_decide
from mptune.report.model import (
    ArmRow,
    ComparisonReport,
    Ranked,
    ReportInput,
    TrialRow,
    is_accumulated,
    is_fixed_15,
    loss_at,
    ranking,
)
from mptune.report.words import count, duration, minus, per_token, plural, power, probability
from mptune.trial import TrialResult

MIN_FORWARDS = 100
"""Below this many forwards an interval is not to be trusted (racing experiments)."""

MIN_SEEDS = 3

NO_CHOICE = "No recommendation yet"

Side: TypeAlias = Literal["fixed 15 %", "accumulated"]


@dataclass(frozen=True)
class Check:
    """One line of the checklist: what holds, or what is missing and how to get it."""

    ok: bool
    words: str


@dataclass(frozen=True)
class Flip:
    """Which of fixed 15 % and accumulated each criterion prefers, at one model size.

    Attributes:
        by_loss: preferred by the loss at 15 % masking.
        by_lml: preferred by the accumulated LML estimate.
    """

    model_words: str
    by_loss: Side
    by_lml: Side
    words: str

    @property
    def disagree(self) -> bool:
        return self.by_loss != self.by_lml


@dataclass(frozen=True)
class Findings:
    """Everything that a report says in words.

    Attributes:
        ranked: finished trials, best first.
        recommended: the finished trial with the highest LML, or None.
        choice: the trial or arm whose policy is recommended: the best trial, unless an arm
            beat its policy on paired seeds; None when nothing finished.
        headline: the recommended policy and size, short.
        recommendation: two sentences at most.
        verdict_title: what was held against what.
        verdict_word: `better`, `worse`, `undecided`, `equivalent` or `open` (not compared).
        verdict_label: the same as a person would say it.
        verdict: the comparison's own sentences, or what single runs show.
        certainty: how sure the choice is, and of which noises.
        cost: what the study took.
    """

    ranked: tuple[Ranked, ...]
    recommended: Ranked | None
    choice: TrialRow | ArmRow | None
    headline: str
    recommendation: tuple[str, ...]
    verdict_title: str
    verdict_word: str
    verdict_label: str
    verdict: tuple[str, ...]
    certainty: str
    cost: str
    flips: tuple[Flip, ...]
    checks: tuple[Check, ...]
    failures: tuple[tuple[str, tuple[TrialRow, ...]], ...]


def findings(report: ReportInput) -> Findings:
    """Draw the conclusions of a report."""
    ranked = tuple(ranking(report.trials))
    best = ranked[0] if ranked else None
    choice = _choice(report.comparison, best)
    title, word, label, verdict = _verdict(report)
    return Findings(
        ranked=ranked,
        recommended=best,
        choice=choice,
        headline=f"{choice.policy_words} on {choice.model_words}" if choice else NO_CHOICE,
        recommendation=tuple(_recommendation(report, ranked)),
        verdict_title=title,
        verdict_word=word,
        verdict_label=label,
        verdict=verdict,
        certainty=_certainty(report.comparison, ranked),
        cost=_cost(report),
        flips=tuple(flips(report)),
        checks=tuple(_checks(report, ranked)),
        failures=tuple(_failures(report.trials)),
    )


# --- recommendation ----------------------------------------------------------------------------


def _choice(comparison: ComparisonReport | None, best: Ranked | None) -> TrialRow | ArmRow | None:
    if best is None:
        return _leading_arm(comparison)
    return _winner_over(best, comparison) or best.trial


def _recommendation(report: ReportInput, ranked: Sequence[Ranked]) -> Iterator[str]:
    if not ranked:
        yield from _without_search(report)
        return
    best = ranked[0]
    score = per_token(best.nats_per_token, best.half_width)
    bits = f" ({best.bits_per_byte:.3f} bits per byte)" if best.bits_per_byte else ""
    winner = _winner_over(best, report.comparison)
    if winner is not None:
        yield (
            f"Pre-train {winner.model_words} with {winner.policy_words}: the search's best single "
            f"run was {best.trial.policy_words}, {score} nats per token, but it lost on paired "
            "seeds."
        )
    else:
        yield (
            f"Pre-train {best.trial.model_words} with {best.trial.policy_words}: of "
            f"{plural(len(ranked), 'finished candidate')} it has the highest accumulated LML "
            f"estimate, {score} nats per token{bits}."
        )
    yield _compared(report.comparison, best) or _runner_up(ranked)


def _winner_over(best: Ranked, comparison: ComparisonReport | None) -> ArmRow | None:
    """The arm that beat the best trial's policy on paired seeds: more evidence than one run."""
    for difference in comparison.differences if comparison else ():
        arms = {arm.name: arm for arm in _arms(comparison)}
        ahead, behind = arms.get(difference.arm), arms.get(difference.baseline)
        if difference.verdict == "worse":
            ahead, behind = behind, ahead
        decided = difference.verdict in ("better", "worse")
        if decided and ahead and behind and behind.policy_words == best.trial.policy_words:
            return ahead
    return None


def _without_search(report: ReportInput) -> Iterator[str]:
    leader = _leading_arm(report.comparison)
    if leader is None:
        yield "No trial has finished, so there is nothing to recommend."
        return
    mean = _mean([run.result.lml.nats_per_token for run in leader.runs])
    yield (
        f"Of the arms compared, {leader.name} has the highest accumulated LML estimate, "
        f"{minus(mean, 3)} nats per token over {plural(len(leader.runs), 'seed')}."
    )


def _leading_arm(comparison: ComparisonReport | None) -> ArmRow | None:
    arms = [arm for arm in comparison.arms if arm.runs] if comparison else []
    return max(
        arms, key=lambda a: _mean([r.result.lml.nats_per_token for r in a.runs]), default=None
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _compared(comparison: ComparisonReport | None, best: Ranked) -> str | None:
    """What the comparison says about the recommended policy, if it was one of the arms."""
    if comparison is None:
        return None
    own = {a.name for a in comparison.arms if a.policy_words == best.trial.policy_words}
    said = [d for d in comparison.differences if d.arm in own or d.baseline in own]
    if said:
        return f"On paired seeds, {sentence(said[0])}."
    return None


def _runner_up(ranked: Sequence[Ranked]) -> str:
    best = ranked[0]
    other = next((r for r in ranked if r.trial.policy_words != best.trial.policy_words), None)
    if other is None:
        return "No other policy finished, so there is nothing to hold it against."
    behind = best.nats_per_token - other.nats_per_token
    return (
        f"The next policy, {other.trial.policy_words} on {other.trial.model_words}, is "
        f"{behind:.3g} nats per token behind, from one training run each."
    )


# --- verdict -----------------------------------------------------------------------------------

_Verdict: TypeAlias = tuple[str, str, str, tuple[str, ...]]
"""Title, word, label, sentences."""


def _verdict(report: ReportInput) -> _Verdict:
    comparison = report.comparison
    if comparison is not None and comparison.differences:
        return _verdict_of(comparison)
    why = (
        "Single runs of both, without paired seeds, decide nothing."
        if flips(report)
        else "No finished runs of both at the same size to hold together."
    )
    return "Accumulated against fixed 15 %", "open", "not compared yet", (why,)


def _verdict_of(comparison: ComparisonReport) -> _Verdict:
    """The pair that the study is about comes first, then every other challenger."""
    main = _main_difference(comparison)
    rest = [d for d in comparison.differences if d is not main]
    title = f"{main.arm} against {main.baseline}"
    sentences = tuple(_said(d) for d in [main, *rest])
    return _capital(title), main.verdict, _verdict_label(main), sentences


def _said(difference: Difference) -> str:
    said = _capital(sentence(difference)) + "."
    if difference.verdict == "undecided":
        said += f" {what_would_decide(difference)}"
    return said


def _verdict_label(difference: Difference) -> str:
    ahead = {"better": difference.arm, "worse": difference.baseline}.get(difference.verdict)
    return f"{ahead} is better" if ahead else difference.verdict


def _main_difference(comparison: ComparisonReport) -> Difference:
    sides = {arm.name: _side(arm) for arm in comparison.arms}
    for difference in comparison.differences:
        if {sides.get(difference.arm), sides.get(difference.baseline)} == {
            "fixed 15 %",
            "accumulated",
        }:
            return difference
    return comparison.differences[0]


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _side(row: ArmRow | TrialRow) -> Side | None:
    if is_fixed_15(row.policy):
        return "fixed 15 %"
    return "accumulated" if is_accumulated(row.policy) else None


# --- the flip ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    side: Side
    model_words: str
    nats_per_token: float
    loss: float


def flips(report: ReportInput) -> list[Flip]:
    """Fixed 15 % and accumulated at each size that has both: arms over their seeds if there are
    any, else the best trial of each."""
    found: dict[str, dict[Side, _Candidate]] = {}
    for candidate in [*_from_arms(report.comparison), *_from_trials(report.trials)]:
        found.setdefault(candidate.model_words, {}).setdefault(candidate.side, candidate)
    return [
        _flip(sides["fixed 15 %"], sides["accumulated"])
        for sides in found.values()
        if len(sides) == 2
    ]


def _from_arms(comparison: ComparisonReport | None) -> Iterator[_Candidate]:
    for arm in comparison.arms if comparison else ():
        yield from _candidate(arm, [run.result for run in arm.runs])


def _from_trials(trials: Sequence[TrialRow]) -> Iterator[_Candidate]:
    for row in ranking(trials):
        yield from _candidate(row.trial, [row.result])


def _candidate(row: ArmRow | TrialRow, results: Sequence[TrialResult]) -> Iterator[_Candidate]:
    side = _side(row)
    losses = [loss for result in results if (loss := loss_at(result, 0.15)) is not None]
    if side and losses:
        score = _mean([result.lml.nats_per_token for result in results])
        yield _Candidate(side, row.model_words, score, _mean(losses))


def _flip(fixed: _Candidate, accumulated: _Candidate) -> Flip:
    pair = (fixed, accumulated)
    by_loss = min(pair, key=lambda c: c.loss)
    by_lml = max(pair, key=lambda c: c.nats_per_token)
    loss = (
        f"{by_loss.side} ({by_loss.loss:.3f} against {_other(pair, by_loss).loss:.3f} nats per "
        "masked position)"
    )
    lml = (
        f"{by_lml.side} ({minus(by_lml.nats_per_token, 3)} against "
        f"{minus(_other(pair, by_lml).nats_per_token, 3)} nats per token)"
    )
    verb = "the LML also picks" if by_loss is by_lml else "but the LML picks"
    words = f"At {fixed.model_words}, loss at 15 % masking picks {loss}, {verb} {lml}."
    return Flip(fixed.model_words, by_loss.side, by_lml.side, words)


def _other(pair: tuple[_Candidate, _Candidate], one: _Candidate) -> _Candidate:
    return pair[1] if one is pair[0] else pair[0]


# --- certainty and cost ------------------------------------------------------------------------


def _certainty(comparison: ComparisonReport | None, ranked: Sequence[Ranked]) -> str:
    if comparison is not None and comparison.selection:
        return _selection_words(comparison.selection, comparison)
    if not ranked:
        return "Nothing has been measured yet."
    return (
        "One training run per configuration: intervals carry the noise of held-out sequences and "
        "masks, not of training seeds. A comparison on paired seeds carries both."
    )


def _selection_words(selection: Sequence[Selection], comparison: ComparisonReport) -> str:
    first = max(selection, key=lambda s: s.probability)
    seeds = comparison.differences[0].seeds if comparison.differences else 0
    noises = "training-seed and evaluation noise" if seeds > 1 else "evaluation noise only"
    return (
        f"{_capital(first.arm)} is the best of {len(selection)} arms with probability "
        f"{probability(first.probability)} under {noises}; choosing it costs "
        f"{first.expected_regret:.2g} nats per sequence on average."
    )


def _cost(report: ReportInput) -> str:
    spend = report.spend
    wall = f"; {duration(spend.wall_s)} on the clock" if spend.wall_s is not None else ""
    return (
        f"{plural(spend.trials, 'training run')}, {count(spend.tokens)} positions, "
        f"{power(spend.flops)} FLOPs, {duration(spend.worker_s)} of worker time{wall}."
    )


# --- checklist ---------------------------------------------------------------------------------


def _checks(report: ReportInput, ranked: Sequence[Ranked]) -> Iterator[Check]:
    yield _check_finished(report.trials)
    if not ranked:
        return
    yield _check_plan(report)
    yield _check_forwards(ranked)
    yield _check_budget(ranked)
    yield _check_versions(ranked)
    yield from _check_comparison(report.comparison)


def _check_finished(trials: Sequence[TrialRow]) -> Check:
    states = [t.state for t in trials]
    failed, pruned = states.count("FAIL"), states.count("PRUNED")
    finished = sum(t.finished for t in trials)
    words = f"{finished} of {plural(len(trials), 'trial')} finished, {pruned} stopped early"
    if failed:
        return Check(False, f"{words}, {failed} failed: see failures below")
    return Check(finished > 0, f"{words}, none failed")


def _check_plan(report: ReportInput) -> Check:
    results = [t.result for t in report.trials if t.result is not None]
    results += [r.result for a in _arms(report.comparison) for r in a.runs]
    hashes = {result.lml.plan_hash for result in results} | {report.plan_hash}
    if len(hashes) == 1:
        return Check(True, "every score is on the same held-out sequences and masks")
    return Check(False, "scores are on different scoring plans and cannot be compared: start anew")


def _arms(comparison: ComparisonReport | None) -> Sequence[ArmRow]:
    return comparison.arms if comparison else ()


def _check_forwards(ranked: Sequence[Ranked]) -> Check:
    least = min(row.result.lml.forwards for row in ranked)
    if least >= MIN_FORWARDS:
        return Check(True, f"at least {least} forwards behind every score")
    return Check(False, f"only {least} forwards behind a score: raise score.sequences")


def _check_budget(ranked: Sequence[Ranked]) -> Check:
    costs = [row.result.cost for row in ranked]
    budgets = {
        "positions": [float(cost.tokens) for cost in costs],
        "FLOPs": [cost.flops for cost in costs],
        "training time": [cost.training_s for cost in costs],
    }
    equal = [what for what, values in budgets.items() if max(values) <= 1.05 * min(values)]
    if equal:
        return Check(True, f"every finished trial had the same budget of {equal[0]}")
    return Check(False, "finished trials had different budgets: read the ranking with care")


def _check_versions(ranked: Sequence[Ranked]) -> Check:
    versions = {tuple(sorted(row.result.versions.items())) for row in ranked}
    if len(versions) == 1:
        return Check(True, "every trial ran on the same versions of the libraries")
    return Check(False, "trials ran on different versions of the libraries")


def _check_comparison(comparison: ComparisonReport | None) -> Iterator[Check]:
    if comparison is None or not comparison.differences:
        yield Check(False, "no comparison on paired seeds yet: run mptune compare")
        return
    seeds = min(d.seeds for d in comparison.differences)
    if seeds >= MIN_SEEDS:
        yield Check(True, f"compared over {seeds} paired training seeds")
    else:
        yield Check(False, f"compared over only {plural(seeds, 'seed')}: raise compare.seeds")
    open_pairs = [d.arm for d in comparison.differences if d.verdict == "undecided"]
    if open_pairs:
        names = ", ".join(open_pairs)
        yield Check(False, f"undecided against {comparison.baseline}: {names}; more seeds may tell")
    else:
        yield Check(True, f"every comparison is decided at {100 * comparison.level:g} %")


def _failures(trials: Sequence[TrialRow]) -> Iterator[tuple[str, tuple[TrialRow, ...]]]:
    """Failed trials by reason, the most frequent first."""
    failed = [t for t in trials if t.state == "FAIL"]
    reasons = sorted({t.reason or "error" for t in failed})
    groups = [(r, tuple(t for t in failed if (t.reason or "error") == r)) for r in reasons]
    yield from sorted(groups, key=lambda group: -len(group[1]))
