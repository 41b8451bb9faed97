"""A KubeRay RayJob in a namespace that `kubectl apply -k k8s/overlays/...` has prepared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from mptune.errors import InputError
from mptune.launch._cluster import Cluster
from mptune.launch._follow import follow, state_of
from mptune.launch._profile import Pool, Profile
from mptune.launch._rayjob import config_map, ray_job, reader_pod, to_yaml
from mptune.launch.base import Launcher, Say, Search, State, in_words, machines_for, unpack
from mptune.spec.schema import Resources

LONGEST_NAME = 47
"""KubeRay adds to a RayJob's name and refuses longer ones."""


class Kubernetes(Profile, Launcher):
    """A KubeRay cluster per search, made for it and removed after it; Kueue may hold it back.

    Source: `ray.io/v1` RayJob, K8sJobMode.
    """

    kind: Literal["kubernetes"] = "kubernetes"

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
        for where, gang in search.gangs():
            if not any(_holds(pool, gang) for pool in self.pools):
                raise InputError(f"{where}: {_too_small(self.pools, gang)}")


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


def _holds(pool: Pool, gang: Resources) -> bool:
    """Whether the pods that may be there take a trial: the dispatcher refuses it otherwise."""
    return machines_for(gang, pool.cpus, pool.gpus) <= pool.hosts * pool.most_gangs


def _too_small(pools: tuple[Pool, ...], gang: Resources) -> str:
    have = "; ".join(
        f"{p.name}: {p.hosts * p.most_gangs} pods of {p.cpus} CPUs and {p.gpus} GPUs" for p in pools
    )
    return (
        f"{in_words(gang)}; no pool of the profile holds that ({have}); raise its cpus, gpus, "
        "hosts or max_gangs"
    )
