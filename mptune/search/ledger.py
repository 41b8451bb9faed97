"""What a search has used: workers and GPUs times time, of every trial that ran on them.

Pure: times are seconds from any origin, given by the caller. A trial counts from its start on a
gang to its end, scoring and failed attempts included; starting a gang does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mptune.spec.schema import Resources

if TYPE_CHECKING:
    import optuna


@dataclass
class Ledger:
    """Worker-seconds and GPU-seconds so far, and the most that one trial took."""

    worker_s: float = 0.0
    gpu_s: float = 0.0
    most_worker_s: float = 0.0
    most_gpu_s: float = 0.0
    _running: dict[int, tuple[float, Resources]] = field(default_factory=dict)

    def begin(self, number: int, now: float, resources: Resources) -> None:
        """A trial occupies its gang from now on; one that begins again keeps what it used."""
        self.end(number, now)
        self._running[number] = now, resources

    def end(self, number: int, now: float) -> None:
        """It occupies it no longer; one that never began counts nothing."""
        if number not in self._running:
            return
        workers, gpus = self.used(number, now)
        del self._running[number]
        self.worker_s += workers
        self.gpu_s += gpus
        self.most_worker_s = max(self.most_worker_s, workers)
        self.most_gpu_s = max(self.most_gpu_s, gpus)

    def is_running(self, number: int) -> bool:
        """Whether it occupies its gang now."""
        return number in self._running

    def spent(self) -> dict[str, float]:
        """In words for people: worker-seconds and GPU-hours of ended trials."""
        return {"worker_seconds": round(self.worker_s, 1), "gpu_hours": round(self.gpu_s / 3600, 4)}

    def as_json(self, now: float) -> dict[str, float]:
        """What the study keeps, running trials included: a driver may not see their end."""
        worker_s, gpu_s = self.so_far(now)
        most = {"most_worker_s": self.most_worker_s, "most_gpu_s": self.most_gpu_s}
        return {"worker_s": worker_s, "gpu_s": gpu_s, **most}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> Ledger:
        """Inverse of `as_json`; empty for a study that has none."""
        return cls(**(stored or {}))

    def so_far(self, now: float) -> tuple[float, float]:
        """Worker-seconds and GPU-seconds, running trials included."""
        used = [self.used(number, now) for number in self._running]
        return self.worker_s + sum(w for w, _ in used), self.gpu_s + sum(g for _, g in used)

    def used(self, number: int, now: float) -> tuple[float, float]:
        """Worker-seconds and GPU-seconds of a running trial since it began; 0 of another."""
        if number not in self._running:
            return 0.0, 0.0
        began, resources = self._running[number]
        worker_s = (now - began) * resources.workers
        return worker_s, worker_s * resources.gpus_per_worker


ATTRIBUTE = "spend"


def load_spend(study: optuna.Study) -> tuple[float, Ledger]:
    """(Wall-clock seconds of all drivers, what trials have used), as stored with the study."""
    stored = study.user_attrs.get(ATTRIBUTE, {"wall_s": 0.0, "ledger": None})
    return float(stored["wall_s"]), Ledger.from_json(stored["ledger"])


def save_spend(study: optuna.Study, wall_s: float, ledger: Ledger, now: float) -> None:
    """Inverse of `load_spend`, with what running trials have used by `now`."""
    stored = {"wall_s": round(wall_s, 3), "ledger": ledger.as_json(now)}
    study.set_user_attr(ATTRIBUTE, stored)
