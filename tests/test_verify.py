"""`mptune verify` passes what is right, and fails what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mptune import verify
from mptune.cli import main
from mptune.lml import estimate_lml
from mptune.models.oracles import PPCA


def biased(*arguments, **options):
    found = estimate_lml(*arguments, **options)
    return replace(found, nats_per_sequence=found.nats_per_sequence + 5 * found.se_fixed)


def too_sure(*arguments, **options):
    """Standard errors halved."""
    found = estimate_lml(*arguments, **options)
    return replace(found, se_fixed=found.se_fixed / 2, se_population=found.se_population / 2)


def test_the_identity_and_the_bias_of_one_rate_hold():
    assert verify._identity().passed
    (check,) = verify._bias_of_one_rate()
    assert check.passed
    assert list(check.figures) == [f"M={m}" for m in range(1, 6)]


def test_an_honest_estimator_passes_and_others_fail():
    bed = verify.beds()[0]
    honest, wrong, sure = (
        list(verify._bed_checks(bed, 100, 0, e)) for e in (estimate_lml, biased, too_sure)
    )
    assert [c.passed for c in honest] == [True, True, True]
    assert not any(c.passed for c in wrong if c.name == bed.name and "fixed set" in c.words)
    assert not wrong[0].passed
    assert [c.passed for c in sure[1:]] == [False, False]


def test_missing_values_are_not_scored():
    bed = next(b for b in verify.beds() if b.missing)
    tokens, observed, exact = bed.draw(50, 1)
    assert 0.1 < 1 - observed.mean() < 0.3
    assert (tokens[~observed] == -1).all()
    np.testing.assert_allclose(exact, bed.oracle.log_marginal(tokens))


def test_the_papers_exact_figure_is_its_own():
    ppca, values = verify.paper_data()
    assert values.shape == (1000, 200)
    assert ppca.log_marginal(values).mean() == pytest.approx(verify.PAPER_LML, abs=1e-3)


def test_the_papers_estimator_is_the_exact_conditional():
    ppca = PPCA.random(length=6, latent=2, seed=1)
    values = ppca.sample(20, seed=2)
    mask = np.array([True, False, True, True, False, False])
    dense = ppca.log_prob(values, np.tile(mask, (20, 1)))[:, mask].mean()
    assert verify._shared_mask_score(ppca, values, np.flatnonzero(mask)) == pytest.approx(dense)


def test_a_failed_check_is_one_line_and_exit_code_3(capsys, monkeypatch):
    good = verify.Check("identity", "joint", True, "fine", {"largest_error": 0.0})
    bad = verify.Check("paper", "exact", False, "off by one")
    monkeypatch.setattr(verify, "verify", lambda **_: iter([good, bad]))
    assert main(["verify"]) == 3
    out, err = capsys.readouterr()
    assert "ok    joint" in out
    assert "FAIL  exact" in out
    assert err == "mptune: 1 of 2 checks failed; paper, exact: off by one\n"
    assert main(["verify", "--json"]) == 3
    assert not json.loads(capsys.readouterr().out)["passed"]


@pytest.mark.slow
def test_everything_passes(capsys):
    assert main(["verify", "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert {c["part"] for c in found["checks"]} == {
        "identity", "exact models", "bias of one rate", "paper",
    }  # fmt: skip
