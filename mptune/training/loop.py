"""The training loop.

The batch of a step, its masks and its learning rate are pure functions of the trial's seed and of
what was spent, so any number of workers trains on the same global batches, and a resumed training
is the same training.

Shape suffixes: K rows of the head, V predictable symbols, R intervals of the mask rate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from mptune.errors import NonFiniteLoss
from mptune.policies.base import RATE_BUCKETS, LossByRate, MaskPolicy
from mptune.spec.schema import build
from mptune.training import engine as ds
from mptune.training.checkpoint import Checkpoints, SharedPrefixes
from mptune.training.deepspeed_private import averages_in_backward
from mptune.training.feed import Batch, BatchKey, Feed, Inputs, Part
from mptune.training.ranks import Ranks, StoppedInScoring, agreed_stop
from mptune.training.schedule import learning_rate_factor
from mptune.training.scoring import RungEstimate
from mptune.trial import Control, LearningPoint, Progress, Rung, StopReason

PROGRESS_EVERY_S = 0.5

MEMORY = 0.5
"""Share of its statistics that a policy keeps when it chooses a new law: losses fall over time."""

WORTH_KEEPING = 0.1
"""Share of `checkpoint_every_s` after which the end of training is kept for the scoring to come.

To lose less than that costs little: a gang that has lost a rank takes about as long to come back as
a tenth of the default, 6 s. To write a checkpoint costs little compared with the interval: 0.02 s
for the quickstart's model of 0.1 M parameters, 3.6 s for BERT-base (two CPU ranks).
"""


def symbol_losses(logits_KV: Tensor, target_K: Tensor) -> Tensor:
    """Cross entropy of each row in nats, [K], in single precision."""
    return cross_entropy(logits_KV.float(), target_K, reduction="none")


@dataclass(frozen=True)
class StepTotals:
    """What all ranks know about a step before any of them updates its weights: sums over ranks."""

    failures: float
    stop: StopReason | None
    checkpoint: bool
    seconds: float
    objective: float
    loss_sum: float
    by_rate_3R: NDArray[np.float64]
    """Sums of 1, y and y^2 over sequences by interval of the mask rate; y as in `LossByRate`."""
    code: float
    """Prequential code length of this batch, nats."""

    @classmethod
    def of(cls, total: NDArray[np.float64]) -> StepTotals:
        """Split the vector that `Loop._step` has summed over the ranks."""
        failures, index, preempted, due, seconds, objective, loss_sum = total[:7].tolist()
        by_rate_3R = total[7:-1].reshape(3, RATE_BUCKETS)
        stop = agreed_stop(index, preempted)
        return cls(
            failures, stop, bool(due), seconds, objective, loss_sum, by_rate_3R, float(total[-1])
        )


class Loop:
    """One training on one rank.

    Args:
        rung_score: scores the model as it is, on all ranks; raises `StoppedInScoring`.
    """

    def __init__(
        self,
        inputs: Inputs,
        engine: Any,
        ranks: Ranks,
        checkpoints: Checkpoints,
        rung_score: Callable[[], RungEstimate],
        prefixes: SharedPrefixes | None = None,
        prefix: Checkpoints | None = None,
    ) -> None:
        """A training that goes on from its own checkpoint, or else from another trial's prefix."""
        self.inputs, self.engine, self.ranks = inputs, engine, ranks
        self.checkpoints, self.rung_score = checkpoints, rung_score
        self.budget, self._prefixes = inputs.budget(), prefixes
        self.spent = (prefix or checkpoints).load(engine)
        if prefix is not None:
            self.spent.shared = self.spent.tokens, self.spent.flops
        self.seconds = self.spent.seconds
        self.stopped: StopReason | None = None
        self._feed = Feed(inputs, ranks)
        compiled = inputs.training.compile
        self._losses = torch.compile(symbol_losses) if compiled else symbol_losses
        self._law = inputs.policy
        if inputs.policy.relearn_every is not None:
            if not self.spent.learned:
                first = inputs.policy.learn(LossByRate.of_sums(np.zeros((3, RATE_BUCKETS))))
                self.spent.learned.append((0.0, first.model_dump(mode="json")))
            self._law = build("policy", self.spent.learned[-1][1])
        self._largest = 0, 0
        self._saved_at, self._saved_steps = time.monotonic(), self.spent.steps
        self._checkpoint_s: float | None = None
        # Of the progress events: when and what the last one reported, and what came since.
        self._reported = (-math.inf, 0, 0.0, 0.0)
        self._by_rate_3R = np.zeros((3, RATE_BUCKETS))
        self._norm: Callable[[], float | None] = lambda: None

    @property
    def progress(self) -> float:
        """s, the fraction of the budget that is spent."""
        return self.budget.progress(self.spent)

    def run(self, control: Control) -> Iterator[Progress | Rung]:
        """Train until the budget is spent or a stop is asked for; `stopped` then has the reason."""
        self._reported = (time.monotonic(), self.spent.tokens, self.seconds, self.spent.flops)
        # A checkpoint is written before the rung of its step is scored.
        yield from self._rungs_reached(control)
        while self.progress < 1.0 and self.stopped is None:
            before = self.progress
            event = self._step(control)
            if self._prefixes is not None:
                self._prefixes.save(self.engine, self.spent, before, self.progress)
            if event is not None:
                yield event
            yield from self._rungs_reached(control)
        if self.stopped is None:
            unsaved_s = time.monotonic() - self._saved_at
            worth = unsaved_s > WORTH_KEEPING * self.inputs.training.checkpoint_every_s
            if self.ranks.from_first(worth):
                self._save()

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """The model is scored inside; an agreed stop ends the block and is recorded."""
        try:
            yield
        except StoppedInScoring as stop:
            self._stop(stop.reason)

    def _step(self, control: Control) -> Progress | None:
        """One optimizer step on the global batch; returns a progress event if one is due."""
        began, spent, ranks = time.monotonic(), self.spent, self.ranks
        batch, parts = self._feed.take(self._batch_key())
        # At the middle of the step: the first step of a warm-up would have rate 0 at its start.
        steps = self.budget.expected_steps(spent)
        middle = self.progress + (0.5 / steps if steps else 0.0)
        factor = learning_rate_factor(self.inputs.training.schedule, middle)
        rate = ds.set_learning_rate(self.engine, factor)
        # A resumed training draws the same dropout; ranks and steps draw different ones.
        key = np.random.SeedSequence([self.inputs.seed, spent.steps, ranks.rank])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))

        sums = torch.zeros(3 + 3 * RATE_BUCKETS, dtype=torch.float64, device=ranks.device)
        for part in parts[:-1]:
            self._backward(self._forward(part, sums))
            self.engine.step()
        objective, error = torch.zeros(()), None
        try:
            objective = self._forward(parts[-1], sums)
        except Exception as raised:  # out of memory, say: kept until all ranks know of it
            error = raised

        # The one reduction of a step: sums of all ranks, decisions of rank 0.
        stop = ranks.stop_votes(control.stop_requested())
        now = time.monotonic()
        due = float(now - self._saved_at > self.inputs.training.checkpoint_every_s)
        of_first = (due, self.seconds + now - began) if ranks.first else (0.0, 0.0)
        votes = torch.tensor([float(error is not None), *stop, *of_first], dtype=torch.float64)
        pending = ranks.total_later(torch.cat([votes.to(sums.device, non_blocking=True), sums]))
        ahead = self._goes_ahead(batch)
        if error is not None and ahead and averages_in_backward(self.engine):
            raise error  # the peers wait in their backward passes and cannot hear of it
        if error is None and ahead:
            self._backward(objective)
        totals = StepTotals.of(pending())
        if totals.failures:
            ranks.raise_together(error)
        if not (math.isfinite(totals.objective) and math.isfinite(totals.loss_sum)):
            raise NonFiniteLoss(spent.steps, totals.objective)
        if not ahead:
            self._backward(objective)

        self._account(batch, totals)
        if totals.stop is None and self.progress < 1.0:
            # The next batch is drawn and sent while the device is in its backward pass.
            self._feed.fetch(self._batch_key())
        event_due = time.monotonic() - self._reported[0] >= PROGRESS_EVERY_S
        norm = ds.update(self.engine, ranks, want_norm=event_due)
        if event_due:
            self._norm = ranks.later(norm)
        self.seconds += time.monotonic() - began
        if totals.stop is not None:
            self._stop(totals.stop)
        elif totals.checkpoint:
            self._save()
        return self._report(batch, totals, rate)

    def _forward(self, part: Part, sums: Tensor) -> Tensor:
        """A part's share of the objective; adds what the ranks sum up of it to `sums`."""
        loss_K = self._losses(self.engine(*part.arguments), part.target_K)
        objective = (loss_K * part.weight_K).sum()
        with torch.no_grad():
            sums += part.sums(objective, loss_K)
        return objective

    def _backward(self, objective: Tensor) -> None:
        """Accumulate gradients.

        DeepSpeed averages over ranks, while the objective is a sum. It has the normaliser of the
        global batch, so accumulation must not scale it.
        """
        self.engine.backward(objective * self.ranks.world_size, scale_wrt_gas=False)

    def _goes_ahead(self, batch: Batch) -> bool:
        """Whether the backward pass begins before all ranks know that each could do its forward.

        It does if it waits for no other rank. Otherwise only if the device would have to wait for
        the host, and no failure is expected: memory was enough for as large a step before. If one
        fails all the same, its peers wait in their reductions, and the gang must be ended.
        """
        if not averages_in_backward(self.engine):
            return True
        needs = batch.rows_computed, max(batch.head_rows)
        known = all(now <= before for now, before in zip(needs, self._largest, strict=True))
        self._largest = max(needs[0], self._largest[0]), max(needs[1], self._largest[1])
        return self.ranks.overlaps and (known or self.ranks.world_size == 1)

    def _batch_key(self) -> BatchKey:
        """What determines the batch of the next step."""
        return BatchKey(self.spent.steps, self.progress, self._law, self.spent.code is not None)

    def _account(self, batch: Batch, totals: StepTotals) -> None:
        """Add the step to what was spent, and let a learning policy choose a new law if due."""
        spent, policy = self.spent, self.inputs.policy
        rows, length = batch.rows_computed, batch.tokens.shape[1]
        spent.steps += 1
        spent.tokens += rows * length
        spent.observed += batch.observed
        spent.masked += batch.masked
        spent.flops += self.inputs.step_flops(batch.masked, rows, length)
        spent.seconds = totals.seconds
        spent.record(self.progress, totals.loss_sum, batch.masked)
        if batch.code_B is None:
            spent.code = None
        elif spent.code is not None and batch.code_B.any():
            spent.code = (spent.code[0] + totals.code, spent.code[1] + batch.observed)
        self._by_rate_3R += totals.by_rate_3R
        if policy.relearn_every is not None:
            seen_3R = np.asarray(spent.by_rate or np.zeros((3, RATE_BUCKETS))) + totals.by_rate_3R
            since = self.progress - spent.learned[-1][0]
            if since >= policy.relearn_every and self.progress < 1.0:
                self._law = policy.learn(LossByRate.of_sums(seen_3R))
                spent.learned.append((self.progress, self._law.model_dump(mode="json")))
                seen_3R = seen_3R * MEMORY
            spent.by_rate = seen_3R.tolist()

    def _stop(self, reason: StopReason) -> None:
        """End here; unless it was pruned, the training can go on elsewhere from a checkpoint."""
        self.stopped = reason
        if reason != "pruned":
            self._save()

    def _save(self) -> None:
        """Write a checkpoint, unless the newest one is of this step: writing could destroy it."""
        if self._saved_steps != self.spent.steps:
            began = time.monotonic()
            self.checkpoints.save(self.engine, self.spent)
            self._saved_at, self._saved_steps = time.monotonic(), self.spent.steps
            self._checkpoint_s = (self._checkpoint_s or 0.0) + self._saved_at - began

    def _report(self, batch: Batch, totals: StepTotals, rate: float) -> Progress | None:
        """A progress event, if the last one is long ago or this is the last step."""
        spent, now = self.spent, time.monotonic()
        since, tokens, seconds, flops = self._reported
        if now - since < PROGRESS_EVERY_S and self.progress < 1.0:
            return None
        self._reported = (now, spent.tokens, self.seconds, spent.flops)
        passed_s = max(self.seconds - seconds, 1e-9)
        flops_per_s = (spent.flops - flops) / passed_s
        checkpoint_s, self._checkpoint_s = self._checkpoint_s, None
        losses, self._by_rate_3R = LossByRate.of_sums(self._by_rate_3R), np.zeros((3, RATE_BUCKETS))
        return Progress(
            number=self.inputs.number,
            step=spent.steps,
            total_steps=self.budget.expected_steps(spent),
            progress=self.progress,
            loss=totals.loss_sum / max(batch.masked, 1),
            mask_rate=batch.masked / max(batch.observed, 1),
            learning_rate=rate,
            tokens_per_s=(spent.tokens - tokens) / passed_s,
            flops_per_s=flops_per_s,
            utilisation=ds.utilisation(flops_per_s, self.ranks, self.inputs.training),
            gradient_norm=self._norm(),
            loss_by_rate=tuple(
                ((k + 0.5) / RATE_BUCKETS, float(losses.mean[k]))
                for k in np.flatnonzero(losses.count)
            ),
            checkpoint_s=checkpoint_s,
        )

    def _rungs_reached(self, control: Control) -> Iterator[Rung]:
        """Score and report each rung that this step reached, and wait for the decision."""
        rungs, spent = self.inputs.rungs, self.spent
        while self.stopped is None and (done := len(spent.learning)) < len(rungs):
            if self.progress < rungs[done]:
                return
            found = None
            with self.scoring():
                found = self.rung_score()
            if found is None:  # stopped: the rung is reported when the training goes on
                return
            point = LearningPoint(
                progress=self.progress,
                tokens=spent.tokens,
                flops=spent.flops,
                seconds=self.seconds,
                nats_per_token=found.nats_per_token,
                se=found.se,
            )
            rung = Rung(number=self.inputs.number, index=done, **point.model_dump())
            yield rung
            go_on = self.ranks.from_first(self.ranks.first and control.go_on(rung))

            spent.learning.append(point.model_dump())
            spent.rung_scores.append(found.nats_per_sequence_n.tolist())
            self.stopped = None if go_on else "pruned"


def learned_policy(policy: MaskPolicy, learned: Sequence[tuple[float, Any]]) -> Any:
    """What a policy has learned, as a policy that draws the same masks without learning.

    Args:
        policy: the policy that learned.
        learned: (progress, law) of each choice, the first at 0; empty gives None.
    """
    if not learned:
        return None
    outer = policy.outer()
    inner = [
        {"at": at, "policy": {k: v for k, v in law.items() if k not in outer}}
        for at, law in learned
    ]
    return learned[0][1] if len(inner) == 1 else {"kind": "step", **outer, "stages": inner}
