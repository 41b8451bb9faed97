"""The keys of a Kubernetes profile, and the manifests of one search that they describe.

A search is a RayJob, a ConfigMap with its spec, and later a small pod that prints its report.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from mptune.launch.base import Submission, pack_command
from mptune.spec.schema import Section

Manifest = dict[str, Any]

USER = 1000
SPEC = "/etc/mptune/spec.yaml"
RUN = "/mptune/run"
CACHE = "/mptune/cache"
SUBMITTER = {"cpu": "200m", "memory": "512Mi"}
SCALE_UP_S = 1800
"""A cloud takes minutes to start a node and pull its first image."""
AUTOSCALER = {"cpu": "200m", "memory": "512Mi"}

ENVIRONMENT = {"HOME": "/tmp", "MPTUNE_CACHE": CACHE, "RAY_USAGE_STATS_ENABLED": "0"}
"""Everything that is written goes to a volume: the root is read-only."""

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
    # Otherwise every start changes the owner of each file of the volume, one by one.
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}


# --- the profile -------------------------------------------------------------------------------

DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Image = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9._/:-]*(:[\w][\w.-]*|@sha256:[0-9a-f]{64})$")
]


class Toleration(Section):
    """A taint that the pods tolerate, in the words of Kubernetes."""

    key: str
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class PodSize(Section):
    """What one pod requests, and on which nodes it may run."""

    cpus: int = Field(2, gt=0, le=1024)
    memory: Quantity = "4Gi"
    node_labels: dict[str, str] = Field(default={}, description="labels of the nodes to run on")
    tolerations: tuple[Toleration, ...] = ()


class Pool(PodSize):
    """Worker pods of one shape."""

    name: DnsLabel = "workers"
    gpus: int = Field(0, ge=0, le=64, description="per pod; requests equal limits")
    shared_memory: Quantity = Field("2Gi", description="/dev/shm, for Ray's store and NCCL")
    hosts: int = Field(1, gt=0, le=256, description="pods of one gang, placed and lost together")
    min_gangs: int = Field(1, ge=0, le=1000)
    max_gangs: int | None = Field(
        None, gt=0, le=1000, description="more than min_gangs: Ray's autoscaler may add them"
    )
    env: dict[str, str] = Field(default={}, description="e.g. NCCL_SOCKET_IFNAME")

    @model_validator(mode="after")
    def _in_order(self) -> Pool:
        if self.min_gangs > self.most_gangs:
            raise ValueError(f"min_gangs {self.min_gangs} is more than max_gangs {self.max_gangs}")
        return self

    @property
    def most_gangs(self) -> int:
        return self.max_gangs or max(1, self.min_gangs)


class PostgresServer(Section):
    """The PostgreSQL server of the studies. The profile names the Secret of the password only."""

    host: str = Field("mptune-postgres", pattern=r"^[A-Za-z0-9.-]+$")
    port: int = Field(5432, gt=0, lt=65536)
    user: str = Field("mptune", pattern=r"^[\w-]+$")
    database: str = Field("mptune", pattern=r"^[\w-]+$")
    secret: DnsLabel = "mptune-postgres"
    key: str = Field("password", pattern=r"^[-._a-zA-Z0-9]+$")

    @property
    def url(self) -> str:
        """The SQLAlchemy URL, without a password: libpq reads that from PGPASSWORD."""
        return f"postgresql+psycopg2://{self.user}@{self.host}:{self.port}/{self.database}"


class KubernetesProfile(Section):
    """The keys of a profile of kind `kubernetes`."""

    namespace: DnsLabel = "mptune"
    context: str | None = Field(
        None, description="a context of your kubeconfig; default: the current one"
    )
    image: Image = Field("mptune:0.1.0", description="built from k8s/Dockerfile, with a tag")
    image_pull_secrets: tuple[DnsLabel, ...] = ()
    ray_version: str = Field("2.60.0", pattern=r"^\d+\.\d+\.\d+$", description="as in the image")
    submission: Literal["K8sJobMode"] = "K8sJobMode"
    service_account: DnsLabel = "mptune-ray"
    priority_class: DnsLabel | None = "mptune-search"
    queue: DnsLabel | None = Field(None, description="a Kueue LocalQueue of the namespace")
    workload_priority: DnsLabel | None = Field(None, description="a Kueue WorkloadPriorityClass")
    head: PodSize = PodSize()
    pools: tuple[Pool, ...] = Field((Pool(),), description="1 to 17, Kueue's limit")
    artifacts: DnsLabel = Field("mptune-artifacts", description="the PersistentVolumeClaim")
    database: PostgresServer = PostgresServer()
    secrets: dict[str, DnsLabel] = Field(
        default={}, description="environment variable: Secret whose key has the variable's name"
    )
    retries: int = Field(
        3, ge=0, le=100, description="new clusters, one after another, for a driver that was lost"
    )
    deadline_s: int = Field(
        7 * 24 * 3600, gt=0, le=2**31 - 1, description="longest time of the search"
    )
    keep_s: int = Field(
        3600, ge=0, le=2**31 - 1, description="how long the RayJob stays after its end"
    )
    grace_s: int = Field(
        300, ge=30, le=86400, description="time for a checkpoint before a pod ends"
    )

    @model_validator(mode="after")
    def _names_once(self) -> KubernetesProfile:
        names = [p.name for p in self.pools]
        if not 1 <= len(names) <= 17:
            raise ValueError(f"pools: {len(names)} pools; from 1 to 17")
        twice = [n for n in names if names.count(n) > 1]
        if twice:
            raise ValueError(f"pools: {twice[0]!r} is the name of two pools")
        if tuple(int(p) for p in self.ray_version.split(".")[:2]) < (2, 52):
            raise ValueError(f"ray_version: {self.ray_version} has no tokens; use 2.52.0 or later")
        return self


# --- the manifests -----------------------------------------------------------------------------


def to_yaml(manifests: Iterable[Manifest]) -> str:
    """The manifests as `kubectl apply -f -` takes them, made to be read by people."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=1000)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def labels(name: str, component: str) -> dict[str, str]:
    """The recommended labels of Kubernetes, for one part of the search `name`."""
    return {
        "app.kubernetes.io/name": "mptune",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/managed-by": "mptune",
    }


def _metadata(
    profile: KubernetesProfile, search: str, component: str, suffix: str = ""
) -> Manifest:
    name = f"{search}{suffix}"
    return {"name": name, "namespace": profile.namespace, "labels": labels(search, component)}


def config_map(
    profile: KubernetesProfile, search: Submission, owner: str | None = None
) -> Manifest:
    """The spec as written. Kubernetes removes it with the RayJob whose uid is `owner`."""
    meta = _metadata(profile, search.name, "spec", "-spec")
    if owner is not None:
        job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": search.name, "uid": owner}
        meta["ownerReferences"] = [job]
    data = {"spec.yaml": search.spec}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def ray_job(profile: KubernetesProfile, search: Submission) -> Manifest:
    """The RayJob. A driver that is lost starts again on a new cluster and resumes the study."""
    autoscales = any(p.most_gangs > p.min_gangs for p in profile.pools)
    meta = _metadata(profile, search.name, "search")
    if profile.queue:
        meta["labels"]["kueue.x-k8s.io/queue-name"] = profile.queue
        if profile.workload_priority:
            meta["labels"]["kueue.x-k8s.io/priority-class"] = profile.workload_priority
        if autoscales:
            meta["annotations"] = {"kueue.x-k8s.io/elastic-job": "true"}

    options = ["--address", "auto", "--set", f"storage.url={profile.database.url}"]
    if autoscales and not any(gang.scale_up_timeout_s for _, gang in search.gangs()):
        options += ["--set", f"resources.scale_up_timeout_s={SCALE_UP_S}"]
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
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": meta,
        "spec": {
            "entrypoint": shlex.join(search.arguments(SPEC, RUN, *options)),
            "submissionMode": profile.submission,
            "backoffLimit": profile.retries,
            "activeDeadlineSeconds": profile.deadline_s,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": profile.keep_s,
            # Kueue resumes a job when it admits it.
            **({"suspend": True} if profile.queue else {}),
            "submitterPodTemplate": _submitter(profile, search.name),
            "rayClusterSpec": {
                "rayVersion": profile.ray_version,
                "authOptions": {"mode": "token"},
                **(autoscaler if autoscales else {}),
                "headGroupSpec": _head(profile, search.name, autoscales),
                "workerGroupSpecs": [_workers(profile, search.name, p) for p in profile.pools],
            },
        },
    }


def _head(profile: KubernetesProfile, name: str, autoscales: bool) -> Manifest:
    template = _ray_template(profile, name, "head", profile.head, ENVIRONMENT, "1Gi")
    pod = template["spec"]
    (container,) = pod["containers"]
    pod["automountServiceAccountToken"] = autoscales
    database = profile.database
    container["env"].append(_from_secret("PGPASSWORD", database.secret, database.key))
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001}
    container["ports"] = [{"name": k, "containerPort": v} for k, v in ports.items()]
    container["volumeMounts"].append(_mount("spec", "/etc/mptune"))
    pod["volumes"].append({"name": "spec", "configMap": {"name": f"{name}-spec"}})
    # The head runs no trial: one that filled its memory would kill the driver.
    parameters = {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"}
    return {"rayStartParams": parameters, "template": template}


def _workers(profile: KubernetesProfile, name: str, pool: Pool) -> Manifest:
    variables = {**ENVIRONMENT, **pool.env}
    return {
        "groupName": pool.name,
        "replicas": pool.min_gangs,
        "minReplicas": pool.min_gangs,
        "maxReplicas": pool.most_gangs,
        "numOfHosts": pool.hosts,
        "rayStartParams": {"num-cpus": str(pool.cpus), "num-gpus": str(pool.gpus)},
        "template": _ray_template(profile, name, "worker", pool, variables, pool.shared_memory),
    }


def _ray_template(
    profile: KubernetesProfile,
    name: str,
    component: str,
    size: PodSize,
    variables: Mapping[str, str],
    shared_memory: str,
) -> Manifest:
    """The template of a pod of the Ray cluster."""
    gpus = {"nvidia.com/gpu": str(size.gpus)} if isinstance(size, Pool) and size.gpus else {}
    sized = {"cpu": str(size.cpus), "memory": size.memory, **gpus}
    secrets = [_from_secret(k, secret, k) for k, secret in profile.secrets.items()]
    container = {
        **_container(profile, f"ray-{component}", sized),
        "env": [*_values(variables), *secrets],
        "volumeMounts": [
            # All searches share the volume; a pod sees the folders of its own search only.
            _mount("artifacts", RUN, subPath=f"runs/{name}"),
            _mount("artifacts", CACHE, subPath=f"cache/{name}"),
            # For Ray's sessions, and for the compiled operators of DeepSpeed below HOME.
            _mount("tmp", "/tmp"),
            _mount("shared-memory", "/dev/shm"),
        ],
    }
    volumes = [
        {"name": "artifacts", "persistentVolumeClaim": {"claimName": profile.artifacts}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "10Gi"}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}},
    ]
    pod = {**_pod(profile, size), "containers": [container], "volumes": volumes}
    return {"metadata": {"labels": labels(name, component)}, "spec": pod}


def _pod(profile: KubernetesProfile, size: PodSize) -> Manifest:
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
    if size.node_labels:
        pod["nodeSelector"] = size.node_labels
    if size.tolerations:
        pod["tolerations"] = [t.model_dump(exclude_none=True) for t in size.tolerations]
    return pod


def _container(profile: KubernetesProfile, name: str, sized: Mapping[str, str]) -> Manifest:
    """A container without probes: KubeRay adds those of a Ray node."""
    return {
        "name": name,
        "image": profile.image,
        "imagePullPolicy": "IfNotPresent",
        # A pod whose requests equal its limits is the last to be evicted.
        "resources": {"requests": dict(sized), "limits": dict(sized)},
        "securityContext": CONTAINER_SECURITY,
    }


def _values(variables: Mapping[str, str]) -> list[Manifest]:
    return [{"name": k, "value": v} for k, v in variables.items()]


def _from_secret(variable: str, secret: str, key: str) -> Manifest:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _mount(volume: str, path: str, **more: Any) -> Manifest:
    return {"name": volume, "mountPath": path, **more}


def _small_pod(
    profile: KubernetesProfile, container: Manifest, volumes: list[Manifest]
) -> Manifest:
    """A pod next to the Ray cluster. It computes nothing, so the profile does not size it."""
    pod = {k: v for k, v in _pod(profile, profile.head).items() if k != "serviceAccountName"}
    pod["terminationGracePeriodSeconds"] = 30
    tmp = {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}
    more = {"restartPolicy": "Never", "containers": [container], "volumes": [*volumes, tmp]}
    return {**pod, **more}


def _submitter(profile: KubernetesProfile, name: str) -> Manifest:
    container = {
        **_container(profile, "submitter", SUBMITTER),
        "env": _values({"HOME": "/tmp", "PYTHONUNBUFFERED": "1"}),
        "volumeMounts": [_mount("tmp", "/tmp")],
    }
    metadata = {"labels": labels(name, "submitter")}
    return {"metadata": metadata, "spec": _small_pod(profile, container, [])}


def reader_pod(profile: KubernetesProfile, name: str) -> Manifest:
    """Prints the report from the volume: when a search has ended, its own pods are gone."""
    claim = {"claimName": profile.artifacts, "readOnly": True}
    container = {
        **_container(profile, "report", SUBMITTER),
        "command": ["sh", "-c", pack_command(RUN)],
        "volumeMounts": [
            _mount("artifacts", RUN, subPath=f"runs/{name}", readOnly=True),
            _mount("tmp", "/tmp"),
        ],
    }
    volume = {"name": "artifacts", "persistentVolumeClaim": claim}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(profile, name, "report", "-report"),
        "spec": _small_pod(profile, container, [volume]),
    }
