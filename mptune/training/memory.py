"""How much memory a trial needs on each device, said before any of it is taken.

Notation: P parameters, n ranks, bytes per parameter p + g + o for weights, gradients and optimizer.
The states are those of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3): stage 1 shares
o among the ranks, stage 2 also g, stage 3 also p. The activations are those of a transformer block
(Korthikanti et al. 2022, arXiv 2205.05198, section 4.1) with attention that keeps no scores, unless
it is computed by plain products; those keep scores and weights of each head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mptune.configuration import configuration
from mptune.errors import DoesNotFit
from mptune.models._attention import LONGEST
from mptune.models.base import ModelFamily
from mptune.spec import Training

VALUES_PER_CHANNEL = 17
"""Activations that a block keeps, per position and channel: 34 bytes at 2 bytes each."""

RESERVE = 1.1
"""Allocator, collectives' buffers and the framework itself, as a factor."""

GANGS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a training needs on each rank, in bytes.

    Attributes:
        states: weights, gradients and optimizer.
        activations: what the backward pass needs of one micro-batch, head included.
    """

    states: float
    activations: float

    @property
    def total(self) -> float:
        """All of it, with the reserve."""
        return RESERVE * (self.states + self.activations)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the demand depends on, apart from the training section."""

    family: ModelFamily
    vocabulary: int
    length: int
    masked_share: float = 1.0
    device: str = "cuda"

    def keeps_scores(self, half: bool) -> bool:
        """Whether attention keeps its scores for the backward pass, see `models._attention`."""
        return self.device == "cpu" and half and self.length <= LONGEST


def demand(sizes: Sizes, training: Training, world_size: int) -> Demand:
    """The demand of one rank.

    Raises:
        InputError: the batch cannot be dealt out to the ranks.
    """
    config = configuration(training, world_size)
    parameters = sizes.family.parameters(sizes.vocabulary, sizes.length)
    half = bool(config["bf16"]["enabled"]) or bool(config.get("fp16", {}).get("enabled"))
    states = parameters * _state_bytes(config, half, world_size)
    micro = int(config["train_micro_batch_size_per_gpu"])
    return Demand(states=states, activations=_activations(sizes, config, half, micro))


def _state_bytes(config: dict[str, Any], half: bool, ranks: int) -> float:
    """Bytes per parameter on one rank."""
    zero = config["zero_optimization"]
    stage = int(zero["stage"])
    # Half precision keeps a master copy of the weights beside Adam's two moments.
    weights, gradients, optimizer = (2, 2, 12) if half else (4, 4, 8)
    if _on_cpu(zero, "offload_optimizer"):
        optimizer = 0
    if stage == 3 and _on_cpu(zero, "offload_param"):
        weights = 0
    shared = (stage >= 3, stage >= 2, stage >= 1)
    kept = (weights, gradients, optimizer)
    return sum(b / ranks if s else b for b, s in zip(kept, shared, strict=True))


def _on_cpu(zero: dict[str, Any], what: str) -> bool:
    return str(zero.get(what, {}).get("device", "none")) != "none"


def _activations(sizes: Sizes, config: dict[str, Any], half: bool, micro: int) -> float:
    family, value = sizes.family, 2 if half else 4
    positions = micro * sizes.length
    per_block = VALUES_PER_CHANNEL * family.width * value
    if sizes.keeps_scores(half):
        per_block += 2 * family.attention_heads * sizes.length * value
    if "activation_checkpointing" in config:
        # Each block keeps its input; one block at a time has the rest.
        blocks = family.depth * family.width * value + per_block
    else:
        blocks = family.depth * per_block
    # Logits once as computed, once in fp32, and their gradient.
    head = sizes.masked_share * sizes.vocabulary * (2 * value + 4)
    return positions * (blocks + head)


def check(sizes: Sizes, training: Training, world_size: int, available: float) -> None:
    """Refuse what cannot fit, and propose the smallest gang and stage that does.

    Args:
        sizes: the model and the data.
        training: the spec's section.
        world_size: ranks of the gang.
        available: bytes on each device.

    Raises:
        DoesNotFit: one line with the demand and the proposal.
    """
    needed = demand(sizes, training, world_size)
    if needed.total <= available:
        return
    proposal = next(_fitting(sizes, training, available), None)
    advice = (
        "no gang of up to 128 fits it; use a smaller model or micro_batch_size"
        if proposal is None
        else "it fits with " + proposal
    )
    raise DoesNotFit(
        f"{sizes.family.words()} needs {_gb(needed.total)} per device "
        f"({_gb(needed.states)} states, {_gb(needed.activations)} activations), "
        f"and {_gb(available)} are there; {advice}"
    )


def _fitting(sizes: Sizes, training: Training, available: float) -> Iterator[str]:
    """Gangs and stages that fit, the smallest gang first, then the lowest stage."""
    for workers in GANGS:
        for stage in (0, 1, 2, 3):
            micro = training.micro_batch_size or max(1, training.batch_size // workers)
            if workers * micro > training.batch_size or training.batch_size % (workers * micro):
                continue
            asked = training.model_copy(
                update={
                    "zero_stage": stage,
                    "micro_batch_size": micro,
                    "deepspeed": _without_stage(training.deepspeed),
                }
            )
            if demand(sizes, asked, workers).total <= available:
                yield f"resources.workers: {workers} and training.zero_stage: {stage}"


def _without_stage(section: dict[str, Any]) -> dict[str, Any]:
    zero = {k: v for k, v in section.get("zero_optimization", {}).items() if k != "stage"}
    return {**section, "zero_optimization": zero}


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
