"""What to check before adopting the recommendation: a checklist filled in from the run.

A new check is one function, listed in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mptune.analysis.comparison import ComparisonReport
from mptune.analysis.kpi import Correlation, KpiReport
from mptune.analysis.results import Outcomes, Report
from mptune.analysis.robustness import RobustnessRow
from mptune.report.formatting import minus
from mptune.report.language import Language
from mptune.trial import Trial, TrialResult

MIN_FORWARDS = 100
"""Below this many forwards an interval is not to be trusted (racing experiments)."""

MIN_SEEDS = 3

MIN_HELDOUT = 100
"""Fewer held-out sequences leave intervals too wide to tell policies apart."""


@dataclass(frozen=True)
class Check:
    """One line of the checklist: what holds, or what is missing and how to get it."""

    ok: bool
    words: str


@dataclass(frozen=True)
class Case:
    """What a check looks at.

    Attributes:
        report: all of it.
        results: of the finished trials, or of the arms' runs where nothing was searched.
        best: the recommended trial; None where nothing was searched.
        say: the language.
    """

    report: Report
    results: Sequence[TrialResult]
    best: Trial | None
    say: Language


Checker: TypeAlias = Callable[[Case], Iterator[Check]]


def checklist(
    report: Report, best: Trial | None, ranked: Sequence[Trial], say: Language
) -> Iterator[Check]:
    """Every check that applies, in order."""
    yield _finished(report, say)
    results = [trial.require_result() for trial in ranked]
    if not report.trials:
        results = _results_of_arms(report.comparison)
    if not results:
        return
    case = Case(report, results, best, say)
    for check in CHECKS:
        yield from check(case)


def _finished(report: Report, say: Language) -> Check:
    ended = Outcomes.of(report)
    words = say(
        "check.some_failed" if ended.failed else "check.none_failed",
        finished=ended.finished,
        n=ended.all,
        pruned=ended.pruned,
        failed=ended.failed,
    )
    return Check(ended.finished > 0 and not ended.failed, words)


def _data(case: Case) -> Iterator[Check]:
    prepared = case.report.prepared
    if prepared is None:
        yield Check(False, case.say("check.no_data"))
        return
    yield from (
        Check(False, case.say("check.data_warning", warning=warning))
        for warning in prepared.warnings or ()
    )
    enough = prepared.heldout_sequences >= MIN_HELDOUT
    inspected = "check.data" if prepared.warnings is None else "check.inspected_data"
    yield Check(
        enough,
        case.say(
            inspected if enough else "check.few_heldout",
            hash=prepared.table_hash[:12],
            train=f"{prepared.train_sequences:,}",
            heldout=f"{prepared.heldout_sequences:,}",
        ),
    )


def _plan(case: Case) -> Iterator[Check]:
    report = case.report
    results = [t.result for t in report.trials if t.result is not None]
    results += _results_of_arms(report.comparison)
    hashes = {result.lml.plan_hash for result in results} | {report.plan_hash}
    one = len(hashes) == 1
    yield Check(one, case.say("check.one_plan" if one else "check.other_plan"))


def _results_of_arms(comparison: ComparisonReport | None) -> list[TrialResult]:
    arms = comparison.arms.values() if comparison else ()
    return [trial.result for arm in arms for trial in arm if trial.result is not None]


def _forwards(case: Case) -> Iterator[Check]:
    least = min(result.lml.forwards for result in case.results)
    enough = least >= MIN_FORWARDS
    yield Check(enough, case.say("check.forwards" if enough else "check.few_forwards", least=least))


def _budget(case: Case) -> Iterator[Check]:
    costs = [result.cost for result in case.results]
    budgets = {
        "tokens": [float(cost.tokens) for cost in costs],
        "flops": [cost.flops for cost in costs],
        "seconds": [cost.training_s for cost in costs],
    }
    equal = [what for what, values in budgets.items() if max(values) <= 1.05 * min(values)]
    if equal:
        yield Check(True, case.say("check.one_budget", what=case.say(f"unit.{equal[0]}")))
    else:
        yield Check(False, case.say("check.other_budget"))


def _versions(case: Case) -> Iterator[Check]:
    one = len({tuple(sorted(result.versions.items())) for result in case.results}) == 1
    yield Check(one, case.say("check.one_version" if one else "check.other_versions"))


def _seeds(case: Case) -> Iterator[Check]:
    comparison = case.report.comparison
    if comparison is None or not comparison.differences:
        yield Check(False, case.say("check.no_comparison"))
        return
    seeds = min(d.seeds for d in comparison.differences)
    enough = seeds >= MIN_SEEDS
    yield Check(enough, case.say("check.seeds" if enough else "check.few_seeds", n=seeds))
    yield _decided(comparison, case.say)


def _decided(comparison: ComparisonReport, say: Language) -> Check:
    undecided = [d.arm for d in comparison.differences if d.verdict == "undecided"]
    if undecided:
        names = say.join(undecided)
        return Check(False, say("check.undecided", baseline=comparison.baseline, names=names))
    return Check(True, say("check.decided", level=f"{100 * comparison.level:g}"))


def _confirmed(case: Case) -> Iterator[Check]:
    selection = case.report.selection
    if selection is None:
        return
    chosen = selection.candidate(selection.recommended)
    found = chosen.confirmation if chosen else None
    if found is None:
        yield Check(False, case.say("check.not_confirmed"))
    else:
        yield Check(True, case.say("check.confirmed", n=found.seeds))


def _domains(case: Case) -> Iterator[Check]:
    robustness = case.report.robustness
    domains = [c for c in robustness.conditions if c.kind == "domain"] if robustness else []
    missing = [c for c in robustness.conditions if c.kind == "missing"] if robustness else []
    if not domains:
        yield Check(False, case.say("check.no_domains"))
    else:
        row = _row_of(case)
        worst = case.say("check.worst", domain=row.worst_domain) if row and row.worst_domain else ""
        yield Check(True, case.say("check.domains", n=len(domains), worst=worst))
    if missing:
        yield Check(True, case.say("check.missing", n=len(missing)))


def _row_of(case: Case) -> RobustnessRow | None:
    rows = case.report.robustness.rows if case.report.robustness else ()
    if case.best is None:
        return None
    number = case.best.number
    return next((r for r in rows if r.trial == number), None)


def _kpi(case: Case) -> Iterator[Check]:
    kpi = case.report.kpi
    if case.best is None:
        return  # it is measured on the trials of a search
    if kpi is None:
        yield Check(False, case.say("check.no_kpi"))
        return
    found = spearman(kpi)
    if found is None or found.value is None or found.low is None:
        yield Check(False, case.say("check.kpi_few", name=kpi.name, n=kpi.trials))
        return
    certain = found.low > 0
    words = case.say(
        "check.kpi" if certain else "check.kpi_open",
        name=kpi.name,
        value=minus(found.value, 2),
        low=minus(found.low, 2),
        high=minus(found.high if found.high is not None else 1.0, 2),
    )
    yield Check(certain, words)


def spearman(kpi: KpiReport) -> Correlation | None:
    """Spearman's correlation of the LML with the KPI."""
    wanted = ("lml", "spearman")
    return next((c for c in kpi.correlations if (c.predictor, c.statistic) == wanted), None)


CHECKS: tuple[Checker, ...] = (
    _data, _plan, _forwards, _budget, _versions, _seeds, _confirmed, _domains, _kpi,
)  # fmt: skip
