"""The requests to the Kubernetes API that a search needs. A refusal is one line with advice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mptune.errors import did_you_mean
from mptune.launch.base import Denied, LaunchError, Unreachable

Object = dict[str, Any]

RAY_JOBS = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}
LOCAL_QUEUES = {"group": "kueue.x-k8s.io", "version": "v1beta2", "plural": "localqueues"}
WORKLOADS = {"group": "kueue.x-k8s.io", "version": "v1beta2", "plural": "workloads"}
IN_A_POD = "KUBERNETES_SERVICE_HOST"
TIMEOUT_S = (5, 30)
"""To connect, and between two packets."""


class NotFound(LaunchError):
    """There is no such object."""


class KubernetesApi:
    """One namespace of one cluster, through the user's kubeconfig or a pod's service account.

    Raises:
        LaunchError: the client is not installed, or there is no usable kubeconfig.
    """

    def __init__(self, namespace: str, context: str | None) -> None:
        self.namespace = namespace
        client = _client(context)
        self.server = str(client.configuration.host)
        from kubernetes import client as k8s

        self._client, self._k8s = client, k8s
        core, custom = k8s.CoreV1Api(client), k8s.CustomObjectsApi(client)
        self._kinds: dict[str, tuple[Any, str, dict[str, str]]] = {
            "RayJob": (custom, "custom_object", RAY_JOBS),
            "Workload": (custom, "custom_object", WORKLOADS),
            "LocalQueue": (custom, "custom_object", LOCAL_QUEUES),
            "ConfigMap": (core, "config_map", {}),
            "NetworkPolicy": (k8s.NetworkingV1Api(client), "network_policy", {}),
            "Pod": (core, "pod", {}),
            "Event": (core, "event", {}),
            "PersistentVolumeClaim": (core, "persistent_volume_claim", {}),
            "ResourceQuota": (core, "resource_quota", {}),
            "Secret": (core, "secret", {}),
            "Service": (core, "service", {}),
        }
        """Kind -> the client's API, the end of the names of its methods, and their arguments."""

    # --- writing -------------------------------------------------------------------------------

    def create(self, manifest: Object, *, dry_run: bool = False) -> Object:
        """Create an object."""
        # Without Strict, the server ignores misspelt fields.
        options = {"field_validation": "Strict", **({"dry_run": "All"} if dry_run else {})}
        return self._json("create", manifest["kind"], body=manifest, **options)

    def delete_job(self, name: str) -> None:
        """Delete the RayJob and what it owns: Ray cluster, submitter, ConfigMap, NetworkPolicy."""
        self._request("delete", "RayJob", name=name, propagation_policy="Background")

    def run_pod(self, manifest: Object, *, timeout_s: float = 120) -> list[str]:
        """Run a small pod to its end and return its log. The pod is always removed."""
        name = manifest["metadata"]["name"]
        self.create(manifest)
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                phase = self._json("read", "Pod", name=name).get("status", {}).get("phase")
                if phase in ("Succeeded", "Failed"):
                    return self.log(name).splitlines()
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"pod {name} does not start (it is {phase}); see `kubectl -n "
                        f"{self.namespace} describe pod {name}`, then try again"
                    )
                time.sleep(0.5)
        finally:
            self.delete_pod(name, grace_s=0)

    def delete_pod(self, name: str, *, grace_s: int) -> None:
        """Delete a pod, or shorten the grace of one that is being deleted."""
        self._request("delete", "Pod", name=name, grace_period_seconds=grace_s)

    # --- reading -------------------------------------------------------------------------------

    def job(self, name: str) -> Object:
        return self._json("get", "RayJob", name=name)

    def await_change(self, job: Object, seconds: int) -> None:
        """Return when the RayJob changes, after `seconds`, or when the watch is lost."""
        from kubernetes import watch
        from kubernetes.client.exceptions import ApiException

        meta = job["metadata"]
        watcher: Any = watch.Watch
        stream = watcher().stream(
            self._kinds["RayJob"][0].list_namespaced_custom_object,
            **RAY_JOBS,
            namespace=self.namespace,
            field_selector=f"metadata.name={meta['name']}",
            resource_version=meta["resourceVersion"],
            timeout_seconds=seconds,
            _request_timeout=(TIMEOUT_S[0], seconds + 5),
        )
        with self._errors("watch", "RayJob", meta["name"]):
            try:
                next(iter(stream), None)
            except ApiException as error:
                # 410: that version is no longer kept. The caller reads the present state anyway.
                if error.status != 410:
                    raise

    def pods(self, selector: str) -> list[Object]:
        return self._list("Pod", label_selector=selector)

    def warnings(self) -> list[Object]:
        """The namespace's warning events, the latest last."""
        return self._list("Event", field_selector="type=Warning")

    def workloads(self, job: Object) -> list[Object]:
        """What Kueue knows of a RayJob; empty without Kueue, or without the right to read it."""
        with suppress(NotFound, Denied):
            selector = f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}"
            return self._list("Workload", label_selector=selector)
        return []

    def log(self, pod: str) -> str:
        """The whole log of a pod's only container; bytes that are not UTF-8 are replaced."""
        return self._request("read", "Pod", part="_log", name=pod).decode(errors="replace")

    # --- what a doctor looks at ----------------------------------------------------------------

    def server_version(self) -> str:
        return str(self._ask("VersionApi", "get_code")["gitVersion"])

    def may(self, group: str, resource: str, verb: str) -> bool:
        """Whether the user may do that in the namespace."""
        name, _, part = resource.partition("/")
        asked = {"group": group, "resource": name, "subresource": part, "verb": verb}
        review = {"spec": {"resourceAttributes": asked | {"namespace": self.namespace}}}
        answer = self._ask("AuthorizationV1Api", "create_self_subject_access_review", body=review)
        return bool(answer["status"]["allowed"])

    def read(self, kind: str, name: str) -> Object:
        custom = self._kinds[kind][1] == "custom_object"
        return self._json("get" if custom else "read", kind, name=name)

    def quotas(self) -> list[Object]:
        return self._list("ResourceQuota")

    def nodes(self, selector: str) -> list[Object]:
        return self._ask("CoreV1Api", "list_node", label_selector=selector)["items"]

    def operators(self) -> list[Object]:
        """The deployments of KubeRay's operator, in any namespace."""
        method, label = "list_deployment_for_all_namespaces", "kuberay-operator"
        selector = f"app.kubernetes.io/component={label}"
        return self._ask("AppsV1Api", method, label_selector=selector)["items"]

    # --- requests and their errors -------------------------------------------------------------

    def _request(self, verb: str, kind: str, *, part: str = "", **options: Any) -> bytes:
        """The body of the answer. The client's own models refuse fields that a newer server adds.

        Args:
            verb: as in the names of the client's methods; `read` is the `get` of its own kinds.
            part: the end of such a name, for a part of an object.
        """
        api, what, where = self._kinds[kind]
        name = options.get("name") or options.get("body", {}).get("metadata", {}).get("name", "")
        options |= {**where, "namespace": self.namespace, "_request_timeout": TIMEOUT_S}
        with self._errors("get" if verb == "read" else verb, kind, name):
            call = getattr(api, f"{verb}_namespaced_{what}{part}")
            return call(**options, _preload_content=False).data

    def _ask(self, group: str, method: str, **options: Any) -> Object:
        """The answer to a request that is of no namespace."""
        call = getattr(getattr(self._k8s, group)(self._client), method)
        with self._errors("get", method, ""):
            answer = call(**options, _preload_content=False, _request_timeout=TIMEOUT_S)
            return json.loads(answer.data)

    def _json(self, verb: str, kind: str, **options: Any) -> Object:
        return json.loads(self._request(verb, kind, **options))

    def _list(self, kind: str, **selector: str) -> list[Object]:
        return self._json("list", kind, **selector)["items"]

    @contextmanager
    def _errors(self, verb: str, kind: str, name: str) -> Iterator[None]:
        """Turn the client's errors into a LaunchError."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            raise self._refusal(error, verb, kind, name) from None
        except (HTTPError, OSError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())
            raise Unreachable(
                f"the API server at {self.server} does not answer ({reason[:160]}); a running "
                "search is not affected"
            ) from None

    def _refusal(self, error: Any, verb: str, kind: str, name: str) -> LaunchError:
        reason, details = _reason(error)
        match error.status:
            case 401:
                return Denied(
                    f"{self.server} does not accept your credentials (401 {reason}); they have "
                    "expired or belong to another cluster: log in again, then repeat the command"
                )
            case 403 if "exceeded quota" in reason:
                return LaunchError(f"namespace {self.namespace} is full: {reason}")
            case 403 if " cannot " not in reason:
                return LaunchError(f"{kind} {name} is not admitted: {reason}")
            case 403:
                return Denied(
                    f"you may not {verb} a {kind} in namespace {self.namespace} (403); have the "
                    f"Role mptune-launcher bound to your account: {reason}"
                )
            case 404 if details.get("kind") == "namespaces":
                return LaunchError(
                    f"namespace {self.namespace} does not exist; create it with `kubectl apply -k "
                    "k8s/overlays/...`"
                )
            case 404 if kind == "RayJob" and details.get("kind") != "rayjobs":
                return Denied(
                    "this cluster does not know RayJobs; install the KubeRay operator first"
                )
            case 404 if verb != "create":
                near = ""
                if kind == "RayJob":
                    with suppress(LaunchError):
                        known = [job["metadata"]["name"] for job in self._list(kind)]
                        near = did_you_mean(name, known)
                return NotFound(f"there is no {kind} {name} in namespace {self.namespace}{near}")
            case 409 if "object is being deleted" in reason:
                return LaunchError(f"{kind} {name} is still being removed; try again in a minute")
            case 409:
                return LaunchError(
                    f"{kind} {name} is in namespace {self.namespace} already; see `mptune launch "
                    "status`, and launch again after `mptune launch stop` (the study is kept)"
                )
            case status if status in (0, 429) or status >= 500:
                return Unreachable(f"the API server cannot answer now ({status}): {reason}")
        return LaunchError(f"the API server refuses {kind} {name} ({error.status}): {reason}")


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
            # The client itself reads KUBECONFIG only once, when it is imported.
            file = os.environ.get("KUBECONFIG")
            config.load_kube_config(file, context=context, client_configuration=settings)
    except (config.ConfigException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise LaunchError(f"no usable kubeconfig (KUBECONFIG, ~/.kube/config): {reason}") from None
    # The callers decide what to try again, and tell the user.
    settings.retries = False
    return client.ApiClient(settings)


def _reason(error: Any) -> tuple[str, Object]:
    """The server's reason in one line, and the object that it is about."""
    text = error.body.decode() if isinstance(error.body, bytes) else str(error.body or "")
    try:
        status = json.loads(text)
        return " ".join(str(status["message"]).split()), status.get("details") or {}
    except (ValueError, KeyError, TypeError):
        return " ".join(f"{error.reason} {text}".split())[:200], {}
