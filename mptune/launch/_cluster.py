"""The Kubernetes API, as far as a search needs it; each refusal in one line with what to do."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mptune.errors import did_you_mean
from mptune.launch.base import LaunchError

Object = dict[str, Any]

GROUP, VERSION, JOBS = "ray.io", "v1", "rayjobs"
QUIET_S = 600
"""A log may be silent for so long; then it is asked for again."""

IN_A_POD = "KUBERNETES_SERVICE_HOST"
TIMEOUT_S = (5, 30)
"""To connect, and between two answers."""


class Unreachable(LaunchError):
    """Nobody answers, or the one who does cannot serve now: worth another try."""


class NotThere(LaunchError):
    """There is no such object."""


class Cluster:
    """One namespace of one cluster, by the user's kubeconfig or, in a pod, its service account.

    Raises:
        LaunchError: the client is not installed, or there is no usable kubeconfig.
    """

    def __init__(self, namespace: str, context: str | None) -> None:
        self.namespace = namespace
        client = _client(context)
        self.server = str(client.configuration.host)
        from kubernetes import client as k8s

        self._jobs: Any = k8s.CustomObjectsApi(client)
        self._core: Any = k8s.CoreV1Api(client)

    # --- writing -------------------------------------------------------------------------------

    def create(self, manifest: Object, *, dry_run: bool = False) -> Object:
        """Make it. Without Strict the server would drop a misspelt field in silence."""
        options: dict[str, Any] = {"field_validation": "Strict", "_request_timeout": TIMEOUT_S}
        options |= {"dry_run": "All"} if dry_run else {}
        name = manifest["metadata"]["name"]
        with self._words("create", manifest["kind"], name):
            return self._creator(manifest["kind"])(manifest, options)

    def _creator(self, kind: str) -> Callable[[Object, dict[str, Any]], Object]:
        where = self.namespace
        return {
            "RayJob": lambda m, o: self._jobs.create_namespaced_custom_object(
                GROUP, VERSION, where, JOBS, m, **o
            ),
            "ConfigMap": lambda m, o: self._core.create_namespaced_config_map(where, m, **o),
            "Pod": lambda m, o: self._core.create_namespaced_pod(where, m, **o),
        }[kind]

    def delete_job(self, name: str) -> None:
        """The RayJob; what it owns (cluster, submitter, ConfigMap) goes with it."""
        with self._words("delete", "RayJob", name):
            self._jobs.delete_namespaced_custom_object(
                GROUP,
                VERSION,
                self.namespace,
                JOBS,
                name,
                propagation_policy="Background",
                _request_timeout=TIMEOUT_S,
            )

    def run_pod(self, manifest: Object, *, patience_s: float = 120) -> list[str]:
        """Run a small pod to its end; its log. The pod is removed whatever happens."""
        name = manifest["metadata"]["name"]
        self.create(manifest)
        try:
            self._await_end(name, time.monotonic() + patience_s)
            return list(self.log(name))
        finally:
            with self._words("delete", "Pod", name):
                self._core.delete_namespaced_pod(
                    name, self.namespace, grace_period_seconds=0, _request_timeout=TIMEOUT_S
                )

    def _await_end(self, name: str, deadline: float) -> None:
        while True:
            with self._words("get", "Pod", name):
                pod = _raw(self._core.read_namespaced_pod, name, self.namespace)
            phase = pod.get("status", {}).get("phase")
            if phase in ("Succeeded", "Failed"):
                return
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"pod {name} does not start (it is {phase}); see `kubectl -n {self.namespace} "
                    f"describe pod {name}`, then try again"
                )
            time.sleep(0.5)

    # --- reading -------------------------------------------------------------------------------

    def job(self, name: str) -> Object:
        with self._words("get", "RayJob", name):
            found: Object = self._jobs.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, JOBS, name, _request_timeout=TIMEOUT_S
            )
            return found

    def job_names(self) -> list[str]:
        with self._words("list", "RayJob", ""):
            found = self._jobs.list_namespaced_custom_object(
                GROUP, VERSION, self.namespace, JOBS, _request_timeout=TIMEOUT_S
            )
            return [j["metadata"]["name"] for j in found["items"]]

    def await_change(self, job: Object, seconds: int) -> None:
        """Return when the RayJob changes, or after so many seconds, or when the watch is lost."""
        from kubernetes import watch
        from kubernetes.client.exceptions import ApiException

        meta = job["metadata"]
        watcher: Any = watch.Watch
        stream = watcher().stream(
            self._jobs.list_namespaced_custom_object,
            GROUP,
            VERSION,
            self.namespace,
            JOBS,
            field_selector=f"metadata.name={meta['name']}",
            resource_version=meta["resourceVersion"],
            timeout_seconds=seconds,
            _request_timeout=(TIMEOUT_S[0], seconds + 5),
        )
        with self._words("watch", "RayJob", meta["name"]):
            try:
                next(iter(stream), None)
            except ApiException as error:
                # 410: what happened since is forgotten; the caller reads the present anyway.
                if error.status != 410:
                    raise

    def pods(self, selector: str) -> list[Object]:
        with self._words("list", "Pod", ""):
            call = self._core.list_namespaced_pod
            items: list[Object] = _raw(call, self.namespace, label_selector=selector)["items"]
            return items

    def warnings(self) -> list[Object]:
        """The namespace's warnings, the latest last."""
        with self._words("list", "Event", ""):
            call = self._core.list_namespaced_event
            found: list[Object] = _raw(call, self.namespace, field_selector="type=Warning")["items"]
            return found

    def log(self, pod: str, *, follow: bool = False, last: int | None = None) -> Iterator[str]:
        """Lines of a pod's log, as they come."""
        options: dict[str, Any] = {"tail_lines": last} if last else {}
        with self._words("get", "Pod", pod):
            answer = self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                follow=follow,
                _preload_content=False,
                _request_timeout=(TIMEOUT_S[0], QUIET_S) if follow else TIMEOUT_S,
                **options,
            )
            yield from _lines(answer)

    # --- refusals in words ---------------------------------------------------------------------

    @contextmanager
    def _words(self, verb: str, kind: str, name: str) -> Iterator[None]:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            raise self._refusal(error, verb, kind, name) from None
        except (HTTPError, OSError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())
            raise Unreachable(
                f"the API server at {self.server} does not answer ({reason[:160]}); a search that "
                "runs goes on without it"
            ) from None

    def _refusal(self, error: Any, verb: str, kind: str, name: str) -> LaunchError:
        reason, details = _body(error)
        match error.status:
            case 401:
                return LaunchError(
                    f"{self.server} does not accept your credentials (401 {reason}); they have "
                    "expired or are another cluster's: log in again, then repeat the command"
                )
            case 403 if "exceeded quota" in reason:
                return LaunchError(f"namespace {self.namespace} is full: {reason}")
            case 403:
                return LaunchError(
                    f"you may not {verb} {kind}s in namespace {self.namespace} (403); have the "
                    f"Role mptune-launcher bound to your account: {reason}"
                )
            case 404:
                return self._missing(reason, details, verb, kind, name)
            case 409:
                return LaunchError(
                    f"{kind} {name} is in namespace {self.namespace} already; see `mptune launch "
                    "status`, and launch again after `mptune launch stop` (the study is kept)"
                )
            case status if status in (0, 429) or status >= 500:
                return Unreachable(f"the API server cannot answer now ({status}): {reason}")
        return LaunchError(f"the API server refuses {kind} {name} ({error.status}): {reason}")

    def _missing(
        self, reason: str, details: Object, verb: str, kind: str, name: str
    ) -> LaunchError:
        if details.get("kind") == "namespaces":
            return LaunchError(
                f"namespace {self.namespace} does not exist; `kubectl apply -k k8s/overlays/...` "
                "makes it"
            )
        if kind == "RayJob" and details.get("kind") != JOBS:
            return LaunchError("this cluster knows no RayJob; install the KubeRay operator first")
        if verb == "create":
            return LaunchError(f"the API server refuses {kind} {name} (404): {reason}")
        return NotThere(
            f"there is no {kind} {name} in namespace {self.namespace}{self._near(name)}"
        )

    def _near(self, name: str) -> str:
        try:
            return did_you_mean(name, self.job_names())
        except LaunchError:
            return ""


def _client(context: str | None) -> Any:
    try:
        from kubernetes import client
        from kubernetes import config as kubernetes_config
    except ImportError:
        raise LaunchError(
            "the Kubernetes client is not installed: pip install 'mptune[k8s]'"
        ) from None
    config: Any = kubernetes_config
    settings = client.Configuration()
    try:
        if context is None and "KUBECONFIG" not in os.environ and IN_A_POD in os.environ:
            config.load_incluster_config(client_configuration=settings)
        else:
            # The client looks at KUBECONFIG once, when it is imported.
            file = os.environ.get("KUBECONFIG")
            config.load_kube_config(file, context=context, client_configuration=settings)
    except (config.ConfigException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise LaunchError(f"no usable kubeconfig (KUBECONFIG, ~/.kube/config): {reason}") from None
    # The callers decide what is worth another try, and say so to their user.
    settings.retries = False
    return client.ApiClient(settings)


def _raw(call: Callable[..., Any], *arguments: Any, **options: Any) -> Object:
    """The server's JSON: the client's own models refuse what a newer server adds."""
    options |= {"_preload_content": False, "_request_timeout": TIMEOUT_S}
    found: Object = json.loads(call(*arguments, **options).data)
    return found


def _lines(answer: Any) -> Iterator[str]:
    kept = b""
    for chunk in answer.stream(4096, decode_content=True):
        *whole, kept = (kept + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if kept:
        yield kept.decode(errors="replace")


def _body(error: Any) -> tuple[str, Object]:
    """(the server's reason in one line, what it is about)."""
    text = error.body.decode() if isinstance(error.body, bytes) else str(error.body or "")
    try:
        status = json.loads(text)
        return " ".join(str(status["message"]).split()), status.get("details") or {}
    except (ValueError, KeyError, TypeError):
        return " ".join(f"{error.reason} {text}".split())[:200], {}
