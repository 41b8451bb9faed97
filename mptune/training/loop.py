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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from mptune.data.table import Split
from mptune.errors import NonFiniteLoss
from mptune.models.base import ModelFamily
from mptune.policies.base import MaskedBatch, MaskPolicy, draw_batch
from mptune.spec import Training
from mptune.training import engine as ds
from mptune.training.batches import DataOrder, attended, micro_batch_size, rank_slice
from mptune.training.checkpoint import Checkpoints
from mptune.training.ranks import Ranks
from mptune.training.schedule import Budget, learning_rate_factor
from mptune.trial import Control, Progress, Rung, StopReason

PROGRESS_EVERY_S = 0.5

STOPS: tuple[StopReason | None, ...] = (None, "pruned", "interrupted")
"""A stop reason travels between the ranks as its index."""

RungScore = Callable[[], tuple[float, float]]
"""Scores the model as it is, on all ranks: nats per token and its standard error."""


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

    @property
    def length(self) -> int:
        return int(self.train.tokens.shape[1])

    @property
    def tokens_per_step(self) -> int:
        return self.training.batch_size * self.length

    def step_flops(self, masked: int) -> float:
        """FLOPs of one step with that many masked positions in the global batch."""
        vocabulary = self.vocabulary_size + 2
        return self.family.flops(vocabulary, self.length, self.training.batch_size, masked)

    def budget(self) -> Budget:
        masked = round(self.policy.mean_rate(self.length) * self.tokens_per_step)
        return Budget.of(self.training, self.tokens_per_step, self.step_flops(masked))


@dataclass(frozen=True)
class Batch:
    """The global batch of one step."""

    tokens: NDArray[Any]
    attend: NDArray[np.bool_] | None
    drawn: MaskedBatch
    observed: int

    @property
    def masked(self) -> int:
        return int(self.drawn.mask_BD.sum())

    def on(self, rows: slice, device: torch.device) -> tuple[tuple[Any, ...], Tensor, Tensor]:
        """Of some rows: the model's arguments, the true symbols [K], the weights [K]."""
        mask_BD = self.drawn.mask_BD[rows]
        weight_K = np.repeat(self.drawn.weight_B[rows] / self.drawn.normaliser, mask_BD.sum(1))
        target_K = self.tokens[rows][mask_BD].astype(np.int64)
        attend_BD = None if self.attend is None else self.attend[rows]
        arrays = (self.drawn.inputs_BD[rows], mask_BD, attend_BD, target_K, weight_K)
        inputs, mask, attend, target, weight = (
            None if a is None else torch.from_numpy(a).to(device, non_blocking=True) for a in arrays
        )
        assert target is not None
        assert weight is not None
        return (inputs, mask, attend), target, weight


@dataclass(frozen=True)
class Agreed:
    """What all ranks know about a step before any of them updates its weights."""

    objective: float
    loss_sum: float
    failures: int
    stop: StopReason | None
    checkpoint: bool
    seconds: float


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
        self.seconds = self.spent.seconds
        self._saved_at = time.monotonic()
        self._told = (-math.inf, 0, 0.0)

    @property
    def progress(self) -> float:
        """s, the fraction of the budget that is spent."""
        return self.budget.progress(self.spent)

    def run(self, control: Control) -> Iterator[Progress | Rung]:
        """Train until the budget is spent or someone asks to stop; then `stopped` says why."""
        self._told = (time.monotonic(), self.spent.tokens, self.seconds)
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
        sums = torch.zeros(2, dtype=torch.float64, device=self.ranks.device)
        for part in self._parts[:-1]:
            self._backward(self._forward(batch, part, sums))
        objective, error = self._attempt(batch, self._parts[-1], sums)
        agreed = self._agree(sums, error, control, self.seconds + time.monotonic() - began)
        if agreed.failures:
            self.ranks.raise_together(error)
        if not (math.isfinite(agreed.objective) and math.isfinite(agreed.loss_sum)):
            raise NonFiniteLoss(self.spent.steps, agreed.objective)
        self._backward(objective)
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
            inputs.policy,
            tokens_BD,
            observed_BD,
            progress=self.progress,
            seed=inputs.seed,
            step=step,
            mask_id=inputs.vocabulary_size,
            vocabulary_size=inputs.vocabulary_size,
        )
        attend_BD = attended(tokens_BD, inputs.vocabulary_size + 1)
        return Batch(tokens_BD, attend_BD, drawn, int(observed_BD.sum()))

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
        """These rows' share of the objective; adds it and the plain loss sum to `sums`."""
        arguments, target_K, weight_K = batch.on(rows, self.ranks.device)
        logits_KV = self.engine(*arguments)
        loss_K = cross_entropy(logits_KV.float(), target_K, reduction="none")
        objective = (loss_K * weight_K.float()).sum()
        sums += torch.stack([objective.detach().double(), loss_K.detach().double().sum()])
        return objective

    def _attempt(self, batch: Batch, rows: slice, sums: Tensor) -> tuple[Tensor, Exception | None]:
        """`_forward`, with an error (out of memory, say) kept until all ranks know of it."""
        try:
            return self._forward(batch, rows, sums), None
        except Exception as error:
            return torch.zeros(()), error

    def _backward(self, objective: Tensor) -> None:
        """Accumulate gradients; DeepSpeed updates the weights after the last part.

        DeepSpeed averages over ranks, and the objective is to be summed. It has the normaliser of
        the global batch, so accumulation must not scale it.
        """
        self.engine.backward(objective * self.ranks.world_size, scale_wrt_gas=False)
        self.engine.step()

    def _agree(
        self, sums: Tensor, error: Exception | None, control: Control, seconds: float
    ) -> Agreed:
        """The one reduction of a step: sums of all ranks, decisions of rank 0."""
        says = [float(error is not None), 0.0, 0.0, 0.0]
        if self.ranks.first:
            due = time.monotonic() - self._saved_at > self.inputs.training.checkpoint_every_s
            says[1:] = [float(STOPS.index(control.stop_requested())), float(due), seconds]
        said = torch.tensor(says, dtype=torch.float64, device=sums.device)
        objective, loss_sum, failures, stop, due_, seconds = self.ranks.total(
            torch.cat([sums, said])
        ).tolist()
        return Agreed(objective, loss_sum, int(failures), STOPS[int(stop)], bool(due_), seconds)

    def _account(self, batch: Batch, agreed: Agreed) -> None:
        spent, masked = self.spent, batch.masked
        spent.steps += 1
        spent.tokens += self.inputs.tokens_per_step
        spent.observed += batch.observed
        spent.masked += masked
        spent.flops += self.inputs.step_flops(masked)
        spent.seconds = agreed.seconds
        spent.record(self.progress, agreed.loss_sum, masked)

    def _act_on(self, agreed: Agreed) -> None:
        """Stop after this step, and keep what an interrupted or long training has reached."""
        self.stopped = agreed.stop
        if agreed.checkpoint or agreed.stop == "interrupted":
            self.checkpoints.save(self.engine, self.spent)
            self._saved_at = time.monotonic()

    def _tell(self, batch: Batch, agreed: Agreed, rate: float) -> Progress | None:
        """A progress event, if the last one is long ago or this is the last step."""
        now, tokens = time.monotonic(), self.spent.tokens
        since, tokens_then, seconds_then = self._told
        if now - since < PROGRESS_EVERY_S and self.progress < 1.0:
            return None
        self._told = (now, tokens, self.seconds)
        return Progress(
            number=self.inputs.number,
            step=self.spent.steps,
            total_steps=self.budget.expected_steps(self.spent),
            progress=self.progress,
            loss=agreed.loss_sum / max(batch.masked, 1),
            mask_rate=batch.masked / max(batch.observed, 1),
            learning_rate=rate,
            tokens_per_s=(tokens - tokens_then) / max(self.seconds - seconds_then, 1e-9),
        )

    def _rungs_reached(self, control: Control) -> Iterator[Rung]:
        """Report at each rung that this step reached, and wait for the decision."""
        rungs, done = self.inputs.rungs, len(self.spent.rungs)
        while self.stopped is None and done < len(rungs) and self.progress >= rungs[done]:
            nats, se = self.rung_score()
            rung = Rung(
                number=self.inputs.number,
                index=done,
                progress=self.progress,
                nats_per_token=nats,
                se=se,
            )
            yield rung
            go_on = self.ranks.from_first(self.ranks.first and control.go_on(rung))
            self.spent.rungs.append((self.progress, nats))
            self.stopped = None if go_on else "pruned"
            done += 1
