"""A cluster of two real nodes: what it can hold, and trials whose planned place others take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_commands import SPEC
from tests.faults.cluster import RayCluster, ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Two nodes of one CPU."""
    with ray_cluster(1) as made:
        made.add_nodes(1, 1)
        yield made


def scene(
    cluster: RayCluster, folder: Path, name: str, address: str = "", **environment: str
) -> list[dict[str, Any]]:
    """What the driver says; see crowded.py."""
    where = address or cluster.address
    told = subprocess.run(
        [sys.executable, "-m", "tests.dispatch.crowded", where, str(folder), name],
        env=cluster.env | environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    return [json.loads(line) for line in told.stdout.splitlines()]


def test_a_gang_goes_where_others_leave_room(cluster: RayCluster, tmp_path: Path) -> None:
    """`auto` is the cluster that was started last here, as `ray start` notes in its folder."""
    (tmp_path / "ray").symlink_to(cluster.folder)  # by default /tmp/ray
    (ran,) = scene(cluster, tmp_path, "seen", "auto", RAY_TMPDIR=str(tmp_path))
    assert ran["cluster"].endswith(f":{cluster.port}")
    assert ran["at"] != [ran["planned"]]
    assert ran["gone"] == []


@pytest.mark.nightly
def test_a_gang_gives_way_to_others_that_were_faster(cluster: RayCluster, tmp_path: Path) -> None:
    (ran,) = scene(cluster, tmp_path, "blind")
    assert ran["at"] != [ran["planned"]]
    assert ran["gone"] == ["others use its place"]


def test_a_trial_waits_while_others_have_all_places_and_runs_when_one_is_free(
    cluster: RayCluster, tmp_path: Path
) -> None:
    waited, ran = scene(cluster, tmp_path, "full")
    assert waited == {"wait": "no_room", "told": 0}
    assert ran["at"] == [ran["planned"]]
    assert ran["gone"] == []
    assert cluster.leftovers() == []


def validate(
    cluster: RayCluster, spec: Path, *more: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mptune", "validate", str(spec), *more]
    env = cluster.env | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)


def test_validate_refuses_what_could_never_fit_in_a_known_cluster(
    cluster: RayCluster, tmp_path: Path
) -> None:
    spec, there = tmp_path / "spec.yaml", ("--address", cluster.address)
    spec.write_text(SPEC + "resources: {workers: 2}\n", encoding="utf-8")
    found = validate(cluster, spec, *there)
    assert (found.returncode, found.stderr) == (0, "")
    large = ("--set", "resources.by_size={1M: {workers: 8}, 9M: {gpus_per_worker: 1}}")
    found = validate(cluster, spec, *large, *there)
    assert found.returncode == 2
    assert found.stderr.splitlines() == [
        "spec.yaml:19: resources: the trial needs 8 workers of 1 CPU; the cluster holds "
        "2 nodes of 1 CPU and 0 GPU: lower resources or add nodes",
        "spec.yaml:19: resources: the trial needs 2 workers of 1 CPU and 1 GPU; the "
        "cluster holds 2 nodes of 1 CPU and 0 GPU: lower resources or add nodes",
    ]


def test_auto_is_the_cluster_that_the_environment_names(
    cluster: RayCluster, tmp_path: Path
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC + "resources: {workers: 8}\n", encoding="utf-8")
    found = validate(cluster, spec, "--address", "auto", RAY_ADDRESS=cluster.address)
    assert found.returncode == 2
    assert "8 workers of 1 CPU; the cluster holds 2 nodes of 1 CPU and 0 GPU" in found.stderr
