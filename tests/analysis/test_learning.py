"""The scale on which runs are compared, and where stopped runs are expected to end."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.analysis.exposure import BANDS, Exposed, Points
from mptune.analysis.learning import PRIOR_RUNS, PRIOR_SD, CommonScale, ScoredRun, evidence_of_runs


def runs(rng: np.random.Generator, count: int, sd: float, until: int = 3) -> list[ScoredRun]:
    """Gaps from 0.1 to 10; each run gains 1 on average, with an SD in proportion to gap + 1."""
    found = []
    for gap in np.geomspace(0.1, 10, count) - 0.1:
        score, scores = -gap, []
        for _ in range(until):
            scores.append(score)
            gap = (1 + gap) * np.exp(sd * rng.standard_normal()) - 1
            score = 1.0 * len(scores) - gap
        rungs = dict(zip((0.25, 0.5), scores[:2], strict=False))
        found.append(ScoredRun(rungs, scores[2] if until == 3 else None))
    return found


def test_near_the_best_the_scale_is_the_score_and_far_below_its_logarithm() -> None:
    ends = [-2.0, -2.1, -2.2, -3.0, -12.0]
    scale = CommonScale.of([ScoredRun({}, end) for end in ends], margin=0.1)
    assert scale.near == pytest.approx(0.08), "a fifth of the gaps is below"
    found = [scale.end(ScoredRun({}, end)) for end in ends]
    assert [variance for _, variance in found] == [0.0] * 5
    assert found[0][0] == -2.0
    assert found[1][0] == pytest.approx(-2 - 0.08 * np.log(1 + 0.1 / 0.08))
    assert found[3][0] - found[4][0] == pytest.approx(0.08 * np.log(10.08 / 1.08))
    back = scale.scores(np.array([value for value, _ in found]), None)
    np.testing.assert_allclose(back, ends)


def test_what_does_not_matter_is_no_distance() -> None:
    equal = [ScoredRun({}, -2.0), ScoredRun({}, -2.0 - 1e-9)]
    assert CommonScale.of(equal, margin=0.1).near == 0.05


def test_a_size_that_has_not_finished_is_expected_to_improve_as_others_did() -> None:
    small = [
        ScoredRun({0.25: -4.0, 0.5: -3.5}, -3.0, group="S"),
        ScoredRun({0.25: -4.5}, None, group="S"),
    ]
    scale = CommonScale.of([*small, ScoredRun({0.25: -3.8}, None, group="L")], margin=0.1)
    assert scale.levels == {"S": -3.0, "L": pytest.approx(-2.8)}
    assert scale.end(ScoredRun({0.25: -3.8}, None, group="L"))[0] > -3.0
    alone = CommonScale.of([ScoredRun({0.25: -3.8}, None, group="L")], margin=0.1)
    assert alone.levels == {"L": -3.8}


def test_a_stopped_run_ends_as_others_did_from_its_rung() -> None:
    rng = np.random.default_rng(0)
    finished = runs(rng, 400, 0.2)
    scale = CommonScale.of(finished, margin=0.1)
    at_best = ScoredRun({0.25: scale.best[None, 0.25]}, None)
    value, variance = scale.end(at_best)
    # An SD of 0.2 of 1 + gap, where `near` says how far z = 1 is.
    fresh = runs(np.random.default_rng(1), 400, 0.2)
    errors = []
    for run in fresh:
        expected, spread = scale.end(ScoredRun({0.25: run.rungs[0.25]}, None))
        errors.append((scale.end(run)[0] - expected) / np.sqrt(spread))
    assert abs(np.mean(errors)) < 0.15
    assert np.std(errors) == pytest.approx(1, abs=0.15)
    assert variance > 0
    assert value < scale.best[None, 1.0], "the best at the rung is not the best at the end"
    assert scale.end(ScoredRun({0.25: -1.0, 0.5: -1.0}, None))[1] < variance


def test_before_any_run_has_gone_on_the_prior_says_how_curves_cross() -> None:
    early = [ScoredRun({0.125: -3.0 - gap}, None) for gap in (0.0, 0.5, 1.0)]
    scale = CommonScale.of(early, margin=0.1)
    found = [scale.end(run) for run in early]
    prior = scale.near**2 * PRIOR_SD**2 * np.log(0.125) ** 2
    assert [variance for _, variance in found] == pytest.approx([prior] * 3)
    assert [value for value, _ in found] == sorted((value for value, _ in found), reverse=True)
    # The errors of two rungs add up to that of the first.
    at_both = [*early, ScoredRun({0.125: -3.0, 0.25: -2.5}, None)]
    first = CommonScale.of(at_both, margin=0.1).gains[0.125]
    assert first.variance == pytest.approx(PRIOR_SD**2 * (np.log(0.125) ** 2 - np.log(0.25) ** 2))
    # One run that went on tells what runs gain, not how much this varies.
    one = [*early, ScoredRun({0.125: -3.0}, -2.0)]
    (gain,) = CommonScale.of(one, margin=0.1).gains.values()
    assert gain.variance == pytest.approx(PRIOR_SD**2 * np.log(0.125) ** 2)
    assert gain.variance_of_mean == gain.variance
    assert PRIOR_RUNS > 1


def test_runs_are_compared_within_their_group() -> None:
    both = [ScoredRun({0.5: s}, s + 1, group=size) for size, s in (("S", -9.0), ("L", -2.0))]
    scale = CommonScale.of([*both, ScoredRun({0.5: -9.5}, None, group="S")], margin=0.2)
    assert [scale.end(run)[0] for run in both] == [-8.0, -1.0]
    stopped = scale.end(ScoredRun({0.5: -9.5}, None, group="S"))[0]
    assert -8.5 < stopped < -8.0


def test_curves_keep_their_mean_at_the_score() -> None:
    points = Points.of([Exposed.of({"policy": {"kind": "fixed", "rate": r}}) for r in (0.2, 0.4)])
    curve_G = np.linspace(-1, -3, BANDS)
    ended = [ScoredRun({}, -2.0, curve_G), ScoredRun({}, -6.0, 3 * curve_G)]
    evidence, scale = evidence_of_runs(points, ended, 0.1)
    np.testing.assert_allclose(evidence.curve_NG.mean(1), evidence.score_N)
    np.testing.assert_allclose(evidence.curve_NG[0], curve_G)
    ratio = np.ptp(evidence.curve_NG[1]) / np.ptp(3 * curve_G)
    assert ratio == pytest.approx(1 / (1 + 4 / scale.near))
