"""Laws over model size and budget: the best mask rate, and the gap in LML, with intervals.

Notation: N parameters of the model, B positions trained on, r mask rate, x = logit r, n = ln(N/N0)
and b = ln(B/B0) about the geometric means of what was run.

    best rate   y = level of (N, B) + d x + e x² + f x n + g x b,   e < 0
                the top of it:  logit r* = -(d + f n + g b) / 2 e  =  a + s n + t b
    gap         y(challenger) - y(fixed 15 %) = a + s n + t b,   of runs with the same seed

t is fitted where every run was scored at several rungs. Both are linear in their coefficients, so
that the bootstrap is drawn directly: from the multivariate t around the least-squares fit, with the
residual degrees of freedom, which at a handful of runs resampling would overstate. Scores of one
run at several budgets share its noise, so each run is two numbers: its mean over the budgets, which
gives everything but t and g, and its slope over them, which gives those.

Shape suffixes: R rows, P coefficients, Z draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mptune.analysis.intervals import half_width
from mptune.analysis.ranking import ACCUMULATED, FIXED_15, is_accumulated, is_fixed_15
from mptune.trial import Message, Trial

Array = NDArray[np.float64]

GRID = 25
"""Sizes of a drawn curve."""

MOST_UPWARD = 0.25
"""With more of the draws curved upwards, there is no top to speak of."""


class LawParameter(Message):
    """One parameter of a law."""

    name: str
    value: float
    low: float = Field(description="ends of its 95 % bootstrap interval")
    high: float


class SizePoint(Message):
    """What the law is fitted to, at one size."""

    parameters: int = Field(description="of the model")
    tokens: float = Field(description="budget behind it, positions")
    value: float = Field(description="best rate as a fraction, or gap in nats per token")
    low: float | None = Field(None, description="ends of its 95 % interval, where there is one")
    high: float | None = None
    runs: int = Field(1, description="training runs behind it")


class LawValue(Message):
    """The law at one size and budget, with its 95 % bootstrap interval."""

    parameters: float
    tokens: float
    value: float
    low: float
    high: float


class Extrapolation(Message):
    """The law at a size that the user names."""

    at: LawValue
    beyond: float = Field(
        description="how far outside the sizes that were run, as a factor; 1 is inside"
    )


class SizeLaw(Message):
    """A law with few parameters, and what it was fitted to."""

    what: Literal["best rate", "gap"]
    of: str = Field(description="what it is about, e.g. `fixed` or `accumulated - fixed 15 %`")
    form: str = Field(description="the law as a formula")
    parameters: tuple[LawParameter, ...]
    points: tuple[SizePoint, ...]
    curves: tuple[tuple[LawValue, ...], ...] = Field(
        description="over a grid of sizes, one curve for each budget, the largest budget last"
    )
    extrapolation: tuple[Extrapolation, ...] = ()
    runs: int = Field(description="training runs that it rests on")
    size_matters: bool = Field(
        description="the interval of the slope over size leaves out zero: more than a constant"
    )


class BySize(Message):
    """The laws of a study over several sizes; one that cannot be fitted says why not."""

    best_rate: SizeLaw | None = None
    gap: SizeLaw | None = None
    best_rate_missing: str = Field("", description="why there is no law of the best rate")
    gap_missing: str = Field("", description="why there is no law of the gap")


@dataclass(frozen=True)
class _LawRow:
    """What one training run, or one difference of two runs, adds to a law.

    Attributes:
        parameters: of the model.
        scores: level (training progress, 1 at the end) -> (positions trained on, nats per token).
            They share the noise of the run.
        rate: mean mask rate.
    """

    parameters: int
    scores: Mapping[float, tuple[float, float]]
    rate: float = math.nan


def _row(trial: Trial) -> _LawRow:
    """A finished trial with its score at the end, and at the rungs before."""
    result = trial.require_result()
    scores = {
        round(point.progress, 2): (float(point.tokens), point.nats_per_token)
        for point in result.learning
        if point.progress < 1
    }
    scores[1.0] = float(result.cost.tokens), result.lml.nats_per_token
    fixed = trial.policy["kind"] == "fixed"
    rate = float(trial.policy["rate"]) if fixed else result.mean_mask_rate
    return _LawRow(result.cost.parameters, scores, rate)


class NoLaw(Exception):
    """A law cannot be fitted; the message says why."""


def by_size(
    trials: Sequence[Trial],
    extrapolate_to: Sequence[float] = (),
    draws: int = 4000,
    seed: int = 0,
) -> BySize | None:
    """Both laws, as far as they can be fitted; None with fewer than two sizes.

    Trials that did not finish, and those that took over another's result, are left out.
    """
    used = [t for t in trials if t.result and t.state == "COMPLETE" and t.same_as is None]
    if len({_row(trial).parameters for trial in used}) < 2:
        return None
    fields: dict[str, Any] = {}
    for name, fit in (("best_rate", _best_rate), ("gap", _gap)):
        try:
            fields[name] = fit(used, extrapolate_to, draws, seed)
        except NoLaw as error:
            fields[f"{name}_missing"] = str(error)
    return BySize(**fields)


# --- least squares -----------------------------------------------------------------------------


def _fit(x_RP: Array, y_R: Array, draws: int, rng: np.random.Generator) -> Array:
    """Least squares, one row for each run.

    Returns:
        The estimate of the coefficients, and then the draws around it, [1 + Z, P].

    Raises:
        NoLaw: there are no more runs than coefficients.
    """
    R, P = x_RP.shape
    if R <= P or np.linalg.matrix_rank(x_RP) < P:
        raise NoLaw(f"needs more than {P} runs of different sizes and policies")
    inverse_PP = np.linalg.inv(x_RP.T @ x_RP)
    mean_P = inverse_PP @ x_RP.T @ y_R
    residual_R = y_R - x_RP @ mean_P
    root_PP = np.linalg.cholesky(inverse_PP) * math.sqrt(residual_R @ residual_R / (R - P))
    scale_Z1 = np.sqrt((R - P) / rng.chisquare(R - P, (draws, 1)))
    return np.vstack([mean_P, mean_P + rng.standard_normal((draws, P)) @ root_PP.T * scale_Z1])


def _interval(value_Z: Array) -> dict[str, float]:
    """The estimate, which comes first, and the 95 % interval of the draws, as fields."""
    low, high = np.quantile(value_Z[1:], (0.025, 0.975), method="nearest")
    return {"value": float(value_Z[0]), "low": float(low), "high": float(high)}


@dataclass(frozen=True, eq=False)
class _Scale:
    """n and b of sizes and budgets.

    Attributes:
        levels: (training progress, positions) of the budgets that every row has.
    """

    N0: float
    B0: float
    levels: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, rows: Sequence[_LawRow]) -> _Scale:
        levels = sorted(set.intersection(*(set(row.scores) for row in rows)))
        tokens = {v: float(np.mean([row.scores[v][0] for row in rows])) for v in levels}
        sizes = [math.log(row.parameters) for row in rows for _ in row.scores]
        budgets = [math.log(tokens[v]) for v in levels]
        n0, b0 = math.exp(np.mean(sizes)), math.exp(np.mean(budgets))
        return cls(n0, b0, tuple(tokens.items()))

    def mean_and_slope(self, rows: Sequence[_LawRow]) -> tuple[Array, Array | None]:
        """Each row's mean over the budgets, and its change with b; None with one budget."""
        y_RL = np.array([[row.scores[level][1] for level, _ in self.levels] for row in rows])
        b_L = np.array([self.b(tokens) for _, tokens in self.levels])
        return y_RL.mean(1), y_RL @ b_L / (b_L @ b_L) if self.several else None

    @property
    def several(self) -> bool:
        return len(self.levels) > 1

    def n(self, parameters: float) -> float:
        return math.log(parameters / self.N0)

    def b(self, tokens: float) -> float:
        return math.log(tokens / self.B0)

    def words(self, left: str) -> str:
        budget = f" + t ln(B / {self.B0:.3g})" if self.several else ""
        return f"{left} = a + s ln(N / {self.N0:.3g}){budget}"


def _law(
    what: Literal["best rate", "gap"],
    of: str,
    form: str,
    rows: Sequence[_LawRow],
    scale: _Scale,
    named: Sequence[tuple[str, Array]],
    points: Sequence[SizePoint],
    value: Callable[[float, float], Array],
    extrapolate_to: Sequence[float],
) -> SizeLaw:
    """A law from its coefficients and from its values at (N, B), estimate first, then draws."""
    sizes = [row.parameters for row in rows]
    ends = [*sizes, *extrapolate_to]

    def at(parameters: float, tokens: float) -> LawValue:
        interval = _interval(value(parameters, tokens))
        return LawValue(parameters=parameters, tokens=tokens, **interval)

    grid = np.geomspace(min(ends), max(ends), GRID)
    last = scale.levels[-1][1]
    parameters = [LawParameter(name=name, **_interval(value_Z)) for name, value_Z in named]
    slope = parameters[1]
    return SizeLaw(
        what=what,
        of=of,
        form=form,
        parameters=tuple(parameters),
        points=tuple(points),
        curves=tuple(tuple(at(float(N), B) for N in grid) for _, B in scale.levels),
        extrapolation=tuple(
            Extrapolation(at=at(N, last), beyond=max(1.0, N / max(sizes), min(sizes) / N))
            for N in extrapolate_to
        ),
        runs=len(rows),
        size_matters=slope.low > 0 or slope.high < 0,
    )


# --- the best rate -----------------------------------------------------------------------------


def _best_rate(
    trials: Sequence[Trial], extrapolate_to: Sequence[float], draws: int, seed: int
) -> SizeLaw:
    kind = _searched_kind(trials)
    rows = [_row(trial) for trial in trials if trial.policy["kind"] == kind]
    scale, rng = _Scale.of(rows), np.random.default_rng(seed)
    points = _points(scale, rows, _best_tried)
    rows.reverse()  # least squares sums from the last row on; the order decides the last digit
    mean_R, slope_R = scale.mean_and_slope(rows)
    sizes = sorted({row.parameters for row in rows})
    level_RS = np.array([[float(row.parameters == N) for N in sizes] for row in rows])
    x_R = np.array([_logit(row.rate) for row in rows])
    n_R = np.array([scale.n(row.parameters) for row in rows])
    terms_R3 = np.column_stack([x_R, x_R**2, x_R * n_R])
    found_ZP = _fit(np.hstack([level_RS, terms_R3]), mean_R, draws, rng)
    d_Z, e_Z, f_Z = found_ZP[:, len(sizes) :].T
    g_Z = np.zeros_like(d_Z)
    if slope_R is not None:
        x_RP = np.column_stack([level_RS, x_R])
        g_Z = _fit(x_RP, slope_R, draws, rng)[:, -1]
    if e_Z[0] >= 0 or (e_Z[1:] >= 0).mean() > MOST_UPWARD:
        raise NoLaw("the score does not fall on both sides of a best rate within the rates tried")
    down_Z = e_Z < 0
    named = [("a", -d_Z / (2 * e_Z)), ("s", -f_Z / (2 * e_Z)), ("t", -g_Z / (2 * e_Z))]

    def value(parameters: float, tokens: float) -> Array:
        slope_Z = d_Z + f_Z * scale.n(parameters) + g_Z * scale.b(tokens)
        x_Z = np.where(down_Z, -slope_Z / (2 * e_Z), np.where(slope_Z > 0, 50.0, -50.0))
        return _expit(x_Z)

    return _law(
        "best rate",
        kind,
        scale.words("logit r"),
        rows,
        scale,
        [(name, value_Z[down_Z]) for name, value_Z in named[: 3 if scale.several else 2]],
        points,
        value,
        extrapolate_to,
    )


def _searched_kind(trials: Sequence[Trial]) -> str:
    """The kind of policy with the most rates at two sizes or more; fixed rates first.

    Raises:
        NoLaw: no kind has three rates.
    """

    def rates(kind: str) -> int:
        own = [_row(trial) for trial in trials if trial.policy["kind"] == kind]
        sizes = {row.parameters for row in own}
        return len({round(row.rate, 3) for row in own}) if len(sizes) > 1 else 0

    found = {str(trial.policy["kind"]) for trial in trials}
    kinds = sorted(found, key=lambda k: (k != "fixed", -rates(k), k))
    enough = [kind for kind in kinds if rates(kind) >= 3]
    if not enough:
        raise NoLaw("needs one kind of policy at three rates or more, and at two sizes or more")
    return enough[0]


def _logit(rate: float) -> float:
    inside = min(max(rate, 0.005), 0.995)
    return math.log(inside / (1 - inside))


def _points(
    scale: _Scale,
    rows: Sequence[_LawRow],
    make: Callable[[Sequence[_LawRow], float], SizePoint],
) -> list[SizePoint]:
    """What `make` makes of the rows of each size at each budget that all rows have."""
    return [
        make([row for row in rows if row.parameters == parameters], level)
        for parameters in sorted({row.parameters for row in rows})
        for level, _ in scale.levels
    ]


def _best_tried(rows: Sequence[_LawRow], level: float) -> SizePoint:
    """The best rate that was run."""
    best = max(rows, key=lambda row: row.scores[level][1])
    return SizePoint(
        parameters=best.parameters, tokens=best.scores[level][0], value=best.rate, runs=len(rows)
    )


def _expit(x_Z: Array) -> Array:
    found: Array = 1 / (1 + np.exp(-np.clip(x_Z, -50, 50)))
    return found


# --- the gap -----------------------------------------------------------------------------------


def _gap(
    trials: Sequence[Trial], extrapolate_to: Sequence[float], draws: int, seed: int
) -> SizeLaw:
    rows = _gaps(trials, lambda trial: is_accumulated(trial.policy))
    of = f"{ACCUMULATED} - {FIXED_15}"
    if len({row.parameters for row in rows}) < 2:
        rows, of = _gaps(trials, lambda trial: True), f"best - {FIXED_15}"
    if len({row.parameters for row in rows}) < 2:
        raise NoLaw(f"needs {FIXED_15} beside another policy at two sizes or more, seed by seed")
    scale, rng = _Scale.of(rows), np.random.default_rng(seed)
    points = _points(scale, rows, _mean_gap)
    rows.reverse()  # as in `_best_rate`
    mean_R, slope_R = scale.mean_and_slope(rows)
    n_R = np.array([scale.n(row.parameters) for row in rows])
    a_Z, s_Z = _fit(np.column_stack([np.ones_like(n_R), n_R]), mean_R, draws, rng).T
    coefficients = [a_Z, s_Z]
    if slope_R is not None:
        coefficients.append(_fit(np.ones((len(n_R), 1)), slope_R, draws, rng)[:, 0])

    def value(parameters: float, tokens: float) -> Array:
        terms = (1.0, scale.n(parameters), scale.b(tokens))
        products = (term * c_Z for term, c_Z in zip(terms, coefficients, strict=False))
        found: Array = np.sum(list(products), axis=0)
        return found

    named = list(zip("ast", coefficients, strict=False))
    return _law("gap", of, scale.words("gap"), rows, scale, named, points, value, extrapolate_to)


def _gaps(trials: Sequence[Trial], challenger: Callable[[Trial], bool]) -> list[_LawRow]:
    """Differences to fixed 15 % at the same size, seed and budget, of the best challenger."""
    cells: dict[tuple[int, int], list[Trial]] = {}
    for trial in trials:
        parameters = trial.require_result().cost.parameters
        cells.setdefault((parameters, trial.seed or 0), []).append(trial)
    found = []
    for (parameters, _), cell in sorted(cells.items(), key=lambda item: item[0]):
        base = [_row(trial).scores for trial in cell if is_fixed_15(trial.policy)]
        others = [
            _row(trial).scores
            for trial in cell
            if not is_fixed_15(trial.policy) and challenger(trial)
        ]
        gaps = {}
        for level in sorted({level for scores in others for level in scores}):
            means = [scores[level][1] for scores in base if level in scores]
            if means:
                best = max(
                    (scores[level] for scores in others if level in scores), key=lambda s: s[1]
                )
                gaps[level] = best[0], best[1] - float(np.mean(means))
        if gaps:
            found.append(_LawRow(parameters, gaps))
    return found


def _mean_gap(rows: Sequence[_LawRow], level: float) -> SizePoint:
    """The mean over seeds, with Student's interval where there are two or more."""
    gaps = np.array([row.scores[level][1] for row in rows])
    mean, half = float(gaps.mean()), None
    if len(gaps) > 1:
        half = half_width(float(gaps.std(ddof=1)), len(gaps) - 1) / math.sqrt(len(gaps))
    return SizePoint(
        parameters=rows[0].parameters,
        tokens=rows[0].scores[level][0],
        value=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        runs=2 * len(gaps),
    )
