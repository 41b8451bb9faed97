"""What a step works on: the global batch with its masks, and this rank's part on the device.

The batch of a step is a pure function of the trial's seed, the step, the progress and the law of
the masks, so it can be drawn ahead of its step, and any number of workers trains on the same.

Shape suffixes: B sequences of the global batch or a part of it, D positions, K masked positions
of that part in row-major order, and after them rows of weight 0 where shapes are to stand; V
predictable symbols, R intervals of the mask rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mptune.data.table import Split
from mptune.models.base import ModelFamily
from mptune.policies._structures import words_of
from mptune.policies.base import RATE_BUCKETS, MaskedBatch, MaskPolicy, draw_batch, rate_bucket
from mptune.spec.deepspeed import micro_batch_size
from mptune.spec.schema import Training
from mptune.training.batches import DataOrder, attended
from mptune.training.packing import Packing
from mptune.training.ranks import Ranks
from mptune.training.schedule import Budget
from mptune.training.shapes import HeadRows, deal

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

MOST_ASKING = 0.8
"""Share of the positions up to which it saves time to compute attention for those that are read."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a trial trains with; the same on every rank."""

    number: int
    seed: int
    training: Training
    rungs: tuple[float, ...]
    policy: MaskPolicy
    family: ModelFamily
    train: Split
    vocabulary_size: int
    axes: tuple[int, ...] = ()
    """Sizes of the grid that positions lie on, each with an embedding; empty if they are a line."""
    joins: NDArray[np.bool_] | None = None
    """Which symbols go on with the word to their left and right, bool [2, ids]; see `words_of`."""

    @property
    def length(self) -> int:
        return int(self.train.tokens.shape[1])

    @property
    def tokens_per_step(self) -> int:
        return self.training.batch_size * self.length

    def step_flops(self, masked: int, rows: int | None = None) -> float:
        """FLOPs of one step with that many masked positions in the global batch.

        `rows` are those that the model computes: the batch's sequences, or fewer when packed.
        """
        vocabulary = self.vocabulary_size + 2
        rows = self.training.batch_size if rows is None else rows
        return self.family.flops(vocabulary, self.length, rows, masked)

    def budget(self) -> Budget:
        masked = round(self.policy.mean_rate(self.length) * self.tokens_per_step)
        return Budget.of(self.training, self.tokens_per_step, self.step_flops(masked))


@dataclass(frozen=True)
class Moment:
    """When a batch is drawn, and from what."""

    step: int
    progress: float
    law: MaskPolicy
    code: bool
    """Whether the batch counts in the prequential code length."""


@dataclass(frozen=True)
class Part:
    """What one forward works on.

    `arguments` are the model's; _K per row of the head: the true symbol, the weight, the sequence
    (B for a row that only fills up); _B per sequence: whether it has masked positions, how many
    (at least 1), and the interval of its mask rate.
    """

    arguments: tuple[Tensor | None, ...]
    target_K: Tensor
    weight_K: Tensor
    sequence_K: Tensor
    seen_B: Tensor
    count_B: Tensor
    bucket_B: Tensor
    code_B: Tensor
    """What a sequence's summed loss counts in the prequential code length."""

    def tensors(self) -> list[Tensor]:
        """All of them."""
        values = (*self.arguments, *list(vars(self).values())[1:])
        return [value for value in values if value is not None]

    def sums(self, objective: Tensor, loss_K: Tensor) -> Tensor:
        """What the ranks add up of a forward, float64 [3 + 3 R].

        The objective, the summed loss, then by interval of the mask rate the sums of 1, y and y^2
        over sequences, y being a sequence's mean loss, and the code length.
        """
        total_B = torch.zeros(len(self.count_B) + 1, dtype=torch.float64, device=loss_K.device)
        total_B = total_B.index_add_(0, self.sequence_K, loss_K.double())[:-1]
        y_B = total_B / self.count_B
        by_rate_3R = y_B.new_zeros(3, RATE_BUCKETS)
        by_rate_3R.index_add_(1, self.bucket_B, torch.stack([self.seen_B, y_B, y_B**2]))
        ends = torch.stack([objective.double(), total_B.sum(), total_B @ self.code_B])
        return torch.cat([ends[:2], by_rate_3R.flatten(), ends[2:]])


@dataclass(frozen=True)
class Batch:
    """The global batch of one step, and how it is parted among forwards."""

    tokens: NDArray[Any]
    attend: NDArray[np.bool_] | None
    drawn: MaskedBatch
    lengths: IntArray
    pad_id: int
    code_B: FloatArray | None
    """See `code_weights`; None where the code length is not defined."""
    parts: Sequence[IntArray]
    """Rows of each forward, those of rank 0 first."""
    pack: bool = False
    head: HeadRows | None = None
    """How many rows a forward's head has; None: as many as there are masked positions."""

    @cached_property
    def counts(self) -> IntArray:
        """Masked positions of each sequence, [B]."""
        counts_B: IntArray = self.drawn.mask_BD.sum(1)
        return counts_B

    @property
    def masked(self) -> int:
        return int(self.counts.sum())

    @property
    def observed(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def packings(self) -> list[Packing | None]:
        """Where each part's sequences lie, if packed; nothing is to gain without padding."""
        attend = self.attend if self.pack else None
        return [None if attend is None else Packing.of(attend[rows]) for rows in self.parts]

    @property
    def rows_computed(self) -> int:
        """Rows that the model computes."""
        pairs = zip(self.parts, self.packings, strict=True)
        return sum(len(rows) if packed is None else packed.rows for rows, packed in pairs)

    @cached_property
    def head_rows(self) -> list[int]:
        """Rows of each part's head."""
        masked = [int(self.counts[rows].sum()) for rows in self.parts]
        if self.head is None:
            return masked
        full = bool((self.lengths == self.tokens.shape[1]).all())
        return [self.head.padded(count, full) for count in masked]

    def arrays(self, number: int) -> tuple[list[NDArray[Any] | None], list[NDArray[Any]]]:
        """The model's arguments for a part, and the other fields of `Part` in their order."""
        rows, total = self.parts[number], self.head_rows[number]
        mask_BD, count_B = self.drawn.mask_BD[rows], self.counts[rows]
        arguments = self._arguments(rows, self.packings[number])
        spare = total - int(count_B.sum())
        # Spare rows look at different positions: adding up gradients at one would be a queue.
        arguments[1] = np.concatenate([arguments[1], np.arange(spare) % arguments[0].size])
        if self.head is None and self.attend is None:
            arguments += [None, None, _asking(mask_BD)]
        weight_K = np.repeat(self.drawn.weight_B[rows] / self.drawn.normaliser, count_B)
        code_B = np.zeros(len(rows)) if self.code_B is None else self.code_B[rows]
        return arguments, [
            _filled(self.tokens[rows][mask_BD].astype(np.int64), spare, 0),
            _filled(weight_K.astype(np.float32), spare, 0),
            _filled(np.repeat(np.arange(len(rows)), count_B), spare, len(rows)),
            (count_B > 0).astype(np.float64),
            np.maximum(count_B, 1),
            rate_bucket(count_B, self.lengths[rows]),
            code_B,
        ]

    def _arguments(self, rows: IntArray, packing: Packing | None) -> list[Any]:
        """Input ids, flat masked positions, attention; of packed rows documents and places."""
        inputs_BD, mask_BD = self.drawn.inputs_BD[rows], self.drawn.mask_BD[rows]
        if packing is None:
            attend_BD = None if self.attend is None else self.attend[rows]
            return [inputs_BD, np.flatnonzero(mask_BD), attend_BD]
        inputs_RD = packing.moved(inputs_BD, self.pad_id)
        return [inputs_RD, packing.flat(mask_BD), None, packing.documents(), packing.places()]


def _asking(mask_BD: NDArray[np.bool_]) -> IntArray | None:
    """Flat indices [B, M] of positions with all masked ones among them; None if nearly all.

    M is the largest count, so that they are a rectangle: what it has more of is not masked.
    """
    most, length = int(mask_BD.sum(1).max(initial=0)), mask_BD.shape[1]
    if most > MOST_ASKING * length:
        return None
    place_BM = np.argsort(~mask_BD, axis=1, kind="stable")[:, :most]
    return np.asarray(place_BM + length * np.arange(len(mask_BD))[:, None])


def _filled(values: NDArray[Any], spare: int, fill: int) -> NDArray[Any]:
    return np.concatenate([values, np.full(spare, fill, values.dtype)]) if spare else values


def code_weights(
    law: MaskPolicy, counts_B: IntArray, lengths_B: IntArray, progress: float
) -> FloatArray | None:
    """1 / (M q(M)) [B]: times its summed loss, an unbiased estimate of a sequence's code length.

    The code length of unseen sequences, before the update that they bring about, is the prequential
    score (Dawid 1984): E over M of (1/q(M)) (1/M) sum of losses = - sum over M of S(M). None where
    it is not defined: q must give every M a chance, and masks must be uniform and all [MASK].
    """
    if law.corruption != "mask" or law.structure.kind != "token":
        return None
    weights_B = np.zeros(len(counts_B))
    for length in np.unique(lengths_B[lengths_B > 0]):
        q_M, here = law.pmf(int(length), progress), lengths_B == length
        if not (q_M > 0).all():
            return None
        weights_B[here] = 1.0 / (counts_B[here] * q_M[counts_B[here] - 1])
    return weights_B


class Transfer:
    """Copies arrays to the device beside what it computes; on a CPU nothing is copied."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: Any = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, array: NDArray[Any]) -> Tensor:
        """The array as a tensor of the device, which may still be on its way."""
        tensor = torch.from_numpy(array)
        if self.stream is None:
            return tensor
        with torch.cuda.stream(self.stream):
            return tensor.pin_memory().to(self.device, non_blocking=True)

    def receive(self, tensors: Sequence[Tensor]) -> None:
        """What the device computes from now on waits for them; the host does not."""
        if self.stream is None:
            return
        now = torch.cuda.current_stream(self.device)
        now.wait_stream(self.stream)
        for tensor in tensors:
            tensor.record_stream(now)


@dataclass(frozen=True)
class Ready:
    """A batch, and this rank's parts of it on the device."""

    moment: Moment
    batch: Batch
    parts: Sequence[Part]


class Feed:
    """The batches of a training on one rank, each drawn and sent while the step before it runs."""

    def __init__(self, inputs: Inputs, ranks: Ranks) -> None:
        training = inputs.training
        self._inputs, self._transfer = inputs, Transfer(ranks.device)
        self._order = DataOrder(len(inputs.train.tokens), training.batch_size, inputs.seed)
        self._micro = micro_batch_size(training, ranks.world_size)
        mine = training.batch_size // ranks.world_size // self._micro
        self._mine = range(ranks.rank * mine, (ranks.rank + 1) * mine)
        self._static = ranks.device.type == "cuda" or training.compile
        self._ahead: Ready | None = None

    def take(self, moment: Moment) -> Ready:
        """The batch of a step: what was fetched for it, or else drawn now."""
        ready, self._ahead = self._ahead, None
        if ready is None or ready.moment != moment:
            ready = self._send(moment)
        self._transfer.receive([tensor for part in ready.parts for tensor in part.tensors()])
        return ready

    def fetch(self, moment: Moment) -> None:
        """Draw the batch of a later step, and begin to send it."""
        self._ahead = self._send(moment)

    def _send(self, moment: Moment) -> Ready:
        batch = self.draw(moment)
        return Ready(moment, batch, [self._part(batch, number) for number in self._mine])

    def _part(self, batch: Batch, number: int) -> Part:
        arguments, values = batch.arrays(number)
        send = self._transfer.send
        sent = tuple(None if array is None else send(array) for array in arguments)
        return Part(sent, *[send(array) for array in values])

    def draw(self, moment: Moment) -> Batch:
        """The masked global batch, the same on every rank."""
        inputs = self._inputs
        rows_B = self._order.rows(moment.step)
        tokens_BD, observed_BD = inputs.train.tokens[rows_B], inputs.train.observed[rows_B]
        drawn = draw_batch(
            moment.law,
            tokens_BD,
            observed_BD,
            progress=moment.progress,
            seed=inputs.seed,
            step=moment.step,
            mask_id=inputs.vocabulary_size,
            vocabulary_size=inputs.vocabulary_size,
            words_BD=None if inputs.joins is None else words_of(tokens_BD, inputs.joins),
        )
        counts_B, lengths_B = drawn.mask_BD.sum(1), observed_BD.sum(1)
        pad_id = inputs.vocabulary_size + 1
        return Batch(
            tokens_BD,
            attended(tokens_BD, pad_id),
            drawn,
            lengths_B,
            pad_id,
            self._code_weights(moment, counts_B, lengths_B),
            self._parts(counts_B),
            inputs.training.pack,
            self._head(moment),
        )

    def _code_weights(
        self, moment: Moment, counts_B: IntArray, lengths_B: IntArray
    ) -> FloatArray | None:
        """`code_weights` in the first epoch, zeros after it."""
        after = (moment.step + 1) * len(counts_B) > len(self._inputs.train.tokens)
        if after or not moment.code:
            return np.zeros(len(counts_B))
        return code_weights(moment.law, counts_B, lengths_B, moment.progress)

    def _parts(self, counts_B: IntArray) -> list[IntArray]:
        """Rows of each forward: neighbours, or dealt so that shapes can stand."""
        number = len(counts_B) // self._micro
        if self._static:
            return deal(counts_B, number)
        return list(np.arange(len(counts_B)).reshape(number, self._micro))

    def _head(self, moment: Moment) -> HeadRows | None:
        if not self._static:
            return None
        return HeadRows.of(moment.law, self._inputs.length, moment.progress, self._micro)
