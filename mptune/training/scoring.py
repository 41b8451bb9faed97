"""Scores a model on the frozen plan: the accumulated LML estimate, and losses at fixed rates.

Nothing here knows how the model was trained. Every rank scores its share of the plan, the sums
meet once, and the estimate is made from them on rank 0.

Shape suffixes: N held-out sequences, k forwards of each, B forwards of a batch, D positions,
K masked positions of the batch in row-major order, V predictable symbols.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from mptune.data.table import Split, TokenTable
from mptune.errors import InputError
from mptune.lml import LMLEstimate, LMLPlan, TokenCovariates, check_finite, estimate_from_sums
from mptune.spec.schema import Score
from mptune.training.batches import attended, seeded_order
from mptune.training.missing import removed
from mptune.training.ranks import Ranks
from mptune.training.stops import StoppedInScoring, agreed_stop, vote
from mptune.trial import CurvePoint, LMLScore, RateScore, StopReason

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

COVARIATE_TOKENS = 2**22
"""Training tokens counted for the control variates; more would cost time and gain little."""

RATE_STREAM, EXTENSION_STREAM = 1 << 32, 1 << 33
"""Added to the score's seed, so that masks for different ends are different masks."""


@dataclass(frozen=True)
class HeldOut:
    """What the trials of a study are scored on; one object serves all trials of a worker."""

    table: TokenTable
    train: Split
    score: Score
    rows: IntArray
    """Rows of the held-out split, in the order of the plan."""
    tokens: NDArray[Any]
    """Their tokens [N, D]."""
    plan: LMLPlan
    log_widths: NDArray[Any] | None = None
    """Log bin widths of the rows' values [N, D] in nats, 0 where not observed; None of symbols."""
    domain: str | None = None
    """The held-out distribution; None is home."""

    @classmethod
    def select(
        cls,
        table: TokenTable,
        score: Score,
        plan: LMLPlan | None = None,
        domain: str | None = None,
    ) -> HeldOut:
        """The study's held-out rows, with the frozen plan or, if there is none yet, a new one.

        A domain's plan is a pure function of its rows and the score section.

        Raises:
            InputError: the plan belongs to other data or another score section.
        """
        heldout = table.heldout if domain is None else table.domain(domain)
        if not len(heldout.tokens):
            raise InputError(f"{table.description}: no sequence is held out to score on")
        rows = seeded_order(len(heldout.tokens), score.seed)[: score.sequences]
        observed_ND = np.asarray(heldout.observed[rows])
        if plan is None:
            plan = LMLPlan.make(observed_ND, forwards=score.forwards, seed=score.seed)
        _check_plan(plan, observed_ND, score)
        widths = None if heldout.log_widths is None else np.asarray(heldout.log_widths[rows])
        tokens_ND = np.asarray(heldout.tokens[rows])
        return cls(table, table.train, score, rows, tokens_ND, plan, widths, domain)

    @cached_property
    def log_width_sums(self) -> FloatArray:
        """Sum of the log bin widths of each sequence's values, in nats."""
        if self.log_widths is None:
            return np.zeros(len(self.rows))
        total: FloatArray = self.log_widths.astype(np.float64).sum(1)
        return total

    @cached_property
    def log_bin_width(self) -> float:
        """Their mean, nats per observed position."""
        return float(self.log_width_sums.sum() / max(self.positions, 1))

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of text per observed position, if it is text."""
        if self.domain is None:
            return self.table.bytes_per_token
        return self.table.domain_bytes.get(self.domain)

    def shifted(self, domain: str) -> HeldOut:
        """The same for a domain of the table."""
        made = HeldOut.select(self.table, self.score, domain=domain)
        # Counts of the training split serve all domains; a cached property lives in __dict__.
        made.__dict__["covariates"] = self.covariates
        return made

    def without(self, number: int) -> HeldOut:
        """The same with the values of the score's injection `number` missing.

        They look like values that were missing at the source: padding that nothing attends to.
        """
        observed_ND, score = self.plan.observed_ND, self.score
        gone_ND = removed(observed_ND, score.missing[number], score.seed, number)
        tokens_ND = np.where(gone_ND, self.tokens.dtype.type(self.table.pad_id), self.tokens)
        widths = None if self.log_widths is None else np.where(gone_ND, 0, self.log_widths)
        plan = LMLPlan.make(observed_ND & ~gone_ND, forwards=score.forwards, seed=score.seed)
        made = replace(self, tokens=tokens_ND, plan=plan, log_widths=widths)
        made.__dict__["covariates"] = self.covariates
        return made

    @property
    def hash(self) -> str:
        """Hash of everything that fixes the score: sequences, counts, masks, weights."""
        digest = hashlib.sha256(f"{self.table.hash}/{self.plan.hash}/".encode())
        digest.update(self.rows.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def positions(self) -> int:
        """Observed positions of the plan's sequences."""
        return int(self.plan.lengths.sum())

    @cached_property
    def rung_plan(self) -> LMLPlan:
        """A plan of its own for the first sequences."""
        first = slice(0, self.score.rung_sequences)
        observed_ND = self.plan.observed_ND[first]
        return LMLPlan.make(observed_ND, forwards=self.score.forwards, seed=self.score.seed)

    @cached_property
    def rate_plans(self) -> dict[float, LMLPlan]:
        """For each rate r one forward per sequence, with exactly round(r D) masked positions."""
        seed = self.score.seed + RATE_STREAM
        return {rate: self.plan.at_rate(rate, seed=seed) for rate in self.score.rates}

    def extension(self, number: int) -> LMLPlan:
        """More forwards of the same sequences: the frozen plan (0), and others like it."""
        if number == 0:
            return self.plan
        seed = self.score.seed + EXTENSION_STREAM + number
        return LMLPlan.make(self.plan.observed_ND, forwards=self.score.forwards, seed=seed)

    @cached_property
    def covariates(self) -> TokenCovariates:
        """Counts over (at most about `COVARIATE_TOKENS` tokens of) the training split."""
        sequences, length = self.train.tokens.shape
        every = max(1, sequences * length // COVARIATE_TOKENS)
        tokens, observed = self.train.tokens[::every], self.train.observed[::every]
        return TokenCovariates.fit(tokens, observed, self.table.vocabulary_size)


def _check_plan(plan: LMLPlan, observed_ND: BoolArray, score: Score) -> None:
    same = np.array_equal(plan.observed_ND, observed_ND)
    if not (same and plan.forwards == score.forwards and plan.seed == score.seed):
        raise InputError(
            "the frozen scoring plan belongs to other data or another `score` section, and trials "
            "are comparable only on one plan; use another run directory, or delete plan.npz"
        )


@dataclass(frozen=True)
class AtRung:
    """The score on the plan of the rungs: NaN, and no sequences, on other ranks than the first.

    Attributes:
        nats_per_token: the LML estimate, and `se` its standard error.
        nats_per_sequence_n: the same of each sequence.
    """

    nats_per_token: float
    se: float
    nats_per_sequence_n: FloatArray


class Scorer:
    """Scores one model on all ranks; every method is to be called on every rank.

    Each of them raises `StoppedInScoring`, on every rank, once one of them is asked to stop.
    """

    def __init__(
        self,
        engine: Any,
        heldout: HeldOut,
        ranks: Ranks,
        asked: Callable[[], StopReason | None] = lambda: None,
    ) -> None:
        """`asked` says, before every forward, why this rank is to stop."""
        self.engine, self.heldout, self.ranks, self.asked = engine, heldout, ranks, asked

    def lml(self) -> tuple[LMLScore, FloatArray, IntArray] | None:
        """The score, nats per sequence [n] and the held-out rows [n]; None but on rank 0.

        Raises:
            NonFiniteLogProb: on every rank.
        """
        parts: list[LMLEstimate] = []
        while True:
            estimate = self._estimate(self.heldout.extension(len(parts)))
            if estimate is not None:
                parts.append(estimate)
            enough = estimate is None or self._precise(parts)
            if self.ranks.from_first(enough):
                break
        return self._summary(parts) if parts else None

    def rung(self) -> AtRung:
        """The score of the model as it is, on the rung plan."""
        estimate = self._estimate(self.heldout.rung_plan)
        if estimate is None:
            return AtRung(math.nan, math.nan, np.zeros(0))
        per_token = estimate.positions.sum() / estimate.n_sequences
        widths_n = self.heldout.log_width_sums[self.heldout.rung_plan.kept]
        nats = estimate.nats_per_position - float(widths_n.sum() / estimate.positions.sum())
        per_sequence_n = estimate.per_sequence - widths_n
        return AtRung(nats, estimate.se_population / float(per_token), per_sequence_n)

    def rates(self) -> tuple[RateScore, ...]:
        """Loss and accuracy at each of the score's rates."""
        return tuple(self._rate(rate, plan) for rate, plan in self.heldout.rate_plans.items())

    def _estimate(self, plan: LMLPlan) -> LMLEstimate | None:
        log_probs_Nk, _ = self._forward(plan)
        if not self.ranks.first:
            return None
        return estimate_from_sums(
            plan,
            log_probs_Nk,
            self.heldout.tokens[: len(plan.observed_ND)],
            covariates=self.heldout.covariates,
        )

    def _forward(self, plan: LMLPlan) -> tuple[FloatArray, FloatArray]:
        """Sum of log p, and exact hits, of every forward's masked positions, on every rank."""
        table_2Nk = torch.zeros(2, *plan.counts_Nk.shape, dtype=torch.float64)
        training = self.engine.training
        self.engine.eval()
        with torch.inference_mode():
            for rows, bands, counted in self._batches(plan):
                self._check_stop()
                sums_2B = self._batch(plan, rows, bands)
                if counted:
                    table_2Nk[:, rows, bands] = sums_2B
        self.engine.train(training)
        totals = self.ranks.total(table_2Nk.to(self.ranks.device)).cpu().numpy()
        rows, bands = np.nonzero(plan.counts_Nk)
        check_finite(plan, rows, bands, totals[0][rows, bands])
        return totals[0], totals[1]

    def _check_stop(self) -> None:
        # One small sum a forward: all that it costs is to wait for the slowest rank.
        mine = torch.tensor(vote(self.asked(), self.ranks.first), dtype=torch.float64)
        reason = agreed_stop(*self.ranks.total(mine.to(self.ranks.device)).tolist())
        if reason is not None:
            raise StoppedInScoring(reason)

    def _batches(self, plan: LMLPlan) -> Iterator[tuple[IntArray, IntArray, bool]]:
        """This rank's share; every rank makes as many forwards, as ZeRO stage 3 needs."""
        size, ranks = self.heldout.score.batch_size, self.ranks
        mine = list(plan.batches(size, ranks.rank, ranks.world_size))
        idle = plan.kept[:1], np.zeros(1, np.int64)
        for step in range(plan.steps(size, ranks.world_size)):
            counted = step < len(mine)
            yield (*(mine[step] if counted else idle), counted)

    def _batch(self, plan: LMLPlan, rows_B: IntArray, bands_B: IntArray) -> torch.Tensor:
        """Sums of log p and of hits over each forward's mask, float64 [2, B] on the CPU."""
        table, device = self.heldout.table, self.ranks.device
        tokens_BD, mask_BD = self.heldout.tokens[rows_B], plan.masks(rows_B, bands_B)
        inputs_BD = np.where(mask_BD, table.mask_id, tokens_BD).astype(np.int64)
        attend_BD = attended(tokens_BD, table.pad_id)
        logits_KV = self.engine(
            torch.from_numpy(inputs_BD).to(device),
            torch.from_numpy(mask_BD).to(device),
            None if attend_BD is None else torch.from_numpy(attend_BD).to(device),
        ).float()
        target_K = torch.from_numpy(tokens_BD[mask_BD].astype(np.int64)).to(device)
        log_prob_K = -cross_entropy(logits_KV, target_K, reduction="none")
        both_2K = torch.stack([log_prob_K.double(), (logits_KV.argmax(1) == target_K).double()])
        row_K = torch.from_numpy(np.nonzero(mask_BD)[0]).to(device)
        sums_2B = torch.zeros(2, len(rows_B), dtype=torch.float64, device=device)
        return sums_2B.index_add_(1, row_K, both_2K).cpu()

    def _precise(self, parts: list[LMLEstimate]) -> bool:
        """Whether no more forwards are asked for, or allowed."""
        score = self.heldout.score
        if score.target_se is None or (len(parts) + 1) * score.forwards > score.max_forwards:
            return True
        per_token = parts[0].n_sequences / float(parts[0].positions.sum())
        return not _se_fixed(parts) * per_token > score.target_se

    def _summary(self, parts: list[LMLEstimate]) -> tuple[LMLScore, FloatArray, IntArray]:
        """Mean over the parts, as densities where the data are binned real values."""
        held, first = self.heldout, parts[0]
        per_sequence = np.mean([part.per_sequence for part in parts], axis=0)
        per_sequence = per_sequence - held.log_width_sums[first.sequence_index]
        nats = float(per_sequence.mean())
        nats_per_token = float(per_sequence.sum() / first.positions.sum())
        se_fixed = _se_fixed(parts)
        score = LMLScore(
            nats_per_sequence=nats,
            nats_per_token=nats_per_token,
            bits_per_byte=bits_per_byte(nats_per_token, held.bytes_per_token),
            se_population=float(per_sequence.std(ddof=1) / math.sqrt(len(per_sequence))),
            se_fixed=None if math.isnan(se_fixed) else se_fixed,
            sequences=first.n_sequences,
            forwards=sum(part.forwards_used for part in parts),
            effective_sample_size=sum(part.effective_sample_size for part in parts),
            plan_hash=self.heldout.hash,
            curve=_curve(first, held.log_bin_width),
        )
        return score, per_sequence, self.heldout.rows[first.sequence_index]

    def _rate(self, rate: float, plan: LMLPlan) -> RateScore:
        log_probs_Nk, hits_Nk = self._forward(plan)
        counts_n = plan.counts_Nk[plan.kept, 0]
        loss, loss_se = _ratio(-log_probs_Nk[plan.kept, 0], counts_n)
        accuracy, accuracy_se = _ratio(hits_Nk[plan.kept, 0], counts_n)
        return RateScore(
            rate=rate,
            loss=loss + self.heldout.log_bin_width,
            loss_se=loss_se,
            accuracy=accuracy,
            accuracy_se=accuracy_se,
        )


def bits_per_byte(nats_per_token: float, bytes_per_token: float | None) -> float | None:
    """Code length per byte of text; None for data that is not text."""
    return -nats_per_token / math.log(2) / bytes_per_token if bytes_per_token else None


def _se_fixed(parts: list[LMLEstimate]) -> float:
    """Standard error, for exactly these sequences, of the mean of independent parts."""
    return math.sqrt(sum(part.se_fixed**2 for part in parts)) / len(parts)


def _curve(estimate: LMLEstimate, log_bin_width: float) -> tuple[CurvePoint, ...]:
    curve = estimate.curve
    return tuple(
        CurvePoint(mask_rate=float(rate), nats_per_token=float(nats) - log_bin_width, se=float(se))
        for rate, nats, se in zip(curve.mask_rate, curve.mean_log_prob, curve.se, strict=True)
    )


def _ratio(sums_n: FloatArray, counts_n: IntArray) -> tuple[float, float]:
    """Sum over sums by sum over counts, and its standard error with sequences as the units."""
    ratio = float(sums_n.sum() / counts_n.sum())
    residuals_n = (sums_n - ratio * counts_n) / counts_n.mean()
    spread = residuals_n.std(ddof=1) if len(residuals_n) > 1 else math.nan
    return ratio, float(spread) / math.sqrt(len(residuals_n))
