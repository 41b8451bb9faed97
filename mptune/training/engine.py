"""DeepSpeed: its process group and its engine. The only file that imports it."""

from __future__ import annotations

import contextlib
import gc
import inspect
import io
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mptune.spec.deepspeed import configuration
from mptune.spec.schema import Training
from mptune.training import allocator, baton
from mptune.training.ranks import Ranks
from mptune.training.sharedmean import SharedMean

COLLECTIVE_TIMEOUT = timedelta(hours=12)
"""Ranks wait for rank 0 at a rung as long as the driver takes; lost peers are noticed at once."""

WAYS_TO_AVERAGE = {
    "communication_data_type",
    "gradient_allreduce_op",
    "gradient_predivide_factor",
    "managed_gradient_accumulation",
    "prescale_gradients",
}
"""Keys of the user's section that say how or when DeepSpeed is to average gradients."""


def import_deepspeed() -> None:
    """For this kind of device, and without its banner."""
    if not torch.cuda.device_count():
        # Named, it is taken without a warning that there is no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    baton.install()
    with _quiet():
        import deepspeed  # noqa: F401


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
    import_deepspeed()
    if not gpus:
        allocator.keep_freed_memory()
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
def engine(
    module: nn.Module,
    training: Training,
    ranks: Ranks,
    width: int | None = None,
    *,
    universal: bool = False,
) -> Iterator[Any]:
    """A DeepSpeed engine that trains `module`; `reclaim` gives back its memory afterwards.

    Args:
        module: the model; a section `deepspeed.activation_checkpointing` asks for its
            `checkpoint_activations`.
        training: the spec's section.
        ranks: this process's place.
        width: channels of the model, for the optimizer's width rule.
        universal: it will load a checkpoint in the universal format.
    """
    import deepspeed

    config = configuration(training, ranks.world_size, universal=universal)
    if "activation_checkpointing" in config:
        module.checkpoint_activations()  # type: ignore[operator]
    if training.compile:
        module.compile()
    with _quiet():
        made = deepspeed.initialize(
            model=module.to(ranks.device),
            optimizer=None if "optimizer" in config else _adamw(module, training, width),
            config=config,
            dist_init_required=False,
        )[0]
    if not zero_stage(made):
        _average_apart(made, training, ranks)
    try:
        yield made
    finally:
        made.destroy()
        del made
        if training.compile:
            # What is compiled is kept by the place in the code, and only so much of it.
            torch.compiler.reset()


def _average_apart(made: Any, training: Training, ranks: Ranks) -> None:
    """Leave the average of gradients to `average_gradients`, unless the user's section has its way.

    DeepSpeed would copy all of them, sum them over the ranks, be it one, and copy them back.
    """
    if ranks.world_size > 1 and not WAYS_TO_AVERAGE.isdisjoint(training.deepspeed):
        return
    made.enable_backward_allreduce = False
    if ranks.world_size > 1 and ranks.device.type == "cpu":
        otherwise = made.allreduce_no_retain
        made.allreduce_no_retain = partial(_average, SharedMean(ranks), otherwise)


def _average(
    shared: SharedMean, otherwise: Callable[..., None], bucket: Sequence[torch.Tensor], **how: Any
) -> None:
    """Average a bucket of gradients in shared memory, or else as DeepSpeed would."""
    if not shared.average(bucket):
        otherwise(bucket, **how)


def reclaim() -> None:
    """Give back what the last trial held, once nobody holds its engine any more."""
    _forget_zero_3()
    # DeepSpeed's engines are knots of reference cycles, which would wait for the collector.
    gc.collect()
    if not gc.get_freeze_count():
        # The libraries' half a million objects are there to stay: later collections skip them.
        gc.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    else:
        allocator.give_back_freed_memory()


def _forget_zero_3() -> None:
    """Empty what outlives DeepSpeed's ZeRO 3 engines and holds on to all of their weights."""
    from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

    for cache in _caches_of(partitioned_param_coordinator.PartitionedParameterCoordinator):
        cache.cache_clear()
    parameter_offload.FWD_MODULE_STACK.clear()


def _caches_of(kind: type) -> Iterator[Any]:
    """Methods that `functools.lru_cache` wraps, themselves or below one more decorator."""
    for method in filter(inspect.isroutine, vars(kind).values()):
        below = getattr(method, "__closure__", None) or ()
        around = (method, *(cell.cell_contents for cell in below))
        yield from (one for one in around if hasattr(one, "cache_clear"))


def device_bytes() -> int:
    """What this process holds of its GPU, used or not; 0 without one."""
    return torch.cuda.memory_reserved() if torch.cuda.is_available() else 0


def _adamw(module: nn.Module, training: Training, width: int | None) -> torch.optim.Optimizer:
    """AdamW; biases and norms are not decayed."""
    given = training.optimizer
    return torch.optim.AdamW(
        parameter_groups(module, training, width),
        lr=given.learning_rate,
        betas=given.betas,
        eps=given.eps,
        weight_decay=given.weight_decay,
        # One kernel for all parameters: on small models the update would cost a tenth of a step.
        fused=True,
    )


def parameter_groups(
    module: nn.Module, training: Training, width: int | None
) -> list[dict[str, Any]]:
    """The optimizer's groups: by weight decay, and by the learning rate of the width rule.

    `mup` divides the rate of matrices inside the model by width / base_width; embeddings (with
    the decoder that shares them), biases and norms keep theirs (Yang et al. 2022, arXiv
    2203.03466, table 8, Adam).
    """
    given = training.optimizer
    ratio = 1.0 if width is None else given.base_width / width
    shared = given.learning_rate * (ratio**0.5 if given.width_rule == "inverse_sqrt" else 1.0)
    inner = given.learning_rate * ratio if given.width_rule == "mup" else shared
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    parameters = list(module.parameters())
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    if given.width_rule == "none":
        return [{"params": matrices}, vectors]
    return [
        {"params": [p for p in matrices if id(p) not in tables], "lr": inner},
        {"params": [p for p in matrices if id(p) in tables], "lr": shared},
        {**vectors, "lr": shared},
    ]


def waits_going_backward(made: Any) -> bool:
    """Whether gradients are averaged in the backward pass, where each rank then waits for all."""
    return bool(made.enable_backward_allreduce)


def average_gradients(made: Any, ranks: Ranks) -> None:
    """Average over the ranks what the backward passes of a step have left apart, if they have."""
    if ranks.world_size > 1 and not waits_going_backward(made):
        made.allreduce_gradients()


def norm_before_step(made: Any) -> bool:
    """Whether the gradients are whole on every rank, and gone after the step."""
    return not (zero_stage(made) or made.bfloat16_enabled())


def gradient_norm(made: Any) -> torch.Tensor | None:
    """Global norm of the gradients before clipping; None where DeepSpeed does not keep it."""
    if not norm_before_step(made):
        norm = made.get_global_grad_norm()
        return None if norm is None else torch.as_tensor(norm)
    gradients = [p.grad for p in made.module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None


PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "V100": 125e12}
"""Dense half-precision FLOPs per second of GPUs, by a word of their name; makers' data sheets."""


def utilisation(flops_per_s: float, ranks: Ranks) -> float | None:
    """Model FLOPs per second over the peak of all ranks' GPUs; None where that is not known."""
    if ranks.device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(ranks.device)
    peaks = [peak for word, peak in PEAK_FLOPS.items() if word in name]
    return flops_per_s / (peaks[0] * ranks.world_size) if peaks else None


@contextlib.contextmanager
def whole_weights(made: Any) -> Iterator[None]:
    """Within it, rank 0's module has all of its weights, also under ZeRO 3."""
    if zero_stage(made) < 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(made.module.parameters()), modifier_rank=None):
        yield


def zero_stage(made: Any) -> int:
    """The ZeRO stage that the engine runs with, the user's section included."""
    return int(made.zero_optimization_stage())


def load(made: Any, folder: Path, tag: str) -> dict[str, Any]:
    """Load a checkpoint; returns the state that was saved with it."""
    asked = [{k: v for k, v in g.items() if k != "params"} for g in made.optimizer.param_groups]
    with _quiet():
        _, client = made.load_checkpoint(str(folder), tag=tag)
    if made.load_universal_checkpoint():
        _set_apart(made, asked)
    state: dict[str, Any] = client
    return state


def _set_apart(made: Any, asked: Sequence[Mapping[str, Any]]) -> None:
    """Part what DeepSpeed gives to all parameter groups from the first one of a universal format.

    Those are the hyperparameters, which stay those of the spec, and the count of steps: shared, it
    would be raised once for each group.
    """
    optimizer = made.optimizer
    if made.lr_scheduler is None:
        for group, values in zip(optimizer.param_groups, asked, strict=True):
            group.update(values, peak_lr=values["lr"])
    for state in getattr(optimizer, "optimizer", optimizer).state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def to_universal(folder: Path, target: Path) -> None:
    """Convert a checkpoint of ZeRO shards so that any number of ranks can load it."""
    from deepspeed.checkpoint import ds_to_universal

    how = Namespace(
        input_folder=str(folder),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with _quiet(), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(how)


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
