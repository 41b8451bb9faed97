"""The Ray Jobs API over HTTP, so that launching needs no Ray here.

Source: `ray/dashboard/modules/job/job_head.py`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from mptune.launch.base import LaunchError

SEARCH = "mptune-search"
"""Metadata of a job: the name of its search."""

TIMEOUT_S = 30
STOP_S = 60.0
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The same files make the same archive, and so the same name."""


class Silent(LaunchError):
    """Nobody answers: worth another try."""


class JobsApi:
    """The jobs of one Ray cluster."""

    def __init__(self, url: str) -> None:
        self.url = url

    def submit(self, search: str, entrypoint: str, files: Mapping[str, str]) -> str:
        """Start `entrypoint` on the head, in a folder with these files; the job's id.

        An id is not used twice: Ray keeps the log of a deleted job, and would add to it.
        """
        job = f"{search}-{time.time_ns():x}"
        environment = {"working_dir": self._upload(files)} if files else {}
        body: dict[str, Any] = {
            "entrypoint": entrypoint,
            "submission_id": job,
            "runtime_env": environment,
        }
        body["metadata"] = {SEARCH: search}
        self._call("POST", "/api/jobs/", json.dumps(body).encode())
        return job

    def latest(self) -> dict[str, str]:
        """The latest job of every search."""
        jobs = json.loads(self._call("GET", "/api/jobs/"))
        ours = [j for j in jobs if SEARCH in (j.get("metadata") or {}) and j["submission_id"]]
        ours.sort(key=lambda j: j.get("start_time") or 0)
        return {j["metadata"][SEARCH]: j["submission_id"] for j in ours}

    def state(self, job: str) -> str | None:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; None if there is no such job."""
        found = self._job(job)
        return None if found is None else str(found["status"])

    def message(self, job: str) -> str:
        return str((self._job(job) or {}).get("message") or "")

    def log(self, job: str) -> list[str]:
        text = json.loads(self._call("GET", f"/api/jobs/{quote(job)}/logs"))["logs"]
        return str(text).splitlines()

    def stop(self, job: str) -> None:
        """Ask it to stop at a checkpoint, and wait until it has."""
        self._call("POST", f"/api/jobs/{quote(job)}/stop")
        deadline = time.monotonic() + STOP_S
        while self.state(job) in ("PENDING", "RUNNING"):
            if time.monotonic() > deadline:
                raise LaunchError(f"{job} does not stop; try again")
            time.sleep(0.3)

    def delete(self, job: str) -> None:
        self._call("DELETE", f"/api/jobs/{quote(job)}")

    def _job(self, job: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._call("GET", f"/api/jobs/{quote(job)}"))
        except _Missing:
            return None
        return found

    def _upload(self, files: Mapping[str, str]) -> str:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, text in files.items():
                archive.writestr(zipfile.ZipInfo(name, EPOCH), text)
        package = f"_ray_pkg_{hashlib.sha256(packed.getvalue()).hexdigest()[:16]}.zip"
        self._call("PUT", f"/api/packages/gcs/{package}", packed.getvalue())
        return f"gcs://{package}"

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        token = _token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = Request(self.url + path, data=body, method=method, headers=headers)
        try:
            with urlopen(request, timeout=TIMEOUT_S) as answer:
                return bytes(answer.read())
        except HTTPError as error:
            raise self._refusal(error) from None
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise Silent(
                f"no Ray Jobs API answers at {self.url} ({reason}); a search that runs goes on"
            ) from None

    def _refusal(self, error: HTTPError) -> LaunchError:
        text = " ".join(error.read().decode(errors="replace").split())[:300]
        if error.code == 404:
            return _Missing(f"{self.url} has no such job: {text}")
        if error.code in (401, 403):
            return LaunchError(
                f"{self.url} does not accept your token ({error.code}); set RAY_AUTH_TOKEN to the "
                "cluster's"
            )
        if error.code in (502, 503, 504):
            return Silent(f"{self.url} cannot answer now ({error.code}); a search goes on")
        return LaunchError(f"{self.url} refuses ({error.code}): {text}")


def _token() -> str | None:
    """The cluster's token, where Ray's own tools look for it, and in their order."""
    named = os.environ.get("RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if named is None and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    return named


class _Missing(LaunchError):
    pass
