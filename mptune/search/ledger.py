"""Usage of a search: worker-seconds and GPU-seconds of all trials.

Pure: times are seconds from any origin, given by the caller. A trial counts from its start on a
gang to its end, including scoring and failed attempts; the start of a gang does not count.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from mptune.spec.schema import Resources

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Work:
    """Worker-seconds and GPU-seconds of trials, and wall-clock seconds of their drivers."""

    worker_s: float = 0.0
    gpu_s: float = 0.0
    wall_s: float = 0.0

    @classmethod
    def of(cls, seconds: float, resources: Resources) -> Work:
        """Work of a gang in this time."""
        worker_s = seconds * resources.workers
        return cls(worker_s, worker_s * resources.gpus_per_worker)

    @property
    def gpu_hours(self) -> float:
        return self.gpu_s / 3600

    def __add__(self, other: Work) -> Work:
        return Work(
            self.worker_s + other.worker_s, self.gpu_s + other.gpu_s, self.wall_s + other.wall_s
        )

    def times(self, factor: float) -> Work:
        return Work(self.worker_s * factor, self.gpu_s * factor, self.wall_s * factor)

    def at_least(self, other: Work) -> Work:
        """The maximum of both, separately for workers and GPUs."""
        return Work(max(self.worker_s, other.worker_s), max(self.gpu_s, other.gpu_s))


@dataclass
class Ledger:
    """The work of ended trials, the maximum over single trials, and when running ones began."""

    ended: Work = Work()
    most: Work = Work()
    _running: dict[int, tuple[float, Resources]] = field(default_factory=dict)

    def begin(self, number: int, now: float, resources: Resources) -> None:
        """Count the trial from now on; an earlier attempt is added to the totals."""
        self.end(number, now)
        self._running[number] = now, resources

    def end(self, number: int, now: float) -> None:
        """Add the trial's work to the totals; does nothing if it was not counted."""
        used = self.used(number, now)
        self._running.pop(number, None)
        self.ended += used
        self.most = self.most.at_least(used)

    def is_running(self, number: int) -> bool:
        """Whether the trial is being counted."""
        return number in self._running

    def so_far(self, now: float) -> Work:
        """Work of all trials, including running ones."""
        return sum((self.used(number, now) for number in self._running), self.ended)

    def used(self, number: int, now: float) -> Work:
        """Work of a running trial since it began; none for other trials."""
        if number not in self._running:
            return Work()
        began, resources = self._running[number]
        return Work.of(now - began, resources)


ATTRIBUTE = "spend"


def load_spend(study: optuna.Study) -> tuple[float, Ledger]:
    """(Wall-clock seconds of all drivers, work of the trials), as stored with the study."""
    stored = study.user_attrs.get(ATTRIBUTE, {"ended": {}, "most": {}})
    ended = Work(**stored["ended"])
    return ended.wall_s, Ledger(replace(ended, wall_s=0.0), Work(**stored["most"]))


def save_spend(study: optuna.Study, wall_s: float, ledger: Ledger, now: float) -> None:
    """Inverse of `load_spend`; running trials count until `now`: the driver may be killed."""
    ended = replace(ledger.so_far(now), wall_s=round(wall_s, 3))
    study.set_user_attr(ATTRIBUTE, {"ended": asdict(ended), "most": asdict(ledger.most)})
