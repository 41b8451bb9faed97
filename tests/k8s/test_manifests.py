"""Every overlay and dry run: valid in the real schemas, complete references, security rules."""

from __future__ import annotations

import contextlib
import copy
import io
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from mptune.cli import main
from tests.k8s.manifests import OUTSIDE, mistakes, violations
from tests.k8s.render import OVERLAYS, PROFILES, kustomize, overlay
from tests.k8s.schemas import ROOT, Refused, Schemas, documents

Manifest = dict[str, Any]

PAIRS = {
    "kubernetes": "cpu-demo",
    "kubernetes-gpu": "gpu",
    "kubernetes-gpu-spot": "gpu-spot",
    "kubernetes-kueue": "kueue",
    "kubernetes-gangs": "gangs",
}
SETS = {
    "kubernetes": [],
    "kubernetes-gangs": ["resources.workers=16", "training.batch_size=16"],
}
GPU = ["resources.gpus_per_worker=1"]
BY_NAME = {p.stem: p for p in PROFILES}

QUICKSTART = ROOT / "search_spaces" / "quickstart.yaml"


@cache
def dry_run(profile: str) -> str:
    sets = SETS.get(profile, []) + (GPU if profile != "kubernetes" else [])
    return rendered(BY_NAME[profile], sets)


def rendered(profile: Path, sets: list[str], spec: Path = QUICKSTART) -> str:
    """What `mptune launch --dry-run` prints."""
    out = io.StringIO()
    changes = [word for change in sets for word in ("--set", change)]
    with contextlib.redirect_stdout(out):
        assert main(["launch", str(spec), "--on", str(profile), "--dry-run", *changes]) == 0
    return out.getvalue()


def whole(profile: str) -> list[Manifest]:
    """Every object in the namespace after a search has been launched."""
    return copy.deepcopy(
        [*overlay(ROOT / "k8s" / "overlays" / PAIRS[profile]), *documents(dry_run(profile))]
    )


def test_every_overlay_has_a_profile_and_every_profile_an_overlay() -> None:
    assert {p.name for p in OVERLAYS} == set(PAIRS.values())
    assert set(BY_NAME) == set(PAIRS)


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda p: p.name)
def test_an_api_server_accepts_every_overlay(schemas: Schemas, folder: Path) -> None:
    manifests = overlay(folder)
    schemas.check(manifests)
    assert {"Namespace", "StatefulSet", "NetworkPolicy"} <= {m["kind"] for m in manifests}


@pytest.mark.parametrize("profile", PAIRS)
def test_an_api_server_accepts_every_dry_run(
    schemas: Schemas, tmp_path: Path, profile: str
) -> None:
    (tmp_path / "search.yaml").write_text(dry_run(profile))
    (tmp_path / "kustomization.yaml").write_text("resources: [search.yaml]\n")
    manifests = documents(dry_run(profile))
    schemas.check(manifests)
    assert documents(kustomize(tmp_path)) == manifests
    assert [m["kind"] for m in manifests] == ["ConfigMap", "NetworkPolicy", "RayJob"]


@pytest.mark.parametrize("profile", PAIRS)
def test_the_references_of_an_overlay_and_its_search_are_complete(profile: str) -> None:
    assert mistakes(whole(profile)) == []


@pytest.mark.parametrize("profile", PAIRS)
def test_an_overlay_and_its_search_keep_the_security_rules(profile: str) -> None:
    assert violations(whole(profile)) == []


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda p: p.name)
def test_a_copied_overlay_may_have_another_namespace(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(ROOT / "k8s", tmp_path / "k8s") / "overlays" / folder.name
    file = copied / "kustomization.yaml"
    file.write_text(file.read_text().replace("namespace: mptune", "namespace: team-b"))
    manifests = documents(kustomize(copied))
    assert [m["metadata"]["name"] for m in manifests if m["kind"] == "Namespace"] == ["team-b"]
    assert [m for m in mistakes(manifests) if "namespace" in m] == []


def test_the_operator_reaches_the_head_however_it_was_installed() -> None:
    (policy,) = [m for m in whole("kubernetes") if m["metadata"]["name"] == "ray-head"]
    peers = policy["spec"]["ingress"][0]["from"]
    selectors = [p["podSelector"]["matchLabels"].items() for p in peers if "namespaceSelector" in p]
    for labels in OUTSIDE:
        assert any(selector <= labels.items() for selector in selectors)


def test_a_kueue_flavor_tolerates_the_taints_of_gpu_nodes() -> None:
    (pool,) = yaml.safe_load(BY_NAME["kubernetes-gpu"].read_text())["pools"]
    assert (
        kind(whole("kubernetes-kueue"), "ResourceFlavor")["spec"]["tolerations"]
        == (pool["tolerations"])
    )


def test_the_head_s_environment_is_in_the_profile(tmp_path: Path) -> None:
    path = tmp_path / "kubernetes.yaml"
    text = (
        BY_NAME["kubernetes"]
        .read_text()
        .replace("  memory: 3Gi\n", "  memory: 3Gi\n  env: {A: b}\n")
    )
    path.write_text(text)
    (head,) = job(documents(rendered(path, [])))["spec"]["rayClusterSpec"]["headGroupSpec"][
        "template"
    ]["spec"]["containers"]
    assert {"name": "A", "value": "b"} in head["env"]


@pytest.mark.parametrize("profile", PAIRS)
def test_ray_drains_a_worker_within_the_grace_of_its_pod(profile: str) -> None:
    spec = pod(documents(dry_run(profile)))
    env = {variable["name"]: variable.get("value") for variable in spec["containers"][0]["env"]}
    drains_s = int(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert 0.8 * spec["terminationGracePeriodSeconds"] < drains_s
    assert drains_s <= spec["terminationGracePeriodSeconds"] - 10
    head = job(documents(dry_run(profile)))["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert "preStop" in head["spec"]["containers"][0]["lifecycle"]


@pytest.mark.parametrize(
    "component",
    sorted(p.parent.name for p in (ROOT / "k8s" / "components").glob("*/kustomization.yaml")),
)
def test_every_component_fits_the_base(schemas: Schemas, tmp_path: Path, component: str) -> None:
    # kubectl accepts relative paths only.
    relative = Path(*[".."] * (len(tmp_path.resolve().parts) - 1), *ROOT.parts[1:], "k8s")
    text = {"resources": [f"{relative}/base"], "components": [f"{relative}/components/{component}"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(text))
    manifests = documents(kustomize(tmp_path))
    schemas.check(manifests)
    assert violations(manifests) == []


def test_the_sidecar_of_grafana_finds_the_dashboard(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "k8s" / "components" / "grafana", tmp_path / "grafana")
    (tmp_path / "kustomization.yaml").write_text("components: [grafana]\n")
    (found,) = documents(kustomize(tmp_path))
    assert found["metadata"] == {"name": "mptune-grafana", "labels": {"grafana_dashboard": "1"}}
    assert found["data"] == {"mptune.json": (folder / "mptune.json").read_text(encoding="utf-8")}


# --- the validator can fail --------------------------------------------------------------------


def job(manifests: list[Manifest]) -> Manifest:
    return next(m for m in manifests if m["kind"] == "RayJob")


def kind(manifests: list[Manifest], wanted: str) -> Manifest:
    return next(m for m in manifests if m["kind"] == wanted)


def workers(manifests: list[Manifest]) -> Manifest:
    return job(manifests)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


def pod(manifests: list[Manifest]) -> Manifest:
    return workers(manifests)["template"]["spec"]


def container(manifests: list[Manifest]) -> Manifest:
    return pod(manifests)["containers"][0]


def drop(mapping: Manifest, key: str) -> None:
    del mapping[key]


SCHEMA_BREAKERS: dict[str, Callable[[list[Manifest]], Any]] = {
    "unknown field of a RayJob": lambda m: job(m)["spec"].update(entryPoint="x"),
    "unknown field of a pod": lambda m: pod(m).update(nodeSelectors={}),
    "unknown field of a container": lambda m: container(m).update(volumeMount=[]),
    "unknown field of metadata": lambda m: job(m)["metadata"].update(label={}),
    "unknown field of a template's metadata": lambda m: workers(m)["template"]["metadata"].update(
        lables={}
    ),
    "unknown field of a StatefulSet": lambda m: kind(m, "StatefulSet")["spec"].update(replica=1),
    "unknown field of a NetworkPolicy": lambda m: kind(m, "NetworkPolicy")["spec"].update(port=1),
    "unknown kind": lambda m: job(m).update(kind="RayJobs"),
    "unknown version": lambda m: job(m).update(apiVersion="ray.io/v2"),
    "text for a number": lambda m: workers(m).update(replicas="one"),
    "number for text": lambda m: job(m)["spec"].update(entrypoint=3),
    "a mode that is none": lambda m: job(m)["spec"]["rayClusterSpec"].update(
        authOptions={"mode": "tokens"}
    ),
    "list for a mapping": lambda m: pod(m).update(securityContext=[]),
    "a container without a name": lambda m: drop(container(m), "name"),
    "a StatefulSet without a selector": lambda m: drop(kind(m, "StatefulSet")["spec"], "selector"),
    "unknown field of a ClusterQueue": lambda m: kind(m, "ClusterQueue")["spec"].update(quota=1),
}

MISTAKES: dict[str, Callable[[list[Manifest]], Any]] = {
    "KubeRay starts it and never submits": lambda m: job(m)["spec"].update(submissionMode="Bogus"),
    "SidecarMode forbids": lambda m: job(m)["spec"].update(submissionMode="SidecarMode"),
    "need shutdownAfterJobFinishes": lambda m: job(m)["spec"].update(
        shutdownAfterJobFinishes=False
    ),
    "deletionRules exclude": lambda m: job(m)["spec"].update(
        deletionStrategy={"deletionRules": [{"policy": "DeleteCluster"}]}
    ),
    "token authentication needs": lambda m: job(m)["spec"]["rayClusterSpec"].update(
        rayVersion="2.51.0"
    ),
    "17 worker groups": lambda m: job(m)["spec"]["rayClusterSpec"].update(
        workerGroupSpecs=[workers(m)] * 18
    ),
    "no clusterSelector": lambda m: job(m)["spec"].update(clusterSelector={"a": "b"}),
    "elastic-job": lambda m: job(m)["spec"]["rayClusterSpec"].update(enableInTreeAutoscaling=True),
    "replicas outside": lambda m: workers(m).update(replicas=9),
    "requests more than its limit": lambda m: container(m)["resources"]["requests"].update(
        memory="999Gi"
    ),
    "must request its limit": lambda m: container(m)["resources"]["requests"].update(
        {"nvidia.com/gpu": "1"}
    ),
    "comes whole": lambda m: container(m)["resources"].update(
        {"limits": {"nvidia.com/gpu": "0.5"}, "requests": {"nvidia.com/gpu": "0.5"}}
    ),
    "containerPort 65536": lambda m: container(m).update(ports=[{"containerPort": 65536}]),
    "Deployment/optuna-dashboard: outside of namespace": lambda m: drop(
        kind(m, "Deployment")["metadata"], "namespace"
    ),
    "ClusterQueue/mptune: is not for namespace": lambda m: kind(m, "ClusterQueue")["spec"].update(
        namespaceSelector={}
    ),
    "a toleration that is not in the ResourceFlavor": lambda m: pod(m).update(
        tolerations=[{"key": "spot", "operator": "Exists"}]
    ),
    "livenessProbe has too short a time-out": lambda m: drop(
        kind(m, "StatefulSet")["spec"]["template"]["spec"]["containers"][0]["livenessProbe"],
        "timeoutSeconds",
    ),
    "bad name": lambda m: job(m)["metadata"].update(name="Bad_Name"),
    "longer than KubeRay's": lambda m: job(m)["metadata"].update(name="a" * 48),
    "bad label": lambda m: job(m)["metadata"]["labels"].update(study="a b"),
    "selects no pod": lambda m: kind(m, "Service")["spec"]["selector"].update(x="y"),
    "NetworkPolicy/ray-internal: selects no pod": lambda m: next(
        p for p in m if p["metadata"]["name"] == "ray-internal"
    )["spec"]["podSelector"].update(matchLabels={"ray.io/is-ray-node": "true"}),
    "StatefulSet/mptune-postgres: selects no pod": lambda m: kind(m, "StatefulSet")["spec"][
        "selector"
    ].update(matchLabels={"app.kubernetes.io/name": "postgres"}),
    "no container has a port named": lambda m: kind(m, "Service")["spec"]["ports"][0].update(
        targetPort="pg"
    ),
    "there is no Secret": lambda m: container(m).update(
        env=[{"name": "X", "valueFrom": {"secretKeyRef": {"name": "nope", "key": "x"}}}]
    ),
    "there is no ConfigMap": lambda m: m.remove(kind(m, "ConfigMap")),
    "there is no PersistentVolumeClaim": lambda m: m.remove(kind(m, "PersistentVolumeClaim")),
    "there is no ServiceAccount": lambda m: pod(m).update(serviceAccountName="root"),
    "there is no PriorityClass": lambda m: m.remove(kind(m, "PriorityClass")),
    "there is no LocalQueue": lambda m: m.remove(kind(m, "LocalQueue")),
    "there is no ClusterQueue": lambda m: m.remove(kind(m, "ClusterQueue")),
    "there is no volume": lambda m: container(m)["volumeMounts"][0].update(name="x"),
    "a star": lambda m: kind(m, "Role")["rules"][0].update(verbs=["*"]),
    "made twice": lambda m: m.append(copy.deepcopy(job(m))),
}

POLICY_BREAKERS: dict[str, Callable[[list[Manifest]], Any]] = {
    "root": lambda m: pod(m)["securityContext"].update(runAsUser=0),
    "no seccomp profile": lambda m: drop(pod(m)["securityContext"], "seccompProfile"),
    "host namespace": lambda m: pod(m).update(hostNetwork=True),
    "host path": lambda m: pod(m)["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
    "API token by default": lambda m: drop(pod(m), "automountServiceAccountToken"),
    "privilege": lambda m: container(m).update(securityContext={"privileged": True}),
    "capabilities": lambda m: container(m)["securityContext"].update(
        capabilities={"drop": ["ALL"], "add": ["NET_ADMIN"]}
    ),
    "writable root": lambda m: container(m)["securityContext"].update(readOnlyRootFilesystem=False),
    "image without a version": lambda m: container(m).update(image="mptune:latest"),
    "no requests": lambda m: drop(container(m)["resources"]["requests"], "cpu"),
    "no memory limit": lambda m: drop(container(m)["resources"], "limits"),
    "secret in clear": lambda m: container(m)["env"].append({"name": "PGPASSWORD", "value": "x"}),
    "pod security": lambda m: kind(m, "Namespace")["metadata"].update(labels={}),
    "no default deny": lambda m: m.remove(
        next(p for p in m if p["metadata"]["name"] == "default-deny")
    ),
}


@pytest.mark.parametrize("name", SCHEMA_BREAKERS)
def test_a_manifest_with_one_thing_wrong_is_refused(schemas: Schemas, name: str) -> None:
    manifests = whole("kubernetes-kueue")
    schemas.check(manifests)
    SCHEMA_BREAKERS[name](manifests)
    with pytest.raises(Refused) as refused:
        schemas.check(manifests)
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize("text", ["", "---\n---\n", "a: 1\na: 2\n", "x: {b: 1, b: 2}", "- a\n"])
def test_an_empty_text_and_a_duplicate_key_are_refused(text: str) -> None:
    with pytest.raises(Refused):
        documents(text)


@pytest.mark.parametrize("line", MISTAKES)
def test_each_mistake_is_found(line: str) -> None:
    manifests = whole("kubernetes-kueue")
    MISTAKES[line](manifests)
    assert [m for m in mistakes(manifests) if line in m], mistakes(manifests)


@pytest.mark.parametrize("rule", POLICY_BREAKERS)
def test_each_security_rule_refuses_a_manifest_that_breaks_it(rule: str) -> None:
    manifests = whole("kubernetes-kueue")
    POLICY_BREAKERS[rule](manifests)
    assert [v for v in violations(manifests) if v.startswith(f"{rule}: ")]


def test_a_password_in_an_entrypoint_is_found() -> None:
    manifests = whole("kubernetes")
    job(manifests)["spec"]["entrypoint"] += " --set storage.url=postgresql://me:word@host/db"
    assert [v for v in violations(manifests) if v.startswith("secret in clear: RayJob")]


def test_a_spec_reaches_the_cluster_as_it_was_written(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    comment = "# \U0001f600 Größe, \\ud83d and <b> & 'quotes'\n"
    spec.write_text(comment + QUICKSTART.read_text(), encoding="utf-8")
    sent = kind(documents(rendered(BY_NAME["kubernetes"], [], spec)), "ConfigMap")
    assert list(sent["data"].values()) == [spec.read_text(encoding="utf-8")]


def test_a_pool_that_may_grow_enables_the_autoscaler(schemas: Schemas, tmp_path: Path) -> None:
    text = (ROOT / "launchers" / "kubernetes-kueue.yaml").read_text()
    path = tmp_path / "kubernetes-kueue.yaml"
    path.write_text(text.replace("    gpus: 4\n", "    gpus: 4\n    max_gangs: 3\n"))
    manifests = [*overlay(ROOT / "k8s" / "overlays" / "kueue"), *documents(rendered(path, GPU))]
    schemas.check(manifests)
    assert mistakes(manifests) == violations(manifests) == []
    found = job(manifests)
    assert found["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}
    assert "--set resources.scale_up_timeout_s=1800" in found["spec"]["entrypoint"]
    assert found["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert workers(manifests)["maxReplicas"] == 3


def test_source_files_have_no_duplicate_key() -> None:
    for path in (ROOT / "k8s").rglob("*.yaml"):
        documents(path.read_text())


def test_the_image_has_the_ray_version_of_the_profiles() -> None:
    pinned = (ROOT / "constraints.txt").read_text()
    for profile in BY_NAME:
        version = job(documents(dry_run(profile)))["spec"]["rayClusterSpec"]["rayVersion"]
        assert f"\nray=={version}\n" in pinned


def test_a_pool_may_ask_for_other_devices(tmp_path: Path) -> None:
    """Such as InfiniBand adapters, which NCCL uses between nodes; the head has none."""
    profile = tmp_path / "gangs.yaml"
    text = BY_NAME["kubernetes-gangs"].read_text()
    commented = "# devices: {rdma/hca_shared_devices_a: 1}"
    assert commented in text
    profile.write_text(text.replace(commented, commented[2:]))
    sets = [*SETS["kubernetes-gangs"], *GPU]
    job = next(m for m in documents(rendered(profile, sets)) if m["kind"] == "RayJob")
    cluster = job["spec"]["rayClusterSpec"]

    def resources(group: Manifest) -> Any:
        return group["template"]["spec"]["containers"][0]["resources"]

    worker = resources(cluster["workerGroupSpecs"][0])
    assert worker["limits"] == worker["requests"]
    assert worker["limits"]["rdma/hca_shared_devices_a"] == "1"
    assert worker["limits"]["nvidia.com/gpu"] == "8"
    assert set(resources(cluster["headGroupSpec"])["limits"]) == {"cpu", "memory"}
