"""The runs whose figures are stored: how each is made, from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from mptune.trial import TrialSpec
from tests.golden import fake, figures
from tests.golden.figures import Figure
from tests.golden.stored import FOLDER

ROOT = FOLDER.parents[1]
QUICKSTART = ROOT / "search_spaces" / "quickstart.yaml"

SEARCH = ("search", str(FOLDER / "search.yaml"), "--local")


def search(run: Path) -> dict[str, Figure]:
    """A search, its confirmation and its comparison, scored by the fake worker."""
    code = fake.main([*SEARCH, "--run-dir", str(run)])
    assert code == 0, f"exit code {code}"
    return figures.of_run(run, "golden")


def quickstart(run: Path) -> dict[str, Figure]:
    """Proposals of the quickstart's search: six at startup, twelve by the TPE sampler."""
    overrides = ("--set", "search.trials=18", "--set", "compare=null")
    code = fake.main(["search", str(QUICKSTART), "--local", *overrides, "--run-dir", str(run)])
    assert code == 0, f"exit code {code}"
    return dict(figures.trials(run, "quickstart"))


def hashes() -> dict[str, Figure]:
    """What identifies trials: on it depends whether a run directory can be resumed."""
    found: dict[str, Figure] = {}
    for path in sorted((FOLDER / "trials").glob("*.json")):
        trial = TrialSpec.model_validate_json(path.read_text("utf-8"))
        found[f"{path.stem}.fingerprint"] = trial.fingerprint()
        found[f"{path.stem}.course"] = trial.course()
    return found


def real(run: Path) -> dict[str, Figure]:
    """Two trials of a small model on generated text, trained by DeepSpeed."""
    text = run.parent / "text"
    text.mkdir(exist_ok=True)
    for number in range(64):
        words = (f"{number} times {k} is {number * k}." for k in range(40))
        (text / f"{number:02d}.txt").write_text(" ".join(words), encoding="utf-8")
    spec = run.parent / "real.yaml"
    spec.write_text((FOLDER / "real.yaml").read_text("utf-8"), encoding="utf-8")
    done = command("mptune", ("search", str(spec), "--local", "--run-dir", str(run)))
    assert done.returncode == 0, done.stdout
    return figures.of_search(run, "real")


def command(
    module: str, arguments: Iterable[str], disturb: str = ""
) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS`; with the fake worker, `disturb` is its `fake.SIGNAL`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", fake.SIGNAL: disturb}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=200, check=False,
    )  # fmt: skip
