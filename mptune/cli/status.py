"""Where a search stands: trials by state, the best so far, the last that happened."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

from mptune.cli import _arguments

EXAMPLES = """\
examples:
  mptune status runs/quickstart
  watch -n 5 mptune status runs/quickstart
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    status = _status(arguments)
    if arguments.json:
        print(json.dumps(status, indent=2, ensure_ascii=False))
        return 0
    print(f"{status['name']}: {'running' if status['running'] else 'not running'}")
    for what in ("search", "comparison"):
        if status[what] is not None:
            print(f"  {what}: {_counts(status[what])}")
    if status["best"]:
        best = status["best"]
        print(
            f"  best so far: trial {best['number']}, {best['label']}, "
            f"{best['nats_per_token']:.4f} nats/token"
        )
    spent = status["spent"]
    print(
        f"  spent: {spent['worker_seconds']:.0f} worker-seconds, {spent['gpu_hours']:.3g} GPU-hours"
    )
    return 0


def _status(arguments: argparse.Namespace) -> dict[str, Any]:
    from mptune import study
    from mptune.cli._evidence import stored_spec

    run = _arguments.existing_run(arguments.run_dir)
    spec = stored_spec(run)
    search = study.records(run, spec.storage.url, spec.name)
    compared = study.records(run, spec.storage.url, study.compare_name(spec.name))
    runs = len(spec.compare.arms) * spec.compare.seeds if spec.compare else 0
    return {
        "name": spec.name,
        "running": study.is_driven(run),
        "search": _by_state(search, spec.search.trials),
        "comparison": _by_state(compared, runs) if runs else None,
        "best": _best(search),
        "spent": study.ledger(run, spec.storage.url, spec.name).spent(),
    }


def _by_state(found: list[Any], total: int) -> dict[str, int]:
    return {"total": total, **{s.lower(): n for s, n in Counter(r.state for r in found).items()}}


def _best(found: list[Any]) -> dict[str, Any] | None:
    from mptune import study

    if not any(r.result for r in found):
        return None
    best = study.best(found)
    return {
        "number": best.number,
        "label": best.label,
        "nats_per_token": best.result.lml.nats_per_token,  # type: ignore[union-attr]
    }


def _counts(states: dict[str, int]) -> str:
    done = sum(states.get(s, 0) for s in ("complete", "pruned", "fail"))
    parts = ", ".join(f"{n} {s}" for s, n in states.items() if s != "total")
    return f"{done} of {states['total']} trials" + (f" ({parts})" if parts else "")
