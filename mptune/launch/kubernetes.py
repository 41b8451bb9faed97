"""A KubeRay RayJob in a namespace that `kubectl apply -k k8s/overlays/...` has prepared."""

from __future__ import annotations

import re
from math import ceil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mptune.errors import InputError
from mptune.launch._cluster import Cluster
from mptune.launch._follow import follow, state_of
from mptune.launch._rayjob import config_map, ray_job, reader_pod, to_yaml
from mptune.launch.base import Launcher, Say, Search, State, unpack
from mptune.spec import Section

DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Image = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9._/:-]*(:[\w][\w.-]*|@sha256:[0-9a-f]{64})$")
]

LONGEST_NAME = 47
"""KubeRay adds to a RayJob's name and refuses longer ones."""


class Toleration(Section):
    """A taint that the pods put up with, as Kubernetes spells it."""

    key: str
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Place(Section):
    """What one pod takes, and on which nodes."""

    cpus: int = Field(2, gt=0, le=1024)
    memory: Quantity = "4Gi"
    node_labels: dict[str, str] = Field(default={}, description="of the node pool to run in")
    tolerations: tuple[Toleration, ...] = ()


class Pool(Place):
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


class Database(Section):
    """Optuna's PostgreSQL. The password's Secret is named here and its value nowhere."""

    host: str = Field("mptune-postgres", pattern=r"^[A-Za-z0-9.-]+$")
    port: int = Field(5432, gt=0, lt=65536)
    user: str = Field("mptune", pattern=r"^[\w-]+$")
    database: str = Field("mptune", pattern=r"^[\w-]+$")
    secret: DnsLabel = "mptune-postgres"
    key: str = Field("password", pattern=r"^[-._a-zA-Z0-9]+$")

    @property
    def url(self) -> str:
        """Without a password: libpq reads that from PGPASSWORD."""
        return f"postgresql+psycopg2://{self.user}@{self.host}:{self.port}/{self.database}"


class Kubernetes(Launcher):
    """A KubeRay cluster per search, made for it and removed after it; Kueue may hold it back.

    Source: `ray.io/v1` RayJob, K8sJobMode.
    """

    kind: Literal["kubernetes"] = "kubernetes"
    namespace: DnsLabel = "mptune"
    context: str | None = Field(None, description="of your kubeconfig; default its current one")
    image: Image = Field("mptune:0.1.0", description="built from k8s/Dockerfile, with a tag")
    image_pull_secrets: tuple[DnsLabel, ...] = ()
    ray_version: str = Field("2.60.0", pattern=r"^\d+\.\d+\.\d+$", description="as in the image")
    submission: Literal["K8sJobMode"] = "K8sJobMode"
    service_account: DnsLabel = "mptune-ray"
    priority_class: DnsLabel | None = "mptune-search"
    queue: DnsLabel | None = Field(None, description="a Kueue LocalQueue of the namespace")
    workload_priority: DnsLabel | None = Field(None, description="a Kueue WorkloadPriorityClass")
    head: Place = Place()
    pools: tuple[Pool, ...] = Field((Pool(),), description="1 to 17, Kueue's limit")
    artifacts: DnsLabel = Field("mptune-artifacts", description="the PersistentVolumeClaim")
    database: Database = Database()
    secrets: dict[str, DnsLabel] = Field(
        default={}, description="environment variable: Secret whose key has the variable's name"
    )
    retries: int = Field(3, ge=0, le=100, description="new clusters for a driver that was lost")
    deadline_s: int = Field(7 * 24 * 3600, gt=0, le=2**31 - 1, description="then it is ended")
    keep_s: int = Field(3600, ge=0, le=2**31 - 1, description="the RayJob stays after its end")
    grace_s: int = Field(300, ge=30, le=86400, description="for a checkpoint before a pod ends")

    @model_validator(mode="after")
    def _names_once(self) -> Kubernetes:
        names = [p.name for p in self.pools]
        if not 1 <= len(names) <= 17:
            raise ValueError(f"pools: {len(names)} pools; from 1 to 17")
        twice = [n for n in names if names.count(n) > 1]
        if twice:
            raise ValueError(f"pools: {twice[0]!r} is the name of two pools")
        if tuple(int(p) for p in self.ray_version.split(".")[:2]) < (2, 52):
            raise ValueError(f"ray_version: {self.ray_version} knows no tokens; 2.52.0 or later")
        return self

    def ray_address(self) -> None:
        raise InputError("a Kubernetes profile is for `mptune launch`; `mptune search` runs here")

    # --- verbs ---------------------------------------------------------------------------------

    def render(self, search: Search) -> str:
        self._refuse(search)
        return to_yaml([config_map(self, search), ray_job(self, search)])

    def check(self, search: Search) -> list[str]:
        self._refuse(search)
        cluster = self._cluster()
        made = [config_map(self, search), ray_job(self, search)]
        for manifest in made:
            cluster.create(manifest, dry_run=True)
        return [f"{m['kind']} {m['metadata']['name']}: the API server takes it" for m in made]

    def submit(self, search: Search) -> None:
        self._refuse(search)
        cluster = self._cluster()
        job = cluster.create(ray_job(self, search))
        try:
            cluster.create(config_map(self, search, owner=job["metadata"]["uid"]))
        except BaseException:
            cluster.delete_job(search.name)
            raise

    def status(self, name: str) -> State:
        name = _known(name)
        return state_of(self._cluster(), name)

    def follow(self, name: str, say: Say) -> State:
        name = _known(name)
        return follow(self._cluster(), name, say)

    def fetch(self, name: str, into: Path) -> None:
        pod = reader_pod(self, _known(name))
        unpack(self._cluster().run_pod(pod), into)

    def stop(self, name: str) -> None:
        name = _known(name)
        self._cluster().delete_job(name)

    def _cluster(self) -> Cluster:
        return Cluster(self.namespace, self.context)

    # --- what the cluster would not tell -------------------------------------------------------

    def _refuse(self, search: Search) -> None:
        """Say now what would otherwise come to light when every pod has been pulled and started."""
        _known(search.name)
        if search.storage_url is not None:
            raise InputError(
                f"{search.source.name}: storage.url: the study is in the profile's database here; "
                "leave it out"
            )
        if not any(_holds(pool, search) for pool in self.pools):
            raise InputError(_too_small(self.pools, search))


def _known(name: str) -> str:
    """The name, if Kubernetes and KubeRay take it.

    Raises:
        InputError: they do not.
    """
    if len(name) > LONGEST_NAME or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        suggestion = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:LONGEST_NAME]
        raise InputError(
            f"name: {name!r} cannot name a RayJob: lower-case letters, digits and '-', a letter "
            f"first, at most {LONGEST_NAME}; --set name={suggestion.rstrip('-') or 'search'}"
        )
    return name


def _holds(pool: Pool, search: Search) -> bool:
    """Whether the pods that are always there take a trial: the dispatcher refuses it otherwise."""
    wanted = search.resources
    fits = int(pool.cpus / wanted.cpus_per_worker + 1e-6)
    if wanted.gpus_per_worker:
        fits = min(fits, int(pool.gpus / wanted.gpus_per_worker + 1e-6))
    return fits > 0 and ceil(wanted.workers / fits) <= pool.hosts * max(1, pool.min_gangs)


def _too_small(pools: tuple[Pool, ...], search: Search) -> str:
    wanted = search.resources
    have = "; ".join(
        f"{p.name}: {p.hosts * max(1, p.min_gangs)} pods of {p.cpus} CPUs and {p.gpus} GPUs"
        for p in pools
    )
    return (
        f"{search.source.name}: resources: a trial takes {wanted.workers} workers of "
        f"{wanted.cpus_per_worker:g} CPUs and {wanted.gpus_per_worker:g} GPUs; no pool of the "
        f"profile holds that ({have}); raise its cpus, gpus, hosts or min_gangs"
    )
