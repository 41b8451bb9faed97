"""Memory demands against hand counts and DeepSpeed's own estimators, and the proposal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from mptune.errors import DoesNotFit
from mptune.spec import Training, build
from mptune.training.memory import Sizes, check, demand
from mptune.training.ranks import reason_of

BERT = build("model", {"family": "bert", "width": 768, "depth": 12})
SIZES = Sizes(family=BERT, vocabulary=30524, length=512)
P = BERT.parameters(30524, 512)


def training(**fields):
    return Training.model_validate({"budget_tokens": 1, "batch_size": 64, **fields})


@pytest.mark.parametrize(
    ("stage", "bytes_each"), [(0, 16), (1, 4 + 12 / 4), (2, 2 + 14 / 4), (3, 16 / 4)]
)
def test_states_of_the_stages(stage, bytes_each):
    found = demand(SIZES, training(precision="bf16", zero_stage=stage), 4)
    assert found.states == pytest.approx(P * bytes_each)


def test_fp32_has_no_master_copy():
    assert demand(SIZES, training(), 1).states == 16 * P


def test_states_are_within_deepspeeds_own_estimates():
    """Theirs count fp32 gradients at stage 2, so ours is at most theirs."""
    theirs = estimate_zero2_model_states_mem_needs(P, 8, 1, cpu_offload=False)[1]
    ours = demand(SIZES, training(precision="bf16", zero_stage=2), 8).states
    assert 0.5 * theirs < ours <= theirs
    largest = 30524 * 768
    theirs = estimate_zero3_model_states_mem_needs(P, largest, 8, 1, False, False, False)[1]
    ours = demand(SIZES, training(precision="bf16", zero_stage=3), 8).states
    assert 0.5 * theirs < ours <= theirs


def test_offloading_and_activation_checkpoints_save_memory():
    plain = demand(SIZES, training(zero_stage=2), 2)
    section = {
        "zero_optimization": {"offload_optimizer": {"device": "cpu"}},
        "activation_checkpointing": {},
    }
    saved = demand(SIZES, training(zero_stage=2, deepspeed=section), 2)
    assert saved.states == plain.states - 4 * P
    assert saved.activations < 0.6 * plain.activations


def test_plain_attention_keeps_its_scores():
    kernel = demand(SIZES, training(precision="bf16"), 64)
    plain = demand(replace(SIZES, device="cpu"), training(precision="bf16"), 64)
    heads = BERT.attention_heads
    assert plain.activations - kernel.activations == 12 * 512 * 2 * heads * 512 * 2
    assert demand(replace(SIZES, device="cpu"), training(), 64) == demand(SIZES, training(), 64)


def test_what_fits_is_let_through():
    check(SIZES, training(precision="bf16"), 1, available=80e9)


def test_what_cannot_fit_is_refused_with_a_proposal():
    asked = training(precision="bf16", micro_batch_size=2)
    with pytest.raises(DoesNotFit, match=r"bert 768×12 needs .* GB per device") as caught:
        check(SIZES, asked, 1, available=2e9)
    assert str(caught.value).endswith(
        "it fits with resources.workers: 2 and training.zero_stage: 1"
    )
    assert "\n" not in str(caught.value)
    assert reason_of(caught.value) == "out_of_memory"
    better = asked.model_copy(update={"zero_stage": 1})
    check(SIZES, better, 2, available=2e9)


def test_what_fits_nowhere():
    with pytest.raises(DoesNotFit, match="no gang of up to 128 fits it"):
        check(SIZES, training(), 1, available=1e6)
