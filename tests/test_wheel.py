"""The wheel: the same bytes from the same files, with all that is read at run time."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("LICENSE", "README.md", "mptune", "pyproject.toml", "search_spaces")

pytestmark = pytest.mark.slow


def run(command: list[str], folder: Path, **environment: str) -> str:
    known = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SOURCE_DATE_EPOCH")}
    done = subprocess.run(
        command, cwd=folder, env=known | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def build(folder: Path, modified: float) -> Path:
    """Build the wheel from a copy of the sources, whose files were all written at one time."""
    folder.mkdir()
    for name in PARTS:
        if (ROOT / name).is_dir():
            left_out = shutil.ignore_patterns("__pycache__", "*.npz")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=left_out)
        else:
            shutil.copy(ROOT / name, folder)
    for path in folder.rglob("*"):
        os.utime(path, (modified, modified))
    command = "-m pip wheel . --quiet --no-deps --no-build-isolation --no-index -w dist"
    run([sys.executable, *command.split()], folder, SOURCE_DATE_EPOCH="1500000000")
    (found,) = (folder / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel") / "first", 1.6e9)


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder with the installed wheel, and nothing else of mptune."""
    folder = wheel.parents[1] / "installed"
    command = "-m pip install --quiet --no-deps --no-index --target"
    run([sys.executable, *command.split(), str(folder), str(wheel)], wheel.parent)
    return folder


def test_is_the_same_at_another_time_in_another_folder(wheel: Path) -> None:
    again = build(wheel.parents[2] / "second", 1.7e9)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (wheel, again)]
    assert hashes[0] == hashes[1]


def test_has_every_file_of_the_package(wheel: Path) -> None:
    """Whatever the code reads beside itself is a file of the package."""
    with zipfile.ZipFile(wheel) as archive:
        inside = {n: archive.read(n) for n in archive.namelist() if n.startswith("mptune/")}
    package = ROOT / "mptune"
    files = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert inside == {str(p.relative_to(ROOT)): p.read_bytes() for p in files}


def test_the_demo_needs_no_clone(installed: Path, tmp_path: Path) -> None:
    python = {"PYTHONPATH": str(installed), "MPTUNE_CACHE": str(tmp_path / "cache")}
    folder = tmp_path / "empty"
    folder.mkdir()
    where = run([sys.executable, "-c", "import mptune; print(mptune.__file__)"], folder, **python)
    assert Path(where.strip()).is_relative_to(installed)
    demo = [sys.executable, str(installed / "bin" / "mptune"), "demo"]
    assert "6 trials" in run([*demo, "--dry-run"], folder, **python)
    assert list(folder.iterdir()) == []
    small = ("search.trials=1", "search.arms={}", "training.budget_tokens=2e4", "compare=null")
    options = [word for change in small for word in ("--set", change)]
    options += ["--set", "resources.workers=1", "--local"]
    assert "Written:" in run([*demo, *options], folder, **python)
    assert (folder / "runs" / "quickstart" / "report" / "report.html").exists()


def test_the_readme_lists_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"dev"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("### Optional packages")[2].partition("\n## ")[0]
    rows = "".join(re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE))
    assert set(re.findall(r"`mptune\[([\w-]+)\]`", rows)) == extras
