"""`mptune stop`, `logs` and the spend in `status`, on a search in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mptune import status
from mptune.cli import main
from mptune.paths import RunDirectory
from mptune.status import Status
from mptune.study.lease import driver_lock
from mptune.study.queue import requeue_running
from mptune.study.storage import StudyStorage
from mptune.trial import Scoring, Started
from tests import studies
from tests.cli.test_commands import SPEC

ROOT = Path(__file__).parents[2]

SEARCH = """
import sys
from dataclasses import replace
from mptune import dispatch
from mptune.cli import main
from mptune.dispatch.local import LocalDispatcher
from tests import fakes
of = fakes.Policy.of
fakes.Policy.of = lambda trial: replace(of(trial), step_s=0.05)
dispatch.make = lambda *a, **k: LocalDispatcher(fakes.FAKE_WORKER)
sys.exit(main(["search", "spec.yaml", "--set", "search.trials=1000"]))
"""


@pytest.fixture
def searching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A search that runs and has begun its second trial."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", SEARCH], env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    events = tmp_path / "runs" / "demo" / "events.jsonl"
    while process.poll() is None:
        if events.exists() and '"type":"started","number":1' in events.read_text():
            break
        time.sleep(0.1)  # polling another process's file
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("arguments", [[], ["--now"]])
def test_stop_ends_the_search_and_keeps_what_finished(
    searching: subprocess.Popen[str], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(Path("runs/demo"))
    assert main(["status", "runs/demo", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["running"]
    assert status["spent"]["worker_seconds"] > 0
    assert main(["stop", "runs/demo", *arguments]) == 0
    assert "stopped" in capsys.readouterr().out
    assert searching.wait(100) == 130
    assert "Traceback" not in searching.stderr.read()  # type: ignore[union-attr]
    assert studies.trials(run, None, "demo")[0].state == "COMPLETE"
    assert main(["stop", "runs/demo"]) == 0
    assert "not running" in capsys.readouterr().out


def test_a_search_that_runs_tells_where_it_stands_and_its_storage_is_left_alone(
    searching: subprocess.Popen[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, trials = RunDirectory(Path("runs/demo")), StudyStorage.trials
    monkeypatch.setattr(StudyStorage, "trials", lambda *_: pytest.fail("the storage was read"))
    found = until_known(run, lambda now: now.trials.complete > 0 and now.running)
    assert main(["status", "runs/demo", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["running"], told["stale"]) == (True, False)
    assert told["search"]["total"] == 1000
    assert told["search"]["complete"] >= found.trials.complete
    now = Status.model_validate(told["now"])
    assert now.driver.startswith(f"process {searching.pid} on ")
    assert now.gangs[0].name == "local"
    assert main(["status", "runs/demo"]) == 0
    text = capsys.readouterr().out
    assert "best so far: trial" in text
    assert "forecast" in text
    assert " tokens/s " in text, "columns of numbers are not cut at 80"
    number = until_known(run, lambda now: now.running).running[0].number
    assert main(["logs", "runs/demo", str(number), "--follow"]) == 0
    assert run.trial(number).result.exists(), "following ends with the trial"
    assert searching.poll() is None
    until_known(run, lambda now: now.running)  # a picture without a running trial is not stale
    searching.kill()
    searching.wait()
    monkeypatch.setattr(StudyStorage, "trials", trials)
    assert main(["status", "runs/demo"]) == 0
    text = capsys.readouterr().out
    assert "stale: last written" in text
    assert f"by process {searching.pid} on " in text
    assert main(["status", "runs/demo", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["running"], told["stale"]) == (False, True)


def until_known(run: RunDirectory, enough: Callable[[Status], object]) -> Status:
    """The first picture of another process like this."""
    give_up = time.monotonic() + 150
    while (now := status.read(run)) is None or not enough(now):
        assert time.monotonic() < give_up, now
        time.sleep(0.05)  # polling another process's file
    return now


def test_the_shape_of_the_picture_is_documented() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    for name in Status.model_fields:
        assert f"`{name}`" in page


ON_RAY = """
import sys
from mptune import dispatch
from mptune.cli import main
from mptune.dispatch.ray_dispatcher import RayDispatcher
dispatch.make = lambda *a, forecast, **k: RayDispatcher(
    *a, runtime="tests.dispatch.helpers:Endless", forecast=forecast)
sizes = "resources={cpus_per_worker: 0.5, by_size: {30k: {workers: 4}}}"
sys.exit(main(["search", "spec.yaml", "--set", "search.trials=1000",
               "--set", "search.concurrency=12", "--set", sizes]))
"""


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("arguments", [[], ["--now"]])
def test_stop_while_trials_wait_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-c", ON_RAY], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    run = RunDirectory(tmp_path / "runs" / "demo")
    try:
        now = until_known(run, lambda now: any(t.state == "training" for t in now.running))
        assert len(now.running) + len(now.queue) == 12
        assert now.queue
        children = psutil.Process(process.pid).children(recursive=True)
        assert main(["stop", str(run.root), *arguments]) == 0
        assert process.wait(100) == 130
        assert "Traceback" not in process.stderr.read()  # type: ignore[union-attr]
    finally:
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    requeue_running(studies.create(run, None, "demo"))  # as a resume does
    states = [r.state for r in studies.trials(run, None, "demo")]
    assert states == ["WAITING"] * 12


def test_a_search_on_another_machine_is_stopped_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    with driver_lock(run):
        run.resolved.write_text("name: demo\n")
        run.driver.write_text("process 1 on elsewhere")
        assert main(["stop", str(tmp_path)]) == 2
    assert "is being searched by process 1 on elsewhere; stop it there" in capsys.readouterr().err


def test_logs_show_events_and_the_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    run.resolved.write_text("name: demo\n")
    trial = run.trial(3)
    trial.root.mkdir(parents=True)
    begun = Started(number=3, gang="gang-2", pids=(7,), total_steps=50, parameters=1200)
    events = f"{begun.model_dump_json()}\n{Scoring(number=3).model_dump_json()}\n"
    trial.events.write_text(events + '{"type": "unknown"}\n{"half')
    trial.traceback.write_text("ValueError: why\n")
    assert main(["logs", str(tmp_path), "3", "--follow"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "started on gang gang-2, 1.20 k parameters, 50 steps"
    assert others == ["trained, scoring", '{"type": "unknown"}', "ValueError: why"]
    assert main(["logs", str(tmp_path), "3", "--json"]) == 0
    assert capsys.readouterr().out.startswith(events)
    assert main(["logs", str(tmp_path), "4"]) == 2
    assert "trial 4 has not started" in capsys.readouterr().err


def test_logs_of_a_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path)
    run.resolved.write_text("name: demo\n")
    trial = run.trial(3)
    trial.logs.mkdir(parents=True)
    for rank in (0, 1):
        trial.log(rank).write_text(f"rank {rank} says\n")
    assert main(["logs", str(tmp_path), "3", "--rank", "1"]) == 0
    assert capsys.readouterr().out == "rank 1 says\n"
    assert main(["logs", str(tmp_path), "3", "--rank", "2"]) == 2
    assert "no output of rank 2; there is output of ranks 0, 1" in capsys.readouterr().err
    assert main(["logs", str(tmp_path), "7", "--rank", "0"]) == 2
    assert "trial 7 has not started; there are trials 3 to 3" in capsys.readouterr().err
    shutil.rmtree(trial.logs)
    assert main(["logs", str(tmp_path), "3", "--rank", "0"]) == 2
    assert "no rank has any output" in capsys.readouterr().err
