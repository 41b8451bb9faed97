"""Scores of a trial by group, and the interval of a score in what it is claimed for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mptune.analysis.intervals import by_group, group_correlations, lml_half_width
from mptune.lml import group_scores
from tests.fakes import result, trial

RNG = np.random.default_rng(0)
GROUPS = np.arange(60) % 10
SCORES = {
    "nats_per_sequence": RNG.normal(size=60) + RNG.normal(size=10)[GROUPS],
    "rows": np.arange(60),
    "groups": GROUPS,
    "at_rungs": RNG.normal(size=(3, 24)),
}


def test_scores_by_group_are_those_of_the_groups_that_were_scored():
    found = by_group(SCORES)
    assert found["nats_per_sequence"] == pytest.approx(
        group_scores(SCORES["nats_per_sequence"], GROUPS)
    )
    assert found["at_rungs"] == pytest.approx(group_scores(SCORES["at_rungs"], GROUPS[:24]))
    assert set(found) == {"nats_per_sequence", "at_rungs"}
    few = by_group({**SCORES, "groups": GROUPS % 7})
    assert (few["nats_per_sequence"] == SCORES["nats_per_sequence"]).all()
    alone = by_group({**SCORES, "groups": np.arange(60), "at_rungs": np.zeros(0)})
    assert (alone["nats_per_sequence"] == SCORES["nats_per_sequence"]).all()
    assert by_group({}) == {}
    with pytest.raises(KeyError):
        by_group({"nats_per_sequence": np.zeros(3)})


def test_correlations_are_of_the_score_and_of_the_difference():
    shifted = {**SCORES, "nats_per_sequence": SCORES["nats_per_sequence"] - RNG.normal(size=60)}
    found = group_correlations([SCORES, shifted])
    assert found["score"] > 0.2 > found["difference"]
    assert list(group_correlations([SCORES])) == ["score"]


def test_an_interval_is_over_masks_alone_where_the_groups_are_few(tmp_path):
    lml = result(trial(0, tmp_path)).lml
    none = {"se_population": None, "df_population": None}
    few = lml.model_copy(update={**none, "se_per_token": 0.002, "groups": 5})
    assert few.scope == "on these 5 groups only (document)"
    assert lml.scope == ""
    assert lml_half_width(few) == pytest.approx(1.97 * 0.002, rel=0.03)
    assert lml_half_width(lml) == pytest.approx(1.97 * lml.se_per_token, rel=0.03)
    assert math.isnan(lml_half_width(few.model_copy(update={"se_per_token": None})))
