"""What the fields of a spec say about themselves."""

from __future__ import annotations

import pytest

from mptune.spec.schema import affecting_results, fixed_on_resume, is_searchable
from mptune.trial import TrialSpec

SPEC = {
    "training": {"budget_tokens": 1e6, "keep_weights": True, "checkpoint_every_s": 60.0},
    "score": {"sequences": 512, "kpi": "a:b"},
    "search": {"seed": 0, "trials": 4, "confirm": {"top": 2}},
    "resources": {"workers": 2, "retries": 2},
    "compare": {"seeds": 3},
    "storage": {"url": None},
}


def test_a_resume_must_repeat_what_is_not_free() -> None:
    assert fixed_on_resume(SPEC) == {
        "training": {"budget_tokens": 1e6, "keep_weights": True},
        "score": {"sequences": 512},
        "search": {"seed": 0},
        "resources": {},
    }


def test_a_trials_result_depends_on_what_affects_it() -> None:
    assert affecting_results(TrialSpec, {"seed": 7, **SPEC}) == {
        "seed": 7,
        "training": {"budget_tokens": 1e6},
        "score": {"sequences": 512},
        "search": SPEC["search"],
        "resources": {"workers": 2},
        "compare": {"seeds": 3},
        "storage": {"url": None},
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model", True),
        ("policy.fixed.rate", True),
        ("training.optimizer.learning_rate", True),
        ("training.budget_tokens", False),
        ("training.option.budget_tokens", False),
        ("score.sequences", False),
        ("data.length", False),
    ],
)
def test_what_may_be_a_dimension(path: str, expected: bool) -> None:
    assert is_searchable(path.split(".")) is expected
