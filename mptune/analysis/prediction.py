"""What the exposure law of a search predicts: evidence from its finished trials, and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from mptune.analysis.exposure import BANDS, Evidence, Exposed, Points, Surrogate, model_context
from mptune.analysis.intervals import NORMAL_95
from mptune.analysis.learning import CommonScale, ScoredRun, evidence_of_runs
from mptune.errors import InputError
from mptune.spec.schema import build
from mptune.trial import Message, Trial

FIXED = tuple(np.linspace(0.04, 0.96, 24).round(3).tolist())
MEANS = tuple(np.linspace(0.1, 0.9, 9).round(3).tolist())
CONCENTRATIONS = (2.0, 4.0, 8.0, 16.0)
"""Mask rates, and the laws of the beta's plane, at which a picture has predictions."""

LEAST_FINISHED = 4
"""Fewest finished trials for a picture."""


class PredictedLine(Message):
    """Predicted scores of fixed rates, or of beta laws of one concentration."""

    concentration: float | None = Field(description="a + b of the beta laws; None: fixed rates")
    points: tuple[tuple[float, float, float], ...] = Field(
        description="(mean mask rate, predicted nats per token, half-width of its 95 % interval)"
    )


class Prediction(Message):
    """What the exposure law predicts, for the size and the training of one trial."""

    trial: int
    size_label: str
    lines: tuple[PredictedLine, ...]
    fixed: tuple[tuple[float, int], ...] = Field(
        description="(rate, number) of the finished trials of this size with a fixed rate"
    )
    beta: tuple[tuple[float, int], ...] = Field(
        description="(mean rate, number) of those with a beta law"
    )


def prediction(trials: Sequence[Trial], of: Trial, length: int) -> Prediction | None:
    """The picture of a search's surrogate; None with too few finished trials.

    Args:
        of: the trial whose size and training the predictions are for.
        length: positions of a sequence.
    """
    finished = [t for t in trials if t.finished and t.spec is not None and t.same_as is None]
    if len(finished) < LEAST_FINISHED or of.spec is None:
        return None
    outer = build("policy", of.policy).outer()
    laws: list[tuple[float | None, float, dict[str, Any]]] = [
        (None, rate, {"kind": "fixed", "rate": rate}) for rate in FIXED
    ]
    laws += [
        (c, mean, {"kind": "beta", "a": c * mean, "b": c * (1 - mean)})
        for c in CONCENTRATIONS
        for mean in MEANS
    ]
    try:
        seen = [_exposed(trial, trial.policy, length) for trial in finished]
        others = [_exposed(of, {**law, **outer}, length) for *_, law in laws]
    except (InputError, ValueError):  # a plugin that is not installed here
        return None
    evidence, points, scale = evidence_of(seen, finished, others, margin=1 / length)
    mean_K, sd_K = Surrogate.of(evidence).predict(points)
    low_K, high_K = (
        scale.scores(mean_K + side * NORMAL_95 * sd_K, of.size_label) for side in (-1, 1)
    )
    mean_K, half_K = (low_K + high_K) / 2, (high_K - low_K) / 2
    lines = tuple(
        PredictedLine(
            concentration=wanted,
            points=tuple(
                (rate, float(mean), float(half))
                for (c, rate, _), mean, half in zip(laws, mean_K, half_K, strict=True)
                if c == wanted
            ),
        )
        for wanted in (None, *CONCENTRATIONS)
    )
    same = [trial for trial in finished if trial.size_label == of.size_label]
    return Prediction(
        trial=of.number,
        size_label=of.size_label,
        lines=lines,
        fixed=tuple(_tried(same, "fixed")),
        beta=tuple(_tried(same, "beta")),
    )


def _exposed(trial: Trial, policy: dict[str, Any], length: int) -> Exposed:
    """The point of a trial, with another policy."""
    assert trial.spec is not None
    model = model_context(trial.model, trial.parameters)
    training = trial.spec.training.model_dump(mode="json")
    return Exposed.of({"policy": policy, "training": training, "model": model}, length)


def _tried(trials: Sequence[Trial], kind: str) -> Iterator[tuple[float, int]]:
    for trial in trials:
        if trial.policy.get("kind") == kind:
            a, b = trial.policy.get("a", 0.0), trial.policy.get("b", 1.0)
            rate = trial.policy["rate"] if kind == "fixed" else a / (a + b)
            yield float(rate), trial.number


def evidence_of(
    seen: Sequence[Exposed], trials: Sequence[Trial], others: Sequence[Exposed], margin: float
) -> tuple[Evidence, Points, CommonScale]:
    """Trials with a score as a surrogate takes them, other points in the same columns, the scale.

    Args:
        seen: the points of the trials.
        others: points to predict.
        margin: difference of scores that does not matter, in nats per token.
    """
    points = Points.of([*seen, *others])
    evidence, scale = evidence_of_runs(
        points.take(slice(len(trials))), [scored_run(trial) for trial in trials], margin
    )
    return evidence, points.take(slice(len(trials), None)), scale


def scored_run(trial: Trial) -> ScoredRun:
    """The scores of a trial that has one, among trials of its size."""
    run = ScoredRun(dict(trial.rungs), None, None, trial.seed or 0, trial.size_label)
    if not trial.finished:
        return run
    curve = sorted((p.mask_rate, p.nats_per_token) for p in trial.require_result().lml.curve)
    curve_G = None
    if len(curve) > 1:
        rates, scores = zip(*curve, strict=True)
        curve_G = np.interp((np.arange(BANDS) + 0.5) / BANDS, rates, scores)
    return replace(run, end=trial.nats_per_token, curve_G=curve_G)
