"""A driver killed (-9) at moments of a search, on a cluster that outlives it.

Some of the moments with a study in PostgreSQL, the others with one in SQLite; half of them nightly.
`MPTUNE_KILLS=20` (`make soak`) kills the one in SQLite that often: once at each moment, then at
random ones.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from mptune.paths import RunDirectory
from tests import studies
from tests.faults.cluster import RayCluster, ray_cluster, wait_until_gone
from tests.faults.doomed import MOMENTS
from tests.faults.search import Outcome, Searches

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("MPTUNE_KILLS", 0))
TRIALS = max(KILLS, 3) + 4
SMALL = (
    "--set", f"search.trials={TRIALS}",
    "--set", "search.pruner={kind: median, rungs: [0.5], startup_trials: 4}",
    # With this seed two trials are pruned, and the last one is complete.
    "--set", "search.sampler={kind: tpe}", "--set", "search.seed=2",
    "--set", "search.concurrency=1",
)  # fmt: skip
DOOMED = ("-P", str(Path(__file__).with_name("doomed.py")))
"""By its path: other packages are called `tests`, too."""
LONG_S = {"gang": 1.0, "started": 0.3, "scoring": 0.05}
"""Moments that last; the others are over in milliseconds."""


def deaths(moments: Sequence[str], seed: int = 5) -> list[tuple[str, float]]:
    """(moment, seconds into it) in random order: these moments, or all of them in a soak."""
    draw = random.Random(seed)
    names = [*moments]
    if KILLS:
        names = [*MOMENTS, *draw.choices(list(MOMENTS), k=max(0, KILLS - len(MOMENTS)))]
    draw.shuffle(names)
    return [(name, draw.uniform(0, LONG_S.get(name, 0.01))) for name in names]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(2) as made:
        yield made


@pytest.fixture(scope="module")
def searches(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Searches:
    folder = tmp_path_factory.mktemp("doomed")
    return Searches(folder, cluster.env, (*SMALL, "--address", cluster.address))


@pytest.fixture(scope="module")
def undisturbed(searches: Searches) -> Outcome:
    searches.start("undisturbed").end()
    return searches.outcome("undisturbed")


def members(cluster: RayCluster) -> set[int]:
    """Processes of gangs, whoever started them."""
    return {p for p in cluster.head.pids() if "Member" in psutil.Process(p).name()}


def finished(run: RunDirectory, url: str | None) -> dict[int, tuple[float, int]]:
    """Trial -> its score in the storage, and when its result was written."""
    return {
        r.number: (r.result.lml.nats_per_token, run.trial(r.number).result.stat().st_mtime_ns)
        for r in studies.trials(run, url, "faults")
        if r.state == "COMPLETE" and r.result
    }


@dataclass(frozen=True)
class Killer:
    """Kills the driver of one search again and again, and looks at what is left each time."""

    cluster: RayCluster
    searches: Searches
    url: str | None = None

    def kill(self, name: str, dying: list[tuple[str, float]], *arguments: str) -> Outcome:
        before: dict[int, tuple[float, int]] = {}
        for moment, delay_s in dying:
            program = (*DOOMED, moment, f"{delay_s}")
            doomed = self.searches.start(name, *arguments, program=program)
            doomed.end(code=-9)
            assert wait_until_gone(members(self.cluster)) == set()
            now = finished(doomed.run, self.url)
            assert before.items() <= now.items(), f"killed in {moment}"
            before = now
        self.searches.start(name, *arguments).end()
        assert self.cluster.leftovers() == []
        return self.searches.outcome(name, self.url)


def nightly(*moments: str) -> Any:
    return pytest.param(moments, marks=pytest.mark.nightly, id="nightly")


@pytest.mark.parametrize(
    "moments", [("gang", "checkpoint", "finished"), nightly("started", "scoring")]
)
def test_a_driver_killed_at_each_moment_changes_nothing(cluster, searches, undisturbed, moments):
    found = Killer(cluster, searches).kill(f"doomed-{moments[0]}", deaths(moments))
    assert found == undisturbed
    assert {state for _, state, *_ in undisturbed} == {"COMPLETE", "PRUNED"}


@pytest.mark.parametrize("moments", [("record", "tell"), nightly("ask", "rung")])
def test_a_driver_killed_on_postgresql_changes_nothing(
    cluster, searches, undisturbed, server, moments
):
    """At moments in which the driver writes to the storage."""
    storage = ("--set", f"storage.url={server.url}")
    dying = [(moment, 0.003) for moment in moments]
    name = f"postgres-{moments[0]}"
    assert Killer(cluster, searches, server.url).kill(name, dying, *storage) == undisturbed
