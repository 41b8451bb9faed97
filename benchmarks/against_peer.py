"""The same search with mptune and with Ray Tune, each as a process of its own.

Both sides get the same spec and run the same trials: the same rates, seeds, budget of tokens,
held-out sequences and masks, on gangs of two workers with DeepSpeed on the CPU. The wall-clock
time of a side is from the start of its process to its exit, with an empty cache of prepared data:
imports, Ray, data, trials, and for mptune the report. The gap between two trials begins when rank
0 has the score of the first one, and ends when rank 0 is about to take the first step of the next
one.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HERE = Path(__file__).parent
TOKENS_PER_S = 80_000
"""An estimate for the model below on two cores; the real time of a trial is measured."""

LIMIT_S = 1500.0


@dataclass(frozen=True)
class Side:
    """Times and scores of one side."""

    wall_s: float
    first_step_s: float
    """From the start of the process to the first step of its first trial."""
    gaps_s: list[float]
    training_s: list[float]
    scores: dict[int, float]
    """Nats per token, by trial."""
    ends_s: list[float]

    def wall_of(self, trials: int) -> float:
        """Seconds of `trials` trials: measured, or extrapolated from the time between ends."""
        each = [b - a for a, b in itertools.pairwise(self.ends_s)]
        more = trials - len(self.ends_s)
        return self.wall_s + (more * statistics.median(each) if more > 0 else 0.0)

    def figures(self) -> dict[str, Any]:
        return {
            "trials": len(self.ends_s),
            "wall_s": self.wall_s,
            "first_step_s": self.first_step_s,
            "training_s": statistics.median(self.training_s),
            "gaps_s": self.gaps_s,
        }


def measure(trials: int, seconds: float, ours: int, peers: int) -> dict[str, Any]:
    """Run both sides of a search of `trials` trials of about `seconds` seconds of training each.

    `ours` and `peers` are the numbers of trials that each side really runs. The wall-clock time of
    the rest is extrapolated from the median time between two ends; `extrapolated` says so.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        one = _run(root / "ours", trials, seconds, ours, [HERE / "ours.py", "--run-dir"])
        other = _run(root / "peer", trials, seconds, peers, [HERE / "peer.py"])
    shared = one.scores.keys() & other.scores.keys()
    return {
        "trials": trials,
        "extrapolated": min(ours, peers) < trials,
        "mptune": one.figures() | {"wall_of_all_s": one.wall_of(trials)},
        "peer": other.figures() | {"wall_of_all_s": other.wall_of(trials)},
        "wall_ratio": one.wall_of(trials) / other.wall_of(trials),
        "gap_ratio": ratio(one.gaps_s, other.gaps_s),
        "same_scores": f"{sum(one.scores[n] == other.scores[n] for n in shared)} of {len(shared)}",
    }


def _run(folder: Path, trials: int, seconds: float, count: int, command: list[Any]) -> Side:
    """Run one side's search of `count` of the trials, in a process of its own."""
    folder.mkdir()
    spec, run = folder / "spec.yaml", folder / "run"
    spec.write_text(yaml.safe_dump(_spec(trials, seconds, count)), encoding="utf-8")
    script, *option = command
    call = [sys.executable, script, spec, *option, run]
    call += [] if option else ["--trials", count]
    # Workers of both sides import the class that records times; both keep prepared data here.
    given = {"PYTHONPATH": str(HERE.parent), "MPTUNE_CACHE": str(folder / "cache")}
    with (folder / "log").open("w") as log:
        began = time.time()
        done = subprocess.run(
            [str(part) for part in call], env=os.environ | given, stdout=log,
            stderr=subprocess.STDOUT, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        ended = time.time()
    if done.returncode:
        tail = (folder / "log").read_text(errors="replace")[-3000:]
        raise SystemExit(f"{script.name} ended with {done.returncode}:\n{tail}")
    return _side(run / "stamps.jsonl", began, ended, count)


def _side(stamps: Path, began: float, ended: float, count: int) -> Side:
    lines = [json.loads(line) for line in stamps.read_text(encoding="utf-8").splitlines()]
    starts = sorted(line["time"] for line in lines if line["what"] == "started")
    ends = sorted((line for line in lines if line["what"] == "ended"), key=lambda e: e["time"])
    if len(starts) != count or len(ends) != count:
        raise SystemExit(f"{len(starts)} of {count} trials started and {len(ends)} ended")
    ends_s = [end["time"] - began for end in ends]
    gaps = [start - end["time"] for end, start in zip(ends, starts[1:], strict=False)]
    return Side(
        wall_s=ended - began,
        first_step_s=starts[0] - began,
        gaps_s=gaps,
        training_s=[end["training_s"] for end in ends],
        scores={end["number"]: end["lml"] for end in ends},
        ends_s=ends_s,
    )


def _spec(trials: int, seconds: float, count: int) -> dict[str, Any]:
    """A search whose trials are all given, so that the sampler proposes none."""
    rates = [round(float(rate), 3) for rate in np.linspace(0.1, 0.6, trials)]
    return {
        "name": "side-by-side",
        "data": {"kind": "text", "source": "python-stdlib", "tokenizer": "bytes", "length": 128},
        "model": {"family": "bert", "width": 64, "depth": 2},
        "policy": {"kind": "fixed", "rate": {"float": [0.1, 0.6]}},
        "training": {"budget_tokens": int(seconds * TOKENS_PER_S), "batch_size": 16},
        "score": {"sequences": 64},
        "search": {
            "trials": count,
            "sampler": {"kind": "random"},
            "pruner": {"kind": "none"},
            "arms": {f"rate {r}": {"policy": {"rate": r}} for r in rates[:count]},
        },
        "resources": {"workers": 2, "cpus_per_worker": 1},
    }


def ratio(ours: Sequence[float], peers: Sequence[float], draws: int = 2000) -> dict[str, float]:
    """The ratio of our median to the peer's, with a 95 % interval from resampling both sides."""
    rng = np.random.default_rng(0)
    one, other = (rng.choice(np.array(each), (draws, len(each))) for each in (ours, peers))
    drawn = np.median(one, axis=1) / np.median(other, axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    found = statistics.median(ours) / statistics.median(peers)
    return {"ratio": found, "low": float(low), "high": float(high)}


def table(found: dict[str, Any]) -> str:
    """The two rows for RESULTS.md."""
    ours, peer, gap = found["mptune"], found["peer"], found["gap_ratio"]
    said = f" (extrapolated from {ours['trials']} and {peer['trials']})"
    said = said if found["extrapolated"] else ""
    rows = [
        ("", "mptune", "peer", "ratio", "bar", "aim"),
        (
            f"end of a trial to the first step of the next, s: median of {len(ours['gaps_s'])} and "
            f"{len(peer['gaps_s'])} (lowest to highest)",
            _spread(ours["gaps_s"]),
            _spread(peer["gaps_s"]),
            f"1/{1 / gap['ratio']:.0f} (95 %: 1/{1 / gap['high']:.0f} to 1/{1 / gap['low']:.0f})",
            "1/50",
            "1/200",
        ),
        (
            f"a search of {found['trials']} trials of {ours['training_s']:.1f} s of training "
            f"(peer's {peer['training_s']:.1f} s), wall-clock, s{said}",
            f"{ours['wall_of_all_s']:.1f}",
            f"{peer['wall_of_all_s']:.1f}",
            f"1/{1 / found['wall_ratio']:.2f}",
            "1/3",
            "1/4",
        ),
        (
            "of it, start of the process to the first step, s",
            f"{ours['first_step_s']:.1f}",
            f"{peer['first_step_s']:.1f}",
            f"1/{peer['first_step_s'] / ours['first_step_s']:.2f}",
            "",
            "",
        ),
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join([*lines, f"scores equal to the last digit: {found['same_scores']} trials"])


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
