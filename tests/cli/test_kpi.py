"""A finished search takes the team's own function: measured once a trial, without training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mptune.cli import main
from tests.cli.conftest import use_fakes
from tests.cli.test_commands import SPEC

WITH_KPI = ("search", "spec.yaml", "--set", "score.kpi=team_kpi:quality")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished search whose trials have pretend weights; the function fails on trial 1."""
    use_fakes(monkeypatch, tmp_path)
    spec = SPEC[: SPEC.index("compare:")].replace(
        "batch_size: 8", "batch_size: 8, keep_weights: true"
    )
    Path("spec.yaml").write_text(spec, encoding="utf-8")
    assert main(["search", "spec.yaml"]) == 0
    for trial in Path("runs/demo/trials").iterdir():
        (trial / "model").mkdir()
        (trial / "model" / "config.json").write_text(f"{int(trial.name)}", encoding="utf-8")
    Path("team_kpi.py").write_text(
        "def quality(model):\n"
        "    with open('calls', 'a') as calls: calls.write('.')\n"
        "    return (1 / (int((model / 'config.json').read_text()) - 1), 0.5)\n",
        encoding="utf-8",
    )
    return Path("runs/demo")


def test_a_finished_search_is_measured_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = (run / "events.jsonl").read_text()
    assert main(list(WITH_KPI)) == 0
    assert "team_kpi:quality ZeroDivisionError: division by zero" in capsys.readouterr().out
    assert (run / "events.jsonl").read_text() == events
    calls = Path("calls").read_text()
    assert main(list(WITH_KPI)) == 0
    assert Path("calls").read_text() == calls
    said = json.loads((run / "report" / "report.json").read_text())["input"]
    values = {t["number"]: t["kpi"] for t in said["trials"] if t["kpi"]}
    assert len(values) == len(calls)
    assert (values[0]["value"], values[0]["se"]) == (-1.0, 0.5)
    assert values[1]["error"] == "ZeroDivisionError: division by zero"
    assert (said["kpi"]["trials"], said["kpi"]["failed"]) == (len(calls) - 1, 1)


def test_a_bundle_holds_what_was_measured(run: Path) -> None:
    assert main([*WITH_KPI]) == 0
    spec = Path("runs/demo/resolved.yaml")
    assert "team_kpi:quality" in spec.read_text()
    assert main(["bundle", "runs/demo"]) == 0
    Path("team_kpi.py").unlink()
    assert main(["replay", "runs/demo.bundle.zip"]) == 0


def test_mistakes_have_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "spec.yaml", "--set", "score.kpi=no_such_package.kpi:f"]) == 2
    assert capsys.readouterr().err == (
        "score.kpi: no_such_package.kpi:f: no package 'no_such_package' in the current "
        "folder or on Python's path\n"
    )
    assert main(["validate", "spec.yaml", "--set", "score.kpi=no_such_package.kpi:f"]) == 2
    assert "no package 'no_such_package'" in capsys.readouterr().err
    assert main([*WITH_KPI, "--set", "training.keep_weights=false"]) == 2
    assert "score.kpi needs training.keep_weights: true" in capsys.readouterr().err
