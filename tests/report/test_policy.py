"""A policy's profile: known figures, in words and as a picture."""

from __future__ import annotations

import numpy as np
import pytest

from mptune.cli._command import as_text
from mptune.report.policy import Profile
from mptune.spec.schema import build

BERT = build("model", {"family": "bert", "width": 64, "depth": 2})


def profile(length=20, **policy):
    return Profile.of(build("policy", policy), BERT, length, 100)


def test_a_fixed_rate():
    found = profile(kind="fixed", rate=0.25)
    assert (found.lowest, found.highest, found.mean_rate) == (5, 5, 0.25)
    assert found.omega_at(0.25) == pytest.approx(20 / 3)
    assert found.omega_at(0.6) == 0


def test_accumulated_training_weighs_every_count_the_same():
    found = profile(kind="uniform")
    assert found.omega_M == pytest.approx(np.full(20, 1 / 20))
    assert [found.omega_at(r) for r in (0.15, 0.95)] == pytest.approx([1, 1])


def test_cost_counts_the_head_on_masked_positions():
    family = build("model", {"family": "bert", "width": 64, "depth": 2})
    found = profile(kind="fixed", rate=0.5)
    assert found.flops_per_token == family.flops(100, 20, 1, 10) / 20
    assert found.flops_to_fixed_15 == family.flops(100, 20, 1, 10) / family.flops(100, 20, 1, 3)


def test_law_by_rate_sums_to_one_at_every_progress():
    law_SR = profile(kind="linear", start=0.9, end=0.1).law_by_rate(4, 10)
    assert law_SR.sum(1) == pytest.approx(np.ones(4))
    assert law_SR[0].argmax() > law_SR[-1].argmax()


def test_text_shows_the_schedule_falling():
    lines = as_text("policy", {"p": profile(kind="linear", start=0.9, end=0.1)}).splitlines()
    rows = {line.split("%")[0].strip(): line for line in lines if " %  " in line}
    assert rows["85"].index("█") < rows["15"].index("█")
    assert "mean rate over training 50.0 %" in "\n".join(lines)


def test_the_picture_is_a_png():
    assert profile(kind="uniform").png().startswith(b"\x89PNG")
