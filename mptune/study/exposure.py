"""An Optuna sampler that searches mask policies by their exposure.

`mptune.analysis.exposure` predicts the score of every policy from what has been run, with what is
not known of it. Each decision is one draw from that prediction (Thompson sampling): of all
candidates the one that is best in the draw is run. Candidates are random points of the space,
neighbours of the best trials, and the trials so far, which are preferred unless a new policy is
better in the draw by a margin, so that budget goes where the doubt is: a trial that has finished is
run again with another seed, and one that was paused goes on.

A decision is also made whenever a trial reports a score before its end: it goes on if its policy is
the best in the draw, and is paused otherwise (freeze-thaw: Swersky, Snoek and Adams 2014, arXiv
1406.3896). `mptune.study.pruners.FreezeThawPruner` has these.

Every decision is a function of the seed and of the trials so far.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite, log
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from mptune.analysis.exposure import (
    BANDS,
    COUNTS,
    Exposed,
    Points,
    Surrogate,
    differ,
    distances,
    same,
)
from mptune.analysis.learning import ScoredRun, evidence_of_runs
from mptune.analysis.moderation import SEED_SHARE
from mptune.analysis.ranking import first_of_each
from mptune.errors import InputError
from mptune.spec.space import Suggests
from mptune.study.optuna_private import TPESampler, set_stored_attribute, trial_seed
from mptune.study.records import ASKED, CURVE, JUDGED, STEPS, is_paused

Tree = Mapping[str, Any]

START: Sequence[Tree] = (
    {"kind": "fixed", "rate": 0.15},
    {"kind": "uniform"},
    {"kind": "beta", "a": 2, "b": 5},
    {"kind": "linear", "start": 0.5, "end": 0.15},
)
"""Policies that a search begins with: the nearest ones in the space."""

NEAR = 0.08
"""Mean difference of mask rates up to which a policy of the space stands for one of `START`."""

RANDOM, PARENTS, NEIGHBOURS = 128, 3, 32
"""Candidates: RANDOM random points, and NEIGHBOURS changes of each of the PARENTS best trials."""

BEGUN = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED)

MOST_TRIED = 48
"""Best policies so far that may be run again or go on."""

MIN_TO_PREDICT = 3
"""Fewest trials with a score for a prediction."""

MIN_FINISHED = 6
"""Fewest policies with a finished trial before any is run with another seed: from the curves of one
or two, the law would extrapolate to all others."""

NEW_MARGIN = 0.5
"""A new policy is run if it is better in the draw by this share of what does not matter."""


class Suggestions:
    """Answers as an Optuna trial does: with known values, with changed ones, or at random."""

    def __init__(self, rng: np.random.Generator | None, known: Tree, parent: Tree) -> None:
        """`known` values are used as they are; without `rng`, others raise a KeyError.

        A third of the values of the `parent` are changed: numbers by about a tenth of their range.
        """
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}
        self._rng, self._known, self._parent = rng, known, parent

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._suggest(name, CategoricalDistribution(choices))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> Any:
        return self._suggest(name, IntDistribution(low, high, log, step))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> Any:
        return self._suggest(name, FloatDistribution(low, high, log, step))

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._known or self._rng is None:
            value = self._known[name]
        elif name not in self._parent:
            value = at_share(distribution, self._rng.random())
        else:
            value = self._parent[name]
            if self._rng.random() < 1 / 3:
                is_choice = isinstance(distribution, CategoricalDistribution)
                step = 0.1 * self._rng.standard_normal()
                share = self._rng.random() if is_choice else share_of(distribution, value) + step
                value = at_share(distribution, min(max(share, 0.0), 1.0))
        self.params[name], self.distributions[name] = value, distribution
        return value


def at_share(distribution: BaseDistribution, share: float) -> Any:
    """The value of a dimension at a share in [0, 1] of its range."""
    if isinstance(distribution, CategoricalDistribution):
        count = len(distribution.choices)
        return distribution.choices[min(int(share * count), count - 1)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    value = low * (high / low) ** share if distribution.log else low + (high - low) * share
    if step is not None:
        value = low + step * round((value - low) / step)
    value = min(max(value, low), high)
    return int(value) if isinstance(distribution, IntDistribution) else float(value)


def share_of(distribution: BaseDistribution, value: Any) -> float:
    """Where a number is in the range of its dimension, 0 to 1."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    if low == high:
        return 0.0
    share = log(value / low) / log(high / low) if distribution.log else (value - low) / (high - low)
    return float(share)


@dataclass(frozen=True, eq=False)
class Place:
    """A point of the space, as Optuna and as the surrogate see it."""

    params: Tree
    distributions: Mapping[str, BaseDistribution]
    seen: Exposed


@dataclass(frozen=True, eq=False)
class Ran(Place):
    """A point of the space and a trial that ran it, or runs it.

    Attributes:
        run: its scores; None if it has none.
        is_open: whether it may go on from where it was paused.
    """

    trial: FrozenTrial
    run: ScoredRun | None
    is_open: bool

    @property
    def key(self) -> str:
        """What trials of one point have in common."""
        return json.dumps(self.params, sort_keys=True, default=str)


class Proposal(NamedTuple):
    """What to run next: a point as a new trial, or a paused trial, and why."""

    place: Place
    why: str
    goes_on: bool = False


class ExposureSampler(optuna.samplers.BaseSampler):
    """Searches mask policies by what they expose a model to, whatever their kind.

    Usable with any Optuna study of one objective:

        def define(trial):
            rate = trial.suggest_float("rate", 0.1, 0.9)
            return {"policy": {"kind": "fixed", "rate": rate}}

        study = optuna.create_study(direction="maximize", sampler=ExposureSampler(define))

    The objective calls `define(trial)`, trains with the policy and returns the score. It adds
    `trial.user_attrs.get("asked", {}).get("repeat", 0)` to its seed: the sampler asks for a policy
    again to learn how much seeds matter. The score by mask rate, of which the result is the mean,
    makes predictions much better: `trial.set_user_attr("curve", [(rate, score), ...])`.

    Scores that trials report before their end are evidence, too, if their steps are thousandths of
    the training. Everything else that `define` returns beside the policy is context, such as the
    number of parameters of the model and the learning rate; numbers that span a factor of 4 count
    by their logarithm. Dimensions that `define` does not suggest, and spaces without a policy, are
    left to Optuna's TPE, with a warning.
    """

    def __init__(
        self,
        define: Callable[[Suggests], Tree],
        *,
        length: int = COUNTS,
        margin: float = 0.0,
        seed: int = 0,
        startup_trials: int = 8,
    ) -> None:
        """A sampler without a history of its own.

        Args:
            define: suggests the dimensions on a trial, and returns a mapping with `policy`, a
                section of a spec, and the context.
            length: positions of a sequence.
            margin: difference of scores that does not matter, in the unit of the objective; half a
                standard deviation of the difference between two seeds does not matter either.
            seed: of the proposals.
            startup_trials: trials of the start: of all different policies, the first ones the
                nearest to `START`, and each paused at its first score if trials can be.

        Asking for a trial raises what `define` raises, but for a pydantic.ValidationError and an
        InputError, which say that there is no such point; an InputError if there is no policy of
        the kind that it gives; and a ValueError if it gives no policy, or if the mask rates of a
        trial's `curve` are not above 0 and at most 1.
        """
        self._define, self._length, self._margin = define, length, margin
        self._seed, self._startup = seed, startup_trials
        self._seen: dict[str, Exposed | None] = {}
        self._chosen: dict[int, Tree | TPESampler] = {}
        self._warned: set[str] = set()

    # --- Optuna's interface ----------------------------------------------------------------------

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Choose the point, and return its dimensions."""
        known = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        found = self._choose(study, trials, known)
        if isinstance(found, str):
            self._warn(found)
            tpe = self._tpe(trial)
            self._chosen[trial.number] = tpe
            return tpe.infer_relative_search_space(study, trial)
        place, why, _ = found
        repeats = [_repeat(t) for t in trials if t.params == place.params]
        asked = {"repeat": max(repeats, default=-1) + 1, "why": why}
        set_stored_attribute(study, trial, ASKED, asked)
        trial.user_attrs[ASKED] = asked
        self._chosen[trial.number] = place.params
        return dict(place.distributions)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """The parameters of the chosen point."""
        chosen = self._chosen.pop(trial.number)
        if isinstance(chosen, TPESampler):
            return chosen.sample_relative(study, trial, search_space)
        return dict(chosen)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A dimension that `define` does not suggest, by TPE."""
        if ASKED in trial.user_attrs:  # otherwise TPE proposes the whole point
            self._warn(f"{param_name!r} is no dimension of the sampler's own")
        return self._tpe(trial).sample_independent(study, trial, param_name, param_distribution)

    def _tpe(self, trial: FrozenTrial) -> TPESampler:
        return TPESampler(trial_seed(self._seed, trial.number), self._startup)

    def _warn(self, why: str) -> None:
        if why not in self._warned:
            self._warned.add(why)
            warnings.warn(f"exposure sampler: {why}; TPE proposes instead", stacklevel=2)

    # --- pausing ---------------------------------------------------------------------------------

    def goes_on(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        others: Sequence[FrozenTrial],
        among: Container[int] = (),
        *,
        may_ask: bool = True,
    ) -> tuple[bool, str]:
        """Whether a trial that has reported a score goes on, and why; it is paused otherwise.

        Another seed of a policy goes on to its end: of several seeds the luckier ones would.

        Args:
            others: the trials that the decision is made with.
            among: numbers of the paused trials that may go on instead if none may be asked for.
            may_ask: whether a new trial may be asked for instead.
        """
        if _repeat(trial) > 0:
            return True, "another seed is trained to its end"
        among = () if may_ask else among
        found = self._choose(study, others, {}, trial, among, may_ask=may_ask)
        if isinstance(found, str):
            return True, found
        if trial.number < self._startup and may_ask and JUDGED not in trial.user_attrs:
            return False, "others of the start come first"
        return isinstance(found.place, Ran) and found.place.trial is trial, found.why

    def to_continue(
        self, study: optuna.Study, among: Container[int], *, may_ask: bool
    ) -> tuple[int, str] | None:
        """The number of the paused trial that should go on, and why; None if no trial should.

        Args:
            among: numbers of the paused trials.
            may_ask: whether a new trial may be asked for instead.
        """
        trials = study.get_trials(deepcopy=False)
        if len(trials) < self._startup and may_ask:
            return None
        found = self._choose(study, trials, {}, None, among, may_ask=may_ask)
        if isinstance(found, str) or not found.goes_on:
            return None
        assert isinstance(found.place, Ran)
        return found.place.trial.number, found.why

    # --- choosing --------------------------------------------------------------------------------

    def _choose(
        self,
        study: optuna.Study,
        trials: Sequence[FrozenTrial],
        known: Tree,
        reported: FrozenTrial | None = None,
        among: Container[int] = (),
        *,
        may_ask: bool = True,
    ) -> Proposal | str:
        """What to run, or why that is not known.

        Args:
            trials: all others.
            known: values of dimensions that are given.
            reported: the trial that may go on, beside those `among` the paused ones.
            may_ask: otherwise one of the trials that may go on is chosen.
        """
        sign = 1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1.0
        if reported is not None:
            trials = [*trials, reported]
        ran = []
        for trial in trials:
            is_open = trial is reported or trial.number in among
            if trial.params and (one := self._ran(trial, sign, is_open)) is not None:
                ran.append(one)
        # A trial is paused, and what runs instead is chosen, by the same draw.
        reports = sum(len(r.run.scores) for r in ran if r.run is not None)
        rng = np.random.default_rng([self._seed, len(trials), reports])
        scored = sum(r.run is not None for r in ran)
        if not may_ask:
            is_any = any(r.is_open and r.run is not None for r in ran)
            return self._draw([], ran, {}, rng, only_open=True) if is_any else "none has a score"
        best = [r for r in ran if r.run is not None and r.run.end is not None]
        best.sort(key=lambda r: (-sign * (r.trial.value or 0.0), r.trial.number))
        # Runs of one point are one parent, else neighbours of few points would be all candidates.
        parents = (
            first_of_each(best, attrgetter("key"))[:PARENTS] if scored >= MIN_TO_PREDICT else []
        )
        new = self.draw_points(rng, [r.trial.params for r in parents], known)
        if not new:
            return "no point of the space has a valid policy"
        if not known and not differ([p.seen for p in new]):
            return "no dimension of the policy is searched"
        new = _that_fit(new, ran)
        if len(trials) < self._startup and not known:
            started = self._start(new, ran)
            if started is not None:
                return started
        points = Points.of([p.seen for p in (*new, *ran)])
        new_C, ran_R = points.take(slice(len(new))), points.take(slice(len(new), None))
        is_known_C = np.any(same(new_C, ran_R), axis=1)
        fresh = [place for place, is_known in zip(new, is_known_C, strict=True) if not is_known]
        if scored < MIN_TO_PREDICT:
            return Proposal([*fresh, *new][0], "drawn at random: too few trials have a score")
        is_start = len(trials) < self._startup and not known
        if not fresh and not any(known.items() <= r.params.items() for r in ran if r.run):
            return Proposal(new[0], "drawn at random: every point has run")
        return self._draw(fresh, ran, known, rng, only_new=is_start)

    def draw_points(
        self, rng: np.random.Generator, parents: Sequence[Tree], known: Tree | None = None
    ) -> list[Place]:
        """Random points of the space, and changes of the parents; `known` values are in all."""
        near = [parent for parent in parents for _ in range(NEIGHBOURS)]
        drawn = [self._new(rng, known or {}, parent) for parent in [*[{}] * RANDOM, *near]]
        return [place for place in drawn if place is not None]

    def point_of(self, params: Tree) -> Exposed | None:
        """The point with these parameters; None if `define` cannot make one of them."""
        key = json.dumps(params, sort_keys=True, default=str)
        if key not in self._seen:
            self._seen[key] = None
            with suppress(KeyError, ValidationError, InputError):
                tree = self._define(Suggestions(None, params, {}))
                self._seen[key] = Exposed.of(tree, self._length)
        return self._seen[key]

    def _new(self, rng: np.random.Generator, known: Tree, parent: Tree) -> Place | None:
        """A point of the space with these values; None if its policy is not valid."""
        suggestions = Suggestions(rng, known, parent)
        with suppress(ValidationError):
            try:
                tree = self._define(suggestions)
            except InputError:  # of values that make no spec; one of the policy's kind is an error
                return None
            seen = Exposed.of(tree, self._length)
            return Place(suggestions.params, suggestions.distributions, seen)
        return None

    def _ran(self, trial: FrozenTrial, sign: float, is_open: bool) -> Ran | None:
        """A trial and its point; None if `define` cannot make one of its values."""
        seen = self.point_of(trial.params)
        if seen is None:
            return None
        # What a running trial has reported depends on when it is looked at.
        is_running = trial.state == TrialState.RUNNING and not is_open and not is_paused(trial)
        run = None if is_running else _scored_run(trial, seen, sign)
        return Ran(trial.params, trial.distributions, seen, trial, run, is_open)

    def _start(self, new: Sequence[Place], ran: Sequence[Ran]) -> Proposal | None:
        """The next point of the start design; None if it is complete."""
        begun = [r for r in ran if r.trial.state in BEGUN]
        wanted = [Exposed.of({"policy": p}, self._length) for p in START]
        apart_CT = distances(Points.of([p.seen for p in (*new, *begun)]), Points.of(wanted))
        for policy, exposed, apart_C in zip(START, wanted, apart_CT.T, strict=True):
            # Reduction, corruption and structure are those of the policy, if the space has them.
            usual_N = np.array([exposed.context.items() <= p.seen.context.items() for p in new])
            nearest = int((apart_C[: len(new)] + NEAR * ~usual_N).argmin())
            if apart_C[nearest] <= NEAR < apart_C[len(new) :].min(initial=np.inf):
                return Proposal(new[nearest], f"start: the nearest to {policy}")
        return None

    def _draw(
        self,
        fresh: Sequence[Place],
        ran: Sequence[Ran],
        known: Tree,
        rng: np.random.Generator,
        *,
        only_new: bool = False,
        only_open: bool = False,
    ) -> Proposal:
        """The best point in one draw of the scores; a new one if it is better by a margin."""
        points, first = Points.of([p.seen for p in (*fresh, *ran)]), len(fresh)
        runs = [(first + i, r.run) for i, r in enumerate(ran) if r.run is not None]
        scored = points.take([i for i, _ in runs])
        evidence, _ = evidence_of_runs(scored, [run for _, run in runs], self._margin)
        ends = dict(zip((i for i, _ in runs), evidence.score_N.tolist(), strict=True))
        tried = [
            (ends[i], r)
            for i, r in enumerate(ran, first)
            if i in ends and known.items() <= r.params.items() and (r.is_open or not only_open)
        ]
        tried.sort(key=lambda found: (-found[0], found[1].trial.number))
        running = [r for r in ran if r.run is None and r.trial.state == TrialState.RUNNING]
        again = first_of_each((r for _, r in tried), attrgetter("key"))[:MOST_TRIED]
        # Of seeds that run at the same time, each is of another policy.
        again = [r for r in again if r.key not in {o.key for o in running}] or again
        finished = {r.key for r in ran if r.run is not None and r.run.end is not None}
        if len(finished) < MIN_FINISHED:
            unfinished = {r.key for r in ran if r.is_open}
            others = [r for r in again if r.key in unfinished]
            again = others if others or fresh else again
        where = {id(p): i for i, p in enumerate((*fresh, *ran))}
        candidates = points.take([where[id(p)] for p in (*fresh, *again, *running)])
        score_K, seed_sd = Surrogate.of(evidence).draw(candidates, len(running), rng)
        margin = NEW_MARGIN * max(self._margin, SEED_SHARE * seed_sd)
        fresh_K, again_K = np.split(score_K, [len(fresh), len(fresh) + len(again)])[:2]
        gain = float(fresh_K.max(initial=-np.inf) - again_K.max(initial=-np.inf))
        if fresh and (gain > margin or only_new):
            why = "best of the new ones" if only_new else f"best in this draw, by {gain:.3g}"
            why = why if again else "too few policies have finished"
            return Proposal(fresh[int(fresh_K.argmax())], f"new: {why}")
        chosen = again[int(again_K.argmax())]
        why = "no other trial may begin" if only_open else "every policy has run"
        if fresh:
            why = f"no new policy is better by {margin:.3g} in this draw (best: {gain:+.3g})"
        for _, one in tried:
            if one.is_open and one.key == chosen.key:
                best = f"trial {one.trial.number} is the best in this draw"
                return Proposal(one, f"{best}: {why}", goes_on=True)
        return Proposal(chosen, f"another seed of trial {chosen.trial.number}: {why}")


def _repeat(trial: FrozenTrial) -> int:
    """How many trials of its point came before."""
    return int(trial.user_attrs.get(ASKED, {}).get("repeat", 0))


def _scored_run(trial: FrozenTrial, seen: Exposed, sign: float) -> ScoredRun | None:
    """The scores of a trial; None if it has none, or those of another trial."""
    if "same_as" in trial.user_attrs:
        return None
    reported = trial.intermediate_values.items()
    rungs = {s / STEPS: sign * v for s, v in reported if 0 < s < STEPS and isfinite(v)}
    sizes = tuple(i for i in seen.context.items() if type(i[1]) is int)
    run = ScoredRun(rungs, None, None, _repeat(trial), sizes)
    if trial.state != TrialState.COMPLETE:
        return run if rungs and trial.state in BEGUN and not _is_beyond(trial) else None
    if not isfinite(trial.value or 0.0):
        return None
    curve, curve_G = trial.user_attrs.get(CURVE), None
    if curve and len(curve) > 1:
        rate_C, score_C = np.array(sorted(curve)).T
        if not 0 < rate_C[0] <= rate_C[-1] <= 1:
            raise ValueError(
                f"curve of trial {trial.number}: mask rates are above 0 and at most 1, not "
                f"{rate_C[0]:g} to {rate_C[-1]:g}"
            )
        curve_G = sign * np.interp((np.arange(BANDS) + 0.5) / BANDS, rate_C, score_C)
    return replace(run, end=sign * float(trial.value or 0.0), curve_G=curve_G)


def _is_beyond(trial: FrozenTrial) -> bool:
    """Whether a trial has violated a constraint, such as that of memory."""
    return any(value > 0 for value in trial.constraints.values())


def _that_fit(new: Sequence[Place], ran: Sequence[Ran]) -> list[Place]:
    """The points whose context is no nearer to one that ran out of memory than to one that ran."""
    beyond = [r for r in ran if _is_beyond(r.trial)]
    if not beyond:
        return list(new)
    fitted = [r for r in ran if r.run is not None]
    context_NZ = Points.of([p.seen for p in (*new, *beyond, *fitted)]).context_NZ
    new_CZ, beyond_NZ, fitted_NZ = np.split(context_NZ, [len(new), len(new) + len(beyond)])
    to_beyond_C, to_fitted_C = (
        np.abs(new_CZ[:, None] - others_NZ).sum(2).min(1, initial=np.inf)
        for others_NZ in (beyond_NZ, fitted_NZ)
    )
    fits_C = to_beyond_C >= to_fitted_C
    if not fits_C.any():
        fits_C = to_beyond_C >= np.quantile(to_beyond_C, 0.75)
    return [p for p, fits in zip(new, fits_C, strict=True) if fits]
