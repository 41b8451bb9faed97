"""The torch side of `own`: makes a model of the user's class, and calls it as its contract says.

Shape suffixes: B sequences, D positions, K masked positions in row-major order, V predictable
symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mptune.errors import InputError, did_you_mean, one_line
from mptune.models.base import BACKWARD, IMPOSSIBLE
from mptune.plugins import load_object

POSITIONS = "masked_positions"
"""Parameter of a forward that computes logits of these positions only."""

FLOPS_PER_PARAMETER = 6
"""Of a training step per position, where they cannot be counted: Kaplan et al. 2020, arXiv
2001.08361, section 2.1."""


def constructed(
    reference: str, given: Mapping[str, Any], vocabulary: int, length: int
) -> nn.Module:
    """An instance of the class with these keys of the spec.

    Raises:
        InputError: it cannot be imported, has no such argument, or its constructor fails.
    """
    try:
        kind = load_object(reference)
    except Exception as error:  # of the user's module
        raise InputError(
            f"model.class {reference}: cannot be imported: {one_line(error)}"
        ) from None
    ours = {
        "vocab_size": vocabulary,
        "max_position_embeddings": length,
        "pad_token_id": vocabulary - 1,
    }
    config: Any = getattr(kind, "config_class", None)
    try:
        if config is not None:
            defaults = config()
            owner, names = config, list(vars(defaults))
            unknown = [key for key in given if not hasattr(defaults, key)]
        else:
            parameters = signature(kind).parameters.values()
            owner, names, unknown = kind, [p.name for p in parameters], list[str]()
            if all(p.kind != Parameter.VAR_KEYWORD for p in parameters):
                unknown = [key for key in given if key not in names]
                ours = {key: value for key, value in ours.items() if key in names}
        for key in unknown:
            raise InputError(
                f"model.{key}: {owner.__name__} has no such argument{did_you_mean(key, names)}"
            )
        arguments = {**ours, **given}
        model = kind(**arguments) if config is None else kind(config(**arguments))
        if not isinstance(model, nn.Module):
            raise TypeError("gives no torch.nn.Module")
    except InputError:
        raise
    except Exception as error:  # of the user's class
        raise InputError(f"model.class {reference}: its constructor: {one_line(error)}") from error
    return model


class OwnMaskedLM(nn.Module):
    """A model of the user's class, called as `MaskedModel.build` says."""

    def __init__(self, model: nn.Module, predictable: int) -> None:
        super().__init__()
        self.model, self.predictable = model, predictable
        self._narrow = POSITIONS in signature(model.forward).parameters

    def forward(
        self,
        tokens_BD: Tensor,
        mask: Tensor,
        attend_BD: Tensor | None = None,
        document_BD: Tensor | None = None,
        place_BD: Tensor | None = None,
    ) -> Tensor:
        """logits [K, V] at the masked positions.

        Raises:
            InputError: the model's logits have another shape.
        """
        if document_BD is not None:
            raise InputError("model.class: cannot be trained with training.pack")
        flat_K = mask.flatten().nonzero()[:, 0] if mask.dtype == torch.bool else mask
        found = self.model(
            input_ids=tokens_BD,
            attention_mask=None if attend_BD is None else attend_BD.long(),
            **({POSITIONS: flat_K} if self._narrow else {}),
        )
        logits: Tensor = getattr(found, "logits", found)
        places = flat_K.shape if self._narrow else tokens_BD.shape
        if logits.shape[:-1] != places or logits.shape[-1] < self.predictable:
            raise InputError(
                f"model.class: its logits are {list(logits.shape)}; they must be "
                f"{[*places, self.predictable + 2]}, for all ids of the input"
            )
        if not self._narrow:
            logits = logits.flatten(0, 1).index_select(0, flat_K)
        return logits[:, : self.predictable]

    def save_pretrained(self, folder: str) -> None:
        """Write a folder that `transformers.AutoModelForMaskedLM` opens.

        The code of a class that transformers does not have is copied into it. [MASK] and [PAD] get
        no probability if the output layer has a bias.
        """
        model: Any = self.model
        if hasattr(model, "get_output_embeddings"):
            bias = getattr(model.get_output_embeddings(), "bias", None)
            if bias is not None:
                with torch.inference_mode():
                    bias[self.predictable :] = IMPOSSIBLE
            if not type(model).__module__.startswith("transformers."):
                type(model.config).register_for_auto_class()
                type(model).register_for_auto_class("AutoModelForMaskedLM")
        model.save_pretrained(folder)

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass, as models of transformers can."""
        model: Any = self.model
        model.gradient_checkpointing_enable({"use_reentrant": False})


def counted(build: Callable[[], nn.Module], length: int) -> tuple[int, int, float, float, float]:
    """Parameters; trained ones; FLOPs of a step per sequence, and per masked position; the forward
    pass's share of them.

    On torch's meta device, which computes nothing. A model that cannot be made there is made on the
    CPU; the FLOPs of one that cannot be called there are those of its parameters at every position.
    Gradients of weights that are not trained are not computed, and not counted.
    """
    with torch.random.fork_rng([]):
        try:
            with torch.device("meta"):
                module = build()
        except Exception:
            module = build()
    parameters = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    try:
        module.to("meta")
        tokens_BD = torch.zeros(1, length, dtype=torch.long, device="meta")
        (forward, one), (all_forward, all_of_them) = (
            _flops(module, tokens_BD, torch.zeros(masked, dtype=torch.long, device="meta"))
            for masked in (1, length)
        )
    except Exception:
        flops = float(FLOPS_PER_PARAMETER * parameters * length)
        return parameters, trained, flops, 0.0, 1 / (1 + BACKWARD)
    of_masked = (all_of_them - one) / max(length - 1, 1)
    share = (forward + all_forward) / (one + all_of_them)
    return parameters, trained, one - of_masked, of_masked, share


def _flops(module: nn.Module, tokens_BD: Tensor, flat_K: Tensor) -> tuple[int, int]:
    """Of the forward pass, and of the whole step."""
    with FlopCounterMode(display=False) as counter:
        logits_KV = module(tokens_BD, flat_K)
        forward: int = counter.get_total_flops()
        logits_KV.sum().backward()
    return forward, counter.get_total_flops()
