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
from mptune.training.checkpoint import Checkpoints
from mptune.training.feed import Batch, Feed, Inputs, Moment, Part
from mptune.training.ranks import Ranks
from mptune.training.schedule import learning_rate_factor
from mptune.training.scoring import AtRung
from mptune.training.stops import StoppedInScoring, agreed_stop, vote
from mptune.trial import Control, LearningPoint, Progress, Rung, StopReason

PROGRESS_EVERY_S = 0.5

MEMORY = 0.5
"""Share of what a policy has seen that it keeps when it chooses its law again: losses fall."""

WORTH_KEEPING = 0.1
"""Share of `checkpoint_every_s` after which the end of training is kept for the scoring to come.

Less is not missed: a gang that has lost a rank takes about as long to come back as the tenth of the
default, 6 s. More costs little to keep, whoever chose the interval having weighed what a checkpoint
costs: 0.02 s for the quickstart's model of 0.1 M parameters, 3.6 s for BERT-base (two CPU ranks).
"""

RungScore = Callable[[], AtRung]
"""Scores the model as it is, on all ranks; raises `StoppedInScoring`."""


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
        self._feed = Feed(inputs, ranks)
        self._law = self._current_law()
        self._seen = np.zeros((3, RATE_BUCKETS))
        self._largest = 0, 0
        self._norm: Callable[[], float | None] = lambda: None
        self.seconds = self.spent.seconds
        self._saved_at, self._saved_steps = time.monotonic(), self.spent.steps
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
        if self.stopped is None and self._is_worth_keeping():
            self._keep()

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Within it the model is scored; what follows an agreed stop there is skipped."""
        try:
            yield
        except StoppedInScoring as asked:
            self._stop(asked.reason)

    def _step(self, control: Control) -> Progress | None:
        """One optimizer step on the global batch.

        Where the backward pass waits for no other rank, none waits before it either. On a GPU the
        host looks at the loss while it is under way, so that the device has work until it is given
        more.
        """
        began = time.monotonic()
        ready = self._feed.take(self._moment())
        batch, rate = ready.batch, self._set_learning_rate()
        self._seed_dropout()
        sums = torch.zeros(3 + 3 * RATE_BUCKETS, dtype=torch.float64, device=self.ranks.device)
        objective, error = self._forwards(ready.parts, sums)
        said = self._say(sums, error, control, self.seconds + time.monotonic() - began)
        ahead = self._goes_ahead(batch)
        if error is not None and ahead and ds.waits_going_backward(self.engine):
            raise error
        if ahead and error is None:
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
        self._fetch_next()
        return self._tell(batch, agreed, rate)

    def _goes_ahead(self, batch: Batch) -> bool:
        """Whether the backward pass begins before all ranks know that each could do its forward.

        Where it waits for none of them; and where the device would wait for the host otherwise, and
        no failure is to be expected: memory was enough for as large a step before. If one fails all
        the same, its peers wait in their reductions, and the gang is to be ended.
        """
        if not ds.waits_going_backward(self.engine):
            return True
        needs = batch.rows_computed, max(batch.head_rows)
        known = all(now <= before for now, before in zip(needs, self._largest, strict=True))
        self._largest = max(needs[0], self._largest[0]), max(needs[1], self._largest[1])
        return self.ranks.overlaps and (known or self.ranks.world_size == 1)

    def _moment(self) -> Moment:
        """When the next step is, and what its masks are drawn from."""
        spent = self.spent
        return Moment(spent.steps, self.progress, self._law, spent.code is not None)

    def _fetch_next(self) -> None:
        """Have the next batch drawn and sent, if there is to be one; that is training time."""
        if self.stopped is None and self.progress < 1.0:
            began = time.monotonic()
            self._feed.fetch(self._moment())
            self.seconds += time.monotonic() - began

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

    def _forward(self, part: Part, sums: Tensor) -> Tensor:
        """A part's share of the objective; adds it, and what `Agreed` has of it, to `sums`."""
        logits_KV = self.engine(*part.arguments)
        loss_K = cross_entropy(logits_KV.float(), part.target_K, reduction="none")
        objective = (loss_K * part.weight_K).sum()
        with torch.no_grad():
            sums += part.sums(objective, loss_K)
        return objective

    def _forwards(self, parts: Sequence[Part], sums: Tensor) -> tuple[Tensor, Exception | None]:
        """Train on all parts, up to the backward pass of the last one.

        Its forward's error (out of memory, say) is kept until all ranks know of it.
        """
        for part in parts[:-1]:
            self._backward(self._forward(part, sums))
            self.engine.step()
        try:
            return self._forward(parts[-1], sums), None
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
        ds.average_gradients(self.engine, self.ranks)
        before = ds.gradient_norm(self.engine) if due and ds.norm_before_step(self.engine) else None
        self.engine.step()
        if due:
            norm = ds.gradient_norm(self.engine) if before is None else before
            self._norm = self.ranks.later(norm)

    def _say(
        self, sums: Tensor, error: Exception | None, control: Control, seconds: float
    ) -> Callable[[], NDArray[np.float64]]:
        """Begin the one reduction of a step: sums of all ranks, decisions of rank 0."""
        stop = vote(control.stop_requested(), self.ranks.first)
        says = [float(error is not None), *stop, 0.0, 0.0]
        if self.ranks.first:
            due = self._unsaved_s > self.inputs.training.checkpoint_every_s
            says[3:] = [float(due), seconds]
        said = torch.tensor(says, dtype=torch.float64).to(sums.device, non_blocking=True)
        return self.ranks.total_later(torch.cat([said, sums]))

    def _agree(self, total: NDArray[np.float64]) -> Agreed:
        """What `_say` of all ranks comes to."""
        failures, why, preempted, due, seconds, objective, loss_sum = total[:7].tolist()
        by_rate_3R, code = total[7:-1].reshape(3, RATE_BUCKETS), float(total[-1])
        stop = agreed_stop(why, preempted)
        return Agreed(
            objective, loss_sum, int(failures), stop, bool(due), seconds, by_rate_3R, code
        )

    def _account(self, batch: Batch, agreed: Agreed) -> None:
        spent, masked, rows = self.spent, batch.masked, batch.rows_computed
        spent.steps += 1
        spent.tokens += rows * self.inputs.length
        spent.observed += batch.observed
        spent.masked += masked
        spent.flops += self.inputs.step_flops(masked, rows)
        spent.seconds = agreed.seconds
        spent.record(self.progress, agreed.loss_sum, masked)
        if batch.code_B is None:
            spent.code = None
        elif spent.code is not None and batch.code_B.any():
            spent.code = (spent.code[0] + agreed.code, spent.code[1] + batch.observed)
        self._seen += agreed.by_rate
        self._learn(agreed)

    def _act_on(self, agreed: Agreed) -> None:
        """Stop after this step, and keep what an interrupted or long training has reached."""
        if agreed.stop is not None:
            self._stop(agreed.stop)
        elif agreed.checkpoint:
            self._keep()

    def _stop(self, reason: StopReason) -> None:
        """End here, for good or to go on elsewhere from a checkpoint."""
        self.stopped = reason
        if reason != "pruned":
            self._keep()

    def _keep(self) -> None:
        """Write a checkpoint, unless the newest one is of this very step.

        That one is good, and writing it anew might leave none.
        """
        if self._saved_steps != self.spent.steps:
            self.checkpoints.save(self.engine, self.spent)
            self._saved_at, self._saved_steps = time.monotonic(), self.spent.steps

    @property
    def _unsaved_s(self) -> float:
        """Seconds of work that a death would cost."""
        return time.monotonic() - self._saved_at

    def _is_worth_keeping(self) -> bool:
        """Whether what was trained last is to outlive a death in the scoring that follows."""
        worth = self._unsaved_s > WORTH_KEEPING * self.inputs.training.checkpoint_every_s
        return self.ranks.from_first(worth)

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
            gradient_norm=self._norm(),
            loss_by_rate=by_rate,
        )

    def _rungs_reached(self, control: Control) -> Iterator[Rung]:
        """Report at each rung that this step reached, and wait for the decision."""
        rungs, done = self.inputs.rungs, len(self.spent.rungs)
        while self.stopped is None and done < len(rungs) and self.progress >= rungs[done]:
            found = self._scored()
            if found is None:
                return
            point = self._learning_point(found)
            rung = Rung(number=self.inputs.number, index=done, **point.model_dump())
            yield rung
            go_on = self.ranks.from_first(self.ranks.first and control.go_on(rung))
            self.spent.rungs.append((self.progress, found.nats_per_token))
            self.spent.learning.append(point.model_dump())
            self.spent.rung_scores.append(found.nats_per_sequence_n.tolist())
            self.stopped = None if go_on else "pruned"
            done += 1

    def _scored(self) -> AtRung | None:
        """The score as it is; None where the trial stops instead, to report it when it goes on."""
        with self.scoring():
            return self.rung_score()
        return None

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
