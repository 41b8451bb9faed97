"""An Optuna sampler that searches mask policies by their exposure.

`mptune.analysis.exposure` predicts the score of every policy from what has been run, with what is
not known of it. Each ask is one draw from that prediction (Thompson sampling): of all candidates
the one that is best in the draw is run. Candidates are random points of the space, neighbours of
the best trials, and the trials so far: to run one of these again with another seed is preferred
unless a new policy is better in the draw by a margin, so that budget goes where the doubt is.

Every proposal is a function of the seed, the trial's number and the history.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite, log, nan
from typing import Any

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

from mptune.analysis.crossed import Array
from mptune.analysis.exposure import (
    BANDS,
    COUNTS,
    Evidence,
    Exposed,
    Points,
    Surrogate,
    differ,
    distances,
    same,
)
from mptune.analysis.moderation import SEED_SHARE
from mptune.errors import InputError
from mptune.spec.space import Suggests
from mptune.study.optuna_private import TPESampler, set_stored_attribute
from mptune.study.records import ASKED, CURVE, is_paused

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

MOST_REPEATED = 32
"""Best policies so far that may be run again."""

MIN_TO_PREDICT = 3
"""Fewest finished trials for a prediction."""


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
    """A point of the space and a trial that ran it, or runs it."""

    trial: FrozenTrial

    @property
    def key(self) -> str:
        """What trials of one point have in common."""
        return json.dumps(self.params, sort_keys=True, default=str)


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

    Everything else that `define` returns beside the policy is context, such as the number of
    parameters of the model and the learning rate; numbers that span a factor of 4 count by their
    logarithm. Dimensions that `define` does not suggest, and spaces without a policy, are left to
    Optuna's TPE, with a warning.
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
            startup_trials: most trials of the start design, `START`.

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
        found = self._choose(study, trial)
        if isinstance(found, str):
            self._warn(found)
            tpe = self._tpe(trial)
            self._chosen[trial.number] = tpe
            return tpe.infer_relative_search_space(study, trial)
        place, why = found
        repeats = [
            t.user_attrs.get(ASKED, {}).get("repeat", 0)
            for t in study.get_trials(deepcopy=False)
            if t.number != trial.number and t.params == place.params
        ]
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
        seed = (self._seed * 1_000_003 + trial.number) % 2**31
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(seed=seed, n_startup_trials=self._startup, constant_liar=True)

    def _warn(self, why: str) -> None:
        if why not in self._warned:
            self._warned.add(why)
            warnings.warn(f"exposure sampler: {why}; TPE proposes instead", stacklevel=2)

    # --- choosing --------------------------------------------------------------------------------

    def _choose(self, study: optuna.Study, trial: FrozenTrial) -> tuple[Place, str] | str:
        """The point to run and why it, or why there is none."""
        rng = np.random.default_rng([self._seed, trial.number])
        known = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        ran = [ran for t in trials if t.params and (ran := self._ran(t)) is not None]
        sign = 1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1.0
        best = [r for r in ran if r.trial.state == TrialState.COMPLETE]
        best.sort(key=lambda r: (-sign * (r.trial.value or 0.0), r.trial.number))
        # Runs of one point are one parent, else neighbours of few points would be all candidates.
        parents = _distinct(best)[:PARENTS] if len(best) >= MIN_TO_PREDICT else []
        drawn = [self._new(rng, known, {}) for _ in range(RANDOM)]
        drawn += [self._new(rng, known, p.trial.params) for p in parents for _ in range(NEIGHBOURS)]
        new = [place for place in drawn if place is not None]
        if not new:
            return "no point of the space has a valid policy"
        if not known and not differ([p.seen for p in new]):
            return "no dimension of the policy is searched"
        new = _that_fit(new, ran)
        if len(trials) < self._startup and not known:
            started = self._start(new, ran)
            if started is not None:
                return started
        if len(best) < MIN_TO_PREDICT:
            return new[0], "drawn at random: too few trials have finished"
        return self._draw(new, ran, best, known, sign, rng)

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

    def _ran(self, trial: FrozenTrial) -> Ran | None:
        """The point of a trial; None if `define` cannot make one of its values."""
        key = json.dumps(trial.params, sort_keys=True, default=str)
        if key not in self._seen:
            self._seen[key] = None
            with suppress(KeyError, ValidationError, InputError):
                tree = self._define(Suggestions(None, trial.params, {}))
                self._seen[key] = Exposed.of(tree, self._length)
        seen = self._seen[key]
        return Ran(trial.params, trial.distributions, seen, trial) if seen else None

    def _start(self, new: Sequence[Place], ran: Sequence[Ran]) -> tuple[Place, str] | None:
        """The next point of the start design; None if it is complete."""
        begun = [r for r in ran if r.trial.state in BEGUN]
        wanted = [Exposed.of({"policy": p}, self._length) for p in START]
        apart_CT = distances(Points.of([p.seen for p in (*new, *begun)]), Points.of(wanted))
        for policy, exposed, apart_C in zip(START, wanted, apart_CT.T, strict=True):
            # Reduction, corruption and structure are those of the policy, if the space has them.
            usual_N = np.array([exposed.context.items() <= p.seen.context.items() for p in new])
            nearest = int((apart_C[: len(new)] + NEAR * ~usual_N).argmin())
            if apart_C[nearest] <= NEAR < apart_C[len(new) :].min(initial=np.inf):
                return new[nearest], f"start: the nearest to {policy}"
        return None

    def _draw(
        self,
        new: Sequence[Place],
        ran: Sequence[Ran],
        best: Sequence[Ran],
        known: Tree,
        sign: float,
        rng: np.random.Generator,
    ) -> tuple[Place, str]:
        """The best point in one draw of the scores; a trial again unless a new one is better."""
        points, first = Points.of([p.seen for p in (*new, *ran)]), len(new)
        outcomes = [_outcome(r.trial, best, sign) for r in ran]
        scored = [first + i for i, found in enumerate(outcomes) if found is not None]
        columns = zip(*(found for found in outcomes if found is not None), strict=True)
        evidence = Evidence(points.take(scored), *(np.array(column) for column in columns))
        again = _distinct([r for r in best if known.items() <= r.params.items()])[:MOST_REPEATED]
        running = [r for r in ran if r.trial.state == TrialState.RUNNING and not is_paused(r.trial)]
        known_NN = same(points.take(slice(first)), points.take(slice(first, None)))
        fresh = [p for p, known_N in zip(new, known_NN, strict=True) if not known_N.any()]
        if not fresh and not again:
            return new[0], "drawn at random: every point has run"
        asked = [*fresh, *again, *running]
        where = {id(p): i for i, p in enumerate((*new, *ran))}
        candidates = points.take([where[id(p)] for p in asked])
        score_K, seed_sd = Surrogate.of(evidence).draw(candidates, len(running), rng)
        margin = max(self._margin, SEED_SHARE * seed_sd)
        fresh_K, again_K = np.split(score_K, [len(fresh), len(fresh) + len(again)])[:2]
        if again and again_K.max() + margin >= fresh_K.max(initial=-np.inf):
            chosen = again[int(again_K.argmax())]
            why = f"another seed of trial {chosen.trial.number}: "
            if not fresh:
                return chosen, why + "every policy has run"
            gain = fresh_K.max() - again_K.max()
            return chosen, why + (
                f"no new policy is better by {margin:.3g} in this draw (best: {gain:+.3g})"
            )
        gain = fresh_K.max() - again_K.max(initial=-np.inf)
        return fresh[int(fresh_K.argmax())], f"new: best in this draw, by {gain:.3g}"


def _distinct(ran: Sequence[Ran]) -> list[Ran]:
    """The first one of each point."""
    first: dict[str, Ran] = {}
    for one in ran:
        first.setdefault(one.key, one)
    return list(first.values())


def _outcome(
    trial: FrozenTrial, best: Sequence[Ran], sign: float
) -> tuple[float, Array, float, int] | None:
    """What `Evidence` has of a trial: score, curve, added variance, seed; None without a score.

    A pruned or paused trial is expected to gain as much after its last rung as finished ones did.
    """
    curve_G = np.full(BANDS, np.nan)
    seed = trial.user_attrs.get(ASKED, {}).get("repeat", 0)
    done = trial.state == TrialState.COMPLETE and isfinite(trial.value or 0.0)
    if done and "same_as" not in trial.user_attrs:
        curve = trial.user_attrs.get(CURVE)
        if curve and len(curve) > 1:
            rate_C, score_C = np.array(sorted(curve)).T
            if not 0 < rate_C[0] <= rate_C[-1] <= 1:
                raise ValueError(
                    f"curve of trial {trial.number}: mask rates are above 0 and at most 1, not "
                    f"{rate_C[0]:g} to {rate_C[-1]:g}"
                )
            curve_G = sign * np.interp((np.arange(BANDS) + 0.5) / BANDS, rate_C, score_C)
        return sign * float(trial.value or 0.0), curve_G, 0.0, seed
    stopped = trial.state == TrialState.PRUNED or is_paused(trial)
    if stopped and trial.intermediate_values:
        step, value = max(trial.intermediate_values.items())
        pairs = [(r.trial.value, r.trial.intermediate_values.get(step)) for r in best]
        gains = [float(end) - rung for end, rung in pairs if end is not None and rung is not None]
        expected = value + float(np.mean(gains)) if len(gains) > 1 else nan
        if isfinite(expected):
            return sign * expected, curve_G, float(np.var(gains, ddof=1)), seed
    return None


def _that_fit(new: Sequence[Place], ran: Sequence[Ran]) -> list[Place]:
    """The points whose context is no nearer to one that ran out of memory than to one that ran."""
    beyond = [r for r in ran if any(value > 0 for value in r.trial.constraints.values())]
    if not beyond:
        return list(new)
    fitted = [r for r in ran if r.trial.state == TrialState.COMPLETE]
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
