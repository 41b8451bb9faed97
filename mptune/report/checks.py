"""What to check before adopting the recommendation: a checklist filled in from the report.

A new check is one function, listed in `CHECKS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from pydantic import ConfigDict

from mptune.analysis.comparison import ComparisonReport
from mptune.analysis.intervals import scores_by_condition, worst_domain
from mptune.analysis.pruning import MIN_FOR_REGRESSION, probability_of_stopping_the_best
from mptune.analysis.ranking import grouped
from mptune.analysis.results import Outcomes, Recommendation, Report
from mptune.report.formatting import minus
from mptune.report.language import Language
from mptune.report.verdicts import what_would_decide
from mptune.trial import MIN_GROUPS, Trial, TrialResult

MIN_FORWARDS = 100
"""With fewer forwards an interval is not reliable (experiments on racing)."""

MIN_SEEDS = 3

MAX_PRUNER_ERROR = 0.1
"""A pruner that stopped the best trial with a higher probability may have cost the search."""

MIN_HELDOUT = 100
"""With fewer held-out sequences the intervals are too wide to distinguish policies."""


@dataclass(frozen=True)
class Check:
    """One line of the checklist: what was verified, or what is missing and how to get it."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")  # in report.json

    ok: bool
    words: str


@dataclass(frozen=True)
class Case:
    """The input of a check.

    Attributes:
        results: of the finished trials; of the arms' trials if the study has no search.
        choice: what the study recommends.
    """

    report: Report
    results: Sequence[TrialResult]
    choice: Recommendation
    say: Language

    def line(self, ok: bool, good: str, bad: str, /, **values: Any) -> Check:
        """A check in the words of `good` if it holds, else of `bad`: keys in `check.`."""
        return Check(ok, self.say(f"check.{good if ok else bad}", **values))


Checker: TypeAlias = Callable[[Case], Iterator[Check]]


def checklist(
    report: Report, choice: Recommendation, ranked: Sequence[Trial], say: Language
) -> Iterator[Check]:
    """Every check that applies, in order."""
    ended = Outcomes.of(report)
    words = say(
        "check.some_failed" if ended.failed else "check.none_failed",
        finished=ended.finished,
        repeats=say("check.repeats", n=ended.repeated, candidates=ended.finished - ended.repeated)
        if ended.repeated
        else "",
        n=ended.all,
        pruned=ended.pruned,
        failed=ended.failed,
    )
    yield Check(ended.finished > 0 and not ended.failed, words)
    results = [trial.require_result() for trial in ranked]
    if not report.trials:
        results = _results_of_arms(report.comparison)
    if not results:
        return
    unkept = [result.unkept for result in results if result.unkept is not None]
    if unkept:
        yield Check(False, say("check.unkept", n=len(unkept), why=unkept[0]))
    case = Case(report, results, choice, say)
    for check in CHECKS:
        yield from check(case)


def _data(case: Case) -> Iterator[Check]:
    prepared = case.report.prepared
    if prepared is None:
        yield Check(False, case.say("check.no_data"))
        return
    for warning in prepared.warnings or ():
        yield Check(False, case.say("check.data_warning", warning=warning))
    yield case.line(
        prepared.heldout_sequences >= MIN_HELDOUT,
        "data" if prepared.warnings is None else "inspected_data",
        "few_heldout",
        hash=prepared.table_hash[:12],
        train=f"{prepared.train_sequences:,}",
        heldout=f"{prepared.heldout_sequences:,}",
    )


def _results_of_arms(comparison: ComparisonReport | None) -> list[TrialResult]:
    arms = comparison.arms.values() if comparison else ()
    return [trial.result for arm in arms for trial in arm if trial.result is not None]


def _scores(case: Case) -> Iterator[Check]:
    """One plan, enough forwards and groups, and the same budget for all."""
    report, scores = case.report, [result.lml for result in case.results]
    others = _results_of_arms(report.comparison)
    hashes = {lml.plan_hash for lml in (*scores, *(other.lml for other in others))}
    yield case.line(hashes == {report.plan_hash}, "one_plan", "other_plan")
    least = min(lml.forwards for lml in scores)
    yield case.line(least >= MIN_FORWARDS, "forwards", "few_forwards", least=least)
    worst = max(scores, key=lambda lml: lml.groups_needed)
    if worst.few_groups is None:
        share = f"{100 * worst.largest_share:.0f}"
        groups, needed = worst.groups, worst.groups_needed
        enough, values = groups >= needed, {"share": share, "groups": groups, "needed": needed}
        yield case.line(enough, "tails", "heavy_tails", **values)
    else:
        n, by = worst.few_groups, worst.grouped_by
        yield Check(False, case.say("check.few_groups", n=n, by=by, least=MIN_GROUPS))
    costs = [result.cost for result in case.results]
    budgets = {
        "tokens": [float(cost.tokens) for cost in costs],
        "flops": [cost.flops for cost in costs],
        "seconds": [cost.training_s for cost in costs],
    }
    equal = [unit for unit, values in budgets.items() if max(values) <= 1.05 * min(values)]
    what = case.say(f"unit.{equal[0]}") if equal else ""
    yield case.line(bool(equal), "one_budget", "other_budget", what=what)


def _pruning(case: Case) -> Iterator[Check]:
    # What the exposure sampler has paused, with a draw as the reason, counts in its certainty.
    trials = [t for t in case.report.trials if not (t.judged and "why" in t.judged[-1])]
    if not any(trial.state == "PRUNED" for trial in trials):
        return
    error = probability_of_stopping_the_best(trials)
    if math.isnan(error):
        yield Check(False, case.say("check.pruner_unknown", n=MIN_FOR_REGRESSION))
    else:
        words = case.say("check.pruner", probability=case.say.probability(error))
        yield Check(error <= MAX_PRUNER_ERROR, words)


def _versions(case: Case) -> Iterator[Check]:
    one = len({tuple(sorted(result.versions.items())) for result in case.results}) == 1
    yield case.line(one, "one_version", "other_versions")


def _seeds(case: Case) -> Iterator[Check]:
    comparison, say = case.report.comparison, case.say
    if comparison is None or not comparison.differences:
        yield Check(False, say("check.no_comparison"))
        return
    seeds = min(d.seeds for d in comparison.differences)
    yield case.line(seeds >= MIN_SEEDS, "seeds", "few_seeds", n=seeds)
    undecided = [d for d in comparison.differences if d.verdict == "undecided"]
    for what, pairs in grouped(undecided, lambda d: what_would_decide(d, say)).items():
        names = say.join([d.arm for d in pairs])
        words = say("check.undecided", baseline=comparison.baseline, names=names, what=what)
        yield Check(False, words)
    if not undecided:
        groups = comparison.differences[0].few_groups
        few = "" if groups is None else say("verdict.few", n=groups)
        yield Check(True, say("check.decided", level=f"{100 * comparison.level:g}", few=few))


def _confirmed(case: Case) -> Iterator[Check]:
    selection, trial = case.report.selection, case.choice.trial
    if selection is None or trial is None or case.choice.learned_nothing:
        return
    if runs := len(case.choice.runs):
        yield Check(runs > 1, case.say("check.arm_runs", n=runs))
        return
    chosen = selection.candidate(trial.number)
    if chosen and chosen.confirmation:
        yield Check(True, case.say("check.confirmed", n=chosen.confirmation.seeds))
    elif chosen and chosen.runs > 1:
        yield Check(True, case.say("check.repeated", n=chosen.runs))
    else:
        yield Check(False, case.say("check.not_confirmed"))


def _domains(case: Case) -> Iterator[Check]:
    kinds = [condition.kind for condition in scores_by_condition(case.results[:1])]
    domains, missing, best = kinds.count("domain"), kinds.count("missing"), case.choice.searched
    if not domains:
        yield Check(False, case.say("check.no_domains"))
    else:
        lowest = worst_domain([best.require_result()]) if best else None
        worst = case.say("check.worst", domain=lowest[0]) if lowest else ""
        yield Check(True, case.say("check.domains", n=domains, worst=worst))
    if missing:
        yield Check(True, case.say("check.missing", n=missing))


def _kpi(case: Case) -> Iterator[Check]:
    kpi = case.report.kpi
    if case.choice.searched is None:
        return  # only the trials of a search have a KPI
    if kpi is None:
        yield Check(False, case.say("check.no_kpi"))
        return
    wanted = ("lml", "spearman")
    found = next((c for c in kpi.correlations if (c.predictor, c.statistic) == wanted), None)
    if found is None or found.value is None or found.low is None:
        yield Check(False, case.say("check.kpi_few", name=kpi.name, n=kpi.trials))
        return
    yield case.line(
        found.low > 0,
        "kpi",
        "kpi_open",
        name=kpi.name,
        value=minus(found.value, 2),
        low=minus(found.low, 2),
        high=minus(found.high if found.high is not None else 1.0, 2),
    )


CHECKS: tuple[Checker, ...] = (
    _data, _scores, _pruning, _versions, _seeds, _confirmed, _domains, _kpi,
)  # fmt: skip
