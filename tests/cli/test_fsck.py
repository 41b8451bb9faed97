"""`mptune fsck`: what it finds in a run directory that was damaged, and what it makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
import yaml

from mptune.cli import main
from mptune.dispatch.local import LocalDispatcher
from mptune.paths import RunDirectory, write_text
from mptune.search.driver import StudyDriver
from mptune.spec.schema import Search
from mptune.study.lease import driver_lock
from mptune.study.samplers import make_sampler
from mptune.trial import Event, TrialSpec
from tests import fakes, studies

SPEC = {
    "name": "demo",
    "data": {"kind": "text", "source": __file__, "length": 32},
    "model": {"family": "bert", "width": 16, "depth": 1},
    "policy": {"kind": "uniform"},
    "training": {"budget_tokens": 1000},
}


class Silent:
    def trial(self, number: int, label: str, size: str) -> None: ...

    def on_event(self, event: Event) -> None: ...

    def hold_trial(self, number: int, why: str) -> None: ...

    def finish_trial(self, number: int, state: str) -> None: ...


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Three finished trials."""
    made = RunDirectory(tmp_path / "run")
    opened = studies.create(made, None, "demo")

    def propose(trial: optuna.Trial) -> TrialSpec:
        policy = {"kind": "fake", "rate": trial.suggest_float("rate", 0.05, 0.95)}
        return fakes.trial(
            trial.number,
            made.root / "trials",
            policy=policy,
            policy_label="fake",
            size_label="tiny",
        )

    StudyDriver(
        study=opened, trials=3, propose=propose, observer=Silent(), concurrency=1,
        dispatcher=LocalDispatcher(fakes.FAKE_WORKER),
        sampler=lambda number: make_sampler(Search(), number),
    ).run()  # fmt: skip
    for number in range(3):
        record = studies.trials(made, None, "demo")[number]
        assert record.spec is not None
        write_text(made.trial(number).spec, record.spec.model_dump_json())
    write_text(made.resolved, yaml.safe_dump(SPEC))
    return made


def problems(run: RunDirectory, capsys, *flags: str) -> tuple[int, list[dict]]:
    code = main(["fsck", str(run.root), "--json", *flags])
    return code, json.loads(capsys.readouterr().out)


def test_a_sound_run_is_well(run, capsys):
    assert main(["fsck", str(run.root)]) == 0
    assert capsys.readouterr().out == "no problems\n"


def test_what_can_be_repaired_is_said_first_and_then_repaired(run, capsys):
    result, spec = run.trial(0).result.read_text(), run.trial(1).spec.read_text()
    run.trial(0).result.write_text(result[:50])
    run.trial(1).spec.unlink()
    (run.root / "trials" / "0099").mkdir()
    write_text(run.trial(2).checkpoint / "latest.json", "{}")
    run.events.write_text('{"time": 1}\n{"ti')
    (run.root / ".prepared.json.x1y2_z3a.json").write_text("")
    (run.root / ".env.local").write_text("a secret of the user")
    run.prepared.write_text("{")
    before = {p: p.read_bytes() for p in run.root.rglob("*") if p.is_file()}

    code, found = problems(run, capsys)
    assert code == 3
    assert len(found) == 7
    assert not any(f["repaired"] for f in found)
    files = {p: p.read_bytes() for p in run.root.rglob("*") if p.is_file()}
    assert {p for p in before if files[p] != before[p]} <= {run.database}

    code, found = problems(run, capsys, "--repair")
    assert (code, len(found)) == (0, 7)
    assert json.loads(run.trial(0).result.read_text()) == json.loads(result)
    assert json.loads(run.trial(1).spec.read_text()) == json.loads(spec)
    assert (run.root / "lost+found" / "trials-0099").is_dir()
    assert run.events.read_text() == '{"time": 1}\n'
    assert (run.root / ".env.local").read_text() == "a secret of the user"
    assert problems(run, capsys) == (0, [])


def test_a_trial_without_a_driver_is_queued_again(run, capsys):
    opened = studies.create(run, None, "demo")
    opened.ask()
    code, found = problems(run, capsys)
    assert (code, [f["problem"] for f in found]) == (3, ["trials 3 run without a driver"])
    assert problems(run, capsys, "--repair")[0] == 0
    assert studies.trials(run, None, "demo")[3].state == "WAITING"
    assert problems(run, capsys) == (0, [])


def test_scores_that_are_lost_are_the_users_to_remake(run, capsys):
    run.trial(0).scores.write_bytes(b"PK not a zip")
    code, (found,) = problems(run, capsys, "--repair")
    assert code == 3
    assert found["action"].startswith("python -m mptune.worker")


def test_a_living_driver_is_not_repaired_under(run, capsys):
    with driver_lock(run):
        assert main(["fsck", str(run.root), "--repair"]) == 3
    assert "is being searched by process" in capsys.readouterr().err


def test_shared_checkpoints_are_left_by_a_comparison_that_has_not_ended_only(run, capsys):
    (run.forks / "course" / "step00000010").mkdir(parents=True)
    study = studies.create(run, None, "demo/compare")
    study.enqueue_trial({})
    assert problems(run, capsys) == (0, [])
    study.tell(study.ask(), 1.0)
    assert str(run.forks) in [f["where"] for f in problems(run, capsys)[1]]
    problems(run, capsys, "--repair")
    assert not run.forks.exists()
