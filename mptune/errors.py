"""The exceptions of mptune. Every message is one line with the problem and the fix."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Literal

FaultReason = Literal[
    "non_finite_loss",
    "non_finite_score",
    "out_of_memory",
    "worker_died",
    "node_lost",
    "connection_lost",
    "device_fault",
    "host_out_of_memory",
    "stalled",
    "disk_full",
    "damaged_checkpoint",
    "wrong_input",
    "error",
]


class MptuneError(Exception):
    """Base of all errors that mptune raises on purpose; `exit_code` is the process's."""

    exit_code = 3


class InputError(MptuneError):
    """The user's input is wrong. Carries one line per problem."""

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class RunInUse(InputError):
    """Another driver holds the run; if that one has just been lost, trying again helps."""

    exit_code = 3


class NoResultError(MptuneError):
    """The search ended without a usable result."""


class InterruptedSearch(MptuneError):
    """Stopped on request; the same command resumes it."""

    exit_code = 130


class LeaseLost(MptuneError):
    """Another driver has taken over the study; this driver must stop writing to it."""


class DispatchError(MptuneError):
    """Ray or a gang cannot be started, or was lost and cannot be replaced."""


class DiskFull(MptuneError):
    """A disk of the search is full: it can go on once there is room again."""


class NonFiniteLoss(MptuneError):
    """A training loss was NaN or infinite; raised before the optimizer step on every rank."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"training loss is {loss} at step {step}; no update was made from it")
        self.step = step


class DoesNotFit(MptuneError):
    """A model does not fit into the available memory; recorded as out of memory."""


class DamagedCheckpoint(MptuneError):
    """A checkpoint cannot be read; it is removed, so that the trial starts again."""


@contextmanager
def input_errors(where: str = "", *kinds: type[Exception]) -> Iterator[None]:
    """In place of errors of these kinds (default ValueError, OSError), raise an `InputError`.

    Its message is that of the error after `where`.
    """
    caught = kinds or (ValueError, OSError)
    try:
        yield
    except caught as error:
        raise InputError(f"{where}{error}") from error


FULL = re.compile("No space left|database or disk is full")
"""The words of the system, and of SQLite."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means that the disk is full."""
    while error is not None:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


CONNECTION_LOST = re.compile(
    r"gloo.*(connection|broken pipe)|nccl.*(remote process|network error|socket)"
    r"|address already in use",
    re.I | re.S,
)
"""How torch's backends say that a rank cannot be reached, or that its port was taken meanwhile."""

DEVICE_FAULT = re.compile(
    r"uncorrectable|hardware stack error|launch timed out|busy or unavailable|no CUDA-capable"
    r"|CUDA error: (unspecified launch failure|unknown error)"
    r"|CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)|CUDNN_STATUS_NOT_INITIALIZED"
    r"|nccl.*(unhandled cuda error|unhandled system error|internal error)",
    re.I | re.S,
)
"""How CUDA and its libraries say that a GPU is broken, has no memory left for them, or is taken."""


def plural(count: float, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "trial"), plural(2000, "trial"), plural(3, "category")
    ('1 trial', '2,000 trials', '3 categories')
    """
    ending = "" if count == 1 else "s"
    if ending and noun.endswith("y") and noun[-2] not in "aeiou":
        noun, ending = noun[:-1], "ies"
    return f"{count:,.12g} {noun}{ending}"


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """`"; did you mean 'x'?"` for the nearest known name, or an empty string.

    >>> did_you_mean("unifrom", ["uniform", "beta"])
    "; did you mean 'uniform'?"
    """
    close = get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


REASONS: Mapping[type[Exception], FaultReason] = {
    InputError: "wrong_input",
    NonFiniteLoss: "non_finite_loss",
    DoesNotFit: "out_of_memory",
    DamagedCheckpoint: "damaged_checkpoint",
}


def reason_of(error: BaseException) -> FaultReason:
    """The reason for the failure of a trial that raised this error."""
    if is_disk_full(error):
        return "disk_full"
    for kind, reason in REASONS.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, RuntimeError | OSError) and CONNECTION_LOST.search(str(error)):
        return "connection_lost"
    if isinstance(error, RuntimeError) and DEVICE_FAULT.search(str(error)):
        return "device_fault"
    # torch.OutOfMemoryError by name, because the control plane does not import torch, whose CPU
    # allocator has no class for it.
    by_name = type(error).__name__ == "OutOfMemoryError"
    if by_name or isinstance(error, MemoryError) or "CPUAllocator: can't allocate" in str(error):
        return "out_of_memory"
    return "error"


def message_of(error: BaseException) -> str:
    """The error's message on one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def cut_line(text: str, most: int = 300) -> str:
    """The text on one line of at most this many characters, the dots of a cut included."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def one_line(error: BaseException) -> str:
    """The message of one of mptune's errors; type and shortened message of another."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, MptuneError):
        return text
    return cut_line(f"{type(error).__name__}: {text}")
