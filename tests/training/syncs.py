"""Finds the places where the host would have to wait for a GPU, on a machine without one."""

from __future__ import annotations

import traceback

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DATA = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Syncs(TorchDispatchMode):
    """Records every operation whose result, or its shape, the host reads from the values.

    `.item()`, `if tensor`, `nonzero`, an index of booleans and the like: on a GPU each of them
    makes the host wait until all that was asked for is computed.
    """

    def __init__(self):
        super().__init__()
        self.places: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if DATA & set(func.tags) and not _indexes_by_numbers(func, args):
            self.places.add(f"{_caller()}: {func}")
        return func(*args, **(kwargs or {}))


def _indexes_by_numbers(func, args):
    if func is not torch.ops.aten.index.Tensor:
        return False
    return all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in args[1])


def _caller():
    """The innermost place that is not torch's own."""
    frames = traceback.extract_stack()
    return next(
        f"{frame.filename.rpartition('site-packages/')[2]}:{frame.name}"
        for frame in reversed(frames)
        if "/torch/" not in frame.filename and not frame.filename.endswith("syncs.py")
    )
