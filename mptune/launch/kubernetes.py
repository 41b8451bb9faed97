"""A KubeRay RayJob in a namespace that was prepared with `kubectl apply -k k8s/overlays/...`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from mptune.errors import InputError
from mptune.launch._kubernetes_api import KubernetesApi
from mptune.launch._rayjob import KubernetesProfile, config_map, ray_job, reader_pod, to_yaml
from mptune.launch._rayjob_state import follow_job, state_of
from mptune.launch.base import (
    Launcher,
    Say,
    SearchState,
    Submission,
    machines_for,
    trial_needs,
    unpack,
)

LONGEST_NAME = 47
"""KubeRay adds a suffix to a RayJob's name, and refuses longer names."""


class Kubernetes(KubernetesProfile, Launcher):
    """A KubeRay cluster per search, created for it and removed after it. Kueue may queue it.

    Source: `ray.io/v1` RayJob, K8sJobMode.
    """

    kind: Literal["kubernetes"] = "kubernetes"

    def ray_address(self) -> None:
        raise InputError("a Kubernetes profile is for `mptune launch`; `mptune search` runs here")

    def render(self, search: Submission) -> str:
        self._refuse(search)
        return to_yaml([config_map(self, search), ray_job(self, search)])

    def check(self, search: Submission) -> list[str]:
        self._refuse(search)
        api = self._api(search.name)
        manifests = [config_map(self, search), ray_job(self, search)]
        for manifest in manifests:
            api.create(manifest, dry_run=True)
        return [
            f"{m['kind']} {m['metadata']['name']}: the API server accepts it" for m in manifests
        ]

    def submit(self, search: Submission) -> None:
        self._refuse(search)
        api = self._api(search.name)
        job = api.create(ray_job(self, search))
        try:
            api.create(config_map(self, search, owner=job["metadata"]["uid"]))
        except BaseException:
            api.delete_job(search.name)
            raise

    def status(self, name: str) -> SearchState:
        api = self._api(name)
        return state_of(api, api.job(name))

    def follow(self, name: str, say: Say) -> SearchState:
        return follow_job(self._api(name), name, say)

    def fetch(self, name: str, into: Path) -> None:
        unpack(self._api(name).run_pod(reader_pod(self, name)), into)

    def stop(self, name: str) -> None:
        self._api(name).delete_job(name)

    def _api(self, name: str) -> KubernetesApi:
        _check_name(name)
        return KubernetesApi(self.namespace, self.context)

    def _refuse(self, search: Submission) -> None:
        """Find mistakes that would otherwise show only after every pod has started."""
        _check_name(search.name)
        if search.storage_url is not None:
            raise InputError(
                f"{search.source.name}: storage.url: the profile's database holds the study; "
                "leave this key out"
            )
        for where, gang in search.gangs():
            # The dispatcher refuses a trial that the largest number of pods cannot hold.
            if not any(
                machines_for(gang, p.cpus, p.gpus) <= p.hosts * p.most_gangs for p in self.pools
            ):
                have = "; ".join(
                    f"{p.name}: {p.hosts * p.most_gangs} pods of {p.cpus} CPUs and {p.gpus} GPUs"
                    for p in self.pools
                )
                raise InputError(
                    f"{where}: {trial_needs(gang)}; no pool of the profile holds that ({have}); "
                    "raise its cpus, gpus, hosts or max_gangs"
                )


def _check_name(name: str) -> None:
    """Refuse a name that Kubernetes or KubeRay would refuse.

    Raises:
        InputError: they would refuse it; the message suggests another name.
    """
    if len(name) > LONGEST_NAME or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        suggestion = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:LONGEST_NAME]
        raise InputError(
            f"name: {name!r} cannot name a RayJob: lower-case letters, digits and '-', a letter "
            f"first, at most {LONGEST_NAME}; --set name={suggestion.rstrip('-') or 'search'}"
        )
