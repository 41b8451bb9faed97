"""How much memory a trial needs on each device, estimated before any of it is allocated.

Notation: P parameters, n ranks, v bytes of a value (2 in half precision, 4 in single).

- States: weights, gradients and optimizer under ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054,
  section 3), in half precision by DeepSpeed's own estimators (`runtime/zero/stage_1_and_2.py` and
  `stage3.py`, which a test holds these against); in single precision the same parts at 4 bytes.
  Gradients and optimizer are those of trained parameters only.
- Buffers: what the estimators leave out, the bucket that gradients are reduced in, and the weights
  that stage 3 keeps gathered.
- Activations: those of a transformer block (Korthikanti et al. 2022, arXiv 2205.05198, section 4.1)
  with attention that keeps no scores, unless it is computed by plain products; and the logits.
- Scoring: the logits of the plan's last batch, which masks most.
- Outside: of a GPU, what a process takes besides torch's allocator.

Constants marked as measured are from `benchmarks/memory.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mptune.errors import DoesNotFit, InputError
from mptune.spec.deepspeed import configuration, in_half_precision
from mptune.spec.schema import Resources, Training, build
from mptune.trial import Device, DeviceKind, TrialSpec

if TYPE_CHECKING:
    from mptune.models.base import MaskedModel

ON_CPU = {False: 1.5, True: 2.6}
"""Memory of a block's activations on a CPU over their size, without and with recomputation
(measured): the allocator keeps what a step has freed."""

AUTOCAST = 1.1
"""Memory of a block's activations under autocast over their size in half precision: norms and the
residual stream stay in single precision (BERT and ModernBERT on an H200, see RESULTS.md)."""

RESERVE = 1.1
"""Factor for the allocator, the collectives' buffers and the framework itself."""

CONTEXT, COLLECTIVES = 0.7e9, 0.7e9
"""Bytes of a GPU that a process takes for CUDA's context and kernels, and with several ranks for
NCCL's buffers. Not measured; the GPU check tells the first."""

COPIES_ON_CPU = 1.85
"""Memory of ZeRO's states on a CPU over their estimate (measured: 1.3 to 1.84).

DeepSpeed copies what it flattens, gathers and sends there, and the allocator keeps what was freed.
"""

LOGIT_BYTES: dict[tuple[DeviceKind, bool], int] = {
    ("cuda", False): 12,
    ("cuda", True): 14,
    ("cpu", False): 36,
    ("cpu", True): 30,
}
"""Bytes per logit in training, by device and half precision: itself, in fp32, its log softmax, and
both gradients. Measured on a CPU, where the allocator keeps blocks that were freed."""

SCORED_LOGIT_BYTES: dict[DeviceKind, int] = {"cuda": 10, "cpu": 13}
"""Bytes per logit in scoring: itself, in fp32, and its log softmax; measured on a CPU."""

BUCKET, LIVE = 500_000_000, 1_000_000_000
"""DeepSpeed's defaults of `reduce_bucket_size` and `stage3_max_live_parameters`, in values."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a trial needs on each rank, in bytes.

    Attributes:
        states: weights, gradients and optimizer.
        buffers: buckets and gathered weights.
        activations: what the backward pass needs of one micro-batch, head included.
        scoring: what a scoring forward needs beside the states.
        outside: of a GPU, see `outside`.
    """

    states: float
    buffers: float
    activations: float
    scoring: float
    outside: float = 0.0

    @property
    def working(self) -> float:
        """The larger of activations and scoring, which comes after training."""
        return max(self.activations, self.scoring)

    @property
    def total(self) -> float:
        """All of it, with the reserve."""
        return RESERVE * (self.states + self.buffers + self.working) + self.outside

    def words(self) -> str:
        """The total, and its parts."""
        what = "scoring" if self.scoring > self.activations else "activations"
        cuda = f", {gigabytes(self.outside)} CUDA" if self.outside else ""
        return (
            f"{gigabytes(self.total)} per worker ({gigabytes(self.states + self.buffers)} states, "
            f"{gigabytes(self.working)} {what}{cuda})"
        )


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the demand depends on, besides the training section.

    Attributes:
        vocabulary: ids that can be an input.
        length: positions of a sequence.
        masked_share: of the positions, in training.
        scored: sequences of a scoring forward.
        scored_share: masked share of its positions.
        device: what the workers compute on.
    """

    family: MaskedModel
    vocabulary: int
    length: int
    masked_share: float = 1.0
    scored: int = 0
    scored_share: float = 1.0
    device: DeviceKind = "cuda"

    @classmethod
    def of(cls, trial: TrialSpec, device: DeviceKind) -> Sizes:
        """The sizes of a trial whose data are prepared."""
        vocabulary, length = trial.prepared.vocabulary_size + 2, trial.prepared.length
        plan = trial.prepared.heldout_sequences * trial.score.forwards
        scored = min(trial.score.batch_size, plan)
        return cls(
            family=build("model", trial.model).sized(vocabulary, length),
            vocabulary=vocabulary,
            length=length,
            masked_share=build("policy", trial.policy).mean_rate(length),
            scored=scored,
            # Batches hold similar counts, from 1 to D: this is the middle of the last one's.
            scored_share=1 - scored / plan / 2,
            device=device,
        )


def outside(world_size: int) -> float:
    """Bytes of a GPU that a rank takes besides torch's allocator."""
    return CONTEXT + (COLLECTIVES if world_size > 1 else 0.0)


def demand(sizes: Sizes, training: Training, world_size: int) -> Demand:
    """The demand of one rank.

    Raises:
        InputError: the batch cannot be divided among the ranks.
    """
    config = configuration(training, world_size)
    half = in_half_precision(config)
    family, length = sizes.family, sizes.length
    parameters = family.parameters(sizes.vocabulary, length)
    zero = config["zero_optimization"]
    trained = family.trained(sizes.vocabulary, length)
    states, buffers = _zero_bytes(zero, parameters, trained, half, world_size, sizes.device)
    # Bytes per position: of the blocks, then of the logits.
    recomputed = "activation_checkpointing" in config
    blocks, scored_block = family.block_bytes(sizes.device, half, length, recomputed)
    if sizes.device == "cpu":
        blocks *= ON_CPU[recomputed]
    elif config.get("torch_autocast", {}).get("enabled"):
        blocks *= AUTOCAST
    logits = sizes.masked_share * sizes.vocabulary * LOGIT_BYTES[sizes.device, half]
    scored_logits = sizes.scored_share * sizes.vocabulary * SCORED_LOGIT_BYTES[sizes.device]
    micro = int(config["train_micro_batch_size_per_gpu"])
    return Demand(
        states=states,
        buffers=buffers,
        activations=micro * length * (blocks + logits),
        scoring=sizes.scored * length * (scored_block + scored_logits),
        outside=outside(world_size) if sizes.device == "cuda" else 0.0,
    )


def _zero_bytes(
    section: dict[str, Any],
    parameters: int,
    trained: int,
    half: bool,
    ranks: int,
    device: DeviceKind,
) -> tuple[float, float]:
    """States (weights, gradients, optimizer) and buffers of ZeRO on one rank, in bytes.

    Args:
        section: DeepSpeed's, with the user's keys. Some may be `auto`, then the default counts.
        trained: parameters that have gradients and a state of the optimizer.
    """
    stage, value = int(section["stage"]), 2 if half else 4
    if stage == 0:
        # Weights, gradients, Adam, and a copy: of gradients to reduce, or of half weights.
        return trained * 20.0 + (parameters - trained) * (6.0 if half else 4.0), 0.0

    def count(key: str, default: int) -> int:
        given = section.get(key, default)
        return int(given) if isinstance(given, int | float) else default

    def offloads(what: str) -> bool:
        there = str((section.get(what) or {}).get("device", "none"))
        # A CPU would offload to the same memory.
        return there != "none" and (device != "cpu" or there != "cpu")

    weights, gradients = value, value
    updates = 16  # in single precision: gradients, a master copy and Adam's two moments
    if offloads("offload_optimizer"):
        gradients, updates = 0, 0
    if stage == 3 and offloads("offload_param"):
        weights = 0
    own, shared = {
        1: (weights * parameters + gradients * trained, updates * trained),
        2: (weights * parameters, (gradients + updates) * trained),
        3: (0, weights * parameters + updates * trained),
    }[stage]
    buffered = 0
    if section.get("contiguous_gradients", True):
        buffered = count("reduce_bucket_size", BUCKET)
        if device == "cpu":
            # A CPU's memory counts when it is written to, and no more of the bucket is.
            buffered = min(buffered, trained)
        if stage < 3 and section.get("overlap_comm"):
            buffered *= 2
    if stage == 3:
        buffered += min(parameters, count("stage3_max_live_parameters", LIVE))
    copies = COPIES_ON_CPU if device == "cpu" else 1.0
    return copies * (own + shared / ranks), copies * float(value * buffered)


def refusal(trial: TrialSpec, holds: Callable[[Resources], Device]) -> str | None:
    """Why a trial cannot fit the devices of its gang; None if it fits or their memory is unknown.

    Can be asked before there is a gang. A batch that cannot be divided among the ranks is refused
    by the worker.

    Args:
        holds: gives the device that each worker of a gang with some resources computes on.
    """
    device = holds(trial.resources)
    try:
        check(Sizes.of(trial, device.kind), trial.training, trial.resources.workers, device)
    except DoesNotFit as error:
        return str(error)
    except InputError:
        return None
    return None


def check(sizes: Sizes, training: Training, workers: int, device: Device) -> None:
    """Refuse what cannot fit the device of each worker.

    Raises:
        DoesNotFit: one line with the demand, the available memory, and what would change it.
        InputError: the batch cannot be divided among the ranks.
    """
    needed = demand(sizes, training, workers)
    if not device.fits(needed.total):
        raise DoesNotFit(
            f"{sizes.family.words()} needs {needed.words()}, and {device.words} has "
            f"{gigabytes(device.bytes or 0.0)}; give more workers, a higher training.zero_stage, a "
            "smaller training.micro_batch_size or score.batch_size, or a smaller model"
        )


def gigabytes(size: float) -> str:
    """As text, 1 GB = 1e9 bytes."""
    return f"{size / 1e9:.3g} GB"
