"""What cannot fit never comes near Ray's placement groups: real Ray, the fake worker."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from ray.util import placement_group, placement_group_table, remove_placement_group

from mptune.dispatch import cluster as cluster_module
from mptune.dispatch import devices
from mptune.dispatch.cluster import MachineSurvey
from mptune.dispatch.ray_dispatcher import RayDispatcher
from mptune.models import _memory as memory
from mptune.paths import RunDirectory, node_bytes
from mptune.spec.schema import Resources
from mptune.study.records import MEMORY
from mptune.trial import GangChanged, TrialSpec
from tests import fakes, studies
from tests.faults.cluster import ray_cluster
from tests.search.drivers import Watcher, driver, found

SMALL = Resources(cpus_per_worker=0.5, memory_gb=1)
SIZES = {"fits": (64, 2), "large": (512, 12)}


@pytest.fixture(scope="module")
def dispatcher() -> Iterator[RayDispatcher]:
    made = RayDispatcher(SMALL, runtime=fakes.FAKE_WORKER)
    yield made
    made.close()


def searching(
    dispatcher: RayDispatcher, run: RunDirectory, *sizes: str, trials: int = 5
) -> Watcher:
    """Run a search over models of these sizes to its end."""

    def propose(trial: optuna.Trial) -> TrialSpec:
        width, depth = SIZES[trial.suggest_categorical("size", sizes)]
        return fakes.trial(
            trial.number,
            run.root / "trials",
            policy_label="fixed",
            size_label=f"bert {width}×{depth}",
            model={"family": "bert", "width": width, "depth": depth},
            policy={"kind": "fixed", "rate": 0.15},
            resources=SMALL,
        )

    watcher = Watcher()
    preflight = partial(memory.refusal, holds=dispatcher.device)
    changes = {"propose": propose, "preflight": preflight, "observer": watcher}
    driver(run, trials=trials, dispatcher=dispatcher, **changes).run()
    return watcher


def test_no_placement_group_is_ever_asked_for_what_cannot_fit(
    dispatcher: RayDispatcher, tmp_path: Path
) -> None:
    """Ray's table has the removed ones, too."""
    before, run = set(placement_group_table()), RunDirectory(tmp_path)
    watcher = searching(dispatcher, run, "large", trials=7)
    assert set(placement_group_table()) == before
    assert not any(isinstance(event, GangChanged) for event in watcher.events)
    details = {record.detail for record in found(run)}
    assert len(details) == 1
    detail = details.pop() or ""
    assert detail.startswith("bert 512×12 needs ")
    assert "a worker (resources.memory_gb) has 1 GB; give more workers" in detail


def test_the_search_goes_on_with_other_sizes(dispatcher: RayDispatcher, tmp_path: Path) -> None:
    before, run = set(placement_group_table()), RunDirectory(tmp_path)
    watcher = searching(dispatcher, run, "large", "fits", trials=8)
    records = found(run)
    refused = [r.number for r in records if r.reason == "out_of_memory"]
    ran = [r.number for r in records if r.state == "COMPLETE"]
    assert sorted(refused + ran) == list(range(8))
    assert {r.params["size"] for r in records if r.number in refused} == {"large"}
    assert len(set(placement_group_table()) - before) == 1
    assert refused
    gangs_for = {e.number for e in watcher.events if isinstance(e, GangChanged)}
    assert not gangs_for & set(refused)
    opened = studies.create(run, None, "demo")
    unmet = [t.number for t in opened.trials if t.constraints.get(MEMORY, 0) > 0]
    assert unmet == refused


def test_this_machine_is_known_without_asking_for_anything(dispatcher: RayDispatcher) -> None:
    before = set(placement_group_table())
    found = dispatcher.device(Resources())
    assert (found.kind, found.bytes) == ("cpu", node_bytes())
    assert dispatcher.device(Resources(workers=2, cpus_per_worker=0.25)).bytes == found.bytes / 2
    assert set(placement_group_table()) == before


def test_the_nodes_of_a_cluster_are_asked_by_tasks_that_take_nothing(
    dispatcher: RayDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while all that there is, is taken; a node that has left is not waited for."""
    cluster, before = dispatcher._cluster, set(placement_group_table())
    (node,) = [node.id for node in cluster.nodes()]
    monkeypatch.setattr(cluster, "_own", False)
    taken = placement_group([{"CPU": ray.available_resources()["CPU"]}])
    ray.get(taken.ready(), timeout=100)
    try:
        found = cluster.machines([node, "ab" * 28])
    finally:
        remove_placement_group(taken)
    assert found == {node: devices.this_machine(), "ab" * 28: devices.Machine()}
    assert len(set(placement_group_table()) - before) == 1


@ray.remote(num_cpus=0)
def _said_once(file: str) -> devices.Machine:
    while not Path(file).exists():
        time.sleep(0.01)
    return devices.Machine(64e9)


def test_a_node_that_joins_is_not_waited_for_and_counts_once_it_has_said(
    dispatcher: RayDispatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (node,) = [node.id for node in dispatcher._cluster.nodes()]
    asked, file = MachineSurvey(), tmp_path / "now"
    before = asked.known([node])
    monkeypatch.setattr(cluster_module, "ask_machine", lambda _: _said_once.remote(str(file)))
    monkeypatch.setattr(cluster_module, "SURVEY_TIMEOUT_S", 60.0)
    waits: list[float] = []
    wait = ray.wait

    def noted(refs: list[Any], *, num_returns: int, timeout: float) -> Any:
        waits.append(timeout)
        return wait(refs, num_returns=num_returns, timeout=timeout)

    monkeypatch.setattr(ray, "wait", noted)
    assert asked.known([node, "new"]) == before
    file.touch()
    while len(found := asked.known([node, "new"])) == 1:
        assert len(waits) < 6000
        time.sleep(0.01)
    assert set(waits) == {0.0}
    assert found == {**before, "new": devices.Machine(64e9)}


@pytest.mark.slow
def test_no_gpu_is_taken_before_a_trial_is_known_to_fit(tmp_path: Path) -> None:
    """On a node with a GPU in name only: Ray counts it, NVML knows none, and the spec states it."""
    command = [sys.executable, "-m", "tests.dispatch.on_gpus"]
    with ray_cluster(2, "--num-gpus=1") as cluster:
        told = subprocess.run(
            [*command, cluster.address, str(tmp_path)],
            env=cluster.env, capture_output=True, text=True, check=True, timeout=200,
        )  # fmt: skip
    said = json.loads(told.stdout.splitlines()[-1])
    assert said["device"] == {
        "kind": "cuda", "bytes": 40e9, "words": "a worker (resources.memory_gb)",
    }  # fmt: skip
    assert said["states"] == ["FAIL", "FAIL", "COMPLETE"]
    assert "a worker (resources.memory_gb) has 40 GB; give more" in said["details"][0]
    assert said["gpus"] == [0, 1]
