"""Usage of a search: worker-seconds and GPU-seconds of all trials.

Pure: times are seconds from any origin, given by the caller. A trial counts from its start on a
gang to its end, including scoring and failed attempts; the start of a gang does not count.
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
    """Worker-seconds and GPU-seconds of ended trials, and the maximum over single trials."""

    worker_s: float = 0.0
    gpu_s: float = 0.0
    most_worker_s: float = 0.0
    most_gpu_s: float = 0.0
    _running: dict[int, tuple[float, Resources]] = field(default_factory=dict)

    def begin(self, number: int, now: float, resources: Resources) -> None:
        """Count the trial from now on; an earlier attempt is added to the totals."""
        self.end(number, now)
        self._running[number] = now, resources

    def end(self, number: int, now: float) -> None:
        """Add the trial's usage to the totals; does nothing if it was not counted."""
        if number not in self._running:
            return
        workers, gpus = self.used(number, now)
        del self._running[number]
        self.worker_s += workers
        self.gpu_s += gpus
        self.most_worker_s = max(self.most_worker_s, workers)
        self.most_gpu_s = max(self.most_gpu_s, gpus)

    def is_running(self, number: int) -> bool:
        """Whether the trial is being counted."""
        return number in self._running

    def as_json(self, now: float) -> dict[str, float]:
        """JSON form, including running trials: the driver may be killed before they end."""
        worker_s, gpu_s = self.so_far(now)
        most = {"most_worker_s": self.most_worker_s, "most_gpu_s": self.most_gpu_s}
        return {"worker_s": worker_s, "gpu_s": gpu_s, **most}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> Ledger:
        """Inverse of `as_json`; an empty ledger for None."""
        return cls(**(stored or {}))

    def so_far(self, now: float) -> tuple[float, float]:
        """Worker-seconds and GPU-seconds, including running trials."""
        used = [self.used(number, now) for number in self._running]
        return self.worker_s + sum(w for w, _ in used), self.gpu_s + sum(g for _, g in used)

    def used(self, number: int, now: float) -> tuple[float, float]:
        """Worker-seconds and GPU-seconds of a running trial since it began; 0 for other trials."""
        if number not in self._running:
            return 0.0, 0.0
        began, resources = self._running[number]
        worker_s = (now - began) * resources.workers
        return worker_s, worker_s * resources.gpus_per_worker


ATTRIBUTE = "spend"


def load_spend(study: optuna.Study) -> tuple[float, Ledger]:
    """(Wall-clock seconds of all drivers, usage of the trials), as stored with the study."""
    stored = study.user_attrs.get(ATTRIBUTE, {"wall_s": 0.0, "ledger": None})
    return float(stored["wall_s"]), Ledger.from_json(stored["ledger"])


def save_spend(study: optuna.Study, wall_s: float, ledger: Ledger, now: float) -> None:
    """Inverse of `load_spend`, including the usage of running trials until `now`."""
    stored = {"wall_s": round(wall_s, 3), "ledger": ledger.as_json(now)}
    study.set_user_attr(ATTRIBUTE, stored)
