"""DeepSpeed's configuration, made without importing DeepSpeed: planning reads it, too."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from mptune.errors import InputError, plural
from mptune.spec.schema import Training


def configuration(
    training: Training, world_size: int, *, universal: bool = False
) -> dict[str, Any]:
    """DeepSpeed's configuration: ours, and the user's `deepspeed` section over it.

    Args:
        training: the spec's section.
        world_size: ranks of the gang.
        universal: the checkpoint to be loaded is in the universal format.

    Raises:
        InputError: the batch cannot be divided among the workers.
    """
    micro = micro_batch_size(training, world_size)
    ours: dict[str, Any] = {
        "train_batch_size": training.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": training.batch_size // (micro * world_size),
        "gradient_clipping": training.gradient_clipping,
        "zero_optimization": {"stage": training.zero_stage},
        # The loop reports progress; DeepSpeed's own report would go to the user's terminal.
        "steps_per_print": sys.maxsize,
    }
    if training.precision == "bf16":
        given = training.deepspeed
        stage = given.get("zero_optimization", {}).get("stage", training.zero_stage)
        if stage or given.get("bf16", {}).get("enabled"):
            ours["bf16"] = {"enabled": True}
        else:
            # Weights and gradients stay in fp32: DeepSpeed's bf16 optimizer without ZeRO handles
            # each parameter by itself, and on a GPU a step takes up to twice as long.
            ours["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    if universal:
        ours["checkpoint"] = {"load_universal": True}
    merged = _merged(ours, training.deepspeed)
    zero = merged["zero_optimization"]
    if "offload_optimizer" in zero or "offload_param" in zero:
        # By default DeepSpeed refuses our optimizer with offload and requires its own CPU Adam.
        merged.setdefault("zero_force_ds_cpu_optimizer", False)
    return merged


def in_half_precision(config: Mapping[str, Any]) -> bool:
    """Whether a training with this configuration multiplies matrices in half precision."""
    kinds = ("bf16", "fp16", "torch_autocast")
    return any(bool(config.get(kind, {}).get("enabled")) for kind in kinds)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` overridden by `over`; mappings are merged key by key."""
    result = dict(base)
    for key, value in over.items():
        mine = result.get(key)
        both = isinstance(mine, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(mine, value) if both else value  # type: ignore[arg-type]
    return result


def micro_batch_size(training: Training, world_size: int) -> int:
    """Sequences per worker and forward.

    Raises:
        InputError: the batch cannot be divided evenly; the message names a size that works.
    """
    share, rest = divmod(training.batch_size, world_size)
    if rest:
        raise InputError(
            f"training.batch_size {training.batch_size} cannot be shared evenly by {world_size} "
            f"workers; use a multiple of {world_size}, e.g. {max(share, 1) * world_size}"
        )
    micro = training.micro_batch_size or share
    if share % micro:
        raise InputError(
            f"training.micro_batch_size {micro} does not divide the {plural(share, 'sequence')} of "
            f"each worker (batch_size {training.batch_size} over {plural(world_size, 'worker')})"
        )
    return micro
