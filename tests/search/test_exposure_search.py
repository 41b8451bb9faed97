"""A search whose sampler asks for other seeds of contenders, from spec to recommendation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mptune import dispatch
from mptune.dispatch.local import LocalDispatcher
from mptune.search import application
from mptune.search.application import Silence
from mptune.search.run import Run
from tests.cli.test_commands import SPEC
from tests.fakes import FAKE_WORKER


def search(run_dir: str, trials: int) -> Run:
    spec: dict[str, Any] = yaml.safe_load(SPEC)
    spec["search"] |= {"trials": trials, "sampler": {"kind": "exposure"}, "certainty": None}
    del spec["compare"]
    return application.search(spec, run_dir, observer=Silence())


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dispatch, "make", lambda *a, **k: LocalDispatcher(FAKE_WORKER))


def test_a_search_trains_contenders_with_several_seeds_and_says_how_sure_it_is() -> None:
    run = search("runs/a", 9)
    trials = run.trials()
    assert [t.state for t in trials] == ["COMPLETE"] * 9
    seeds: dict[str, list[int | None]] = {}
    for trial in trials:
        assert trial.same_as is None
        assert trial.spec is not None
        seeds.setdefault(trial.spec.run_key(), []).append(trial.seed)
    assert all(sorted(s, key=str) == list(range(len(s))) for s in seeds.values())
    assert max(len(s) for s in seeds.values()) > 1
    selection = run.report().selection
    assert selection is not None
    assert len(selection.candidates) == len(seeds)
    best, spec = selection.candidate(run.best().number), run.best().spec
    assert best is not None
    assert spec is not None
    assert best.runs == len(seeds[spec.run_key()])
    assert best.probability is not None


def test_a_resumed_search_asks_for_the_same(tmp_path: Path) -> None:
    search("runs/a", 7)
    resumed, undisturbed = search("runs/a", 9), search("runs/b", 9)
    assert [(t.params, t.seed) for t in resumed.trials()] == [
        (t.params, t.seed) for t in undisturbed.trials()
    ]
    asked = [t.user_attrs["asked"]["why"] for t in resumed.study().trials[7:]]
    assert all(asked)
