"""Broken and hostile files: commands answer with one clear line, and at once."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mptune import cli
from mptune.cli import main
from mptune.paths import RunDirectory
from tests.cli.conftest import use_fakes
from tests.cli.test_commands import SPEC
from tests.launch.helpers import ROOT

SECONDS = 10
LONGEST = 1500
"""Characters of a line."""


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A command that hangs fails."""

    def give_up(*_: object) -> None:
        pytest.fail(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def answer(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[int, str]:
    """Exit code and message of a command, which are as they should be."""
    capsys.readouterr()
    code = main(list(command))
    out, message = capsys.readouterr()
    assert code in (0, 2, 3), message
    assert "Traceback" not in message
    assert all(len(line) <= LONGEST for line in message.splitlines())
    assert message or out
    return code, message


# --- files of a run directory ------------------------------------------------------------------

DAMAGES: dict[str, bytes | None] = {
    "empty": b"",
    "cut off": None,
    "noise": bytes(range(256)) * 8,
    "a list": b"[]\n",
    "null": b"null\n",
    "another object": b'{"a": {"b": [1, "\\u0000"]}}\n',
    "deep": b"[" * 100_000,
    "a long number": b"9" * 10_000,
    "a folder": None,
    "a pipe": None,
    "a circle of links": None,
}

FILES = (
    "resolved.yaml", "study.db", "events.jsonl", "status.json", "driver.json", "cluster.json",
    "prepared.json", "plan.npz", "trials/0000/trial.json", "trials/0000/result.json",
    "trials/0000/scores.npz", "trials/0000/events.jsonl", "compare/0000/result.json",
    "compare/0000/scores.npz", "report/report.json", "trials", "report",
)  # fmt: skip

COMMANDS = (
    ("status", "runs/demo"), ("report", "runs/demo"), ("best", "runs/demo"),
    ("explain", "runs/demo"), ("fsck", "runs/demo", "--repair"), ("logs", "runs/demo", "0"),
    ("bundle", "runs/demo", "--out", "b.zip"), ("search", "spec.yaml"),
)  # fmt: skip


def damage(path: Path, kind: str) -> None:
    """Put something else in the place of a file or folder."""
    before = path.read_bytes() if path.is_file() else b""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "cut off":
            path.write_bytes(before[: len(before) // 2])
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "a circle of links":
            path.symlink_to(path)
        case _:
            path.write_bytes(DAMAGES[kind] or b"")


EVERY = os.environ.get("MPTUNE_SIMULATIONS") == "full"
"""Every command for each damage of each file, or one of them in turn and `fsck`."""

CASES = [
    (name, kind, command)
    for number, (name, kind) in enumerate(itertools.product(FILES, DAMAGES))
    for place, command in enumerate(COMMANDS)
    if EVERY or place == number % len(COMMANDS)
]


@pytest.mark.parametrize(("name", "kind", "command"), CASES, ids=lambda x: str(x))
def test_a_damaged_run_directory(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], name: str, kind: str, command: tuple[str, ...],
) -> None:  # fmt: skip
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    use_fakes(monkeypatch, tmp_path)
    damage(tmp_path / "runs" / "demo" / name, kind)
    answer(capsys, *command)


# --- specs and profiles ------------------------------------------------------------------------

TENFOLD = "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in itertools.pairwise("abcdefghi")
)

TEXTS = {
    "aliases of aliases": "a: &a [x, x, x]\n" + TENFOLD,
    "a list in itself": "a: &a [*a]\n",
    "a mapping in itself": "a: &a {b: *a}\n",
    "deep": "[" * 100_000,
    "large": "#" * 11_000_000,
    "no date": "x: 2001-99-99\n",
    "a long number": f"x: {'9' * 5000}\n",
    "a character": "x: a\0b\n",
    "a surrogate": 'x: "\\ud800"\n',
    "python": "x: !!python/object/apply:os.system [ls]\n",
    "binary": "x: !!binary a\n",
    "a tag": "x: !unknown y\n",
    "no text": b"\xff\xfe\x00",
    "a tab": "\tx: 1\n",
    "twice": "x: 1\nx: 2\n",
    "no keys": "- 1\n",
    "a number": "5\n",
    "a numbered key": "1: 2\n",
    "a listed key": "? [a]\n: b\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "an open quote": 'x: "\n',
    "an unknown alias": "x: *nothing\n",
    "a directive": "%YAML 9.9\n---\na: 1\n",
}

RATES = "{choice: [0.15, 0.4]}"

CHANGES = {
    "a whole range": ("width: 32", "width: {int: [16, 99999999999999999999]}"),
    "an endless range": (RATES, "{float: [0.1, 1e400]}"),
    "no range": (RATES, "{float: [.nan, 0.4]}"),
    "many options": (RATES, f"{{choice: {[n / 1e6 for n in range(1, 3000)]}}}"),
    "options of options": (RATES, "{choice: [0.1, " * 50 + "0.2" + "]}" * 50),
    "an option that is a range": (RATES, "{choice: [0.1, {float: [0.2, 0.3]}]}"),
    "a path as name": ("name: demo", "name: ../../etc"),
    "a long name": ("name: demo", f"name: {'a' * 5000}"),
    "markup as name": ("name: demo", "name: '[/b]'"),
    "colours as name": ("name: demo", 'name: "a\\e[31mb"'),
    "lines as name": ("name: demo", 'name: "a\\nb"'),
    "no batch": ("batch_size: 8", "batch_size: 0"),
    "text as number": ("1e5", "lots"),
    "an endless budget": ("1e5", ".inf"),
    "a list as section": ("training: {budget_tokens: 1e5, batch_size: 8}", "training: [1]"),
    "a text as policy": ("- {kind: uniform}", "- uniform"),
    "a code as source": (f"source: {ROOT / 'LICENSE'}", "source: 'package:evil.x/y'"),
    "a device as source": (f"source: {ROOT / 'LICENSE'}", "source: /dev/zero"),
    "no source": (f"source: {ROOT / 'LICENSE'}", "source: /no/such"),
    "many trials": ("trials: 4", "trials: 1e99"),
    "an arm that is no mapping": ("accumulated: {policy: {kind: uniform}}", "accumulated: 5"),
    "an arm of nothing": ("accumulated: {policy: {kind: uniform}}", "accumulated: {x: 1}"),
    "a command as KPI": ("compare:", "score: {kpi: '../x'}\ncompare:"),
    "a password": ("compare:", "storage: {url: 'postgresql://u:secret@h/d'}\ncompare:"),
    "a signed source": (
        f"source: {ROOT / 'LICENSE'}",
        "source: 'https://h/x.txt?X-Amz-Signature=secret'",
    ),
    "a password of a source": (f"source: {ROOT / 'LICENSE'}", "source: ['ftp://u:secret@h/x']"),
    "a password of a store": ("compare:", "storage: {artifacts: 'https://u:secret@h/x'}\ncompare:"),
    "no store": ("compare:", "storage: {artifacts: 'nosuch://x'}\ncompare:"),
    "many workers": ("compare:", "resources: {workers: 100000000}\ncompare:"),
}


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    code, message = answer(capsys, *command)
    assert code in (2, 3)
    return message


@pytest.mark.parametrize("command", ["validate", "data inspect", "search", "launch"])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_is_no_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    kind: str, command: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    text = TEXTS[kind]
    (tmp_path / "spec.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    # The text is a profile, too.
    more = ("--on", "spec.yaml", "--dry-run") if command == "launch" else ()
    assert "spec.yaml" in refused(capsys, *command.split(), "spec.yaml", *more)


@pytest.mark.parametrize("kind", CHANGES)
def test_a_spec_with_a_hostile_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    old, new = CHANGES[kind]
    assert old in SPEC
    (tmp_path / "spec.yaml").write_text(SPEC.replace(old, new, 1), encoding="utf-8")
    message = refused(capsys, "validate", "spec.yaml")
    assert message.startswith("spec.yaml:")
    assert "secret" not in message
    assert "\x1b" not in message


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a circle of links"])
@pytest.mark.parametrize("command", ["validate", "search", "launch"])
def test_what_is_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, command: str
) -> None:
    path = tmp_path / "spec.yaml"
    damage(path, kind)
    more = ("--on", str(path)) if command == "launch" else ()
    assert str(path) in refused(capsys, command, str(path), *more)


# --- bundles -----------------------------------------------------------------------------------

MANIFESTS = {
    "no manifest": None,
    "a list": "[]",
    "no sums": '{"format": 2}',
    "sums that are a list": '{"format": 2, "sha256": ["spec.yaml"]}',
    "a sum of nothing": '{"format": 2, "sha256": {"spec.yaml": "0"}}',
    "a file outside": '{"format": 2, "sha256": {"../x": "0"}}',
    "an absolute file": '{"format": 2, "sha256": {"/tmp/x": "0"}}',
    "deep": "[" * 100_000,
    "no JSON": "x",
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_zip_file_that_is_no_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as archive:
        if MANIFESTS[kind] is not None:
            archive.writestr("MANIFEST.json", MANIFESTS[kind] or "")
    assert str(path) in refused(capsys, "replay", str(path))


def test_a_file_of_a_bundle_that_is_too_large(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mptune.search.bundle.MOST_BYTES", 1e6)
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("spec.yaml", b"0" * 1_000_001)
    assert path.stat().st_size < 2000
    assert "spec.yaml is larger than 0.001 GB" in refused(capsys, "replay", str(path))


@pytest.mark.parametrize("kind", [k for k in DAMAGES if k != "cut off"])
def test_what_is_no_zip_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    damage(tmp_path / "b.zip", kind)
    assert "b.zip" in refused(capsys, "replay", str(tmp_path / "b.zip"))


# --- the last resort ---------------------------------------------------------------------------


def test_a_mistake_of_mptune_is_one_line_and_a_file(
    searched: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise KeyError("x")

    monkeypatch.setattr(cli, "_run_command", fail)
    assert main(["status", str(searched / "runs" / "demo")]) == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mptune: a mistake of mptune: KeyError: 'x'; see ")
    file = Path(line.rpartition(" ")[2])
    assert "Traceback" in file.read_text()
    file.unlink()


def test_every_file_of_a_run_directory_is_in_the_corpus() -> None:
    known = {name.split("/")[0] for name in FILES}
    named = {RunDirectory(Path("x")).prepared.name, RunDirectory(Path("x")).plan.name}
    assert named <= known
