"""The training loop.

The batch of a step, its masks and its learning rate are pure functions of the trial's seed and of
what was spent, so any number of workers trains on the same global batches, and a resumed training
is the same training.

Shape suffixes: B sequences of the global batch or a part of it, D positions, K masked positions
of that part in row-major order, V predictable symbols.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from mptune.configuration import micro_batch_size
from mptune.data.table import Split
from mptune.errors import NonFiniteLoss
from mptune.models.base import ModelFamily
from mptune.policies._structures import words_of
from mptune.policies.base import (
    RATE_BUCKETS,
    LossByRate,
    MaskedBatch,
    MaskPolicy,
    draw_batch,
    rate_bucket,
)
from mptune.spec import Training, build
from mptune.training import engine as ds
from mptune.training.batches import DataOrder, attended, rank_slice
from mptune.training.checkpoint import Checkpoints
from mptune.training.packing import Packing
from mptune.training.ranks import Ranks
from mptune.training.schedule import Budget, learning_rate_factor
from mptune.training.scoring import AtRung
from mptune.trial import Control, LearningPoint, Progress, Rung, StopReason

PROGRESS_EVERY_S = 0.5

MEMORY = 0.5
"""Share of what a policy has seen that it keeps when it chooses its law again: losses fall."""

STOPS: tuple[StopReason | None, ...] = (None, "pruned", "interrupted", "preempted")
"""Rank 0's stop reason travels between the ranks as its index; any rank may be preempted."""

RungScore = Callable[[], AtRung]
"""Scores the model as it is, on all ranks."""


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
class Part:
    """What one forward works on.

    `arguments` are the model's; _K per masked position: the true symbol, the weight, the sequence;
    _B per sequence: the masked positions, the interval of its mask rate.
    """

    arguments: tuple[Tensor | None, ...]
    target_K: Tensor
    weight_K: Tensor
    sequence_K: Tensor
    count_B: Tensor
    bucket_B: Tensor
    code_B: Tensor
    """What a sequence's summed loss counts in the prequential code length."""


@dataclass(frozen=True)
class Batch:
    """The global batch of one step."""

    tokens: NDArray[Any]
    attend: NDArray[np.bool_] | None
    drawn: MaskedBatch
    lengths: NDArray[np.int64]
    pad_id: int
    code_B: NDArray[np.float64]
    """See `code_weights`; zeros where the code length is not defined."""
    pack: bool = False

    @property
    def masked(self) -> int:
        return int(self.drawn.mask_BD.sum())

    @property
    def observed(self) -> int:
        return int(self.lengths.sum())

    def packing(self, rows: slice) -> Packing | None:
        """Where some sequences lie, if they are packed; nothing is to gain without padding."""
        return Packing.of(self.attend[rows]) if self.pack and self.attend is not None else None

    def rows_computed(self, parts: Sequence[slice]) -> int:
        """Rows that the model computes for these parts."""
        packed = [self.packing(part) for part in parts]
        return sum(
            part.stop - part.start if found is None else found.rows
            for part, found in zip(parts, packed, strict=True)
        )

    def on(self, rows: slice, device: torch.device) -> Part:
        """Some sequences, on the device."""
        mask_BD = self.drawn.mask_BD[rows]
        count_B = mask_BD.sum(1)
        arrays = (
            *self._arguments(rows),
            self.tokens[rows][mask_BD].astype(np.int64),
            np.repeat(self.drawn.weight_B[rows] / self.drawn.normaliser, count_B),
            np.repeat(np.arange(len(count_B)), count_B),
            np.maximum(count_B, 1),
            rate_bucket(count_B, self.lengths[rows]),
            self.code_B[rows],
        )
        *arguments, target, weight, sequence, count, bucket, code = (
            None if a is None else torch.from_numpy(a).to(device, non_blocking=True) for a in arrays
        )
        known = [t for t in (target, weight, sequence, count, bucket, code) if t is not None]
        return Part(tuple(arguments), *known)

    def _arguments(self, rows: slice) -> tuple[NDArray[Any] | None, ...]:
        """Input ids, flat masked positions, attention; of packed rows documents and places."""
        inputs_BD, mask_BD = self.drawn.inputs_BD[rows], self.drawn.mask_BD[rows]
        packing = self.packing(rows)
        if packing is None:
            attend_BD = None if self.attend is None else self.attend[rows]
            return inputs_BD, np.flatnonzero(mask_BD), attend_BD
        inputs_RD = packing.moved(inputs_BD, self.pad_id)
        return inputs_RD, packing.flat(mask_BD), None, packing.documents(), packing.places()


def code_weights(
    law: MaskPolicy,
    counts_B: NDArray[np.int64],
    lengths_B: NDArray[np.int64],
    progress: float,
) -> NDArray[np.float64] | None:
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


@dataclass(frozen=True)
class Agreed:
    """What all ranks know about a step before any of them updates its weights."""

    objective: float
    loss_sum: float
    failures: int
    stop: StopReason | None
    checkpoint: bool
    seconds: float
    by_rate: NDArray[np.float64]
    """Sums of 1, y and y^2 over sequences by interval of the mask rate, [3, R]; y as in
    `LossByRate`."""
    code: float
    """Prequential code length of this batch, nats."""


class Loop:
    """One training on one rank."""

    def __init__(
        self,
        inputs: Inputs,
        engine: Any,
        ranks: Ranks,
        checkpoints: Checkpoints,
        rung_score: RungScore,
    ) -> None:
        self.inputs, self.engine, self.ranks = inputs, engine, ranks
        self.checkpoints, self.rung_score = checkpoints, rung_score
        self.budget = inputs.budget()
        self.spent = checkpoints.load(engine)
        self.stopped: StopReason | None = None
        training = inputs.training
        self._order = DataOrder(len(inputs.train.tokens), training.batch_size, inputs.seed)
        share = rank_slice(training.batch_size, ranks.rank, ranks.world_size)
        micro = micro_batch_size(training, ranks.world_size)
        self._parts = [slice(at, at + micro) for at in range(share.start, share.stop, micro)]
        self._all_parts = [slice(at, at + micro) for at in range(0, training.batch_size, micro)]
        self._law = self._current_law()
        self._seen = np.zeros((3, RATE_BUCKETS))
        self._norm: float | None = None
        self.seconds = self.spent.seconds
        self._saved_at = time.monotonic()
        self._told = (-math.inf, 0, 0.0, 0.0)

    @property
    def progress(self) -> float:
        """s, the fraction of the budget that is spent."""
        return self.budget.progress(self.spent)

    def run(self, control: Control) -> Iterator[Progress | Rung]:
        """Train until the budget is spent or someone asks to stop; then `stopped` says why."""
        self._told = (time.monotonic(), self.spent.tokens, self.seconds, self.spent.flops)
        # A checkpoint is written before the rung of its step is scored.
        yield from self._rungs_reached(control)
        while self.progress < 1.0 and self.stopped is None:
            event = self._step(control)
            if event is not None:
                yield event
            yield from self._rungs_reached(control)

    def _step(self, control: Control) -> Progress | None:
        """One optimizer step on the global batch."""
        began = time.monotonic()
        batch = self._draw()
        rate = self._set_learning_rate()
        self._seed_dropout()
        sums = torch.zeros(3 + 3 * RATE_BUCKETS, dtype=torch.float64, device=self.ranks.device)
        for part in self._parts[:-1]:
            self._backward(self._forward(batch, part, sums))
            self.engine.step()
        objective, error = self._attempt(batch, self._parts[-1], sums)
        said = self._say(sums, error, control, self.seconds + time.monotonic() - began)
        ahead = self.ranks.overlaps and error is None
        if ahead:
            self._backward(objective)
        agreed = self._agree(said())
        if agreed.failures:
            self.ranks.raise_together(error)
        if not (math.isfinite(agreed.objective) and math.isfinite(agreed.loss_sum)):
            raise NonFiniteLoss(self.spent.steps, agreed.objective)
        if not ahead:
            self._backward(objective)
        self._update()
        self.seconds += time.monotonic() - began
        self._account(batch, agreed)
        self._act_on(agreed)
        return self._tell(batch, agreed, rate)

    def _draw(self) -> Batch:
        """The masked global batch, the same on every rank."""
        inputs, step = self.inputs, self.spent.steps
        rows_B = self._order.rows(step)
        tokens_BD, observed_BD = inputs.train.tokens[rows_B], inputs.train.observed[rows_B]
        drawn = draw_batch(
            self._law,
            tokens_BD,
            observed_BD,
            progress=self.progress,
            seed=inputs.seed,
            step=step,
            mask_id=inputs.vocabulary_size,
            vocabulary_size=inputs.vocabulary_size,
            words_BD=None if inputs.joins is None else words_of(tokens_BD, inputs.joins),
        )
        pad_id = inputs.vocabulary_size + 1
        attend_BD = attended(tokens_BD, pad_id)
        lengths_B, pack = observed_BD.sum(1), inputs.training.pack
        code_B = self._code_weights(drawn.mask_BD.sum(1), lengths_B)
        return Batch(tokens_BD, attend_BD, drawn, lengths_B, pad_id, code_B, pack)

    def _code_weights(
        self, counts_B: NDArray[np.int64], lengths_B: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """`code_weights` in the first epoch; no code length where the law does not allow one."""
        spent, inputs = self.spent, self.inputs
        after = (spent.steps + 1) * inputs.training.batch_size > len(inputs.train.tokens)
        if spent.code is None or after:
            return np.zeros(len(counts_B))
        weights_B = code_weights(self._law, counts_B, lengths_B, self.progress)
        if weights_B is None:
            spent.code = None
            return np.zeros(len(counts_B))
        return weights_B

    def _current_law(self) -> MaskPolicy:
        """The policy as it is; of one that learns, what it learned last."""
        policy, learned = self.inputs.policy, self.spent.learned
        if policy.relearn_every is None:
            return policy
        if not learned:
            first = policy.learn(LossByRate.of_sums(np.zeros((3, RATE_BUCKETS))))
            learned.append((0.0, first.model_dump(mode="json")))
        law: MaskPolicy = build("policy", learned[-1][1])
        return law

    def _learn(self, agreed: Agreed) -> None:
        """Add to what a policy learns from, and let it choose its law again when that is due."""
        every, spent = self.inputs.policy.relearn_every, self.spent
        if every is None:
            return
        seen_3R = np.asarray(spent.by_rate or np.zeros((3, RATE_BUCKETS))) + agreed.by_rate
        if self.progress - spent.learned[-1][0] >= every and self.progress < 1.0:
            law = self.inputs.policy.learn(LossByRate.of_sums(seen_3R))
            spent.learned.append((self.progress, law.model_dump(mode="json")))
            self._law = law
            seen_3R = seen_3R * MEMORY
        spent.by_rate = seen_3R.tolist()

    def _set_learning_rate(self) -> float:
        """At the middle of the step, so that not even the first step of a warm-up is idle."""
        steps = self.budget.expected_steps(self.spent)
        middle = self.progress + (0.5 / steps if steps else 0.0)
        ds.set_learning_rate(
            self.engine, learning_rate_factor(self.inputs.training.schedule, middle)
        )
        return ds.learning_rate(self.engine)

    def _seed_dropout(self) -> None:
        """A resumed training draws the same dropout; ranks and steps draw different ones."""
        if self.inputs.family.dropout:
            key = [self.inputs.seed, self.spent.steps, self.ranks.rank]
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def _forward(self, batch: Batch, rows: slice, sums: Tensor) -> Tensor:
        """These rows' share of the objective; adds it, and what `Agreed` has of it, to `sums`."""
        part = batch.on(rows, self.ranks.device)
        logits_KV = self.engine(*part.arguments)
        loss_K = cross_entropy(logits_KV.float(), part.target_K, reduction="none")
        objective = (loss_K * part.weight_K.float()).sum()
        with torch.no_grad():
            sums[:2] += torch.stack([objective.double(), loss_K.double().sum()])
            sums[2:-1] += _by_rate(part, loss_K.double())
            sums[-1] += (loss_K.double() * part.code_B[part.sequence_K]).sum()
        return objective

    def _attempt(self, batch: Batch, rows: slice, sums: Tensor) -> tuple[Tensor, Exception | None]:
        """`_forward`, with an error (out of memory, say) kept until all ranks know of it."""
        try:
            return self._forward(batch, rows, sums), None
        except Exception as error:
            return torch.zeros(()), error

    def _backward(self, objective: Tensor) -> None:
        """Accumulate gradients.

        DeepSpeed averages over ranks, and the objective is to be summed. It has the normaliser of
        the global batch, so accumulation must not scale it.
        """
        self.engine.backward(objective * self.ranks.world_size, scale_wrt_gas=False)

    def _update(self) -> None:
        """Update the weights from the gradients of all parts."""
        due = time.monotonic() - self._told[0] >= PROGRESS_EVERY_S
        before = ds.gradient_norm(self.engine) if due and ds.norm_before_step(self.engine) else None
        self.engine.step()
        if due:
            self._norm = before or ds.gradient_norm(self.engine)

    def _say(
        self, sums: Tensor, error: Exception | None, control: Control, seconds: float
    ) -> Callable[[], NDArray[np.float64]]:
        """Begin the one reduction of a step: sums of all ranks, decisions of rank 0."""
        asked = control.stop_requested()
        says = [float(error is not None), float(asked == "preempted"), 0.0, 0.0, 0.0]
        if self.ranks.first:
            due = time.monotonic() - self._saved_at > self.inputs.training.checkpoint_every_s
            stop = 0 if asked == "preempted" else STOPS.index(asked)
            says[2:] = [float(stop), float(due), seconds]
        said = torch.tensor(says, dtype=torch.float64).to(sums.device, non_blocking=True)
        return self.ranks.total_later(torch.cat([said, sums]))

    def _agree(self, total: NDArray[np.float64]) -> Agreed:
        """What `_say` of all ranks comes to."""
        failures, leave, stop_, due_, seconds, objective, loss_sum = total[:7].tolist()
        by_rate_3R, code = total[7:-1].reshape(3, RATE_BUCKETS), float(total[-1])
        stop = STOPS[int(stop_)] or ("preempted" if leave else None)
        return Agreed(
            objective, loss_sum, int(failures), stop, bool(due_), seconds, by_rate_3R, code
        )

    def _account(self, batch: Batch, agreed: Agreed) -> None:
        spent, masked = self.spent, batch.masked
        spent.steps += 1
        rows = batch.rows_computed(self._all_parts)
        spent.tokens += rows * self.inputs.length
        spent.observed += batch.observed
        spent.masked += masked
        spent.flops += self.inputs.step_flops(masked, rows)
        spent.seconds = agreed.seconds
        spent.record(self.progress, agreed.loss_sum, masked)
        if spent.code is not None and batch.code_B.any():
            spent.code = (spent.code[0] + agreed.code, spent.code[1] + batch.observed)
        self._seen += agreed.by_rate
        self._learn(agreed)

    def _act_on(self, agreed: Agreed) -> None:
        """Stop after this step, and keep what an interrupted or long training has reached."""
        self.stopped = agreed.stop
        if agreed.checkpoint or agreed.stop in ("interrupted", "preempted"):
            self.checkpoints.save(self.engine, self.spent)
            self._saved_at = time.monotonic()

    def _tell(self, batch: Batch, agreed: Agreed, rate: float) -> Progress | None:
        """A progress event, if the last one is long ago or this is the last step."""
        now, tokens = time.monotonic(), self.spent.tokens
        since, tokens_then, seconds_then, flops_then = self._told
        if now - since < PROGRESS_EVERY_S and self.progress < 1.0:
            return None
        self._told = (now, tokens, self.seconds, self.spent.flops)
        passed_s = max(self.seconds - seconds_then, 1e-9)
        flops_per_s = (self.spent.flops - flops_then) / passed_s
        by_rate = _mean_by_rate(self._seen)
        self._seen = np.zeros((3, RATE_BUCKETS))
        return Progress(
            number=self.inputs.number,
            step=self.spent.steps,
            total_steps=self.budget.expected_steps(self.spent),
            progress=self.progress,
            loss=agreed.loss_sum / max(batch.masked, 1),
            mask_rate=batch.masked / max(batch.observed, 1),
            learning_rate=rate,
            tokens_per_s=(tokens - tokens_then) / passed_s,
            flops_per_s=flops_per_s,
            utilisation=ds.utilisation(flops_per_s, self.ranks),
            gradient_norm=self._norm,
            loss_by_rate=by_rate,
        )

    def _rungs_reached(self, control: Control) -> Iterator[Rung]:
        """Report at each rung that this step reached, and wait for the decision."""
        rungs, done = self.inputs.rungs, len(self.spent.rungs)
        while self.stopped is None and done < len(rungs) and self.progress >= rungs[done]:
            found = self.rung_score()
            point = self._learning_point(found)
            rung = Rung(number=self.inputs.number, index=done, **point.model_dump())
            yield rung
            go_on = self.ranks.from_first(self.ranks.first and control.go_on(rung))
            self.spent.rungs.append((self.progress, found.nats_per_token))
            self.spent.learning.append(point.model_dump())
            self.spent.rung_scores.append(found.nats_per_sequence_n.tolist())
            self.stopped = None if go_on else "pruned"
            done += 1

    def _learning_point(self, found: AtRung) -> LearningPoint:
        """The score as it is, with what it has cost."""
        return LearningPoint(
            progress=self.progress,
            tokens=self.spent.tokens,
            flops=self.spent.flops,
            seconds=self.seconds,
            nats_per_token=found.nats_per_token,
            se=found.se,
        )


def _by_rate(part: Part, loss_K: Tensor) -> Tensor:
    """Sums of 1, y and y^2 by interval of the mask rate, y a sequence's mean loss; flat [3 R]."""
    y_B = torch.zeros(len(part.count_B), dtype=loss_K.dtype, device=loss_K.device)
    y_B = y_B.index_add_(0, part.sequence_K, loss_K) / part.count_B
    here_B = torch.zeros_like(y_B).index_fill_(0, part.sequence_K, 1.0)
    sums_3R = y_B.new_zeros(3, RATE_BUCKETS)
    return sums_3R.index_add_(1, part.bucket_B, torch.stack([here_B, y_B, y_B**2])).flatten()


def _mean_by_rate(sums_3R: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    """(middle of the interval, mean loss in nats per masked position) where there is one."""
    losses = LossByRate.of_sums(sums_3R)
    return tuple(
        ((k + 0.5) / RATE_BUCKETS, float(losses.mean[k])) for k in np.flatnonzero(losses.count)
    )


def learned_policy(policy: MaskPolicy, learned: Sequence[tuple[float, Any]]) -> Any:
    """What a policy learned, as a policy that draws the same without learning; None if it did not.

    Args:
        policy: the policy that learned.
        learned: (progress, law) of each choice, the first at 0.
    """
    if not learned:
        return None
    outer = {name: getattr(policy, name) for name in ("reduction", "corruption")}
    outer["structure"] = policy.structure.model_dump(mode="json")
    inner = [
        {"at": at, "policy": {k: v for k, v in law.items() if k not in outer}}
        for at, law in learned
    ]
    return learned[0][1] if len(inner) == 1 else {"kind": "step", **outer, "stages": inner}
