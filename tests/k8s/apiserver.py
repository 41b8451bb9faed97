"""A small stateful Kubernetes API server on loopback, which replays what a real cluster did.

It validates every write with the real schemas and keeps objects, versions and watches. Once a
RayJob is created, the recorded stream of its name is replayed: states of the RayJob, its pods, the
events. Refusals are the recorded answers of a real server.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mptune.launch._rayjob import RUN
from tests.k8s.schemas import Schemas

Object = dict[str, Any]

RECORDED = Path(__file__).parent / "recorded"
NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
KINDS = {
    "rayjobs": "RayJob",
    "configmaps": "ConfigMap",
    "networkpolicies": "NetworkPolicy",
    "pods": "Pod",
    "events": "Event",
    "workloads": "Workload",
    "localqueues": "LocalQueue",
    "persistentvolumeclaims": "PersistentVolumeClaim",
    "resourcequotas": "ResourceQuota",
    "secrets": "Secret",
    "services": "Service",
    "nodes": "Node",
    "deployments": "Deployment",
    "selfsubjectaccessreviews": "SelfSubjectAccessReview",
}
PATH = re.compile(
    r"^(?:/api/v1|/apis/(?P<group>ray\.io|kueue\.x-k8s\.io|apps|networking\.k8s\.io|authorization\.k8s\.io)/v1(?:beta2)?)"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?$"
)


@cache
def answers() -> dict[str, Object]:
    """The recorded answers by case."""
    return {a["case"]: a for a in json.loads((RECORDED / "http.json").read_text())}


@cache
def recorded(scenario: str) -> list[tuple[str, Object]]:
    """(resource, what changed) in order, up to where the recording's own clean-up begins.

    `searches.jsonl` is a later recording, of whole searches in one order.
    """
    lines = (RECORDED / "searches.jsonl").read_text().splitlines()
    found = [step for step in map(json.loads, lines) if step["scenario"] == scenario]
    if found:
        return [(step["resource"], step) for step in found]
    steps = []
    for resource in ("rayjobs", "pods", "events"):
        for line in (RECORDED / f"{resource}.jsonl").read_text().splitlines():
            step = json.loads(line)
            if step["scenario"] == scenario:
                steps.append((_version(step["object"]), resource, step))
    steps.sort(key=lambda s: s[0])
    if scenario != "deleted-while-running":
        ends = [v for v, r, s in steps if r == "rayjobs" and s["type"] == "DELETED"]
        steps = [s for s in steps if not ends or s[0] < ends[0]]
    return [(resource, step) for _, resource, step in steps]


def _version(item: Object) -> int:
    about = item.get("involvedObject") or item["metadata"]
    return int(about.get("resourceVersion") or 0)


@dataclass
class Refusal(Exception):
    status: int
    body: Object


def _as_recorded(case: str | Refusal) -> Refusal:
    """A recorded answer, by its case."""
    if isinstance(case, Refusal):
        return case
    return Refusal(answers()[case]["status"], answers()[case]["response"])


def _refusal(status: int, message: str, reason: str, **details: str) -> Refusal:
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    body |= {"message": message, "reason": reason, "details": details, "code": status}
    return Refusal(status, body)


@dataclass
class ApiServer:
    """The state of one namespace, and how the server behaves."""

    schemas: Schemas
    artifacts: Path
    namespace: str = "mptune"
    step_s: float = 0.01
    objects: dict[str, dict[str, Object]] = field(default_factory=lambda: {r: {} for r in KINDS})
    history: list[tuple[int, str, Object]] = field(default_factory=list)
    calls: set[tuple[str, str, str]] = field(default_factory=set)
    writes: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    refuse: dict[tuple[str, str], str | Refusal] = field(default_factory=dict)
    refuse_next: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    logs: dict[str, list[str]] = field(default_factory=dict)
    """The logs of pods that do not have `log`."""
    by_hand: bool = False
    """Changes are applied by `advance` instead of in time."""
    steps: Iterator[tuple[str, Object]] = field(default_factory=lambda: iter(()))
    delete_s: float = 0.0
    """How long a deleted RayJob stays."""
    denied: set[str] = field(default_factory=set)
    """Resources that the user may not ask for."""
    lost_watches: int = 0
    pause_at: int | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)
    version: int = 100
    down: bool = False
    port: int = 0
    _http: ThreadingHTTPServer | None = None

    # --- running -------------------------------------------------------------------------------

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"api": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        assert self._http is not None
        self._http.shutdown()
        self._http.server_close()

    @contextmanager
    def gone(self) -> Iterator[None]:
        """The server does not listen."""
        self.down = True
        self.stop()
        yield
        self.down = False
        self.start()

    # --- state ---------------------------------------------------------------------------------

    def put(self, resource: str, kind: str, item: Object) -> None:
        with self.changed:
            self.version += 1
            item["metadata"]["resourceVersion"] = str(self.version)
            store = self.objects[resource]
            name = item["metadata"]["name"]
            if kind == "DELETED":
                store.pop(name, None)
            else:
                store[name] = item
            self.history.append((self.version, kind, copy.deepcopy(item)))
            self.changed.notify_all()

    def play(self, name: str) -> None:
        """Apply the changes of the recorded job of this name."""
        for number, (resource, step) in enumerate(recorded(name)):
            if number == self.pause_at:
                self.go_on.wait(20)
            time.sleep(self.step_s)
            if name not in self.objects["rayjobs"]:
                return
            self._apply(resource, step)

    def advance(self) -> bool:
        """Apply the next recorded change; False if there is none."""
        step = next(self.steps, None)
        if step is not None:
            self._apply(*step)
        return step is not None

    def set_status(self, name: str, **status: Any) -> None:
        """Change the status of a RayJob."""
        job = self.objects["rayjobs"][name]
        self.put("rayjobs", "MODIFIED", job | {"status": job.get("status", {}) | status})

    def _apply(self, resource: str, step: Object) -> None:
        item = copy.deepcopy(step["object"])
        if resource == "events":
            item["metadata"] = {"name": f"event-{self.version}"}
        if resource == "rayjobs":
            mine = copy.deepcopy(self.objects["rayjobs"][item["metadata"]["name"]])
            mine["status"] = item.get("status", {})
            mine["spec"].pop("suspend", None)
            mine["spec"] |= {"suspend": True} if item["spec"].get("suspend") else {}
            mine["spec"]["backoffLimit"] = item["spec"].get("backoffLimit", 0)
            item = mine
        if resource == "workloads":
            (job,) = self.objects["rayjobs"].values()
            item["metadata"]["labels"] = {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}
        self.put(resource, step["type"], item)

    # --- verbs ---------------------------------------------------------------------------------

    def create(self, resource: str, body: Object, query: dict[str, str]) -> Object:
        self.writes.append((resource, query))
        name, kind = body["metadata"]["name"], KINDS[resource]
        if not NAME.match(name):
            raise _as_recorded("bad name")
        problems = list(self.schemas.problems(body))
        if problems and query.get("fieldValidation") == "Strict":
            raise _refusal(400, f"{kind}: strict decoding error: {problems[0]}", "BadRequest")
        if "deletionTimestamp" in self.objects[resource].get(name, {"metadata": ()})["metadata"]:
            raise _as_recorded("create while it is being deleted")
        if name in self.objects[resource]:
            message = f'{resource} "{name}" already exists'
            raise _refusal(409, message, "AlreadyExists", name=name, kind=resource)
        made = copy.deepcopy(body)
        made["metadata"]["uid"] = f"uid-{self.version}"
        for _, step in recorded(name)[:1]:
            made["metadata"]["creationTimestamp"] = step["object"]["metadata"]["creationTimestamp"]
        if query.get("dryRun") == "All":
            return made
        self.put(resource, "ADDED", made)
        if resource == "rayjobs" and self.by_hand:
            self.steps = iter(recorded(name))
        elif resource == "rayjobs":
            threading.Thread(target=self.play, args=(name,), daemon=True).start()
        if resource == "pods":
            self._run(made)
        return made

    def _run(self, pod: Object) -> None:
        """Run the pod's command, with the search's folder of the volume instead of the mount."""
        (container,) = pod["spec"]["containers"]
        (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == RUN]
        folder = self.artifacts / mount["subPath"]
        command = [word.replace(RUN, str(folder)) for word in container["command"]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.logs[pod["metadata"]["name"]] = done.stdout.splitlines()
        pod["status"] = {"phase": "Succeeded" if done.returncode == 0 else "Failed"}
        self.put("pods", "MODIFIED", pod)

    def delete(self, resource: str, name: str) -> Object:
        """Delete an object; a RayJob stays for `delete_s`, its pods until they are deleted too."""
        item = self.get(resource, name)
        if resource == "rayjobs" and self.delete_s:
            for kind, deleted in [(resource, item), *(("pods", p) for p in self._pods_of(name))]:
                deleted["metadata"]["deletionTimestamp"] = "2026-11-26T18:50:39Z"
                self.put(kind, "MODIFIED", deleted)
            threading.Timer(self.delete_s, self._remove, (resource, item)).start()
        else:
            self._remove(resource, item)
        return item

    def _pods_of(self, name: str) -> list[Object]:
        key = "app.kubernetes.io/instance"
        pods = self.objects["pods"].values()
        return [pod for pod in pods if pod["metadata"].get("labels", {}).get(key) == name]

    def _remove(self, resource: str, item: Object) -> None:
        self.put(resource, "DELETED", item)
        uid = item["metadata"].get("uid")
        for kind in KINDS:
            for child in list(self.objects[kind].values()):
                owners = child["metadata"].get("ownerReferences", ())
                if any(o["uid"] == uid for o in owners):
                    self.put(kind, "DELETED", child)

    def get(self, resource: str, name: str) -> Object:
        if name not in self.objects[resource]:
            message = f'{resource}.ray.io "{name}" not found'
            raise _refusal(404, message, "NotFound", name=name, kind=resource)
        return self.objects[resource][name]

    def list(self, resource: str, query: dict[str, str]) -> Object:
        chosen = [i for i in self.objects[resource].values() if _selected(i, query)]
        return {
            "apiVersion": "v1",
            "kind": f"{KINDS[resource]}List",
            "metadata": {"resourceVersion": str(self.version)},
            "items": chosen,
        }

    def watch(self, query: dict[str, str]) -> Iterator[Object]:
        if self.lost_watches:
            self.lost_watches -= 1
            yield answers()["watch from a resourceVersion long gone"]["response"]
            return
        deadline = time.monotonic() + float(query.get("timeoutSeconds", 5))
        since = int(query["resourceVersion"])
        wanted = query["fieldSelector"].partition("=")[2]
        while (left := deadline - time.monotonic()) > 0:
            self._still_up()
            with self.changed:
                new = [h for h in self.history if h[0] > since]
                if not new:
                    self.changed.wait(min(left, 0.2))
            for version, kind, item in new:
                since = version
                if item.get("kind") == "RayJob" and item["metadata"]["name"] == wanted:
                    yield {"type": kind, "object": item}

    def _still_up(self) -> None:
        """Open connections end with the server."""
        if self.down:
            raise ConnectionResetError


def _selected(item: Object, query: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels", {})
    for part in filter(None, query.get("labelSelector", "").split(",")):
        key, sign, value = part.partition("!=" if "!=" in part else "=")
        if (labels.get(key) == value) != (sign == "="):
            return False
    key, _, value = query.get("fieldSelector", "").partition("=")
    return not key or (key == "type" and item.get("type") == value)


class _Handler(BaseHTTPRequestHandler):
    api: ApiServer
    protocol_version = "HTTP/1.1"
    # Otherwise a body waits 40 ms until the client has acknowledged the headers.
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        parts = urlsplit(self.path)
        query = {k: v[-1] for k, v in parse_qs(parts.query).items()}
        try:
            self.api._still_up()
            self._answer(method, parts.path, query, body)
        except Refusal as refusal:
            self._json(refusal.status, refusal.body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, method: str, path: str, query: dict[str, str], body: Object) -> None:
        if always := self.api.refuse.get(("*", "*")):
            raise _as_recorded(always)
        if path == "/version/":
            self._json(200, {"gitVersion": "v1.36.2"})
            return
        found = PATH.match(path)
        if found is None:
            raise Refusal(404, {"message": "404 page not found"})
        namespace, resource, name, sub = found.group("namespace", "resource", "name", "sub")
        verb = _verb(method, name, query)
        resource_and_verb = f"{resource}/{sub}" if sub else resource, verb
        self.api.calls.add((found["group"] or "", *resource_and_verb))
        case = self.api.refuse.get(resource_and_verb)
        if once := self.api.refuse_next.get(resource_and_verb):
            case = once.pop(0)
        if case:
            raise _as_recorded(case)
        if resource in self.api.denied:
            raise _as_recorded("role without list")
        if resource == "selfsubjectaccessreviews":
            asked = body["spec"]["resourceAttributes"]["resource"]
            self._json(201, body | {"status": {"allowed": asked not in self.api.denied}})
            return
        if namespace not in (self.api.namespace, None):
            raise _as_recorded("namespace missing")
        if sub == "log":
            self._stream(line.encode() + b"\n" for line in self._log(name))
        elif verb == "watch":
            self._stream(json.dumps(e).encode() + b"\n" for e in self.api.watch(query))
        else:
            self._json(*self._object(verb, resource, name, query, body))

    def _log(self, name: str) -> Iterator[str]:
        pod = self.api.get("pods", name)
        if pod.get("status", {}).get("phase") == "Pending":
            created = bool(pod["status"].get("containerStatuses"))
            which = "container that is being created" if created else "pod without a container"
            raise _as_recorded(f"log of a {which}")
        return iter(list(self.api.logs.get(name, self.api.log)))

    def _object(
        self, verb: str, resource: str, name: str, query: dict[str, str], body: Object
    ) -> tuple[int, Object]:
        if verb == "create":
            return 201, self.api.create(resource, body, query)
        if verb == "delete":
            return 200, self.api.delete(resource, name)
        if verb == "get":
            return 200, self.api.get(resource, name)
        return 200, self.api.list(resource, query)

    def _json(self, status: int, body: Object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, chunks: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


def _verb(method: str, name: str | None, query: dict[str, str]) -> str:
    if method == "GET" and not name:
        return "watch" if query.get("watch", "").lower() in ("1", "true") else "list"
    return {"GET": "get", "POST": "create", "DELETE": "delete"}[method]
