"""Commands as a user types them: what they print, and the exit code."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mptune import dispatch, status
from mptune.cli import COMMANDS, _command, main
from mptune.cli._command import as_text
from mptune.dispatch import devices
from mptune.dispatch.local import LocalDispatcher
from mptune.paths import RunDirectory
from mptune.policies.base import MaskPolicy
from mptune.search import preflight
from mptune.search.run import Run
from mptune.spec.schema import build
from tests import studies
from tests.fakes import FAKE_WORKER

ROOT = Path(__file__).parents[2]

SPEC = """\
name: demo
data: {kind: text, source: LICENSE, documents: paragraph, length: 32}
model: {choice: [{family: bert, width: 32, depth: 1}, {family: bert, width: 64, depth: 1}]}
policy:
  choice:
    - {kind: fixed, rate: {choice: [0.15, 0.4]}}
    - {kind: uniform}
training: {budget_tokens: 1e5, batch_size: 8}
search:
  trials: 4
  pruner: {kind: none}
  arms:
    fixed 15 %: {policy: {kind: fixed, rate: 0.15}}
compare:
  seeds: 2
  arms:
    fixed 15 %: {policy: {kind: fixed, rate: 0.15}}
    accumulated: {policy: {kind: uniform}}
""".replace("LICENSE", str(ROOT / "LICENSE"))


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dispatch, "make", lambda *a, **k: LocalDispatcher(FAKE_WORKER))
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC, encoding="utf-8")
    return path


def json_of(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_search_compares_reports_and_does_nothing_twice(
    spec: Path, tmp_path: Path, figures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "spec.yaml"]) == 0
    out = capsys.readouterr().out
    assert "fixed 15 %" in out
    assert "nats per sequence" in out
    run = tmp_path / "runs" / "demo"
    for name in ("report.html", "report.md", "report.json"):
        assert (run / "report" / name).stat().st_size > 500
        assert name in out
        assert str(tmp_path) not in (run / "report" / name).read_text()  # a report is shared
    assert list((run / "report" / "figures").glob("*.png"))
    before = (run / "events.jsonl").read_text()
    assert main(["search", "spec.yaml"]) == 0
    assert (run / "events.jsonl").read_text() == before


def test_larger_models_have_larger_gangs(spec: Path) -> None:
    sizes = "resources.by_size={30K: {workers: 2}, 1B: {gpus_per_worker: 1}}"
    assert main(["search", "spec.yaml", "--set", sizes]) == 0
    specs = [t.spec for t in Run.open("runs/demo").trials() if t.spec is not None]
    workers = {s.model["width"]: s.resources.workers for s in specs}
    assert workers == {32: 1, 64: 2}
    assert all(s.resources.by_size == {} for s in specs)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ("{many: {workers: 2}}", "resources.by_size: 'many' is not a size; give parameters, e.g."),
        ("{1M: {workers: 3}}", "training.batch_size: 8 sequences cannot be shared by 3 workers"),
        ("{1M: {worker: 3}}", "resources.by_size.1M.worker: unknown key; allowed: workers, cpus_"),
    ],
)
def test_what_is_wrong_with_sizes_is_said(
    spec: Path, capsys: pytest.CaptureFixture[str], sizes: str, said: str
) -> None:
    assert main(["validate", "spec.yaml", "--set", f"resources.by_size={sizes}"]) == 2
    assert said in capsys.readouterr().err


def test_status_counts_trainings_of_those_requested() -> None:
    states = status.Trials(total=3, used=2.43, complete=1, pruned=11).counts()
    others = dict.fromkeys(("confirmation", "ladder", "comparison"))
    spent = {"worker_seconds": 6, "gpu_hours": 0}
    values = {"name": "a", "running": True, "search": states, "best": None, "end": [], **others}
    text = as_text("status", {**values, "spent": spent})
    assert "search: 2.43 of 3 trials (1 complete, 11 pruned)" in text


def test_status_best_and_report_speak_json(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["status", "runs/demo", "--json"]) == 0
    told = json_of(capsys)
    assert told["search"] == {"total": 4, "used": 4, "complete": 4}
    assert told["comparison"] == {"total": 4, "used": 4, "complete": 4}
    assert not told["running"]
    assert main(["best", "runs/demo", "--json"]) == 0
    best = json_of(capsys)
    assert best["trial"] == told["best"]["number"]
    assert main(["report", "runs/demo", "--json"]) == 0
    assert json_of(capsys)["schema_version"] == 2
    # While the comparison runs of a search that is too old to have left a picture of itself:
    run = RunDirectory(Path("runs/demo"))
    now = status.read(run)
    assert now is not None
    status.write(run, now.model_copy(update={"time": time.time(), "earlier": {}}))
    monkeypatch.setattr("mptune.search.run.is_driven", lambda run: True)
    assert main(["status", "runs/demo", "--json"]) == 0
    running = json_of(capsys)
    assert (running["running"], running["stale"]) == (True, False)
    assert [running[k] for k in ("search", "best")] == [told[k] for k in ("search", "best")]


def test_best_exports_a_policy_that_loads(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["best", "runs/demo", "--export", "policy.yaml"]) == 0
    policy = build("policy", yaml.safe_load((tmp_path / "policy.yaml").read_text()))
    assert isinstance(policy, MaskPolicy)
    assert MaskPolicy.load(tmp_path / "policy.yaml") == policy
    capsys.readouterr()
    assert main(["best", "runs/demo", "--json"]) == 0
    assert build("policy", json_of(capsys)["policy"]) == policy


def test_json_leaves_standard_output_to_the_result(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "spec.yaml", "--json"]) == 0
    assert json_of(capsys)["schema_version"] == 2


def test_fresh_asks_for_yes(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "spec.yaml", "--fresh"]) == 2
    assert "runs/demo holds 8 trials; --fresh deletes them, add --yes" in capsys.readouterr().err
    Path("runs/demo/notes.txt").write_text("mine")
    (Path("runs/demo") / "trials" / "0099").mkdir()
    assert main(["search", "spec.yaml", "--fresh", "--yes", "--set", "search.seed=5"]) == 0
    assert Path("runs/demo/notes.txt").exists(), "mptune did not make it"
    assert not (Path("runs/demo") / "trials" / "0099").exists()


def test_fresh_deletes_nothing_where_no_search_has_been(spec: Path) -> None:
    mine = [Path("thesis/report/a.tex"), Path("thesis/trials/b.csv"), Path("thesis/logs/c.txt")]
    for path in mine:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    assert main(["search", "spec.yaml", "--run-dir", "thesis", "--fresh", "--yes"]) == 0
    assert [path.read_text() for path in mine] == ["mine"] * 3


def test_fresh_follows_no_link(finished: Path) -> None:
    Path("data").mkdir()
    Path("data/mine.txt").write_text("mine")
    shutil.rmtree("runs/demo/report")
    Path("runs/demo/report").symlink_to(Path("data").absolute())
    assert main(["search", "spec.yaml", "--fresh", "--yes"]) == 0
    assert Path("data/mine.txt").read_text() == "mine"
    assert not Path("runs/demo/report").is_symlink()


def test_fresh_deletes_the_artifacts_of_this_search_alone(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = f"storage.artifacts=file://{tmp_path}/kept"
    for name in ("demo/trials/0000", "other/trials/0000"):
        (tmp_path / "kept" / name).mkdir(parents=True)
    assert main(["search", "spec.yaml", "--set", kept]) == 0
    trial = studies.trials(RunDirectory(tmp_path / "runs" / "demo"), None, "demo")[1].spec
    assert trial is not None
    assert trial.artifacts == f"file://{tmp_path}/kept/demo/trials/0001"
    assert main(["search", "spec.yaml", "--set", kept, "--fresh", "--yes"]) == 0
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["other"]


def test_the_precision_that_is_faster_is_found_once_and_written_into_the_trials(
    spec: Path, tmp_path: Path
) -> None:
    flags = ["--set", "search.trials=2", "--set", "compare=null"]
    assert main(["search", "spec.yaml", "--set", "training.precision=auto", *flags]) == 0
    records = studies.trials(RunDirectory(tmp_path / "runs" / "demo"), None, "demo")
    assert {r.spec.training.precision for r in records if r.spec} == {"bf16"}


def test_a_store_that_cannot_be_opened_is_an_error_of_the_spec(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "spec.yaml", "--set", "storage.artifacts=nowhere://x"]) == 2
    said = capsys.readouterr().err
    assert "storage.artifacts: 'nowhere://x' cannot be opened: Protocol not known: nowhere" in said
    assert said.count("\n") == 1


def test_a_changed_spec_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "spec.yaml", "--set", "training.budget_tokens=2e5"]) == 2
    assert "training.budget_tokens was 100000.0, is 200000.0" in capsys.readouterr().err


def test_more_trials_go_on(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "spec.yaml", "--set", "search.trials=6"]) == 0
    capsys.readouterr()
    main(["status", "runs/demo", "--json"])
    assert json_of(capsys)["search"]["complete"] == 6


def test_compare_alone_needs_fixed_dimensions(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "spec.yaml"]) == 2
    assert "spec.yaml:3: model: is a dimension, but there is no search" in capsys.readouterr().err
    fixed = "model={family: bert, width: 32, depth: 1}"
    assert main(["compare", "spec.yaml", "--set", fixed]) == 0
    assert "accumulated" in capsys.readouterr().out


CLOSE = (
    "--set",
    "model={family: bert, width: 32, depth: 1}",
    "--set",
    "compare={seeds: 2, max_seeds: 4, arms: {below: {policy: {kind: fixed, rate: 0.39}}, "
    "above: {policy: {kind: fixed, rate: 0.41}}}}",
)


def test_a_comparison_adds_seeds_until_it_may_have_no_more(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "spec.yaml", *CLOSE, "--dry-run"]) == 0
    assert "4 runs, up to 8 while undecided: below, above" in capsys.readouterr().out
    assert main(["compare", "spec.yaml", *CLOSE]) == 0
    assert "4 seeds each" in capsys.readouterr().out
    assert main(["status", "runs/demo", "--json"]) == 0
    assert json_of(capsys)["comparison"]["complete"] == 8
    before = (tmp_path / "runs" / "demo" / "events.jsonl").read_text()
    assert main(["compare", "spec.yaml", *CLOSE]) == 0
    assert (tmp_path / "runs" / "demo" / "events.jsonl").read_text() == before


def test_a_comparison_that_is_decided_adds_none(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clear = [word.replace("0.41", "0.9") for word in CLOSE]
    assert main(["compare", "spec.yaml", *clear]) == 0
    capsys.readouterr()
    assert main(["status", "runs/demo", "--json"]) == 0
    found = json_of(capsys)["comparison"]
    assert found["complete"] < 8


def test_dry_run_touches_nothing(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "spec.yaml", "--dry-run"]) == 0
    assert "4 trials over 3 dimensions" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_init_writes_a_spec_that_validates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    for number in range(30):
        (tmp_path / "mine" / f"{number}.txt").write_text(f"document {number} " * 200)
    assert main(["validate", "mine/spec.yaml"]) == 0
    assert main(["init", "mine"]) == 2
    assert "exists; --force replaces it" in capsys.readouterr().err


@pytest.mark.parametrize("group", ["policies", "families", "modalities", "launchers", "trackers"])
def test_list_shows_sources_and_ranges(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", group]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["list", group, "--json"]) == 0
    found = json_of(capsys)
    assert all(entry["description"] for entry in found.values())


def test_a_launcher_profile_says_where_trials_run(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []

    def make(resources: object, **options: Any) -> LocalDispatcher:
        asked.append(options)
        return LocalDispatcher(FAKE_WORKER)

    monkeypatch.setattr(dispatch, "make", make)
    (tmp_path / "ray.yaml").write_text("kind: ray\naddress: 10.0.0.1:6379\n")
    assert main(["search", "spec.yaml", "--on", "ray.yaml"]) == 0
    assert [(a["local"], a["address"]) for a in asked] == [(False, "10.0.0.1:6379")]
    (tmp_path / "ray.yaml").write_text("kind: ray\nadress: x\n")
    capsys.readouterr()
    assert main(["search", "spec.yaml", "--on", "ray.yaml"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("ray.yaml:2: adress: unknown key; allowed: kind, address, dashboard")
    assert err.endswith("; did you mean 'address'?\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"mptune {command}" in capsys.readouterr().out.split("examples:")[1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["serch", "x.yaml"], "no command 'serch'; commands: demo, init"),
        (["search"], "the following arguments are required: SPEC"),
        (["search", "x.yaml", "--fesh"], "unrecognized arguments: --fesh"),
        (["status", "nowhere"], "nowhere: no search in it"),
        (["list", "polices"], "did you mean 'policies'?"),
        (["search", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert line in err
    assert len(err.strip().splitlines()) == 1


def test_validate_says_when_size_and_learning_rate_are_confounded(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = "training.optimizer.learning_rate"
    for override, noted in (
        (f"{rate}=1e-3", True),
        (f"{rate}={{float: [1e-4, 1e-2], log: true}}", False),
        ("training.optimizer.width_rule=mup", False),
        ("model={family: bert}", False),
    ):
        assert main(["validate", str(spec), "--set", override]) == 0
        assert ("confounded" in capsys.readouterr().out) == noted, override
        assert main(["search", str(spec), "--dry-run", "--set", override]) == 0
        assert ("confounded" in capsys.readouterr().out) == noted, override


@pytest.mark.parametrize(
    ("overrides", "noted"),
    [
        (["resources.gpus_per_worker=1"], True),
        (["resources.gpus_per_worker=1", "training.precision=fp32"], False),
        ([], False),
    ],
)
def test_validate_notes_single_precision_on_gpus_that_nobody_asked_for(
    overrides: list[str], noted: bool, spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(spec), *(f"--set={override}" for override in overrides)]) == 0
    assert ("faster on GPUs" in capsys.readouterr().out) == noted


@pytest.mark.parametrize(("asked", "noted"), [("0", True), ("1", False)])
def test_validate_notes_gpus_that_would_not_be_used(
    asked: str,
    noted: bool,
    spec: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "has_gpus", lambda: True)
    monkeypatch.setattr(devices, "gpus", lambda: [devices.Gpu("NVIDIA H100", 80e9)] * 2)
    assert main(["validate", str(spec), f"--set=resources.gpus_per_worker={asked}"]) == 0
    told = "train on the CPU; this machine has 2 GPUs (NVIDIA H100)" in capsys.readouterr().out
    assert told == noted


def test_a_number_that_is_not_known_is_a_dash() -> None:
    """Such as the standard error of one document."""
    assert [_command.number(value, ".2f") for value in (None, math.nan, 1.0)] == ["–", "–", "1.00"]


def test_validate_notes_a_budget_of_a_step(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = "note: training.budget_tokens 100 is 1 optimizer step of 8 x 32 positions\n"
    for budget, noted in (("100", True), ("1e5", False)):
        assert main(["validate", str(spec), "--set", f"training.budget_tokens={budget}"]) == 0
        printed = capsys.readouterr().out
        assert (few in printed) is noted


LARGE = (
    "--set=model={family: bert, size: 110M}",
    "--set=training.budget_tokens=1e9",
    "--set=search.trials=8",
)


@pytest.mark.parametrize("command", [["validate"], ["search", "--dry-run"]])
def test_what_a_laptop_cannot_do_is_said_before_it_is_tried(
    command: list[str],
    spec: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """6 FLOPs per parameter and token: 110M, 1e9 tokens and 8 trials are 5.3e18."""
    monkeypatch.setattr(preflight, "matrix_flops_per_s", lambda: 1e11)
    more = [] if command == ["validate"] else ["--local"]
    assert main([command[0], str(spec), *command[1:], *more, *LARGE]) == 0
    shown = capsys.readouterr().out
    flops, days = re.search(r"all runs: (\S+) FLOPs.* about (\d+) d", shown).groups()  # type: ignore[union-attr]
    # The spec also has 2 arms with 2 seeds. Attention and the output layer are part of it.
    assert float(flops) == pytest.approx(6 * 110e6 * 1e9 * 12, rel=0.15)
    assert int(days) == pytest.approx(float(flops) / 1e11 / 86400, rel=0.05)
    assert f"! this would take about {int(days) // 100}" in shown
    assert re.search(r"bert \d+×\d+ +1\d\d M +8 +\S+ GB", shown)
    assert "disk for checkpoints: at most about" in shown
    assert ("the data are not prepared" in shown) == (command == ["validate"])


def test_what_this_machine_cannot_hold_is_refused_by_a_dry_run(
    spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mptune.dispatch.devices.node_bytes", lambda: 1e9)
    devices.this_machine.cache_clear()
    for where in ([], ["--local"]):
        assert main(["search", str(spec), "--dry-run", *where, *LARGE]) == 2
        assert "and the node has 1 GB" in capsys.readouterr().err
    devices.this_machine.cache_clear()
    # It may be meant for another machine, so that the spec is valid.
    assert main(["validate", str(spec), *LARGE]) == 0
    assert "! this machine has 1 GB of memory" in capsys.readouterr().out
    many = ("--set=resources.cpus_per_worker=4096", "--set=search.trials=4")
    assert main(["search", str(spec), "--dry-run", *many]) == 2
    assert "the trial needs 1 worker of 4096 CPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.column=txt", "no column 'txt'"),
        ("data.tokenizer=./word", "'./word' is not one of bytes, characters"),
    ],
)
def test_validate_checks_the_data_when_asked(
    spec: Path, capsys: pytest.CaptureFixture[str], change: str, said: str
) -> None:
    Path("texts.jsonl").write_text("".join(f'{{"text": "line {n}"}}\n' for n in range(40)))
    command = ["validate", str(spec), "--set", "data.source=texts.jsonl", "--set", change]
    assert main(command) == 0
    assert "not checked: columns, tokenizer and size of the data" in capsys.readouterr().out
    assert main([*command, "--data"]) == 2
    assert said in capsys.readouterr().err


def test_gpus_are_not_replaced_by_the_cpu(
    spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mptune.dispatch.devices.gpus", lambda: [])
    gpus = ["search", str(spec), "--local", "--set", "resources.gpus_per_worker=1"]
    assert main(gpus) == 2
    assert "asks for GPUs, and this machine has none" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["validate"], ["search", "--dry-run"]])
def test_models_that_cannot_fit_are_told_before_anything_runs(
    command: list[str], spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(widths: str, gigabytes: float) -> tuple[int, str]:
        model = f"model={{family: bert, width: {widths}}}"
        given = ["--set", model, "--set", f"resources.memory_gb={gigabytes}"]
        code = main([command[0], str(spec), *command[1:], *given])
        told = capsys.readouterr()
        return code, told.out + told.err

    some, line = said("{choice: [32, 2048]}", 1)
    assert some == 0
    assert "will be refused: bert 2048×2 needs" in line
    assert "refused: bert 32×2" not in line
    none, line = said("2048", 1)
    assert none == 2
    assert "model: bert 2048×2 needs " in line
    assert "a worker (resources.memory_gb) has 1 GB" in line
    assert said("2048", 64)[0] == 0


def test_the_best_trials_are_confirmed_before_one_is_recommended(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = ["--set", "compare=null", "--set", "search.confirm={top: 2, seeds: 2}"]
    assert main(["search", "spec.yaml", *alone, "--dry-run"]) == 0
    assert "confirmation: 2 trials x 2 fresh seeds" in capsys.readouterr().out
    assert main(["search", "spec.yaml", *alone]) == 0
    run = tmp_path / "runs" / "demo"
    said = json.loads((run / "report" / "report.json").read_text())["input"]["selection"]
    confirmed = [c for c in said["candidates"] if c["confirmation"]]
    assert [c["confirmation"]["seeds"] for c in confirmed] == [2, 2]
    assert said["chosen_by"] == "confirmation"
    made = [r.spec for r in studies.trials(RunDirectory(run), None, "demo/confirm") if r.spec]
    assert [s.seed for s in made] == [2_000_000, 2_000_000, 2_000_001, 2_000_001]
    assert {s.score.seed for s in made} == {1_000_003}, "a plan of its own"
    before = (run / "events.jsonl").read_text()
    assert main(["search", "spec.yaml", *alone]) == 0
    assert (run / "events.jsonl").read_text() == before
    capsys.readouterr()
    assert main(["best", "runs/demo", "--json"]) == 0
    assert json_of(capsys)["trial"] == said["recommended"]
    assert main(["search", "spec.yaml", "--set", "search.confirm.top=1"]) == 2
    assert "top 1 leaves no choice" in capsys.readouterr().err


def test_a_dry_run_checks_what_the_run_would(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "runs/demo", "--arms", "trial 0", "trial 1", "--dry-run"]) == 0
    assert "trial 0, trial 1" in capsys.readouterr().out
    assert main(["compare", "runs/demo", "--arms", "nonsense", "best", "--dry-run"]) == 2
    assert "nonsense" in capsys.readouterr().err
    outside = "search.arms={a: {policy: {kind: fixed, rate: 0.987}}}"
    assert main(["search", "spec.yaml", "--set", outside, "--dry-run"]) == 2
    assert "is outside the space" in capsys.readouterr().err
    stored = ["runs/demo/resolved.yaml", "--run-dir", "runs/demo"]
    assert main(["search", *stored]) == 0


@pytest.mark.parametrize(
    ("section", "lines"),
    [
        ("search.pruner", [
            "search.pruner.kind: none | freeze_thaw | predictive | median | halving",
            "search.pruner.startup_trials: integer >= 0; default 4  of median: finished trials",
        ]),
        ("margin", ["compare.margin: number > 0; default None  nats per sequence below which"]),
        ("policy.rate", ["policy.rate (kind: fixed): number > 0, <= 1; required  share of the"]),
        ("by_size", ["resources.by_size.NAME.workers: integer > 0; default None"]),
    ],
)  # fmt: skip
def test_keys_of_a_spec_are_listed(
    capsys: pytest.CaptureFixture[str], section: str, lines: list[str]
) -> None:
    assert main(["list", "keys", section]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{line}" in f"\n{out}" for line in lines)
    assert all(section in line for line in out.splitlines())


def test_a_key_that_is_not_there_has_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "keys", "widht_rule"]) == 2
    assert capsys.readouterr().err == "no key 'widht_rule'; did you mean 'width_rule'?\n"
    assert main(["list", "keys", "--json"]) == 0
    assert {"search.choose_by", "training.pack", "score.target_se"} <= set(json_of(capsys))
