"""Where a search stands: trials by state, the best so far, what runs, what waits and why.

While the search runs, its own picture in the run directory is shown, at most a second old; its
storage is not touched. See docs/monitoring.md for the JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from mptune import status
from mptune.cli import _arguments
from mptune.live import words as standing
from mptune.paths import RunDirectory
from mptune.report.words import about
from mptune.spec.schema import SearchSpec
from mptune.status import Spend, StageEnd, Status, Trials

LINES = 20
"""Of a table; the JSON has all."""

EXAMPLES = """\
examples:
  mptune status runs/quickstart
  watch -n 5 mptune status runs/quickstart
  mptune status runs/quickstart --json | jq '.now.queue'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    found = _Found.of(_arguments.existing_run(arguments.run_dir))
    if arguments.json:
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
        return 0
    for line in _lines(found.as_json()):
        print(line)
    if found.now is not None and (not found.stale or found.now.running):
        _show(found.now, found.stale)
    return 0


@dataclass(frozen=True)
class _Found:
    """What is known of a search without asking its storage, and the storage's view of the rest."""

    spec: SearchSpec
    run: RunDirectory
    running: bool
    now: Status | None

    @classmethod
    def of(cls, run: RunDirectory) -> _Found:
        from mptune import study
        from mptune.search.evidence import stored_spec

        return cls(stored_spec(run), run, study.is_driven(run), status.read(run))

    @property
    def stale(self) -> bool:
        """Whether the picture was left by a driver that is dead, or that hangs."""
        return self.now is not None and (
            not self.running or self.now.age_s(time.time()) > status.STALE_S
        )

    @property
    def _is_told(self) -> bool:
        """Whether the picture is of now, and of all: old searches have left none of themselves."""
        return self.now is not None and not self.stale and "search" in self.now.stages()

    def as_json(self) -> dict[str, Any]:
        summary = self._from(self.now) if self.now and self._is_told else self._from_storage()
        return {
            "name": self.spec.name,
            "running": self.running,
            **summary,
            "stale": self.stale,
            "now": None if self.now is None else self.now.model_dump(mode="json"),
        }

    def _from(self, now: Status) -> dict[str, Any]:
        """A search that runs is not disturbed: its storage is left alone."""
        stages = now.stages()
        search, compared = stages.get("search"), stages.get("comparison")
        return {
            "search": _states(search or _nothing(self.spec.search.trials)),
            "comparison": _states(compared or _nothing(self._runs)) if self._runs else None,
            "best": search.best if search else None,
            "spent": _spent(search or _nothing(0)),
        }

    def _from_storage(self) -> dict[str, Any]:
        from mptune import study

        run, url, name = self.run, self.spec.storage.url, self.spec.name
        search = study.records(run, url, name)
        compared = study.records(run, url, study.compare_name(name)) if self._runs else []
        return {
            "search": _by_state(search, self.spec.search.trials),
            "comparison": _by_state(compared, self._runs) if self._runs else None,
            "best": _best(search),
            "spent": study.ledger(run, url, name).spent(),
        }

    @property
    def _runs(self) -> int:
        compare = self.spec.compare
        return len(compare.arms) * compare.seeds if compare else 0


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['name']}: {'running' if found['running'] else 'not running'}"
    for what in ("search", "comparison"):
        if found[what] is not None:
            yield f"  {what}: {_counts(found[what])}"
    if best := found["best"]:
        yield (
            f"  best so far: trial {best['number']}, {best['label']}, "
            f"{best['nats_per_token']:.4f} nats/token"
        )
    spent = found["spent"]
    yield (
        f"  spent: {spent['worker_seconds']:.0f} worker-seconds, {spent['gpu_hours']:.3g} GPU-hours"
    )


def _show(now: Status, stale: bool) -> None:
    """The tables of the live view."""
    console = Console(highlight=False)
    if stale:
        age = about(now.age_s(time.time()))
        console.print(f"stale: {now.driver} said this {age} ago, and nothing since:")
    if now.running:
        console.print(standing.running_table(now.running))
    if now.gangs:
        console.print(standing.gangs_table(now.gangs, LINES))
    if now.queue:
        console.print(standing.queue_table(now.queue, LINES))
    words = (standing.spend_words(now.spend, now.forecast), standing.end_words(now),
             standing.limit_words(now))  # fmt: skip
    if now.metrics and not stale:
        console.print(f" metrics: {now.metrics}", soft_wrap=True)
    console.print(f" {now.stage}: {' · '.join(filter(None, words))}", soft_wrap=True)


def _nothing(total: int) -> StageEnd:
    """Of a stage that has not begun."""
    spend = Spend(seconds=0, worker_seconds=0, gpu_hours=0)
    return StageEnd(trials=Trials(total=total), best=None, spend=spend)


def _states(stage: StageEnd) -> dict[str, int]:
    """As `_by_state`: states that no trial has are left out."""
    counted = stage.trials.model_dump()
    return {state: n for state, n in counted.items() if n or state == "total"}


def _spent(stage: StageEnd) -> dict[str, float]:
    spend = stage.spend
    return {
        "worker_seconds": round(spend.worker_seconds, 1),
        "gpu_hours": round(spend.gpu_hours, 4),
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
