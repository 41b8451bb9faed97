"""A report that is packed as text, sent through a log, and unpacked."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from mptune.launch.base import MARK, LaunchError, pack_command, unpack
from mptune.paths import RunDirectory


def text_of(*members: tuple[tarfile.TarInfo, bytes]) -> list[str]:
    """The text of an archive with these members."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    value = packed.getvalue()
    digest = hashlib.sha256(value).hexdigest()
    return [f"{MARK} {digest}", base64.b64encode(value).decode(), f"{MARK} end"]


def test_a_report_arrives_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    run, here = RunDirectory(tmp_path / "a run"), tmp_path / "here"
    (run.report / "figures").mkdir(parents=True)
    (run.report / "report.md").write_text("best")
    (run.report / "figures" / "one.svg").write_text("<svg/>")
    command = ["bash", "-c", pack_command(str(run.root))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    unpack(["a line before", *said.splitlines()], here)
    assert (here / "report" / "report.md").read_text() == "best"
    assert (here / "report" / "figures" / "one.svg").read_text() == "<svg/>"


@pytest.mark.parametrize("folder", ["~/a run", "~/run", "~run"])
def test_only_a_leading_tilde_is_the_home_of_the_cluster_s_user(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = RunDirectory(tmp_path / folder.replace("~/", "home/"))
    run.report.mkdir(parents=True)
    run.report_html.write_text("best")
    command = ["bash", "-c", pack_command(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    unpack(said.splitlines(), tmp_path / "here")
    assert RunDirectory(tmp_path / "here").report_html.read_text() == "best"


@pytest.mark.parametrize(
    "name", ["../outside", "report/../../outside", "/tmp/outside-of-it", "kpi.py", "report.py"]
)
def test_nothing_is_written_outside_the_target(name: str, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="which is not allowed"):
        unpack(text_of((tarfile.TarInfo(name), b"evil")), tmp_path / "here")
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "here").exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("report/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(LaunchError, match="which is not allowed"):
        unpack(text_of((link, b"")), tmp_path / "here")


def test_an_incomplete_report_is_refused(tmp_path: Path) -> None:
    first, body, end = text_of((tarfile.TarInfo("report/report.md"), b"best"))
    with pytest.raises(LaunchError, match="arrived incomplete"):
        unpack([first, body[: len(body) // 8 * 4], end], tmp_path)
