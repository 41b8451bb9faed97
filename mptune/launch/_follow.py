"""How a RayJob stands, in words; and following it until it ends.

A RayJob whose image is wrong, whose nodes do not exist or whose quota forbids its pods stays
`Initializing` for ever. Only pods and events say why, so they are read as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mptune.launch._cluster import Cluster, NotThere, Object, Unreachable
from mptune.launch._files import progress
from mptune.launch.base import LaunchError, Say, State

LOOK_S = 5
"""Pods and events change without the RayJob, so they are looked at this often."""

PATIENCE_S = 45.0
"""For trouble that goes away by itself now and then: a registry or a quota."""

GIVE_UP_S = 600.0
"""Without an answer from the API server."""

IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
SETUP = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


@dataclass(frozen=True)
class Trouble:
    """Why nothing starts; `final` if waiting does not help. `short` while it may still pass."""

    words: str
    short: str = ""
    final: bool = True


def state_of(cluster: Cluster, name: str) -> State:
    """How the search stands now."""
    return _state(cluster, cluster.job(name))[0]


def _state(cluster: Cluster, job: Object) -> tuple[State, Trouble | None]:
    status = job.get("status", {})
    deployment = status.get("jobDeploymentStatus") or ""
    if deployment == "Complete" or status.get("jobStatus") == "SUCCEEDED":
        return State("succeeded", "finished"), None
    if deployment in ("Failed", "ValidationFailed"):
        return State("failed", _failure(status)), None
    if job["spec"].get("suspend"):
        queue = job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
        held = f"queued by Kueue in {queue}" if queue else "suspended"
        return State("waiting", f"waiting: {held}"), None
    if deployment == "Running" and status.get("jobStatus") == "RUNNING":
        return State("running", f"running{_progress(cluster, job)}"), None
    return _waiting(cluster, job)


def _waiting(cluster: Cluster, job: Object) -> tuple[State, Trouble | None]:
    name, status = job["metadata"]["name"], job.get("status", {})
    made = status.get("rayClusterName")
    pods = cluster.pods(f"ray.io/cluster={made}") if made else []
    # Events outlive what they tell of: with all pods there, none of them is news.
    complete = len(pods) >= _wanted_pods(job)
    pods += _submitters(cluster, name)
    trouble = _pod_trouble(pods)
    if trouble is None and not complete:
        trouble = _event_trouble(cluster.warnings(), name, made)
    if trouble:
        return State("waiting", f"waiting: {trouble.words}"), trouble
    return State("waiting", f"waiting: {_step(status, pods)}"), None


def _wanted_pods(job: Object) -> int:
    groups = job["spec"].get("rayClusterSpec", {}).get("workerGroupSpecs") or ()
    return 1 + sum(int(g.get("replicas", 0)) * int(g.get("numOfHosts", 1)) for g in groups)


def _step(status: Object, pods: list[Object]) -> str:
    if not status.get("rayClusterName"):
        return "not taken up yet; if that lasts, see whether the KubeRay operator runs"
    if status.get("jobDeploymentStatus") == "Running":
        return "Ray is up, the driver starts"
    if any(not p["status"].get("startTime") for p in pods):
        return "for nodes"
    states = [s.get("waiting", {}).get("reason") for s in _containers(pods)]
    if any(s in ("ContainerCreating", "PodInitializing") for s in states):
        return "pulling the image, starting containers"
    return "starting Ray"


def _progress(cluster: Cluster, job: Object) -> str:
    """`: trial 13 of 64`, from the driver's own words."""
    for pod in _submitters(cluster, job["metadata"]["name"]):
        if words := progress(list(cluster.log(pod["metadata"]["name"], last=200))):
            return words
    return ""


def _failure(status: Object) -> str:
    reason = status.get("reason") or "Failed"
    message = str(status.get("message") or "")
    first = message.splitlines()[0].split(", last available logs")[0] if message else ""
    advice = {
        "AppFailed": "its log says why",
        "DeadlineExceeded": "raise deadline_s in the profile and launch again, it resumes",
    }.get(reason, "launch again, it resumes")
    return f"failed ({reason}{': ' + first if first else ''}); {advice}"


def _submitters(cluster: Cluster, name: str) -> list[Object]:
    """The pods that show the driver's log; the latest try first."""
    found = cluster.pods(f"batch.kubernetes.io/job-name={name}")
    return sorted(found, key=lambda p: -int(p["metadata"]["resourceVersion"]))


# --- why nothing starts ------------------------------------------------------------------------


def _containers(pods: list[Object]) -> Iterator[dict[str, Any]]:
    for pod in pods:
        status = pod["status"]
        for key in ("initContainerStatuses", "containerStatuses"):
            yield from (c.get("state", {}) for c in status.get(key) or ())


def _pod_trouble(pods: list[Object]) -> Trouble | None:
    for state in _containers(pods):
        waiting = state.get("waiting", {})
        reason = waiting.get("reason")
        message = _one_line(waiting.get("message", "").split("ErrImagePull: ")[-1])
        if reason in IMAGE:
            return Trouble(
                f"the image cannot be pulled: {message or reason}; "
                "correct `image` in the profile, or name a secret in image_pull_secrets",
                short="the image cannot be pulled",
            )
        if reason in SETUP:
            short = f"a container cannot be set up ({reason})"
            return Trouble(f"{short}: {message}", short=short)
    for pod in pods:
        for condition in pod["status"].get("conditions") or ():
            if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                return Trouble(_no_node(condition.get("message", "")), final=False)
    return None


def _no_node(message: str) -> str:
    why = _one_line(message.split(", preemption:")[0].split(" no new claims")[0])
    return (
        f"no node takes a pod: {why.rstrip('.')}; add such nodes, or change gpus, cpus, memory or "
        "node_labels of the pool in the profile"
    )


def _event_trouble(events: list[Object], name: str, made: str | None) -> Trouble | None:
    for event in reversed(events):
        about, message = event["involvedObject"], _one_line(event.get("message", ""))
        ours = about["name"] in (name, made) and about["kind"] in ("RayJob", "RayCluster", "Job")
        if ours and "exceeded quota" in message:
            quota = message[message.index("exceeded quota") :]
            return Trouble(
                f"the namespace's quota forbids its pods: {quota}; free some of it, have it "
                "raised, or ask for less in the profile",
                short="the namespace's quota forbids its pods",
            )
        if ours:
            short = f"{about['kind']} {event.get('reason')}"
            return Trouble(f"{short}: {message}", short=short)
    return None


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:300]}..."


# --- following ---------------------------------------------------------------------------------


@dataclass
class _Tail:
    """Shows a pod's log from a thread; after a lost connection it goes on where it was."""

    cluster: Cluster
    say: Say
    pod: str | None = None
    shown: int = 0
    _thread: threading.Thread | None = field(default=None, init=False)

    def follow(self, pods: list[Object]) -> None:
        """Go on, or begin with a newer try of the driver."""
        names = [p["metadata"]["name"] for p in pods if p["status"].get("phase") != "Pending"]
        if names and names[0] != self.pod:
            self.finish()
            self.pod, self.shown = names[0], 0
        if self.pod and not (self._thread and self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, args=(self.pod,), daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Show what is left."""
        if self._thread:
            self._thread.join(timeout=10)

    def _run(self, pod: str) -> None:
        try:
            for number, line in enumerate(self.cluster.log(pod, follow=True)):
                if number >= self.shown:
                    self.shown = number + 1
                    self.say(line)
        except LaunchError:
            pass  # the loop below says that nobody answers, and starts this again


def follow(cluster: Cluster, name: str, say: Say) -> State:
    """Show its log and every change of its state until it has ended.

    Raises:
        LaunchError: it cannot go on by itself, or is gone.
    """
    follower = _Follower(cluster, name, say, _Tail(cluster, say))
    while True:
        state = follower.look()
        if state is not None:
            return state


@dataclass
class _Follower:
    cluster: Cluster
    name: str
    say: Say
    tail: _Tail
    said: str = ""
    seen: bool = False
    silent_since: float | None = None
    troubled_since: float | None = None

    def look(self) -> State | None:
        """One look and a wait for the next change; the state when it has ended."""
        try:
            state = self._look()
        except NotThere:
            if not self.seen:
                raise
            raise LaunchError(
                f"{self.name} was deleted while it ran; its study and artifacts are kept: launch "
                "it again to go on"
            ) from None
        except Unreachable as error:
            self._silence(error)
            return None
        self.silent_since = None
        return state

    def _look(self) -> State | None:
        job = self.cluster.job(self.name)
        self.seen = True
        if self.silent_since is not None:
            self.say("the API server answers again")
        state, trouble = _state(self.cluster, job)
        self.tail.follow(_submitters(self.cluster, self.name))
        if state.ended:
            self.tail.finish()
        if not state.words.startswith("running"):
            final = trouble is not None and trouble.final
            self._tell(f"waiting: {trouble.short}" if trouble and final else state.words)
        self._judge(trouble)
        if state.ended:
            return state
        self.cluster.await_change(job, LOOK_S)
        return None

    def _tell(self, words: str) -> None:
        if words != self.said:
            self.said = words
            self.say(f"{self.name}: {words}")

    def _judge(self, trouble: Trouble | None) -> None:
        if trouble is None or not trouble.final:
            self.troubled_since = None
            return
        self.troubled_since = self.troubled_since or time.monotonic()
        if time.monotonic() - self.troubled_since >= PATIENCE_S:
            raise LaunchError(f"{self.name} cannot start: {trouble.words}")

    def _silence(self, error: Unreachable) -> None:
        now = time.monotonic()
        if self.silent_since is None:
            self.silent_since = now
            self.say(f"{error}; trying again")
        if now - self.silent_since > GIVE_UP_S:
            raise error
        time.sleep(1)
