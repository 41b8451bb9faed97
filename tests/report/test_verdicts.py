"""What a comparison says, word for word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mptune.analysis.arms import Difference
from mptune.analysis.compute import EquivalentCompute
from mptune.report.language import language
from mptune.report.verdicts import (
    compute_words,
    full_sentence,
    plus_minus,
    sentence,
    what_would_decide,
)

EN = language()


def difference(**changes: Any) -> Difference:
    found: dict[str, Any] = {
        "arm": "accumulated", "baseline": "fixed 15 %", "nats_per_sequence": 3.21,
        "half_width": 0.9, "low": 2.31, "high": 4.11, "level": 0.95, "seeds": 3, "sequences": 200,
        "se_seed": 0.3, "se_sequences": 0.2, "p_value": 0.01234, "verdict": "better",
        "nats_per_token": 0.05, "bits_per_byte": None,
    }  # fmt: skip
    return Difference(**{**found, **changes})


def worded(verdict: str, mean: float, half_width: float, challengers: int = 1) -> str:
    found = difference(
        verdict=verdict, nats_per_sequence=mean, half_width=half_width, low=mean - half_width,
        high=mean + half_width, challengers=challengers,
    )  # fmt: skip
    return sentence(found, EN)


def test_sentences() -> None:
    assert worded("better", 3.21, 0.9) == (
        "accumulated beats fixed 15 % by 3.2 ± 0.9 nats per sequence "
        "(95 % interval 2.3 to 4.1; 3 seeds each)"
    )
    assert worded("worse", -3.21, 0.9) == (
        "accumulated loses to fixed 15 % by 3.2 ± 0.9 nats per sequence "
        "(95 % interval 2.3 to 4.1; 3 seeds each)"
    )
    assert worded("undecided", 0.5, 0.9, challengers=2) == (
        "undecided: accumulated against fixed 15 % differ by 0.5 ± 0.9 nats per sequence "
        "(95 % interval −0.4 to 1.4, for all 2 challengers at once; 3 seeds each)"
    )


def test_a_decided_interval_is_not_printed_as_one_that_has_zero() -> None:
    assert "by 14 ± 14 nats per sequence (95 % interval 0.3 to 27.7; " in worded("better", 14, 13.7)
    assert "(95 % interval 0.3 to 27.7; " in worded("worse", -14, 13.7)
    assert "(95 % interval 0 to 28; " in worded("undecided", 14, 13.7)


def test_an_interval_that_ends_at_zero_is_printed_as_it_is() -> None:
    late = difference(nats_per_sequence=14.0, half_width=15.0, low=0.0, high=29.0)
    assert "by 14 nats per sequence (95 % interval 0 to 29; " in sentence(late, EN)
    worse = replace(late, verdict="worse", nats_per_sequence=-14.0, low=-29.0, high=0.0)
    assert "by 14 nats per sequence (95 % interval 0 to 29; " in sentence(worse, EN)
    assert plus_minus(worse) == "−14 (−29, 0)"
    assert plus_minus(late, 100.0) == "0.14 (0.00, 0.29)"
    assert plus_minus(difference(), 10.0) == "0.32 ± 0.09"


def test_a_seed_that_carries_the_verdict_is_named() -> None:
    found = difference(verdict="undecided", carried_by=1_000_002)
    assert sentence(found, EN).endswith(
        "one seed carries it: without seed 1000002, the difference may be 0"
    )


def test_a_factor_without_both_ends_is_not_stated() -> None:
    unknown = {"reading": "unknown", "factor": None, "low": None, "high": None}
    assert compute_words(difference(), [REACHED.model_copy(update=unknown)], EN) == ""


def test_one_seed_says_that_it_knows_one_noise() -> None:
    assert "1 seed each, so evaluation noise only" in sentence(difference(seeds=1), EN)


def test_equivalent_names_the_margin() -> None:
    found = difference(verdict="equivalent", margin=1.0)
    assert "are equivalent within 1 nats per sequence" in sentence(found, EN)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 1}, "A verdict needs more training seeds"),
        ({}, "No affordable number of seeds or forwards"),
        ({"more_seeds": 1}, "1 more seed for each arm would probably decide it."),
        (
            {"more_seeds": 4, "sequences_needed": 500},
            "4 more seeds for each arm or 500 held-out groups of sequences (2.5 times as many)",
        ),
    ],
)
def test_what_would_decide(changes: dict[str, Any], words: str) -> None:
    found = difference(verdict="undecided", **changes)
    assert words in what_would_decide(found, EN)
    assert words in full_sentence(found, EN)


REACHED = EquivalentCompute(
    arm="accumulated", reaches="fixed 15 %", unit="flops", level=-1.8, factor=0.6, low=0.5,
    high=0.71, reading="factor", spent=1.0, probability_reached=1.0, seeds=3,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "with 0.60 times its FLOPs (95 % interval 0.50 to 0.71)."),
        (
            {"reading": "at most", "factor": None, "low": None},
            "reaches fixed 15 %'s LML with at most 0.71 times its FLOPs",
        ),
        (
            {"reading": "at least", "factor": None, "high": None},
            "needs at least 0.50 times fixed 15 %'s FLOPs for the same LML (lower end of the 95 %",
        ),
    ],
)
def test_equivalent_compute(changes: dict[str, Any], words: str) -> None:
    compute = [REACHED.model_copy(update=changes)]
    assert words in compute_words(difference(), compute, EN)


def test_equivalent_compute_is_said_of_the_arm_that_is_ahead() -> None:
    other = REACHED.model_copy(update={"arm": "fixed 15 %", "reaches": "accumulated"})
    behind = replace(difference(), nats_per_sequence=-3.0, verdict="worse")
    assert compute_words(behind, [REACHED, other], EN).startswith("Fixed 15 % reaches accumulated")
    assert compute_words(behind, [REACHED], EN) == ""


def test_two_seeds_are_enough_for_a_forecast() -> None:
    open_pair = difference(verdict="undecided", seeds=2, more_seeds=4)
    assert "4 more seeds" in what_would_decide(open_pair, EN)
    assert "4 more seeds" not in what_would_decide(replace(open_pair, seeds=1), EN)
