"""`Report`: the results of one study as plain values, made from its trials and their scores.

A `Report` survives `model_dump_json` and `model_validate_json`. The views (HTML, Markdown, JSON,
terminal) read nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from mptune.analysis.comparison import (
    Asked,
    ComparisonReport,
    Scores,
    chosen_policy,
    comparison_report,
)
from mptune.analysis.kpi import KpiReport, kpi_report
from mptune.analysis.prediction import Prediction, prediction
from mptune.analysis.selection import SearchSelection, recommended, score_of, select_trial
from mptune.analysis.sizes import BySize, by_size
from mptune.errors import InputError, NoResultError
from mptune.spec.schema import SearchSpec, build
from mptune.status import Outlook
from mptune.trial import LMLScore, Message, Prepared, Trial, TrialResult, TrialSpec

PROFILE_STEPS, PROFILE_LENGTH = 16, 512
"""Steps of progress, and most positions, of the mask rates that a report shows."""


class TotalSpend(Message):
    """What the whole study took, its comparison included.

    Attributes:
        trials: runs that were trained, in whatever state they ended.
        tokens: positions processed in training.
        worker_s: seconds of work, times the workers of each trial.
        wall_s: seconds from first start to last end.
    """

    trials: int = 0
    tokens: int = 0
    flops: float = 0.0
    worker_s: float = 0.0
    wall_s: float | None = None


class Importance(Message):
    """How much of the score one dimension of the search decides.

    Attributes:
        name: the dimension, e.g. `policy.0.rate`.
        share: of all dimensions that were judged; they sum to 1.
        trials: finished trials that it rests on.
    """

    name: str
    share: float
    trials: int


@dataclass(frozen=True)
class Recommendation:
    """What a run recommends: every command, view and method takes it from here.

    Attributes:
        selection: the choice of the search; None if none of its trials is scored.
        comparison: of the arms; None if there is none.
        searched: the trial that the search recommends; None if none of its trials has finished.
        trial: a trial of the recommended policy: `searched`, unless an arm beat its policy on
            paired seeds (`chosen_policy`); None if nothing has finished.
        baseline: the best of `Prepared.baselines`, which a model that has learned something is
            above: its name and its score; None if there is none.
    """

    selection: SearchSelection | None
    comparison: ComparisonReport | None
    searched: Trial | None
    trial: Trial | None
    baseline: tuple[str, float] | None

    @classmethod
    def of(
        cls,
        trials: Sequence[Trial],
        selection: SearchSelection | None,
        comparison: ComparisonReport | None,
        prepared: Prepared | None,
    ) -> Recommendation:
        """The choice among the trials of a search and the arms of a comparison."""
        searched = recommended(selection, trials) if any(t.finished for t in trials) else None
        baselines = (prepared.baselines if prepared else {}).items()
        baseline = max(baselines, key=lambda each: each[1], default=None)
        return cls(selection, comparison, searched, chosen_policy(searched, comparison), baseline)

    @property
    def runs(self) -> list[Trial]:
        """Finished trials of the recommended arm; empty if a trial of the search is recommended."""
        if self.comparison is None or self.trial is None or self.trial is self.searched:
            return []
        return self.comparison.finished(self.trial.arm or "")

    @property
    def score(self) -> tuple[float, float]:
        """What to expect of the choice and the half-width of its 95 % interval, nats per token.

        See `score_of`; of an arm, the mean over its seeds and NaN; both NaN if nothing has
        finished.
        """
        if self.searched is not None and not self.runs:
            return score_of(self.selection, self.searched)
        scores = [run.nats_per_token for run in self.runs]
        return (math.fsum(scores) / len(scores) if scores else math.nan), math.nan

    @property
    def learned_nothing(self) -> bool:
        """Whether the score of the choice is not above that of the best model that only counts."""
        return self.baseline is not None and self.score[0] <= self.baseline[1]

    def best(self) -> Trial:
        """The trial of the recommended policy.

        Raises:
            NoResultError: no trial has finished.
        """
        if self.trial is None:
            raise NoResultError("no trial has finished, so there is nothing to recommend")
        return self.trial


class Report(Message):
    """Everything that a report shows.

    Attributes:
        data: the data in one line of text.
        selection: the choice of the whole search.
        outlook: how sure the search was at its end; None where nothing was searched.
        prediction: of the sampler's surrogate; None with another sampler.
        by_size: None with fewer than two sizes.
        kpi: None without score.kpi.
        importance: by share, largest first; empty with too few trials.
        commands: what replays the study.
        created: time of the report, ISO 8601.
    """

    study: str
    data: str
    prepared: Prepared | None = None
    trials: tuple[Trial, ...] = ()
    comparison: ComparisonReport | None = None
    selection: SearchSelection | None = None
    outlook: Outlook | None = None
    prediction: Prediction | None = None
    by_size: BySize | None = None
    kpi: KpiReport | None = None
    importance: tuple[Importance, ...] = ()
    spend: TotalSpend = TotalSpend()
    plan_hash: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    commands: tuple[str, ...] = ()
    created: str = ""

    @property
    def scored(self) -> LMLScore | None:
        """The score of the first finished trial or run of an arm; None if nothing has finished."""
        arms = self.comparison.arms.values() if self.comparison else ()
        results = (trial.result for trials in (self.trials, *arms) for trial in trials)
        return next((result.lml for result in results if result is not None), None)

    def choice(self) -> Recommendation:
        """What the study recommends."""
        return Recommendation.of(self.trials, self.selection, self.comparison, self.prepared)


@dataclass(frozen=True, kw_only=True)
class StudyTrials:
    """What the trials of a study have measured.

    Attributes:
        prepared: of the search; None before the data are prepared.
        searched, confirmed, compared: the trials of the three stages, in order of number; for a
            report, those of the search with their KPI.
        tried: the trials of the ladder, which count as spent.
        asked: the comparison that was run last.
        scores: the stored per-sequence scores of a trial.
    """

    prepared: Prepared | None
    searched: Sequence[Trial]
    confirmed: Sequence[Trial] = ()
    compared: Sequence[Trial] = ()
    tried: Sequence[Trial] = ()
    asked: Asked | None = None
    scores: Scores

    def arms(self) -> Mapping[str, Sequence[Trial]]:
        """The trials of the arms that were compared last."""
        return self.asked.arms(self.compared) if self.asked else {}


def choose(spec: SearchSpec, found: StudyTrials) -> Recommendation:
    """What a study recommends."""
    prepared, scores = found.prepared, found.scores
    rule = spec.search.choose_by
    selection = select_trial(found.searched, found.confirmed, found.arms(), prepared, scores, rule)
    comparison = comparison_report(found.asked, found.compared, prepared, scores)
    return Recommendation.of(found.searched, selection, comparison, prepared)


def build_report(
    spec: SearchSpec,
    found: StudyTrials,
    *,
    extrapolate_to: Sequence[float] | None = None,
    importances: Mapping[str, float] | None = None,
    outlook: Outlook | None = None,
    wall_s: float | None = None,
    commands: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
    created: str = "",
) -> Report:
    """The results of a study.

    Args:
        extrapolate_to: sizes at which the laws over size are evaluated; default: the spec's.
        importances: dimension -> its share of the score, largest first.
        outlook: with which the search ended.
        wall_s: seconds that drivers have run.
        commands: what replays the study.
        versions: of the packages installed here; those of the first result take precedence.
        created: time of the report, ISO 8601.
    """
    prepared, searched, compared = found.prepared, found.searched, found.compared
    everything = (*searched, *found.confirmed, *found.tried, *compared)
    trained = [t for t in everything if t.state not in ("WAITING", "RUNNING") and t.same_as is None]
    results = [trial.result for trial in trained if trial.result is not None]
    choice = choose(spec, found)
    sizes = spec.search.extrapolate_to if extrapolate_to is None else extrapolate_to
    predicted: Prediction | None = None
    if prepared and spec.search.sampler.kind == "exposure" and choice.searched:
        predicted = prediction(searched, choice.searched, prepared.length)
    ran = [trial for trial in searched if trial.state != "WAITING"]
    complete = [trial for trial in ran if trial.state == "COMPLETE"]
    score = spec.score
    return Report(
        study=spec.name,
        data=prepared.description if prepared else build("data", spec.data).words(),
        prepared=_without_folders(prepared) if prepared else None,
        trials=tuple(t.model_copy(update={"mask_rates": mask_rates(t.spec)}) for t in ran),
        comparison=choice.comparison,
        selection=choice.selection,
        outlook=outlook,
        prediction=predicted,
        by_size=by_size((*searched, *compared), sizes),
        kpi=kpi_report(score.kpi, searched, score.kpi_higher_is_better) if score.kpi else None,
        spend=spend(results, trials=len(trained), wall_s=wall_s),
        importance=tuple(
            Importance(
                name=name,
                share=share,
                trials=sum(name in t.params for t in complete),
            )
            for name, share in (importances or {}).items()
        ),
        plan_hash=prepared.plan_hash if prepared else "",
        versions={**(versions or {}), **(results[0].versions if results else {})},
        commands=tuple(commands),
        created=created,
    )


def _without_folders(prepared: Prepared) -> Prepared:
    """A report is shared with people who are not to know where its data are."""
    names = {"table": Path(prepared.table).name, "plan": Path(prepared.plan).name}
    return prepared.model_copy(update=names)


def spend(
    results: Iterable[TrialResult], *, trials: int | None = None, wall_s: float | None = None
) -> TotalSpend:
    """Sum of what these results cost; `trials` counts also those that left no result."""
    costs = [result.cost for result in results]
    return TotalSpend(
        trials=len(costs) if trials is None else trials,
        tokens=sum(cost.tokens - cost.shared[0] for cost in costs),
        flops=sum(cost.flops - cost.shared[1] for cost in costs),
        worker_s=sum(cost.total_s * cost.workers for cost in costs),
        wall_s=wall_s,
    )


def mask_rates(spec: TrialSpec | None) -> tuple[tuple[float, float, float], ...]:
    """Quantile 0.05, mean and quantile 0.95 of the trial's mask rate at steps of progress.

    Empty without a spec, and where the policy is a plugin that is not installed here.
    """
    if spec is None:
        return ()
    length = min(spec.prepared.length, PROFILE_LENGTH)
    try:
        policy = build("policy", spec.policy)
    except InputError:
        return ()
    rates_M = np.arange(1, length + 1) / length
    found = []
    for step in range(PROFILE_STEPS):
        q_M = policy.pmf(length, (step + 0.5) / PROFILE_STEPS)
        below, above = np.searchsorted(q_M.cumsum(), (0.05, 0.95))
        found.append((float(rates_M[below]), float(rates_M @ q_M), float(rates_M[above])))
    return tuple(found)


@dataclass(frozen=True)
class Outcomes:
    """How the trials of the search ended, or those of the arms where nothing was searched."""

    all: int
    finished: int
    failed: int
    pruned: int
    repeated: int = 0
    """Finished trials at a point that an earlier one was trained at; their score is its score."""

    @classmethod
    def of(cls, report: Report) -> Outcomes:
        """Counted from the report."""
        trials = report.trials
        if not trials and report.comparison is not None:
            arms = report.comparison.arms.values()
            trials = tuple(t for arm in arms for t in arm if t.result or t.state == "FAIL")
        states = [trial.state for trial in trials]
        finished = sum(trial.finished for trial in trials)
        repeated = sum(t.finished and t.same_as is not None for t in trials)
        return cls(len(trials), finished, states.count("FAIL"), states.count("PRUNED"), repeated)
