"""Python programs in processes of their own that need not import torch and transformers again.

`python tests/warm.py` imports them, and nothing of mptune; then it forks for each program that it
is asked to run. A search of a few steps takes seconds less.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEAVY = (
    "optuna.storages", "ray", "scipy.stats", "torch._dynamo", "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
)  # fmt: skip


class Warm:
    """Runs `python ARGUMENT...`, one after the other.

    What libraries read when they are imported is taken from `env`.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**env, "PYTHONPATH": ""},
        )  # fmt: skip

    def run(self, folder: Path, *arguments: str, **env: str) -> str:
        """Run `-m MODULE ARGUMENT...` or `FILE ARGUMENT...` in a folder; returns what it prints.

        `env` changes variables; fails unless the exit code is 0.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = json.dumps({"folder": str(folder), "arguments": arguments, "env": env})
        print(order, file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        out, errors = ((folder / name).read_text() for name in (".out", ".err"))
        assert code == 0, f"{' '.join(arguments)}\n{out[-2000:]}\n{errors[-3000:]}"
        return out

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        if not (child := os.fork()):
            become(**json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(folder: str, arguments: list[str], env: dict[str, Any]) -> None:
    """Run the program in this process."""
    os.chdir(folder)
    for number, (name, flags) in enumerate(
        ((os.devnull, os.O_RDONLY), (".out", os.O_WRONLY), (".err", os.O_WRONLY))
    ):
        os.dup2(os.open(name, flags | os.O_CREAT | (os.O_TRUNC if number else 0)), number)
    os.environ.update(env)
    sys.path[:1] = [folder, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
