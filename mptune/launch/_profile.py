"""The keys of a Kubernetes profile: the cluster, the image, the pods and the database."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mptune.spec.schema import Section

DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Image = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9._/:-]*(:[\w][\w.-]*|@sha256:[0-9a-f]{64})$")
]


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


class Profile(Section):
    """What a profile of kind `kubernetes` says of the cluster, the image and the pods."""

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
    def _names_once(self) -> Profile:
        names = [p.name for p in self.pools]
        if not 1 <= len(names) <= 17:
            raise ValueError(f"pools: {len(names)} pools; from 1 to 17")
        twice = [n for n in names if names.count(n) > 1]
        if twice:
            raise ValueError(f"pools: {twice[0]!r} is the name of two pools")
        if tuple(int(p) for p in self.ray_version.split(".")[:2]) < (2, 52):
            raise ValueError(f"ray_version: {self.ray_version} knows no tokens; 2.52.0 or later")
        return self
