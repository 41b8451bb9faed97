"""What it saves that trials with equal beginnings train them once: a comparison of 16 arms.

    python benchmarks/prefixes.py            # 3 turns; 15 minutes on 2 cores
    python benchmarks/prefixes.py --quick    # 4 arms, 1 turn, in less than 2 minutes
    python benchmarks/prefixes.py --json prefixes.json

The arms mask 30 % for the first half of training and differ in the second half. Each turn runs the
comparison twice, with `resources.share_prefixes` on and off, in an order that alternates, with the
same two seeds; scores must be equal to the last bit. Worker-seconds contain set-up and scoring.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import mptune
from mptune.paths import RunDirectory

ARMS, TURNS, TOKENS = 16, 3, 8e5


def spec(arms: int, tokens: float, share: bool) -> dict[str, Any]:
    """A comparison of tiny ModernBERTs on Python's own library."""
    rates = [round(0.1 + 0.8 * arm / (arms - 1), 3) for arm in range(arms)]
    stages = [[{"at": 0, "policy": 0.3}, {"at": 0.5, "policy": rate}] for rate in rates]
    return {
        "name": "prefixes",
        "data": {"kind": "text", "source": "python-stdlib", "tokenizer": "bytes", "length": 128},
        "model": {"family": "modernbert", "width": 64, "depth": 2},
        "policy": {"kind": "uniform"},
        "training": {
            "budget_tokens": tokens,
            "batch_size": 16,
            "optimizer": {"learning_rate": 3e-3},
        },
        "score": {"sequences": 128, "forwards": 2, "rates": [0.15]},
        "compare": {
            "seeds": 2,
            "rungs": [],
            "arms": {
                f"then {100 * rate:g} %": {"policy": {"kind": "step", "stages": stage}}
                for rate, stage in zip(rates, stages, strict=True)
            },
        },
        "resources": {"share_prefixes": share},
    }


def measure(arms: int, tokens: float, share: bool) -> dict[str, Any]:
    """Worker-seconds, FLOPs that were trained and the scores of one comparison."""
    with tempfile.TemporaryDirectory() as folder:
        run = mptune.compare(spec(arms, tokens, share), folder, local=True)
        results = [trial.require_result() for trial in run.trials("comparison")]
        assert not RunDirectory(Path(folder)).forks.exists()
    return {
        "worker_s": sum(r.cost.total_s * r.cost.workers for r in results),
        "flops": sum(r.cost.flops - r.cost.shared[1] for r in results),
        "scores": [r.lml.nats_per_sequence for r in results],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    arms, turns, tokens = (4, 1, TOKENS / 4) if args.quick else (ARMS, TURNS, TOKENS)
    saved, flops = [], 0.0
    for turn in range(turns):
        order = (True, False) if turn % 2 == 0 else (False, True)
        found = {share: measure(arms, tokens, share) for share in order}
        assert found[True]["scores"] == found[False]["scores"]
        saved.append(1 - found[True]["worker_s"] / found[False]["worker_s"])
        flops = 1 - found[True]["flops"] / found[False]["flops"]
    print(
        f"{arms} arms x 2 seeds, {turns} turns, equal scores: worker-seconds saved "
        f"{statistics.median(saved):.1%} [{min(saved):.1%}, {max(saved):.1%}], "
        f"FLOPs saved {flops:.1%}"
    )
    if args.json:
        args.json.write_text(json.dumps({"arms": arms, "saved": saved, "flops": flops}, indent=2))


if __name__ == "__main__":
    main()
