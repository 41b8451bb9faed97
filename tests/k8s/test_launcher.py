"""`mptune launch` against a local API server that replays recordings of a real cluster."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from mptune.cli import main
from mptune.launch import _doctor, _rayjob, base, kubernetes
from mptune.launch._kubernetes_api import KubernetesApi
from mptune.launch.base import Submission
from mptune.paths import RunDirectory
from mptune.spec.schema import Resources
from mptune.spec.source import read_plugin
from tests.k8s.apiserver import ApiServer, Refusal, recorded
from tests.k8s.render import overlay
from tests.k8s.schemas import ROOT, Schemas

STUCK_S, POLL_S = base.STUCK_S, kubernetes.POLL_S
SPEC = ROOT / "search_spaces" / "quickstart.yaml"
PROFILE = ROOT / "launchers" / "kubernetes.yaml"
LOG = [
    "quickstart: search: 64 trials, 0 of them done",
    "trial 10 (uniform): complete (11 of 64 done)",
    "trial 11 (fixed 15 %): 40%, loss 2.1 at mask rate 0.15, 90 k tokens/s",
]
"""What the driver prints."""


def submitter_log(at: str = "18:40:15,939", *more: str) -> list[str]:
    """The log of a submitter whose driver started at this time, as recorded on a real cluster."""
    address = "\x1b[1mhttp://quickstart-head-svc.mptune.svc.cluster.local:8265\x1b[22m"
    submission = (
        "Waiting for Ray Dashboard GCS to become healthy at http://quickstart-head-svc:8265 ...",
        "\tINFO cli.py:42 -- \x1b[37mJob submission server address\x1b[39m: " + address,
        "\tSUCC cli.py:67 -- \x1b[32mJob 'quickstart-74b2h' submitted successfully\x1b[39m",
        "\tINFO cli.py:330 -- \x1b[36mNext steps\x1b[39m",
        "\tINFO cli.py:341 -- \x1b[1mray job stop quickstart-74b2h\x1b[22m",
    )
    return [
        *(f"2026-11-26 18:40:19,159{x}" if x.startswith("\t") else x for x in submission),
        f"2026-11-26 {at}\tINFO job_manager.py:581 -- Runtime env is setting up.",
        "Running entrypoint for job quickstart-74b2h: mptune search /etc/mptune/spec.yaml",
        *LOG,
        *more,
        "2026-11-26 18:55:06,219\tSUCC cli.py:67 -- \x1b[32mJob 'quickstart-74b2h' succeeded",
    ]


@pytest.fixture
def server(schemas: Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("kubernetes")
    api = ApiServer(schemas, tmp_path / "artifacts", log=submitter_log())
    api.start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{api.port}"}}],
        "users": [{"name": "test", "user": {"token": "a-token"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base, "STUCK_S", 0.3)
    monkeypatch.setattr(kubernetes, "POLL_S", 1)
    yield api
    api.stop()


def launch(name: str, *more: str, profile: Path = PROFILE) -> int:
    return main(["launch", str(SPEC), "--on", str(profile), "--set", f"name={name}", *more])


def again(verb: str, name: str, *more: str) -> int:
    return main(["launch", verb, name, "--on", str(PROFILE), *more])


def report_of(api: ApiServer, name: str) -> None:
    """Write the report that the driver would write to the volume."""
    report = RunDirectory(api.artifacts / "runs" / name).report_html
    report.parent.mkdir(parents=True)
    report.write_text("<p>uniform wins</p>")


def wait_for(truth: Any) -> None:
    deadline = time.monotonic() + 20
    while not truth():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- the way to a report -----------------------------------------------------------------------


def test_a_search_is_submitted_followed_and_its_report_is_fetched(
    server: ApiServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report_of(server, "succeeds")
    assert launch("succeeds") == 0
    out = capsys.readouterr().out
    assert [line for line in LOG if line in out] == LOG
    assert out.index("succeeds: waiting: ") < out.index(LOG[0]) < out.index("succeeds: finished")
    assert (tmp_path / "runs" / "succeeds" / "report" / "report.html").read_text() == (
        "<p>uniform wins</p>"
    )
    assert server.objects["configmaps"]["succeeds-spec"]["data"]["spec.yaml"] == SPEC.read_text()
    assert "succeeds-report" not in server.objects["pods"]


def test_every_write_uses_strict_validation(server: ApiServer) -> None:
    report_of(server, "succeeds")
    assert launch("succeeds") == 0
    assert {r for r, _ in server.writes} == {"rayjobs", "configmaps", "networkpolicies", "pods"}
    assert all(q.get("fieldValidation") == "Strict" for _, q in server.writes)


def test_the_status_of_a_running_search_has_its_progress(
    server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.pause_at = _after("deleted-while-running", "RUNNING")
    assert launch("deleted-while-running", "--detach") == 0
    wait_for(lambda: _job_status(server, "deleted-while-running") == "RUNNING")
    capsys.readouterr()
    assert again("status", "deleted-while-running") == 0
    assert capsys.readouterr().out == "deleted-while-running: running: trial 12 of 64\n"


def _job_status(api: ApiServer, name: str) -> str | None:
    return api.objects["rayjobs"][name].get("status", {}).get("jobStatus")


def _after(scenario: str, job_status: str) -> int:
    """The number of recorded steps until the RayJob's `jobStatus` has this value."""
    statuses = [s["object"].get("status", {}).get("jobStatus") for _, s in recorded(scenario)]
    return 1 + statuses.index(job_status)


def queued(folder: Path) -> Path:
    """A profile whose searches are queued by Kueue."""
    path = folder / "kueue.yaml"
    path.write_text(PROFILE.read_text() + "queue: searches\n")
    return path


def test_ctrl_c_detaches_and_logs_follows_again(
    server: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report_of(server, "succeeds")
    with monkeypatch.context() as patched:
        patched.setattr(KubernetesApi, "await_change", _interrupt)
        assert launch("succeeds") == 0
    out = capsys.readouterr().out
    assert "detached; succeeds continues" in out
    assert f"mptune launch logs succeeds --on {PROFILE}" in out
    assert again("logs", "succeeds") == 0
    assert LOG[-1] in capsys.readouterr().out


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_stop_leaves_nothing_but_study_and_artifacts(server: ApiServer) -> None:
    report_of(server, "succeeds")
    assert launch("succeeds", "--detach") == 0
    assert again("stop", "succeeds") == 0
    assert server.objects["rayjobs"] == server.objects["configmaps"] == {}
    assert server.objects["networkpolicies"] == {}
    assert (server.artifacts / "runs" / "succeeds").is_dir()


def test_every_state_is_shown_and_the_role_has_exactly_the_verbs_that_the_launcher_uses(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.step_s = 0.1  # so that the launcher sees it waiting, also on a busy machine
    report_of(server, "succeeds")
    assert launch("succeeds") == 0
    told = re.findall(r"^succeeds: (.*)", capsys.readouterr().out, flags=re.MULTILINE)
    assert told[0] == "submitted"
    assert "waiting: pulling the image, starting containers" in told
    assert told[-1] == "finished"
    assert again("status", "succeds") == 3
    assert again("stop", "succeeds") == 0
    server.pause_at = 0
    assert launch("missing-localqueue", "--detach", profile=queued(tmp_path)) == 0
    assert again("status", "missing-localqueue") == 0
    base = overlay(ROOT / "k8s" / "overlays" / "cpu-demo")
    (role,) = [
        m for m in base if m["kind"] == "Role" and m["metadata"]["name"] == "mptune-launcher"
    ]
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == server.calls == set(_doctor.RIGHTS)


# --- before anything is made -------------------------------------------------------------------

OF_A_NAMESPACE = {
    "persistentvolumeclaims": {
        "mptune-artifacts": {
            "spec": {"accessModes": ["ReadWriteMany"]}, "status": {"phase": "Bound"},
        },
    },
    "secrets": {"mptune-postgres": {"data": {"password": "eA=="}}, "login": {"data": {}}},
    "services": {"mptune-postgres": {"spec": {"ports": [{"port": 5432}]}}},
    "localqueues": {"searches": {"spec": {"clusterQueue": "mptune"}}},
    "resourcequotas": {
        "gpus": {"status": {"hard": {"requests.nvidia.com/gpu": "16"},
                            "used": {"requests.nvidia.com/gpu": "10"}}},
    },
    "nodes": {"a": {"status": {"allocatable": {"cpu": "64", "nvidia.com/gpu": "4"}}}},
    "deployments": {
        "kuberay-operator": {
            "metadata": {"labels": {"app.kubernetes.io/component": "kuberay-operator"}},
            "spec": {"template": {"spec": {"containers": [{"image": "kuberay/operator:v1.7.0"}]}}},
            "status": {"availableReplicas": 1},
        },
    },
    "pods": {
        "mptune-postgres-0": {
            "metadata": {"labels": {"app.kubernetes.io/name": "mptune-postgres"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        },
    },
}  # fmt: skip
"""What an administrator has made, as far as a doctor looks at it."""

NOT_IN_THE_ROLE = set(OF_A_NAMESPACE) - {"pods"}


@pytest.fixture
def prepared(server: ApiServer) -> ApiServer:
    for resource, objects in copy.deepcopy(OF_A_NAMESPACE).items():
        for name, item in objects.items():
            item.setdefault("metadata", {})["name"] = name
            server.put(resource, "ADDED", item)
    return server


def examined(
    capsys: pytest.CaptureFixture[str], code: int = 0, profile: Path | None = None
) -> list[str]:
    """The lines of `mptune launch doctor`."""
    kueue = ROOT / "launchers" / "kubernetes-kueue.yaml"
    assert main(["launch", "doctor", "--on", str(profile or kueue)]) == code
    return capsys.readouterr().out.splitlines()


def test_a_doctor_looks_at_everything_and_makes_nothing(
    prepared: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {resource: set(found) for resource, found in prepared.objects.items()}
    lines = examined(capsys)
    assert [line for line in lines if not line.startswith("ok: ")] == []
    text = "\n".join(lines)
    for words in (
        f"http://127.0.0.1:{prepared.port} is Kubernetes v1.36.2",
        "your rights: all of the Role mptune-launcher",
        "KubeRay operator: kuberay/operator:v1.7.0",
        "image: mptune:0.1.0 is a tag, which may become another image",
        "RayJob: the API server accepts it",
        "pod of the head: the API server accepts it",
        "pod of pool gpu: the API server accepts it",
        "queue searches: of the ClusterQueue mptune",
        "volume mptune-artifacts: Bound, ReadWriteMany",
        "secret mptune-postgres: has password",
        "GPUs of the quota: 4 of 6 that gpus has left",
        "nodes of pool gpu: 1 of the right labels with 4 GPUs or more",
        "DNS name mptune-postgres: is a Service with port 5432",
        "PostgreSQL: its pod is ready",
    ):
        assert words in text
    assert {resource: set(found) for resource, found in prepared.objects.items()} == before
    assert all(query["dryRun"] == "All" for resource, query in prepared.writes)


def test_what_the_role_may_not_read_is_not_checked(
    prepared: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared.denied |= NOT_IN_THE_ROLE
    lines = examined(capsys)
    unchecked = [line.split(": ")[1] for line in lines if line.startswith("not checked: ")]
    assert unchecked == [
        "KubeRay operator", "queue searches", "volume mptune-artifacts", "secret mptune-postgres",
        "GPUs of the quota", "nodes of pool gpu", "DNS name mptune-postgres",
    ]  # fmt: skip
    assert {line.partition(":")[0] for line in lines} == {"ok", "not checked"}


@pytest.mark.parametrize(
    ("resource", "name", "change", "line"),
    [
        ("persistentvolumeclaims", "mptune-artifacts", None,
         "volume mptune-artifacts: there is no PersistentVolumeClaim mptune-artifacts in"),
        ("persistentvolumeclaims", "mptune-artifacts", {"status": {"phase": "Lost"}},
         "volume mptune-artifacts: its volume is lost"),
        ("localqueues", "searches", None, "queue searches: there is no LocalQueue searches in"),
        ("localqueues", "searches",
         {"status": {"conditions": [{"type": "Active", "status": "False", "message": "No."}]}},
         "queue searches: No."),
        ("secrets", "mptune-postgres", None,
         "secret mptune-postgres: there is no Secret mptune-postgres in"),
        ("secrets", "mptune-postgres", {"data": {"other": ""}},
         "secret mptune-postgres: it has no key password"),
        ("services", "mptune-postgres", {"spec": {"ports": [{"port": 5433}]}},
         "DNS name mptune-postgres: its Service has no port 5432"),
        ("deployments", "kuberay-operator", None, "KubeRay operator: no deployment has its label"),
        ("deployments", "kuberay-operator", {"status": {}},
         "KubeRay operator: kuberay-operator is not available"),
        ("resourcequotas", "gpus", {"status": {"hard": {"requests.nvidia.com/gpu": "3"}}},
         "GPUs of the quota: gpus has 3 left; the smallest search takes 4"),
        ("pods", "mptune-postgres-0",
         {"status": {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {
             "reason": "CreateContainerConfigError", "message": "no secret"}}}]}},
         "PostgreSQL: pod mptune-postgres-0 is not ready: CreateContainerConfigError no secret"),
    ],
)  # fmt: skip
def test_each_thing_that_is_wrong_is_a_line(
    prepared: ApiServer, capsys: pytest.CaptureFixture[str], resource: str, name: str, change: Any,
    line: str,
) -> None:  # fmt: skip
    item = prepared.objects[resource][name]
    prepared.put(resource, "MODIFIED" if change else "DELETED", item | (change or {}))
    (wrong,) = [each for each in examined(capsys, 2) if not each.startswith("ok: ")]
    assert wrong.startswith(f"wrong: {line}")


def test_nodes_that_an_autoscaler_may_add_are_not_wrong(
    prepared: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared.objects["nodes"]["a"]["status"]["allocatable"]["nvidia.com/gpu"] = "3"
    (line,) = [each for each in examined(capsys) if not each.startswith("ok: ")]
    assert line.startswith("not checked: nodes of pool gpu: none has its labels and 4 GPUs now")


def test_a_right_that_is_missing_is_named(
    prepared: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared.denied.add("events")
    (line,) = [each for each in examined(capsys, 2) if not each.startswith("ok: ")]
    assert line.startswith("wrong: your rights: you may not list events; have the Role")


def test_a_pod_that_is_not_admitted_is_said_as_the_server_says_it(
    prepared: ApiServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    reason = "no PriorityClass with name mptune-search was found"
    message = f'pods "mptune-doctor" is forbidden: {reason}'
    prepared.refuse[("pods", "create")] = Refusal(403, {"message": message})
    wrong = [each for each in examined(capsys, 2) if each.startswith("wrong: ")]
    assert [line.partition(":")[2].split(":")[0] for line in wrong] == [
        " pod of the head", " pod of pool gpu",
    ]  # fmt: skip
    assert all("is not admitted" in line and reason in line for line in wrong)


@pytest.mark.parametrize("case", ["gone", "expired or wrong token"])
def test_a_cluster_that_cannot_be_asked_is_one_line(
    prepared: ApiServer, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    if case == "gone":
        with prepared.gone():
            (line,) = examined(capsys, 2)
        assert "does not answer" in line
    else:
        prepared.refuse[("*", "*")] = case
        (line,) = examined(capsys, 2)
        assert "does not accept your credentials" in line
    assert line.startswith("wrong: API server: ")


# --- what goes wrong ---------------------------------------------------------------------------


def failure(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    (line,) = capsys.readouterr().err.splitlines()
    assert "Traceback" not in line
    return line


def test_a_failed_driver_is_reported_with_its_reason(
    server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("fails-exit-3") == 3
    assert (
        "fails-exit-3: failed (AppFailed: Job entrypoint command failed with exit code 3); its "
        "log says why" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("name", "brief", "words"),
    [
        (
            "bad-image",
            "the image cannot be pulled",
            ("failed to pull and unpack image", "correct `image` in the profile"),
        ),
        (
            "quota-exceeded",
            "the namespace's quota forbids its pods",
            (
                "exceeded quota: q, requested: pods=1, used: pods=3, limited: pods=1",
                "ask for less in the profile",
            ),
        ),
    ],
)
def test_a_search_that_cannot_start_says_why_within_a_minute(
    server: ApiServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    brief: str,
    words: tuple[str, ...],
) -> None:
    now = 0.0
    shown: list[tuple[float, str]] = []

    def await_change(*_: object) -> None:
        nonlocal now
        now += POLL_S
        with server.changed:
            server.changed.wait(0.05)

    clock = SimpleNamespace(monotonic=lambda: now, sleep=lambda _: None)
    monkeypatch.setattr(base, "time", clock)
    monkeypatch.setattr(base, "STUCK_S", STUCK_S)
    monkeypatch.setattr(KubernetesApi, "await_change", await_change)
    monkeypatch.setattr("mptune.cli.launch._say", lambda line: shown.append((now, line)))
    assert launch(name) == 3
    line = failure(capsys)
    assert line.startswith(f"mptune: {name} cannot start: {brief}: ")
    assert [w for w in words if w not in line] == []
    assert shown[-1][1] == f"{name}: waiting: {brief}"
    assert STUCK_S <= now - shown[-1][0] < 60


def test_following_continues_while_no_node_fits(
    server: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    wait = KubernetesApi.await_change

    def await_change(api: KubernetesApi, job: Any, seconds: int) -> None:
        shown.append(capsys.readouterr().out)
        if "no node takes" in shown[-1]:
            raise KeyboardInterrupt
        wait(api, job, seconds)

    monkeypatch.setattr(KubernetesApi, "await_change", await_change)
    assert launch("no-gpu-node") == 0
    out = "".join(shown)
    assert (
        "no-gpu-node: waiting: no node takes a pod: 0/1 nodes are available: 1 Insufficient "
        "nvidia.com/gpu; add such nodes, or change gpus" in out
    )
    assert out.count("no node takes") == 1


def test_a_search_that_is_deleted_while_it_runs_is_reported(
    server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("deleted-while-running") == 3
    assert "deleted while it ran; its study and artifacts are kept" in failure(capsys)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("expired or wrong token", "does not accept your credentials (401 Unauthorized)"),
        ("role without list", "have the Role mptune-launcher bound to your account"),
        ("list with an impossible resourceVersion", "the API server cannot answer now (504)"),
        ("namespace missing", "create it with `kubectl apply -k k8s/overlays/...`"),
        ("create again: conflict", "launch again after `mptune launch stop`"),
        ("wrong type", "cannot unmarshal string"),
        ("bad name", "a lowercase RFC 1123 subdomain"),
    ],
)
def test_each_refusal_is_one_line_that_says_what_to_do(
    server: ApiServer, capsys: pytest.CaptureFixture[str], case: str, words: str
) -> None:
    server.refuse[("*", "*")] = case
    assert launch("succeeds", "--detach") == 3
    assert words in failure(capsys)
    assert server.objects["rayjobs"] == {}


def test_a_search_of_the_same_name_is_not_changed(
    server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("succeeds", "--detach") == 0
    assert launch("succeeds", "--detach") == 3
    assert "RayJob succeeds is in namespace mptune already" in failure(capsys)
    assert list(server.objects["configmaps"]) == ["succeeds-spec"]


def test_an_unknown_name_gets_a_suggestion(
    server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("succeeds", "--detach") == 0
    assert again("status", "suceeds") == 3
    assert failure(capsys).endswith(
        "no RayJob suceeds in namespace mptune; did you mean 'succeeds'?"
    )


def test_a_server_that_does_not_answer_is_one_line(
    server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with server.gone():
        assert again("status", "succeeds") == 3
    line = failure(capsys)
    assert f"http://127.0.0.1:{server.port} does not answer (" in line
    assert "Connection refused" in line


def test_an_unknown_field_is_refused(
    server: ApiServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    misspelt = tmp_path / "rayjob.yaml"
    misspelt.write_text(_rayjob.TEMPLATE.read_text().replace("serviceAccountName", "nodeSelectr"))
    monkeypatch.setattr(_rayjob, "TEMPLATE", misspelt)
    assert launch("succeeds", "--detach") == 3
    assert "nodeSelectr" in failure(capsys)


@pytest.mark.parametrize("kind", ["ConfigMap", "NetworkPolicy"])
def test_a_partly_created_search_is_removed(
    server: ApiServer, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    resource = {"ConfigMap": "configmaps", "NetworkPolicy": "networkpolicies"}[kind]
    server.refuse[(resource, "create")] = "role without list"
    assert launch("succeeds", "--detach") == 3
    assert f"you may not create a {kind} in namespace mptune" in failure(capsys)
    assert server.objects["rayjobs"] == {}


def test_a_lost_watch_is_started_again(
    server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.lost_watches = 3
    report_of(server, "succeeds")
    assert launch("succeeds") == 0
    assert server.lost_watches == 0


def test_following_continues_after_an_outage_of_the_api_server(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    report_of(server, "succeeds")
    server.pause_at = _after("succeeds", "PENDING")
    shown: list[str] = []
    log_is_shown, outage_is_shown = threading.Event(), threading.Event()

    def say(line: str) -> None:
        shown.append(line)
        if line == LOG[-1]:
            log_is_shown.set()
        if "does not answer" in line:
            outage_is_shown.set()

    def outage() -> None:
        log_is_shown.wait(20)
        with server.gone():
            outage_is_shown.wait(20)
        server.go_on.set()

    monkeypatch.setattr("mptune.cli.launch._say", say)
    thread = threading.Thread(target=outage)
    thread.start()
    assert launch("succeeds") == 0
    thread.join()
    (lost,) = [i for i, line in enumerate(shown) if "does not answer" in line]
    assert shown.index(LOG[-1]) < lost < shown.index("the API server answers again")
    assert [shown.count(line) for line in LOG] == [1, 1, 1]


def test_an_incomplete_report_is_refused(
    server: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report_of(server, "succeeds")
    run = server._run

    def cut(pod: Any) -> None:
        run(pod)
        del server.logs["succeeds-report"][1]

    monkeypatch.setattr(server, "_run", cut)
    assert again("fetch", "succeeds") == 3
    assert "arrived incomplete" in failure(capsys)


def test_a_search_without_a_report_is_one_line(
    server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again("fetch", "succeeds") == 3
    assert "there is no report yet" in failure(capsys)


TRACEBACK = """\
Traceback (most recent call last):
  File "/opt/mptune/lib/python3.12/site-packages/urllib3/connection.py", line 198, in _new_conn
    raise NameResolutionError(self.host, self, e) from e
urllib3.exceptions.NameResolutionError: Failed to resolve 'quickstart-head-svc'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "{program}", line 6, in <module>
    sys.exit(main())
requests.exceptions.ConnectionError: HTTPConnectionPool(host='quickstart-head-svc', port=8265)
"""


def test_a_log_is_that_of_the_driver() -> None:
    of_ray, own = (
        TRACEBACK.format(program=f"/opt/mptune/bin/{name}").splitlines()
        for name in ("ray", "mptune")
    )
    start = "2026-11-26 18:40:15,939\tINFO job_manager.py:581 -- Runtime env is setting up."
    text = "\n".join(submitter_log("18:40:15,939", *own, *of_ray))
    assert base.driver_log(text) == (start, [*LOG, *own])
    assert base.driver_log("a\x1b[31mb\n\nc\n") == (None, ["ab", "", "c"])


# --- recordings of what went wrong on a real cluster -------------------------------------------


@pytest.fixture
def stepwise(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    """A follower sees every recorded change; after the last one the search succeeds."""
    server.by_hand = True
    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=time.monotonic, sleep=_advance))

    def await_change(api: KubernetesApi, job: Any, seconds: int) -> None:
        name = job["metadata"]["name"]
        if not server.advance() and name in server.objects["rayjobs"]:
            server.set_status(name, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")

    monkeypatch.setattr(KubernetesApi, "await_change", await_change)
    return server


def _advance(_: float) -> None:
    """Instead of sleeping."""


def followed(api: ApiServer, capsys: pytest.CaptureFixture[str], name: str, code: int = 0) -> str:
    """Everything that `mptune launch` says about a recorded search."""
    report_of(api, name)
    assert launch(name) == code
    return capsys.readouterr().out


def test_kueue_admits_one_at_a_time(
    stepwise: ApiServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report_of(stepwise, "kueue-second")
    assert launch("kueue-second", profile=queued(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "kueue-second: waiting: queued by Kueue in searches" in out
    assert out.index("queued by Kueue") < out.index("kueue-second: finished")


def test_a_replaced_submitter_neither_ends_following_nor_repeats_lines(
    stepwise: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    out = followed(stepwise, capsys, "submitter-replaced")
    assert [out.count(line) for line in LOG] == [1, 1, 1]
    assert out.index(LOG[-1]) < out.index("submitter-replaced: finished")


def test_a_lost_head_is_said_and_the_log_of_the_next_driver_is_shown(
    stepwise: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    stepwise.logs["head-lost-bxdkf"] = submitter_log("18:50:03,188", "goes on")
    out = followed(stepwise, capsys, "head-lost")
    assert out.count(f"{LOG[0]}\n") == 2
    lost = out.index("head-lost: its head was lost: the driver starts again")
    assert out.index(LOG[0]) < out.rindex(LOG[0]) < out.index("goes on")
    assert out.index(LOG[-1]) < lost < out.index("head-lost: finished")


def refuse_once_it_runs(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch, request: tuple[str, str], cases: list[str]
) -> None:
    """From when the search runs on, these requests get these answers, one after another."""
    advance = KubernetesApi.await_change

    def await_change(own: KubernetesApi, job: Any, seconds: int) -> None:
        advance(own, job, seconds)
        if _job_status(api, job["metadata"]["name"]) == "RUNNING":
            api.refuse_next.setdefault(request, list(cases))

    monkeypatch.setattr(KubernetesApi, "await_change", await_change)


@pytest.mark.parametrize(
    "case", ["log while the kubelet is stopped", "log while the kubelet starts"]
)
def test_a_log_that_cannot_be_read_ends_nothing(
    stepwise: ApiServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    refuse_once_it_runs(stepwise, monkeypatch, ("pods/log", "get"), [case] * 3)
    out = followed(stepwise, capsys, "finished-ttl-0")
    assert stepwise.refuse_next == {("pods/log", "get"): []}
    assert [out.count(line) for line in LOG] == [1, 1, 1]
    assert "again" not in out
    assert out.count("does not answer; its log is shown") == ("stopped" in case)
    assert "finished-ttl-0: finished" in out


RESTART = [f"API server restart {number}" for number in (1, 2, 3, 4)]


def test_an_api_server_that_restarts_refuses_for_some_seconds(
    stepwise: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_once_it_runs(stepwise, monkeypatch, ("rayjobs", "get"), RESTART)
    out = followed(stepwise, capsys, "finished-ttl-0")
    assert stepwise.refuse_next == {("rayjobs", "get"): []}
    assert out.count("trying again") == out.count("the API server answers again") == 1
    assert "finished-ttl-0: finished" in out


def test_a_right_that_stays_missing_is_said(
    stepwise: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, now = KubernetesApi.await_change, [0.0]

    def forget(*arguments: Any) -> None:
        wait(*arguments)
        stepwise.refuse[("rayjobs", "get")] = RESTART[1]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(KubernetesApi, "await_change", forget)
    assert launch("finished-ttl-0") == 3
    assert "have the Role mptune-launcher bound to your account" in failure(capsys)
    assert base.DENIED_S < now[0] < base.DENIED_S + 5


def test_a_stopped_job_is_not_finished(
    stepwise: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    out = followed(stepwise, capsys, "job-stopped", 3)
    assert "job-stopped: stopped before its end; what has finished is kept" in out
    assert "finished\n" not in out
    assert again("status", "job-stopped") == 3
    assert not any(name.endswith("-report") for name in stepwise.logs)


def test_every_retry_is_said_with_the_driver_s_own_message(
    stepwise: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    out = followed(stepwise, capsys, "user-error-retried", 3)
    message = (
        "Job entrypoint command failed with exit code 2: spec.yaml:2: data: source: no such file: "
        "/no/such/folder"
    )
    first, second, failed = (
        f"user-error-retried: waiting: attempt 1 of 2 failed: {message}; it is tried again on a "
        "new cluster\n",
        "user-error-retried: waiting: attempt 2 of 2: for nodes\n",
        f"user-error-retried: failed (AppFailed: {message}); its log says why\n",
    )
    assert out.count(first) == 1
    assert out.index(first) < out.index(second) < out.index(failed)


@pytest.mark.parametrize(("code", "ends_with"), [(0, 0), (2, 0), (3, 3), (130, 130)])
def test_a_wrong_input_is_not_tried_again(tmp_path: Path, code: int, ends_with: int) -> None:
    (tmp_path / "mptune").write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    (tmp_path / "mptune").chmod(0o755)
    # KubeRay writes the entrypoint into a shell's line; `ray job submit` quotes its words again.
    (tmp_path / "ray").write_text(
        f"#!{sys.executable}\nimport shlex, subprocess, sys\n"
        "sys.exit(subprocess.call(shlex.join(sys.argv[2:]), shell=True))\n"
    )
    (tmp_path / "ray").chmod(0o755)
    text = read_plugin(PROFILE, "launchers", "kind").render(
        Submission("tiny", "", Resources(cpus_per_worker=1), SPEC, ('a=it\'s $HOME; "b"',))
    )
    (job,) = [m for m in yaml.safe_load_all(text) if m["kind"] == "RayJob"]
    done = subprocess.run(
        ["bash", "-c", f"ray -- {job['spec']['entrypoint']} ;"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ends_with, done.stderr
    assert '--set a=it\'s $HOME; "b" ' in done.stdout.splitlines()[0]
    assert (done.stdout.splitlines()[-1] == _rayjob.WRONG_INPUT_LINE) == (code == 2)


def test_a_search_with_a_wrong_input_has_failed(
    stepwise: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = "spec.yaml:2: data: source: no such file: /no/such/folder"
    stepwise.log = submitter_log("18:40:15,939", wrong, _rayjob.WRONG_INPUT_LINE)
    out = followed(stepwise, capsys, "finished-ttl-0", 3)
    assert f"finished-ttl-0: failed, and is not tried again: {wrong}; correct it, then" in out
    assert again("status", "finished-ttl-0") == 3


def test_a_finished_search_frees_its_pods_and_can_still_be_asked(
    stepwise: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    followed(stepwise, capsys, "finished-ttl-0")
    while stepwise.advance():
        pass
    job = stepwise.objects["rayjobs"]["finished-ttl-0"]
    assert job["spec"]["ttlSecondsAfterFinished"] == 0
    cluster = {"labelSelector": f"ray.io/cluster={job['status']['rayClusterName']}"}
    assert stepwise.list("pods", cluster)["items"] == []
    for verb in ("status", "fetch", "logs"):
        assert again(verb, "finished-ttl-0") == 0
    assert LOG[-1] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing-pvc", "there is no PersistentVolumeClaim nope in namespace mptune; create it"),
        ("missing-localqueue", "Kueue cannot queue it: LocalQueue nope doesn't exist; fix it"),
    ],
)
def test_what_is_missing_in_the_namespace_is_named(
    stepwise: ApiServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    words: str,
) -> None:
    monkeypatch.setattr(KubernetesApi, "await_change", lambda *_: stepwise.advance())
    profile = queued(tmp_path) if name == "missing-localqueue" else PROFILE
    assert launch(name, profile=profile) == 3
    line = failure(capsys)
    assert words in line
    assert line.endswith(f"it still waits there: `mptune launch stop {name}` removes it")


def test_a_volume_that_cannot_be_made_says_what_its_events_say(
    stepwise: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    name, message = "missing-pvc", 'storageclass.storage.k8s.io "nfs" not found'
    for claim, text in (("nope", message), ("data-mptune-postgres-0", "another")):
        about = {"kind": "PersistentVolumeClaim", "name": claim}
        event = {"kind": "Event", "metadata": {"name": claim}, "type": "Warning"}
        stepwise.put("events", "ADDED", event | {"involvedObject": about, "message": text})
    assert launch(name, "--detach") == 0
    while stepwise.advance():
        pass
    for pod in stepwise._pods_of(name):
        pod["spec"] = {"volumes": [{"persistentVolumeClaim": {"claimName": "nope"}}]}
        pod["status"]["conditions"][0]["message"] = (
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
        )
    assert again("status", name) == 0
    assert capsys.readouterr().out.endswith(f"{name}: waiting: for its volume: {message}\n")


def test_events_of_an_earlier_search_of_the_same_name_do_not_count(
    stepwise: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"kind": "RayJob", "name": "finished-ttl-0"}
    old = {"type": "Warning", "reason": "FailedToDeleteRayJobSubmitter", "involvedObject": about}
    old |= {"kind": "Event", "metadata": {"name": "old"}, "lastTimestamp": "2026-11-26T18:00:00Z"}
    stepwise.put("events", "ADDED", old)
    assert "FailedToDelete" not in followed(stepwise, capsys, "finished-ttl-0")


@pytest.mark.parametrize("more", [(), ("--now",)])
def test_stop_waits_until_the_job_is_gone_and_hurries_pods_that_train_nothing(
    stepwise: ApiServer, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    name = "worker-terminating-in-init"
    stepwise.delete_s = 0.3
    assert launch(name, "--detach") == 0
    wait_for(lambda: stepwise.advance() and len(stepwise.objects["pods"]) == 2)
    head, worker = stepwise._pods_of(name)
    assert worker["status"]["phase"] == "Pending"
    if not more:
        head["status"]["phase"] = "Running"
        remove = threading.Timer(0.6, stepwise._remove, ("pods", head))
        remove.start()
    assert again("stop", name, *more) == 0
    assert stepwise.objects["rayjobs"] == {}
    assert stepwise._pods_of(name) == []
    assert launch(name, "--detach") == 0


def test_a_search_that_is_being_deleted_is_told_from_one_that_exists(
    stepwise: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    stepwise.refuse[("rayjobs", "create")] = "create while it is being deleted"
    assert launch("succeeds", "--detach") == 3
    assert "RayJob succeeds is still being removed; try again" in failure(capsys)


# --- a real one --------------------------------------------------------------------------------


@pytest.mark.skipif(
    "MPTUNE_TEST_KUBECONFIG" not in os.environ,
    reason="MPTUNE_TEST_KUBECONFIG is not set: not run on a real cluster",
)
def test_a_real_cluster_accepts_shows_and_removes_a_search(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", os.environ["MPTUNE_TEST_KUBECONFIG"])
    assert main(["launch", "doctor", "--on", str(PROFILE)]) == 0
    assert launch("mptune-test", "--detach") == 0
    try:
        assert launch("mptune-test", "--detach") == 3
        assert again("status", "mptune-test") == 0
        assert "mptune-test: waiting" in capsys.readouterr().out
    finally:
        assert again("stop", "mptune-test") == 0
    assert again("status", "mptune-test") == 3
