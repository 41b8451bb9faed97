"""Memory demands against DeepSpeed's own estimators and hand counts; refusals and proposals."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from mptune.errors import DoesNotFit
from mptune.models._memory import BUCKET, FittingGang, Sizes, check, demand, fitting, refusal
from mptune.paths import node_bytes
from mptune.spec.schema import Resources, Training, build
from mptune.training.ranks import reason_of
from mptune.trial import Device
from tests import fakes

BERT = build("model", {"family": "bert", "width": 768, "depth": 12})
SIZES = Sizes(family=BERT, vocabulary=30524, length=512)
ON_CPU = replace(SIZES, device="cpu")
P = BERT.parameters(30524, 512)
OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
CHECKPOINTS = {"activation_checkpointing": {}}


def training(**fields):
    return Training.model_validate({"budget_tokens": 1, "batch_size": 64, **fields})


def gigabytes_each(size):
    """Every worker of any gang has `size` GB."""
    return lambda resources: Device(kind="cuda", bytes=1e9 * size, words="a Tesla T4")


def states(stage, ranks=8, precision="bf16", section=None):
    asked = training(precision=precision, zero_stage=stage, deepspeed=section or {})
    return demand(SIZES, asked, ranks).states


@pytest.mark.parametrize("ranks", [1, 8, 64])
def test_states_of_stage_2_are_deepspeeds_own_estimate(ranks):
    theirs = estimate_zero2_model_states_mem_needs(P, ranks, 1, cpu_offload=False)[1]
    assert states(2, ranks) == pytest.approx(theirs)
    assert states(1, ranks) >= 0.9999 * theirs  # it shares no gradients, and they have one formula
    theirs = estimate_zero2_model_states_mem_needs(P, ranks, 1, cpu_offload=True)[1]
    assert states(2, ranks, section=OFFLOAD) == pytest.approx(theirs)


@pytest.mark.parametrize("ranks", [1, 8, 64])
@pytest.mark.parametrize("offload", [False, True])
def test_stage_3_is_at_least_deepspeeds_own_estimate(ranks, offload):
    largest = 30524 * 768
    theirs = estimate_zero3_model_states_mem_needs(P, largest, ranks, 1, offload, False, True)[1]
    section = OFFLOAD if offload else None
    asked = training(precision="bf16", zero_stage=3, deepspeed=section or {})
    ours = demand(SIZES, asked, ranks)
    assert states(3, ranks, section=section) == pytest.approx(theirs - 4 * largest)
    assert theirs <= ours.states + ours.buffers


def test_single_precision_has_the_same_parts_at_four_bytes():
    assert states(2, 1, "fp32") == (4 + 4 + 4 + 4 + 8) * P
    assert states(0, 1, "fp32") == states(0, 64, "fp32") == 20 * P


def test_the_bucket_of_gradients_is_counted():
    """DeepSpeed allocates it whole, however small the model; of a CPU it takes what it uses."""
    section = {"zero_optimization": {"reduce_bucket_size": 1000, "overlap_comm": True}}
    assert demand(SIZES, training(zero_stage=2), 8).buffers == 4 * BUCKET
    assert demand(SIZES, training(zero_stage=2, deepspeed=section), 8).buffers == 4 * 2000
    assert demand(SIZES, training(), 8).buffers == 0
    assert demand(ON_CPU, training(zero_stage=2), 8).buffers < 8 * P


def test_offloading_to_the_cpu_saves_nothing_on_a_cpu():
    plain, offloaded = training(zero_stage=2), training(zero_stage=2, deepspeed=OFFLOAD)
    assert demand(SIZES, offloaded, 2).states == 4 * P
    assert demand(ON_CPU, offloaded, 2) == demand(ON_CPU, plain, 2)


def test_activation_checkpoints_and_micro_batches_save_activations():
    plain = demand(SIZES, training(), 2).activations
    assert demand(SIZES, training(deepspeed=CHECKPOINTS), 2).activations < 0.7 * plain
    assert demand(SIZES, training(micro_batch_size=8), 2).activations == plain / 4


def test_plain_attention_keeps_its_scores():
    def apart(device, precision):
        one = replace(SIZES, device=device)
        return demand(one, training(precision=precision), 64).activations

    heads = BERT.attention_heads
    short, long = replace(ON_CPU, length=512), replace(ON_CPU, length=513)
    half = training(precision="bf16")
    saved = demand(short, half, 64).activations - 512 / 513 * demand(long, half, 64).activations
    assert saved == pytest.approx(1.5 * 12 * 512 * 2 * heads * 512 * 2)


def test_scoring_counts_where_it_needs_more_than_training():
    small = training(micro_batch_size=1)
    plain, scored = (demand(replace(SIZES, scored=n), small, 1) for n in (0, 256))
    assert scored.activations == plain.activations
    assert scored.total - plain.total == pytest.approx(1.1 * (scored.scoring - plain.activations))
    assert "scoring" in scored.words()
    assert "activations" in plain.words()


def test_keys_of_deepspeed_that_say_auto_or_nothing_are_taken_at_their_defaults():
    own = {"reduce_bucket_size": "auto", "stage3_max_live_parameters": "auto"}
    zero = {"zero_optimization": {"stage": 3, "offload_optimizer": None, **own}}
    plain = demand(SIZES, training(deepspeed={"zero_optimization": {"stage": 3}}), 2)
    assert demand(SIZES, training(deepspeed=zero), 2) == plain


def test_what_fits_is_let_through():
    check(SIZES, training(precision="bf16"), Resources(), gigabytes_each(80))
    unknown = Device(kind="cuda", bytes=None, words="a GPU")
    check(SIZES, training(), Resources(), lambda resources: unknown)


def test_what_cannot_fit_is_refused_with_a_proposal():
    asked, small = training(precision="bf16", micro_batch_size=2), gigabytes_each(2.5)
    with pytest.raises(DoesNotFit) as caught:
        check(SIZES, asked, Resources(), small)
    message = str(caught.value)
    assert "bert 768×12 needs 3.24 GB per worker (2.19 GB states" in message
    assert "a Tesla T4 has 2.5 GB" in message
    proposal = next(fitting(SIZES, asked, Resources(), small))
    assert message.endswith(f"it fits with {proposal.words()}")
    assert "\n" not in message
    assert reason_of(caught.value) == "out_of_memory"


@pytest.mark.parametrize("size", [3, 5, 9, 40])
@pytest.mark.parametrize("fields", [{"precision": "bf16"}, {}, {"zero_stage": 2}])
def test_the_proposal_fits_and_nothing_smaller_does(size, fields):
    asked = training(**fields)
    found = next(fitting(SIZES, asked, Resources(), gigabytes_each(size)))

    def need(stage, workers, micro):
        at = training(**{**fields, "zero_stage": stage, "micro_batch_size": micro})
        return demand(SIZES, at, workers).total

    micro = found.micro_batch_size or 64 // found.workers
    assert need(found.zero_stage, found.workers, micro) <= 1e9 * size
    lower = [(s, found.workers) for s in range(found.zero_stage)]
    fewer = [(s, n) for s in range(4) for n in (1, 2, 4, 8, 16, 32) if n < found.workers]
    assert all(need(stage, workers, 1) > 1e9 * size for stage, workers in lower + fewer)


def test_a_smaller_micro_batch_comes_before_a_larger_gang():
    found = next(fitting(SIZES, training(precision="bf16"), Resources(), gigabytes_each(10)))
    assert found == FittingGang(1, 0, found.micro_batch_size)
    assert found.words().endswith(f"training.micro_batch_size: {found.micro_batch_size}")


def test_the_stage_of_the_users_own_section_is_replaced_and_its_other_keys_stay():
    section = {"zero_optimization": {"stage": 1, "reduce_bucket_size": 1000}}
    asked = training(precision="bf16", deepspeed=section, micro_batch_size=1)
    found = next(fitting(SIZES, asked, Resources(), gigabytes_each(1)))
    assert (found.workers, found.zero_stage) == (8, 2)


def test_stage_3_is_not_proposed_to_who_compiles():
    tight = gigabytes_each(1)
    stages = {g.zero_stage for g in fitting(SIZES, training(compile=True), Resources(), tight)}
    assert 3 not in stages


def test_what_fits_nowhere():
    with pytest.raises(DoesNotFit, match="no gang of up to 128 fits it; use a smaller model"):
        check(SIZES, training(), Resources(), gigabytes_each(0.001))


def trial(tmp_path, **changes):
    model = {"family": "bert", "width": 512, "depth": 8}
    policy = {"kind": "fixed", "rate": 0.15}
    return fakes.trial(0, tmp_path, model=model, policy=policy, **changes)


def test_a_trial_is_refused_from_its_spec_alone(tmp_path):
    assert refusal(trial(tmp_path), gigabytes_each(8)) is None
    assert "bert 512×8 needs" in refusal(trial(tmp_path), gigabytes_each(0.2))


def test_a_batch_that_cannot_be_dealt_out_is_left_to_the_worker(tmp_path):
    odd = trial(tmp_path, resources=Resources(workers=7))
    assert refusal(odd, gigabytes_each(0.2)) is None


def test_a_container_has_what_its_limit_says(tmp_path, monkeypatch):
    limit, none = tmp_path / "memory.max", tmp_path / "unlimited"
    limit.write_text("1000000\n")
    none.write_text("max\n")
    monkeypatch.setattr("mptune.paths.CGROUP_LIMITS", (str(none), str(limit), "/nowhere"))
    assert node_bytes() == 1e6


STATES = {"width": 512, "depth": 4, "vocabulary": 2000, "length": 32, "batch": 2}
BLOCKS = {"width": 128, "depth": 6, "vocabulary": 200, "length": 128, "batch": 64}
LOGITS = {"width": 64, "depth": 1, "vocabulary": 8000, "length": 128, "batch": 32, "rate": 0.5}


@pytest.mark.nightly
@pytest.mark.parametrize(
    "fields",
    [
        {**STATES, "precision": "fp32", "stage": 2},
        {**BLOCKS, "precision": "bf16"},
        {**LOGITS, "precision": "fp32"},
    ],
    ids=["states", "blocks", "logits"],
)
def test_a_trial_takes_what_it_was_said_to_need(fields, monkeypatch):
    """More would be let through and then fail; less than half would refuse what fits."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    benchmark = import_module("memory")
    needed, taken = benchmark.measured(benchmark.Case(**fields))
    assert taken < needed.total < 2.2 * taken
