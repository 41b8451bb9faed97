"""Draw docs/tracker-*.png: a short search in every tracker that has a page of its own here.

    python docs/make_tracker_screenshots.py

Needs Chromium (`make browser`) and pip install mptune[mlflow,trackio,tensorboard,dashboard]. Runs
the quickstart with little training, then starts each server on the files that the search left.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from make_screenshots import DOCS, ROOT, _small

from tests.launch.helpers import free_ports
from tests.report.chromium import chromium

SETS = (
    "training.budget_tokens=1e5", "score.sequences=64", "compare.seeds=2", "compare.max_seeds=2",
    "track=[{kind: mlflow, uri: 'sqlite:///mlflow.db'}, {kind: trackio}, {kind: tensorboard}]",
)  # fmt: skip

READY_S, DRAWN_S = 120.0, 8.0
"""Most seconds until a server answers; seconds that a page takes to draw itself."""


@contextmanager
def served(command: str, port: int, folder: Path, env: Mapping[str, str]) -> Iterator[str]:
    """The address of a server that answers, until it is ended."""
    words = [str(Path(sys.executable).parent / command.split()[0]), *command.split()[1:]]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(words, cwd=folder, env=dict(env), start_new_session=True, **quiet)
    try:
        for _ in range(int(READY_S)):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}"):
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def main() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, chromium() as tab:
        folder = Path(name)
        kinds = ("mlflow", "trackio", "tensorboard", "optuna")
        ports = dict(zip(kinds, free_ports(len(kinds)), strict=True))
        env = os.environ | {"TRACKIO_DIR": f"{name}/trackio", "HOME": name}
        env |= {"GRADIO_SERVER_PORT": str(ports["trackio"]), "GRADIO_ANALYTICS_ENABLED": "0"}
        sets = [word for value in SETS for word in ("--set", value)]
        spec = str(ROOT / "search_spaces" / "quickstart.yaml")
        words = [sys.executable, "-m", "mptune", "search", spec, "--run-dir", "run", *sets]
        subprocess.run(words, cwd=folder, env=env, check=True)
        pages = {
            "mlflow": (
                f"mlflow ui --backend-store-uri sqlite:///mlflow.db --port {ports['mlflow']}",
                "/#/experiments/1/runs",
            ),
            "trackio": ("trackio show --project quickstart", "/?project=quickstart"),
            "tensorboard": (
                f"tensorboard --logdir run/tensorboard --port {ports['tensorboard']}",
                "/?darkMode=false#timeseries",
            ),
            "optuna": (
                f"optuna-dashboard sqlite:///run/study.db --port {ports['optuna']}",
                "/dashboard/studies/1/trialList?numbers=1",
            ),
        }
        for kind, (command, page) in pages.items():
            with served(command, ports[kind], folder, env) as address:
                tab.open(address + page, width=1400, height=900)
                time.sleep(DRAWN_S)
                target = DOCS / f"tracker-{kind}.png"
                target.write_bytes(_small(tab.screenshot()))
                print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
