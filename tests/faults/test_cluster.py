"""What may happen to the machines of a cluster: a gang that spans two, and their deaths."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mptune.paths import RunDirectory
from mptune.study.lease import driver_lock
from tests.faults.cluster import RayCluster, ray_cluster, wait_until_gone
from tests.faults.search import Outcome, Searches
from tests.plain import PAUSE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PAIR = ("--set", "resources.workers=2", "--set", "training.budget_tokens=20000")


@pytest.fixture(scope="module")
def pause(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file exists, a trial lasts long enough to be struck, see `plain.PAUSE`."""
    return tmp_path_factory.mktemp("pause") / "pause"


@pytest.fixture(scope="module")
def cluster(pause: Path) -> Iterator[RayCluster]:
    """Three machines of one CPU each, whose deaths are noticed sooner than by default (15 s)."""
    health = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
    with ray_cluster(1, **health, **{PAUSE: str(pause)}) as made:
        made.add_nodes(2, 1)
        yield made


@pytest.fixture(scope="module")
def searches(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Searches:
    folder = tmp_path_factory.mktemp("cluster")
    return Searches(folder, cluster.env, (*PAIR, "--address", cluster.address))


@pytest.fixture(scope="module")
def undisturbed(searches: Searches) -> Outcome:
    searches.start("undisturbed").end()
    return searches.outcome("undisturbed")


def test_a_gang_spans_two_nodes_and_the_death_of_one_costs_only_time(
    cluster, searches, undisturbed, pause
):
    pause.touch()
    running = searches.start("killed")
    running.wait_for("progress", number=1)
    told = running.wait_for("started", number=1)
    nodes = [cluster.node_of(pid) for pid in told["pids"]]
    assert len(set(nodes)) == 2
    finished = running.run.trial(0).result.stat().st_mtime_ns

    lost = next(n for n in nodes if n != cluster.head)
    lost.service("raylet").kill()
    failed = running.wait_for("failed")
    assert (failed["number"], failed["reason"]) == (1, "node_lost")
    assert re.search(
        r"rank \d of gang-1 is out of reach: its node \S+ \(\w+\) died", failed["detail"]
    )
    assert wait_until_gone(told["pids"]) == set()
    cluster.kill(lost)

    # The trial goes on where there is room; then there is none, until a machine is added.
    again = running.wait_for("started", number=1, count=2)
    assert {cluster.node_of(pid) for pid in again["pids"]} == set(cluster.nodes)
    cluster.kill(cluster.nodes[1])
    running.wait_for("failed", count=2)
    assert wait_until_gone(again["pids"]) == set()
    pause.unlink()
    cluster.add_nodes(1, 1)
    running.end()
    assert searches.outcome("killed") == undisturbed
    assert running.run.trial(0).result.stat().st_mtime_ns == finished


def test_a_wrong_token_is_named(cluster, searches):
    env = {**cluster.env, "RAY_AUTH_TOKEN": "0" * 32, "RAY_NUM_REDIS_GET_RETRIES": "1"}
    out = Searches(searches.folder, env, searches.arguments).start("refused").end(code=3)
    assert (
        f"cannot reach the Ray cluster at {cluster.address}: it does not accept your token" in out
    )


def test_a_head_that_was_restarted_ends_the_search_clearly_and_the_same_command_goes_on(
    cluster, searches, undisturbed, pause
):
    pause.touch()
    running = searches.start("headless")
    running.wait_for("progress", number=1)
    pids = running.wait_for("started", number=1)["pids"]
    for node in list(cluster.nodes):
        cluster.kill(node)
    pause.unlink()
    cluster.start_head(2)
    out = running.end(code=3)
    assert re.search(
        r"\nmptune: the head of the Ray cluster at \S+ was restarted; "
        r"finished trials are kept: the same command continues the search\n$", out
    )  # fmt: skip
    assert wait_until_gone(pids) == set()
    finished = running.run.trial(0).result.stat().st_mtime_ns
    searches.start("headless").end()
    assert searches.outcome("headless") == undisturbed
    assert running.run.trial(0).result.stat().st_mtime_ns == finished


LEFT = """
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

@ray.remote(num_cpus=0.1)
class Rank:
    def pid(self):
        return os.getpid()

for name in sys.argv[2:]:
    group = placement_group([{"CPU": 0.1}], name=name, lifetime="detached")
    where = PlacementGroupSchedulingStrategy(group)
    rank = Rank.options(scheduling_strategy=where, lifetime="detached").remote()
    print(ray.get(rank.pid.remote()), file=answer)
"""
"""Gangs whose driver is gone, as if Ray had not noticed."""


def test_fsck_finds_and_ends_gangs_of_this_run_that_have_no_driver(cluster, searches):
    run = RunDirectory(searches.folder / "headless")
    if not run.cluster.exists():  # this test alone
        searches.start("headless").end()
    known = json.loads(run.cluster.read_text())
    address = known["address"]  # by the machine's own name for itself
    assert address.endswith(f":{cluster.port}")

    def python(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=cluster.env, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    fsck = ("-m", "mptune", "fsck", str(run.root))
    names = (f"{known['mark']}/0a/gang-1", "mptune/another-run/0b/gang-1")
    ours, another = map(int, cluster.ask(LEFT, *names))

    with driver_lock(run):
        assert "gang" not in python(*fsck)
        python(*fsck, "--repair", code=3)
    said = python(*fsck, code=3)
    gang = f"gang {names[0]} (created, 1 worker) has no driver"
    assert said.startswith(
        f"the Ray cluster at {address}: {gang}; would repair: end its processes\n"
    )
    assert psutil.pid_exists(ours)
    assert f"{gang}; repaired: end its processes" in python(
        *fsck, "--repair", "--address", cluster.address
    )
    assert wait_until_gone([ours]) == set()
    assert psutil.pid_exists(another)
    assert python(*fsck) == "no problems\n"
