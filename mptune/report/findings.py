"""What the numbers say, in sentences: recommendation, verdict, certainty, cost, checklist.

Every renderer shows these same sentences, so that terminal, Markdown and HTML cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mptune.analysis import Difference, Selection
from mptune.analysis.results import (
    ArmRow,
    ComparisonReport,
    Ranked,
    Report,
    is_accumulated,
    is_fixed_15,
    loss_at,
    policy_kind,
    ranking,
)
from mptune.analysis.selection import Candidate, SearchSelection
from mptune.report.checks import Check, checklist
from mptune.report.language import Language, language
from mptune.report.verdicts import compute_words, others_first, said, sentence
from mptune.report.words import interval, minus, per_token, power
from mptune.trial import Trial, TrialResult

Side: TypeAlias = Literal["fixed 15 %", "accumulated"]


@dataclass(frozen=True)
class Flip:
    """Which of fixed 15 % and accumulated each criterion prefers, at one model size.

    Attributes:
        by_loss: preferred by the loss at 15 % masking.
        by_lml: preferred by the accumulated LML estimate.
    """

    size_label: str
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
        recommended: the finished trial that the search recommends, or None.
        choice: the trial or arm whose policy is recommended: the recommended trial, unless an
            arm beat its policy on paired seeds; None when nothing finished.
        score: LML of the recommended trial and the half-width of its 95 % interval, nats per
            token: confirmed where it was confirmed; not a number when nothing finished.
        headline: the recommended policy and size, short.
        recommendation: two sentences at most.
        verdict_title: what was held against what.
        verdict_word: `better`, `worse`, `undecided`, `equivalent` or `open` (not compared).
        verdict_label: the same as a person would say it.
        verdict: the comparison's own sentences, or what single runs show.
        certainty: how sure the choice is, and of which noises.
        chances: how probably each is the best: name and probability, highest first.
        cost: what the study took.
    """

    ranked: tuple[Ranked, ...]
    recommended: Ranked | None
    choice: Trial | ArmRow | None
    score: tuple[float, float]
    headline: str
    recommendation: tuple[str, ...]
    verdict_title: str
    verdict_word: str
    verdict_label: str
    verdict: tuple[str, ...]
    certainty: tuple[str, ...]
    chances: tuple[tuple[str, float], ...]
    cost: str
    flips: tuple[Flip, ...]
    checks: tuple[Check, ...]
    failures: tuple[tuple[str, tuple[Trial, ...]], ...]


def findings(report: Report, say: Language | None = None) -> Findings:
    """Draw the conclusions of a report, in English unless another language is given."""
    say = say or language()
    ranked = tuple(ranking(report.trials))
    best = recommended(report.selection, ranked)
    choice = _choice(report.comparison, best)
    title, word, label, verdict = _verdict(report, say)
    return Findings(
        ranked=ranked,
        recommended=best,
        choice=choice,
        score=_score(report.selection, best),
        headline=_headline(choice, say),
        recommendation=tuple(_recommendation(report, ranked, best, say)),
        verdict_title=title,
        verdict_word=word,
        verdict_label=label,
        verdict=verdict,
        certainty=tuple(_certainty(report, ranked, say)),
        chances=tuple(_chances(report)),
        cost=_cost(report, say),
        flips=tuple(flips(report, say)),
        checks=tuple(checklist(report, best, ranked, say)),
        failures=tuple(_failures(report.trials)),
    )


def recommended(selection: SearchSelection | None, ranked: Sequence[Ranked]) -> Ranked | None:
    """The search's choice, which confirming may have changed; else the highest LML."""
    wanted = selection.recommended if selection else None
    first = ranked[0] if ranked else None
    return next((row for row in ranked if row.trial.number == wanted), first)


def _score(selection: SearchSelection | None, best: Ranked | None) -> tuple[float, float]:
    if best is None:
        return math.nan, math.nan
    candidate = candidate_of(selection, best.trial.number)
    found = candidate.confirmation if candidate else None
    return (found or best).nats_per_token, (found or best).half_width


def _headline(choice: Trial | ArmRow | None, say: Language) -> str:
    if choice is None:
        return say("recommendation.none_yet")
    return say("recommendation.headline", policy=choice.policy_label, size=choice.size_label)


# --- recommendation ----------------------------------------------------------------------------


def _choice(comparison: ComparisonReport | None, best: Ranked | None) -> Trial | ArmRow | None:
    if best is None:
        return _leading_arm(comparison)
    return _winner_over(best, comparison) or best.trial


def _recommendation(
    report: Report, ranked: Sequence[Ranked], best: Ranked | None, say: Language
) -> Iterator[str]:
    if best is None:
        yield _without_search(report, say)
        return
    winner = _winner_over(best, report.comparison)
    yield _overruled(winner, best, say) if winner else _chosen(report.selection, ranked, best, say)
    yield _compared(report.comparison, best, say) or _runner_up(ranked, best, say)


def _overruled(winner: ArmRow, best: Ranked, say: Language) -> str:
    return say(
        "recommendation.overruled",
        size=winner.size_label,
        policy=winner.policy_label,
        other=best.trial.policy_label,
        score=per_token(best.nats_per_token, best.half_width),
    )


def _chosen(
    selection: SearchSelection | None, ranked: Sequence[Ranked], best: Ranked, say: Language
) -> str:
    """Why this trial: confirmed, or best in its worst domain, or simply the highest LML."""
    candidate = candidate_of(selection, best.trial.number)
    confirmed = candidate.confirmation if candidate else None
    values = {"size": best.trial.size_label, "policy": best.trial.policy_label}
    if confirmed is not None:
        return say(
            "recommendation.confirmed",
            **values,
            n=confirmed.seeds,
            score=interval(confirmed.nats_per_token, confirmed.half_width, 3),
        )
    key = "worst_domain" if selection and selection.chosen_by == "worst_domain" else "best"
    bits = say("recommendation.bits", bits=f"{b:.3f}") if (b := best.bits_per_byte) else ""
    return say(
        f"recommendation.{key}",
        **values,
        n=len(ranked),
        score=per_token(best.nats_per_token, best.half_width),
        bits=bits,
    )


def candidate_of(selection: SearchSelection | None, trial: int) -> Candidate | None:
    """A trial as something to choose, if the search was judged."""
    return next((c for c in selection.candidates if c.trial == trial), None) if selection else None


def _winner_over(best: Ranked, comparison: ComparisonReport | None) -> ArmRow | None:
    """The arm that beat the best trial's policy on paired seeds: more evidence than one run."""
    arms = {arm.name: arm for arm in comparison.arms} if comparison else {}
    for difference in comparison.differences if comparison else ():
        ahead, behind = arms.get(difference.arm), arms.get(difference.baseline)
        if difference.verdict == "worse":
            ahead, behind = behind, ahead
        decided = difference.verdict in ("better", "worse")
        if decided and ahead and behind and behind.policy_label == best.trial.policy_label:
            return ahead
    return None


def _without_search(report: Report, say: Language) -> str:
    leader = _leading_arm(report.comparison)
    if leader is None:
        return say("recommendation.nothing")
    mean = _mean([run.result.lml.nats_per_token for run in leader.runs])
    return say("recommendation.arm", arm=leader.name, score=minus(mean, 3), n=len(leader.runs))


def _leading_arm(comparison: ComparisonReport | None) -> ArmRow | None:
    arms = [arm for arm in comparison.arms if arm.runs] if comparison else []
    return max(
        arms, key=lambda a: _mean([r.result.lml.nats_per_token for r in a.runs]), default=None
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _compared(comparison: ComparisonReport | None, best: Ranked, say: Language) -> str | None:
    """What the comparison says about the recommended policy, if it was one of the arms."""
    if comparison is None:
        return None
    own = {a.name for a in comparison.arms if a.policy_label == best.trial.policy_label}
    found = [d for d in comparison.differences if d.arm in own or d.baseline in own]
    if found:
        return say("recommendation.paired", words=sentence(found[0], say))
    return None


def _runner_up(ranked: Sequence[Ranked], best: Ranked, say: Language) -> str:
    own = policy_kind(best.trial)
    other = next((r for r in ranked if policy_kind(r.trial) != own), None)
    if other is None:
        return say("recommendation.alone")
    return say(
        "recommendation.next",
        policy=other.trial.policy_label,
        size=other.trial.size_label,
        behind=f"{abs(best.nats_per_token - other.nats_per_token):.3g}",
        side=say("recommendation.behind" if other.place > best.place else "recommendation.ahead"),
    )


# --- verdict -----------------------------------------------------------------------------------

_Verdict: TypeAlias = tuple[str, str, str, tuple[str, ...]]
"""Title, word, label, sentences."""


def _verdict(report: Report, say: Language) -> _Verdict:
    comparison = report.comparison
    if comparison is not None and comparison.differences:
        return _verdict_of(comparison, say)
    why = say("verdict.single_runs" if flips(report, say) else "verdict.no_runs")
    return say("verdict.usual_title"), "open", say("verdict.label.open"), (why,)


def _verdict_of(comparison: ComparisonReport, say: Language) -> _Verdict:
    """The pair that the study is about comes first, then every other challenger."""
    main = main_difference(comparison)
    title = say("verdict.title", arm=main.arm, baseline=main.baseline)
    sentences = [said(d, say) for d in others_first(main, comparison.differences)]
    saving = compute_words(main, comparison.compute, say)
    sentences[1:1] = [saving] if saving else []
    return say.capital(title), main.verdict, _verdict_label(main, say), tuple(sentences)


def _verdict_label(difference: Difference, say: Language) -> str:
    ahead = {"better": difference.arm, "worse": difference.baseline}.get(difference.verdict)
    if ahead:
        return say("verdict.label.ahead", arm=ahead)
    return say(f"verdict.label.{difference.verdict}")


def main_difference(comparison: ComparisonReport) -> Difference:
    """Accumulated against fixed 15 %, if both are there; else the first pair."""
    sides = {arm.name: side(arm) for arm in comparison.arms}
    for difference in comparison.differences:
        if {sides.get(difference.arm), sides.get(difference.baseline)} == {
            "fixed 15 %",
            "accumulated",
        }:
            return difference
    return comparison.differences[0]


def side(row: ArmRow | Trial) -> Side | None:
    """Which of the two that the study is about, if it is one of them."""
    if is_fixed_15(row.policy):
        return "fixed 15 %"
    return "accumulated" if is_accumulated(row.policy) else None


# --- the flip ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    side: Side
    size_label: str
    nats_per_token: float
    loss: float


def flips(report: Report, say: Language) -> list[Flip]:
    """Fixed 15 % and accumulated at each size that has both: arms over their seeds if there are
    any, else the best trial of each."""
    found: dict[str, dict[Side, _Candidate]] = {}
    for candidate in [*_from_arms(report.comparison), *_from_trials(report.trials)]:
        found.setdefault(candidate.size_label, {}).setdefault(candidate.side, candidate)
    return [
        _flip(sides["fixed 15 %"], sides["accumulated"], say)
        for sides in found.values()
        if len(sides) == 2
    ]


def _from_arms(comparison: ComparisonReport | None) -> Iterator[_Candidate]:
    for arm in comparison.arms if comparison else ():
        yield from _candidate(arm, [run.result for run in arm.runs])


def _from_trials(trials: Sequence[Trial]) -> Iterator[_Candidate]:
    for row in ranking(trials):
        yield from _candidate(row.trial, [row.result])


def _candidate(row: ArmRow | Trial, results: Sequence[TrialResult]) -> Iterator[_Candidate]:
    found = side(row)
    losses = [loss for result in results if (loss := loss_at(result, 0.15)) is not None]
    if found and losses:
        score = _mean([result.lml.nats_per_token for result in results])
        yield _Candidate(found, row.size_label, score, _mean(losses))


def _flip(fixed: _Candidate, accumulated: _Candidate, say: Language) -> Flip:
    pair = (fixed, accumulated)
    by_loss = min(pair, key=lambda c: c.loss)
    by_lml = max(pair, key=lambda c: c.nats_per_token)
    words = say(
        "flip.agree" if by_loss is by_lml else "flip.disagree",
        size=fixed.size_label,
        by_loss=by_loss.side,
        loss=f"{by_loss.loss:.3f}",
        other_loss=f"{_other(pair, by_loss).loss:.3f}",
        by_lml=by_lml.side,
        lml=minus(by_lml.nats_per_token, 3),
        other_lml=minus(_other(pair, by_lml).nats_per_token, 3),
    )
    return Flip(fixed.size_label, by_loss.side, by_lml.side, words)


def _other(pair: tuple[_Candidate, _Candidate], one: _Candidate) -> _Candidate:
    return pair[1] if one is pair[0] else pair[0]


# --- certainty and cost ------------------------------------------------------------------------


def _certainty(report: Report, ranked: Sequence[Ranked], say: Language) -> Iterator[str]:
    comparison, selection = report.comparison, report.selection
    if comparison is not None and comparison.selection:
        yield _selection_words(comparison.selection, comparison, say)
    if selection is not None and ranked:
        yield from _search_words(selection, say)
    elif not ranked and comparison is None:
        yield say("certainty.nothing")
    elif comparison is None or not comparison.selection:
        yield say("certainty.one_run")


def _selection_words(
    selection: Sequence[Selection], comparison: ComparisonReport, say: Language
) -> str:
    first = max(selection, key=lambda s: s.probability)
    seeds = comparison.differences[0].seeds if comparison.differences else 0
    words = say(
        "certainty.arms",
        arm=first.arm,
        n=len(selection),
        probability=say.probability(first.probability),
        noises=say("certainty.both_noises" if seeds > 1 else "certainty.one_noise"),
        regret=f"{first.expected_regret:.2g}",
    )
    return say.capital(words)


def _search_words(selection: SearchSelection, say: Language) -> Iterator[str]:
    chosen = candidate_of(selection, selection.recommended)
    if chosen is None:
        return
    known = selection.seed_sd is not None
    yield say(
        "certainty.search",
        trial=chosen.trial,
        n=len(selection.candidates),
        probability=say.probability(chosen.probability),
        noises=say("certainty.both_noises" if known else "certainty.one_noise"),
        regret=f"{chosen.expected_regret:.2g}",
    )
    confirmed = chosen.confirmation
    if confirmed is None:
        yield say("certainty.curse", expected=per_token(chosen.shrunken, chosen.half_width),
                  score=minus(chosen.nats_per_token, 3))  # fmt: skip
    else:
        yield say("certainty.confirmed", n=confirmed.seeds,
                  score=per_token(confirmed.nats_per_token, confirmed.half_width),
                  optimism=minus(confirmed.optimism, 3))  # fmt: skip


def _chances(report: Report) -> list[tuple[str, float]]:
    """Of the arms if there was a comparison, else of the search's first candidates."""
    comparison, selection = report.comparison, report.selection
    if comparison is not None and comparison.selection:
        found = [(s.arm, s.probability) for s in comparison.selection]
    else:
        candidates = selection.candidates if selection else ()
        found = [(c.label, c.probability) for c in candidates]
    return sorted(found, key=lambda pair: -pair[1])[:5]


def _cost(report: Report, say: Language) -> str:
    spend = report.spend
    wall = spend.wall_s
    return say(
        "cost.sentence",
        n=spend.trials,
        tokens=say.count(spend.tokens),
        flops=power(spend.flops),
        worker=say.duration(spend.worker_s),
        wall=say("cost.wall", wall=say.duration(wall)) if wall is not None else "",
    )


def _failures(trials: Sequence[Trial]) -> Iterator[tuple[str, tuple[Trial, ...]]]:
    """Failed trials by reason, the most frequent first."""
    failed = [t for t in trials if t.state == "FAIL"]
    reasons = sorted({t.reason or "error" for t in failed})
    groups = [(r, tuple(t for t in failed if (t.reason or "error") == r)) for r in reasons]
    yield from sorted(groups, key=lambda group: -len(group[1]))
