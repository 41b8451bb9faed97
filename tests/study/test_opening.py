"""A study is bound to its spec."""

from __future__ import annotations

import pytest

from mptune.errors import InputError
from mptune.paths import RunDirectory
from mptune.study.storage import claim_spec
from tests.search.drivers import driver


def test_a_resume_with_another_spec_is_refused(run: RunDirectory) -> None:
    opened = driver(run).study
    old = {"training": {"budget_tokens": 1e6}, "search": {"trials": 4, "seed": 0}}
    old["resources"] = {"workers": 1}
    claim_spec(opened, old)
    claim_spec(opened, {**old, "search": {"trials": 9, "seed": 0}})
    claim_spec(opened, {**old, "resources": {"workers": 2}})
    with pytest.raises(InputError, match=r"training.budget_tokens was 1000000.0, is 2000000.0"):
        claim_spec(opened, {**old, "training": {"budget_tokens": 2e6}})
