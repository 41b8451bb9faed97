"""Scores a model on the frozen plan: the accumulated LML estimate, and losses at fixed rates.

Nothing here depends on how the model was trained. Every rank scores its share of the plan, the
sums are added up once, and rank 0 makes the estimate from them.

Shape suffixes: N held-out sequences, n scored ones, k forwards of each, B forwards of a batch,
D positions, K masked positions of the batch in row-major order, V predictable symbols.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from mptune.data._table import TokenTable
from mptune.errors import InputError
from mptune.lml.covariates import CountTable, TokenCovariates
from mptune.lml.estimator import LMLEstimate, check_finite, estimate_from_sums, estimate_lml
from mptune.lml.groups import (
    BoolArray,
    FloatArray,
    IntArray,
    group_numbers,
    group_standard_error,
    round_robin,
)
from mptune.lml.plan import LMLPlan
from mptune.spec.schema import Missing, Score
from mptune.training.feed import attended, seeded_order
from mptune.training.ranks import Ranks, StoppedInScoring, agreed_stop
from mptune.trial import CurvePoint, LMLScore, RateScore, StopReason

COVARIATE_TOKENS = 2**22
"""Training tokens counted for the control variates; more would cost time and gain little."""

RATE_STREAM, EXTENSION_STREAM = 1 << 32, 1 << 33
"""Added to the score's seed, so that masks for different ends are different masks."""

MISSING_STREAM = 0x6D697373
"""Added to the number of an injection of missing values, to keep its random numbers apart."""


def removed(observed_ND: BoolArray, missing: Missing, seed: int, number: int = 0) -> BoolArray:
    """Observed positions [N, D] whose values are taken away before scoring.

    An exact share of each sequence's, and at least one stays. The same for every trial and on
    every version of numpy: Philox's raw words do not change.

    Args:
        missing: the share, and whether it is taken at random or as one block.
        number: of the injection; a study may have several.
    """
    length_N1 = observed_ND.sum(1, keepdims=True)
    count_N1 = np.minimum(np.rint(missing.fraction * length_N1), np.maximum(length_N1 - 1, 0))
    words = np.random.Philox(key=np.array([seed, MISSING_STREAM + number], np.uint64))
    uniform_ND = words.random_raw(observed_ND.size).reshape(observed_ND.shape) / 2.0**64
    if missing.kind == "random":
        place_ND = np.where(observed_ND, uniform_ND, 2.0).argsort(1).argsort(1)
    else:
        start_N1 = np.floor(uniform_ND[:, :1] * (length_N1 - count_N1 + 1))
        place_ND = (observed_ND.cumsum(1) - 1 - start_N1).astype(np.int64)
    return observed_ND & (place_ND >= 0) & (place_ND < count_N1)


@dataclass(frozen=True)
class HeldOut:
    """What the trials of a study are scored on; one object serves all trials of a worker."""

    table: TokenTable
    score: Score
    rows: IntArray
    """Rows of the held-out split, in the order of the plan: of as many groups as possible."""
    tokens: NDArray[Any]
    """Their tokens [N, D]."""
    plan: LMLPlan
    log_widths: NDArray[Any] | None = None
    """Log bin widths of the rows' values [N, D] in nats, 0 where not observed; None of symbols."""
    domain: str | None = None
    """The held-out distribution; None is the training data's own."""

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
        order = seeded_order(len(heldout.tokens), score.seed)
        rows = round_robin(order, heldout.groups)[: score.sequences]
        observed_ND = np.asarray(heldout.observed[rows])
        groups_N = group_numbers(heldout.groups[rows], len(rows))
        if plan is None:
            plan = LMLPlan.make(
                observed_ND, forwards=score.forwards, seed=score.seed, groups=groups_N
            )
        elif not (
            np.array_equal(plan.observed_ND, observed_ND)
            and np.array_equal(plan.groups_N, groups_N)
            and (plan.forwards, plan.seed) == (score.forwards, score.seed)
        ):
            raise InputError(
                "the frozen scoring plan belongs to other data or another `score` section, and "
                "trials are comparable only on one plan; use another run directory, or delete "
                "plan.npz"
            )
        widths = None if heldout.log_widths is None else np.asarray(heldout.log_widths[rows])
        tokens_ND = np.asarray(heldout.tokens[rows])
        return cls(table, score, rows, tokens_ND, plan, widths, domain)

    def shifted(self, domain: str) -> HeldOut:
        """The same for a domain of the table."""
        made = HeldOut.select(self.table, self.score, domain=domain)
        # Counts of the training split serve all domains; a cached property lives in __dict__.
        made.__dict__["covariates"] = self.covariates
        return made

    def without(self, number: int) -> HeldOut:
        """The same with the values of the score's injection `number` missing.

        They look like values that were missing at the source: padding that is not attended to.
        """
        observed_ND, score = self.plan.observed_ND, self.score
        gone_ND = removed(observed_ND, score.missing[number], score.seed, number)
        tokens_ND = np.where(gone_ND, self.tokens.dtype.type(self.table.pad_id), self.tokens)
        widths = None if self.log_widths is None else np.where(gone_ND, 0, self.log_widths)
        plan = self._plan(observed_ND & ~gone_ND, score.seed)
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
    def log_width_sums(self) -> FloatArray:
        """Sum of the log bin widths of each sequence's values, in nats."""
        if self.log_widths is None:
            return np.zeros(len(self.rows))
        return self.log_widths.astype(np.float64).sum(1)

    @cached_property
    def log_bin_width(self) -> float:
        """Their mean, nats per observed position."""
        return float(self.log_width_sums.sum() / max(self.positions, 1))

    @cached_property
    def rung_plan(self) -> LMLPlan:
        """A plan of its own for the first sequences."""
        first = slice(0, self.score.rung_sequences)
        return self._plan(self.plan.observed_ND[first], self.score.seed)

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
        return self._plan(self.plan.observed_ND, seed)

    def _plan(self, observed_ND: BoolArray, seed: int) -> LMLPlan:
        """A plan of the same groups, for the first sequences."""
        groups_N = self.plan.groups_N[: len(observed_ND)]
        return LMLPlan.make(observed_ND, forwards=self.score.forwards, seed=seed, groups=groups_N)

    @cached_property
    def covariates(self) -> TokenCovariates:
        """Counts over the training split."""
        return TokenCovariates.fit(*self._counted(), self.table.vocabulary_size)

    def _counted(self) -> tuple[NDArray[Any], BoolArray]:
        """Training tokens and where they are observed: at most about `COVARIATE_TOKENS` tokens."""
        train = self.table.train
        every = max(1, train.tokens.size // COVARIATE_TOKENS)
        return train.tokens[::every], train.observed[::every]

    def counting(self) -> float:
        """LML of the better of two models that only count training tokens, nats per token.

        One predicts each symbol with its frequency; the other with its frequency at that position
        (of a column, a channel, a time), backed off to the first. Neither looks at other positions,
        so their S(M) is the same for every M and no mask needs to be drawn.
        """
        V, D = self.table.vocabulary_size, self.table.length
        train_ND, seen_ND = self._counted()
        held_ND, here_ND = self.tokens, self.plan.observed_ND
        counts_V = np.bincount(train_ND[seen_ND], minlength=V) + 0.5
        p_K = (counts_V / counts_V.sum())[held_ND[here_ND]]
        # Codes of (position, symbol) instead of a D x V table, which could be large.
        codes, n_C = np.unique((train_ND + V * np.arange(D))[seen_ND], return_counts=True)
        wanted_K = (held_ND + V * np.arange(D))[here_ND]
        place_K = np.searchsorted(codes, wanted_K).clip(max=len(codes) - 1)
        n_K = np.where(codes[place_K] == wanted_K, n_C[place_K], 0)
        total_K = seen_ND.sum(0)[np.nonzero(here_ND)[1]]
        at_position_K = (n_K + p_K) / (total_K + 1)
        best = max(float(np.log(p).mean()) for p in (p_K, at_position_K))
        return best - self.log_bin_width

    def last_value(self) -> float | None:
        """LML of a model that only knows the last visible value, nats per token; None of no series.

        It predicts a masked value from the nearest earlier one of its channel that is not masked:
        with how often each symbol came that number of steps after it in training sequences,
        shrunk to the channel's frequencies. Where there is none, it has these.
        """
        steps = self.table.axes.get("time", 1)
        if steps == 1:
            return None
        V, channels = self.table.vocabulary_size, self.table.length // steps
        frequency_V = self.covariates.unigram
        channel_C, step_T1 = np.arange(channels), np.arange(steps)[:, None]

        def context(lag: int | IntArray, value: IntArray) -> IntArray:
            return (lag * channels + channel_C) * V + value

        train_ND, seen_ND = self._counted()
        every = max(1, train_ND.size * steps // 2 // COVARIATE_TOKENS)  # pairs grow with the steps
        value_NTC = train_ND[::every].astype(np.int64).reshape(-1, steps, channels)
        seen_NTC = seen_ND[::every].reshape(value_NTC.shape)
        none_NTC = context(0, 0 * value_NTC)  # lag 0: there is no earlier value
        pairs = [(none_NTC[seen_NTC], value_NTC[seen_NTC])]
        for lag in range(1, steps):
            both = seen_NTC[:, lag:] & seen_NTC[:, :-lag]
            pairs.append((context(lag, value_NTC[:, :-lag])[both], value_NTC[:, lag:][both]))
        contexts, values = (np.concatenate(each) for each in zip(*pairs, strict=True))
        counts = CountTable.fit(contexts, values, V)

        def log_prob(tokens_BD: NDArray[Any], mask_BD: BoolArray) -> FloatArray:
            value_BTC = tokens_BD.astype(np.int64).reshape(-1, steps, channels)
            visible_BTC = (value_BTC < V) & ~mask_BD.reshape(value_BTC.shape)
            last_BTC = np.maximum.accumulate(np.where(visible_BTC, step_T1, -1), axis=1)
            before_BTC = np.take_along_axis(value_BTC, last_BTC.clip(min=0), axis=1)
            is_first = last_BTC < 0
            lag_BTC = np.where(is_first, 0, step_T1 - last_BTC)
            value_BTC = value_BTC.clip(max=V - 1)  # of padding, which is not masked
            none_BTC = context(0, 0 * value_BTC)
            prior = counts.probability(none_BTC, value_BTC, frequency_V[value_BTC])
            known = context(lag_BTC, np.where(is_first, 0, before_BTC.clip(max=V - 1)))
            p_BTC = np.where(is_first, prior, counts.probability(known, value_BTC, prior))
            return np.log(p_BTC).reshape(tokens_BD.shape)

        found = estimate_lml(log_prob, self.tokens, plan=self.plan, covariates=self.covariates)
        per_token = found.nats_per_sequence * len(self.plan.kept) / self.positions
        return per_token - self.log_bin_width


@dataclass(frozen=True)
class RungEstimate:
    """The score on the plan of the rungs: NaN, and no sequences, on other ranks than the first.

    Attributes:
        nats_per_token: the LML estimate, and `se` its standard error.
        nats_per_sequence_n: the same of each sequence.
    """

    nats_per_token: float
    se: float
    nats_per_sequence_n: FloatArray


@dataclass(frozen=True)
class Scorer:
    """Scores one model on all ranks; call every method on every rank.

    Each of them raises `StoppedInScoring`, on every rank, once one of them is asked to stop.

    Attributes:
        asked: returns, before every forward, why this rank must stop; None to go on.
    """

    engine: Any
    heldout: HeldOut
    ranks: Ranks
    asked: Callable[[], StopReason | None] = lambda: None

    def lml(self) -> tuple[LMLScore, FloatArray, IntArray] | None:
        """The score, nats per sequence [n] and the held-out rows [n]; None but on rank 0.

        Of binned real values the score is a density.

        Raises:
            NonFiniteLogProb: on every rank.
        """
        held, parts = self.heldout, self._parts()
        if not parts:
            return None
        first, curve, se_fixed = parts[0], parts[0].curve, _se_fixed(parts)
        per_sequence_n = np.mean([part.per_sequence for part in parts], axis=0)
        per_sequence_n = per_sequence_n - held.log_width_sums[first.sequence_index]
        combined = replace(first, per_sequence=per_sequence_n, se_fixed=se_fixed)
        nats_per_token, se_per_token, df = combined.per(first.positions)
        claimed = combined.scope == "population"
        se_population, _ = group_standard_error(per_sequence_n, first.groups)
        bytes_per_token = held.table.bytes_per_token
        if held.domain is not None:
            bytes_per_token = held.table.domain_bytes.get(held.domain)
        score = LMLScore(
            nats_per_sequence=float(per_sequence_n.mean()),
            nats_per_token=nats_per_token,
            bits_per_byte=bits_per_byte(nats_per_token, bytes_per_token),
            se_population=se_population if claimed else None,
            df_population=df if claimed else None,
            se_fixed=None if math.isnan(se_fixed) else se_fixed,
            se_per_token=None if math.isnan(se_per_token) else se_per_token,
            largest_share=combined.tails.share,
            groups_needed=combined.tails.needed,
            sequences=first.n_sequences,
            groups=first.n_groups,
            grouped_by=held.table.grouped_by,
            forwards=sum(part.forwards_used for part in parts),
            effective_sample_size=sum(part.effective_sample_size for part in parts),
            plan_hash=held.hash,
            curve=tuple(
                CurvePoint(
                    mask_rate=float(rate),
                    nats_per_token=float(nats) - held.log_bin_width,
                    se=float(se),
                )
                for rate, nats, se in zip(
                    curve.mask_rate, curve.mean_log_prob, curve.se, strict=True
                )
            ),
        )
        return score, per_sequence_n, held.rows[first.sequence_index]

    def _parts(self) -> list[LMLEstimate]:
        """Independent estimates, until `score.target_se` is reached; none but on rank 0."""
        target, parts, enough = self.heldout.score, list[LMLEstimate](), False
        while not enough:
            estimate = self._estimate(self.heldout.extension(len(parts)))
            if estimate is not None:
                parts.append(estimate)
                per_token = estimate.n_sequences / float(estimate.positions.sum())
                enough = (
                    target.target_se is None
                    or (len(parts) + 1) * target.forwards > target.max_forwards
                    or not _se_fixed(parts) * per_token > target.target_se
                )
            enough = self.ranks.from_first(enough)
        return parts

    def rung(self) -> RungEstimate:
        """The score of the model as it is, on the rung plan."""
        estimate = self._estimate(self.heldout.rung_plan)
        if estimate is None:
            return RungEstimate(math.nan, math.nan, np.zeros(0))
        widths_n = self.heldout.log_width_sums[self.heldout.rung_plan.kept]
        per_sequence_n = estimate.per_sequence - widths_n
        nats, se, _ = replace(estimate, per_sequence=per_sequence_n).per(estimate.positions)
        return RungEstimate(nats, se, per_sequence_n)

    def rates(self) -> tuple[RateScore, ...]:
        """Loss and accuracy at each of the score's rates."""
        found = []
        for rate, plan in self.heldout.rate_plans.items():
            log_probs_Nk, hits_Nk = self._sums(plan)
            counts_n, groups_n = plan.counts_Nk[plan.kept, 0], plan.groups_N[plan.kept]
            losses_n, hits_n = -log_probs_Nk[plan.kept, 0], hits_Nk[plan.kept, 0]
            found.append(
                RateScore(
                    rate=rate,
                    loss=float(losses_n.sum() / counts_n.sum()) + self.heldout.log_bin_width,
                    loss_se=group_standard_error(losses_n, groups_n, counts_n)[0],
                    accuracy=float(hits_n.sum() / counts_n.sum()),
                    accuracy_se=group_standard_error(hits_n, groups_n, counts_n)[0],
                )
            )
        return tuple(found)

    def _estimate(self, plan: LMLPlan) -> LMLEstimate | None:
        """The LML estimate on a plan; None on other ranks than the first."""
        log_probs_Nk, _ = self._sums(plan)
        if not self.ranks.first:
            return None
        tokens_ND = self.heldout.tokens[: len(plan.observed_ND)]
        covariates = self.heldout.covariates
        return estimate_from_sums(plan, log_probs_Nk, tokens_ND, covariates=covariates)

    def _sums(self, plan: LMLPlan) -> tuple[FloatArray, FloatArray]:
        """One scoring pass: log p and exact hits of each forward's masked positions.

        Returns:
            Their sums [N, k], on every rank those of all ranks.

        Raises:
            StoppedInScoring, NonFiniteLogProb: on every rank.
        """
        table, ranks, send = self.heldout.table, self.ranks, self.ranks.send
        size, training = self.heldout.score.batch_size, self.engine.training
        mine = list(plan.batches(size, ranks.rank, ranks.world_size))
        sums: list[Tensor] = []
        self.engine.eval()
        with torch.inference_mode():
            # ZeRO stage 3 needs as many forwards of every rank; the last ones may not count.
            for step in range(plan.steps(size, ranks.world_size)):
                # One small sum a forward: all that it costs is to wait for the slowest rank.
                votes = torch.tensor(ranks.stop_votes(self.asked()), dtype=torch.float64)
                pending = ranks.total_later(votes.to(ranks.device, non_blocking=True))
                counts = step < len(mine)
                rows_B, bands_B = mine[step] if counts else (plan.kept[:1], np.zeros(1, np.int64))
                tokens_BD, mask_BD = self.heldout.tokens[rows_B], plan.masks(rows_B, bands_B)
                inputs_BD = np.where(mask_BD, table.mask_id, tokens_BD).astype(np.int64)
                attend_BD = attended(tokens_BD, table.pad_id)
                logits_KV = self.engine(
                    send(inputs_BD),
                    send(np.flatnonzero(mask_BD)),
                    None if attend_BD is None else send(attend_BD),
                ).float()
                target_K = send(tokens_BD[mask_BD].astype(np.int64))
                log_prob_K = -cross_entropy(logits_KV, target_K, reduction="none")
                hit_K = logits_KV.argmax(1) == target_K
                both_2K = torch.stack([log_prob_K.double(), hit_K.double()])
                row_K = send(np.nonzero(mask_BD)[0])
                sums_2B = both_2K.new_zeros(2, len(rows_B)).index_add_(1, row_K, both_2K)
                if counts:
                    sums.append(sums_2B)
                # On a GPU this forward is computed while the next one is prepared.
                reason = agreed_stop(*pending().tolist())
                if reason is not None:
                    raise StoppedInScoring(reason)
        self.engine.train(training)
        table_2Nk = torch.zeros(2, *plan.counts_Nk.shape, dtype=torch.float64)
        for (rows_B, bands_B), sums_2B in zip(mine, sums, strict=True):
            table_2Nk[:, rows_B, bands_B] = sums_2B.cpu()
        log_probs_Nk, hits_Nk = ranks.total(table_2Nk.to(ranks.device)).cpu().numpy()
        rows, bands = np.nonzero(plan.counts_Nk)
        check_finite(plan, rows, bands, log_probs_Nk[rows, bands])
        return log_probs_Nk, hits_Nk


def _se_fixed(parts: Sequence[LMLEstimate]) -> float:
    """Standard error of the mean of independent estimates, for exactly their sequences."""
    return math.sqrt(sum(part.se_fixed**2 for part in parts)) / len(parts)


def bits_per_byte(nats_per_token: float, bytes_per_token: float | None) -> float | None:
    """Code length per byte of text; None for data that is not text."""
    return -nats_per_token / math.log(2) / bytes_per_token if bytes_per_token else None
