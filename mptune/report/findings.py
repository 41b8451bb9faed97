"""The conclusions of a report as sentences: recommendation, verdict, certainty, cost, checklist.

Everything that is concluded comes from `mptune.analysis`; this module writes the sentences. Every
view shows the same ones, so that terminal, Markdown and HTML cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from mptune.analysis.comparison import (
    ComparisonReport,
    difference_of,
    leading_arm,
    main_difference,
)
from mptune.analysis.ranking import Flip, flips, grouped, ranking, runner_up
from mptune.analysis.results import Recommendation, Report
from mptune.analysis.selection import SearchSelection, WeightedScore, score_of
from mptune.report.checks import Check, checklist
from mptune.report.formatting import interval, minus, per_token, power
from mptune.report.language import Language, language
from mptune.report.verdicts import compute_words, full_sentence, sentence
from mptune.status import Outlook
from mptune.trial import Message, Trial


class FlipRow(Message):
    """Which of fixed 15 % and accumulated each criterion prefers, at one model size.

    Attributes:
        by_loss: preferred by the loss at 15 % masking.
        by_lml: preferred by the accumulated LML estimate.
    """

    size_label: str
    by_loss: str
    by_lml: str
    words: str
    disagree: bool


class Conclusions(Message):
    """What the report says in words, in the language of the report.

    Attributes:
        headline: the recommended policy and size, short.
        learned: whether the best score is above that of counting symbols; if not, nothing is
            recommended in words.
        recommendation: two sentences at most.
        verdict_title: the two arms that are compared.
        verdict: better, worse, undecided, equivalent or open (not compared).
        verdict_words: the sentences of the comparison, or what single runs can show.
        certainty: how certain the choice is, and which noise that accounts for.
        cost: what the study consumed.
    """

    headline: str
    learned: bool
    recommendation: tuple[str, ...]
    verdict_title: str
    verdict: str
    verdict_label: str
    verdict_words: tuple[str, ...]
    certainty: tuple[str, ...]
    cost: str
    flips: tuple[FlipRow, ...]
    checks: tuple[Check, ...]


class Findings(Conclusions):
    """The text of a report, and the trials and numbers that it is about.

    Attributes:
        ranked: finished trials, best first.
        recommended: the finished trial that the search recommends, or None.
        choice: a trial of the recommended policy (`Recommendation.trial`); None if nothing has
            finished.
        score: see `Recommendation.score`.
        chances: name and probability to be the best, highest first, at most five.
        failures: reason and failed trials, the most frequent reason first.
    """

    ranked: tuple[Trial, ...]
    recommended: Trial | None
    choice: Trial | None
    score: tuple[float, float]
    chances: tuple[tuple[str, float], ...]
    failures: tuple[tuple[str, tuple[Trial, ...]], ...]


def findings(report: Report, say: Language | None = None) -> Findings:
    """The conclusions of a report, in English unless another language is given."""
    say = say or language()
    ranked, found = tuple(ranking(report.trials)), report.choice()
    arms = report.comparison.arms.values() if report.comparison else ()
    rows = tuple(_flip_row(flip, say) for flip in flips(arms, report.trials))
    spend = report.spend
    wall = "" if spend.wall_s is None else say("cost.wall", wall=say.duration(spend.wall_s))
    return Findings(
        ranked=ranked,
        recommended=found.searched,
        choice=found.trial,
        score=found.score,
        headline=_headline(found, say),
        learned=not found.learned_nothing,
        recommendation=tuple(_recommendation(found, ranked, say)),
        **_verdict(report.comparison, bool(rows), say),
        certainty=(*certainty(found, say), *end_words(report.outlook, say)),
        chances=_chances(report),
        cost=say(
            "cost.sentence",
            n=spend.trials,
            tokens=say.count(spend.tokens),
            flops=power(spend.flops),
            worker=say.duration(spend.worker_s),
            wall=wall,
        ),
        flips=rows,
        checks=tuple(checklist(report, found, ranked, say)),
        failures=_failures(report.trials),
    )


# --- recommendation ----------------------------------------------------------------------------


def _headline(found: Recommendation, say: Language) -> str:
    if found.trial is None:
        return say("recommendation.none_yet")
    if found.learned_nothing:
        improved = found.baseline is None or found.baseline[0] != "as_it_is"
        return say(f"recommendation.{'train_longer' if improved else 'not_improved'}")
    policy, size = found.trial.policy_label, found.trial.size_label
    return say("recommendation.headline", policy=policy, size=size)


def nothing_learned(found: Recommendation, say: Language) -> str:
    """Why nothing is recommended: the best score is not above that of counting."""
    name, counting = found.baseline or ("counting", math.nan)
    score, baseline = per_token(*found.score), say(f"baseline.{name}")
    values = {"score": score, "baseline": baseline, "counting": minus(counting, 3)}
    return say("recommendation.learned_nothing", **values)


def _recommendation(found: Recommendation, ranked: Sequence[Trial], say: Language) -> Iterator[str]:
    """Which policy and why, then how it compares with the next one."""
    comparison, best, choice = found.comparison, found.searched, found.trial
    if found.learned_nothing:
        yield nothing_learned(found, say)
        return
    if best is None or choice is None:
        leader = leading_arm(comparison)
        if comparison is None or leader is None:
            yield say("recommendation.nothing")
        else:
            n = len(comparison.finished(leader))
            score = minus(comparison.score(leader), 3)
            yield say("recommendation.arm", arm=leader, score=score, n=n)
        return
    if choice is best:
        yield _why_chosen(found.selection, len(ranked), best, say)
    else:
        yield say(
            "recommendation.overruled",
            size=choice.size_label,
            policy=choice.policy_label,
            other=best.policy_label,
            score=per_token(*score_of(None, best)),
        )
    paired, other = difference_of(best, comparison), runner_up(ranked, best)
    if paired is not None:
        yield say("recommendation.paired", words=sentence(paired, say))
    elif other is None:
        yield say("recommendation.alone")
    else:
        is_behind = ranked.index(other) > ranked.index(best)
        yield say(
            "recommendation.next",
            policy=other.policy_label,
            size=other.size_label,
            behind=f"{abs(best.nats_per_token - other.nats_per_token):.3g}",
            side=say("recommendation.behind" if is_behind else "recommendation.ahead"),
        )


def _why_chosen(selection: SearchSelection | None, n: int, best: Trial, say: Language) -> str:
    """The search's best of `n` trials: confirmed, best in its worst domain, or the highest LML."""
    candidate = selection.candidate(best.number) if selection else None
    score = score_of(selection, best)
    values = {"size": best.size_label, "policy": best.policy_label, "score": per_token(*score)}
    by = selection.chosen_by if selection else "search"
    if selection and selection.weighted:
        mean, parts = minus(selection.weighted_mean, 3), weighted_words(selection.weighted, say)
        return say("recommendation.weights", **values, n=n, mean=mean, parts=parts)
    if candidate and candidate.confirmation and by != "worst_domain":
        return say("recommendation.confirmed", **values, n=candidate.confirmation.seeds)
    known = candidate is not None and candidate.expected is not None
    key = by if by == "worst_domain" else "expected" if known else "best"
    b = best.require_result().lml.bits_per_byte
    b = b and b * score[0] / best.nats_per_token
    bits = say("recommendation.bits", bits=f"{b:.3f}") if b else ""
    return say(f"recommendation.{key}", **values, n=n, bits=bits)


def weighted_words(parts: Sequence[WeightedScore], say: Language) -> str:
    """The rule of a choice by weights, e.g. `1 × in distribution (−2.205) + 0.3 × old (−3.100)`."""
    names = [say("robustness.home") if part.name == "heldout" else part.name for part in parts]
    return " + ".join(
        f"{part.weight:g} × {name} ({minus(part.nats_per_token, 3)})"
        for name, part in zip(names, parts, strict=True)
    )


# --- verdict -----------------------------------------------------------------------------------


def _verdict(comparison: ComparisonReport | None, has_flips: bool, say: Language) -> dict[str, Any]:
    """The main pair first, then every other arm.

    Args:
        has_flips: single runs of fixed 15 % and accumulated exist at one size.
    """
    if comparison is None or not comparison.differences:
        why = say("verdict.single_runs" if has_flips else "verdict.no_runs")
        return {
            "verdict_title": say("verdict.usual_title"),
            "verdict": "open",
            "verdict_label": say("verdict.label.open"),
            "verdict_words": (why,),
        }
    main = main_difference(comparison)
    title = say("verdict.title", arm=main.arm, baseline=main.baseline)
    ahead = {"better": main.arm, "worse": main.baseline}.get(main.verdict)
    label = say("verdict.label.ahead", arm=ahead) if ahead else say(f"verdict.label.{main.verdict}")
    others = [d for d in comparison.differences if d is not main]
    sentences = [full_sentence(d, say) for d in (main, *others)]
    saving = compute_words(main, comparison.compute, say)
    sentences[1:1] = [saving] if saving else []
    return {
        "verdict_title": say.capital(title),
        "verdict": main.verdict,
        "verdict_label": label,
        "verdict_words": tuple(sentences),
    }


def _flip_row(flip: Flip, say: Language) -> FlipRow:
    disagree = flip.by_loss != flip.by_lml
    losses, scores = sorted(flip.losses.values()), sorted(flip.scores.values())
    key = "disagree" if disagree else "agree"
    words = say(
        f"flip.{key}" if flip.is_decided else f"flip.{key}_undecided",
        size=flip.size_label,
        by_loss=flip.by_loss,
        loss=f"{losses[0]:.3f}",
        other_loss=f"{losses[1]:.3f}",
        by_lml=flip.by_lml,
        lml=minus(scores[1], 3),
        other_lml=minus(scores[0], 3),
        loss_difference=interval(losses[1] - losses[0], flip.loss_half_width, 3),
        lml_difference=interval(scores[1] - scores[0], flip.score_half_width, 3),
        noises=say("flip.seeds", n=flip.seeds) if flip.seeds > 1 else say("flip.one_run"),
    )
    return FlipRow(
        size_label=flip.size_label,
        by_loss=flip.by_loss,
        by_lml=flip.by_lml,
        words=words,
        disagree=disagree and flip.is_decided,
    )


# --- certainty ---------------------------------------------------------------------------------


def certainty(found: Recommendation, say: Language) -> Iterator[str]:
    """How sure the choice is, in sentences: first of the arms, then of the search."""
    comparison, selection, searched = found.comparison, found.selection, found.searched
    if comparison is not None and comparison.selection:
        first = max(comparison.selection, key=lambda s: s.probability)
        seeds = comparison.differences[0].seeds if comparison.differences else 0
        words = say(
            "certainty.arms",
            arm=first.arm,
            n=len(comparison.selection),
            probability=say.probability(first.probability),
            noises=say("certainty.both_noises" if seeds > 1 else "certainty.one_noise"),
            regret=f"{first.expected_regret:.2g}",
        )
        yield say.capital(words)
    if selection is not None and searched is not None:
        yield from _search_certainty(selection, searched, say)
    elif searched is None and comparison is None:
        yield say("certainty.nothing")
    elif comparison is None or not comparison.selection:
        yield say("certainty.one_run")
    lml = found.trial.result.lml if found.trial and found.trial.result else None
    if lml is not None and lml.few_groups is not None:
        yield say("few.report", n=lml.few_groups, by=lml.grouped_by)


def end_words(outlook: Outlook | None, say: Language) -> Iterator[str]:
    """What ended the search, how sure it was, and what more would bring."""
    if outlook is None or outlook.trials == 0 or outlook.unknown == "seeds":
        return  # without second seeds in the search, the sentences on certainty say what is known
    if outlook.probability is None or outlook.within is None:
        sure = say(f"end.unknown_{outlook.unknown}")
    else:
        within, delta = say.probability(outlook.within), f"{outlook.delta:.2g}"
        trial, n = outlook.recommended, outlook.candidates
        sure = say("end.sure", trial=trial, delta=delta, n=n, within=within)
        if outlook.unseen is not None:
            unseen, both = say.probability(outlook.unseen), say.probability(outlook.probability)
            sure = say("end.unseen", sure=sure, unseen=unseen, both=both)
        if outlook.undecided:
            sure = say("end.undecided", sure=sure)
    yield say(f"end.{outlook.ended_by or 'open'}", n=outlook.trials, sure=sure)
    if (more := outlook.best_more_runs) is not None:
        values = {"gain": f"{more.gain:.2g}", "hours": f"{more.worker_hours:.2g}"}
        if more.trial is None:
            yield say("end.more_new", **values)
        else:
            yield say("end.more_seeds", trial=more.trial, n=more.runs, **values)


def _search_certainty(selection: SearchSelection, trial: Trial, say: Language) -> Iterator[str]:
    """How sure the choice of a search is, and what to expect of the recommended trial."""
    chosen = selection.candidate(trial.number)
    if chosen is None:
        return
    named = {"policy": trial.policy_label, "size": trial.size_label, "trial": trial.number}
    if chosen.probability is None or chosen.expected is None or chosen.half_width is None:
        yield say("certainty.no_probability", **named, n=len(selection.candidates))
        return
    yield say(
        "certainty.search",
        **named,
        n=len(selection.candidates),
        probability=say.probability(chosen.probability),
        noises=say("certainty.both_noises"),
        regret=f"{chosen.expected_regret:.2g}",
    )
    if (confirmed := chosen.confirmation) is not None:
        score = per_token(confirmed.nats_per_token, confirmed.half_width)
        searched = minus(chosen.nats_per_token, 3)
        yield say("certainty.confirmed", n=confirmed.seeds, score=score, searched=searched)
    expected = per_token(chosen.expected, chosen.half_width)
    yield say(
        "certainty.curse", expected=expected, score=minus(chosen.nats_per_token, 3), n=chosen.runs
    )


def _chances(report: Report) -> tuple[tuple[str, float], ...]:
    """Of the arms if they were compared, else of the candidates of the search."""
    comparison, selection = report.comparison, report.selection
    if comparison is not None and comparison.selection:
        found = [(s.arm, s.probability) for s in comparison.selection]
    else:
        labels = {trial.number: trial.label for trial in report.trials}
        candidates = selection.candidates if selection else ()
        found = [(labels[c.trial], c.probability) for c in candidates if c.probability is not None]
    return tuple(sorted(found, key=lambda pair: -pair[1])[:5])


def _failures(trials: Sequence[Trial]) -> tuple[tuple[str, tuple[Trial, ...]], ...]:
    """Failed trials by reason, the most frequent reason first."""
    failures = (trial for trial in trials if trial.state == "FAIL")
    by_reason = grouped(failures, lambda trial: trial.reason or "error")
    found = sorted(by_reason.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return tuple((reason, tuple(failed)) for reason, failed in found)
