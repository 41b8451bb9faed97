"""Claims of others: their specs are whole, and a verdict says no more than the intervals."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mptune.analysis.arms import Difference
from mptune.analysis.comparison import ComparisonReport
from mptune.cli import main
from mptune.paths import write_json
from mptune.search.application import read_spec
from mptune.search.claims import Claim, ClaimVerdict, judge, known_claims, stored
from mptune.trial import RateScore, Trial
from tests import fakes

DOCS = Path(__file__).parents[2] / "docs" / "claims.md"


def trial(number: int, seed: int, folder: Path, loss: float) -> Trial:
    rate = RateScore(rate=0.15, loss=loss, loss_se=0.01, accuracy=0.5, accuracy_se=0.01)
    spec = fakes.trial(number, folder)
    result = fakes.result(spec).model_copy(update={"rates": (rate,)})
    return Trial(stage="comparison", number=number, state="COMPLETE", seed=seed, result=result)


def report(
    folder: Path, gaps: dict[str, float], half: float = 1.0, losses: dict[str, float] | None = None
) -> ComparisonReport:
    """Arms that are ahead of the arm `base` by `gaps` nats per sequence."""
    arms = {
        name: tuple(
            trial(n, n, folder, (losses or {}).get(name, 1.0) + noise * (-1) ** n) for n in range(4)
        )
        for name, noise in [("base", 0.02), *((name, -0.02) for name in gaps)]
    }
    differences = []
    for name, gap in gaps.items():
        verdict: Any = "undecided" if abs(gap) <= half else "better" if gap > 0 else "worse"
        differences.append(
            Difference(
                arm=name, baseline="base", nats_per_sequence=gap, half_width=half, low=gap - half,
                high=gap + half, level=0.95, seeds=4, sequences=64, se_seed=0.3,
                se_sequences=0.2, p_value=0.01, verdict=verdict, nats_per_token=gap / 32,
                bits_per_byte=None,
            )
        )  # fmt: skip
    return ComparisonReport(baseline="base", arms=arms, differences=tuple(differences))


def verdict(best: str, *reports: ComparisonReport, **changes: Any) -> ClaimVerdict:
    values = {"claim": "c", "source": "s", "best": best, "spec": {}, **changes}
    return judge("name", Claim(**values), list(reports))


@pytest.mark.parametrize(
    ("best", "gaps", "wanted"),
    [
        ("new", {"new": 3.0}, "confirmed"),
        ("new", {"new": -3.0}, "refuted"),
        ("new", {"new": 0.5}, "undecided"),
        ("base", {"a": -3.0, "b": -2.0}, "confirmed"),
        ("base", {"a": -3.0, "b": 0.5}, "undecided"),
        ("base", {"a": -3.0, "b": 2.0, "c": 0.5}, "refuted"),
        ("new", {"new": 3.0, "other": 9.0}, "confirmed"),
    ],
)
def test_the_best_arm_is_judged_by_its_own_pairs(
    tmp_path: Path, best: str, gaps: dict[str, float], wanted: str
) -> None:
    assert verdict(best, report(tmp_path, gaps)).verdict == wanted


def test_a_difference_is_told_from_the_side_of_the_claim(tmp_path: Path) -> None:
    assert verdict("base", report(tmp_path, {"a": -3.0})).figures == (
        "base − a: +3.00 (2.00 to 4.00) nats per sequence",
    )


@pytest.mark.parametrize(
    ("small", "large", "wanted"),
    [(1.0, 3.0, "confirmed"), (3.0, 1.0, "refuted"), (1.0, 2.4, "undecided")],
)
def test_growth_needs_an_interval_of_both_comparisons(
    tmp_path: Path, small: float, large: float, wanted: str
) -> None:
    """Both have a half-width of 1.05, so their difference one of 1.48."""
    reports = [report(tmp_path, {"new": gap}, half=1.05) for gap in (small, large)]
    assert verdict("new", *reports, larger={"model": {}}).verdict == wanted


@pytest.mark.parametrize(
    ("gap", "loss", "wanted"),
    [
        (3.0, 0.9, "confirmed"),
        (-3.0, 1.1, "confirmed"),
        (3.0, 1.1, "refuted"),
        (0.5, 0.9, "undecided"),
        (3.0, 0.95, "undecided"),
    ],
)
def test_the_loss_at_one_rate_agrees_if_it_chooses_the_same_arm(
    tmp_path: Path, gap: float, loss: float, wanted: str
) -> None:
    """Over four seeds, the gap of the losses has a half-width of 0.073."""
    losses = {"base": 1.0, "new": loss}
    found = verdict("new", report(tmp_path, {"new": gap}, losses=losses), by="loss at 15 %")
    assert found.verdict == wanted


def test_one_pair_of_losses_decides_nothing(tmp_path: Path) -> None:
    found = report(tmp_path, {"new": 3.0}, losses={"new": 0.5})
    one = found.model_copy(update={"arms": {n: runs[:1] for n, runs in found.arms.items()}})
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert verdict("new", one, by="loss at 15 %").verdict == "undecided"


def test_a_verdict_on_a_claim_that_has_changed_is_not_listed(tmp_path: Path) -> None:
    name, claim = next(iter(known_claims().items()))
    kept = verdict("new", report(tmp_path, {"new": 3.0})).model_copy(update={"name": name})
    for text, listed in (("another", []), (claim.claim, [name])):
        values = kept.model_copy(update={"claim": text}).model_dump(mode="json")
        write_json(tmp_path / f"{name}.json", values)
        assert [v.name for v in stored(tmp_path)] == listed


@pytest.mark.parametrize("name", known_claims())
def test_the_spec_of_a_claim_is_whole(name: str) -> None:
    claim = known_claims()[name]
    for changes in ({}, claim.larger or {}):
        _, spec = read_spec({"name": name, **claim.spec, **changes})
        assert spec.compare is not None
        assert claim.best in spec.compare.arms
    if claim.larger or claim.by != "likelihood":
        assert len(claim.spec["compare"]["arms"]) == 2, "one difference is judged"


def test_the_docs_have_the_verdict_on_every_claim() -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    for name, claim in known_claims().items():
        (line,) = [line for line in lines if line.startswith(f"| **{name}**:")]
        assert claim.claim in line
        assert claim.source in line
        assert any(f"| **{v}** |" in line for v in ("confirmed", "refuted", "undecided"))


def test_an_unknown_claim_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "bel"]) == 2
    assert capsys.readouterr().err.strip().endswith("did you mean 'bell'?")
