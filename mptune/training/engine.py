"""DeepSpeed: its configuration, its process group, its engine. The only file that imports it."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mptune.spec import Training
from mptune.training.batches import micro_batch_size
from mptune.training.ranks import Ranks

COLLECTIVE_TIMEOUT = timedelta(hours=12)
"""Ranks wait for rank 0 at a rung as long as the driver takes; lost peers are noticed at once."""


def configuration(training: Training, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration: ours, and the user's `deepspeed` section over it.

    Raises:
        InputError: the batch cannot be dealt out to the workers.
    """
    micro = micro_batch_size(training, world_size)
    ours: dict[str, Any] = {
        "train_batch_size": training.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": training.batch_size // (micro * world_size),
        "gradient_clipping": training.gradient_clipping,
        "zero_optimization": {"stage": training.zero_stage},
        "bf16": {"enabled": training.precision == "bf16"},
        # The loop reports progress; DeepSpeed's own report would go to the user's terminal.
        "steps_per_print": sys.maxsize,
    }
    return _merged(ours, training.deepspeed)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins; where both hold a mapping, key by key."""
    result = dict(base)
    for key, value in over.items():
        mine = result.get(key)
        both = isinstance(mine, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(mine, value) if both else value  # type: ignore[arg-type]
    return result


def join(rank: int, world_size: int, local_rank: int, master_addr: str, master_port: int) -> Ranks:
    """Meet the other ranks; the process group is kept until `leave`."""
    gpus = torch.cuda.device_count()
    local_rank = local_rank % gpus if gpus else local_rank
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(local_rank),
        MASTER_ADDR=master_addr,
        MASTER_PORT=str(master_port),
        # DeepSpeed compiles its shared-memory collectives with the ninja of this environment.
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    )
    if not gpus:
        # Named, it is taken without a warning that there is no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with _quiet():
        import deepspeed

        deepspeed.init_distributed(
            dist_backend="nccl" if gpus else "gloo",
            auto_mpi_discovery=False,
            timeout=COLLECTIVE_TIMEOUT,
            verbose=False,
        )
    if not gpus:
        return Ranks(rank, world_size)
    torch.cuda.set_device(local_rank)
    return Ranks(rank, world_size, torch.device("cuda", local_rank))


def leave() -> None:
    """Close the process group, if there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def engine(module: nn.Module, training: Training, ranks: Ranks) -> Iterator[Any]:
    """A DeepSpeed engine that trains `module`; its memory is free again afterwards."""
    import deepspeed

    config = configuration(training, ranks.world_size)
    with _quiet():
        made = deepspeed.initialize(
            model=module.to(ranks.device),
            optimizer=None if "optimizer" in config else _adamw(module, training),
            config=config,
            dist_init_required=False,
        )[0]
    try:
        yield made
    finally:
        made.destroy()
        del made
        if ranks.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def _adamw(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    """AdamW; biases and norms are not decayed."""
    parameters = list(module.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    given = training.optimizer
    return torch.optim.AdamW(
        groups,
        lr=given.learning_rate,
        betas=given.betas,
        eps=given.eps,
        weight_decay=given.weight_decay,
        # One kernel for all parameters: on small models the update would cost a tenth of a step.
        fused=True,
    )


def zero_stage(made: Any) -> int:
    """The ZeRO stage that the engine runs with, the user's section included."""
    return int(made.zero_optimization_stage())


def set_learning_rate(made: Any, factor: float) -> None:
    """Peak times factor in every parameter group, unless the user's section has a scheduler."""
    if made.lr_scheduler is not None:
        return
    for group in made.optimizer.param_groups:
        group["lr"] = group.setdefault("peak_lr", group["lr"]) * factor


def learning_rate(made: Any) -> float:
    return float(made.optimizer.param_groups[0]["lr"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed greets on stdout and logs at INFO; neither tells a user anything."""
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        yield
