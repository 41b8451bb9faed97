"""The private parts of DeepSpeed that are used or replaced here.

tests/training/test_deepspeed_private.py checks each of them against the installed version.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mptune.training.ranks import Ranks


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the banner that DeepSpeed prints, and what it logs at INFO."""
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def compile_no_collectives() -> None:
    """Import DeepSpeed, and keep it from compiling collectives that only inference on CPUs uses.

    To compile takes a C++ compiler and about a minute. DeepSpeed's autotuner imports MLflow where
    it is installed, which takes two seconds; nothing here uses it.
    """
    hidden: dict[str, Any] = dict.fromkeys({"mlflow"} - sys.modules.keys())
    sys.modules.update(hidden)
    try:
        import deepspeed
    finally:
        for name in hidden:
            del sys.modules[name]
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False


def average_after_backward(engine: Any) -> None:
    """Move the average of gradients from the backward pass to `average_gradients`.

    DeepSpeed would copy all gradients, sum them even over one rank, and copy them back.
    """
    engine.enable_backward_allreduce = False


def clip_without_waiting(engine: Any) -> None:
    """Clip gradients of single precision by kernels for all parameters at once.

    DeepSpeed launches several kernels for each parameter and reads the norm back. Its own method is
    called only where gradients are whole on every rank.
    """

    def clip() -> None:
        parameters = engine.module.parameters()
        limit = engine.gradient_clipping()
        engine._global_grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit)

    engine.clip_fp32_gradients = clip


def averages_in_backward(engine: Any) -> bool:
    """Whether gradients are averaged in the backward pass, where each rank waits for all others."""
    return bool(engine.enable_backward_allreduce)


def average_gradients(engine: Any, ranks: Ranks) -> None:
    """Average the gradients over the ranks, unless the backward pass has done it."""
    if ranks.world_size > 1 and not averages_in_backward(engine):
        engine.allreduce_gradients()


def forget_engines() -> None:
    """Clear what modules of DeepSpeed keep of destroyed engines.

    ZeRO 3 keeps their weights in caches. An engine with `torch_autocast` sets a flag by which
    ZeRO chooses data types and a scaler of gradients in all later engines of the process.
    """
    from deepspeed.runtime import torch_autocast
    from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

    torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
    for cache in lru_caches(partitioned_param_coordinator.PartitionedParameterCoordinator):
        cache.cache_clear()
    parameter_offload.FWD_MODULE_STACK.clear()


def lru_caches(kind: type) -> Iterator[Any]:
    """Methods of a class that `functools.lru_cache` wraps, also below one more decorator."""
    for method in filter(inspect.isroutine, vars(kind).values()):
        cells = getattr(method, "__closure__", None) or ()
        wrapped = (method, *(cell.cell_contents for cell in cells))
        yield from (function for function in wrapped if hasattr(function, "cache_clear"))


def store_stages_by_value() -> None:
    """Let checkpoints have ZeRO's stage as a class and a number.

    Python before 3.11.4 stores an enum as a call of `getattr`, which `weights_only` refuses.
    """
    from deepspeed.runtime.zero.config import ZeroStageEnum

    def reduced(stage: Any, _protocol: Any) -> tuple[type, tuple[int]]:
        return ZeroStageEnum, (stage.value,)

    ZeroStageEnum.__reduce_ex__ = reduced


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Inside it torch reads tensors and plain values from files, which then cannot run code.

    DeepSpeed asks for everything that was pickled. A user whose `deepspeed` section makes other
    objects can have that with torch's own variable.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    if "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in os.environ:
        yield
        return
    kept: list[Any] = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals(kept):
            yield
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]


def universal_arguments(folder: Path, target: Path) -> Namespace:
    """Arguments of DeepSpeed's converter, which is made as a script."""
    return Namespace(
        input_folder=str(folder),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )


def to_universal(folder: Path, target: Path) -> None:
    """Convert a checkpoint of ZeRO shards so that any number of ranks can load it."""
    from deepspeed.checkpoint import ds_to_universal

    with quiet(), weights_only(), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(universal_arguments(folder, target))


def separate_groups(engine: Any, hyperparameters: Sequence[Mapping[str, Any]]) -> None:
    """Undo what loading a universal checkpoint does to the parameter groups.

    DeepSpeed gives all groups the hyperparameters of the first one; those of the spec are put
    back. It also gives all parameters the same step counter, which would then be raised once per
    group, and leaves it on the CPU, where the fused optimizer of a GPU cannot read it.
    """
    optimizer = engine.optimizer
    if engine.lr_scheduler is None:
        for group, values in zip(optimizer.param_groups, hyperparameters, strict=True):
            group.update(values, peak_lr=values["lr"])
    for parameter, state in getattr(optimizer, "optimizer", optimizer).state.items():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone().to(parameter.device)
