"""The evidence in one file: packed, moved elsewhere, derived again; and what is found out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mptune.cli import main

BLOCKED = """\
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "ray", "deepspeed", "transformers"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Absent())
from mptune.cli import main
sys.exit(main(["replay", sys.argv[1], "--json"]))
"""


@pytest.fixture(scope="module")
def packed(searched: Path) -> Path:
    """The bundle of a search with a comparison."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(searched)
        assert main(["bundle", "runs/demo", "--out", "demo.zip"]) == 0
    return searched / "demo.zip"


@pytest.fixture
def bundle(packed: Path, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it without the run directory; the run's report is `report.json`."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(packed, "demo.zip")
    shutil.copy(searched / "runs" / "demo" / "report" / "report.json", "report.json")
    return tmp_path / "demo.zip"


def rewritten(bundle: Path, name: str, content: bytes, manifest: bool = False) -> str:
    """A copy in which one file has another content, and perhaps its sum as well."""
    import hashlib

    target = bundle.with_name("changed.zip")
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(target, "w") as new:
        for inside in old.namelist():
            kept = content if inside == name else old.read(inside)
            if inside == "MANIFEST.json" and manifest:
                listed = json.loads(kept)
                listed["sha256"][name] = hashlib.sha256(content).hexdigest()
                kept = json.dumps(listed).encode()
            new.writestr(inside, kept)
    return str(target)


def test_every_number_comes_out_the_same_without_torch(bundle: Path) -> None:
    command = [sys.executable, "-c", BLOCKED, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (bundle.parent / "report.json").read_text(encoding="utf-8")


def test_it_can_be_kept(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["replay", "demo.zip", "--into", "kept"]) == 0
    assert "all numbers of its report are reproduced" in capsys.readouterr().out
    assert Path("kept/report/report.html").exists()
    assert main(["replay", "demo.zip", "--into", "kept"]) == 2


def test_a_changed_file_is_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(bundle) as archive:
        inside = archive.namelist()
    name = next(n for n in inside if n.endswith("scores.npz"))
    assert main(["replay", rewritten(bundle, name, b"other")]) == 2
    assert f"{name} was changed after it was packed" in capsys.readouterr().err


def test_a_number_that_does_not_follow_is_named(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where whoever changed it has changed the list of sums."""
    said = json.loads(Path("report.json").read_text(encoding="utf-8"))
    said["ranking"][0]["nats_per_token"] += 0.1
    text = json.dumps(said).encode()
    changed = rewritten(bundle, "report/report.json", text, manifest=True)
    assert main(["replay", changed]) == 3
    assert "report.ranking[0].nats_per_token: was" in capsys.readouterr().err


def test_a_bundle_of_an_earlier_method_is_refused(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.dumps({"format": 1, "sha256": {}}).encode()
    assert main(["replay", rewritten(bundle, "MANIFEST.json", content)]) == 2
    error = capsys.readouterr().err
    assert "was made by another method" in error
    assert "not a complete bundle" not in error


def test_what_is_no_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("cut.zip").write_bytes(bundle.read_bytes()[:-500])
    for name, words in (("cut.zip", "is not a complete bundle"), ("none.zip", "no such file")):
        assert main(["replay", name]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert "Traceback" not in error
        assert len(error.splitlines()) == 1
