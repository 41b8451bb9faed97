"""The DeepSpeed engine and its process group."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mptune.paths import release_freed_memory
from mptune.spec.deepspeed import configuration, in_half_precision
from mptune.spec.schema import Training
from mptune.training import deepspeed_private as private
from mptune.training.ranks import Ranks

COLLECTIVE_TIMEOUT = timedelta(hours=12)
"""Ranks wait for rank 0 at a rung as long as the driver takes; lost peers are noticed at once."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""

PEAK_FLOPS = {
    "GB200": (2500e12, 1250e12),
    "B200": (2250e12, 1125e12),
    "GH200": (989e12, 494e12),
    "H200": (989e12, 494e12),
    "H100 PCIe": (756e12, 378e12),
    "H100": (989e12, 494e12),
    "A100": (312e12, 156e12),
    "L40S": (362e12, 183e12),
    "MI300X": (1307e12, 653e12),
    "A10G": (70e12, 35e12),
    "A10": (125e12, 62.5e12),
    "L4": (121e12, 60e12),
    "V100": (125e12, 15.7e12),
}
"""Dense FLOPs per second of GPUs, by a word of their name, the longest one first: in half
precision, and in single precision as `join` sets it (TF32 where there is any); makers' data
sheets."""


def import_deepspeed() -> None:
    """Import DeepSpeed for this kind of device, without its banner."""
    if not torch.cuda.device_count():
        # If it is named, DeepSpeed does not warn that there is no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with private.quiet():
        private.compile_no_collectives()


def join(rank: int, world_size: int, local_rank: int, master_addr: str, master_port: int) -> Ranks:
    """Join the process group, which is kept until `leave`; blocks until all ranks are there."""
    gpus = torch.cuda.device_count()
    local_rank = local_rank % gpus if gpus else local_rank
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(local_rank),
        MASTER_ADDR=master_addr,
        MASTER_PORT=str(master_port),
        # What a user's `deepspeed` section needs compiled is, with the ninja of this environment.
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    )
    import_deepspeed()
    if gpus:
        torch.cuda.set_device(local_rank)
        # TF32 in what is left in single precision: 7 times the speed of products on an H100.
        torch.set_float32_matmul_precision("high")
    else:
        keep_freed_memory()
    device = torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    backend = "nccl" if gpus else "gloo"
    if not torch.distributed.is_initialized():  # by whoever else uses torch in this process
        torch.distributed.init_process_group(
            backend,
            store=_store(rank, world_size, master_addr, master_port),
            rank=rank,
            world_size=world_size,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=device if gpus and world_size > 1 else None,
        )
    with private.quiet():
        import deepspeed

        deepspeed.init_distributed(
            dist_backend=backend,
            auto_mpi_discovery=False,
            timeout=COLLECTIVE_TIMEOUT,
            verbose=False,
        )
    return Ranks(rank, world_size, device)


def _store(rank: int, world_size: int, address: str, port: int) -> Any:
    """Where the ranks meet. Torch's own would listen on every interface of rank 0's machine."""
    distributed: Any = torch.distributed
    listens = None
    if rank == 0:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listens = socket.create_server((address, port), family=family).detach()
    return distributed.TCPStore(
        address,
        port,
        world_size,
        is_master=rank == 0,
        timeout=COLLECTIVE_TIMEOUT,
        master_listen_fd=listens,
    )


def leave() -> None:
    """Close the process group, if there is one."""
    if torch.distributed.is_initialized():
        import deepspeed

        # Torch alone would leave the groups that DeepSpeed has made of it.
        deepspeed.comm.destroy_process_group()


@contextlib.contextmanager
def engine(
    module: nn.Module,
    training: Training,
    ranks: Ranks,
    width: int | None = None,
    *,
    universal: bool = False,
) -> Iterator[Any]:
    """A DeepSpeed engine that trains `module`; `reclaim` frees its memory afterwards.

    Args:
        module: the model; a section `deepspeed.activation_checkpointing` needs its
            `checkpoint_activations`.
        training: the spec's section.
        ranks: this process's place.
        width: channels of the model, for the optimizer's width rule.
        universal: the engine will load a checkpoint in the universal format.
    """
    import deepspeed

    private.store_stages_by_value()
    config = configuration(training, ranks.world_size, universal=universal)
    if "activation_checkpointing" in config:
        module.checkpoint_activations()  # type: ignore[operator]
    if training.compile:
        module.compile()
    module = module.to(ranks.device)
    # cuDNN makes a new plan for every number of rows, which differs in each packed batch.
    torch.backends.cuda.enable_cudnn_sdp(not training.pack)
    adamw, optimizer = training.optimizer, None
    if "optimizer" not in config:
        optimizer = torch.optim.AdamW(
            parameter_groups(module, training, width),
            lr=adamw.learning_rate,
            betas=adamw.betas,
            eps=adamw.eps,
            weight_decay=adamw.weight_decay,
            # One kernel for all parameters; else a tenth of a small model's step is the update.
            fused=True,
        )
    with private.quiet():
        made = deepspeed.initialize(
            model=module, optimizer=optimizer, config=config, dist_init_required=False
        )[0]
    if not made.zero_optimization_stage():
        private.average_after_backward(made)
        private.clip_without_waiting(made)
    try:
        yield made
    finally:
        made.destroy()
        del made
        if training.compile:
            # torch keeps compiled code by its place in the source, up to a limit per place.
            torch.compiler.reset()


def parameter_groups(
    module: nn.Module, training: Training, width: int | None
) -> list[dict[str, Any]]:
    """The optimizer's groups: by weight decay, and by the learning rate of the width rule.

    Weights that are not trained are in none. Biases and norms are not decayed. `mup` divides the
    rate of matrices inside the model by width / base_width; embeddings (with the decoder that
    shares them), biases and norms keep theirs (Yang et al. 2022, arXiv 2203.03466, table 8, Adam).
    """
    given = training.optimizer
    ratio = 1.0 if width is None else given.base_width / width
    shared = given.learning_rate * (ratio**0.5 if given.width_rule == "inverse_sqrt" else 1.0)
    inner = given.learning_rate * ratio if given.width_rule == "mup" else shared
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    groups: list[dict[str, Any]] = [{"params": matrices}, vectors]
    if given.width_rule != "none":
        groups = [
            {"params": [p for p in matrices if id(p) not in tables], "lr": inner},
            {"params": [p for p in matrices if id(p) in tables], "lr": shared},
            {**vectors, "lr": shared},
        ]
    return [group for group in groups if group["params"]]


def set_learning_rate(made: Any, factor: float) -> float:
    """Set peak × `factor` in every parameter group; return the first group's learning rate.

    Does not set it if the user's section has a scheduler.
    """
    groups = made.optimizer.param_groups
    if made.lr_scheduler is None:
        for group in groups:
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * factor
    return float(groups[0]["lr"])


def update(made: Any, ranks: Ranks, *, want_norm: bool) -> torch.Tensor | None:
    """Update the weights from the accumulated gradients.

    Returns:
        The global norm of the gradients before clipping, if wanted and known.
    """
    private.average_gradients(made, ranks)
    norm = None
    # Without ZeRO and clipping DeepSpeed knows no norm, and the gradients are gone after the step.
    whole = not (made.zero_optimization_stage() or made.bfloat16_enabled())
    unknown = want_norm and whole and not made.gradient_clipping()
    if unknown:
        gradients = [p.grad for p in made.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else None
    made.step()
    if want_norm and not unknown:
        known = made.get_global_grad_norm()
        norm = None if known is None else torch.as_tensor(known)
    return norm


def load(made: Any, folder: Path, tag: str) -> dict[str, Any]:
    """Load a checkpoint; returns the state that was saved with it."""
    groups = made.optimizer.param_groups
    hyperparameters = [{k: v for k, v in g.items() if k != "params"} for g in groups]
    with private.quiet(), private.weights_only():
        _, client = made.load_checkpoint(str(folder), tag=tag)
    if made.load_universal_checkpoint():
        private.separate_groups(made, hyperparameters)
    return client


@contextlib.contextmanager
def whole_weights(made: Any) -> Iterator[None]:
    """Inside it, rank 0's module has all of its weights, also under ZeRO 3."""
    if made.zero_optimization_stage() < 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(made.module.parameters()), modifier_rank=None):
        yield


def reclaim() -> None:
    """Free the memory of the last trial, once nothing refers to its engine any more."""
    private.forget_engines()
    # DeepSpeed's engines are in reference cycles, which only the collector frees.
    gc.collect()
    if not gc.get_freeze_count():
        # The libraries' half a million objects stay for ever: later collections skip them.
        gc.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    else:
        release_freed_memory()


def keep_freed_memory() -> None:
    """Let this process use freed memory again, in blocks of any size.

    A training asks for the same large tensors in every step. glibc maps each block of more than
    32 MiB afresh, and the kernel then clears it page by page: with a vocabulary of 8192 that was up
    to a third of a step. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def device_bytes() -> int:
    """GPU memory that this process holds, used or not; 0 without a GPU."""
    return torch.cuda.memory_reserved() if torch.cuda.is_available() else 0


def peak_flops(name: str, *, half: bool) -> float | None:
    """Dense FLOPs per second of a GPU with this name; None if they are not known."""
    peaks = [peak for part, peak in PEAK_FLOPS.items() if re.search(rf"\b{part}\b", name)]
    return peaks[0][not half] if peaks else None


def utilisation(flops_per_s: float, ranks: Ranks, training: Training) -> float | None:
    """Model FLOPs per second over the peak of all ranks' GPUs; None if the peak is not known.

    The caller's FLOPs are of whole rows: positions that are padding count as work.
    """
    if ranks.device.type != "cuda":
        return None
    half = in_half_precision(configuration(training, ranks.world_size))
    peak = peak_flops(torch.cuda.get_device_name(ranks.device), half=half)
    return None if peak is None else flops_per_s / (peak * ranks.world_size)
