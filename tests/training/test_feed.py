"""Batches of static shapes are the same batches; no operation of a step reads values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cross_entropy

from mptune import plugins
from mptune.data._table import Split
from mptune.spec.schema import MODEL_KEYS, Training, build
from mptune.training.feed import BatchKey, Feed, Inputs
from mptune.training.ranks import Ranks
from tests.training.syncs import Syncs

SYMBOLS, LENGTH, BATCH = 11, 16, 8
FAMILIES = [name for name in plugins.modules("families") if name not in MODEL_KEYS]
REDUCTIONS = ("seq_mean", "token_mean", "elbo")


def inputs(family="bert", policy=None, ragged=False, **training):
    rng = np.random.default_rng(0)
    tokens_ND = rng.integers(SYMBOLS, size=(64, LENGTH)).astype(np.uint8)
    observed_ND = np.ones(tokens_ND.shape, bool)
    if ragged:
        observed_ND = np.arange(LENGTH) < rng.integers(1, LENGTH, size=(64, 1))
        tokens_ND[~observed_ND] = SYMBOLS + 1
    section = {"budget_tokens": 1e6, "batch_size": BATCH, "micro_batch_size": 4, **training}
    return Inputs(
        number=0,
        seed=0,
        training=Training.model_validate(section),
        rungs=(),
        policy=build("policy", policy or {"kind": "uniform"}),
        family=build("model", {"family": family, "width": 32, "depth": 2}),
        train=Split(tokens_ND, observed_ND, np.zeros(64, np.int32)),
        vocabulary_size=SYMBOLS,
    )


def key(given, step=0):
    return BatchKey(step, step / 8, given.policy, True)


def taken(given, step=0):
    """The batch of a step and its parts."""
    return Feed(given, Ranks()).take(key(given, step))


def model(given):
    torch.manual_seed(0)
    return given.family.build(SYMBOLS + 2, SYMBOLS, LENGTH)


def step_of(module, parts):
    """Sums of all parts, float64; leaves the gradients."""
    module.zero_grad()
    total = 0
    for part in parts:
        loss_K = cross_entropy(module(*part.arguments), part.target_K, reduction="none")
        objective = (loss_K * part.weight_K).sum()
        objective.backward()
        total = total + part.sums(objective.detach(), loss_K.detach())
    return total


@pytest.mark.parametrize("static", [False, True])
def test_sequences_are_cut_into_pieces_until_the_context_is_extended(static):
    context = {"length": 4, "until": 0.5}
    cut = inputs(
        policy={"kind": "fixed", "rate": 0.5}, ragged=True, compile=static, context=context
    )
    whole = inputs(policy={"kind": "fixed", "rate": 0.5}, ragged=True, compile=static)
    for step in range(3):
        short, long = taken(cut, step)[0], taken(whole, step)[0]
        assert short.tokens.shape == (BATCH * LENGTH // 4, 4)
        assert (short.tokens.ravel() == long.tokens.ravel()).all()
        assert (abs(short.counts - short.lengths / 2) <= 0.5).all()
        assert not short.code_B.any()
        assert sorted(np.concatenate(short.parts)) == list(range(len(short.tokens)))
        assert len(short.parts) == len(long.parts) == 2
    assert (taken(cut, 4)[0].drawn.mask_BD == taken(whole, 4)[0].drawn.mask_BD).all()
    assert step_of(model(cut), taken(cut, 0)[1]).isfinite().all()


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_spare_rows_and_other_parts_change_no_loss_and_no_gradient(reduction, pack, ragged):
    policy = {"kind": "uniform", "reduction": reduction}
    plain = inputs(policy=policy, ragged=ragged, pack=pack)
    static = inputs(policy=policy, ragged=ragged, pack=pack, compile=True)
    assert sum(taken(static)[0].head_rows) > sum(taken(plain)[0].head_rows)
    for part in taken(static)[1]:
        tokens_RD, flat_K = part.arguments[:2]
        assert flat_K.max() < tokens_RD.numel()  # packed, there are fewer rows than sequences
    found = []
    for given in (plain, static):
        module = model(given)
        sums = step_of(module, taken(given)[1])
        found.append((sums, [p.grad for p in module.parameters()]))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-6)
    for padded, exact in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(padded, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shapes_of_full_sequences_are_static(family):
    given = inputs(family, compile=True)
    shapes = {
        tuple(tensor.shape for tensor in part.tensors())
        for step in range(8)
        for part in Feed(given, Ranks()).take(key(given, step))[1]
    }
    assert len(shapes) == 1


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("how", ["full", "padded", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_operation_of_a_step_reads_values(family, how, reduction):
    """On a GPU the host would wait there for all that the device was given before."""
    policy = {"kind": "uniform", "reduction": reduction}
    given = inputs(family, policy, how != "full", pack=how == "packed", compile=True)
    module, parts = model(given), taken(given)[1]
    with Syncs() as syncs:
        step_of(module, parts)
    assert syncs.places == set()


def test_operations_that_read_values_are_found():
    values = torch.arange(4.0)
    with Syncs() as syncs:
        assert values[torch.tensor([1, 2])].shape == (2,)
        assert not syncs.places
        values[values > 1]
        values.nonzero()
        bool(values.sum() > 0)
    assert len(syncs.places) == 3


def test_a_batch_that_was_fetched_is_the_one_that_would_be_drawn(monkeypatch):
    given = inputs()
    feed = Feed(given, Ranks())
    feed.fetch(key(given, 1))
    drawn = taken(given, 1)[1]
    monkeypatch.setattr(feed, "draw", None)
    pairs = zip(feed.take(key(given, 1))[1], drawn, strict=True)
    assert all(torch.equal(a.target_K, b.target_K) for a, b in pairs)


@pytest.mark.parametrize(
    "changes", [{"step": 2}, {"law": build("policy", {"kind": "fixed", "rate": 0.5})}]
)
def test_a_batch_that_was_fetched_for_another_step_or_law_is_not_used(changes):
    given = inputs()
    feed, later = Feed(given, Ranks()), replace(key(given, 1), **changes)
    feed.fetch(key(given, 1))
    found, expected = (one.take(later)[1][0].target_K for one in (feed, Feed(given, Ranks())))
    assert torch.equal(found, expected)
    assert not torch.equal(found, taken(given, 1)[1][0].target_K)


@pytest.mark.parametrize("static", [False, True])
def test_ranks_share_a_batch(static):
    given = inputs(compile=static)
    shares = [
        [part.target_K[part.weight_K > 0] for part in Feed(given, ranks).take(key(given))[1]]
        for ranks in (Ranks(0, 2), Ranks(1, 2))
    ]
    whole = [part.target_K[part.weight_K > 0] for part in taken(given)[1]]
    assert [t.tolist() for share in shares for t in share] == [t.tolist() for t in whole]


@pytest.mark.nightly
def test_a_compiled_model_is_compiled_once():
    """Once for all draws; once more where sequences differ in length, for dynamic shapes."""
    for ragged, times in ((False, 1), (True, 2)):
        torch.compiler.reset()
        given = inputs(ragged=ragged, compile=True)
        made = CompileCounterWithBackend("aot_eager")
        module = model(given)
        module.compile(backend=made)
        for step in range(12):
            step_of(module, taken(given, step)[1])
        assert made.frame_count == times
    torch.compiler.reset()
