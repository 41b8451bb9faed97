"""Pruners: Optuna's, among trials of one size, and one that predicts how a trial would end."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Container, Hashable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mptune.analysis.pruning import DRAWS, Contest, Curve, FloatArray
from mptune.spec.schema import Search
from mptune.study.optuna_private import set_stored_attribute, with_trials
from mptune.study.records import JUDGED, JUDGED_BY, ONE, STEPS, as_paused, is_paused, step_of

if TYPE_CHECKING:
    from mptune.study.exposure import ExposureSampler

MIN_TO_PAUSE = 6
"""Fewest finished trials of a size with a score at the rung before the predictive pruner stops any:
fewer say too little about how often curves cross."""

SHARE = 0.25
"""Part of what is left of the error that one decision may use."""


class Paused(NamedTuple):
    """A trial that was stopped at a rung, and its score there."""

    trial: FrozenTrial
    step: int
    score: float


class PausingPruner(optuna.pruners.BasePruner):
    """Stops trials at a checkpoint, and says when they go on; `JUDGED` has its decisions."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial stops at the last step that it reported; asking again changes nothing.

        The progress of the decision is the step in thousandths.
        """
        judged, step = trial.user_attrs.get(JUDGED, []), trial.last_step
        if step is None:
            return False
        if not judged or judged[-1]["progress"] < step / STEPS:
            others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
            judged = [*judged, self.judge(study, trial, step, others)]
            set_stored_attribute(study, trial, JUDGED, judged)
            trial.user_attrs[JUDGED] = judged
        return bool(judged[-1]["decision"] == "pause")

    @abstractmethod
    def judge(
        self, study: optuna.Study, trial: FrozenTrial, step: int, others: list[FrozenTrial]
    ) -> dict[str, Any]:
        """The decision about a trial at a rung, see `JUDGED`."""

    @abstractmethod
    def to_continue(
        self, study: optuna.Study, among: Container[int] | None = None, *, may_ask: bool = True
    ) -> tuple[int, dict[str, Any]] | None:
        """The number of a stopped trial that should go on, and the decision; None if none should.

        Args:
            among: numbers of the trials that are stopped; default: all that were.
            may_ask: whether a new trial could run instead.
        """


class PredictivePruner(PausingPruner):
    """Stops a trial that is unlikely to end near the best, and may let it go on later.

    Usable with any Optuna study of one objective whose trials report at the same steps:

        study = optuna.create_study(direction="maximize", pruner=mptune.PredictivePruner())

    From the finished trials of the same size it computes the probability that the trial's policy is
    within `delta` of the best one, given its score at the rung (`mptune.analysis.pruning`): how
    often curves cross, and what training seeds do, is estimated from those trials. Trials with the
    same parameters are taken for other seeds of one point.

    A trial is stopped if that probability is less than a quarter of what is left of `error`: that
    minus the probability that the best is among the trials that are stopped already, divided by the
    number of trials that run at the same time. By its own estimate, the probability of having
    stopped the best is then at most `error` at each decision; `to_continue` says when later results
    raise it. None is stopped before six trials of its size have
    finished. What was decided is in the user attribute `judged` (`mptune.study.records.JUDGED`).
    """

    def __init__(
        self,
        *,
        error: float = 0.05,
        margin: float = 0.0,
        size: Callable[[FrozenTrial], Hashable] = lambda trial: None,
    ) -> None:
        """A pruner without a history of its own.

        Args:
            error: probability of stopping the best trial of a size, in all.
            margin: difference of scores that does not matter; half a standard deviation of the
                difference between two seeds does not matter either.
            size: trials are compared with those of the same size; default: all are of one size.
        """
        self._error, self._margin, self._size = error, margin, size

    def to_continue(
        self, study: optuna.Study, among: Container[int] | None = None, *, may_ask: bool = True
    ) -> tuple[int, dict[str, Any]] | None:
        """The stopped trial that should go on; None while the best is hardly among those stopped.

        With what is known now, the best may be among them with more than the probability `error`:
        the best so far turned out worse, or curves to cross more often. Then it is the one that is
        most likely to be near the best.

        Args:
            among: numbers of the trials that are stopped; default: all that were.

        Returns:
            Its number, and the decision as in `JUDGED`.
        """
        trials = study.get_trials(deepcopy=False)
        for size in dict.fromkeys(self._size(trial) for trial in trials):
            own = [trial for trial in trials if self._size(trial) == size]
            paused = list(_paused(own, -1, among))
            contest = self._contest(study, own)
            if not paused or contest is None:
                continue
            chance_ZR = self._chances(study, contest, paused)
            if _total(chance_ZR) > self._error:
                chosen = int(chance_ZR.mean(0).argmax())
                trial, step, _ = paused[chosen]
                numbers = self._numbers(study, contest, step, float(chance_ZR[:, chosen].mean()))
                return trial.number, {
                    "decision": "continue",
                    **numbers,
                    "threshold": self._error,
                }
        return None

    def judge(
        self, study: optuna.Study, trial: FrozenTrial, step: int, others: list[FrozenTrial]
    ) -> dict[str, Any]:
        stopped = {paused.trial.number for paused in _paused(others, -1)}
        running = (t.number for t in others if t.state == TrialState.RUNNING)
        beside = [number for number in running if number not in stopped]
        if (known := trial.user_attrs.get(JUDGED_BY)) is not None:
            beside = known["beside"]
        others = _known(trial, others)
        own = [t for t in others if self._size(t) == self._size(trial)]
        contest = self._contest(study, own)
        if contest is None or len(contest.pairs(step)) < MIN_TO_PAUSE:
            finished = 0 if contest is None else len(contest.pairs(step))
            nothing = dict.fromkeys(("probability", "threshold", "best", "delta"))
            return {"decision": "go on", "progress": step / STEPS, **nothing, "finished": finished}
        paused = [*_paused(own, 0), Paused(trial, step, trial.intermediate_values[step])]
        chance_ZR = self._chances(study, contest, paused)
        probability = float(chance_ZR[:, -1].mean())
        left = max(0.0, self._error - _total(chance_ZR[:, :-1]))
        threshold = SHARE * left / (1 + len(beside))
        return {
            "decision": "pause" if probability < threshold else "go on",
            **self._numbers(study, contest, step, probability),
            "threshold": threshold,
        }

    def _contest(self, study: optuna.Study, trials: list[FrozenTrial]) -> Contest | None:
        """What the finished ones of these trials say; None of fewer than six."""
        sign = _sign(study)
        finished = [
            Curve(
                frozenset(t.params.items()),
                {step: sign * score for step, score in t.intermediate_values.items()},
                sign * float(t.value),
            )
            for t in trials
            if t.state == TrialState.COMPLETE and t.value is not None and np.isfinite(t.value)
            if "same_as" not in t.user_attrs
        ]
        return Contest.of(finished, self._margin) if len(finished) >= MIN_TO_PAUSE else None

    def _chances(self, study: optuna.Study, contest: Contest, paused: list[Paused]) -> FloatArray:
        """Probability of each to be within delta of the best, by draws [Z, R]."""
        step_R = np.array([each.step for each in paused])
        score_R = _sign(study) * np.array([each.score for each in paused])
        chance_ZR = np.zeros((DRAWS, len(paused)))
        for step in set(step_R.tolist()):
            chance_ZR[:, step_R == step] = contest.chances(step, score_R[step_R == step])
        return chance_ZR

    def _numbers(
        self, study: optuna.Study, contest: Contest, step: int, probability: float
    ) -> dict[str, Any]:
        return {
            "progress": step / STEPS,
            "probability": probability,
            "best": _sign(study) * max(curve.final for curve in contest.finished),
            "delta": contest.delta,
            "finished": len(contest.pairs(step)),
        }


class FreezeThawPruner(PausingPruner):
    """Pauses trials, and lets them go on, as an `ExposureSampler` decides.

    Whenever a trial reports before its end, the sampler draws again what to run: the trial goes on
    if its policy is the best in the draw. A search so runs many policies for a while, and few to
    their end. It needs a loop that continues paused trials, as the search has.
    """

    def __init__(self, sampler: ExposureSampler) -> None:
        self._sampler = sampler

    def judge(
        self, study: optuna.Study, trial: FrozenTrial, step: int, others: list[FrozenTrial]
    ) -> dict[str, Any]:
        left = trial.user_attrs.get(JUDGED_BY, {}).get("left", math.inf) - step / STEPS
        known = _known(trial, others)
        # Of the paused trials, those that could be trained to their end instead.
        paused = {t.number: t.user_attrs[JUDGED] for t in known if is_paused(t)}
        able = [n for n, judged in paused.items() if left + judged[-1]["progress"] >= ONE]
        may_ask = left >= ONE
        goes_on, why = self._sampler.goes_on(study, trial, known, able, may_ask=may_ask)
        return {"decision": "go on" if goes_on else "pause", "progress": step / STEPS, "why": why}

    def to_continue(
        self, study: optuna.Study, among: Container[int] | None = None, *, may_ask: bool = True
    ) -> tuple[int, dict[str, Any]] | None:
        paused = {
            p.trial.number: p.step for p in _paused(study.get_trials(deepcopy=False), -1, among)
        }
        found = self._sampler.to_continue(study, paused, may_ask=may_ask) if paused else None
        if found is None:
            return None
        number, why = found
        return number, {"decision": "continue", "progress": paused[number] / STEPS, "why": why}


def _known(trial: FrozenTrial, others: list[FrozenTrial]) -> list[FrozenTrial]:
    """The others that a trial is judged by, as they were when it was launched; see `JUDGED_BY`."""
    known = trial.user_attrs.get(JUDGED_BY)
    if known is None:
        return others
    found = []
    for other in others:
        if other.number in known["beside"] or other.number >= known["below"]:
            continue
        until = known["paused"].get(str(other.number))
        if until is not None:
            other = as_paused(other, until)
        found.append(other)
    return found


def _paused(
    trials: list[FrozenTrial], which: int, among: Container[int] | None = None
) -> Iterator[Paused]:
    """Trials that were stopped and have not finished since, at the `which` time that they were."""
    for trial in trials:
        judged = trial.user_attrs.get(JUDGED, [])
        stops = [found["progress"] for found in judged if found["decision"] == "pause"]
        ended = trial.state in (TrialState.COMPLETE, TrialState.FAIL)
        if stops and not ended and (among is None or trial.number in among):
            step = step_of(stops[which])
            yield Paused(trial, step, trial.intermediate_values[step])


def _total(chance_ZR: FloatArray) -> float:
    """Probability that one of the trials at least is within delta of the best."""
    return float(1 - (1 - chance_ZR).prod(axis=1).mean())


def _sign(study: optuna.Study) -> float:
    return 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0


class _WithinSize(optuna.pruners.BasePruner):
    """Compares a trial with trials of its own model size: others learn at another pace."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        pruner: Any = super()
        own = with_trials(study, lambda other: _size(other) == _size(trial))
        return bool(pruner.prune(own, trial))


class MedianWithinSize(_WithinSize, optuna.pruners.MedianPruner):
    """Optuna's median pruner among trials of one model size."""


class HalvingWithinSize(_WithinSize, optuna.pruners.SuccessiveHalvingPruner):
    """Optuna's successive halving among trials of one model size."""


class HyperbandWithinSize(_WithinSize, optuna.pruners.HyperbandPruner):
    """Optuna's Hyperband among trials of one model size."""


def make_pruner(
    search: Search, length: float, exposure: ExposureSampler | None = None
) -> optuna.pruners.BasePruner:
    """The pruner that the spec names, among trials of one size.

    All trials of a study have the same training budget.

    Args:
        length: mean number of observed positions of a sequence.
        exposure: the sampler, if it is of this kind.
    """
    pruner = search.pruner
    first = step_of(search.rungs[0]) if search.rungs else 1
    match search.pruning:
        case "none":
            return optuna.pruners.NopPruner()
        case "freeze_thaw":
            assert exposure is not None
            return FreezeThawPruner(exposure)
        case "predictive":
            # One nat per sequence does not matter.
            return PredictivePruner(error=search.error, margin=1 / length, size=_size)
        case "median":
            return MedianWithinSize(n_startup_trials=pruner.startup_trials)
        case "halving":
            return HalvingWithinSize(min_resource=first)
        case _:
            return HyperbandWithinSize(min_resource=first, max_resource=STEPS)


def _size(trial: FrozenTrial) -> Hashable:
    """The trial's choices and whole numbers of the model section; a real number, such as the
    dropout rate, would make every trial the only one of its size."""
    return tuple(
        (name, trial.params[name])
        for name, dimension in sorted(trial.distributions.items())
        if name.split(".")[0] == "model" and not isinstance(dimension, FloatDistribution)
    )
