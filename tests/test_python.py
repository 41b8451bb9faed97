"""mptune from Python: search, compare, and what a `Run` gives."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

import mptune
from mptune import dispatch
from mptune.dispatch.local import LocalDispatcher
from mptune.errors import InputError, InterruptedSearch, NoResultError
from mptune.spec.schema import SearchSpec
from mptune.trial import Event, Finished
from tests.cli.test_commands import SPEC
from tests.fakes import FAKE_WORKER

ROOT = Path(__file__).parent.parent


class Recorder:
    """An observer that counts."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.submitted: list[int] = []

    def trial(self, number: int, label: str, size: str) -> None:
        self.submitted.append(number)

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def hold_trial(self, number: int, why: str) -> None: ...

    def finish_trial(self, number: int, state: str) -> None: ...


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dispatch, "make", lambda *a, **k: LocalDispatcher(FAKE_WORKER))
    return tmp_path


def spec(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(SPEC)
    values["search"] |= changes
    return values


def test_a_run_has_its_trials_best_report_and_study(folder: Path) -> None:
    watcher = Recorder()
    run = mptune.search(spec(trials=4), observer=watcher)
    assert run.directory.root == Path("runs/demo")
    assert watcher.submitted[:4] == [0, 1, 2, 3]
    assert sum(isinstance(event, Finished) for event in watcher.events) >= 4
    trials = run.trials()
    assert [t.state for t in trials] == ["COMPLETE"] * 4
    assert trials.best() in trials
    assert run.best().number in {t.number for t in trials}
    assert run.stages[0] == "search"
    assert [t.number for t in run.report().trials] == [0, 1, 2, 3]
    assert len(run.study().trials) == 4
    assert run.study().best_value == trials.best().nats_per_token
    assert run.status()["search"]["complete"] == 4
    assert not run.is_running
    assert run.stop() is False
    assert run.export_policy("policy.yaml") == yaml.safe_load(Path("policy.yaml").read_text())
    again = mptune.Run.open("runs/demo")
    assert again.trials() == trials
    assert again.spec.name == "demo"


def test_the_data_frame_has_a_row_per_trial(folder: Path) -> None:
    pytest.importorskip("pandas")
    trials = mptune.search(spec(trials=3), observer=Recorder()).trials()
    frame = trials.to_dataframe()
    assert list(frame["number"]) == [0, 1, 2]
    assert list(frame["nats_per_token"]) == [t.nats_per_token for t in trials]
    assert any(name.startswith("params.") for name in frame.columns)


def test_a_search_spec_and_a_path_are_specs_too(folder: Path) -> None:
    path = folder / "spec.yaml"
    path.write_text(SPEC, encoding="utf-8")
    by_path = mptune.search(path, "a", overrides=["search.trials=2"], observer=Recorder())
    assert len(by_path.trials()) == 2
    concrete = SearchSpec.model_validate(by_path.spec.model_dump())
    by_value = mptune.search(concrete, "b", observer=Recorder())
    assert by_value.trials()[0].policy == by_path.spec.policy | by_value.trials()[0].policy
    with pytest.raises(InputError, match="serach"):
        mptune.search({**spec(), "serach": {}}, observer=Recorder())


def test_arms_of_a_finished_search_are_compared(folder: Path) -> None:
    mptune.search(spec(trials=3), "runs/demo", observer=Recorder())
    run = mptune.compare(
        "runs/demo/resolved.yaml", "runs/demo", arms=["trial 0", "trial 1"], observer=Recorder()
    )
    report = run.report()
    assert report.comparison is not None
    assert [(d.baseline, d.arm) for d in report.comparison.differences] == [("trial 0", "trial 1")]
    assert all(len(trials) == 2 for trials in report.comparison.arms.values())


def test_a_run_in_a_thread_is_stopped_and_goes_on(folder: Path) -> None:
    begun, errors = threading.Event(), []

    class Signals(Recorder):
        def on_event(self, event: Event) -> None:
            super().on_event(event)
            if event.type == "progress":
                begun.set()

    slow = spec(trials=4)
    slow["policy"] = {"kind": "fixed", "rate": {"float": [0.1, 0.9]}}

    def search() -> None:
        try:
            mptune.search(slow, "runs/demo", observer=Signals())
        except InterruptedSearch as error:
            errors.append(error)

    thread = threading.Thread(target=search)
    thread.start()
    assert begun.wait(100)
    mptune.Run.open("runs/demo").stop()
    thread.join(60)
    assert len(mptune.search(slow, "runs/demo", observer=Recorder()).trials()) == 4


def test_stopping_a_run_that_closes_ends_no_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its workers are closed, and before it has begun, a run of this process is held too."""
    closing, closed = threading.Event(), threading.Event()

    def close(self: LocalDispatcher) -> None:
        closing.set()
        assert closed.wait(60)

    monkeypatch.setattr(LocalDispatcher, "close", close)
    monkeypatch.setattr("os.kill", lambda *_: pytest.fail("a signal was sent"))
    quiet = {"observer": Recorder()}
    thread = threading.Thread(target=mptune.search, args=(spec(trials=2),), kwargs=quiet)
    thread.start()
    assert closing.wait(60)
    run = mptune.Run.open("runs/demo")
    assert run.is_running
    stopping = threading.Thread(target=run.stop)
    stopping.start()
    closed.set()
    stopping.join(60)
    thread.join(60)
    assert not run.is_running


def test_an_observer_is_not_changed(folder: Path) -> None:
    class Fixed(Recorder):
        __slots__ = ()

    watcher = Fixed()
    mptune.search(spec(trials=2), observer=watcher)
    assert not hasattr(watcher, "look")


def test_what_is_not_there_is_said_in_one_line(folder: Path) -> None:
    with pytest.raises(InputError, match="no search in it"):
        mptune.Run.open("runs/nothing")
    run = mptune.search(spec(trials=2), observer=Recorder())
    with pytest.raises(NoResultError, match="no confirmation has begun"):
        run.study("confirmation")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs" / "python.ipynb", as_version=4)
    for name in ("search_spaces", "docs"):
        (tmp_path / name).mkdir()
    spec = (ROOT / "search_spaces" / "quickstart.yaml").read_text(encoding="utf-8")
    spec = spec.replace("python-stdlib", '"package:email/*.py"')
    (tmp_path / "search_spaces" / "quickstart.yaml").write_text(spec, encoding="utf-8")
    code = next(cell for cell in notebook.cells if "budget_tokens=4e4" in cell.source)
    code.source = code.source.replace("budget_tokens=4e4", "budget_tokens=1e4")
    client = nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(tmp_path / "docs")}}
    )
    client.execute()
    outputs = {cell["id"]: cell.get("outputs", []) for cell in notebook.cells}
    assert "nats per sequence" in str(outputs["cell-8"])
    assert "'complete': 3" in str(outputs["cell-14"])
