"""docs/tutorials.md and docs/continue.md as a stranger follows them, command by command."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import checkpoints

ROOT = Path(__file__).parents[1]
PAGES = ("tutorials.md", "continue.md")
TEXT = "\n## ".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in PAGES)
KINDS = ("text", "sensors", "table", "checkpoint")

NOT_OURS = """
import sys
assert not [name for name in sys.modules if name.partition(".")[0] in ("mptune", "small")]
"""

pytestmark = pytest.mark.slow


def write_files(folder: Path) -> None:
    """Own files, some values of which are missing."""
    rng = np.random.default_rng(0)
    (folder / "notes").mkdir(exist_ok=True)
    words = ["the", "kettle", "is", "on", "stove", "tea", "cold", "again", "we", "wait"]
    for n in range(6):
        lines = [" ".join(rng.choice(words, 12)) for _ in range(40)]
        (folder / "notes" / f"{n}.txt").write_text("\n\n".join(lines))
    pumps, people = ["pump,hour,pressure,flow"], ["age,income,town"]
    for pump in range(8):
        level = np.cumsum(rng.normal(size=60)) / 4
        for hour in range(60):
            cells = [f"{level[hour]:.3f}", f"{2 * level[hour] + rng.normal() / 9:.3f}"]
            cells = ["" if rng.random() < 0.1 else cell for cell in cells]
            pumps.append(",".join([str(pump), str(hour), *cells]))
    for _ in range(400):
        age = rng.integers(18, 90)
        cells = [str(age), str(int(300 * age + rng.normal() * 900)), "Oslo" if age > 50 else "Rome"]
        people.append(",".join("" if rng.random() < 0.1 else cell for cell in cells))
    (folder / "pumps.csv").write_text("\n".join(pumps) + "\n")
    (folder / "people.csv").write_text("\n".join(people) + "\n")
    checkpoints.save(folder / "base", steps=20)
    (folder / "old.txt").write_text("\n".join(checkpoints.sentences(40)))
    plugins = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    (folder / "small.py").write_text(re.findall(r"```python\n(.*?)```", plugins, re.DOTALL)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_tutorial_from_its_first_command_to_the_model_elsewhere(kind, tmp_path):
    write_files(tmp_path)
    given = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    given["HF_HOME"] = given["MPTUNE_CACHE"] = str(tmp_path / "cache")
    home = {**given, "PYTHONPATH": ""}
    section = TEXT.partition(f"## Your own {kind}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```(\w+)\n(.*?)```", section, flags=re.DOTALL)
    assert [language for language, _ in blocks][-1] == "python"
    for language, text in blocks:
        if language == "yaml":
            name = re.search(r"name: (\w+)", text)[1]
            folder = tmp_path / name if kind == "text" else tmp_path
            (folder / ("spec.yaml" if kind == "text" else f"{name}.yaml")).write_text(text)
        elif language == "console":
            for line in re.findall(r"^\$ mptune (.*)", text, flags=re.MULTILINE):
                local = line.replace("search ", "search --local ")
                command = f"{sys.executable} -m mptune {local}"
                run(command, tmp_path, given)
        else:
            if kind == "checkpoint":
                kept = Path(json.loads((tmp_path / "best.json").read_text())["weights"])
                card = (tmp_path / kept / "README.md").read_text()
                assert "base_model: base\n" in card
                report = (tmp_path / "runs" / "onward" / "report" / "report.md").read_text()
                assert " + 0.3 × before (−" in report
                assert "| LML before this training | -" in card
                assert "| Sequences drawn | " in card
                result = json.loads((tmp_path / kept).parent.joinpath("result.json").read_text())
                drawn = result["rows_drawn"]
                assert abs(drawn["before"] - 0.2 * sum(drawn.values())) <= 1
            (tmp_path / "elsewhere").mkdir()
            (tmp_path / "best.json").rename(tmp_path / "elsewhere" / "best.json")
            (tmp_path / "runs").rename(tmp_path / "elsewhere" / "runs")
            (tmp_path / "elsewhere" / "open.py").write_text(text + NOT_OURS)
            out = run(f"{sys.executable} open.py", tmp_path / "elsewhere", home)
            assert re.search(r"0\.\d", out.splitlines()[-1])
    if kind in ("sensors", "table"):
        source = tmp_path / f"{name}.csv"
        before, after = (list(csv.reader(f.open())) for f in (source, tmp_path / "filled.csv"))
        changed = [
            (old, new)
            for old_row, new_row in zip(before, after, strict=True)
            for old, new in zip(old_row, new_row, strict=True)
            if old != new
        ]
        assert len(changed) > 50
        assert all(old == "" for old, _ in changed)
        assert all(cell for row in after for cell in row)


def run(command: str, folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout
