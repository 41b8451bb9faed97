"""A wrong estimator fails verification, the right one passes, and the command says which it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mptune.cli import main
from mptune.lml.estimator import LMLEstimate, estimate_lml, masked_sums
from mptune.tools import verify as verification
from mptune.tools.verify import (
    Requirement,
    Verification,
    bed_checks,
    coverage_band,
    make_bed,
    mask_scores,
    run_bed,
    verify,
)

REPLICATIONS = 120


@pytest.fixture(scope="module")
def small() -> Verification:
    """Everything that the command does, little of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "QUICK", 20)
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
    monkeypatch.setattr(verification, "QUICK", 20)
    biased = altered(lambda e: replace(e, nats_per_sequence=1.05 * e.nats_per_sequence))
    names = {check.name for check in verify(quick=True, estimate=biased).failed}
    beds = ("PPCA", "HMM", "Markov chain", "joint")
    assert {f"{k}{m}: bias over replications" for k in beds for m in ("", ", missing")} <= names
    assert not any("Σ" in name for name in names)


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


@pytest.mark.parametrize("replications", [80, 600])
def test_coverage_band_is_binomial(replications: int) -> None:
    low, high = coverage_band(replications)
    drawn = np.random.default_rng(0).binomial(replications, 0.95, 200_000) / replications
    below, above = (drawn < low).mean(), (drawn > high).mean()
    assert max(below, above) <= 0.026
    assert ((drawn <= low).mean(), (drawn >= high).mean()) > (0.024, 0.024)
    wide = coverage_band(replications, 0.93, 0.97)
    assert wide[0] < low < high < wide[1]


def test_small_verification_passes(small: Verification) -> None:
    assert small.failed == ()
    assert len(small.beds) == 8
    assert len(small.checks) == 8 * 5 + 2


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
    assert lines[-1].startswith("42 of 42 checks passed: all passed")


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
    assert {"name", "passed", "words"} == set(found["checks"][0])


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_a_failure_is_named_and_is_exit_code_3(
    small: Verification,
    json_option: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = replace(small, checks=(*small.checks, Requirement("HMM: estimate", False, "z = 9.00")))
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
