"""A KubeRay RayJob in a namespace that was prepared with `kubectl apply -k k8s/overlays/...`.

A RayJob whose image is wrong, whose nodes do not exist or whose quota forbids its pods stays
`Initializing` for ever. Only its pods and events say why, so they are read as well.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mptune.errors import InputError, cut_line, plural
from mptune.launch._doctor import diagnose_cluster
from mptune.launch._kubernetes_api import KubernetesApi, NotFound, Object
from mptune.launch._rayjob import (
    WRONG_INPUT_LINE,
    KubernetesProfile,
    owned_by_job,
    ray_job,
    reader_pod,
    to_yaml,
)
from mptune.launch.base import (
    Diagnosis,
    Launcher,
    LaunchError,
    Say,
    SearchState,
    Submission,
    Unreachable,
    check_gangs,
    driver_log,
    follow,
    machines_for,
    progress,
    unpack,
)

LONGEST_NAME = 47
"""KubeRay adds a suffix to a RayJob's name, and refuses longer names."""

POLL_S = 5
"""How often to look at pods and events, which change without the RayJob."""

STOP_POLL_S = 0.5

STOP_S = 60
"""How long Kubernetes may take to remove a job, besides the grace of its pods."""

IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
SETUP = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


class Kubernetes(KubernetesProfile, Launcher):
    """A KubeRay cluster per search, created for it and removed after it. Kueue may queue it.

    Source: `ray.io/v1` RayJob, K8sJobMode.
    """

    kind: Literal["kubernetes"] = "kubernetes"

    def render(self, search: Submission) -> str:
        self._check_fit(search)
        return to_yaml([*owned_by_job(self, search), ray_job(self, search)])

    def doctor(self) -> Iterator[Diagnosis]:
        return diagnose_cluster(self)

    def submit(self, search: Submission) -> None:
        self._check_fit(search)
        api = self._api(search.name)
        job = api.create(ray_job(self, search))
        try:
            for manifest in owned_by_job(self, search, owner=job["metadata"]["uid"]):
                api.create(manifest)
        except BaseException:
            api.delete_job(search.name)
            raise

    def status(self, name: str) -> SearchState:
        api, log = self._api(name), DriverLog()
        job = api.job(name)
        log.read(api, name)
        return state_of(api, job, log.latest)

    def follow(self, name: str, say: Say) -> SearchState:
        api, log = self._api(name), DriverLog(say)
        previous: Object | None = None
        step: Step | None = None

        def look() -> tuple[SearchState, list[str]]:
            nonlocal previous, step
            if previous is not None:
                waited_for, previous = previous, None
                api.await_change(waited_for, POLL_S)
            try:
                previous = job = api.job(name)
            except NotFound:
                if step is None:
                    raise
                raise LaunchError(
                    f"{name} was deleted while it ran; its study and artifacts are kept: launch it "
                    "again to resume"
                ) from None
            # The log is read after the state, so the log of an ended job is complete.
            log.read(api, name)
            before, step = step, step_of(job)
            if before and (before, step) in TRANSITIONS:
                say(f"{name}: {TRANSITIONS[before, step]}")
            return state_of(api, job, log.latest), log.lines

        return follow(name, say, look, place="the API server", pause_s=0)

    def fetch(self, name: str, into: Path) -> None:
        unpack(self._api(name).run_pod(reader_pod(self, name)), into)

    def stop(self, name: str, *, now: bool = False) -> None:
        api = self._api(name)
        selector = f"app.kubernetes.io/instance={name},app.kubernetes.io/component!=report"
        mine = {pod["metadata"]["name"] for pod in api.pods(selector)}
        try:
            api.delete_job(name)
        except NotFound:
            if not mine:
                raise
        give_up = time.monotonic() + STOP_S + (0 if now else self.grace_s)
        while True:
            left = [pod for pod in api.pods(selector) if pod["metadata"]["name"] in mine]
            for pod in left:
                # A worker in its init container trains nothing, and ignores SIGTERM.
                short = now or pod["status"].get("phase") == "Pending"
                if short and "deletionTimestamp" in pod["metadata"]:
                    with suppress(NotFound):
                        api.delete_pod(pod["metadata"]["name"], grace_s=1)
            if not left and not _is_being_deleted(api, name):
                return
            if time.monotonic() > give_up:
                raise LaunchError(
                    f"{name} does not end; see `kubectl -n {self.namespace} get pods`"
                )
            time.sleep(STOP_POLL_S)

    def _api(self, name: str) -> KubernetesApi:
        _check_name(name)
        return KubernetesApi(self.namespace, self.context)

    def _check_fit(self, search: Submission) -> None:
        """Find mistakes that would otherwise show only after every pod has started.

        Raises:
            InputError: the name, the storage or the gangs do not fit this profile.
        """
        _check_name(search.name)
        if search.storage_url is not None:
            raise InputError(
                f"{search.source.name}: storage.url: the profile's database holds the study; "
                "leave this key out"
            )
        pods = [(pool, pool.hosts * pool.most_gangs) for pool in self.pools]
        have = "; ".join(
            f"{p.name}: {plural(n, 'pod')} of {plural(p.cpus, 'CPU')} and {plural(p.gpus, 'GPU')}"
            for p, n in pods
        )
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


def _is_being_deleted(api: KubernetesApi, name: str) -> bool:
    with suppress(NotFound):
        return "deletionTimestamp" in api.job(name)["metadata"]
    return False


# --- the state of a RayJob -----------------------------------------------------------------------

Step = Literal[
    "queued", "starting", "running", "ending", "retrying", "succeeded", "stopped", "failed"
]

STEPS: Mapping[tuple[str, str], Step] = {
    ("", "*"): "starting",
    ("Initializing", "*"): "starting",
    ("Waiting", "*"): "starting",
    ("Running", "*"): "starting",
    ("Running", "RUNNING"): "running",
    ("Running", "SUCCEEDED"): "ending",
    ("Running", "STOPPED"): "ending",
    ("Running", "FAILED"): "retrying",
    ("Retrying", "*"): "retrying",
    ("Suspending", "*"): "queued",
    ("Suspended", "*"): "queued",
    ("Complete", "*"): "succeeded",
    ("Complete", "STOPPED"): "stopped",
    ("Complete", "FAILED"): "failed",
    ("Failed", "*"): "failed",
    ("ValidationFailed", "*"): "failed",
}
"""The step of a search, by its RayJob's jobDeploymentStatus and jobStatus; `*` is any other one."""

TRANSITIONS: Mapping[tuple[Step, Step], str] = {
    ("running", "starting"): "its head was lost: the driver starts again and resumes the study",
    ("running", "queued"): "suspended while it ran: it resumes the study once it is admitted again",
}
"""What is said when a search goes from one step to another, besides its new state."""


def step_of(job: Object) -> Step:
    """The step of the search that this RayJob runs."""
    status = job.get("status", {})
    deployment = status.get("jobDeploymentStatus") or ""
    exact = STEPS.get((deployment, status.get("jobStatus") or ""))
    step = exact or STEPS.get((deployment, "*"), "starting")
    if step == "retrying" and _attempt(job) >= _attempts(job):
        return "ending"  # The last attempt has failed.
    # Kueue suspends a job before KubeRay has seen it.
    return "queued" if step == "starting" and job["spec"].get("suspend") else step


def _attempts(job: Object) -> int:
    """How many clusters KubeRay makes at most, one after another."""
    return 1 + int(job["spec"].get("backoffLimit") or 0)


def _attempt(job: Object) -> int:
    """The number of the attempt that runs or has just failed, from 1."""
    status = job.get("status", {})
    failed = int(status.get("failed") or 0)
    return failed if status.get("jobDeploymentStatus") == "Retrying" else failed + 1


def state_of(api: KubernetesApi, job: Object, log: list[str]) -> SearchState:
    """The state of the search that this RayJob runs, and whose driver has printed `log`."""
    status, which = job.get("status", {}), f"attempt {_attempt(job)} of {_attempts(job)}"
    match step_of(job):
        case "succeeded" if WRONG_INPUT_LINE in log:
            said = log[max(0, log.index(WRONG_INPUT_LINE) - 1)]
            return SearchState(
                "failed",
                f"failed, and is not tried again: {said}; correct it, then `mptune launch stop` "
                "and launch it again",
            )
        case "succeeded":
            return SearchState("succeeded")
        case "stopped":
            return SearchState(
                "failed",
                "stopped before its end; what has finished is kept: `mptune launch stop`, then "
                "launch it again to resume",
            )
        case "failed":
            return SearchState("failed", _failure(status))
        case "queued":
            return _queue_state(api, job)
        case "running":
            return SearchState("running", progress(log))
        case "ending":
            return SearchState("running", "ending")
        case "retrying":
            return SearchState(
                "waiting", f"{which} failed: {_cause(status)}; it is tried again on a new cluster"
            )
    state = _start_state(api, job)
    return replace(state, detail=f"{which}: {state.detail}") if status.get("failed") else state


def _start_state(api: KubernetesApi, job: Object) -> SearchState:
    """What a search waits for, or what keeps it from starting."""
    name, ray_cluster = job["metadata"]["name"], job.get("status", {}).get("rayClusterName")
    pods = api.pods(f"ray.io/cluster={ray_cluster}") if ray_cluster else []
    groups = job["spec"].get("rayClusterSpec", {}).get("workerGroupSpecs") or ()
    wanted = 1 + sum(int(g.get("replicas", 0)) * int(g.get("numOfHosts", 1)) for g in groups)
    # Old events remain after their cause is gone: they count only while a pod is missing.
    incomplete = len(pods) < wanted
    pods += _submitters(api, name)
    cause = _pod_problem(api, pods)
    if cause is None and incomplete:
        # Events outlive a search that had the same name.
        made = job["metadata"].get("creationTimestamp", "")
        new = [e for e in api.warnings() if (e.get("lastTimestamp") or made) >= made]
        cause = _event_problem(new, {name, ray_cluster})
    return cause or SearchState("waiting", _waits_for(job.get("status", {}), pods))


def _queue_state(api: KubernetesApi, job: Object) -> SearchState:
    """Why Kueue, or whoever suspended the job, keeps it waiting."""
    queue = job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
    if not queue:
        return SearchState("waiting", "suspended")
    for workload in api.workloads(job):
        for condition in workload.get("status", {}).get("conditions") or ():
            if condition["type"] != "QuotaReserved" or condition["status"] != "False":
                continue
            message = cut_line(condition.get("message", ""))
            if condition["reason"] in ("Misconfigured", "Inadmissible"):
                return _stuck(
                    f"Kueue cannot queue it: {message}; fix it (see k8s/overlays/kueue), or "
                    "change `queue` in the profile"
                )
            return SearchState("waiting", f"queued by Kueue in {queue}: {message}")
    return SearchState("waiting", f"queued by Kueue in {queue}")


def _cause(status: Object) -> str:
    """Why an attempt failed: Ray's reason, and the last line that the driver printed."""
    first, _, log = str(status.get("message") or "").partition("\n")
    _, lines = driver_log(log)
    return ": ".join([first.split(", last available logs")[0], *map(cut_line, lines[-1:])])


def _failure(status: Object) -> str:
    reason, cause = status.get("reason") or "Failed", _cause(status)
    advice = {
        "AppFailed": "its log says why",
        "DeadlineExceeded": "raise deadline_s in the profile and launch it again to resume",
    }.get(reason, "launch it again to resume")
    return f"failed ({reason}{': ' + cause if cause else ''}); {advice}"


def _submitters(api: KubernetesApi, name: str) -> list[Object]:
    """The pods that show the driver's log, the latest attempt last."""
    found = api.pods(f"batch.kubernetes.io/job-name={name}")
    return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))


def _waits_for(status: Object, pods: list[Object]) -> str:
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


def _pod_problem(api: KubernetesApi, pods: list[Object]) -> SearchState | None:
    for state in _container_states(pods):
        waiting = state.get("waiting", {})
        reason = waiting.get("reason")
        message = cut_line(waiting.get("message", "").split("ErrImagePull: ")[-1])
        if reason in IMAGE:
            return _stuck(
                f"the image cannot be pulled: {message or reason}; "
                "correct `image` in the profile, or name a secret in image_pull_secrets"
            )
        if reason in SETUP:
            return _stuck(f"a container cannot be set up ({reason}): {message}")
    for pod in pods:
        for condition in pod["status"].get("conditions") or ():
            if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                return _unschedulable(api, pod, condition.get("message", ""))
    return None


def _unschedulable(api: KubernetesApi, pod: Object, message: str) -> SearchState:
    why = cut_line(message.split(", preemption:")[0].split(" no new claims")[0]).rstrip(".")
    if missing := re.search(r'persistentvolumeclaim "([^"]+)" not found', message):
        return _stuck(
            f"its volume is missing: there is no PersistentVolumeClaim {missing[1]} in namespace "
            f"{api.namespace}; create it, or change `artifacts` in the profile"
        )
    if "unbound immediate PersistentVolumeClaim" in message:
        volumes = pod.get("spec", {}).get("volumes", ())
        claims = [v.get("persistentVolumeClaim", {}).get("claimName") for v in volumes]
        reasons = [
            cut_line(event.get("message", ""))
            for event in api.warnings()
            if event["involvedObject"]["kind"] == "PersistentVolumeClaim"
            and event["involvedObject"]["name"] in claims
        ]
        return SearchState("waiting", f"for its volume: {reasons[-1] if reasons else why}")
    # Not stuck: an autoscaler may still add such a node.
    return SearchState(
        "waiting",
        f"no node takes a pod: {why}; add such nodes, or change gpus, cpus, memory or "
        "node_labels of the pool in the profile",
    )


def _event_problem(events: list[Object], names: set[str | None]) -> SearchState | None:
    for event in reversed(events):
        about, message = event["involvedObject"], cut_line(event.get("message", ""))
        if about["name"] not in names or about["kind"] not in ("RayJob", "RayCluster", "Job"):
            continue
        if "exceeded quota" in message:
            quota = message[message.index("exceeded quota") :]
            return _stuck(
                f"the namespace's quota forbids its pods: {quota}; free some of it, have it "
                "raised, or ask for less in the profile"
            )
        return _stuck(f"{about['kind']} {event.get('reason')}: {message}")
    return None


def _stuck(detail: str) -> SearchState:
    return SearchState("waiting", detail, stuck=True)


# --- the log -----------------------------------------------------------------------------------


class DriverLog:
    """What the drivers of one search have printed, in order, whichever submitters show it.

    A submitter that replaces another prints the whole log again, and a driver that starts again has
    the same job.
    """

    def __init__(self, say: Say = lambda line: None) -> None:
        self.lines: list[str] = []
        self._say = say
        self._silent: set[str] = set()
        """Pods whose nodes do not answer."""
        self._shown: dict[str, int] = {}
        self.latest: list[str] = []
        """The lines of the latest driver."""

    def read(self, api: KubernetesApi, name: str) -> None:
        """Add what the search's submitters have logged since the last call.

        A log that cannot be read now is left for the next call: the state comes from the RayJob.
        """
        for pod in (p["metadata"]["name"] for p in _submitters(api, name)):
            try:
                started, lines = driver_log(api.log(pod))
            except Unreachable:
                if pod not in self._silent:
                    self._say(
                        f"the node of pod {pod} does not answer; its log is shown once it does"
                    )
                self._silent.add(pod)
            except LaunchError:
                continue
            else:
                self._silent.discard(pod)
                key = started or pod
                shown = self._shown.get(key, 0)
                self.lines += lines[shown:]
                self._shown[key] = max(shown, len(lines))
                self.latest = lines
