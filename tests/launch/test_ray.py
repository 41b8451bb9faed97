"""`launchers/ray.yaml` end to end: a real `ray start` cluster, its real Jobs API."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
import pytest

from tests.launch.helpers import PLAIN, ROOT, TOKEN, environment, free_ports, launch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """(a folder with spec.yaml and ray.yaml, the Jobs API's address)."""
    folder = tmp_path_factory.mktemp("ray")
    # Ray's sockets are below its folder, and a socket's path has 107 characters at most.
    temporary = tempfile.mkdtemp(prefix="mpt-", dir="/tmp")
    gcs, dashboard, client, agent = free_ports(4)
    process = subprocess.Popen(
        [
            *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={temporary}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
            *("--num-cpus=2", "--object-store-memory=100000000"),
        ],
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        _await(url)
        (folder / "spec.yaml").write_text(PLAIN)
        text = (ROOT / "launchers" / "ray.yaml").read_text()
        text = text.replace("http://127.0.0.1:8265", url).replace(
            "~/mptune-runs", f"{folder}/shared"
        )
        (folder / "ray.yaml").write_text(text)
        yield folder, url
    finally:
        _end(process)
        shutil.rmtree(temporary, ignore_errors=True)


def _await(url: str) -> None:
    deadline = time.monotonic() + 150
    known = {"Authorization": f"Bearer {TOKEN}"}
    while True:
        try:
            urlopen(Request(f"{url}/api/jobs/", headers=known), timeout=5).read()
            return
        except (URLError, OSError):
            assert time.monotonic() < deadline, "Ray does not start"
            time.sleep(0.5)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End this cluster only: other Ray clusters may run on the same machine."""
    parent = psutil.Process(process.pid)
    family = [*parent.children(recursive=True), parent]
    for member in family:  # Ray's agents take more than 15 seconds to end on SIGTERM
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=15)


def test_a_search_runs_to_its_report_and_can_be_fetched_again(cluster: tuple[Path, str]) -> None:
    folder, _ = cluster
    done = launch(folder, "spec.yaml", "--on", "ray.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "tiny: submitted"
    assert "tiny: search: 2 of 2 trials done" in lines
    assert lines[-2:] == ["tiny: finished", "report: runs/tiny/report/report.html"]
    assert (folder / "runs" / "tiny" / "report" / "report.html").stat().st_size > 10_000

    again = launch(folder, "status", "tiny", "--on", "ray.yaml")
    assert again.stdout == "tiny: finished\n"
    fetched = launch(folder, "fetch", "tiny", "--on", "ray.yaml", "--into", "elsewhere")
    assert fetched.returncode == 0, fetched.stderr
    assert (folder / "elsewhere" / "report" / "report.json").exists()
    resumed = launch(folder, "spec.yaml", "--on", "ray.yaml")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "started on gang" not in resumed.stdout


def test_a_detached_search_can_be_stopped(cluster: tuple[Path, str]) -> None:
    folder, _ = cluster
    more = ("--set", "name=long", "--set", "training.budget_tokens=4e7", "--detach")
    assert launch(folder, "spec.yaml", "--on", "ray.yaml", *more).returncode == 0
    # The job is RUNNING before its driver has imported everything and created the run directory.
    deadline = time.monotonic() + 150
    while not (folder / "shared" / "long").is_dir():
        assert time.monotonic() < deadline, "no run directory"
        time.sleep(0.1)
    assert "running" in launch(folder, "status", "long", "--on", "ray.yaml").stdout
    twice = launch(folder, "spec.yaml", "--on", "ray.yaml", *more)
    assert twice.returncode == 3
    assert twice.stderr == "mptune: long runs already; see `mptune launch logs`\n"
    stopped = launch(folder, "stop", "long", "--on", "ray.yaml")
    assert stopped.returncode == 0, stopped.stderr
    gone = launch(folder, "status", "long", "--on", "ray.yaml")
    assert gone.returncode == 3
    assert "there is no search long on the Ray cluster" in gone.stderr
    assert (folder / "shared" / "long").is_dir()


def test_a_failed_driver_is_reported(cluster: tuple[Path, str]) -> None:
    folder, _ = cluster
    done = launch(
        folder,
        "spec.yaml",
        "--on",
        "ray.yaml",
        "--set",
        "name=wide",
        "--set",
        "resources.workers=8",
    )
    assert done.returncode == 3
    assert "wide: failed: " in done.stdout


def test_a_wrong_token_is_one_line(cluster: tuple[Path, str]) -> None:
    folder, url = cluster
    env = environment(folder, RAY_AUTH_TOKEN="f" * 32)
    done = launch(folder, "status", "tiny", "--on", "ray.yaml", env=env)
    assert done.returncode == 3
    assert done.stderr == (
        f"mptune: {url} does not accept your token; set RAY_AUTH_TOKEN to the cluster's\n"
    )


def test_a_server_that_does_not_answer_is_one_line(cluster: tuple[Path, str]) -> None:
    folder, _ = cluster
    (port,) = free_ports(1)
    (folder / "gone.yaml").write_text(f"kind: ray\ndashboard: http://127.0.0.1:{port}\n")
    done = launch(folder, "status", "tiny", "--on", "gone.yaml")
    assert done.returncode == 3
    assert done.stderr == (
        f"mptune: no Ray Jobs API answers at http://127.0.0.1:{port} ([Errno 111] Connection "
        "refused); a running search is not affected\n"
    )
