"""What the numbers say, in sentences: recommendation, verdict, certainty, cost, checklist.

Every renderer shows these same sentences, so that terminal, Markdown and HTML cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mptune.analysis import Difference, Selection
from mptune.analysis.comparison import ComparisonReport
from mptune.analysis.intervals import lml_half_width
from mptune.analysis.ranking import ACCUMULATED, FIXED_15, Side, loss_at, policy_kind, ranking, side
from mptune.analysis.results import Report
from mptune.analysis.selection import Candidate, SearchSelection
from mptune.report.checks import Check, checklist
from mptune.report.formatting import interval, minus, per_token, power
from mptune.report.language import Language, language
from mptune.report.verdicts import compute_words, others_first, said, sentence
from mptune.trial import Trial


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
        choice: the trial whose policy is recommended: the recommended one, unless an arm beat its
            policy on paired seeds; then a trial of that arm; None when nothing finished.
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

    ranked: tuple[Trial, ...]
    recommended: Trial | None
    choice: Trial | None
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


def recommended(selection: SearchSelection | None, ranked: Sequence[Trial]) -> Trial | None:
    """The search's choice, which confirming may have changed; else the highest LML."""
    wanted = selection.recommended if selection else None
    first = ranked[0] if ranked else None
    return next((trial for trial in ranked if trial.number == wanted), first)


def _score(selection: SearchSelection | None, best: Trial | None) -> tuple[float, float]:
    if best is None:
        return math.nan, math.nan
    candidate = candidate_of(selection, best.number)
    found = candidate.confirmation if candidate else None
    if found is not None:
        return found.nats_per_token, found.half_width
    return best.nats_per_token, lml_half_width(best.require_result().lml)


def _headline(choice: Trial | None, say: Language) -> str:
    if choice is None:
        return say("recommendation.none_yet")
    return say("recommendation.headline", policy=choice.policy_label, size=choice.size_label)


# --- recommendation ----------------------------------------------------------------------------


def _choice(comparison: ComparisonReport | None, best: Trial | None) -> Trial | None:
    if best is None:
        leader = _leading_arm(comparison)
        return comparison.arms[leader][0] if comparison and leader else None
    return _winner_over(best, comparison) or best


def _recommendation(
    report: Report, ranked: Sequence[Trial], best: Trial | None, say: Language
) -> Iterator[str]:
    if best is None:
        yield _without_search(report, say)
        return
    winner = _winner_over(best, report.comparison)
    yield _overruled(winner, best, say) if winner else _chosen(report.selection, ranked, best, say)
    yield _compared(report.comparison, best, say) or _runner_up(ranked, best, say)


def _overruled(winner: Trial, best: Trial, say: Language) -> str:
    return say(
        "recommendation.overruled",
        size=winner.size_label,
        policy=winner.policy_label,
        other=best.policy_label,
        score=_score_words(best),
    )


def _chosen(
    selection: SearchSelection | None, ranked: Sequence[Trial], best: Trial, say: Language
) -> str:
    """Why this trial: confirmed, or best in its worst domain, or simply the highest LML."""
    candidate = candidate_of(selection, best.number)
    confirmed = candidate.confirmation if candidate else None
    values = {"size": best.size_label, "policy": best.policy_label}
    if confirmed is not None:
        return say(
            "recommendation.confirmed",
            **values,
            n=confirmed.seeds,
            score=interval(confirmed.nats_per_token, confirmed.half_width, 3),
        )
    key = "worst_domain" if selection and selection.chosen_by == "worst_domain" else "best"
    b = best.require_result().lml.bits_per_byte
    bits = say("recommendation.bits", bits=f"{b:.3f}") if b else ""
    return say(
        f"recommendation.{key}",
        **values,
        n=len(ranked),
        score=_score_words(best),
        bits=bits,
    )


def _score_words(trial: Trial) -> str:
    return per_token(trial.nats_per_token, lml_half_width(trial.require_result().lml))


def candidate_of(selection: SearchSelection | None, trial: int) -> Candidate | None:
    """A trial as something to choose, if the search was judged."""
    return next((c for c in selection.candidates if c.trial == trial), None) if selection else None


def _winner_over(best: Trial, comparison: ComparisonReport | None) -> Trial | None:
    """A trial of the arm that beat the best trial's policy: paired seeds outweigh one run."""
    arms = {name: arm[0] for name, arm in comparison.arms.items() if arm} if comparison else {}
    for difference in comparison.differences if comparison else ():
        ahead, behind = arms.get(difference.arm), arms.get(difference.baseline)
        if difference.verdict == "worse":
            ahead, behind = behind, ahead
        decided = difference.verdict in ("better", "worse")
        if decided and ahead and behind and behind.policy_label == best.policy_label:
            return ahead
    return None


def _without_search(report: Report, say: Language) -> str:
    leader, comparison = _leading_arm(report.comparison), report.comparison
    if leader is None or comparison is None:
        return say("recommendation.nothing")
    scores = [trial.nats_per_token for trial in comparison.finished(leader)]
    return say("recommendation.arm", arm=leader, score=minus(_mean(scores), 3), n=len(scores))


def _leading_arm(comparison: ComparisonReport | None) -> str | None:
    means = {
        name: _mean([trial.nats_per_token for trial in finished])
        for name in (comparison.arms if comparison else ())
        if comparison and (finished := comparison.finished(name))
    }
    return max(means, key=lambda name: means[name], default=None)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _compared(comparison: ComparisonReport | None, best: Trial, say: Language) -> str | None:
    """What the comparison says about the recommended policy, if it was one of the arms."""
    if comparison is None:
        return None
    own = {
        name
        for name, arm in comparison.arms.items()
        if arm and arm[0].policy_label == best.policy_label
    }
    found = [d for d in comparison.differences if d.arm in own or d.baseline in own]
    if found:
        return say("recommendation.paired", words=sentence(found[0], say))
    return None


def _runner_up(ranked: Sequence[Trial], best: Trial, say: Language) -> str:
    own = policy_kind(best)
    other = next((trial for trial in ranked if policy_kind(trial) != own), None)
    if other is None:
        return say("recommendation.alone")
    is_behind = ranked.index(other) > ranked.index(best)
    return say(
        "recommendation.next",
        policy=other.policy_label,
        size=other.size_label,
        behind=f"{abs(best.nats_per_token - other.nats_per_token):.3g}",
        side=say("recommendation.behind" if is_behind else "recommendation.ahead"),
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
    sides = {name: side(arm[0].policy) for name, arm in comparison.arms.items() if arm}
    for difference in comparison.differences:
        if {sides.get(difference.arm), sides.get(difference.baseline)} == {
            "fixed 15 %",
            "accumulated",
        }:
            return difference
    return comparison.differences[0]


# --- the flip ----------------------------------------------------------------------------------


def flips(report: Report, say: Language) -> list[Flip]:
    """Fixed 15 % and accumulated at each size that has both: arms over their seeds if there are
    any, else the best trial of each."""
    arms = report.comparison.arms.values() if report.comparison else ()
    found: dict[str, dict[Side, tuple[float, float]]] = {}
    for trials in [*arms, *([trial] for trial in ranking(report.trials))]:
        which = side(trials[0].policy) if trials else None
        results = [trial.result for trial in trials if trial.result is not None]
        losses = [loss for result in results if (loss := loss_at(result, 0.15)) is not None]
        if which and losses:
            score = _mean([result.lml.nats_per_token for result in results])
            sides = found.setdefault(trials[0].size_label, {})
            sides.setdefault(which, (_mean(losses), score))
    return [_flip(size, sides, say) for size, sides in found.items() if len(sides) == 2]


def _flip(size: str, sides: Mapping[Side, tuple[float, float]], say: Language) -> Flip:
    """`sides` has loss and LML of both; at equal values fixed 15 % is preferred."""
    pair: tuple[Side, Side] = FIXED_15, ACCUMULATED
    by_loss = min(pair, key=lambda which: sides[which][0])
    by_lml = max(pair, key=lambda which: sides[which][1])
    words = say(
        "flip.agree" if by_loss is by_lml else "flip.disagree",
        size=size,
        by_loss=by_loss,
        loss=f"{min(loss for loss, _ in sides.values()):.3f}",
        other_loss=f"{max(loss for loss, _ in sides.values()):.3f}",
        by_lml=by_lml,
        lml=minus(max(lml for _, lml in sides.values()), 3),
        other_lml=minus(min(lml for _, lml in sides.values()), 3),
    )
    return Flip(size, by_loss, by_lml, words)


# --- certainty and cost ------------------------------------------------------------------------


def _certainty(report: Report, ranked: Sequence[Trial], say: Language) -> Iterator[str]:
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
        labels = {trial.number: trial.label for trial in report.trials}
        candidates = selection.candidates if selection else ()
        found = [(labels[c.trial], c.probability) for c in candidates]
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
