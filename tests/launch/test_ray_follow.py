"""Ray's client of the Jobs API, without a Ray cluster: what following shows, and what can fail."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from mptune.launch import ray
from mptune.launch.base import LaunchError, Unreachable

JOB = {
    "type": "SUBMISSION",
    "submission_id": "tiny-1",
    "entrypoint": "mptune search",
    "status": "SUCCEEDED",
    "metadata": {ray.METADATA_KEY: "tiny"},
}


class JobsServer(ThreadingHTTPServer):
    """A Jobs API with one job that has ended. `failures` are answered first, one per request."""

    daemon_threads = True
    failures: list[int]
    version: object
    tokens: set[str | None]


class _Handler(BaseHTTPRequestHandler):
    server: JobsServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        answers: dict[str, Any] = {
            "/api/version": self.server.version,
            "/api/jobs/": [JOB],
            "/api/jobs/tiny-1/logs": {"logs": "trial 2 of 2\nreport written\n"},
        }
        self.server.tokens.add(self.headers.get("Authorization"))
        status = 200
        if self.path != "/api/version" and self.server.failures:
            status = self.server.failures.pop(0)
        body = json.dumps(answers[self.path]).encode() if status == 200 else b"try later"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[JobsServer]:
    found = JobsServer(("127.0.0.1", 0), _Handler)
    found.failures, found.tokens, found.version = [], set(), {"ray_version": "2.60.0"}
    threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def profile_of(server: JobsServer) -> ray.ExistingRay:
    return ray.ExistingRay(dashboard=f"http://127.0.0.1:{server.server_address[1]}/")


def test_the_last_lines_of_the_log_come_before_the_final_state(server: JobsServer) -> None:
    shown: list[str] = []
    assert profile_of(server).follow("tiny", shown.append).phase == "succeeded"
    assert shown == ["trial 2 of 2", "report written", "tiny: finished"]


def test_an_outage_is_reported_once_and_followed_by_the_rest(
    server: JobsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=pauses.append)
    monkeypatch.setattr("mptune.launch.base.time", clock)
    server.failures = [200, 503, 502]
    shown: list[str] = []
    assert profile_of(server).follow("tiny", shown.append).phase == "succeeded"
    assert "cannot answer now (503); a running search is not affected; trying again" in shown[0]
    assert shown[1:] == [
        "the Ray cluster answers again",
        "trial 2 of 2",
        "report written",
        "tiny: finished",
    ]
    assert pauses == [1, 1]


def test_the_profile_names_the_cluster_whatever_rays_own_variables_say(
    server: JobsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert profile_of(server).status("tiny").text == "finished"


def test_a_token_is_sent_without_ray_auth_mode(
    server: JobsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert profile_of(server).status("tiny").phase == "succeeded"
    assert server.tokens == {"Bearer secret"}


def test_another_host_that_the_cluster_refers_to_gets_no_token(
    server: JobsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refers(_Handler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{server.server_port}{self.path}")
            self.end_headers()

    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    with JobsServer(("127.0.0.1", 0), Refers) as refers:
        threading.Thread(target=refers.serve_forever, args=(0.05,), daemon=True).start()
        with suppress(LaunchError):
            profile_of(refers).status("tiny")
        refers.shutdown()
    assert server.tokens == {None}


def test_an_error_of_the_cluster_is_one_line(server: JobsServer) -> None:
    server.failures = [500]
    with pytest.raises(LaunchError, match=r"refuses \(500\): try later$"):
        profile_of(server).status("tiny")


@pytest.mark.parametrize("version", [{}, [], {"ray_version": "1.0.0"}])
def test_another_server_at_the_address_is_one_line(server: JobsServer, version: object) -> None:
    server.version = version
    with pytest.raises(
        LaunchError, match=r"^http\S+ is not a Jobs API that this Ray understands: "
    ):
        profile_of(server).status("tiny")


def test_a_request_without_an_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's client sets no timeout; ours is set where every request of it passes through."""
    monkeypatch.setattr(ray, "TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(Unreachable, match=r"\(Read timed out"):
            ray.ExistingRay(dashboard=f"http://127.0.0.1:{port}").status("tiny")


def test_a_missing_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)
    with pytest.raises(LaunchError, match=r"pip install 'mptune\[cluster\]'$"):
        ray.ExistingRay().status("tiny")
