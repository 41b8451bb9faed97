"""Which weights of a checkpoint train: all, all but the first layers, or low-rank adapters only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mptune.errors import InputError, did_you_mean

ADAPTER = "default"
"""The name that peft gives to an adapter."""


def freeze(model: Any, name: str, what: int | str) -> None:
    """Let the embeddings and the first layers of a model of transformers not train.

    An output layer that shares the embeddings does not train either, but for its bias.

    Args:
        name: of the checkpoint, for the error.
        what: how many layers, or `embeddings` for these only.

    Raises:
        InputError: the model has fewer layers, or shares one among all.
    """
    encoder = model.base_model
    parts = [part for child, part in encoder.named_children() if child.startswith("embed")]
    if isinstance(what, int):
        depth = model.config.num_hidden_layers
        lists = (m for m in encoder.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
        layers = next(lists, None)
        if layers is None:
            raise InputError(
                f"model.freeze: {what}: {name} has no list of {depth} layers of its own; give "
                "embeddings, or leave it out"
            )
        if what > depth:
            raise InputError(f"model.freeze: {what}: {name} has {depth} layers")
        parts += layers[:what]
    for part in parts:
        part.requires_grad_(False)


def add_adapters(model: Any, rank: int, alpha: float, targets: Sequence[str] | None) -> None:
    """Add low-rank adapters to linear layers that are not frozen; nothing else trains then.

    An adapter's second matrix begins as zero, so the model is the checkpoint's at first. The
    arguments are those of `mptune.models.continued.Lora`.

    Raises:
        InputError: no such layer trains.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # An adapter of the output layer would be one of the embeddings that it shares, too.
    last = model.get_output_embeddings()
    chosen = [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and part is not last and part.weight.requires_grad
    ]
    if targets is not None:
        names = sorted({name.rpartition(".")[2] for name in chosen})
        for target in targets:
            if not [name for name in chosen if f".{name}".endswith(f".{target}")]:
                raise InputError(
                    f"model.lora.targets: {target!r} ends the name of no linear layer that trains; "
                    f"there are {', '.join(names)}{did_you_mean(target, names)}"
                )
        ends = tuple(f".{target}" for target in targets)
        chosen = [name for name in chosen if f".{name}".endswith(ends)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen), model)


def merged_state(model: Any) -> dict[str, Tensor] | None:
    """The state of the model without adapters that computes the same; None if it has none.

    The model itself keeps them. Sums of half-precision weights are in single precision.
    """
    state: dict[str, Tensor] = model.state_dict()
    adapted = [(name, part) for name, part in model.named_modules() if hasattr(part, "lora_A")]
    if not adapted:
        return None
    for name, part in adapted:
        before = f"{name}.base_layer."
        for key in [key for key in state if key.startswith(f"{name}.")]:
            value = state.pop(key)
            if key.startswith(before):
                state[f"{name}.{key.removeprefix(before)}"] = value
        weight, (down, up) = f"{name}.weight", (part.lora_A[ADAPTER], part.lora_B[ADAPTER])
        with torch.no_grad():
            change = part.scaling[ADAPTER] * up.weight.double() @ down.weight.double()
            state[weight] = (state[weight].double() + change).float()
    return state
