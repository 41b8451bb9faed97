"""A cluster that grows and shrinks under a dispatcher: real nodes, a fake worker."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cluster import RayCluster, ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
Said = dict[str, Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(
        1, PYTHONPATH=str(ROOT), RAY_health_check_period_ms="1000",
        RAY_health_check_failure_threshold="3",
    ) as made:  # fmt: skip
        yield made


@contextmanager
def busy(cluster: RayCluster, folder: Path) -> Iterator[Callable[[Callable[[Said], bool]], Said]]:
    """A driver that fills the cluster; calling it waits until it says what is wanted."""
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.dispatch.elastic", cluster.address, str(folder)],
        env=cluster.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert driver.stdout is not None
    assert driver.stdin is not None
    lines = driver.stdout

    def said(wanted: Callable[[Said], bool]) -> Said:
        return next(found for found in map(json.loads, lines) if wanted(found))

    try:
        yield said
        driver.stdin.close()
        assert driver.wait(60) == 0
    finally:
        driver.kill()


def test_trials_in_flight_follow_the_cluster_as_it_grows_and_shrinks(cluster, tmp_path):
    with busy(cluster, tmp_path) as said:
        alone = said(lambda s: len(s["running"]) == 1)
        assert alone["capacity"] == 1
        cluster.add_nodes(1, 2)
        grown = said(lambda s: len(s["running"]) == 3)
        assert grown["capacity"] == 3
        added = cluster.nodes[-1]
        assert sum(added.has(pid) for pid in grown["running"]) == 2
        cluster.kill(added)
        shrunk = said(lambda s: len(s["failed"]) == 2 and s["running"] == alone["running"])
        assert shrunk["failed"] == ["node_lost"] * 2
    assert cluster.leftovers() == []
