"""What a cluster of several real nodes takes, on one machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_commands import SPEC
from tests.faults.cluster import RayCluster, ray_cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Two nodes of two CPUs."""
    with ray_cluster(2) as made:
        made.add_nodes(1, 2)
        yield made


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
    spec.write_text(SPEC + "resources: {workers: 4}\n", encoding="utf-8")
    found = validate(cluster, spec, *there)
    assert (found.returncode, found.stderr) == (0, "")
    large = ("--set", "resources.by_size={1M: {workers: 8}, 9M: {gpus_per_worker: 1}}")
    found = validate(cluster, spec, *large, *there)
    assert found.returncode == 2
    assert found.stderr.splitlines() == [
        "spec.yaml:19: resources: the trial needs 8 workers of 1 CPU; the cluster holds "
        "2 nodes of 2 CPU and 0 GPU: lower resources or add nodes",
        "spec.yaml:19: resources: the trial needs 4 workers of 1 CPU and 1 GPU; the "
        "cluster holds 2 nodes of 2 CPU and 0 GPU: lower resources or add nodes",
    ]


def test_auto_is_the_cluster_that_the_environment_names(
    cluster: RayCluster, tmp_path: Path
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC + "resources: {workers: 8}\n", encoding="utf-8")
    found = validate(cluster, spec, "--address", "auto", RAY_ADDRESS=cluster.address)
    assert found.returncode == 2
    assert "8 workers of 1 CPU; the cluster holds 2 nodes of 2 CPU and 0 GPU" in found.stderr
