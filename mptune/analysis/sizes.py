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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mptune.trial import Message

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
    of: str = Field(description="in words, e.g. `fixed` or `accumulated - fixed 15 %`")
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
class Measured:
    """One score of one training run.

    Attributes:
        run: names the run; its scores at several budgets share its noise.
        policy: what is compared: `fixed 15 %`, `accumulated`, or the policy's kind.
        kind: of the policy; best rates are sought within one kind.
        rate: mean mask rate.
        seed: of training; runs with the same one are paired.
        level: training progress, 1 at the end.
    """

    run: str
    policy: str
    kind: str
    rate: float
    parameters: int
    seed: int
    level: float
    tokens: float
    nats_per_token: float


class NoLaw(Exception):
    """A law cannot be fitted; the message says why."""


def by_size(
    measured: Sequence[Measured],
    extrapolate_to: Sequence[float] = (),
    draws: int = 4000,
    seed: int = 0,
) -> BySize | None:
    """Both laws, as far as they can be fitted; None with fewer than two sizes."""
    if len({m.parameters for m in measured}) < 2:
        return None
    laws: dict[str, SizeLaw | None] = {}
    reasons = {}
    for name, fit in (("best_rate", _best_rate), ("gap", _gap)):
        try:
            laws[name], reasons[name] = fit(measured, extrapolate_to, draws, seed), ""
        except NoLaw as error:
            laws[name], reasons[name] = None, str(error)
    return BySize(
        best_rate=laws["best_rate"],
        gap=laws["gap"],
        best_rate_missing=reasons["best_rate"],
        gap_missing=reasons["gap"],
    )


# --- least squares -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Fit:
    mean_P: Array
    drawn_ZP: Array

    @classmethod
    def of(cls, x_RP: Array, y_R: Array, draws: int, rng: np.random.Generator) -> _Fit:
        """Least squares, one row for each run.

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
        return cls(mean_P, mean_P + rng.standard_normal((draws, P)) @ root_PP.T * scale_Z1)

    @property
    def all(self) -> Array:
        """The estimate, and then the draws around it, [1 + Z, P]."""
        return np.vstack([self.mean_P, self.drawn_ZP])


@dataclass(frozen=True, eq=False)
class _Runs:
    """One row for each run: its mean over the budgets, and its slope over them.

    Attributes:
        first: the score of each run at its first budget, for what does not change.
        slope_R: change of the score with b; None with one budget.
    """

    first: tuple[Measured, ...]
    mean_R: Array
    slope_R: Array | None

    @classmethod
    def of(cls, used: Sequence[Measured], scale: _Scale) -> _Runs:
        by_run = {m.run: m for m in reversed(used)}
        score = {(m.run, m.level): m.nats_per_token for m in used}
        y_RL = np.array([[score[run, level] for level, _ in scale.levels] for run in by_run])
        b_L = np.array([scale.b(tokens) for _, tokens in scale.levels])
        slope_R = y_RL @ b_L / (b_L @ b_L) if scale.several else None
        return cls(tuple(by_run.values()), y_RL.mean(1), slope_R)


def _interval(value_Z: Array) -> tuple[float, float, float]:
    """The estimate, which comes first, and the 95 % interval of the draws."""
    low, high = np.quantile(value_Z[1:], (0.025, 0.975), method="nearest")
    return float(value_Z[0]), float(low), float(high)


@dataclass(frozen=True, eq=False)
class _Scale:
    """n and b of sizes and budgets."""

    N0: float
    B0: float
    levels: tuple[tuple[float, float], ...]
    """(progress, positions) of the budgets that every run has."""

    @classmethod
    def of(cls, used: Sequence[Measured]) -> _Scale:
        per_run = [{m.level for m in used if m.run == run} for run in {m.run for m in used}]
        levels = sorted(set.intersection(*per_run))
        tokens = {v: float(np.mean([m.tokens for m in used if m.level == v])) for v in levels}
        sizes = [math.log(m.parameters) for m in used]
        budgets = [math.log(tokens[v]) for v in levels]
        n0, b0 = math.exp(np.mean(sizes)), math.exp(np.mean(budgets))
        return cls(n0, b0, tuple(tokens.items()))

    @property
    def several(self) -> bool:
        return len(self.levels) > 1

    def has(self, m: Measured) -> bool:
        return any(m.level == level for level, _ in self.levels)

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
    used: Sequence[Measured],
    scale: _Scale,
    named: Sequence[tuple[str, Array]],
    points: Sequence[SizePoint],
    value: Callable[[float, float], Array],
    extrapolate_to: Sequence[float],
) -> SizeLaw:
    """A law from its coefficients and from its values at (N, B), estimate first, then draws."""
    sizes = [m.parameters for m in used]
    ends = [*sizes, *extrapolate_to]

    def at(parameters: float, tokens: float) -> LawValue:
        middle, low, high = _interval(value(parameters, tokens))
        return LawValue(parameters=parameters, tokens=tokens, value=middle, low=low, high=high)

    grid = np.geomspace(min(ends), max(ends), GRID)
    last = scale.levels[-1][1]
    parameters = []
    for name, value_Z in named:
        middle, low, high = _interval(value_Z)
        parameters.append(LawParameter(name=name, value=middle, low=low, high=high))
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
        runs=len({m.run for m in used}),
        size_matters=slope.low > 0 or slope.high < 0,
    )


# --- the best rate -----------------------------------------------------------------------------


def _best_rate(
    measured: Sequence[Measured], extrapolate_to: Sequence[float], draws: int, seed: int
) -> SizeLaw:
    kind = _searched_kind(measured)
    used = [m for m in measured if m.kind == kind]
    scale = _Scale.of(used)
    used = [m for m in used if scale.has(m)]
    runs, rng = _Runs.of(used, scale), np.random.default_rng(seed)
    sizes = sorted({m.parameters for m in used})
    level_RS = np.array([[float(m.parameters == N) for N in sizes] for m in runs.first])
    x_R = np.array([_logit(m.rate) for m in runs.first])
    n_R = np.array([scale.n(m.parameters) for m in runs.first])
    terms_R3 = np.column_stack([x_R, x_R**2, x_R * n_R])
    fit = _Fit.of(np.hstack([level_RS, terms_R3]), runs.mean_R, draws, rng)
    d_Z, e_Z, f_Z = fit.all[:, len(sizes) :].T
    g_Z = np.zeros_like(d_Z)
    if runs.slope_R is not None:
        x_RP = np.column_stack([level_RS, x_R])
        g_Z = _Fit.of(x_RP, runs.slope_R, draws, rng).all[:, -1]
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
        used,
        scale,
        [(name, value_Z[down_Z]) for name, value_Z in named[: 3 if scale.several else 2]],
        list(_best_tried(used)),
        value,
        extrapolate_to,
    )


def _searched_kind(measured: Sequence[Measured]) -> str:
    """The kind of policy with the most rates at two sizes or more; fixed rates first.

    Raises:
        NoLaw: no kind has three rates.
    """

    def rates(kind: str) -> int:
        own = [m for m in measured if m.kind == kind]
        return len({round(m.rate, 3) for m in own}) if len({m.parameters for m in own}) > 1 else 0

    kinds = sorted({m.kind for m in measured}, key=lambda k: (k != "fixed", -rates(k), k))
    enough = [kind for kind in kinds if rates(kind) >= 3]
    if not enough:
        raise NoLaw("needs one kind of policy at three rates or more, and at two sizes or more")
    return enough[0]


def _logit(rate: float) -> float:
    inside = min(max(rate, 0.005), 0.995)
    return math.log(inside / (1 - inside))


def _best_tried(used: Sequence[Measured]) -> Iterator[SizePoint]:
    """The best rate that was run in each cell."""
    for parameters, level in sorted({(m.parameters, m.level) for m in used}):
        cell = [m for m in used if (m.parameters, m.level) == (parameters, level)]
        best = max(cell, key=lambda m: m.nats_per_token)
        yield SizePoint(parameters=parameters, tokens=best.tokens, value=best.rate, runs=len(cell))


def _expit(x_Z: Array) -> Array:
    found: Array = 1 / (1 + np.exp(-np.clip(x_Z, -50, 50)))
    return found


# --- the gap -----------------------------------------------------------------------------------

BASELINE, ACCUMULATED = "fixed 15 %", "accumulated"


def _gap(
    measured: Sequence[Measured], extrapolate_to: Sequence[float], draws: int, seed: int
) -> SizeLaw:
    pairs = list(_pairs(measured, lambda m: m.policy == ACCUMULATED))
    of = f"{ACCUMULATED} - {BASELINE}"
    if len({p.parameters for p in pairs}) < 2:
        pairs, of = list(_pairs(measured, lambda m: True)), f"best - {BASELINE}"
    if len({p.parameters for p in pairs}) < 2:
        raise NoLaw(f"needs {BASELINE} beside another policy at two sizes or more, seed by seed")
    scale = _Scale.of(pairs)
    pairs = [p for p in pairs if scale.has(p)]
    runs, rng = _Runs.of(pairs, scale), np.random.default_rng(seed)
    n_R = np.array([scale.n(p.parameters) for p in runs.first])
    a_Z, s_Z = _Fit.of(np.column_stack([np.ones_like(n_R), n_R]), runs.mean_R, draws, rng).all.T
    coefficients = [a_Z, s_Z]
    if runs.slope_R is not None:
        ones_R1 = np.ones((len(n_R), 1))
        coefficients.append(_Fit.of(ones_R1, runs.slope_R, draws, rng).all[:, 0])

    def value(parameters: float, tokens: float) -> Array:
        terms = (1.0, scale.n(parameters), scale.b(tokens))
        products = (term * c_Z for term, c_Z in zip(terms, coefficients, strict=False))
        found: Array = np.sum(list(products), axis=0)
        return found

    named = list(zip("ast", coefficients, strict=False))
    form = scale.words("gap")
    points = list(_mean_gaps(pairs))
    return _law("gap", of, form, pairs, scale, named, points, value, extrapolate_to)


def _pairs(
    measured: Sequence[Measured], challenger: Callable[[Measured], bool]
) -> Iterator[Measured]:
    """Differences to the baseline at the same size, budget and seed, of the best challenger."""
    keys = sorted({(m.parameters, m.seed, m.level) for m in measured})
    for parameters, seed, level in keys:
        cell = [m for m in measured if (m.parameters, m.seed, m.level) == (parameters, seed, level)]
        base = [m.nats_per_token for m in cell if m.policy == BASELINE]
        others = [m for m in cell if m.policy != BASELINE and challenger(m)]
        if base and others:
            best = max(others, key=lambda m: m.nats_per_token)
            gap = best.nats_per_token - float(np.mean(base))
            values = {**vars(best), "run": f"{parameters}/{seed}", "nats_per_token": gap}
            yield Measured(**values)


def _mean_gaps(pairs: Sequence[Measured]) -> Iterator[SizePoint]:
    """The mean over seeds in each cell, with Student's interval where there are two or more."""
    from scipy.special import stdtrit

    for parameters, level in sorted({(p.parameters, p.level) for p in pairs}):
        cell = [p for p in pairs if (p.parameters, p.level) == (parameters, level)]
        gaps = np.array([p.nats_per_token for p in cell])
        half = math.nan
        if len(gaps) > 1:
            half = float(stdtrit(len(gaps) - 1, 0.975) * gaps.std(ddof=1) / math.sqrt(len(gaps)))
        mean, known = float(gaps.mean()), math.isfinite(half)
        yield SizePoint(
            parameters=parameters,
            tokens=cell[0].tokens,
            value=mean,
            low=mean - half if known else None,
            high=mean + half if known else None,
            runs=2 * len(gaps),
        )
