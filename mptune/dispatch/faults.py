"""Why a gang is lost: what each of Ray's errors means for its trial, and trials that stall."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ray.exceptions import (
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from mptune.dispatch import ray_private
from mptune.dispatch.base import End, write_traceback
from mptune.dispatch.member import MemberInfo
from mptune.errors import FaultReason, one_line, reason_of
from mptune.trial import Failed, TrialSpec

LOG_TAIL_BYTES = 8000

ANSWER_TIMEOUT_S = 5.0
"""For a silent rank to report its idle time or write its stacks; for a death to be known."""

SAME_VERSION = "install the same version on every node, or leave resources.ship_code on"

NO_MPTUNE = re.compile(r"No module named 'mptune|cannot import name .* from 'mptune")

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Ray writes its errors for a terminal."""


@dataclass(eq=False)
class GangLost(Exception):
    """A gang cannot continue. `log` is the long form of `detail`, for traceback.txt."""

    reason: FaultReason
    detail: str
    traceback: str = ""
    may_be_symptom: bool = False
    """Whether a rank may only have seen the death of another one: a closed connection."""


class GangOverdue(GangLost):
    """No process died, but an answer did not come in time."""


def loss_of(error: RayError, who: str, info: MemberInfo | None, logs: Iterable[Path]) -> GangLost:
    """What Ray's error about one rank means.

    Args:
        who: the rank and its gang, for the message.
        info: where the rank runs; None if it has not answered yet.
        logs: files with its output, of which the ends become part of the traceback.
    """
    text = COLOURS.sub("", str(error))
    if isinstance(error, RayTaskError):
        detail = f"{who}: {one_line(error.cause)}"
        return GangLost(reason_of(error.cause), detail, text, "onnection" in str(error.cause))
    if isinstance(error, RuntimeEnvSetupError):
        detail = (
            f"{who} could not get the driver's code ({_last_line(error)}): install it on every "
            "node and set resources.ship_code: false"
        )
        return GangLost("wrong_input", detail, text)
    if NO_MPTUNE.search(text):
        detail = f"{who} has another version of mptune: {SAME_VERSION}"
        return GangLost("wrong_input", detail, text)
    for log in logs:
        if log.is_file():
            text += f"\n\n--- the end of {log}\n{_tail(log)}"
    node = f"its node {info.address} ({info.node[:8]})" if info else "its node"
    if isinstance(error, OutOfMemoryError):
        detail = f"{who} was killed: {node} has no memory left"
        return GangLost("host_out_of_memory", detail, text)
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return GangLost("worker_died", f"{who} could not start: {_last_line(error)}", text)
    if ray_private.is_node_death(error):
        return GangLost("node_lost", f"{who} is out of reach: {node} died", text)
    pid = f" (pid {info.pid})" if info else ""
    return GangLost("worker_died", f"{who}{pid} died: killed, or crashed", text)


def end_of_trial(trial: TrialSpec, reported: End | None, lost: GangLost) -> End:
    """How the trial of a lost gang ended.

    An end that rank 0 had `reported` before counts. The exception is an error of rank 0 that may
    only be its view of another rank's death: then the death is the reason.
    """
    is_symptom = isinstance(reported, Failed) and reported.reason in ("error", "connection_lost")
    if reported and (not is_symptom or isinstance(lost, GangOverdue)):
        return reported
    write_traceback(trial, f"{lost.detail}\n\n{lost.traceback}\n")
    return Failed(number=trial.number, reason=lost.reason, detail=lost.detail)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError as error:  # another user's file, or removed meanwhile
        return f"({error.strerror})\n"


# --- stalls; times are seconds from any origin, given by the caller ------------------------------


@dataclass
class StallWatch:
    """Decides when a silent trial is stalled. Rank 0 is asked first: long steps are no stall."""

    _heard_at: float
    _asked: bool = False

    def heard(self, at: float) -> None:
        """Rank 0 sent an event, or reported its last step, at this time."""
        self._heard_at, self._asked = at, False

    def check(self, limit_s: float, now: float) -> Literal["wait", "ask", "stalled"]:
        """What to do now: wait, ask rank 0 for its idle time, or give the trial up."""
        silent_s = now - self._heard_at
        if silent_s > limit_s + ANSWER_TIMEOUT_S:
            return "stalled"
        if silent_s > limit_s and not self._asked:
            self._asked = True
            return "ask"
        return "wait"
