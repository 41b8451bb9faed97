"""The best mask rate and the gap in LML over model size: laws averaged over forms.

Notation: y what was measured at S sizes of N parameters, with covariance sigma² V, where sigma² is
the noise variance of one run, known by its residual squares and their degrees of freedom;
u = ln(N / largest N), between -R and 0 for the sizes that were run.

    y = a + s phi(u) + d + noise,    s ~ N(0, rho² sigma²),    d ~ N(0, kappa² rho² sigma²)

    constant      phi = 0
    linear        phi = u
    power         phi = exp(g u), i.e. y = a + s N^g
    saturating    phi = tanh((u - m R) / w)
    turning       phi = (u - m R)²

with each phi scaled to a range of 1 between the smallest and the largest size. d is a deviation
that all points of a size share. Given a form, rho and kappa, the marginal likelihood is closed, and
y at another size is Student's t with S - 1 more degrees of freedom (Bayesian linear regression with
a and ln sigma flat, Gelman et al., Bayesian Data Analysis, ch. 14). The law is the mixture of these
over a grid, weighted by prior and marginal likelihood (Hoeting et al. 1999,
doi:10.1214/ss/1009212519). Grid and prior were chosen by simulation (benchmarks/sizes.py).

    gap         y = nats per token of one policy minus those of fixed 15 %, means over seeds
    best rate   y = -d / 2 e of score = level of N + d(N) x + e x², x = logit of the rate, e < 0

All are scores at the end of training, on one plan: a rung has another plan, and a learning rate
that has not come down, so it is no run of a smaller budget.

Shape suffixes: S sizes, R runs, P coefficients, F shapes or forms, K components, T sizes to
predict, Z draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from mptune.analysis.intervals import half_width
from mptune.analysis.ranking import ACCUMULATED, FIXED_15, is_accumulated, is_fixed_15
from mptune.trial import Message, Trial

Array = NDArray[np.float64]
Form = Literal["constant", "linear", "power", "saturating", "turning"]

PRIOR: Mapping[Form, float] = {
    "constant": 0.2, "linear": 0.35, "power": 0.25, "saturating": 0.1, "turning": 0.1,
}  # fmt: skip
"""Prior probability of each form, shared equally by its shapes."""

POWERS, TURNS = (-0.4, 0.25, 0.5), (-0.67, -0.5, -0.25)
MIDDLES, WIDTHS = (-1.0, -0.75, -0.5, -0.25), (0.5, 1.5)
"""g of power laws, m of turning ones; m and w of saturating ones."""

RHO, RHO_PRIOR = 2 * 4.0 ** np.arange(6), np.array([0.4, 0.35, 0.15, 0.06, 0.03, 0.01])
KAPPA, KAPPA_PRIOR = np.array([0.005, 0.05]), np.array([0.8, 0.2])

DRAWS, GRID = 4000, 25
"""Draws of the mixture, and sizes of a drawn curve."""

LEAST_SIZES, FAR, TOO_FAR = 3, 3.0, 10.0
"""An extrapolation takes that many sizes. It is marked above the first multiple of the largest
size, and refused above the second, where its intervals were never calibrated."""

Verdict = Literal["inside", "agreed", "forms differ", "far", "few sizes", "left out", "too far"]
REFUSED: frozenset[Verdict] = frozenset({"few sizes", "left out", "too far"})


class SizePoint(Message):
    """What was measured at one size.

    Attributes:
        parameters: of the model.
        value: best rate as a fraction, or gap in nats per token.
        low: ends of its 95 % interval, where there is one.
        runs: training runs behind it.
    """

    parameters: int
    value: float
    low: float | None = None
    high: float | None = None
    runs: int = 1


class LawValue(Message):
    """The law at one size: its median, and its 95 % interval over forms and noise."""

    parameters: float
    value: float
    low: float
    high: float


class Extrapolation(Message):
    """The law at a size that the user names.

    Attributes:
        at: None: refused.
        beyond: how far outside the sizes that were run, as a factor; 1 is inside.
        verdict: inside the sizes that were run; agreed; `forms differ`: those with a weight of 10 %
            or more lie further apart than a third of the interval; `far`: a factor above 3.
            Refused: `few sizes` (fewer than 3); `left out`: the other sizes do not predict the
            largest one; `too far`: a factor above 10.
    """

    parameters: float
    at: LawValue | None
    beyond: float
    verdict: Verdict


class FormShare(Message):
    """One form of the law.

    Attributes:
        weight: its share of the averaged law.
        values: its mean at each size to extrapolate to.
    """

    form: Form
    weight: float
    values: tuple[float, ...]


class SizeLaw(Message):
    """A law averaged over forms, and what it was fitted to.

    Attributes:
        of: what it is about, e.g. `fixed` or `accumulated - fixed 15 %`.
        curve: over a grid of sizes.
        left_out: what the other sizes predict to be measured at the largest one; None with fewer
            than 3 sizes.
        covered: the value at the largest size lies in that interval.
        size_matters: the data are 20 times as probable under the other forms as under a constant.
    """

    what: Literal["best rate", "gap"]
    of: str
    forms: tuple[FormShare, ...]
    points: tuple[SizePoint, ...]
    curve: tuple[LawValue, ...]
    left_out: LawValue | None = None
    covered: bool
    extrapolation: tuple[Extrapolation, ...] = ()
    size_matters: bool


class BySize(Message):
    """The laws of a study over several sizes; one that cannot be fitted says why not.

    Attributes:
        best_rate_missing: why there is no law of the best rate.
        gap_missing: why there is no law of the gap.
    """

    best_rate: SizeLaw | None = None
    gap: SizeLaw | None = None
    best_rate_missing: str = ""
    gap_missing: str = ""


class NoLaw(Exception):
    """A law cannot be fitted; the message says why."""


def by_size(trials: Sequence[Trial], extrapolate_to: Sequence[float] = ()) -> BySize | None:
    """Both laws, as far as they can be fitted; None with fewer than two sizes.

    Trials that did not finish, and those that took over another's result, are left out.
    """
    used = [t for t in trials if t.result and t.state == "COMPLETE" and t.same_as is None]
    if len({_size(trial) for trial in used}) < 2:
        return None
    fields: dict[str, Any] = {}
    for name, fit in (("best_rate", _best_rate), ("gap", _gap)):
        try:
            fields[name] = fit(used, extrapolate_to)
        except NoLaw as error:
            fields[f"{name}_missing"] = str(error)
    return BySize(**fields)


def _size(trial: Trial) -> int:
    """Parameters of its model."""
    return trial.require_result().cost.parameters


# --- the law -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured at each size, and its noise.

    Attributes:
        parameters_S: of the models, increasing.
        y_S: gaps in nats per token, or logits of best rates.
        covariance_SS: of `y_S`, divided by the noise variance of one run.
        squares: sum of squares of residuals, which estimates that variance.
        degrees: of freedom behind `squares`; may be 0.
        runs_S: training runs behind each value.
    """

    parameters_S: Array
    y_S: Array
    covariance_SS: Array
    squares: float
    degrees: int
    runs_S: Sequence[int] = ()


@dataclass(frozen=True, eq=False)
class AveragedLaw:
    """A law at T sizes.

    Attributes:
        quantiles_T3: 0.025, 0.5 and 0.975.
        weights: of each form.
        values_FT: mean of each form.
    """

    quantiles_T3: Array
    weights: Mapping[Form, float]
    values_FT: Array


def averaged_law(
    measured: Measured, at: Sequence[float] | Array, noise: float | None = None
) -> AveragedLaw:
    """The law at sizes of `at` parameters.

    With `noise`, a variance as in `covariance_SS`, a new measurement there: the law, the deviation
    of its size, and its noise.
    """
    n_S, S = np.log(measured.parameters_S), len(measured.y_S)
    u_S, u_T = n_S - n_S[-1], np.log(at) - n_S[-1]
    shapes = _shapes(-u_S[0])
    forms = list(PRIOR)
    form_F = np.array([forms.index(form) for form, _ in shapes])
    prior_F = np.array(list(PRIOR.values()))[form_F] / np.bincount(form_F)[form_F]
    within = np.linspace(u_S[0], 0, 9)
    phi_FS, phi_FT, range_F = (np.stack([phi(u) for _, phi in shapes]) for u in (u_S, u_T, within))
    range_F1 = np.where(form_F, np.ptp(range_F, 1), 1)[:, None]

    f_K, r_K, k_K = (index.ravel() for index in np.indices((len(shapes), len(RHO), len(KAPPA))))
    phi_KS, phi_KT = (RHO[r_K][:, None] * (phi / range_F1)[f_K] for phi in (phi_FS, phi_FT))
    deviation_K = (KAPPA[k_K] * RHO[r_K]) ** 2
    covariance_KSS = measured.covariance_SS + deviation_K[:, None, None] * np.eye(S)
    covariance_KSS += phi_KS[:, :, None] * phi_KS[:, None, :]
    inverse_KSS = np.linalg.inv(covariance_KSS)
    one_KS = inverse_KSS.sum(1)
    total_K = one_KS.sum(1)
    level_K = one_KS @ measured.y_S / total_K
    residual_KS = measured.y_S - level_K[:, None]
    explained_KS = np.einsum("kij,kj->ki", inverse_KSS, residual_KS)
    squares_K = measured.squares + (residual_KS * explained_KS).sum(1) + 1e-300
    degrees = measured.degrees + S - 1
    log_K = np.log(prior_F[f_K] * RHO_PRIOR[r_K] * KAPPA_PRIOR[k_K])
    log_K -= (np.linalg.slogdet(covariance_KSS)[1] + np.log(total_K)) / 2
    log_K -= degrees / 2 * np.log(squares_K)
    weight_K = np.exp(log_K - log_K.max())
    weight_K /= weight_K.sum()

    # The best linear predictor with a flat level, and its variance in units of sigma².
    cross_KST = phi_KS[:, :, None] * phi_KT[:, None, :]
    mean_KT = level_K[:, None] + np.einsum("kst,ks->kt", cross_KST, explained_KS)
    variance_KT = phi_KT**2 - (cross_KST * (inverse_KSS @ cross_KST)).sum(1)
    variance_KT += (1 - np.einsum("ks,kst->kt", one_KS, cross_KST)) ** 2 / total_K[:, None]
    if noise is not None:
        variance_KT += noise + deviation_K[:, None]
    sd_KT = np.sqrt(np.maximum(variance_KT, 0) * (squares_K / degrees)[:, None])

    # Components by systematic sampling; the same t at all sizes makes smooth curves.
    k_Z = np.searchsorted(weight_K.cumsum() / weight_K.sum(), (np.arange(DRAWS) + 0.5) / DRAWS)
    t_Z1 = np.random.default_rng(0).standard_t(degrees, (DRAWS, 1))
    share_FK = weight_K * (form_F[f_K] == np.arange(len(forms))[:, None])
    weight_F1 = share_FK.sum(1, keepdims=True)
    return AveragedLaw(
        np.quantile(mean_KT[k_Z] + sd_KT[k_Z] * t_Z1, (0.025, 0.5, 0.975), axis=0).T,
        dict(zip(forms, weight_F1[:, 0].tolist(), strict=True)),
        share_FK @ mean_KT / np.maximum(weight_F1, 1e-300),
    )


def left_out(measured: Measured) -> AveragedLaw:
    """What the other sizes predict to be measured at the largest one."""
    others = replace(
        measured,
        parameters_S=measured.parameters_S[:-1],
        y_S=measured.y_S[:-1],
        covariance_SS=measured.covariance_SS[:-1, :-1],
    )
    noise = float(measured.covariance_SS[-1, -1])
    return averaged_law(others, measured.parameters_S[-1:], noise)


def _shapes(span: float) -> list[tuple[Form, Callable[[Array], Array]]]:
    """Every shape phi(u) of each form, for sizes whose logarithms span `span`."""
    steps = [(m * span, w) for m in MIDDLES for w in WIDTHS]
    return [
        ("constant", np.zeros_like),
        ("linear", np.positive),
        *(("power", lambda u, g=g: np.exp(g * u)) for g in POWERS),
        *(("saturating", lambda u, m=m, w=w: np.tanh((u - m) / w)) for m, w in steps),
        *(("turning", lambda u, m=m: (u - m * span) ** 2) for m in TURNS),
    ]


def _points(measured: Measured, unit: Callable[[Array], Array]) -> Iterator[SizePoint]:
    """What was measured at each size, with its interval where the noise is known."""
    known = measured.degrees > 0  # from more than one seed or rate
    variance_S = np.diag(measured.covariance_SS) * measured.squares / max(measured.degrees, 1)
    half_S = half_width(1.0, max(measured.degrees, 1)) * np.sqrt(variance_S)
    for N, y, half, runs in zip(
        measured.parameters_S, measured.y_S, half_S, measured.runs_S, strict=True
    ):
        yield SizePoint(
            parameters=int(N),
            value=float(unit(y)),
            low=float(unit(y - half)) if known else None,
            high=float(unit(y + half)) if known else None,
            runs=runs,
        )


def size_law(
    what: Literal["best rate", "gap"],
    of: str,
    measured: Measured,
    extrapolate_to: Sequence[float],
    unit: Callable[[Array], Array] = np.positive,
) -> SizeLaw:
    """The law of `measured`; `unit` turns y into a value."""
    smallest, largest = measured.parameters_S[[0, -1]].tolist()
    points = tuple(_points(measured, unit))

    def values(law: AveragedLaw, at: Sequence[float] | Array) -> list[LawValue]:
        rows = zip(at, unit(law.quantiles_T3).tolist(), strict=True)
        return [LawValue(parameters=N, low=lo, value=y, high=hi) for N, (lo, y, hi) in rows]

    named = averaged_law(measured, [*extrapolate_to, largest])
    weights, means_FT = named.weights, unit(named.values_FT)
    enough = len(points) >= LEAST_SIZES
    left = values(left_out(measured), [largest])[0] if enough else None
    covered = left is not None and left.low <= points[-1].value <= left.high

    def extrapolation(place: int, at: LawValue) -> Extrapolation:
        beyond = round(max(1.0, at.parameters / largest, smallest / at.parameters), 6)
        likely = means_FT[np.array(list(weights.values())) >= 0.1, place]
        checks: dict[Verdict, bool] = {
            "inside": beyond == 1,
            "few sizes": not enough,
            "left out": not covered,
            "too far": beyond > TOO_FAR,
            "forms differ": np.ptp(likely) > (at.high - at.low) / 3,
            "far": beyond > FAR,
        }
        verdict = next((name for name, holds in checks.items() if holds), "agreed")
        return Extrapolation(
            parameters=at.parameters,
            at=None if verdict in REFUSED else at,
            beyond=beyond,
            verdict=verdict,
        )

    stated = values(named, [*extrapolate_to, largest])[:-1]
    found = tuple(extrapolation(place, at) for place, at in enumerate(stated))
    ends = [smallest, largest, *(e.parameters for e in found if e.at)]
    grid = np.geomspace(min(ends), max(ends), GRID)
    constant, prior = weights["constant"], PRIOR["constant"]
    return SizeLaw(
        what=what,
        of=of,
        forms=tuple(
            FormShare(form=form, weight=weight, values=tuple(means_T.tolist()[:-1]))
            for (form, weight), means_T in zip(weights.items(), means_FT, strict=True)
        ),
        points=points,
        curve=tuple(values(averaged_law(measured, grid), grid)),
        left_out=left,
        covered=covered,
        extrapolation=found,
        size_matters=(1 - constant) * prior > 20 * constant * (1 - prior),
    )


# --- the best rate -----------------------------------------------------------------------------


def _best_rate(trials: Sequence[Trial], extrapolate_to: Sequence[float]) -> SizeLaw:
    """Of the top of a parabola over logit rates, at each size with two rates or more."""
    kind = _searched_kind(trials)
    own = [(_size(t), _rate(t), t.nats_per_token) for t in trials if t.policy["kind"] == kind]
    sizes = sorted(
        N for N in {N for N, *_ in own} if len({round(r, 3) for M, r, _ in own if M == N}) > 1
    )
    N_R, r_R, y_R = np.array([row for row in own if row[0] in sizes]).reshape(-1, 3).T
    x_R1 = logit(r_R.clip(0.005, 0.995))[:, None]
    size_RS = (N_R[:, None] == sizes).astype(np.float64)
    x_RP = np.hstack([size_RS, size_RS * x_R1, x_R1**2])
    R, P = x_RP.shape
    if len(sizes) < 2 or R <= P or np.linalg.matrix_rank(x_RP) < P:
        raise NoLaw(f"needs more than {P} runs, at two rates or more of two sizes or more")
    inverse_PP = np.linalg.inv(x_RP.T @ x_RP)
    found_P = inverse_PP @ x_RP.T @ y_R
    squares, degrees = float(((y_R - x_RP @ found_P) ** 2).sum()), R - P
    d_S, e = found_P[len(sizes) : -1], float(found_P[-1])
    if e + half_width(math.sqrt(squares / degrees * inverse_PP[-1, -1]), degrees) >= 0:
        raise NoLaw("the score does not fall on both sides of a best rate within the rates tried")
    # Delta method: derivatives of -d / 2e by the levels, by d and by e.
    eye_SS = np.eye(len(sizes))
    slope_SP = np.hstack([0 * eye_SS, eye_SS, -d_S[:, None] / e]) / (-2 * e)
    top = Measured(
        parameters_S=np.array(sizes, np.float64),
        y_S=-d_S / (2 * e),
        covariance_SS=slope_SP @ inverse_PP @ slope_SP.T,
        squares=squares,
        degrees=degrees,
        runs_S=size_RS.sum(0).astype(int).tolist(),
    )
    return size_law("best rate", kind, top, extrapolate_to, expit)


def _rate(trial: Trial) -> float:
    """Mean mask rate."""
    fixed = trial.policy["kind"] == "fixed"
    return float(trial.policy["rate"]) if fixed else trial.require_result().mean_mask_rate


def _searched_kind(trials: Sequence[Trial]) -> str:
    """The kind of policy with the most rates at two sizes or more; fixed rates first.

    Raises:
        NoLaw: no kind has three rates.
    """

    def rates(kind: str) -> int:
        own = [trial for trial in trials if trial.policy["kind"] == kind]
        sizes = {_size(trial) for trial in own}
        return len({round(_rate(trial), 3) for trial in own}) if len(sizes) > 1 else 0

    found = {str(trial.policy["kind"]) for trial in trials}
    best = min(found, key=lambda k: (rates(k) < 3, k != "fixed", -rates(k), k))
    if rates(best) < 3:
        raise NoLaw("needs one kind of policy at three rates or more, and at two sizes or more")
    return best


# --- the gap -----------------------------------------------------------------------------------


def _gap(trials: Sequence[Trial], extrapolate_to: Sequence[float]) -> SizeLaw:
    gaps, of = _gaps(trials, is_accumulated), f"{ACCUMULATED} - {FIXED_15}"
    if len(gaps) < 2:
        gaps, of = _gaps(trials, lambda policy: True), f"best - {FIXED_15}"
    if len(gaps) < 2:
        raise NoLaw(
            f"needs {FIXED_15} beside another policy at two sizes or more, seed by seed; to choose "
            "one of several candidates takes two seeds"
        )
    counts = [len(own) for own in gaps.values()]
    mean = Measured(
        parameters_S=np.array(list(gaps), np.float64),
        y_S=np.array([np.mean(own) for own in gaps.values()]),
        covariance_SS=np.diag(1 / np.array(counts)),
        squares=sum(float(np.var(own)) * len(own) for own in gaps.values()),
        degrees=sum(counts) - len(counts),
        runs_S=[2 * count for count in counts],
    )
    return size_law("gap", of, mean, extrapolate_to)


def _gaps(
    trials: Sequence[Trial], challenger: Callable[[Mapping[str, Any]], bool]
) -> dict[int, list[float]]:
    """Size -> difference to fixed 15 % in nats per token of each seed that has both.

    Where a side has several candidates with a seed (policies, learning rates), it is the one with
    the best mean over the other seeds: the maximum over the measured seed would be biased.
    """
    sides: dict[int, tuple[dict[str, dict[int, float]], ...]] = {}
    for trial in trials:
        base = is_fixed_15(trial.policy)
        if base or challenger(trial.policy):
            side = sides.setdefault(_size(trial), ({}, {}))[not base]
            candidate = trial.spec.run_key() if trial.spec else str(trial.policy)
            side.setdefault(candidate, {})[trial.seed or 0] = trial.nats_per_token
    found: dict[int, list[float]] = {}
    for N, (bases, others) in sorted(sides.items()):
        for seed in sorted({seed for scores in bases.values() for seed in scores}):
            pair = _chosen(others, seed), _chosen(bases, seed)
            if pair[0] is not None and pair[1] is not None:
                found.setdefault(N, []).append(pair[0] - pair[1])
    return found


def _chosen(candidates: Mapping[str, Mapping[int, float]], seed: int) -> float | None:
    """The score with this seed of the candidate that is best on the others; None if unknown."""
    own = [scores for scores in candidates.values() if seed in scores]
    if len(own) > 1:
        own = [scores for scores in own if len(scores) > 1]

    def elsewhere(scores: Mapping[int, float]) -> float:
        return float(np.mean([score for s, score in scores.items() if s != seed] or 0))

    return max(own, key=elsewhere)[seed] if own else None
