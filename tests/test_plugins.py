"""The package of docs/plugins.md, installed; and plugins that break the contract."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mptune.errors import InputError
from mptune.training.execution import check_plugin

ROOT = Path(__file__).parents[1]
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
    (package / "maskkit.py").write_text("\n\n".join(blocks("python")))
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
    assert "distilbert 32×1" in out
    assert "failed" not in out


def test_its_policy_passes_the_conformance_tests(run):
    tests = str(ROOT / "tests" / "policies" / "test_conformance.py")
    run("pytest", "-q", "-p", "no:cacheprovider", tests, "-k", "steep", "-x")  # none: exit code 5


class Constant(torch.nn.Module):
    def __init__(self, symbols):
        super().__init__()
        self.symbols = symbols

    def forward(self, tokens_BD, mask, attend_BD):
        return torch.zeros(len(mask), self.symbols)


def test_a_module_that_breaks_the_contract_is_named_in_one_line():
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    table = SimpleNamespace(length=16, vocabulary_size=11)
    sizes = {"vocab_size": 13, "dim": 8, "n_layers": 1, "n_heads": 1, "hidden_dim": 8}
    theirs = DistilBertForMaskedLM(DistilBertConfig(**sizes))
    check_plugin(Constant(11), "mine", table, False)
    for module, keep, why in (
        (theirs, False, r" or None: \w+Error: \w"),
        (Constant(13), False, r"TypeError: its logits are \[2, 13\]$"),
        (Constant(11), True, r"needs its method save_pretrained\(folder\)$"),
    ):
        with pytest.raises(InputError, match=why) as refused:
            check_plugin(module, "mine", table, keep)
        (line,) = str(refused.value).splitlines()
        assert line.startswith("model.family mine: its module must give logits [2, 11], for 2 ")
