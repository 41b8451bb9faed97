"""Masked language models in lm-eval (EleutherAI): log-likelihoods by the accumulated estimator.

log p(continuation | context) is estimated as `mptune.lml` estimates log p(x), where positions of
the continuation alone are masked and the context is always shown. lm-eval's own model classes need
a causal model; of a masked model, or a masked diffusion model (a bidirectional denoiser), the
estimate is a lower bound, see `mptune.lml.estimator`.

Needs `pip install 'mptune[lm-eval]'`. To import this module registers the model `mptune`.

Shape suffixes: N rows, n of a part of them, k forwards of each, D positions, K masked positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import comb
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mptune.errors import InputError
from mptune.lml.estimator import estimate_rows, masked_sums
from mptune.lml.groups import BoolArray, FloatArray
from mptune.models.pretrained import EncodedText, PretrainedMaskedLM

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    raise InputError("mptune.tools.lm_eval needs lm-eval: pip install 'mptune[lm-eval]'") from None

Pair = tuple[list[int], list[int]]
"""Ids of a context and of its continuation."""

ROWS = 1024
"""Requests that are scored on one plan: of similar lengths, so that little is padding."""


@register_model("mptune")
class AccumulatedLM(LM):  # type: ignore[misc]
    """A masked language model as lm-eval calls it; `simple_evaluate(model=AccumulatedLM(...))`.

    Attributes:
        last_errors: standard error in nats of each log-likelihood of the last call, over its masks.
            0 where it is exact: a continuation of D tokens has 2^D - 1 masks, all of which are used
            if `forwards` are as many.
    """

    def __init__(
        self,
        pretrained: str | PretrainedMaskedLM,
        *,
        revision: str | None = None,
        forwards: int = 16,
        seed: int = 0,
        batch_size: int | str = 32,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """Open a model.

        Args:
            pretrained: a folder or a hub name that `AutoModelForMaskedLM` opens, or an open model:
                `PretrainedMaskedLM(name, model, tokenizer)` of a model and a tokenizer.
            forwards: most of each request, at least 2; one for each part of the range of counts.
            batch_size: rows of a forward; lm-eval's `auto` is 32.
            max_batch_size: not used; lm-eval gives it.

        Raises:
            InputError: there is no such model, or one forward only.
        """
        super().__init__()
        if int(forwards) < 2:
            raise InputError(f"forwards is {forwards}; a standard error needs 2 or more")
        model = pretrained
        if isinstance(model, str):
            model = PretrainedMaskedLM.open(model, revision)
        if device is not None:
            model.device = torch.device(device)
            model.model.to(model.device)
        self.model, self.forwards, self.seed = model, int(forwards), int(seed)
        self.batch_size = int(batch_size) if str(batch_size).isdecimal() else 32
        self.last_errors: list[float] = []

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """log p of each continuation given its context, nats, and whether it is the greedy one.

        Greedy: each of its tokens is the most probable one while all of them are masked.

        Raises:
            InputError: a continuation is longer than the model's room; a context is cut instead.
        """
        pairs = [self.pair(*request.args) for request in requests]
        nats_N, errors_N, greedy_N = self.score(pairs, greedy=True)
        self.last_errors = errors_N.tolist()
        return list(zip(nats_N.tolist(), greedy_N.tolist(), strict=True))

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """log p of each text, nats.

        Of a text that is longer than the model's room the first window is scored whole, and then
        half a window at a time, given the half before it.
        """
        room, pairs, owner = self.model.room, [], []
        for number, request in enumerate(requests):
            ids, half = self.model.pieces(request.args[0]), room // 2
            blocks: list[Pair] = [([], ids[:room])]
            blocks += [
                (ids[start - room + half : start], ids[start : start + half])
                for start in range(room, len(ids), half)
            ]
            pairs += blocks
            owner += [number] * len(blocks)
        nats_N, errors_N, _ = self.score(pairs)
        total, variance = np.zeros(len(requests)), np.zeros(len(requests))
        np.add.at(total, owner, nats_N)
        np.add.at(variance, owner, errors_N**2)
        self.last_errors = np.sqrt(variance).tolist()
        return [float(nats) for nats in total]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Not there: a masked model has no order to generate in.

        Raises:
            InputError: always.
        """
        raise InputError("mptune scores text and generates none: take tasks of log-likelihoods")

    def pair(self, context: str, continuation: str) -> Pair:
        """Ids of both; spaces between them are the continuation's, as in lm-eval's own models.

        Raises:
            InputError: the continuation is longer than the model's room.
        """
        kept = context.rstrip()
        whole = self.model.pieces(context + continuation)
        first = len(self.model.pieces(kept)) if kept else 0
        before, after, room = whole[:first], whole[first:], self.model.room
        if len(after) > room:
            raise InputError(
                f"{self.model.name}: has room for {room} tokens; a continuation has {len(after)}"
            )
        return before[len(before) + len(after) - room if len(whole) > room else 0 :], after

    def score(
        self, pairs: Sequence[Pair], greedy: bool = False
    ) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Of each continuation: log p in nats, its standard error, and whether it is greedy."""
        nats_N, errors_N = np.zeros(len(pairs)), np.zeros(len(pairs))
        greedy_N = np.ones(len(pairs), np.bool_)
        order = sorted(range(len(pairs)), key=lambda n: len(pairs[n][0]) + len(pairs[n][1]))
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            table = self.model.encode([pairs[n][0] + pairs[n][1] for n in rows])
            masked_nD = table.observed.copy()
            for row, n in enumerate(rows):
                first = len(self.model.frame[0])
                masked_nD[row, first : first + len(pairs[n][0])] = False
            length_n, here = masked_nD.sum(1), np.array(rows)
            short_n = 2.0**length_n - 1 <= self.forwards
            nats_N[here[short_n]] = self._exact(table.tokens[short_n], masked_nD[short_n])
            if not short_n.all():
                nats_N[here[~short_n]], errors_N[here[~short_n]] = estimate_rows(
                    self.model.log_prob,
                    table.tokens[~short_n],
                    masked_nD[~short_n],
                    forwards=self.forwards,
                    seed=self.seed + (start << 32),
                    batch_size=self.batch_size,
                )
            if greedy:
                greedy_N[here] = self._greedy(table, masked_nD)
        return nats_N, errors_N, greedy_N

    def _exact(self, tokens_nD: NDArray[Any], masked_nD: BoolArray) -> FloatArray:
        """log p [n] by all masks of each row: the mean over those of a size, summed over sizes."""
        rows, masks, weights = [], [], []
        for row, masked_D in enumerate(masked_nD):
            at = np.flatnonzero(masked_D)
            for shown in product((False, True), repeat=at.size):
                if any(shown):
                    mask_D = np.zeros_like(masked_D)
                    mask_D[at] = shown
                    rows.append(row)
                    masks.append(mask_D)
                    weights.append(1 / sum(shown) / comb(at.size, sum(shown)))
        nats_n = np.zeros(len(tokens_nD))
        for start in range(0, len(rows), self.batch_size):
            part = slice(start, start + self.batch_size)
            mask_BD = np.array(masks[part])
            sums_B = masked_sums(self.model.log_prob(tokens_nD[rows[part]], mask_BD), mask_BD)
            np.add.at(nats_n, rows[part], weights[part] * sums_B)
        return nats_n

    def _greedy(self, table: EncodedText, masked_nD: BoolArray) -> BoolArray:
        found_n = np.ones(len(masked_nD), np.bool_)
        for start in range(0, len(masked_nD), self.batch_size):
            rows = slice(start, start + self.batch_size)
            tokens, mask = (torch.from_numpy(a[rows]) for a in (table.tokens, masked_nD))
            inputs, attend = (
                tokens.masked_fill(mask, self.model.mask_id),
                tokens != self.model.pad_id,
            )
            device = self.model.device
            logits_KV = self.model.logits(inputs.to(device), attend.to(device), mask.to(device))
            wrong_K = logits_KV.argmax(1).cpu() != tokens[mask]
            found_n[start + mask.nonzero()[wrong_K, 0].numpy()] = False
        return found_n
