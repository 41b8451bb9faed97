"""The manifests of one search: a RayJob, the ConfigMap with its spec, and the report's reader."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from mptune.launch._profile import Place, Pool, Profile
from mptune.launch.base import Search, pack_command

Manifest = dict[str, Any]

USER = 1000
SPEC = "/etc/mptune/spec.yaml"
RUN = "/mptune/run"
CACHE = "/mptune/cache"
SUBMITTER = {"cpu": "200m", "memory": "512Mi"}
SCALE_UP_S = 1800
"""A node of a cloud may take minutes to come up, and its first image to be pulled."""
AUTOSCALER = {"cpu": "200m", "memory": "512Mi"}

CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    # A volume of many checkpoints would otherwise be walked file by file at every start.
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}


def to_yaml(manifests: Iterable[Manifest]) -> str:
    """As `kubectl apply -f -` takes it; texts of several lines as they were written."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=1000)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, and no anchors: people read these."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def labels(name: str, component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "mptune",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/managed-by": "mptune",
    }


def config_map(profile: Profile, search: Search, owner: str | None = None) -> Manifest:
    """The spec as written; removed with the RayJob that owns it."""
    meta: Manifest = {
        "name": f"{search.name}-spec",
        "namespace": profile.namespace,
        "labels": labels(search.name, "spec"),
    }
    if owner is not None:
        job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": search.name, "uid": owner}
        meta["ownerReferences"] = [job]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta,
        "data": {"spec.yaml": search.spec},
    }


def ray_job(profile: Profile, search: Search) -> Manifest:
    """The RayJob. A driver that is lost starts again on a new cluster and resumes the study."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _job_meta(profile, search.name),
        "spec": {
            "entrypoint": _entrypoint(profile, search),
            "submissionMode": profile.submission,
            "backoffLimit": profile.retries,
            "activeDeadlineSeconds": profile.deadline_s,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": profile.keep_s,
            # Kueue lets go of what it has admitted.
            **({"suspend": True} if profile.queue else {}),
            "submitterPodTemplate": _submitter(profile, search.name),
            "rayClusterSpec": _cluster(profile, search.name),
        },
    }


def _job_meta(profile: Profile, name: str) -> Manifest:
    meta: Manifest = {
        "name": name,
        "namespace": profile.namespace,
        "labels": labels(name, "search"),
    }
    if profile.queue:
        meta["labels"]["kueue.x-k8s.io/queue-name"] = profile.queue
        if profile.workload_priority:
            meta["labels"]["kueue.x-k8s.io/priority-class"] = profile.workload_priority
        if _autoscales(profile):
            meta["annotations"] = {"kueue.x-k8s.io/elastic-job": "true"}
    return meta


def _entrypoint(profile: Profile, search: Search) -> str:
    more = ["--address", "auto", "--set", f"storage.url={profile.database.url}"]
    if _autoscales(profile) and not any(gang.scale_up_timeout_s for _, gang in search.gangs()):
        more += ["--set", f"resources.scale_up_timeout_s={SCALE_UP_S}"]
    return shlex.join(search.arguments(SPEC, RUN, *more))


def _autoscales(profile: Profile) -> bool:
    return any(p.most_gangs > p.min_gangs for p in profile.pools)


def _cluster(profile: Profile, name: str) -> Manifest:
    autoscaler = {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "upscalingMode": "Default",
            "idleTimeoutSeconds": 300,
            "resources": {"requests": AUTOSCALER, "limits": AUTOSCALER},
            "securityContext": CONTAINER_SECURITY,
        },
    }
    return {
        "rayVersion": profile.ray_version,
        "authOptions": {"mode": "token"},
        **(autoscaler if _autoscales(profile) else {}),
        "headGroupSpec": _head(profile, name),
        "workerGroupSpecs": [_workers(profile, name, pool) for pool in profile.pools],
    }


def _head(profile: Profile, name: str) -> Manifest:
    # The head drives; a trial that filled its memory would take the driver with it.
    parameters = {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"}
    sized = {"cpu": str(profile.head.cpus), "memory": profile.head.memory}
    return {
        "rayStartParams": parameters,
        "template": {
            "metadata": {"labels": labels(name, "head")},
            "spec": {
                **_pod(profile, profile.head),
                "automountServiceAccountToken": _autoscales(profile),
                "containers": [
                    {
                        **_container(profile, "ray-head", sized),
                        "env": _head_environment(profile),
                        "ports": [
                            {"name": "gcs", "containerPort": 6379},
                            {"name": "dashboard", "containerPort": 8265},
                            {"name": "client", "containerPort": 10001},
                        ],
                        "volumeMounts": [*_mounts(name), _mount("spec", "/etc/mptune")],
                    }
                ],
                "volumes": [*_volumes(profile, "1Gi"), _spec_volume(name)],
            },
        },
    }


def _workers(profile: Profile, name: str, pool: Pool) -> Manifest:
    sized = {"cpu": str(pool.cpus), "memory": pool.memory}
    if pool.gpus:
        sized["nvidia.com/gpu"] = str(pool.gpus)
    own = {**_common_environment(), **pool.env}
    return {
        "groupName": pool.name,
        "replicas": pool.min_gangs,
        "minReplicas": pool.min_gangs,
        "maxReplicas": pool.most_gangs,
        "numOfHosts": pool.hosts,
        "rayStartParams": {"num-cpus": str(pool.cpus), "num-gpus": str(pool.gpus)},
        "template": {
            "metadata": {"labels": labels(name, "worker")},
            "spec": {
                **_pod(profile, pool),
                "containers": [
                    {
                        **_container(profile, "ray-worker", sized),
                        "env": [*_plain(own), *_secrets(profile)],
                        "volumeMounts": _mounts(name),
                    }
                ],
                "volumes": _volumes(profile, pool.shared_memory),
            },
        },
    }


def _pod(profile: Profile, place: Place) -> Manifest:
    pod: Manifest = {
        "serviceAccountName": profile.service_account,
        "automountServiceAccountToken": False,
        "securityContext": POD_SECURITY,
        "terminationGracePeriodSeconds": profile.grace_s,
    }
    if profile.priority_class:
        pod["priorityClassName"] = profile.priority_class
    if profile.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": n} for n in profile.image_pull_secrets]
    if place.node_labels:
        pod["nodeSelector"] = place.node_labels
    if place.tolerations:
        pod["tolerations"] = [t.model_dump(exclude_none=True) for t in place.tolerations]
    return pod


def _container(profile: Profile, name: str, sized: Mapping[str, str]) -> Manifest:
    """KubeRay adds the probes of a Ray node. Requests equal limits: a pod that is promised all
    of its memory is the last to be evicted."""
    return {
        "name": name,
        "image": profile.image,
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": dict(sized), "limits": dict(sized)},
        "securityContext": CONTAINER_SECURITY,
    }


def _common_environment() -> dict[str, str]:
    """Everything that is written goes to a volume: the root is read-only."""
    return {"HOME": "/tmp", "MPTUNE_CACHE": CACHE, "RAY_USAGE_STATS_ENABLED": "0"}


def _head_environment(profile: Profile) -> list[Manifest]:
    password = _from_secret("PGPASSWORD", profile.database.secret, profile.database.key)
    return [*_plain(_common_environment()), password, *_secrets(profile)]


def _plain(values: Mapping[str, str]) -> list[Manifest]:
    return [{"name": k, "value": v} for k, v in values.items()]


def _secrets(profile: Profile) -> list[Manifest]:
    return [_from_secret(k, secret, k) for k, secret in profile.secrets.items()]


def _from_secret(variable: str, secret: str, key: str) -> Manifest:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _mount(volume: str, path: str, **more: Any) -> Manifest:
    return {"name": volume, "mountPath": path, **more}


def _mounts(name: str) -> list[Manifest]:
    return [
        # Only this search's folders of the volume that all searches share.
        _mount("artifacts", RUN, subPath=f"runs/{name}"),
        _mount("artifacts", CACHE, subPath=f"cache/{name}"),
        # Ray's sessions, and the op cache of DeepSpeed under HOME.
        _mount("tmp", "/tmp"),
        _mount("shared-memory", "/dev/shm"),
    ]


def _volumes(profile: Profile, shared_memory: str) -> list[Manifest]:
    shared = {"medium": "Memory", "sizeLimit": shared_memory}
    return [
        {"name": "artifacts", "persistentVolumeClaim": {"claimName": profile.artifacts}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "10Gi"}},
        {"name": "shared-memory", "emptyDir": shared},
    ]


def _spec_volume(name: str) -> Manifest:
    return {"name": "spec", "configMap": {"name": f"{name}-spec"}}


def _small_pod(profile: Profile, container: Manifest) -> Manifest:
    """A pod beside the cluster: it computes nothing, so it is not sized by the profile."""
    pod = {k: v for k, v in _pod(profile, profile.head).items() if k != "serviceAccountName"}
    pod["terminationGracePeriodSeconds"] = 30
    return {**pod, "restartPolicy": "Never", "containers": [container]}


def _submitter(profile: Profile, name: str) -> Manifest:
    container = {
        **_container(profile, "submitter", SUBMITTER),
        "env": _plain({"HOME": "/tmp", "PYTHONUNBUFFERED": "1"}),
        "volumeMounts": [_mount("tmp", "/tmp")],
    }
    pod = _small_pod(profile, container)
    tmp = {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}
    return {"metadata": {"labels": labels(name, "submitter")}, "spec": {**pod, "volumes": [tmp]}}


def reader_pod(profile: Profile, name: str) -> Manifest:
    """Prints the report: when a search has ended, its pods are gone and its volume is not."""
    artifacts = {"claimName": profile.artifacts, "readOnly": True}
    container = {
        **_container(profile, "report", SUBMITTER),
        "command": ["sh", "-c", pack_command(RUN)],
        "volumeMounts": [
            _mount("artifacts", RUN, subPath=f"runs/{name}", readOnly=True),
            _mount("tmp", "/tmp"),
        ],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-report",
            "namespace": profile.namespace,
            "labels": labels(name, "report"),
        },
        "spec": {
            **_small_pod(profile, container),
            "volumes": [
                {"name": "artifacts", "persistentVolumeClaim": artifacts},
                {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
            ],
        },
    }
