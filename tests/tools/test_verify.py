"""A wrong estimator fails verification, the right one passes, and the command says which it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mptune.cli import main
from mptune.lml import LMLEstimate, estimate_lml, masked_sums
from mptune.models.oracles import PPCA
from mptune.tools import verify as verification
from mptune.tools.verify import (
    Claim,
    Effort,
    FoundingEstimator,
    Verification,
    bed_checks,
    coverage_band,
    expected_rate_bias,
    founding_data,
    make_bed,
    mask_scores,
    run_bed,
    verify,
)

REPLICATIONS = 120


@pytest.fixture(scope="module")
def small() -> Verification:
    """Everything that the command does, little of it."""
    effort = Effort(replications=20, own_seeds=4, forwards_per_sequence=(2,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "QUICK", effort)
        return verify(quick=True, seed=3)


def altered(change: Callable[[LMLEstimate], LMLEstimate]) -> Callable[..., LMLEstimate]:
    return lambda *args, **options: change(estimate_lml(*args, **options))


def scaled_errors(factor: float) -> Callable[..., LMLEstimate]:
    return altered(
        lambda e: replace(e, se_population=factor * e.se_population, se_fixed=factor * e.se_fixed)
    )


def one_rate_only(log_prob, tokens, observed, *, seed, **options):
    """Scores D S(M) at M = D / 5, beside honest standard errors."""
    order = np.random.default_rng(seed).random(tokens.shape).argsort(axis=1)
    mask = order < tokens.shape[1] // 5
    score = masked_sums(log_prob(tokens, mask), mask).mean() * tokens.shape[1] / mask[0].sum()
    found = estimate_lml(log_prob, tokens, observed, seed=seed, **options)
    return replace(found, nats_per_sequence=float(score))


def failed(estimate: Callable[..., LMLEstimate], kind: str, missing: float = 0.0) -> list[str]:
    bed = make_bed(kind, missing, seed=5)
    found = run_bed(bed, REPLICATIONS, seed=6, estimate=estimate)
    return [
        c.name.removeprefix(f"{bed.name}: ")
        for c in bed_checks(found, REPLICATIONS)
        if not c.passed
    ]


@pytest.mark.parametrize(("kind", "missing"), [("PPCA", 0.3), ("HMM", 0.0), ("joint", 0.3)])
def test_the_estimator_passes(kind: str, missing: float) -> None:
    assert failed(estimate_lml, kind, missing) == []


@pytest.mark.parametrize("kind", ["PPCA", "Markov chain"])
def test_an_estimate_off_by_three_percent_fails(kind: str) -> None:
    biased = altered(lambda e: replace(e, nats_per_sequence=1.03 * e.nats_per_sequence))
    assert "bias over replications" in failed(biased, kind)


@pytest.mark.parametrize("kind", ["PPCA", "HMM", "joint"])
def test_halved_standard_errors_fail(kind: str) -> None:
    both = {f"coverage of the 95 % interval, {k}" for k in ("population", "fixed")}
    assert both <= set(failed(scaled_errors(0.5), kind))


def test_scoring_at_one_rate_fails() -> None:
    assert {"estimate", "coverage of the 95 % interval, fixed"} <= set(failed(one_rate_only, "HMM"))


@pytest.mark.parametrize("kind", ["HMM", "joint"])
def test_doubled_standard_errors_fail(kind: str) -> None:
    assert "SE over spread" in failed(scaled_errors(2.0), kind)


def test_errors_of_nan_fail() -> None:
    broken = altered(lambda e: replace(e, nats_per_sequence=float("nan")))
    assert len(failed(broken, "HMM")) == 5


def test_a_biased_estimator_fails_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    effort = Effort(replications=20, own_seeds=2, forwards_per_sequence=(20,))
    monkeypatch.setattr(verification, "QUICK", effort)
    monkeypatch.setattr(verification, "FOUNDING_FIGURES", {1: (-60.445, 0.474)})
    biased = altered(lambda e: replace(e, nats_per_sequence=1.05 * e.nats_per_sequence))
    names = {check.name for check in verify(quick=True, estimate=biased).failed}
    beds = ("PPCA", "HMM", "Markov chain", "joint")
    assert {f"{k}{m}: bias over replications" for k in beds for m in ("", ", missing")} <= names
    assert "founding: our estimator with 20000 forwards" in names
    assert not any(name.startswith("fixed rates") or "Σ" in name for name in names)


def test_a_wrong_conditional_breaks_the_identity() -> None:
    bed = make_bed("joint", 0.0, seed=1)
    tokens, observed = bed.tokens_ND[:20], bed.observed_ND[:20]
    exact = mask_scores(bed.oracle, tokens, observed).sum(axis=1)
    np.testing.assert_allclose(exact, bed.truth_N[:20], atol=1e-12)

    class Tempered:
        def log_prob(self, tokens_BD, mask_BD):
            return 0.999 * bed.oracle.log_prob(tokens_BD, mask_BD)

    wrong = mask_scores(Tempered(), tokens, observed).sum(axis=1)  # type: ignore[arg-type]
    assert (np.abs(wrong - bed.truth_N[:20]) > 1e-4).all()


def test_bias_of_one_rate_in_two_dimensions() -> None:
    """By hand: with correlation r, M = 1 gains -(1/2) log(1 - r^2), and M = 2 loses the same."""
    gain = -0.5 * np.log(1 - 0.6**2)
    bias = expected_rate_bias(np.array([[1.0, 0.6], [0.6, 1.0]]))
    np.testing.assert_allclose(bias, [gain, -gain], rtol=1e-12)


@pytest.mark.parametrize("replications", [80, 600])
def test_coverage_band_is_binomial(replications: int) -> None:
    low, high = coverage_band(replications)
    drawn = np.random.default_rng(0).binomial(replications, 0.95, 200_000) / replications
    below, above = (drawn < low).mean(), (drawn > high).mean()
    assert max(below, above) <= 0.026
    assert ((drawn <= low).mean(), (drawn >= high).mean()) > (0.024, 0.024)
    wide = coverage_band(replications, 0.93, 0.97)
    assert wide[0] < low < high < wide[1]


def test_principal_sequences_stand_for_all() -> None:
    ppca = PPCA.random(length=12, latent=3, seed=1)
    tokens = ppca.sample(50, seed=2)
    masks = np.random.default_rng(3).random((9, 12)) < 0.5
    masks[0] = True
    masks[1:, 0] = True
    expected = [ppca.log_prob(tokens, np.tile(mask, (50, 1)))[:, mask].mean() for mask in masks]
    np.testing.assert_allclose(FoundingEstimator(ppca, tokens).score(masks), expected, rtol=1e-10)


def test_the_founding_estimator_has_no_bias() -> None:
    ppca = PPCA.random(length=8, latent=2, seed=1)
    tokens = ppca.sample(50, seed=2)
    founding = FoundingEstimator(ppca, tokens)
    found = [founding.estimate(2, seed) for seed in range(400)]
    error = np.mean(found) - ppca.log_marginal(tokens).mean()
    assert abs(error) < 3.5 * np.std(found) / 20


def test_founding_figures_to_their_digits(small: Verification) -> None:
    founding = small.founding
    assert founding.exact == pytest.approx(-60.3436, abs=5e-5)
    found = [(row.permutations, round(row.mean, 3), round(row.sd, 3)) for row in founding.rows]
    assert found == [(1, -60.445, 0.475), (10, -60.223, 0.130), (100, -60.341, 0.030)]


def test_founding_noise_is_one_number_a_sequence() -> None:
    ppca, tokens = founding_data()
    residual = tokens - tokens @ np.linalg.pinv(ppca.loadings_DQ.T) @ ppca.loadings_DQ.T
    assert np.linalg.matrix_rank(residual, tol=1e-6) == 1


def test_small_verification_passes(small: Verification) -> None:
    assert small.failed == ()
    assert len(small.beds) == 8
    assert len(small.checks) == 8 * 5 + 2 + 4 + 1 + 6 + 1 + 1
    assert max(one.error for one in small.identity) < 1e-12


def test_table(
    small: Verification, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verification, "verify", lambda **options: small)
    assert main(["verify", "--quick"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    head, *rows = lines[1:10]
    assert head.split("  ")[-1].strip() == "SE/sd"
    assert {len(row) for row in rows} == {len(head)}
    assert lines[-1].startswith("55 of 55 checks passed: all passed")


def test_json(
    small: Verification, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = replace(small, beds=(replace(small.beds[0], z=float("inf")), *small.beds[1:]))
    monkeypatch.setattr(verification, "verify", lambda **options: endless)
    assert main(["verify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["passed"] is True
    assert found["beds"][0]["z"] is None
    assert found["beds"][1]["coverage_fixed"] == small.beds[1].coverage_fixed
    assert found["founding"]["rows"][2]["permutations"] == 100
    assert {"name", "passed", "words"} == set(found["checks"][0])


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_a_failure_is_named_and_is_exit_code_3(
    small: Verification,
    json_option: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = replace(small, checks=(*small.checks, Claim("HMM: estimate", False, "z = 9.00")))
    monkeypatch.setattr(verification, "verify", lambda **options: bad)
    assert main(["verify", *json_option]) == 3
    out, err = capsys.readouterr()
    assert err == "mptune: failed: HMM: estimate: z = 9.00\n"
    assert ('"passed": false' if json_option else "1 FAILED") in out


def test_options_reach_the_computation(
    small: Verification, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = {}
    monkeypatch.setattr(verification, "verify", lambda **options: seen.update(options) or small)
    main(["verify", "--quick", "--seed", "7"])
    assert (seen["quick"], seen["seed"]) == (True, 7)
    assert main(["verify", "--seed", "-1"]) == 2
    assert "-1 is negative" in capsys.readouterr().err
