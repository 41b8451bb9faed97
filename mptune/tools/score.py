"""Scores masked-LM checkpoints on text: what `mptune score` runs.

Text is cut into sequences that the model can hold. One model is scored until its standard error is
small enough; two are compared on a common plan until one is better. If their tokenizers differ,
both get the same pieces of text, and only bits per byte can be compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mptune.data.text import documents
from mptune.errors import InputError, NoResultError, input_errors, plural
from mptune.lml.adaptive import LMLComparison, Side, race_lml, refine_lml, se_per_position
from mptune.lml.covariates import TokenCovariates
from mptune.lml.diagnostics import OrderGap, ScoreAtRate, order_gap, score_at_rate
from mptune.lml.estimator import LMLEstimate, NonFiniteLogProb
from mptune.lml.groups import round_robin
from mptune.models.pretrained import PretrainedMaskedLM

IntArray = NDArray[np.int64]

EXTRA_FORWARDS = 256
"""Forwards for each figure that is reported next to the score."""

MOST_UNKNOWN = 0.2
"""Share of unknown tokens above which a score says nothing about the text."""

MOST_TOKENS = 512
"""Most tokens of a sequence, if the model holds more."""

CHARACTERS = 512
"""Most characters of a piece of text if two models have different tokenizers."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asks for.

    Attributes:
        source: files, folders or globs of text, or `python-stdlib`.
        documents: what is a document of a file: the `file`, each `line` or each `paragraph`.
        group: column of what belongs together, `file` of plain text; None: each document alone.
        length: most tokens of a sequence; None for the model's own limit, at most 512.
        sequences: most sequences to score, drawn at random.
        max_forwards: most forwards, of each model.
        target_se: population standard error to reach, nats per token.
    """

    source: Sequence[str]
    documents: Literal["file", "line", "paragraph"] = "file"
    group: str | None = None
    length: int | None = None
    sequences: int = 2000
    max_forwards: int | None = None
    target_se: float = 0.01
    batch_size: int = 32
    seed: int = 0


@dataclass(frozen=True, eq=False)
class ModelText:
    """One model, and the sequences that it is to score."""

    model: PretrainedMaskedLM
    side: Side
    bytes_N: IntArray
    unknown: int
    grouped_by: str

    def bits_per_byte(self, estimate: LMLEstimate) -> float:
        """Code length of the scored sequences over the bytes of their text."""
        nats = float(estimate.per_sequence.sum())
        return -nats / math.log(2) / float(self.bytes_N[estimate.sequence_index].sum())


@dataclass(eq=False)
class ModelScore:
    """The score of one model so far, and the figures reported next to it."""

    prepared: ModelText
    estimate: LMLEstimate
    target_se: float
    seconds: float = 0.0
    at_rates: list[ScoreAtRate] = field(default_factory=list)
    gap: OrderGap | None = None

    @cached_property
    def bits_per_byte(self) -> float:
        return self.prepared.bits_per_byte(self.estimate)

    @property
    def error(self) -> float:
        """Standard error in the estimate's scope, nats per token."""
        return se_per_position(self.estimate)

    @property
    def reached(self) -> bool:
        """Whether the error is small enough, over enough sequences to know it."""
        enough = self.estimate.tails.enough or self.estimate.scope == "fixed"
        return enough and self.error <= self.target_se

    def progress(self) -> tuple[float, str]:
        """Progress towards the target standard error, as a share and in words."""
        # The error falls with the square root of the forwards.
        return (self.target_se / self.error) ** 2 if self.error > 0 else 1.0, (
            f"{plural(self.estimate.forwards_used, 'forward')} in {self.seconds:.0f} s, "
            f"standard error {self.error:.4f} of {self.target_se} nats per token"
        )

    def figures(self) -> dict[str, Any]:
        """The result as JSON; the keys have the units."""
        from scipy.special import stdtrit  # type: ignore[import-untyped, unused-ignore]

        estimate, per_position = self.estimate, 1.0 / float(self.estimate.positions.mean())
        score, error, df = estimate.per(estimate.positions)
        half = error * float(stdtrit(df, 0.975))
        bits = self.prepared.bytes_N[estimate.sequence_index] * math.log(2)
        at_15, at_one = self.at_rates
        pseudo = at_one.nats_per_position
        return {
            "model": self.prepared.model.name,
            "nats_per_sequence": estimate.nats_per_sequence,
            "nats_per_token": estimate.nats_per_position,
            "bits_per_byte": self.bits_per_byte,
            "se_bits_per_byte": estimate.per(bits)[1],
            "interval_95_nats_per_token": [score - half, score + half],
            "se_nats_per_token": self.error,
            "se_of": estimate.scope,
            "se_fixed_nats_per_token": estimate.se_fixed * per_position,
            "target_se_nats_per_token": self.target_se,
            "target_reached": self.reached,
            "tails": _tails(estimate.tails),
            "loss_at_15": {"nats_per_token": -at_15.nats_per_position, "se": at_15.se},
            "pseudo_log_likelihood": {"nats_per_token": pseudo, "se": at_one.se},
            "order_gap_nats": None
            if self.gap is None
            else {"rms": self.gap.rms, "se": self.gap.se},
            "bias_of_scoring_at_15_nats_per_token": at_15.nats_per_position
            - estimate.nats_per_position,
            "sequences": estimate.n_sequences,
            "groups": estimate.n_groups,
            "grouped_by": self.prepared.grouped_by,
            "forwards": estimate.forwards_used,
            "effective_sample_size": estimate.effective_sample_size,
            "seconds": self.seconds,
            "plan_hash": estimate.plan_hash,
            "curve": _curve(estimate.curve),
        }


@dataclass(eq=False)
class Race:
    """The comparison of two models so far."""

    prepared: tuple[ModelText, ModelText]
    comparison: LMLComparison
    same_tokens: bool
    seconds: float = 0.0

    def progress(self) -> tuple[float, str]:
        """Progress towards a decision, as a share and in words."""
        found = self.comparison
        return abs(found.difference) / found.half_width if found.half_width else 1.0, (
            f"{found.forwards} forwards of each in {self.seconds:.0f} s, difference "
            f"{found.difference:+.2f} ± {found.half_width:.2f} nats per sequence"
        )

    def figures(self) -> dict[str, Any]:
        """The result as JSON; the keys have the units."""
        result = self.comparison
        names = [prepared.model.name for prepared in self.prepared]
        bytes_N = self.prepared[0].bytes_N[result.a.sequence_index]
        per_byte = 1.0 / math.log(2) / float(bytes_N.mean())
        per_token = 1.0 / float(result.a.positions.mean()) if self.same_tokens else None
        return {
            "models": names,
            "verdict": {"a": names[0], "b": names[1]}.get(result.verdict, "undecided"),
            "doubt": result.doubt,
            "tails": _tails(result.tails),
            "difference_bits_per_byte": -result.difference * per_byte,
            "half_width_bits_per_byte": result.half_width * per_byte,
            "difference_nats_per_sequence": result.difference,
            "half_width_nats_per_sequence": result.half_width,
            "difference_nats_per_token": result.difference * per_token if per_token else None,
            "half_width_nats_per_token": result.half_width * per_token if per_token else None,
            "same_tokenizer": self.same_tokens,
            "bits_per_byte": [
                p.bits_per_byte(e) for p, e in zip(self.prepared, (result.a, result.b), strict=True)
            ],
            "sequences": result.a.n_sequences,
            "groups": result.a.n_groups,
            "grouped_by": self.prepared[0].grouped_by,
            "forwards_of_each": result.forwards,
            "seconds": self.seconds,
            "curves": {
                n: _curve(e.curve) for n, e in zip(names, (result.a, result.b), strict=True)
            },
        }


def _tails(tails: Any) -> dict[str, float]:
    return {
        "largest_share": tails.share,
        "skewness": tails.skewness,
        "groups": tails.count,
        "groups_needed": tails.needed,
    }


def _curve(curve: Any) -> list[dict[str, float]]:
    names = ("mask_rate", "mean_log_prob", "se", "variance_share")
    columns = [getattr(curve, name).tolist() for name in names]
    return [dict(zip(names, point, strict=True)) for point in zip(*columns, strict=True)]


def prepare(names: Sequence[str], options: Options) -> tuple[list[ModelText], bool]:
    """Models with their sequences, and whether they share one tokenizer.

    The sequences are the same for every model, in random order and from as many groups as there
    are. Bytes that are not UTF-8 become U+FFFD.

    Raises:
        InputError: a model or the text cannot be used.
    """
    models = [PretrainedMaskedLM.open(name) for name in names]
    with input_errors("--data: "):
        read = documents(options.source, options.documents, Path.cwd(), options.group)
    texts = list(read.items())
    same = all(models[0].same_tokens(other) for other in models[1:])
    if not same:
        texts = _split_alike(models, texts)
    room = min(min(model.room for model in models), MOST_TOKENS)
    if options.length is not None and not 1 <= options.length <= room:
        raise InputError(f"--length: {options.length} is not in 1..{room}, what the model can hold")
    cuts = [_cut(model, texts, options.length or room) for model in models]
    found, groups_N = len(cuts[0][0]), cuts[0][2]
    if not found or any(len(ids) != found for ids, *_ in cuts):
        raise InputError(f"--data: {', '.join(options.source)} holds no text to score")
    order = round_robin(np.random.default_rng(options.seed).permutation(found), groups_N)
    kept, rest = order[: options.sequences], np.sort(order[options.sequences :])
    prepared = []
    for model, (ids, bytes_N, _) in zip(models, cuts, strict=True):
        table = model.encode([ids[row] for row in kept])
        if table.unknown > MOST_UNKNOWN * table.observed.sum():
            raise InputError(
                f"{model.name}: {table.unknown} of {table.observed.sum()} tokens are unknown to "
                "its tokenizer, too many for a score of this text"
            )
        # Covariates are counted on other text if there is enough; a guess need not be good.
        counted = model.encode([ids[row] for row in rest]) if len(rest) >= len(kept) else table
        covariates = TokenCovariates.fit(counted.tokens, counted.observed, model.vocabulary_size)
        side = Side.of(
            model.log_prob,
            table.tokens,
            table.observed,
            covariates,
            options.batch_size,
            groups_N[kept],
        )
        grouped_by = options.group or "document"
        prepared.append(ModelText(model, side, bytes_N[kept], table.unknown, grouped_by))
    return prepared, same


Documents = list[tuple[str, Any]]
"""Texts, each with the label of its group."""


def _split_alike(models: Sequence[PretrainedMaskedLM], documents: Documents) -> Documents:
    """Pieces of text that every model holds in one sequence."""
    most = CHARACTERS
    while most > 1:
        pieces = [(d[at : at + most], g) for d, g in documents for at in range(0, len(d), most)]
        pieces = [(piece, group) for piece, group in pieces if piece.strip()]
        if all(len(m.pieces(p)) <= m.room for m in models for p, _ in pieces):
            return pieces
        most //= 2
    raise InputError("--data: no piece of the text is short enough for both models")


def _cut(
    model: PretrainedMaskedLM, documents: Documents, length: int
) -> tuple[list[list[int]], IntArray, NDArray[Any]]:
    """Sequences of at most ``length`` token ids, none across documents; their bytes and groups."""
    ids, sizes, groups = [], [], []
    for text, group in documents:
        tokens, starts = model.spans(text)
        edges = [0, *(starts[at] for at in range(length, len(tokens), length)), len(text)]
        for n, at in enumerate(range(0, len(tokens), length)):
            ids.append(tokens[at : at + length])
            sizes.append(len(text[edges[n] : edges[n + 1]].encode()))
            groups.append(group)
    return ids, np.array(sizes, np.int64), np.array(groups)


def score(prepared: ModelText, options: Options) -> Iterator[ModelScore]:
    """Yield the score after every round, until the target, the data or the forwards end.

    Raises:
        NoResultError: the model gives no finite log probability.
    """
    side, began = prepared.side, time.monotonic()
    estimates = refine_lml(
        side, seed=options.seed, max_forwards=options.max_forwards, target_se=options.target_se
    )
    found = None
    for estimate in _named(estimates, prepared.model.name):
        found = ModelScore(prepared, estimate, options.target_se, time.monotonic() - began)
        yield found
    if found is None:
        raise InputError(f"--max-forwards: {options.max_forwards} is too few; allow at least 16")


def _named(looks: Iterator[Any], name: str) -> Iterator[Any]:
    try:
        yield from looks
    except NonFiniteLogProb as error:
        raise NoResultError(f"{name}: {error}") from error


def add_figures(found: ModelScore, options: Options) -> None:
    """Loss at 15 %, the pseudo-log-likelihood, and how much the order of positions matters."""
    side = found.prepared.side
    rows = found.estimate.sequence_index[:EXTRA_FORWARDS]
    scored = {name: getattr(side, name)[rows] for name in ("tokens", "observed", "groups")}
    side = replace(side, **scored)
    for rate in (0.15, 0.0):
        found.at_rates.append(score_at_rate(side, rate, seed=options.seed))
    if (side.observed.sum(axis=1) >= 2).any():
        found.gap = order_gap(side, seed=options.seed)


def race(prepared: Sequence[ModelText], same_tokens: bool, options: Options) -> Iterator[Race]:
    """Yield the comparison after every look, until it is decided or the data end.

    Raises:
        InputError: there are too few sequences to decide anything.
    """
    a, b = prepared
    began = time.monotonic()
    limit = options.max_forwards
    forwards = max(1, min(8, (limit or 0) // len(a.side.tokens)))
    with input_errors("--data: ", ValueError):
        looks = race_lml(a.side, b.side, seed=options.seed, forwards=forwards, max_forwards=limit)
        for comparison in _named(looks, f"{a.model.name} or {b.model.name}"):
            yield Race((a, b), comparison, same_tokens, time.monotonic() - began)
