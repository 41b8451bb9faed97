"""The model and the package of docs/plugins.md, used as a stranger would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPEN = """
import sys, torch
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert model(torch.tensor([[0, 1, 10, 3]])).logits[0, 2].softmax(0)[10:].max() == 0
assert not [name for name in sys.modules if name.partition(".")[0] in ("mptune", "small")]
"""
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a command of Python where the package is installed."""
    home = tmp_path_factory.mktemp("plugins")
    package, site = home / "maskkit", home / "site"
    package.mkdir()
    (package / "pyproject.toml").write_text(blocks("toml")[0])
    model, *kit = blocks("python")
    (home / "small.py").write_text(model)
    (package / "maskkit.py").write_text("\n\n".join(kit))
    (home / "kit.yaml").write_text(blocks("yaml")[0])
    (home / "nice.yaml").write_text("kind: nice\n")
    lines = ["".join(str((n + d * d) % 10) for d in range(12)) for n in range(120)]
    (home / "digits.txt").write_text("\n".join(lines))
    env = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}

    def command(*words):
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=home, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    command(
        "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site),
        str(package),
    )  # fmt: skip
    command.home = home
    return command


def test_they_need_no_private_module():
    assert re.findall(r"\bmptune[.\w]*\._\w+", PAGE) == []


def test_a_search_uses_all_of_its_plugins(run):
    assert "\nsteep\n" in run("mptune", "list", "policies")
    assert "\nnice\n" in run("mptune", "list", "launchers")
    shown = run("mptune", "launch", "kit.yaml", "--on", "nice.yaml", "--dry-run")
    assert shown.startswith("entrypoint: nice -n 10 mptune search spec.yaml")
    out = run("mptune", "search", "kit.yaml", "--local")
    assert "steep 2 " in out
    assert "SmallForMaskedLM hidden=" in out
    assert "failed" not in out
    assert "not kept" not in out
    again = run("mptune", "search", "kit.yaml", "--local")
    assert "SmallForMaskedLM hidden=" in again
    folders = sorted(run.home.glob("runs/kit/trials/*/model"))
    assert len(folders) == 2
    elsewhere = {**os.environ, "PYTHONPATH": "", "HF_HOME": str(run.home / "hub")}
    subprocess.run([sys.executable, "-c", OPEN, folders[0]], check=True, env=elsewhere, cwd="/")


def test_its_policy_passes_the_conformance_tests(run):
    tests = str(ROOT / "tests" / "policies" / "test_conformance.py")
    run("pytest", "-q", "-p", "no:cacheprovider", tests, "-k", "steep", "-x")  # none: exit code 5
