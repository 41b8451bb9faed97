"""The whole search for real: Optuna, Ray, two DeepSpeed ranks; interrupted and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mptune.paths import RunDirectory
from tests import studies
from tests.launch.helpers import environment

SPEC = """\
name: tiny
data: {kind: text, source: "package:email/*.py", length: 64, max_train_sequences: 2000,
       max_heldout_sequences: 64}
model: {family: plain, width: 32, depth: 1}
policy:
  choice:
    - {kind: fixed, rate: {float: [0.1, 0.6]}}
    - {kind: uniform}
training: {budget_tokens: 20000, batch_size: 8, optimizer: {learning_rate: 3e-3}}
score: {sequences: 48, rung_sequences: 16}
search:
  trials: 4
  seed: 1
  arms:
    fixed 15 %: {policy: {kind: fixed, rate: 0.15}}
    accumulated: {policy: {kind: uniform}}
resources: {workers: 2}
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", "mptune", "search", "spec.yaml", "--run-dir", name],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def search(folder: Path, name: str) -> str:
    process = start(folder, name)
    out, _ = process.communicate(timeout=280)
    assert process.returncode == 0, out
    return out


def wait_for(process: subprocess.Popen[str], wanted: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(wanted):
            return
    pytest.fail(f"the search ended before {wanted!r}")


def outcome(folder: Path, name: str) -> list[tuple[Any, ...]]:
    """What must be the same: every number of the ranking, to the last digit."""
    found = studies.trials(RunDirectory(folder / name), None, "tiny")
    return [(r.number, r.state, r.label, dict(r.params), r.result and r.result.lml,
             r.result and r.result.rates) for r in found]  # fmt: skip


def events(folder: Path, name: str, kind: str) -> list[dict[str, Any]]:
    lines = (folder / name / "events.jsonl").read_text().splitlines()
    found = [json.loads(line)["event"] for line in lines]
    return [e for e in found if e["type"] == kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("search")
    out = search(made, "undisturbed")
    assert "fixed 15 %" in out
    assert "report.html" in out
    return made


def test_one_gang_of_two_processes_runs_all_trials(folder: Path) -> None:
    started = events(folder, "undisturbed", "started")
    assert len(started) >= 3
    assert len({tuple(e["pids"]) for e in started}) == 1
    assert len(set(started[0]["pids"])) == 2
    assert started[0]["turnaround_s"] is None
    assert all(e["turnaround_s"] > 0 for e in started[1:])


def test_every_trial_is_scored_with_a_standard_error(folder: Path) -> None:
    found = studies.trials(RunDirectory(folder / "undisturbed"), None, "tiny")
    finished = [r.result for r in found if r.result is not None]
    assert finished
    for result in finished:
        assert -8 < result.lml.nats_per_token < 0
        assert 0 < result.lml.error[0] < abs(result.lml.nats_per_sequence)
        assert result.lml.bits_per_byte is not None
        assert result.rates[0].rate == 0.15
        assert result.cost.tokens >= 20_000
    assert len({result.lml.plan_hash for result in finished}) == 1


def test_a_second_driver_is_refused_and_ctrl_c_stops_the_first_at_the_next_step(
    folder: Path,
) -> None:
    process = start(folder, "interrupted")
    wait_for(process, "trial 1 (")
    process.send_signal(signal.SIGSTOP)  # its trial goes on up to a rung
    second = start(folder, "interrupted")
    refused, _ = second.communicate(timeout=150)
    assert second.returncode == 3
    assert f"interrupted is being searched by process {process.pid}" in refused
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=150)
    assert process.returncode == 130, out
    assert "Resume with:\n  mptune search spec.yaml --run-dir interrupted" in out
    assert "RUNNING" not in {state for _, state, *_ in outcome(folder, "interrupted")}
    search(folder, "interrupted")
    assert outcome(folder, "interrupted") == outcome(folder, "undisturbed")
