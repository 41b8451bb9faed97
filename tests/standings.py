"""Pictures of a search, as its driver would make them."""

from __future__ import annotations

from typing import Any

from mptune.status import (
    Forecast,
    GangStatus,
    QueuedTrial,
    RunningTrial,
    Spend,
    Status,
    Trials,
    Wait,
)

LABELS = {"policy_label": "uniform", "size_label": "modernbert 64×2"}


def running(number: int) -> RunningTrial:
    return RunningTrial(number=number, **LABELS, state="training", workers=2,
                        progress=0.5, loss=2.345, tokens_per_s=31_234.0, left_s=125)  # fmt: skip


def waiting(number: int, kind: str = "reserved") -> QueuedTrial:
    behind = 3 if kind == "behind" else None
    wait = Wait(kind=kind, needs=4, free=2, behind=behind)  # type: ignore[arg-type]
    return QueuedTrial(number=number, **LABELS, workers=4, waited_s=50, wait=wait)


def gang(number: int, state: str = "busy") -> GangStatus:
    return GangStatus(
        name=f"gang-{number}", workers=2, cpus_per_worker=0.5, gpus_per_worker=1,
        nodes=("a", "b"), state=state,  # type: ignore[arg-type]
        trial=number if state == "busy" else None, trials=7,
    )  # fmt: skip


def standing(gangs: int = 2, queued: int = 2, **changes: Any) -> Status:
    fields: dict[str, Any] = {
        "time": 1e9, "study": "quickstart", "stage": "search", "driver": "process 1 on here",
        "stopping": False, "trials": Trials(total=16, used=1, complete=1), "best": None,
        "running": (running(1),),
        "queue": (waiting(3), *(waiting(4 + n, "behind") for n in range(queued - 1))),
        "gangs": (*(gang(n) for n in range(gangs - 1)), gang(99, "idle")),
        "spend": Spend(seconds=60, worker_seconds=1234, gpu_hours=0.5,
                       budget_worker_seconds=5000),
        "forecast": Forecast(trials=12, worker_seconds=4900, gpu_hours=2, left_s=600,
                             limited_by="budget_worker_seconds"),
    }  # fmt: skip
    return Status(**{**fields, **changes})
