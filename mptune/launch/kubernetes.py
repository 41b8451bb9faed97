"""A KubeRay RayJob in a namespace that was prepared with `kubectl apply -k k8s/overlays/...`.

A RayJob whose image is wrong, whose nodes do not exist or whose quota forbids its pods stays
`Initializing` for ever. Only its pods and events say why, so they are read as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from mptune.errors import InputError
from mptune.launch._kubernetes_api import KubernetesApi, NotFound, Object
from mptune.launch._rayjob import KubernetesProfile, config_map, ray_job, reader_pod, to_yaml
from mptune.launch.base import (
    Launcher,
    LaunchError,
    Say,
    SearchState,
    Submission,
    check_gangs,
    follow,
    machines_for,
    progress,
    unpack,
)

LONGEST_NAME = 47
"""KubeRay adds a suffix to a RayJob's name, and refuses longer names."""

POLL_S = 5
"""How often to look at pods and events, which change without the RayJob."""

IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
SETUP = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


class Kubernetes(KubernetesProfile, Launcher):
    """A KubeRay cluster per search, created for it and removed after it. Kueue may queue it.

    Source: `ray.io/v1` RayJob, K8sJobMode.
    """

    kind: Literal["kubernetes"] = "kubernetes"

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
        pods = [(pool, pool.hosts * pool.most_gangs) for pool in self.pools]
        have = "; ".join(f"{p.name}: {n} pods of {p.cpus} CPUs and {p.gpus} GPUs"
                         for p, n in pods)  # fmt: skip
        # The dispatcher refuses a trial that the largest number of pods cannot hold.
        check_gangs(
            search,
            lambda g: any(machines_for(g, p.cpus, p.gpus) <= n for p, n in pods),
            f"no pool of the profile holds that ({have}); raise its cpus, gpus, hosts or max_gangs",
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


# --- the state of a RayJob -----------------------------------------------------------------------


def state_of(api: KubernetesApi, job: Object) -> SearchState:
    """The state of the search that this RayJob runs."""
    name, status = job["metadata"]["name"], job.get("status", {})
    deployment = status.get("jobDeploymentStatus") or ""
    if deployment == "Complete" or status.get("jobStatus") == "SUCCEEDED":
        return SearchState("succeeded")
    if deployment in ("Failed", "ValidationFailed"):
        return SearchState("failed", _failure(status))
    if job["spec"].get("suspend"):
        queue = job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
        return SearchState("waiting", f"queued by Kueue in {queue}" if queue else "suspended")
    submitters = _submitters(api, name)
    if deployment == "Running" and status.get("jobStatus") == "RUNNING":
        logs = (api.log(p["metadata"]["name"], last=200) for p in submitters)
        return SearchState("running", next(filter(None, map(progress, logs)), ""))
    ray_cluster = status.get("rayClusterName")
    pods = api.pods(f"ray.io/cluster={ray_cluster}") if ray_cluster else []
    groups = job["spec"].get("rayClusterSpec", {}).get("workerGroupSpecs") or ()
    wanted = 1 + sum(int(g.get("replicas", 0)) * int(g.get("numOfHosts", 1)) for g in groups)
    # Old events remain after their cause is gone: they count only while a pod is missing.
    incomplete = len(pods) < wanted
    pods += submitters
    cause = _pod_problem(pods)
    if cause is None and incomplete:
        cause = _event_problem(api.warnings(), {name, ray_cluster})
    return cause or SearchState("waiting", _step(status, pods))


def _failure(status: Object) -> str:
    reason = status.get("reason") or "Failed"
    message = str(status.get("message") or "")
    first = message.splitlines()[0].split(", last available logs")[0] if message else ""
    advice = {
        "AppFailed": "its log says why",
        "DeadlineExceeded": "raise deadline_s in the profile and launch it again to resume",
    }.get(reason, "launch it again to resume")
    return f"failed ({reason}{': ' + first if first else ''}); {advice}"


def _submitters(api: KubernetesApi, name: str) -> list[Object]:
    """The pods that show the driver's log; the latest attempt first."""
    found = api.pods(f"batch.kubernetes.io/job-name={name}")
    return sorted(found, key=lambda p: -int(p["metadata"]["resourceVersion"]))


def _step(status: Object, pods: list[Object]) -> str:
    """What a search that starts normally waits for."""
    if not status.get("rayClusterName"):
        return "not picked up yet; if this lasts, check that the KubeRay operator runs"
    if status.get("jobDeploymentStatus") == "Running":
        return "Ray is up, the driver starts"
    if any(not p["status"].get("startTime") for p in pods):
        return "for nodes"
    reasons = [s.get("waiting", {}).get("reason") for s in _container_states(pods)]
    if any(r in ("ContainerCreating", "PodInitializing") for r in reasons):
        return "pulling the image, starting containers"
    return "starting Ray"


def _container_states(pods: list[Object]) -> Iterator[dict[str, Any]]:
    for pod in pods:
        for key in ("initContainerStatuses", "containerStatuses"):
            yield from (c.get("state", {}) for c in pod["status"].get(key) or ())


# --- why nothing starts ------------------------------------------------------------------------


def _pod_problem(pods: list[Object]) -> SearchState | None:
    for state in _container_states(pods):
        waiting = state.get("waiting", {})
        reason = waiting.get("reason")
        message = _one_line(waiting.get("message", "").split("ErrImagePull: ")[-1])
        if reason in IMAGE:
            return SearchState(
                "waiting",
                f"the image cannot be pulled: {message or reason}; "
                "correct `image` in the profile, or name a secret in image_pull_secrets",
                stuck=True,
            )
        if reason in SETUP:
            detail = f"a container cannot be set up ({reason}): {message}"
            return SearchState("waiting", detail, stuck=True)
    for pod in pods:
        for condition in pod["status"].get("conditions") or ():
            if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                message = condition.get("message", "")
                why = _one_line(message.split(", preemption:")[0].split(" no new claims")[0])
                # Not stuck: an autoscaler may still add such a node.
                return SearchState(
                    "waiting",
                    f"no node takes a pod: {why.rstrip('.')}; add such nodes, or change gpus, "
                    "cpus, memory or node_labels of the pool in the profile",
                )
    return None


def _event_problem(events: list[Object], names: set[str | None]) -> SearchState | None:
    for event in reversed(events):
        about, message = event["involvedObject"], _one_line(event.get("message", ""))
        if about["name"] not in names or about["kind"] not in ("RayJob", "RayCluster", "Job"):
            continue
        if "exceeded quota" in message:
            quota = message[message.index("exceeded quota") :]
            return SearchState(
                "waiting",
                f"the namespace's quota forbids its pods: {quota}; free some of it, have it "
                "raised, or ask for less in the profile",
                stuck=True,
            )
        detail = f"{about['kind']} {event.get('reason')}: {message}"
        return SearchState("waiting", detail, stuck=True)
    return None


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:300]}..."


# --- following ---------------------------------------------------------------------------------


def follow_job(api: KubernetesApi, name: str, say: Say) -> SearchState:
    """Show the log and every change of state until the search has ended.

    Raises:
        LaunchError: it cannot continue by itself, or was deleted.
    """
    logs: dict[str, list[str]] = {}
    seen = False
    previous: Object | None = None

    def look() -> tuple[SearchState, list[str]]:
        nonlocal seen, previous
        if previous is not None:
            waited_for, previous = previous, None
            api.await_change(waited_for, POLL_S)
        try:
            previous = api.job(name)
        except NotFound:
            if not seen:
                raise
            raise LaunchError(
                f"{name} was deleted while it ran; its study and artifacts are kept: launch it "
                "again to resume"
            ) from None
        # The log is read after the state, so the log of an ended job is complete.
        seen, state = True, state_of(api, previous)
        for pod in reversed(_submitters(api, name)):
            # Each attempt of the driver has a pod of its own; one that starts has no log yet.
            with suppress(LaunchError):
                logs[pod["metadata"]["name"]] = api.log(pod["metadata"]["name"])
        return state, [line for log in logs.values() for line in log]

    return follow(name, say, look, place="the API server", pause_s=0)
