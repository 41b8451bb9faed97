"""A search that takes seconds, and `mptune launch` in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests import plain

ROOT = plain.ROOT

TOKEN = "0123456789abcdef0123456789abcdef"

SPEC = """\
name: tiny
data: {kind: text, source: "package:email/*.py", length: 64, max_train_sequences: 1000,
       max_heldout_sequences: 32}
model: {family: modernbert, width: 32, depth: 1}
policy: {choice: [{kind: fixed, rate: 0.15}, {kind: uniform}]}
training: {budget_tokens: 20000, batch_size: 8, precision: fp32,
           optimizer: {learning_rate: 3e-3}}
score: {sequences: 16}
search: {trials: 2, seed: 1, pruner: {kind: none}}
"""


PLAIN = SPEC.replace("modernbert", "plain")
"""For processes with the environment below."""


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a process: this interpreter's programs first, and files below `folder`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": f"{plain.install(folder)}{os.pathsep}{ROOT}",
        "MPTUNE_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        **more,
    }


def launch(
    folder: Path, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`mptune launch ARGUMENTS` in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "mptune", "launch", *arguments],
        cwd=folder,
        env=env or environment(folder),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def free_ports(count: int) -> list[int]:
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [h.getsockname()[1] for h in holders]
    for holder in holders:
        holder.close()
    return ports
