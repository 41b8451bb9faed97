"""What each of Ray's errors means for a trial: the table of faults, without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import (
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from mptune.dispatch.base import End
from mptune.dispatch.faults import GangLost, GangOverdue, end_of_trial, loss_of
from mptune.dispatch.member import MemberInfo
from mptune.errors import InputError
from mptune.paths import TrialDirectory
from mptune.trial import Failed, Stopped
from tests import fakes

WHO = "rank 1 of gang-2"
INFO = MemberInfo(pid=77, node="0123456789abcdef", address="192.0.2.7", port=1, log="worker.err")


def raised(cause: Exception) -> RayTaskError:
    return RayTaskError("run", "\x1b[36mTraceback\x1b[0m of the worker", cause)


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (raised(InputError("data.path: x does not exist")), "wrong_input",
         f"{WHO}: data.path: x does not exist"),
        (raised(OSError(28, "No space left on device")), "disk_full",
         f"{WHO}: OSError: [Errno 28] No space left on device"),
        (raised(RuntimeError("crashed")), "error", f"{WHO}: RuntimeError: crashed"),
        (RuntimeEnvSetupError("no pip"), "wrong_input",
         f"{WHO} could not get the driver's code (no pip): install it on every node and set "
         "resources.ship_code: false"),
        (RayActorError(error_msg="No module named 'mptune.dispatch'", actor_init_failed=True),
         "wrong_input",
         f"{WHO} has another version of mptune: install the same version on every node, or leave "
         "resources.ship_code on"),
        (OutOfMemoryError("killed"), "host_out_of_memory",
         f"{WHO} was killed: its node 192.0.2.7 (01234567) has no memory left"),
        (RayActorError(error_msg="first\nno such device", actor_init_failed=True), "worker_died",
         f"{WHO} could not start: no such device"),
        (RayActorError(error_msg="The actor died because its node has died."), "node_lost",
         f"{WHO} is out of reach: its node 192.0.2.7 (01234567) died"),
        (ActorUnavailableError("unreachable", b"0" * 16), "node_lost",
         f"{WHO} is out of reach: its node 192.0.2.7 (01234567) died"),
        (RayActorError(), "worker_died", f"{WHO} (pid 77) died: killed, or crashed"),
    ],
)  # fmt: skip
def test_what_an_error_means(error: RayError, reason: str, detail: str) -> None:
    lost = loss_of(error, WHO, INFO, [])
    assert (lost.reason, lost.detail) == (reason, detail)
    assert "\x1b" not in lost.traceback


def test_a_rank_that_has_not_answered_yet_has_no_pid_and_no_known_node() -> None:
    assert loss_of(RayActorError(), WHO, None, []).detail == f"{WHO} died: killed, or crashed"
    killed = loss_of(OutOfMemoryError("killed"), WHO, None, [])
    assert killed.detail == f"{WHO} was killed: its node has no memory left"


def test_the_traceback_of_a_death_has_the_ends_of_the_logs(tmp_path: Path) -> None:
    log = tmp_path / "rank-1.log"
    log.write_text("x" * 10_000 + "the last words")
    text = loss_of(RayActorError(), WHO, INFO, [tmp_path / "missing", log]).traceback
    assert f"--- the end of {log}\n" in text
    assert text.endswith("the last words")
    assert len(text) < 9000
    assert "missing" not in text


def test_a_closed_connection_may_be_the_symptom_of_another_death() -> None:
    assert loss_of(
        raised(ConnectionError("Connection reset by peer")), WHO, INFO, []
    ).may_be_symptom
    assert not loss_of(raised(RuntimeError("crashed")), WHO, INFO, []).may_be_symptom
    assert not loss_of(RayActorError(), WHO, INFO, []).may_be_symptom


SYMPTOM = Failed(number=3, reason="error", detail="connection closed")
DEATH = GangLost("worker_died", "rank 1 died", "a long text")
OVERDUE = GangOverdue("worker_died", "only rank 0 ended the trial")


@pytest.mark.parametrize(
    ("reported", "lost", "ended"),
    [
        (None, DEATH, Failed(number=3, reason="worker_died", detail="rank 1 died")),
        (SYMPTOM, DEATH, Failed(number=3, reason="worker_died", detail="rank 1 died")),
        (SYMPTOM, OVERDUE, SYMPTOM),
        (Stopped(number=3, reason="pruned", step=4), DEATH,
         Stopped(number=3, reason="pruned", step=4)),
        (Failed(number=3, reason="non_finite_loss", detail="nan"), DEATH,
         Failed(number=3, reason="non_finite_loss", detail="nan")),
    ],
)  # fmt: skip
def test_how_the_trial_of_a_lost_gang_ended(
    tmp_path: Path, reported: End | None, lost: GangLost, ended: End
) -> None:
    trial = fakes.trial(3, tmp_path)
    assert end_of_trial(trial, reported, lost) == ended
    traceback = TrialDirectory.of(trial.directory).traceback
    assert traceback.exists() == (ended != reported)
    assert not traceback.exists() or traceback.read_text() == "rank 1 died\n\na long text\n"
