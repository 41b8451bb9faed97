"""Reports without figures, and a finished search to copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mptune import dispatch
from mptune.cli import main
from mptune.dispatch.local import LocalDispatcher
from tests.cli.test_commands import SPEC
from tests.fakes import FAKE_WORKER


def use_fakes(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Run in `folder`, with fake workers."""
    patch.chdir(folder)
    patch.setattr(dispatch, "make", lambda *a, **k: LocalDispatcher(FAKE_WORKER))


def leave_figures_out(patch: pytest.MonkeyPatch) -> None:
    """Drawing them takes longer than the search."""
    patch.setattr("mptune.report.pages._charts", lambda shown: [])


@pytest.fixture
def figures() -> None:
    """A test that asks for this gets reports with figures."""


@pytest.fixture(autouse=True)
def reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have no figures."""
    if "figures" not in request.fixturenames:
        leave_figures_out(monkeypatch)


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with spec.yaml and runs/demo, its finished search with a comparison; to read."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        use_fakes(patch, folder)
        leave_figures_out(patch)
        assert main(["search", "spec.yaml"]) == 0
    return folder


@pytest.fixture
def finished(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in the working directory."""
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    use_fakes(monkeypatch, tmp_path)
    return tmp_path
