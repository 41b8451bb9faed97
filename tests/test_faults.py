"""What errors mean and how they are said: the same for whoever asks, with and without torch."""

from __future__ import annotations

import errno
import sqlite3

import pytest

from mptune.errors import (
    DamagedCheckpoint,
    DoesNotFit,
    InputError,
    NonFiniteLoss,
    one_line,
    reason_of,
)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def from_a_full_disk() -> Exception:
    error = InputError("data.path: cannot be written")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InputError("data.path: nowhere"), "wrong_input"),
        (NonFiniteLoss(3, float("nan")), "non_finite_loss"),
        (DoesNotFit("bert 512x12"), "out_of_memory"),
        (DamagedCheckpoint("step3"), "damaged_checkpoint"),
        (OutOfMemoryError("CUDA"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (from_a_full_disk(), "disk_full"),
        (sqlite3.OperationalError("database or disk is full"), "disk_full"),
        (RuntimeError("[third_party/gloo/pair.cc:5] Connection closed by peer"), "connection_lost"),
        (RuntimeError("NCCL error: remote process exited or network error"), "connection_lost"),
        (OSError(errno.EADDRINUSE, "Address already in use"), "connection_lost"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "device_fault"),
        (RuntimeError("CUDA error: unspecified launch failure"), "device_fault"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), "device_fault"),
        (RuntimeError("NCCL error in: x.cpp:1, unhandled cuda error"), "device_fault"),
        (RuntimeError("CUDA error: device-side assert triggered"), "error"),
        (RuntimeError("connection"), "error"),
        (SystemExit(1), "error"),
        (ValueError("x"), "error"),
    ],
)
def test_an_error_has_a_reason(error: BaseException, reason: str) -> None:
    assert reason_of(error) == reason


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("data.path: nowhere"), "data.path: nowhere"),
        (ValueError("two\n lines"), "ValueError: two lines"),
        (ValueError(), "ValueError: no message"),
    ],
)
def test_an_error_is_said_in_one_line(error: BaseException, line: str) -> None:
    assert one_line(error) == line


def test_only_what_was_written_for_a_user_may_be_long() -> None:
    assert len(one_line(ValueError("a b " * 500))) <= 300
    assert len(one_line(DoesNotFit("a b " * 500))) > 1000
