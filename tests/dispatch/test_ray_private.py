"""The contract with Ray's private parts: each test names the one that a new version changed."""

from __future__ import annotations

import inspect
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from packaging.requirements import Requirement
from packaging.version import Version
from ray._private import ray_constants, services, state, worker
from ray._private.node import Node
from ray.exceptions import ActorUnavailableError, RayActorError

from mptune.dispatch import ray_private

GCS_SERVER = Path(ray.__file__).parent / "core" / "src" / "ray" / "gcs" / "gcs_server"
ROOT = Path(__file__).parents[2]


def test_the_installed_ray_is_one_that_pyproject_allows() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line.split('"')[1]) for line in lines if '"ray' in line and ">=" in line]
    assert wanted
    assert all(Version(ray.__version__) in one.specifier for one in wanted), (
        f"pyproject.toml does not allow Ray {ray.__version__}, with which these tests run"
    )


def test_ray_prints_dead_workers_through_a_function_that_can_be_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    what = f"Ray {ray.__version__} prints worker output otherwise: see silence_worker_output"
    assert callable(getattr(worker, "print_to_stdstream", None)), what
    assert "print_to_stdstream" in inspect.getsource(worker.listen_error_messages) or (
        inspect.getsource(worker).count("print_to_stdstream") > 1
    ), what
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    ray_private.silence_worker_output()
    worker.print_to_stdstream("silent", ignore_prefix=True)


def test_ray_says_where_the_head_of_an_address_is(monkeypatch: pytest.MonkeyPatch) -> None:
    what = f"Ray {ray.__version__} reads addresses otherwise: see head_of"
    assert callable(getattr(services, "canonicalize_bootstrap_address", None)), what
    assert ray_private.head_of("10.1.2.3:6379") == ("10.1.2.3", 6379), what
    monkeypatch.setenv("RAY_ADDRESS", "10.1.2.3:6380")
    assert ray_private.head_of("auto") == ("10.1.2.3", 6380), what


def test_ray_binds_to_loopback_by_a_constant() -> None:
    what = f"Ray {ray.__version__} chooses its interfaces otherwise: see bound_to_loopback"
    assert hasattr(ray_constants, "ENABLE_RAY_CLUSTER"), what
    assert "ENABLE_RAY_CLUSTER" in inspect.getsource(services), what
    before = ray_constants.ENABLE_RAY_CLUSTER
    with ray_private.bound_to_loopback():
        assert ray_constants.ENABLE_RAY_CLUSTER is False
    assert before is ray_constants.ENABLE_RAY_CLUSTER


def test_ray_starts_its_services_by_a_class_that_can_be_replaced() -> None:
    what = f"Ray {ray.__version__} starts its services otherwise: see own_sessions"
    assert issubclass(getattr(services, "ConsolePopen", object), subprocess.Popen), what
    assert "ConsolePopen(" in inspect.getsource(services.start_ray_process), what
    before = services.ConsolePopen
    with ray_private.own_sessions():
        assert services.ConsolePopen.keywords == {"start_new_session": True}
    assert services.ConsolePopen is before


def test_services_without_use_are_started_by_methods_that_can_be_replaced() -> None:
    what = f"Ray {ray.__version__} starts its services otherwise: see few_services"
    starts = inspect.getsource(Node.start_head_processes) + inspect.getsource(
        Node.start_ray_processes
    )
    before = dict(vars(Node))
    with ray_private.few_services():
        names = [name for name, method in vars(Node).items() if method is not before[name]]
    assert len(names) == 3, what
    assert [name for name in names if f"self.{name}(" not in starts] == [], what
    assert dict(vars(Node)) == before


@pytest.mark.parametrize("text", [ray_private.NODE_DEATH, ray_private.OTHER_CLUSTER])
def test_the_head_says_so_in_its_errors(text: str) -> None:
    assert text.encode() in GCS_SERVER.read_bytes(), (
        f"the head of Ray {ray.__version__} does not say {text!r} in its errors any more: "
        "see is_node_death and is_other_cluster"
    )


def test_errors_are_told_apart() -> None:
    dead = RayActorError(error_msg=f"The actor died because {ray_private.NODE_DEATH}.")
    assert ray_private.is_node_death(dead)
    assert ray_private.is_node_death(ActorUnavailableError("unreachable", b"0" * 16))
    assert not ray_private.is_node_death(RayActorError())
    assert ray_private.is_other_cluster(RuntimeError("RPC error: WrongClusterID: Perhaps ..."))
    assert not ray_private.is_other_cluster(RuntimeError("no answer"))


def test_ray_brings_a_binding_of_nvml() -> None:
    names = ("nvmlInit", "nvmlShutdown", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex",
             "nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo")  # fmt: skip
    missing = [name for name in names if not hasattr(ray_private.nvml(), name)]
    assert not missing, f"the NVML binding of Ray {ray.__version__} lacks {missing}: see nvml"


@pytest.fixture(scope="module")
def running() -> Iterator[str]:
    """Address of the head of a small Ray of this process."""
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    if started:
        ray.shutdown()


def test_unused_resources_are_listed_by_node(running: str) -> None:
    (here,) = (node["NodeID"] for node in ray.nodes())
    found = ray_private.unused_resources()
    assert found[here].get("CPU") == 1, f"Ray {ray.__version__} says: {found}: unused_resources"


def test_every_node_has_its_id_as_a_label(running: str) -> None:
    (node,) = ray.nodes()
    assert node["Labels"].get(ray_private.NODE_LABEL) == node["NodeID"], (
        f"Ray {ray.__version__} labels nodes otherwise: see NODE_LABEL"
    )


def test_a_head_has_an_identity(running: str) -> None:
    found = ray_private.cluster_id(running)
    assert found == ray_private.cluster_id(running)
    assert len(found) > 10, f"Ray {ray.__version__} names the cluster {found!r}: see cluster_id"


def test_the_head_keeps_a_text_until_it_is_deleted(running: str) -> None:
    what = f"the key-value store of Ray {ray.__version__} has changed: see read_key and write_key"
    for text in ("first", "second"):
        ray_private.write_key("contract", text)
        assert ray_private.read_key("contract") == text.encode(), what
    ray_private.write_key("contract", None)
    assert ray_private.read_key("contract") is None, what


def test_ray_names_the_nodes_that_it_drains() -> None:
    what = f"Ray {ray.__version__} names nodes otherwise: see leaving_nodes"
    assert callable(getattr(state.state, "get_draining_nodes", None)), what
