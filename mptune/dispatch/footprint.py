"""What a rank holds between two trials, and when that is too much more than it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mptune.spec.schema import Resources

MB = 1e6


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process: of its own on the host (no mapped files), and on its GPU."""

    host: int
    gpu: int


def own_host_bytes() -> int:
    """Resident memory of this process that is backed by no file: a mapped table comes and goes.

    Source: RssAnon of proc_pid_status(5).
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    kb = next(line.split()[1] for line in lines if line.startswith("RssAnon:"))
    return int(kb) * 1024


@dataclass
class Growth:
    """Of every rank of a gang: its least footprint between trials, and its last one."""

    _least: dict[int, Footprint] = field(default_factory=dict)
    _last: dict[int, Footprint] = field(default_factory=dict)

    def note(self, rank: int, now: Footprint) -> None:
        least = self._least.get(rank, now)
        self._least[rank] = Footprint(min(least.host, now.host), min(least.gpu, now.gpu))
        self._last[rank] = now

    def excess(self, resources: Resources) -> str | None:
        """Which rank's memory did not come back, in words; None if all did."""
        return next(self._all_excess(resources), None)

    def _all_excess(self, resources: Resources) -> Iterator[str]:
        for rank, now in sorted(self._last.items()):
            least = self._least[rank]
            for what, bytes_, key in (
                ("memory", now.host - least.host, "memory_growth_mb"),
                ("GPU memory", now.gpu - least.gpu, "gpu_memory_growth_mb"),
            ):
                if bytes_ > getattr(resources, key) * MB:
                    yield f"{bytes_ / MB:.0f} MB of {what} of rank {rank} did not come back ({key})"
