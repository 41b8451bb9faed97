"""Which cluster the address of a Ray Client server stands for.

Ray Client keeps actors only as long as its connection, and its process has no node of its own:
gangs cannot live by it. So its server is asked for the head, and the search attaches to that.
"""

from __future__ import annotations

import subprocess
import sys

from mptune.errors import DispatchError

SCHEME = "ray://"

ANSWER_TIMEOUT_S = 90.0
"""Ray starts a server for every client, and a worker for the question."""

ASK = """
import sys, ray

ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=0)
def head():
    return ray.get_runtime_context().gcs_address

print("head", ray.get(head.remote()))
"""


def head_of(address: str) -> str:
    """HOST:PORT of the head whose client server is at `address`, ray://HOST:PORT.

    Asked in a process of its own, since Ray's client mode changes all of Ray in its process.

    Raises:
        DispatchError: nobody there answers, or not in time.
    """
    command = [sys.executable, "-c", ASK, address]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise DispatchError(
            f"--address: {address} did not answer in {ANSWER_TIMEOUT_S:.0f} s"
        ) from None
    told = [line.split() for line in done.stdout.splitlines()]
    found = next((words[1] for words in told if words[:1] == ["head"]), None)
    if found is None:
        why = (done.stderr.strip() or "no answer").splitlines()[-1]
        raise DispatchError(f"--address: {address} does not answer: {why}")
    return found
