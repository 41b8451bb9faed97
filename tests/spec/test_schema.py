"""What the fields of a spec say about themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mptune.cli import main
from mptune.errors import InputError
from mptune.spec.schema import (
    Comparison,
    Pruner,
    Storage,
    affecting_results,
    fixed_on_resume,
    is_searchable,
)
from mptune.study.records import STEPS, step_of
from mptune.trial import TrialSpec
from tests.cli import test_commands as commands

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


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:open-sesame@host/db",
        "postgresql://me:open:/@-sesame@host/db",
        "mysql://host/db?user=me&password=open-sesame",
        "mysql://host/db?passwd=open-sesame",
        "postgresql://me:o/p#e n'-sesame@host/db",
    ],
)
def test_a_password_is_neither_stored_nor_shown(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spec.yaml").write_text(commands.SPEC)
    said = main(["validate", str(tmp_path / "spec.yaml"), "--set", f"storage.url={url}"])
    printed = "".join(capsys.readouterr())
    assert said == 2
    assert "--set storage.url" in printed
    assert "PGPASSWORD" in printed
    assert "sesame" not in printed


def test_a_variable_takes_the_place_of_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(url="postgresql://me:${OUR_WORD}@host/db")
    with pytest.raises(InputError, match="no environment variable OUR_WORD"):
        storage.address()
    monkeypatch.setenv("OUR_WORD", "a@b/c")
    assert storage.address() == "postgresql+psycopg2://me:a%40b%2Fc@host/db"
    assert "a@b" not in storage.model_dump_json()
    assert Storage(url="journal:///${OUR_WORD}.log").address() == "journal:///a@b/c.log"
    assert Storage().address() is None
    assert Storage(url="sqlite:////a/b.db").address() == "sqlite:////a/b.db"


def test_every_rung_that_a_spec_may_have_is_a_step_of_its_own() -> None:
    rungs = tuple(step / STEPS for step in range(1, STEPS))
    assert Pruner(rungs=rungs).rungs == rungs
    assert [step_of(rung) for rung in rungs] == list(range(1, STEPS))


@pytest.mark.parametrize(
    ("rungs", "words"),
    [
        ((0.0004,), "a rung is a whole number of thousandths, not 0.0004"),
        ((0.25, 1 / 3), "a rung is a whole number of thousandths, not 0.333333"),
        ((0.5, 0.25), "rungs must increase"),
        ((0.5, 0.5), "rungs must increase"),
    ],
)
def test_rungs_that_are_no_steps_are_refused(rungs: tuple[float, ...], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Pruner(rungs=rungs)
    with pytest.raises(ValidationError, match=words):
        Comparison(arms={"a": {}, "b": {}}, rungs=rungs)
