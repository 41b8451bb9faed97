"""The keys of a Kubernetes profile, and the manifests of one search that they describe.

A search is a RayJob, a ConfigMap with its spec, a NetworkPolicy of its pods, and later a small pod
that prints its report.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from jinja2 import Environment, StrictUndefined
from pydantic import Field, model_validator

from mptune.launch.base import Submission, pack_command
from mptune.spec.schema import Section

Manifest = dict[str, Any]

SPEC = "/etc/mptune"
RUN = "/mptune/run"
CACHE = "/mptune/cache"
SCALE_UP_S = 1800
"""A cloud takes minutes to start a node and pull its first image."""

WRONG_INPUT_LINE = "mptune: the input is wrong, so this search is not tried again on a new cluster"
"""The last line of the log of a driver that ended with exit code 2; its own message is above."""

RUN_ONCE = f'"$@"; code=$?; [ $code -eq 2 ] || exit $code; echo "{WRONG_INPUT_LINE}"'
"""A shell script that runs its arguments and turns exit code 2 (wrong input) into 0: after any
other code KubeRay tries again on a new cluster."""

DRAIN_LEFT_S = 15
"""Of the grace of a worker, what is left for Ray's own processes once its trials have stopped."""

TEMPLATE = Path(__file__).with_name("rayjob.yaml")


# --- the profile -------------------------------------------------------------------------------

DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Count = Annotated[int, Field(gt=0, le=1024)]
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
    """What one pod requests, and on which nodes it may run.

    Attributes:
        node_labels: labels of the nodes to run on.
        env: e.g. NCCL_SOCKET_IFNAME.
    """

    cpus: int = Field(2, gt=0, le=1024)
    memory: Quantity = "4Gi"
    node_labels: dict[str, str] = Field(default={})
    tolerations: tuple[Toleration, ...] = ()
    env: dict[str, str] = Field(default={})


class Pool(PodSize):
    """Worker pods of one shape.

    Attributes:
        gpus: per pod; requests equal limits.
        devices: further devices per pod, e.g. {rdma/hca_shared_devices_a: 1}.
        shared_memory: /dev/shm, for Ray's store and NCCL.
        hosts: pods of one gang, placed and lost together.
        max_gangs: more than min_gangs: Ray's autoscaler may add them.
    """

    name: DnsLabel = "workers"
    gpus: int = Field(0, ge=0, le=64)
    devices: dict[Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[\w.-]+$")], Count] = Field(
        default={}
    )
    shared_memory: Quantity = "2Gi"
    hosts: int = Field(1, gt=0, le=256)
    min_gangs: int = Field(1, ge=0, le=1000)
    max_gangs: int | None = Field(None, gt=0, le=1000)

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
    sslmode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] = "prefer"

    @property
    def url(self) -> str:
        """The SQLAlchemy URL, without a password: libpq reads that from PGPASSWORD."""
        server = f"{self.user}@{self.host}:{self.port}/{self.database}"
        return f"postgresql+psycopg2://{server}?sslmode={self.sslmode}"


class KubernetesProfile(Section):
    """The keys of a profile of kind `kubernetes`.

    Attributes:
        context: a context of your kubeconfig; default: the current one.
        image: built from k8s/Dockerfile, with a tag.
        ray_version: as in the image.
        queue: a Kueue LocalQueue of the namespace.
        workload_priority: a Kueue WorkloadPriorityClass.
        pools: 1 to 17, Kueue's limit.
        artifacts: the PersistentVolumeClaim.
        secrets: environment variable: Secret whose key has the variable's name.
        retries: new clusters, one after another, for a driver that was lost.
        deadline_s: longest time of the search.
        grace_s: time for a checkpoint before a pod ends.
    """

    namespace: DnsLabel = "mptune"
    context: str | None = None
    image: Image = "mptune:0.1.0"
    image_pull_secrets: tuple[DnsLabel, ...] = ()
    ray_version: str = Field("2.60.0", pattern=r"^\d+\.\d+\.\d+$")
    service_account: DnsLabel = "mptune-ray"
    priority_class: DnsLabel | None = "mptune-search"
    queue: DnsLabel | None = None
    workload_priority: DnsLabel | None = None
    head: PodSize = PodSize()
    pools: tuple[Pool, ...] = (Pool(),)
    artifacts: DnsLabel = "mptune-artifacts"
    database: PostgresServer = PostgresServer()
    secrets: dict[str, DnsLabel] = Field(default={})
    retries: int = Field(3, ge=0, le=100)
    deadline_s: int = Field(7 * 24 * 3600, gt=0, le=2**31 - 1)
    grace_s: int = Field(300, ge=30, le=86400)

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

    @property
    def autoscales(self) -> bool:
        """Whether Ray's autoscaler may add gangs."""
        return any(pool.most_gangs > pool.min_gangs for pool in self.pools)


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


def _json_in_yaml(value: Any, **options: Any) -> str:
    """JSON that YAML reads alike: YAML knows no surrogate pairs, and breaks lines at U+2028."""
    text = json.dumps(value, **options | {"ensure_ascii": False})
    return re.sub(r"[^\x00-\x7e]", lambda found: f"\\U{ord(found[0]):08x}", text)


def _manifest(profile: KubernetesProfile, kind: str, name: str, **values: Any) -> Manifest:
    """One manifest of the search `name`, from the template."""
    environment = Environment(undefined=StrictUndefined)
    environment.policies["json.dumps_function"] = _json_in_yaml
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        p=profile, kind=kind, name=name, run=RUN, cache=CACHE, left_s=DRAIN_LEFT_S, **values
    )
    return yaml.safe_load(text)


def owned_by_job(
    profile: KubernetesProfile, search: Submission, owner: str | None = None
) -> list[Manifest]:
    """The spec as written, and who may reach the ports of the search's Ray and gangs.

    Kubernetes removes both with the RayJob whose uid is `owner`.
    """
    return [
        _manifest(profile, "ConfigMap", search.name, spec=search.spec, owner=owner),
        _manifest(profile, "NetworkPolicy", search.name, owner=owner),
    ]


def ray_job(profile: KubernetesProfile, search: Submission) -> Manifest:
    """The RayJob. A driver that is lost starts again on a new cluster and resumes the study."""
    options = ["--address", "auto", "--set", f"storage.url={profile.database.url}"]
    if profile.autoscales and not any(gang.scale_up_timeout_s for _, gang in search.gangs()):
        options += ["--set", f"resources.scale_up_timeout_s={SCALE_UP_S}"]
    command = search.arguments(f"{SPEC}/spec.yaml", RUN, *options)
    entrypoint = shlex.join(["sh", "-c", RUN_ONCE, "sh", *command])
    return _manifest(profile, "RayJob", search.name, entrypoint=entrypoint, spec_folder=SPEC)


def reader_pod(profile: KubernetesProfile, name: str) -> Manifest:
    """Prints the report from the volume: when a search has ended, its own pods are gone."""
    return _manifest(profile, "Pod", name, pack_command=pack_command(RUN))
