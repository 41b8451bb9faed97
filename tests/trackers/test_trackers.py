"""Searches of fake workers, tracked by the real packages; what is found there afterwards.

So are the notes of the study, for optuna-dashboard.
"""

from __future__ import annotations

import gzip
import json
import struct
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest

from mptune import dispatch, plugins
from mptune.cli import main
from mptune.dispatch.local import LocalDispatcher
from mptune.search import tracking
from mptune.search.run import Run
from mptune.trackers.base import Group, TrackedRun, Tracker
from tests.fakes import FAKE_WORKER

ROOT = Path(__file__).parents[2]
SPEC = f"""\
name: tracked
data: {{kind: text, source: {ROOT / "LICENSE"}, documents: paragraph, length: 32}}
model: {{family: bert, width: 32, depth: 1}}
policy: {{kind: fixed, rate: {{float: [0.1, 0.6]}}}}
training: {{budget_tokens: 1e5, batch_size: 8}}
search: {{trials: 2, pruner: {{kind: none}}, sampler: {{kind: random}}}}
compare:
  seeds: 2
  arms: {{a: {{policy: {{kind: uniform}}}}, b: {{policy: {{kind: fixed, rate: 0.3}}}}}}
"""
KEYS = ["comparison-0000", "comparison-0001", "comparison-0002", "comparison-0003", "search"]
KEYS = [*KEYS, "search-0000", "search-0001"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which searches have fake workers and reports have no figures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dispatch, "make", lambda *a, **k: LocalDispatcher(FAKE_WORKER))
    monkeypatch.setattr("mptune.report.pages._charts", lambda shown: [])
    monkeypatch.setattr(tracking, "END_TIMEOUT_S", 120.0)  # imports take long on a busy machine
    return tmp_path


def search(track: str, *options: str) -> Run:
    Path("spec.yaml").write_text(SPEC + f"track: [{track}]\n", encoding="utf-8")
    assert main(["search", "spec.yaml", *options]) == 0
    return Run.open("runs/tracked")


def test_mlflow(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    run = search(f"{{kind: mlflow, uri: '{uri}'}}")
    assert "note: tracker" not in capsys.readouterr().out
    assert main(["search", "spec.yaml", "--set", "search.trials=3"]) == 0
    client = mlflow.MlflowClient(uri)
    (experiment,) = (e for e in client.search_experiments() if e.name == "tracked")
    found = {r.data.tags["mptune_run"]: r for r in client.search_runs([experiment.experiment_id])}
    assert sorted(found) == [*KEYS, "search-0002"]  # a resume adds to the same group
    whole, best = found["search"], run.best()
    assert whole.data.tags["recommended"]
    names = {file.path for file in client.list_artifacts(whole.info.run_id)}
    assert names == {"report.html", "report.json"}
    for trial in run.trials():
        one = found[f"search-{trial.number:04d}"]
        lml = trial.require_result().lml
        assert one.data.metrics["lml"] == lml.nats_per_token
        assert one.data.metrics["lml_se"] == lml.se_per_token
        assert one.data.metrics["cost/flops"] == trial.require_result().cost.flops
        assert one.data.params["policy.kind"] == trial.policy["kind"]
        assert one.data.tags["mlflow.parentRunId"] == whole.info.run_id
        assert (one.info.status, one.data.tags["state"]) == ("FINISHED", "complete")
        curve = client.get_metric_history(one.info.run_id, "curve/S-M-")
        assert [m.value for m in curve] == [p.nats_per_token for p in lml.curve]
        assert len(client.get_metric_history(one.info.run_id, "loss")) > 2
    assert best.number in (0, 1, 2)


def records_of(path: Path) -> list[Any]:
    """The records of a file of Weights & Biases, a log as of LevelDB after seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits in the rest of a block
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<4xHB", data, at)
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(part))
            part = b""
    return found


def test_wandb(folder: Path) -> None:
    pytest.importorskip("wandb")
    run = search("{kind: wandb, mode: offline}")
    files = Path("runs/tracked/wandb").glob("offline-run-*/*.wandb")
    records: dict[str, list[Any]] = {}
    for path in sorted(files):
        records.setdefault(path.stem.removeprefix("run-"), []).extend(records_of(path))
    group = f"tracked-{Path('runs/tracked/tracking.txt').read_text()}"
    assert sorted(records) == sorted(f"{group}-{key}" for key in KEYS)
    assert {r.run.run_group for rs in records.values() for r in rs if r.run.run_id} == {group}
    one = records[f"{group}-search-0000"]
    updates = [update for record in one for update in record.summary.update]
    summary = {(u.key or u.nested_key[0]): json.loads(u.value_json) for u in updates}
    assert summary["lml"] == run.trials()[0].nats_per_token
    assert summary["state"] == "complete"
    logged = {item.key or item.nested_key[0] for r in one for item in r.history.item}
    assert {"loss", "step", "masked", "curve/S(M)"} <= logged
    whole = records[f"{group}-search"]
    names = {r.artifact.name for r in whole} | {r.request.log_artifact.artifact.name for r in whole}
    assert {f"{group}-report.html", f"{group}-report.json"} <= names


def test_trackio(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))  # read when it is imported
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run = search("{kind: trackio}")
    found = {r.name: r for r in trackio.Api().runs("tracked")}
    group = f"tracked-{Path('runs/tracked/tracking.txt').read_text()}"
    assert sorted(found) == sorted(f"{group}-{key}" for key in KEYS)
    one = found[f"{group}-search-0000"]
    assert one.config["policy.kind"] == run.trials()[0].policy["kind"]
    logged = SQLiteStorage.get_logs("tracked", run_id=one.id)
    assert logged[-1]["lml"] == run.trials()[0].nats_per_token
    assert logged[-1]["state"] == "complete"
    assert list((folder / "trackio" / "artifacts").rglob("*"))


def test_tensorboard(folder: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = search("{kind: tensorboard}")
    board = events.EventAccumulator("runs/tracked/tensorboard/search-0000").Reload()
    assert {"loss", "learning_rate", "speed/tokens_per_s"} <= set(board.Tags()["scalars"])
    lml = run.trials()[0].require_result().lml
    assert board.Scalars("lml")[0].value == pytest.approx(lml.nats_per_token)
    curve = board.Scalars("curve/S(M)")
    assert [p.step for p in curve] == [round(p.mask_rate * 32) for p in lml.curve]
    (text,) = board.Tensors("verdict/text_summary")[0].tensor_proto.string_val
    assert b"| state | complete |" in text
    assert sorted(p.name for p in Path("runs/tracked/tensorboard").iterdir()) == KEYS


def test_the_study_and_each_of_its_trials_have_a_note(folder: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    run = search("")
    search_, compared = run.study(), run.study("comparison")
    about = dashboard.get_note(search_)
    assert about.startswith("**tracked**: a search for the mask policy")
    assert "`runs/tracked/report/report.html`." in about
    assert "The search ended with its last trial (search.trials), after 2 trials: how sure" in about
    first, notes = run.trials()[0], notes_of(search_)
    rate = first.policy["rate"]
    assert notes[0].split("\n\n") == [
        f"{first.label}, training seed 0.",
        f"It hides {100 * rate:.0f} % of the tokens.",
        "Asked for: drawn at random.",
        f"Scored {first.nats_per_token:.4f} nats per token (standard error "
        f"{first.require_result().lml.error[0]:.2g}).",
    ]
    assert len(notes) == 2
    arms = [note.split("\n\n")[2] for note in notes_of(compared)]
    assert sorted(arms) == [f"Asked for: the comparison trains {arm}." for arm in "aabb"]
    assert "hides 52 % of the tokens on average, mostly 6 to 97 %." in notes_of(compared)[0]


def notes_of(study: optuna.Study) -> list[str]:
    from optuna_dashboard._note import get_note_from_system_attrs

    attrs = study._storage.get_study_system_attrs(study._study_id)
    return [get_note_from_system_attrs(attrs, t._trial_id)["body"] for t in study.trials]


class Receiver(BaseHTTPRequestHandler):
    """A receiver of OTLP over HTTP: all spans that were sent, by name."""

    resources: ClassVar[list[Any]] = []
    spans: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(sent.resource)
            self.spans.extend(span for scope in sent.scope_spans for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words: Any) -> None: ...


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Receiver]]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    Receiver.resources, Receiver.spans = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        yield Receiver
        server.shutdown()


def values_of(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def test_otel(folder: Path, receiver: type[Receiver], capsys: pytest.CaptureFixture[str]) -> None:
    run = search("{kind: otel}")
    assert main(["search", "spec.yaml", "--set", "search.trials=3"]) == 0
    assert "note: tracker" not in capsys.readouterr().out
    group = f"tracked-{Path('runs/tracked/tracking.txt').read_text()}"
    assert {values_of(r.attributes)["mptune_search"] for r in receiver.resources} == {group}
    assert {values_of(r.attributes)["service.name"] for r in receiver.resources} == {"mptune"}
    (trace,) = {span.trace_id for span in receiver.spans}  # a resume goes on with the same one
    assert trace == sha256(group.encode()).digest()[:16]
    drivers = [span for span in receiver.spans if not span.parent_span_id]
    assert [span.name for span in drivers] == ["search tracked"] * 4  # each with its report
    assert "recommended" in values_of(drivers[1].attributes)
    trials = [s for s in receiver.spans if s.parent_span_id in {d.span_id for d in drivers}]
    assert sorted(s.name.split()[0] for s in trials) == [*KEYS[:4], "search-0000", "search-0001",
                                                         "search-0002"]  # fmt: skip
    first = next(s for s in trials if s.name.startswith("search-0000"))
    found = values_of(first.attributes)
    lml = run.trials()[0].require_result().lml
    assert (found["state"], found["lml"]) == ("complete", lml.nats_per_token)
    assert found["policy.kind"] == "fixed"
    parts = [s for s in receiver.spans if s.parent_span_id == first.span_id]
    assert [s.name for s in parts] == ["start", "train", "score"]
    times = [first.start_time_unix_nano]
    times += [t for s in parts for t in (s.start_time_unix_nano, s.end_time_unix_nano)]
    times += [first.end_time_unix_nano]
    assert times == sorted(times)
    assert first.end_time_unix_nano <= drivers[0].end_time_unix_nano


def test_otel_has_checkpoints_rungs_failures_and_pauses(receiver: type[Receiver]) -> None:
    tracker = plugins.load("trackers", "otel")(kind="otel")
    tracker.start(Group("a", "a-1", Path()))
    run, later = TrackedRun("search-0000", "one"), TrackedRun("search-0001", "two")
    tracker.at(10_000_000_000)
    tracker.trial(run)
    tracker.event(run, "step", 7, {"loss": 2.0, "speed/checkpoint_s": 1.5})
    tracker.event(run, "step", 8, {"rung/lml": -2.0, "rung/lml_se": 0.1})
    tracker.verdict(run, "failed: nan", {"detail": "at step 9"})
    tracker.trial(later)
    tracker.verdict(later, "paused", {})
    tracker.verdict(later, "pruned", {})  # at the search's end
    tracker.end()
    spans = {span.name: span for span in receiver.spans}
    checkpoint, trial = spans["checkpoint"], spans["search-0000 one"]
    assert checkpoint.parent_span_id == trial.span_id
    assert checkpoint.end_time_unix_nano - checkpoint.start_time_unix_nano == 1_500_000_000
    assert values_of(checkpoint.attributes) == {"step": 7}
    assert [event.name for event in trial.events] == ["rung"]
    assert (trial.status.code, trial.status.message) == (2, "at step 9")
    states = [values_of(s.attributes)["state"] for s in receiver.spans if "two" in s.name]
    assert states == ["paused", "pruned"]
    assert spans["search a"].status.code == 0


def test_otel_without_a_receiver_is_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    search("{kind: otel, endpoint: 'http://127.0.0.1:9'}")
    out, err = capfd.readouterr()
    words = "note: tracker otel: ConnectionError: no spans could be sent to http://127.0.0.1:9; the"
    assert " ".join(out.split()).count(words) == 2  # the search's driver, and its report
    assert "opentelemetry" not in err
    assert "Transient" not in err


class Wrong(Tracker):
    """A tracker that fails, or takes ever longer."""

    PACKAGE = "json"
    calls: ClassVar[list[str]] = []
    sleep_s: float = 0.0

    def start(self, group: Group) -> None:
        self.calls.append("start")
        time.sleep(self.sleep_s)
        raise ConnectionError("no server at example.org")

    def trial(self, run: TrackedRun) -> None: ...
    def event(self, run: TrackedRun, axis: Any, at: int, values: Any) -> None: ...
    def verdict(self, run: TrackedRun, state: str, summary: Any) -> None: ...
    def end(self) -> None: ...


def test_a_tracker_that_is_down_is_said_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Wrong()
    monkeypatch.setattr(tracking, "build", lambda section, values: wrong)
    search("{kind: tensorboard}")
    out = capsys.readouterr().out
    words = "note: tracker json: ConnectionError: no server at example.org; the search goes on\n"
    assert out.count("tracker json") == 2  # the search's driver, and its report
    assert words in out
    assert len(wrong.calls) > 10, "it may come back"


def test_a_tracker_that_hangs_does_not_delay_the_search(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "END_TIMEOUT_S", 0.1)
    monkeypatch.setattr(tracking, "MOST_WAITING", 3)
    wrong = Wrong(sleep_s=1000.0)
    monkeypatch.setattr(tracking, "build", lambda section, values: wrong)
    run = search("{kind: tensorboard}")
    assert all(trial.finished for trial in run.trials())
    assert "note: tracker json: is slow: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("track", "words"),
    [
        ("{kind: mlfow}", "spec.yaml:10: track.0.kind: 'mlfow' is not one of the trackers: "),
        ("{kind: mlflow, url: x}", "spec.yaml:10: track.0.url: unknown key; allowed: kind, uri"),
        ("{kind: mlflow, uri: 'http://me:secret@x'}", "track.0.uri: 'http://me:...@x' has a pass"),
        ("{kind: otel, endpoint: 'http://me:secret@x'}", "endpoint: 'http://me:...@x' has a pass"),
        ("{kind: otel, endpoint: 'ftp://x'}", "endpoint: 'ftp://x' string should match pattern"),
        ("{uri: x}", "spec.yaml:10: track.0: needs 'kind', one of mlflow, otel, "),
        ("5", "spec.yaml:10: track.0: 5 must be a valid dictionary"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], track: str, words: str
) -> None:
    Path("spec.yaml").write_text(SPEC + f"track: [{track}]\n", encoding="utf-8")
    assert main(["validate", "spec.yaml"]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_a_package_that_is_missing_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mptune.trackers.base.find_spec", lambda name: None)
    Path("spec.yaml").write_text(SPEC + "track: [{kind: mlflow}]\n", encoding="utf-8")
    assert main(["validate", "spec.yaml"]) == 2
    words = "track.0: needs a package that is not installed: pip install 'mptune[mlflow]'"
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", plugins.modules("trackers"))
def test_each_has_an_extra_and_imports_its_package_late(name: str) -> None:
    tracker = plugins.load("trackers", name)
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"\n{tracker.EXTRA or tracker.PACKAGE} = [" in extras
    module = Path(ROOT, *tracker.__module__.split(".")).with_suffix(".py")
    assert f"\nimport {tracker.PACKAGE}" not in module.read_text(encoding="utf-8")


def test_a_resume_may_change_trackers(folder: Path) -> None:
    search("{kind: tensorboard}")
    token = Path("runs/tracked/tracking.txt").read_text()
    search("")
    assert Path("runs/tracked/tracking.txt").read_text() == token
    search("{kind: tensorboard}", "--fresh", "--yes")
    assert Path("runs/tracked/tracking.txt").read_text() != token
