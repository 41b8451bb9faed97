"""How much memory a trial needs on each device, said before any of it is taken.

Notation: P parameters, n ranks, v bytes of a value (2 in half precision, 4 in single).

- States: weights, gradients and optimizer under ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054,
  section 3), in half precision by DeepSpeed's own estimators (`runtime/zero/stage_1_and_2.py` and
  `stage3.py`, which a test holds these against); in single precision the same parts at 4 bytes.
- Buffers: what the estimators leave out, the bucket that gradients are reduced in, and the weights
  that stage 3 keeps gathered.
- Activations: those of a transformer block (Korthikanti et al. 2022, arXiv 2205.05198, section 4.1)
  with attention that keeps no scores, unless it is computed by plain products; and the logits.
- Scoring: the logits of the plan's last batch, which masks most.

The constants that are called measured are from `benchmarks/memory.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mptune.errors import DoesNotFit, InputError
from mptune.spec.deepspeed import configuration
from mptune.spec.schema import Resources, Training, build
from mptune.trial import Device, DeviceKind, TrialSpec

if TYPE_CHECKING:
    from mptune.models.base import ModelFamily

ON_CPU = {False: 1.5, True: 2.6}
"""What a block's activations take on a CPU, as a factor, without and with those computed again
(measured): the allocator keeps what a step has freed."""

VALUES_WITHOUT_GRADIENTS = 12
"""Those of the one block that a forward without gradients is in, an MLP four times as wide."""

RESERVE = 1.1
"""Allocator, collectives' buffers and the framework itself, as a factor."""

COPIES_ON_CPU = 1.85
"""What ZeRO's states take on a CPU over their estimate, as a factor (measured: 1.3 to 1.84).

DeepSpeed copies what it flattens, gathers and sends there, and the allocator keeps what was freed.
"""

LOGIT_BYTES: dict[tuple[DeviceKind, bool], int] = {
    ("cuda", False): 12,
    ("cuda", True): 14,
    ("cpu", False): 36,
    ("cpu", True): 30,
}
"""Of each logit in training, by device and half precision: itself, in fp32, its log softmax, and
both gradients. On a CPU measured, as the allocator keeps blocks that were freed."""

SCORED_LOGIT_BYTES: dict[DeviceKind, int] = {"cuda": 10, "cpu": 13}
"""In scoring: itself, in fp32, and its log softmax; on a CPU measured."""

BUCKET, LIVE = 500_000_000, 1_000_000_000
"""DeepSpeed's defaults of `reduce_bucket_size` and `stage3_max_live_parameters`, in values."""

GANGS = (1, 2, 4, 8, 16, 32, 64, 128)

STAGES = (0, 1, 2, 3)

Holds = Callable[[Resources], Device]
"""What each worker of a gang with these resources computes on."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a trial needs on each rank, in bytes.

    Attributes:
        states: weights, gradients and optimizer.
        buffers: buckets and gathered weights.
        activations: what the backward pass needs of one micro-batch, head included.
        scoring: what a scoring forward needs beside the states.
    """

    states: float
    buffers: float
    activations: float
    scoring: float

    @property
    def total(self) -> float:
        """All of it, with the reserve; scoring comes after training."""
        return RESERVE * (self.states + self.buffers + max(self.activations, self.scoring))

    def words(self) -> str:
        """The total, and what it is made of."""
        what = "scoring" if self.scoring > self.activations else "activations"
        working = max(self.activations, self.scoring)
        return (
            f"{gigabytes(self.total)} per worker ({gigabytes(self.states + self.buffers)} states, "
            f"{gigabytes(working)} {what})"
        )


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the demand depends on, apart from the training section.

    Attributes:
        vocabulary: ids that can be an input.
        length: positions of a sequence.
        masked_share: of the positions, in training.
        scored: sequences of a scoring forward.
        scored_share: masked share of its positions.
        device: what the workers compute on.
    """

    family: ModelFamily
    vocabulary: int
    length: int
    masked_share: float = 1.0
    scored: int = 0
    scored_share: float = 1.0
    device: DeviceKind = "cuda"

    @classmethod
    def of(cls, trial: TrialSpec, device: DeviceKind) -> Sizes:
        """Those of a trial whose data are prepared."""
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


def demand(sizes: Sizes, training: Training, world_size: int) -> Demand:
    """The demand of one rank.

    Raises:
        InputError: the batch cannot be dealt out to the ranks.
    """
    config = configuration(training, world_size)
    half = bool(config["bf16"]["enabled"]) or bool(config.get("fp16", {}).get("enabled"))
    parameters = sizes.family.parameters(sizes.vocabulary, sizes.length)
    zero = _Zero(config["zero_optimization"], parameters, half, world_size, sizes.device)
    micro = int(config["train_micro_batch_size_per_gpu"])
    saved = "activation_checkpointing" in config
    return Demand(
        states=zero.states(),
        buffers=zero.buffers(),
        activations=micro * sizes.length * _training_bytes(sizes, half, saved),
        scoring=sizes.scored * sizes.length * _scoring_bytes(sizes, half),
    )


@dataclass(frozen=True)
class _Zero:
    """The states of ZeRO on one rank. `section` is DeepSpeed's, the user's keys included."""

    section: dict[str, Any]
    parameters: int
    half: bool
    ranks: int
    device: DeviceKind

    @property
    def stage(self) -> int:
        return int(self.section["stage"])

    @property
    def value(self) -> int:
        return 2 if self.half else 4

    def states(self) -> float:
        """Weights, gradients and optimizer, bytes."""
        if self.stage == 0:
            # Weights, gradients, Adam, and a copy: of gradients to reduce, or of half weights.
            return self.parameters * (20.0 + self._shared_mean())
        own, shared = self._bytes_each()
        return self._copied(self.parameters * (own + shared / self.ranks))

    def _shared_mean(self) -> float:
        """More bytes per parameter where ranks average gradients in memory that they share.

        It has a row of each rank and one of the mean. In single precision the rank's own row takes
        the place of the copy.
        """
        if self.device != "cpu" or self.ranks == 1:
            return 0.0
        return 4 / self.ranks + (4.0 if self.half else 0.0)

    def _bytes_each(self) -> tuple[float, float]:
        """Bytes per parameter that each rank has, and that the ranks share."""
        weights, gradients = self.value, self.value
        updates = 16  # in single precision: gradients, a master copy and Adam's two moments
        if self._offloads("offload_optimizer"):
            gradients, updates = 0, 0
        if self.stage == 3 and self._offloads("offload_param"):
            weights = 0
        by_stage = {
            1: (weights + gradients, updates),
            2: (weights, gradients + updates),
            3: (0, weights + updates),
        }
        return by_stage[self.stage]

    def buffers(self) -> float:
        """The bucket that gradients are reduced in, and at stage 3 the gathered weights, bytes."""
        if self.stage == 0:
            return 0.0
        gathered = min(self.parameters, self._count("stage3_max_live_parameters", LIVE))
        values = self._bucket() + (gathered if self.stage == 3 else 0)
        return self._copied(float(self.value * values))

    def _bucket(self) -> int:
        if not self.section.get("contiguous_gradients", True):
            return 0
        size = self._count("reduce_bucket_size", BUCKET)
        # A CPU's memory counts when it is written to, and of the bucket only so much is.
        size = min(size, self.parameters) if self.device == "cpu" else size
        return 2 * size if self.stage < 3 and self.section.get("overlap_comm") else size

    def _count(self, key: str, default: int) -> int:
        """DeepSpeed's own keys reach it as they are: some may be `auto`."""
        said = self.section.get(key, default)
        return int(said) if isinstance(said, int | float) else default

    def _offloads(self, what: str) -> bool:
        """Whether something is kept off the device; of a CPU that is the same memory."""
        there = str((self.section.get(what) or {}).get("device", "none"))
        return there != "none" and (self.device != "cpu" or there != "cpu")

    def _copied(self, size: float) -> float:
        return COPIES_ON_CPU * size if self.device == "cpu" else size


def _training_bytes(sizes: Sizes, half: bool, saved: bool) -> float:
    """Activations per position of a micro-batch; `saved` blocks are computed again."""
    family, value = sizes.family, 2 if half else 4
    block = family.kept_per_channel * family.width * value
    if family.keeps_scores(sizes.device, half, sizes.length):
        block += 2 * family.attention_heads * sizes.length * value
    # Saved blocks keep their input; the last one is not saved, and one is computed again.
    inputs = family.depth * family.width * value
    blocks = inputs + 2 * block if saved else family.depth * block
    if sizes.device == "cpu":
        blocks *= ON_CPU[saved]
    return blocks + sizes.masked_share * sizes.vocabulary * LOGIT_BYTES[sizes.device, half]


def _scoring_bytes(sizes: Sizes, half: bool) -> float:
    """What a forward without gradients has per position."""
    family, value = sizes.family, 2 if half else 4
    block = VALUES_WITHOUT_GRADIENTS * family.width * value
    if family.keeps_scores(sizes.device, half, sizes.length):
        block += 2 * family.attention_heads * sizes.length * value
    return block + sizes.scored_share * sizes.vocabulary * SCORED_LOGIT_BYTES[sizes.device]


def refusal(trial: TrialSpec, holds: Holds) -> str | None:
    """Why a trial cannot fit what its gang would be made of, or None: it fits, or nobody knows.

    Asked before there is a gang. A batch that cannot be dealt out is the worker's to refuse.
    """
    device = holds(trial.resources)
    try:
        check(Sizes.of(trial, device.kind), trial.training, trial.resources, holds)
    except DoesNotFit as error:
        return str(error)
    except InputError:
        return None
    return None


def check(sizes: Sizes, training: Training, resources: Resources, holds: Holds) -> None:
    """Refuse what cannot fit, and propose the smallest gang and stage that does.

    Args:
        sizes: the model and the data.
        training: the spec's section.
        resources: of the gang that is meant.
        holds: what a worker of this and of other gangs has.

    Raises:
        DoesNotFit: one line with the demand, what is there, and the proposal.
        InputError: the batch cannot be dealt out to the ranks.
    """
    device = holds(resources)
    needed = demand(sizes, training, resources.workers)
    if device.fits(needed.total):
        return
    there = gigabytes(device.bytes or 0.0)
    raise DoesNotFit(
        f"{sizes.family.words()} needs {needed.words()}, and {device.words} has {there}; "
        + _advice(sizes, training, resources, holds)
    )


def _advice(sizes: Sizes, training: Training, resources: Resources, holds: Holds) -> str:
    found = next(fitting(sizes, training, resources, holds), None)
    if found is None:
        return f"no gang of up to {GANGS[-1]} fits it; use a smaller model or score.batch_size"
    return f"it fits with {found.words()}"


@dataclass(frozen=True)
class Gang:
    """A gang that a model fits on. `micro_batch_size` is None where it is the default."""

    workers: int
    zero_stage: int
    micro_batch_size: int | None

    def words(self) -> str:
        """The spec's keys that give it."""
        gang = f"resources.workers: {self.workers}"
        stage = f"training.zero_stage: {self.zero_stage}"
        if self.micro_batch_size is None:
            return f"{gang} and {stage}"
        return f"{gang}, {stage} and training.micro_batch_size: {self.micro_batch_size}"


def fitting(sizes: Sizes, training: Training, resources: Resources, holds: Holds) -> Iterator[Gang]:
    """Gangs that fit: the smallest first, then the lowest stage, then the largest micro-batch."""
    for workers in GANGS:
        device = holds(resources.model_copy(update={"workers": workers}))
        for stage in STAGES:
            for micro in _micro_batches(training, workers):
                if stage == 3 and training.compile:
                    continue
                asked = _at(training, stage, micro)
                if device.fits(demand(sizes, asked, workers).total):
                    yield Gang(workers, stage, _if_unusual(micro, training, workers))
                    break


def _micro_batches(training: Training, workers: int) -> Iterator[int]:
    """Sizes that deal the batch out evenly, the largest first, none above the one asked for."""
    share, rest = divmod(training.batch_size, workers)
    most = 0 if rest else min(share, training.micro_batch_size or share)
    return (micro for micro in range(most, 0, -1) if share % micro == 0)


def _if_unusual(micro: int, training: Training, workers: int) -> int | None:
    usual = training.micro_batch_size or training.batch_size // workers
    return None if micro == usual else micro


def _at(training: Training, stage: int, micro: int) -> Training:
    """The section with this stage, which the user's `deepspeed` section may have named, too."""
    section = dict(training.deepspeed)
    if "zero_optimization" in section:
        zero = section["zero_optimization"]
        section["zero_optimization"] = {k: v for k, v in zero.items() if k != "stage"}
    update = {"zero_stage": stage, "micro_batch_size": micro, "deepspeed": section}
    return training.model_copy(update=update)


def gigabytes(size: float) -> str:
    """In words, 1 GB = 1e9 bytes."""
    return f"{size / 1e9:.3g} GB"
