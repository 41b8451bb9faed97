"""A cluster that grows and shrinks under a dispatcher: real nodes, a fake worker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

from mptune.dispatch import gang_prefix, store_address
from mptune.paths import RunDirectory, free_port
from tests.cli.test_commands import SPEC
from tests.faults.cluster import RayCluster, ray_cluster, wait_until_gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Said = dict[str, Any]

AUTOSCALED: dict[str, Any] = {
    "cluster_name": "elastic",
    "max_workers": 2,
    "upscaling_speed": 1.0,
    "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [],
    "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
    "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
    "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
    "idle_timeout_minutes": 0.02,
    "provider": {"type": "fake_multinode", "use_node_id_as_ip": True,
                 "disable_node_updaters": True, "disable_launch_config_check": True},
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "one": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
}  # fmt: skip
"""Ray's autoscaler with machines that are processes of this one."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(
        1, RAY_health_check_period_ms="1000", RAY_health_check_failure_threshold="3"
    ) as made:
        yield made


Says = Callable[[Callable[[Said], bool]], Said]


@contextmanager
def doomed(cluster: RayCluster, folder: Path, *more: str) -> Iterator[tuple[Popen[str], Says]]:
    """A driver that fills the cluster, killed (-9) at the end.

    With what waits until it says what is wanted.
    """
    driver = Popen(
        [sys.executable, "-m", "tests.dispatch.elastic", cluster.address, str(folder), *more],
        env=cluster.env, stdin=PIPE, stdout=PIPE, text=True,
    )  # fmt: skip
    assert driver.stdout is not None
    lines = driver.stdout

    def says(wanted: Callable[[Said], bool]) -> Said:
        return next(found for found in map(json.loads, lines) if wanted(found))

    try:
        yield driver, says
    finally:
        driver.kill()
        driver.wait()


@contextmanager
def busy(cluster: RayCluster, folder: Path, *more: str) -> Iterator[Says]:
    """The same, but asked to end."""
    with doomed(cluster, folder, *more) as (driver, says):
        yield says
        assert driver.stdin is not None
        driver.stdin.close()
        assert driver.wait(100) == 0


@pytest.mark.nightly
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


def test_trials_on_a_node_that_gets_sigterm_stop_with_a_checkpoint_and_none_follows(
    cluster, tmp_path
):
    """What the kubelet sends to a pod that is deleted, or whose spot node is taken away."""
    with busy(cluster, tmp_path) as said:
        said(lambda s: len(s["running"]) == 1)
        pod = cluster.add_pod(1)
        grown = said(lambda s: len(s["running"]) == 2)
        (there,) = [pid for pid in grown["running"] if pod.has(pid)]
        os.kill(pod.session, signal.SIGTERM)
        left = said(lambda s: s["stopped"] or s["failed"])
        assert (left["stopped"], left["failed"]) == (["preempted"], [])
        assert wait_until_gone([there, pod.session]) == set()
        after = said(lambda s: s["capacity"] == 1)
        assert after["failed"] == []
        assert not any(pod.has(pid) for pid in after["running"])
    cluster.kill(pod)


def machines(cluster: RayCluster) -> int:
    """Nodes that are alive, the head among them."""
    (alive,) = cluster.ask("print(sum(node['Alive'] for node in ray.nodes()), file=answer)")
    return int(alive)


def machines_left(cluster: RayCluster) -> int:
    """Nodes that are alive once the autoscaler had the time to end the idle ones."""
    give_up = time.monotonic() + 60
    while (left := machines(cluster)) > 1 and time.monotonic() < give_up:
        time.sleep(1)
    return left


@pytest.fixture(scope="module")
def autoscaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A head of no CPU, and up to two machines of one CPU."""
    config = tmp_path_factory.mktemp("autoscaled") / "autoscaler.json"
    port = free_port()
    provider = AUTOSCALED["provider"] | {"gcs_address": f"127.0.0.1:{port}"}
    config.write_text(json.dumps(AUTOSCALED | {"provider": provider}))
    environment = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with ray_cluster(0, f"--autoscaling-config={config}", port=port, **environment) as cluster:
        yield cluster


@pytest.mark.nightly
def test_an_autoscaler_is_asked_for_what_waits_until_the_search_ends(autoscaled, tmp_path):
    with busy(autoscaled, tmp_path, "120") as said:
        grown = said(lambda s: len(s["running"]) == 2)
        assert (grown["capacity"], grown["failed"]) == (3, [])
    assert machines_left(autoscaled) == 1


def fsck(cluster: RayCluster, run: RunDirectory, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mptune", "fsck", str(run.root), *more]
    return subprocess.run(command, env=cluster.env, capture_output=True, text=True, timeout=100)


@pytest.mark.nightly
def test_machines_that_a_killed_driver_asked_for_are_given_back_by_fsck(autoscaled, tmp_path):
    run, another = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "another")
    for made in (run, another):
        made.root.mkdir()
        made.resolved.write_text(SPEC)
        store_address(made, autoscaled.address)
    with doomed(autoscaled, tmp_path, "120", gang_prefix(run)) as (_, said):
        said(lambda s: s["running"])
    told = fsck(autoscaled, another, "--repair")
    assert told.stdout == "no problems\n", told.stderr
    found = fsck(autoscaled, run)
    assert found.returncode == 3, found.stderr
    assert re.match(
        rf"the Ray cluster at {autoscaled.address}: its autoscaler is asked for machines "
        r"by a driver that has ended; would repair: withdraw the request\n",
        found.stdout,
    )
    assert machines(autoscaled) > 1
    assert fsck(autoscaled, run, "--repair").returncode == 0
    assert fsck(autoscaled, run).stdout == "no problems\n"
    assert machines_left(autoscaled) == 1
