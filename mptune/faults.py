"""What an error means for the trial that it ends, and how it is said: the same on both planes."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten

from mptune.errors import (
    DamagedCheckpoint,
    DoesNotFit,
    InputError,
    MptuneError,
    NonFiniteLoss,
    is_disk_full,
    is_out_of_memory,
)
from mptune.trial import FaultReason

OURS: Mapping[type[Exception], FaultReason] = {
    InputError: "wrong_input",
    NonFiniteLoss: "non_finite_loss",
    DoesNotFit: "out_of_memory",
    DamagedCheckpoint: "damaged_checkpoint",
}


def reason_of(error: BaseException) -> FaultReason:
    """Why a trial failed that this error has escaped from."""
    if is_disk_full(error):
        return "disk_full"
    for kind, reason in OURS.items():
        if isinstance(error, kind):
            return reason
    # torch.OutOfMemoryError by name: not everybody who asks imports torch.
    if type(error).__name__ == "OutOfMemoryError" or is_out_of_memory(error):
        return "out_of_memory"
    return "error"


def one_line(error: BaseException) -> str:
    """The error on one line: as it is if it was written for a user, else short, with its type."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, MptuneError):
        return text
    return shorten(f"{type(error).__name__}: {text}", width=300, placeholder=" ...")
