"""What a step works on: the global batch with its masks, and this rank's part on the device.

The batch of a step is a pure function of the trial's seed, the step, the progress and the law of
the masks, so it can be drawn before its step, and any number of workers trains on the same.

Shape suffixes: B sequences of the global batch or a part of it, D positions, K masked positions
of that part in row-major order, followed by spare rows of weight 0 where tensor shapes are static;
V predictable symbols, R intervals of the mask rate.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mptune.data._table import Split
from mptune.errors import InputError
from mptune.lml.groups import BoolArray, FloatArray, IntArray
from mptune.models.base import MaskedModel
from mptune.policies._structures import words_of
from mptune.policies.base import RATE_BUCKETS, MaskedBatch, MaskPolicy, draw_batch, rate_bucket
from mptune.spec.deepspeed import micro_batch_size
from mptune.spec.schema import Training
from mptune.training.ranks import Ranks
from mptune.training.schedule import TrainingBudget

# --- which sequences are where -------------------------------------------------------------------

PHASES = 16
"""Parts of a training, each with a head shape of its own where the law of the mask count moves."""

DATA = "data.source"
"""Name of what the spec's data are, beside the domains that are mixed in."""

SHAPES, TILE = 16, 8
"""Most head shapes of a phase where sequences differ in length; tensor cores work in eights."""


MOST_SORTED = 1 << 22
"""Sequences of which an order is made by sorting, 0.5 s; of more, places are computed."""

ROUNDS, MIXER = 6, np.uint64(0x9E3779B97F4A7C15)
"""Of the network, more than the four that are enough for independent functions, and the odd number
(of the golden ratio) that mixes the bits of a half."""


def seeded_order(count: int, seed: int, stream: int = 0) -> IntArray:
    """A permutation of 0..count-1 that depends on seed and stream alone.

    Philox's raw words are the same in every version of numpy; `Generator.permutation` need not be.
    """
    words = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(count)
    return np.argsort(words, kind="stable")


def scattered(place_B: IntArray, count: int, seed: int, stream: int = 0) -> IntArray:
    """What a seeded permutation of 0..count-1 has at these places, without making all of it.

    A Feistel network (Luby & Rackoff 1988) permutes the smallest square of a power of two that is
    not below `count`; what falls outside is sent through again (Black & Rogaway 2002).
    """
    half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))
    low, shift = np.uint64((1 << int(half)) - 1), np.uint64(64) - half
    keys = np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(ROUNDS)
    value_B, again = place_B.astype(np.uint64), np.arange(len(place_B))
    while len(again):
        left, right = value_B[again] >> half, value_B[again] & low
        for key in keys:
            mixed = (right ^ key) * MIXER
            left, right = right, left ^ ((mixed ^ mixed >> np.uint64(32)) * MIXER >> shift)
        value_B[again] = left << half | right
        again = again[value_B[again] >= count]
    return value_B.astype(np.int64)


class DataOrder:
    """The training sequences in a new seeded order each epoch, cut into batches.

    Of many sequences the order is not kept: 490 million would take minutes and 12 GB an epoch.

    A batch may begin in one epoch and end in the next, so every sequence comes exactly once per
    epoch and none is dropped. Steps may be asked for in any order.

    Args:
        stream: keeps the orders of several sources apart.

    Raises:
        InputError: there are no sequences.
    """

    def __init__(self, sequences: int, batch_size: int, seed: int, stream: int = 0) -> None:
        if sequences < 1:
            raise InputError("the training split has no sequences")
        self.sequences, self.batch_size, self.seed = sequences, batch_size, seed
        self._stream = stream << 32
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def rows(self, step: int) -> IntArray:
        """Rows [B] of the training split that make up the batch of a step, from step 0 on."""
        return self.between(step * self.batch_size, (step + 1) * self.batch_size)

    def between(self, first: int, end: int) -> IntArray:
        """Rows [B] at the places `first` to `end` - 1 of all epochs in a row."""
        positions_B = np.arange(first, end)
        epoch_B, place_B = np.divmod(positions_B, self.sequences)
        parts = [np.zeros(0, np.int64)]
        for epoch in np.unique(epoch_B):
            if self.sequences > MOST_SORTED:
                places = place_B[epoch_B == epoch]
                stream = self._stream + int(epoch)
                parts.append(scattered(places, self.sequences, self.seed, stream))
                continue
            if epoch != self._epoch:
                self._epoch = int(epoch)
                stream = self._stream + self._epoch
                self._order = seeded_order(self.sequences, self.seed, stream)
            parts.append(self._order[place_B[epoch_B == epoch]])
        return np.concatenate(parts)


class Sources:
    """The sequences of several sources, of which every batch has as many as their weights say.

    Of the first n rows of a training a source has n times its share, to within one row, whatever n
    is. Each source comes in an order of its own.

    Args:
        weighted: split and weight of each source by its name.
    """

    def __init__(
        self, weighted: Mapping[str, tuple[Split, float]], batch_size: int, seed: int
    ) -> None:
        self.splits, self.batch_size = {n: split for n, (split, _) in weighted.items()}, batch_size
        weights = np.array([weight for _, weight in weighted.values()], np.float64)
        self._ends = weights.cumsum() / weights.cumsum()[-1]
        for split in self.splits.values():
            if len(split) > MOST_SORTED:
                read_at_random(split)
        self._orders = [
            DataOrder(len(split), batch_size, seed, stream)
            for stream, split in enumerate(self.splits.values())
        ]

    def drawn(self, steps: int) -> dict[str, int]:
        """Rows of each source that the first steps draw."""
        ends = np.floor(steps * self.batch_size * self._ends + 0.5).astype(int)
        return dict(zip(self.splits, np.diff(ends, prepend=0).tolist(), strict=True))

    def batch(self, step: int) -> tuple[NDArray[Any], BoolArray]:
        """Tokens and observed positions [B, D] of the batch of a step, from step 0 on."""
        ranges = zip(self.drawn(step).values(), self.drawn(step + 1).values(), strict=True)
        parts = []
        for order, split, (first, end) in zip(
            self._orders, self.splits.values(), ranges, strict=True
        ):
            rows_B = order.between(first, end)
            parts.append((split.tokens[rows_B], split.observed[rows_B]))
        tokens, observed = zip(*parts, strict=True)
        return np.concatenate(tokens), np.concatenate(observed)

    def unseen(self, step: int) -> bool:
        """Whether no row of a step's batch was drawn before."""
        return all(n <= len(self.splits[name]) for name, n in self.drawn(step + 1).items())


def attended(tokens_BD: NDArray[Any], pad_id: int) -> BoolArray | None:
    """Positions that may be attended to, or None if none is padding (the fast path).

    A sequence of padding alone attends to itself: a softmax over nothing would be NaN.
    """
    attend_BD: BoolArray = tokens_BD != pad_id
    if attend_BD.all():
        return None
    attend_BD[~attend_BD.any(1)] = True
    return attend_BD


def deal(counts_B: IntArray, parts: int) -> list[IntArray]:
    """Rows of the batch for each of some equal parts, whose masked positions differ little.

    Sorted by their counts, one row of every `parts` goes to each part, in alternating order. Which
    part a row is in changes no sum over the batch.
    """
    order_B = np.argsort(-counts_B, kind="stable").reshape(-1, parts)
    order_B[1::2] = order_B[1::2, ::-1]
    return [np.sort(rows) for rows in order_B.T]


@dataclass(frozen=True)
class Packing:
    """Where each sequence lies when several short ones share a row, to compute less padding.

    Attributes:
        row_B: the packed row of each sequence.
        start_B: its first position there.
        length_B: its positions, without trailing padding.
        rows: R.
        width: D.
    """

    row_B: IntArray
    start_B: IntArray
    length_B: IntArray
    rows: int
    width: int

    @classmethod
    def of(cls, attend_BD: BoolArray) -> Packing:
        """First fit, longest first (Johnson 1973); at most 11/9 of the fewest rows, plus one.

        Args:
            attend_BD: positions that are not padding.
        """
        batch, width = attend_BD.shape
        length_B = np.where(attend_BD.any(1), width - attend_BD[:, ::-1].argmax(1), 1)
        row_B, start_B = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        filled: list[int] = []
        for i in np.argsort(-length_B, kind="stable").tolist():
            need = int(length_B[i])
            row = next((r for r, used in enumerate(filled) if used + need <= width), len(filled))
            if row == len(filled):
                filled.append(0)
            row_B[i], start_B[i] = row, filled[row]
            filled[row] += need
        return cls(row_B, start_B, length_B, len(filled), width)

    def moved(self, values_BD: NDArray[Any], fill: int) -> NDArray[Any]:
        """Values of the sequences at their places in the packed rows, [R, D]."""
        out_RD = np.full((self.rows, self.width), fill, values_BD.dtype)
        inside_BD = np.arange(self.width) < self.length_B[:, None]
        out_RD.flat[self.flat(inside_BD)] = values_BD[inside_BD]
        return out_RD

    def flat(self, chosen_BD: BoolArray) -> IntArray:
        """Flat indices in the packed rows of chosen positions, in row-major order of these."""
        first_B = self.row_B * self.width + self.start_B
        sequence_K, place_K = np.nonzero(chosen_BD)
        return np.asarray(first_B[sequence_K] + place_K)

    def documents(self) -> IntArray:
        """The sequence at each position, [R, D]; -1 at padding."""
        batch = len(self.row_B)
        numbers_BD = np.broadcast_to(np.arange(batch)[:, None], (batch, self.width))
        return self.moved(numbers_BD, -1)

    def places(self) -> IntArray:
        """The position inside its sequence, [R, D]; 0 at padding."""
        batch = len(self.row_B)
        return self.moved(np.broadcast_to(np.arange(self.width), (batch, self.width)), 0)


def most_masked(law: MaskPolicy, length: int, progress: float, sequences: int) -> int:
    """The most masked positions that a dealt part of full sequences has, whatever is drawn.

    Systematic draws are Q((i + U) / B), so the g-th smallest of a part of m of them is at most
    Q((g + 1) / m): the sum varies by no more than the longest count less the shortest.

    Args:
        law: what the counts are drawn from.
        length: observed positions of every sequence.
        progress: s in [0, 1].
        sequences: m, of the part.
    """
    upper_m = (np.arange(sequences) + 1) / sequences
    cumulative_M = np.cumsum(law.pmf(length, progress))
    counts_m = 1 + np.searchsorted(cumulative_M[:-1], upper_m - 1e-12, side="left")
    return int(counts_m.sum())


@dataclass(frozen=True)
class HeadRows:
    """How many rows a part's head computes during one phase of a training.

    The masked positions of a batch vary little, because its counts are drawn systematically. Spare
    rows have weight 0.

    Attributes:
        most: masked positions that full sequences have at most.
    """

    most: int

    @classmethod
    def of(cls, law: MaskPolicy, length: int, progress: float, sequences: int) -> HeadRows:
        """Those of the phase that this progress is in; arguments as `most_masked`."""
        phase = min(int(progress * PHASES), PHASES - 1)
        ends = (phase / PHASES, (phase + 1) / PHASES)
        return cls(max(most_masked(law, length, end, sequences) for end in ends))

    def padded(self, masked: int, full: bool) -> int:
        """Rows for `masked` positions, at least as many.

        Args:
            masked: positions of the part that are masked.
            full: every sequence of the batch has all its positions observed; the result is then
                always the same.
        """
        step = TILE * -(-self.most // (SHAPES * TILE))
        return step * -(-max(masked, self.most if full else 1) // step)


# --- what a step works on ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a trial trains with; the same on every rank."""

    number: int
    seed: int
    training: Training
    rungs: tuple[float, ...]
    policy: MaskPolicy
    family: MaskedModel
    train: Split
    mixed: Mapping[str, Split] = field(default_factory=dict)
    """What `training.mix` adds, by domain."""
    vocabulary_size: int
    axes: tuple[int, ...] = ()
    """Sizes of the grid that positions lie on, each with an embedding; empty if they are a line."""
    joins: BoolArray | None = None
    """Which symbols continue the word to their left and right, bool [2, ids]; see `words_of`."""

    @property
    def length(self) -> int:
        return int(self.train.tokens.shape[1])

    @property
    def parameters(self) -> int:
        """Parameters of the model, those of the grid included."""
        grid = sum(self.axes) * (self.family.width or 0)
        return self.family.parameters(self.vocabulary_size + 2, self.length) + grid

    def sources(self) -> Sources:
        """What the batches are drawn from."""
        # In an order that the spec's order of keys does not change, as no hash of it does.
        weighted = {n: (self.mixed[n], self.training.mix[n]) for n in sorted(self.mixed)}
        first = {DATA: (self.train, 1.0)}
        return Sources({**first, **weighted}, self.training.batch_size, self.seed)

    def step_flops(self, masked: int, rows: int, length: int | None = None) -> float:
        """FLOPs of one step.

        Args:
            masked: positions of the global batch that are masked.
            rows: that the model computes; packed, fewer than the batch has sequences.
            length: of a row, if it is a piece of a sequence.
        """
        return self.family.flops(self.vocabulary_size + 2, length or self.length, rows, masked)

    def budget(self) -> TrainingBudget:
        """What the training may spend."""
        rows = self.training.batch_size
        masked = round(self.policy.mean_rate(self.length) * rows * self.length)
        return TrainingBudget.of(self.training, rows * self.length, self.step_flops(masked, rows))


@dataclass(frozen=True)
class BatchKey:
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
    (B for a spare row); _B per sequence: whether it has masked positions, how many (at least 1),
    and the interval of its mask rate.
    """

    arguments: tuple[Tensor | None, ...]
    target_K: Tensor
    weight_K: Tensor
    sequence_K: Tensor
    seen_B: Tensor
    count_B: Tensor
    bucket_B: Tensor
    code_B: Tensor
    """Factor of a sequence's summed loss in the prequential code length."""

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
    """The global batch of one step, and how it is split into forwards."""

    tokens: NDArray[Any]
    attend: BoolArray | None
    drawn: MaskedBatch
    lengths: IntArray
    pad_id: int
    code_B: FloatArray | None
    """See `code_weights`; None if the code length is not defined."""
    parts: Sequence[IntArray]
    """Rows of each forward, those of rank 0 first."""
    pack: bool = False
    head: HeadRows | None = None
    """How many rows a forward's head has; None: as many as there are masked positions."""

    @cached_property
    def counts(self) -> IntArray:
        """Masked positions of each sequence, [B]."""
        return self.drawn.mask_BD.sum(1)

    @property
    def masked(self) -> int:
        return int(self.counts.sum())

    @property
    def observed(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def packings(self) -> list[Packing | None]:
        """Where each part's sequences lie, if packed; without padding nothing can be gained."""
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
        rows, packing = self.parts[number], self.packings[number]
        inputs_BD, mask_BD = self.drawn.inputs_BD[rows], self.drawn.mask_BD[rows]
        count_B = self.counts[rows]
        spare = self.head_rows[number] - int(count_B.sum())
        # Spare rows look at different positions: adding up gradients at one would be a queue.
        arguments: list[NDArray[Any] | None]
        if packing is None:
            filled_K = np.arange(spare) % inputs_BD.size
            attend_BD = None if self.attend is None else self.attend[rows]
            arguments = [inputs_BD, np.append(np.flatnonzero(mask_BD), filled_K), attend_BD]
        else:
            inputs_RD = packing.moved(inputs_BD, self.pad_id)
            filled_K = np.arange(spare) % inputs_RD.size
            flat_K = np.append(packing.flat(mask_BD), filled_K)
            arguments = [inputs_RD, flat_K, None, packing.documents(), packing.places()]

        def padded(values_K: NDArray[Any], fill: int) -> NDArray[Any]:
            return np.concatenate([values_K, np.full(spare, fill, values_K.dtype)])

        weight_K = np.repeat(self.drawn.weight_B[rows] / self.drawn.normaliser, count_B)
        return arguments, [
            padded(self.tokens[rows][mask_BD].astype(np.int64), 0),
            padded(weight_K.astype(np.float32), 0),
            padded(np.repeat(np.arange(len(rows)), count_B), len(rows)),
            (count_B > 0).astype(np.float64),
            np.maximum(count_B, 1),
            rate_bucket(count_B, self.lengths[rows]),
            np.zeros(len(rows)) if self.code_B is None else self.code_B[rows],
        ]


def code_weights(
    law: MaskPolicy, counts_B: IntArray, lengths_B: IntArray, progress: float
) -> FloatArray | None:
    """1 / (M q(M)) [B]: times its summed loss, an unbiased estimate of a sequence's code length.

    The code length of unseen sequences, before the update that they cause, is the prequential
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


def read_at_random(split: Split) -> None:
    """Ask the system not to read on: a batch is of rows that lie far apart in the files."""
    for array in (split.tokens, split.observed):
        mapped = getattr(array, "_mmap", None)
        if mapped is not None:
            mapped.madvise(mmap.MADV_RANDOM)


class Feed:
    """The batches of a training on one rank, each drawn and sent while the step before it runs."""

    def __init__(self, inputs: Inputs, ranks: Ranks) -> None:
        training = inputs.training
        self._inputs, self._ranks, self._sources = inputs, ranks, inputs.sources()
        self._micro = micro_batch_size(training, ranks.world_size)
        mine = training.batch_size // ranks.world_size // self._micro
        self._mine = range(ranks.rank * mine, (ranks.rank + 1) * mine)
        self._static = ranks.device.type == "cuda" or training.compile
        self._stream: Any = None
        if ranks.device.type == "cuda":
            self._stream = torch.cuda.Stream(ranks.device)  # type: ignore[no-untyped-call]
        self._ahead: tuple[BatchKey, Batch, list[Part]] | None = None

    def take(self, key: BatchKey) -> tuple[Batch, list[Part]]:
        """The batch of a step and this rank's parts of it: the one fetched, or else drawn now."""
        if self._ahead is None or self._ahead[0] != key:
            self.fetch(key)
        assert self._ahead is not None
        (_, batch, parts), self._ahead = self._ahead, None
        if self._stream is not None:
            # What the device computes from now on waits for the tensors; the host does not.
            now = torch.cuda.current_stream(self._ranks.device)
            now.wait_stream(self._stream)
            for part in parts:
                for tensor in part.tensors():
                    tensor.record_stream(now)
        return batch, parts

    def fetch(self, key: BatchKey) -> None:
        """Draw the batch of a later step, and begin to send it to the device."""

        def send(array: NDArray[Any]) -> Tensor:
            with torch.cuda.stream(self._stream):  # None: no other stream
                return self._ranks.send(array)

        batch, parts = self.draw(key), []
        for number in self._mine:
            arguments, values = batch.arrays(number)
            sent = tuple(None if array is None else send(array) for array in arguments)
            parts.append(Part(sent, *[send(array) for array in values]))
        self._ahead = key, batch, parts

    def draw(self, key: BatchKey) -> Batch:
        """The masked global batch, the same on every rank."""
        inputs, law, progress = self._inputs, key.law, key.progress
        tokens_BD, observed_BD = self._sources.batch(key.step)
        context, is_cut = inputs.training.context, False
        if context is not None and progress < context.until:
            is_cut = True  # from here on B counts pieces
            tokens_BD = tokens_BD.reshape(-1, context.length)
            observed_BD = observed_BD.reshape(tokens_BD.shape)
        drawn = draw_batch(
            law,
            tokens_BD,
            observed_BD,
            progress=progress,
            seed=inputs.seed,
            step=key.step,
            mask_id=inputs.vocabulary_size,
            vocabulary_size=inputs.vocabulary_size,
            words_BD=None if inputs.joins is None else words_of(tokens_BD, inputs.joins),
        )
        counts_B, lengths_B = drawn.mask_BD.sum(1), observed_BD.sum(1)
        # Only sequences that were not trained on before count in the code length.
        code_B: FloatArray | None = np.zeros(len(tokens_BD))
        if key.code and not is_cut and self._sources.unseen(key.step):
            code_B = code_weights(law, counts_B, lengths_B, progress)
        number, head = inputs.training.batch_size // self._micro, None
        parts = list(np.arange(len(tokens_BD)).reshape(number, -1))
        if self._static:
            parts = deal(counts_B, number)
            head = HeadRows.of(law, tokens_BD.shape[1], progress, len(parts[0]))
        pad_id, pack = inputs.vocabulary_size + 1, inputs.training.pack
        attend_BD = attended(tokens_BD, pad_id)
        return Batch(tokens_BD, attend_BD, drawn, lengths_B, pad_id, code_B, parts, pack, head)
