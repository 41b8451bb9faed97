"""Make the bed: many real trainings of tiny masked transformers, on one core, in parts that resume.

    python benchmarks/bed/make.py run FOLDER [--hours H]    # train what is missing in FOLDER
    python benchmarks/bed/make.py status FOLDER             # how far it is
    python benchmarks/bed/make.py pack FOLDER FILE.npz      # parts to one small file
    python benchmarks/bed/make.py describe FILE.npz         # the table of the card

A part holds the trainings of one policy on one kind of data at one size, with several seeds. It is
written aside and renamed, so a killed run loses at most the part that it was making. Parts come in
the order of `units`, so that a bed that is not finished has all policies on all data first.

The trainings of a part run at once: every weight has a leading axis of runs, and products are
batched over it. Model, initialisation, order of the data, masks, weights of the loss, clipping,
optimizer and learning rate are those of an mptune trial with the same seed
(`tests/test_bed.py` compares them with DeepSpeed's loop).

Shape suffixes: R runs, B sequences of a batch, D positions, K masked positions of a batch, W width,
V predictable symbols, N scored sequences, k forwards of each, G bands of the mask rate, P rungs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding, gelu, layer_norm

from mptune import bed
from mptune.lml.covariates import TokenCovariates
from mptune.lml.estimator import check_finite, observations
from mptune.lml.groups import intraclass_correlation, round_robin
from mptune.lml.plan import LMLPlan
from mptune.lml.regression import Observations, reduce_variance
from mptune.models.families import Bert
from mptune.paths import write_aside
from mptune.policies._structures import words_of
from mptune.policies.base import RATE_BUCKETS, LossByRate, MaskPolicy, draw_batch, rate_bucket
from mptune.spec.schema import LearningRateSchedule, build
from mptune.training.feed import DataOrder, seeded_order
from mptune.training.loop import MEMORY, learned_policy
from mptune.training.schedule import learning_rate_factor

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

STEPS, BATCH = 512, 8
RUNGS = (0.125, 0.25, 0.5, 0.75, 1.0)
SEEDS = ((0, 1), (2, 3, 4, 5))
"""Seeds of a part; the first ones come first for all policies."""

SEQUENCES, FORWARDS = 256, 2
SCHEDULE = LearningRateSchedule(kind="linear", warmup=0.05)
DECAY, BETAS, EPSILON, CLIPPING = 0.01, (0.9, 0.98), 1e-6, 1.0

SIZES = {"S": 16, "M": 32, "L": 64}
"""Widths of the models. About 9, 31 and 115 thousand parameters."""

DEPTH, HEADS, EMBEDDING_STD = 2, 2, 0.1

LEARNING_RATES = {"S": 1e-2, "M": 7e-3, "L": 5e-3}
"""The best of a ladder for uniform masks at each size; the same for all policies."""

SOURCES: dict[str, dict[str, Any]] = {
    "text": {"kind": "text", "source": "package:bible/data/kjv.jsonl", "tokenizer": "characters",
             "length": 64, "group": "book", "heldout": 0.3},
    "sensors": {"kind": "series", "source": "search_spaces/watch.npz",
                "values": "X", "channels": ["ax", "ay", "az", "wx", "wy", "wz"], "every": 5,
                "window": 10, "bins": 24, "heldout": 0.3},
    "images": {"kind": "image", "source": "package:sklearn/datasets/data/digits.csv.gz",
               "shape": [8, 8], "label": -1, "heldout": 0.25},
}  # fmt: skip

UNITS = {
    "text": "whole_word",
    "sensors": {"kind": "block", "columns": 6, "height": 5, "width": 1},
    "images": {"kind": "block", "columns": 8, "height": 2, "width": 2},
}
"""What the structure `unit` of the catalogue is on each kind of data."""


RESOLUTION, MISSING = 5e-4, np.iinfo(np.int16).min
"""Curves and group means are kept as whole multiples of so many nats; and what stands for none."""


def _beta(a: float, b: float) -> dict[str, Any]:
    return {"kind": "beta", "a": a, "b": b}


def _uniform(low: float = 0.0, high: float = 1.0) -> dict[str, Any]:
    return {"kind": "uniform", "low": low, "high": high}


def _stages(*parts: Any) -> list[dict[str, Any]]:
    return [{"at": at, "policy": policy} for at, policy in parts]


def _mixture(*parts: Any) -> dict[str, Any]:
    return {
        "kind": "mixture",
        "components": [{"weight": weight, "policy": policy} for weight, policy in parts],
    }


POLICIES: tuple[dict[str, Any], ...] = (
    *({"kind": "fixed", "rate": r} for r in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 0.9)),
    {"kind": "fixed", "rate": 0.15, "corruption": "bert"},
    {"kind": "fixed", "rate": 0.4, "corruption": "bert"},
    {"kind": "fixed", "rate": 0.15, "structure": "span"},
    {"kind": "fixed", "rate": 0.4, "structure": "unit"},
    _uniform(),
    _uniform() | {"reduction": "token_mean"},
    _uniform() | {"corruption": "swap"},
    _uniform() | {"structure": "span"},
    _uniform() | {"structure": "unit"},
    _uniform(0, 0.3),
    _uniform(0.1, 0.5),
    _uniform(0.3, 0.8),
    _uniform(0.5, 1),
    _uniform(0, 0.6) | {"reduction": "token_mean"},
    *(_beta(a, b) for a, b in ((1, 3), (2, 5), (1, 1.5), (0.5, 0.5), (2, 2), (8, 8))),
    _beta(5, 2),
    _beta(2, 5) | {"reduction": "elbo"},
    _beta(2, 5) | {"reduction": "token_mean"},
    _beta(0.5, 0.5) | {"reduction": "elbo"},
    {"kind": "truncated_normal"},
    {"kind": "truncated_normal", "mean": 0.2, "std": 0.1, "low": 0, "high": 0.5},
    {"kind": "truncated_normal", "mean": 0.3, "std": 0.3, "low": 0},
    {"kind": "cosine"},
    {"kind": "cosine", "reduction": "elbo"},
    {"kind": "power", "exponent": 2},
    {"kind": "power", "exponent": 2, "form": "u^k"},
    {"kind": "power", "exponent": 3, "form": "u^k", "reduction": "elbo"},
    {"kind": "clipped"},
    {"kind": "clipped", "low": 0.3, "high": 0.8, "narrowest": 0.3, "reduction": "elbo"},
    {"kind": "adaptive"},
    {"kind": "adaptive", "explore": 0.5, "reduction": "elbo"},
    {"kind": "histogram", "bins": [1, 0, 2, 3]},
    {"kind": "histogram", "bins": [3, 1, 1, 1, 2]},
    _mixture((0.8, _beta(3, 9)), (0.2, _uniform())),
    _mixture((3, 0.15), (1, 0.5)),
    _mixture((1, 0.15), (1, _uniform())),
    {"kind": "linear", "start": 0.5, "end": 0.1},
    {"kind": "linear", "start": 0.3, "end": 0.15},
    {"kind": "linear", "start": 0.15, "end": 0.5},
    {"kind": "linear", "start": _uniform(0, 0.3), "end": _uniform()},
    {"kind": "linear", "start": _uniform(), "end": _uniform(0, 0.3)},
    {"kind": "cosine_schedule", "start": 0.9, "end": 0.1},
    {"kind": "cosine_schedule", "start": _beta(2, 5), "end": _beta(2, 2)},
    {"kind": "step", "stages": _stages((0, _uniform()), (0.7, 0.15))},
    {"kind": "step", "stages": _stages((0, 0.15), (0.5, _uniform()))},
    {"kind": "step", "stages": _stages((0, 0.75), (0.25, _uniform()))},
    {"kind": "piecewise", "points": _stages((0, 0.15), (0.5, 0.3), (0.9, 0.15))},
    {"kind": "warmup_plateau_decay", "start": 0.15, "plateau": 0.4, "end": 0.2},
)


def policy_on(data: str, number: int) -> dict[str, Any]:
    """A policy of the catalogue as a spec for one kind of data."""
    policy = POLICIES[number]
    return policy | {"structure": UNITS[data]} if policy.get("structure") == "unit" else policy


# --- data --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """A token table without padding, and the frozen plan that all trainings are scored on."""

    name: str
    train_ND: NDArray[Any]
    score_ND: NDArray[Any]
    plan: LMLPlan
    vocabulary_size: int
    axes: tuple[int, ...]
    joins: NDArray[np.bool_] | None = None
    log_width: float = 0.0
    """Mean log bin width of the scored positions, nats; 0 for symbols."""

    @cached_property
    def covariates(self) -> TokenCovariates:
        return TokenCovariates.fit(self.train_ND, None, self.vocabulary_size)

    @property
    def length(self) -> int:
        return int(self.train_ND.shape[1])


@cache
def load_data(name: str, cache_folder: Path) -> Data:
    """Prepare a kind of data with mptune's adapter; rows with padding are left out."""
    modality = build("data", SOURCES[name])
    table = modality.prepare(cache_folder)
    full = np.flatnonzero(table.heldout.observed.all(1))
    groups = np.asarray(table.heldout.groups)[full]
    if name == "images":  # every image is its own group; totals are kept of 32 sets of them
        groups = np.arange(len(full)) % 32
    rows = round_robin(seeded_order(len(full), 0), groups)[:SEQUENCES]
    tokens_ND = np.asarray(table.heldout.tokens[full[rows]]).astype(np.int64)
    plan = LMLPlan.make(
        np.ones(tokens_ND.shape, bool), forwards=FORWARDS, seed=0, groups=groups[rows]
    )
    joins = None
    if name == "text":
        alphabet = np.load(table.path / "alphabet.npy")
        word_V = np.array([chr(c).isalnum() for c in alphabet] + [False, False])
        joins = np.stack([word_V, word_V])
    widths = table.heldout.log_widths
    return Data(
        name=name,
        train_ND=np.asarray(table.train.tokens[table.train.observed.all(1)]),
        score_ND=tokens_ND,
        plan=plan,
        vocabulary_size=table.vocabulary_size,
        axes=tuple(table.axes.values()),
        joins=joins,
        log_width=0.0 if widths is None else float(np.mean(widths[full[rows]])),
    )


# --- model -------------------------------------------------------------------------------------


class Model:
    """R transformers of one shape; forward and backward are batched over the runs.

    Norm before sublayers, learned positions, a decoder that shares the embeddings, and a learned
    bias of attention for every offset (T5, Raffel et al. 2020, arXiv 1910.10683). A head's bias
    begins as minus twice the distance from one neighbour (ALiBi, Press et al. 2022, arXiv
    2108.12409, moved by a position); without it so short a training learns only marginals.
    """

    def __init__(self, data: Data, width: int, seeds: Sequence[int]) -> None:
        self.width, self.vocabulary_size, self.runs = width, data.vocabulary_size, len(seeds)
        axes = data.axes or (data.length,)
        place_DA = np.stack(np.unravel_index(np.arange(data.length), axes), 1)
        between = (place_DA[None] - place_DA[:, None]).reshape(-1, len(axes))
        offset_OA, number = np.unique(between, axis=0, return_inverse=True)
        self.offset_DD = torch.from_numpy(number.reshape(data.length, data.length))
        found: dict[str, list[Tensor]] = {}
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for name, shape in self._shapes(data.length, len(offset_OA)).items():
                if name.startswith("embed"):
                    value = torch.randn(shape, generator=generator) * EMBEDDING_STD
                elif name.endswith("weight"):
                    value = torch.randn(shape, generator=generator) * shape[1] ** -0.5
                elif name.endswith("near"):
                    layer = int(name.split(".")[0])
                    value = torch.from_numpy(-distances(offset_OA, layer)).float()
                else:
                    value = torch.full(shape, float(name.endswith("scale")))
                found.setdefault(name, []).append(value)
        self.weights = {n: torch.stack(v).requires_grad_() for n, v in found.items()}

    def _shapes(self, length: int, offsets: int) -> dict[str, tuple[int, ...]]:
        width, shapes = self.width, dict[str, tuple[int, ...]]()

        def linear(name: str, outputs: int, inputs: int) -> None:
            shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

        def norm(name: str) -> None:
            shapes.update({f"{name}.scale": (width,), f"{name}.bias": (width,)})

        shapes.update({"embed": (self.vocabulary_size + 1, width), "embed_place": (length, width)})
        for layer in range(DEPTH):
            norm(f"{layer}.attention_norm")
            shapes[f"{layer}.near"] = (HEADS, offsets)
            linear(f"{layer}.qkv", 3 * width, width)
            linear(f"{layer}.out", width, width)
            norm(f"{layer}.mlp_norm")
            linear(f"{layer}.up", 4 * width, width)
            linear(f"{layer}.down", width, 4 * width)
        norm("norm")
        linear("dense", width, width)
        norm("dense_norm")
        return shapes | {"decoder.bias": (self.vocabulary_size,)}

    def _linear(self, x: Tensor, name: str) -> Tensor:
        bias, weight = self.weights[f"{name}.bias"], self.weights[f"{name}.weight"]
        return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        bias, scale = self.weights[f"{name}.bias"], self.weights[f"{name}.scale"]
        return torch.addcmul(bias[:, None], layer_norm(x, x.shape[-1:]), scale[:, None])

    def logits(self, inputs_RBD: Tensor, masked_RK: Tensor) -> Tensor:
        """Logits [R, K, V] at the flat indices of each run's batch."""
        runs, batch, length = inputs_RBD.shape
        width, each = self.width, self.width // HEADS
        embed_RVW = self.weights["embed"]
        first_R11 = torch.arange(runs)[:, None, None] * embed_RVW.shape[1]
        x = embedding(inputs_RBD + first_R11, embed_RVW.flatten(0, 1))
        x = (x + self.weights["embed_place"][:, None]).view(runs, batch * length, width)
        for layer in range(DEPTH):
            qkv = self._linear(self._norm(x, f"{layer}.attention_norm"), f"{layer}.qkv")
            parts = qkv.view(runs * batch, length, 3, HEADS, each).permute(2, 0, 3, 1, 4)
            query, key, value = (part.reshape(-1, length, each) for part in parts)
            near_RHDD = self.weights[f"{layer}.near"][:, :, self.offset_DD]
            scores = torch.bmm(query * each**-0.5, key.transpose(1, 2))
            scores = scores.view(runs, batch, HEADS, length, length) + near_RHDD[:, None]
            found = torch.bmm(torch.softmax(scores, -1).view(-1, length, length), value)
            found = found.view(runs * batch, HEADS, length, each).transpose(1, 2).reshape(x.shape)
            if layer == DEPTH - 1:  # what follows mixes no positions
                chosen = masked_RK[..., None].expand(-1, -1, width)
                found, x = found.gather(1, chosen), x.gather(1, chosen)
            x = x + self._linear(found, f"{layer}.out")
            inner = gelu(self._linear(self._norm(x, f"{layer}.mlp_norm"), f"{layer}.up"))
            x = x + self._linear(inner, f"{layer}.down")
        x = self._norm(gelu(self._linear(self._norm(x, "norm"), "dense")), "dense_norm")
        bias_R1V = self.weights["decoder.bias"][:, None]
        return torch.baddbmm(bias_R1V, x, embed_RVW[:, : self.vocabulary_size].transpose(1, 2))

    def losses(self, inputs_RBD: Tensor, masked_RK: Tensor, target_RK: Tensor) -> Tensor:
        """-log p of the targets [R, K], nats."""
        logits = self.logits(inputs_RBD, masked_RK).flatten(0, 1)
        return cross_entropy(logits, target_RK.flatten(), reduction="none").view(target_RK.shape)

    def flops(self, length: int, batch: int, masked: int) -> float:
        """FLOPs of a step as mptune counts them; BERT's matrices have the same shapes."""
        like = Bert(width=self.width, depth=DEPTH)
        return like.flops(self.vocabulary_size + 2, length, batch, masked)

    @torch.no_grad()
    def score(self, data: Data) -> FloatArray:
        """Sum of log p over the mask of every forward of the plan [R, N, k], nats."""
        plan = data.plan
        runs = self.runs
        sums_RNk = np.zeros((runs, *plan.counts_Nk.shape))
        for rows, bands in plan.batches(64):
            tokens_BD, mask_BD = data.score_ND[rows], plan.masks(rows, bands)
            inputs_BD = np.where(mask_BD, data.vocabulary_size, tokens_BD)
            losses_RK = self.losses(
                torch.from_numpy(inputs_BD).expand(runs, -1, -1),
                torch.from_numpy(np.flatnonzero(mask_BD)).expand(runs, -1),
                torch.from_numpy(tokens_BD[mask_BD]).expand(runs, -1),
            )
            starts = np.concatenate([[0], np.cumsum(mask_BD.sum(1))[:-1]])
            sums_RB = -np.add.reduceat(losses_RK.double().numpy(), starts, axis=1)
            for run in range(runs):
                check_finite(plan, rows, bands, sums_RB[run])
            sums_RNk[:, rows, bands] = sums_RB
        return sums_RNk


def distances(offset_OA: IntArray, layer: int) -> FloatArray:
    """Twice the distance of every offset from the neighbour that each head begins with [HEADS, O].

    The heads of a block look before and behind, those of the blocks along the axes in turn, from
    the fastest on; where there is one axis, those of the second block look two positions away.
    """
    near_HA = np.zeros((HEADS, offset_OA.shape[1]))
    axis, steps = divmod(layer, offset_OA.shape[1])[::-1]
    near_HA[:, -1 - axis] = np.array([-1, 1]) * (1 + steps)
    return 2.0 * np.linalg.norm(offset_OA - near_HA[:, None], axis=2)


# --- training ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What a part's trainings share; anything that changes their numbers is here or in `Data`."""

    width: int
    learning_rate: float
    steps: int
    batch: int


def settings_of(size: str) -> Settings:
    """The settings of a size of the bed."""
    return Settings(SIZES[size], LEARNING_RATES[size], STEPS, BATCH)


class Run:
    """The masks of one run: its law, which may be learned, and its own order of the data."""

    def __init__(self, policy: MaskPolicy, data: Data, settings: Settings, seed: int) -> None:
        self.policy = self.law = policy
        self.data, self.settings, self.seed = data, settings, seed
        self.order = DataOrder(len(data.train_ND), settings.batch, seed)
        self.learned: list[tuple[float, Any]] = []
        self.seen_3R = np.zeros((3, RATE_BUCKETS))
        if policy.relearn_every is not None:
            self._learn(0.0)

    def _learn(self, progress: float) -> None:
        self.law = self.policy.learn(LossByRate.of_sums(self.seen_3R))
        self.learned.append((progress, self.law.model_dump(mode="json")))

    def batch(self, step: int) -> dict[str, NDArray[Any]]:
        """Inputs [B, D], masked positions, targets, weights and sequences [K] of a step."""
        tokens_BD = self.data.train_ND[self.order.rows(step)].astype(np.int64)
        drawn = draw_batch(
            self.law,
            tokens_BD,
            np.ones(tokens_BD.shape, bool),
            progress=step / self.settings.steps,
            seed=self.seed,
            step=step,
            mask_id=self.data.vocabulary_size,
            vocabulary_size=self.data.vocabulary_size,
            words_BD=None if self.data.joins is None else words_of(tokens_BD, self.data.joins),
        )
        sequence_K, _ = np.nonzero(drawn.mask_BD)
        return {
            "inputs": drawn.inputs_BD,
            "masked": np.flatnonzero(drawn.mask_BD),
            "target": tokens_BD[drawn.mask_BD],
            "weight": (drawn.weight_B / drawn.normaliser)[sequence_K].astype(np.float32),
            "sequence": sequence_K,
        }

    def told(self, step: int, losses_K: NDArray[Any], sequence_K: IntArray) -> None:
        """Let a learned law see the losses of a step; as `mptune.training.loop` does."""
        if self.policy.relearn_every is None:
            return
        counts_B = np.bincount(sequence_K, minlength=self.settings.batch)
        y_B = np.bincount(sequence_K, losses_K, self.settings.batch) / np.maximum(counts_B, 1)
        lengths_B = np.full(len(y_B), self.data.length)
        terms_3B = np.stack([counts_B > 0, y_B, y_B**2])
        np.add.at(self.seen_3R.T, rate_bucket(counts_B, lengths_B), terms_3B.T)
        progress = (step + 1) / self.settings.steps
        if progress - self.learned[-1][0] >= self.policy.relearn_every and progress < 1.0:
            self._learn(progress)
            self.seen_3R *= MEMORY


def train(
    policy: dict[str, Any], data: Data, settings: Settings, seeds: Sequence[int]
) -> dict[str, Any]:
    """Train one policy with several seeds at once, and score it at every rung.

    Returns:
        sums [R, P, N, k]: log p over the masks of the plan, nats; flops [R, P] and cpu_s [P], spent
        until each rung, scoring not counted, cpu_s per run; learned: what each run's law became.
    """
    model = Model(data, settings.width, seeds)
    runs = [Run(build("policy", policy), data, settings, seed) for seed in seeds]
    weights = list(model.weights.values())
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in weights if w.ndim > 2]},
            {"params": [w for w in weights if w.ndim == 2], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=DECAY,
        fused=True,
    )
    due = [math.ceil(rung * settings.steps - 1e-9) for rung in RUNGS]
    flops_R, cpu_s, began = np.zeros(len(runs)), 0.0, time.process_time()
    sums, flops, seconds = [], [], []
    for step in range(settings.steps):
        batches = [run.batch(step) for run in runs]
        drawn = stacked(batches)
        loss_RK = model.losses(drawn["inputs"], drawn["masked"], drawn["target"])
        (loss_RK * drawn["weight"]).sum().backward()
        clip(weights)
        factor = learning_rate_factor(SCHEDULE, (step + 0.5) / settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        optimizer.step()
        optimizer.zero_grad()
        for number, (run, batch) in enumerate(zip(runs, batches, strict=True)):
            masked = len(batch["masked"])
            run.told(step, loss_RK[number, :masked].detach().numpy(), batch["sequence"])
            flops_R[number] += model.flops(data.length, settings.batch, masked)
        for _ in range(due.count(step + 1)):
            cpu_s += time.process_time() - began
            sums.append(model.score(data))
            flops.append(flops_R.copy())
            seconds.append(cpu_s / len(runs))
            began = time.process_time()
    return {
        "sums": np.stack(sums, 1).astype(np.float32),
        "flops": np.stack(flops, 1),
        "cpu_s": np.array(seconds),
        "learned": json.dumps([learned_policy(run.policy, run.learned) for run in runs]),
    }


def stacked(batches: Sequence[dict[str, NDArray[Any]]]) -> dict[str, Tensor]:
    """The batches of all runs; where one has fewer masked positions, spare ones of weight 0."""
    most = max(len(batch["masked"]) for batch in batches)

    def padded(values: NDArray[Any]) -> NDArray[Any]:
        return values if values.ndim > 1 else np.pad(values, (0, most - len(values)))

    return {k: torch.from_numpy(np.stack([padded(b[k]) for b in batches])) for k in batches[0]}


def clip(weights: Sequence[Tensor]) -> None:
    """Scale each run's gradients to a global norm of at most `CLIPPING`, as DeepSpeed does."""
    gradients = [w.grad for w in weights if w.grad is not None]
    norm_R = sum(g.flatten(1).square().sum(1) for g in gradients) ** 0.5
    factor_R = (CLIPPING / (norm_R + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient *= factor_R.view(-1, *[1] * (gradient.ndim - 1))


# --- parts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """What one part holds: the trainings of a policy on a kind of data at a size, with seeds."""

    data: str
    size: str
    policy: int
    seeds: tuple[int, ...]

    def path(self, folder: Path) -> Path:
        """The part's file; the hash in its name is of the policy, whatever its number is."""
        spec = json.dumps(policy_on(self.data, self.policy), sort_keys=True)
        digest = hashlib.sha256(spec.encode()).hexdigest()[:8]
        seeds = "".join(map(str, self.seeds))
        return folder / "parts" / f"{self.data}-{self.size}-{digest}-{seeds}.npz"


def units() -> Iterator[Unit]:
    """All parts in the order in which they are made: by size, then seeds, then policy."""
    for size, seeds, policy, data in product(SIZES, SEEDS, range(len(POLICIES)), SOURCES):
        yield Unit(data, size, policy, seeds)


def setting_of(settings: Settings, data: Data) -> str:
    """What a part's numbers depend on besides its name, as text."""
    return json.dumps([vars(settings), data.plan.hash])


def run(folder: Path, hours: float) -> None:
    """Make the parts that are missing, for about so many hours at most."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    until = time.monotonic() + 3600 * hours
    missing = [unit for unit in units() if not unit.path(folder).exists()]
    for count, unit in enumerate(missing):
        if time.monotonic() > until:
            return
        settings, data = settings_of(unit.size), load_data(unit.data, folder / "tables")
        began = time.process_time()
        found = train(policy_on(unit.data, unit.policy), data, settings, unit.seeds)
        with write_aside(unit.path(folder)) as aside, aside.open("wb") as file:
            np.savez(file, setting=setting_of(settings, data), **found)
        cpu_s = (time.process_time() - began) / len(unit.seeds)
        left = len(missing) - count - 1
        print(f"{time.strftime('%F %T')} {unit} {cpu_s:.1f} s a run, {left} parts left", flush=True)


def status(folder: Path) -> None:
    """Print how many parts there are of each size and set of seeds."""
    for size, seeds in product(SIZES, SEEDS):
        parts = [u.path(folder).exists() for u in units() if (u.size, u.seeds) == (size, seeds)]
        print(f"size {size}, seeds {seeds}: {sum(parts)} of {len(parts)} parts")


# --- packing -----------------------------------------------------------------------------------


def scores(plan: LMLPlan, blank: Observations, sums_Nk: FloatArray) -> dict[str, Any]:
    """LML estimate, band curve and group means of one scored model in nats per position, and the
    intraclass correlation of its sequences' scores in groups.

    A band's score is the mean of the smooth curve over its mask counts, and the weighted mean of
    the residuals of its forwards.
    """
    data = replace(blank, y_nk=plan.lengths[:, None] / plan.counts_Nk * sums_Nk)
    reduction, length = reduce_variance(data), int(plan.lengths[0])
    counts_M = np.arange(1, length + 1)
    band_M = rate_bucket(counts_M, np.full(length, length))
    smooth_G = np.bincount(band_M, reduction.smooth(counts_M / length)) / np.bincount(band_M)
    band_F = band_M[plan.counts_Nk.ravel() - 1]
    weights_F, residuals_F = plan.weights_Nk.ravel(), reduction.residuals_nk.ravel() / length
    rest_G = np.bincount(band_F, weights_F * residuals_F) / np.bincount(band_F, weights_F)
    rows_N = reduction.z_nk.mean(1) / length
    groups = np.bincount(plan.groups_N, rows_N) / np.bincount(plan.groups_N)
    icc = intraclass_correlation(rows_N, plan.groups_N)
    return {"lml": rows_N.mean(), "curves": smooth_G + rest_G, "groups": groups, "icc": icc}


def pack(folder: Path, target: Path) -> None:
    """Write all parts that exist to one file, see the card for its layout.

    Raises:
        ValueError: a part was made with other settings or data.
    """
    seeds = sorted(sum(SEEDS, ()))
    arrays: dict[str, Any] = {}
    about: dict[str, Any] = {
        "sizes": list(SIZES), "widths": list(SIZES.values()), "seeds": seeds, "rungs": RUNGS,
        "learning_rates": list(LEARNING_RATES.values()), "steps": STEPS, "batch": BATCH,
        "resolution": RESOLUTION, "data": {},
    }  # fmt: skip
    for name in SOURCES:
        data = load_data(name, folder / "tables")
        plan, groups = data.plan, int(data.plan.groups_N.max()) + 1
        blank = observations(plan, np.zeros(plan.counts_Nk.shape), data.score_ND, data.covariates)
        shape = len(POLICIES), len(SIZES), len(seeds), len(RUNGS)
        found = {
            "lml": np.full(shape, np.nan, np.float32),
            "curves": np.full((*shape, RATE_BUCKETS), np.nan, np.float32),
            "groups": np.full((*shape, groups), np.nan, np.float32),
            "flops": np.full(shape, np.nan, np.float32),
            "cpu_s": np.full(shape, np.nan, np.float32),
        }
        learned, icc = [], []
        for unit in units():
            path = unit.path(folder)
            if unit.data != name or not path.exists():
                continue
            size = list(SIZES).index(unit.size)
            settings = settings_of(unit.size)
            with np.load(path) as part:
                if str(part["setting"]) != setting_of(settings, data):
                    raise ValueError(f"{path} was made with other settings or data; remove it")
                laws, sums_RPNk = json.loads(str(part["learned"])), part["sums"].astype(np.float64)
                flops_RP, cpu_s_P = part["flops"], part["cpu_s"]
            for run, seed in enumerate(unit.seeds):
                at = unit.policy, size, seeds.index(seed)
                scored = [scores(plan, blank, sums_Nk) for sums_Nk in sums_RPNk[run]]
                for key in ("lml", "curves", "groups"):
                    found[key][at] = [score[key] for score in scored]
                icc.append(scored[-1]["icc"])
                found["flops"][at], found["cpu_s"][at] = flops_RP[run], cpu_s_P
                learned += [[*at, laws[run]]] if laws[run] else []
        for key in ("curves", "groups"):
            whole = np.rint(found[key] / RESOLUTION)
            found[key] = np.where(np.isnan(whole), MISSING, whole).astype(np.int16)
        arrays |= {f"{name}/{key}": value for key, value in found.items()}
        unigram_N = data.covariates.position_features(data.score_ND)[..., 0].mean(1)
        about["data"][name] = {
            "length": data.length, "vocabulary_size": data.vocabulary_size, "axes": data.axes,
            "train_sequences": len(data.train_ND), "sequences": len(data.score_ND),
            "group_sizes": np.bincount(plan.groups_N).tolist(), "plan_hash": plan.hash,
            "unigram": float(unigram_N.mean()), "log_width": data.log_width,
            "icc_of_groups": float(np.mean(icc)) if icc else None,
            "parameters": [parameters(data, width) for width in SIZES.values()],
            "policies": [policy_on(name, p) for p in range(len(POLICIES))], "learned": learned,
        }  # fmt: skip
    with write_aside(target) as aside, aside.open("wb") as file:
        np.savez_compressed(file, about=json.dumps(about), **arrays)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


def parameters(data: Data, width: int) -> int:
    """Parameters of one model."""
    return sum(value.numel() for value in Model(data, width, [0]).weights.values())


def describe(path: Path) -> None:
    """Print the card's table: one row for each kind of data and size, of runs that were made.

    Figures are of the seeds that all policies have that were made at the size.

    Seed SD is pooled over policies, with the range of the middle 80 % of them. ICC is the share of
    the variance of a run's score that is between policies; "same seed" is the share of the seeds'
    variance that all policies have in common. Near the best are policies whose mean is within
    max(1 nat per sequence, half an SD of a difference of two seeds) of the best one's. The rungs'
    columns are Spearman's correlation of policies' means there with those at the end.
    """
    early = " | ".join(f"{100 * rung:g} %" for rung in RUNGS[:-1])
    names = "runs | unigram | best | uniform | seed SD | ICC | same seed | near the best"
    head = f"| | {names} | {early} |"
    print(head, "|---" * (head.count("|") - 1) + "|", sep="\n")
    for (name, made), (index, size) in product(bed.load(path).items(), enumerate(SIZES)):
        lml_PRT = made.lml_PZRT[:, index]
        runs, known_P = np.isfinite(lml_PRT[..., -1]).sum(), np.isfinite(lml_PRT[..., -1]).any(1)
        lml_PRT = lml_PRT[known_P]
        lml_PRT = lml_PRT[:, np.isfinite(lml_PRT[..., -1]).all(0)]
        seeds = lml_PRT.shape[1]
        if len(lml_PRT) < 3 or seeds < 2:
            continue
        end_PR, length = lml_PRT[..., -1], made.about["length"]
        rest_PR = end_PR - end_PR.mean(1, keepdims=True)
        sd_P = end_PR.std(1, ddof=1)
        sd = math.sqrt((sd_P**2).mean())
        icc = intraclass_correlation(end_PR.ravel(), np.repeat(np.arange(len(end_PR)), seeds))
        common = max(0.0, rest_PR.mean(0).var(ddof=1) / sd**2 - 1 / len(end_PR))
        mean_PT = lml_PRT.mean(1)
        delta = max(1 / length, sd * 0.5**0.5)
        near = int((mean_PT[:, -1] >= mean_PT[:, -1].max() - delta).sum())
        ranks_PT = mean_PT.argsort(0).argsort(0)
        early = " | ".join(f"{np.corrcoef(r, ranks_PT[:, -1])[0, 1]:.2f}" for r in ranks_PT.T[:-1])
        known = [p for p, k in zip(made.policies, known_P, strict=True) if k]
        uniform = f"{mean_PT[known.index(_uniform()), -1]:.3f}" if _uniform() in known else "–"
        low, high = np.quantile(sd_P, [0.1, 0.9])
        print(
            f"| {name} {size} | {runs} | {made.about['unigram']:.3f} "
            f"| {mean_PT[:, -1].max():.3f} | {uniform} "
            f"| {sd:.3f} ({low:.3f}–{high:.3f}) | {icc:.2f} | {common:.2f} "
            f"| {near} of {len(end_PR)} | {early} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "status", "pack"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        if name == "run":
            command.add_argument("--hours", type=float, default=1e9, help="of wall-clock time")
        if name == "pack":
            command.add_argument("target", type=Path)
    commands.add_parser("describe").add_argument("path", type=Path)
    given = vars(parser.parse_args())
    doing = {"run": run, "status": status, "pack": pack, "describe": describe}
    doing[given.pop("command")](**given)


if __name__ == "__main__":
    main()
