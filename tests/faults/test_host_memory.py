"""A machine that runs out of memory: Ray's monitor ends a rank, for real, to save the machine."""

from __future__ import annotations

import re

import pytest
from ray._private.utils import get_system_memory, get_used_memory

from tests.faults.cluster import ray_cluster, wait_until_gone
from tests.faults.search import Searches

pytestmark = pytest.mark.nightly

MARGIN_BYTES = 3 * 2**30
"""Twice what the cluster and the search need, and what else may come and go on this machine."""

BLOCK_BYTES = 2**27


def test_a_rank_that_the_memory_monitor_ends_is_run_again_when_there_is_room(tmp_path):
    limit = (get_used_memory() + MARGIN_BYTES) / get_system_memory()
    with ray_cluster(
        1, RAY_memory_usage_threshold=f"{limit:.4f}", RAY_memory_monitor_refresh_ms="100"
    ) as cluster:
        arguments = ("--address", cluster.address, "--set", "training.budget_tokens=1200000",
                     "--set", "search.trials=1")  # fmt: skip
        searches = Searches(tmp_path, cluster.env, arguments)
        running = searches.start("hungry")
        pids = running.wait_for("started")["pids"]
        running.wait_for("progress")
        hog: list[bytes] = []

        def eaten() -> bool:
            if len(hog) * BLOCK_BYTES < 2 * MARGIN_BYTES:
                hog.append(b"x" * BLOCK_BYTES)
            return bool(running.events("failed"))

        running.wait_until(eaten)
        hog.clear()
        failed = running.wait_for("failed")
        assert failed["reason"] == "host_out_of_memory"
        assert re.search(r"was killed: its node \S+ \(\w+\) has no memory left$", failed["detail"])
        assert wait_until_gone(pids) == set()
        assert running.wait_for("started", count=2)["resumed_at"] > 0
        running.end()
        assert [state for _, state, *_ in searches.outcome("hungry")] == ["COMPLETE"]
