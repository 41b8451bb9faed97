"""Memory demands against DeepSpeed's own estimators and hand counts; refusals."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy

from mptune.errors import DoesNotFit
from mptune.models import _masked
from mptune.models._memory import BUCKET, Sizes, check, demand, refusal
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
    check(SIZES, training(precision="bf16"), 1, gigabytes_each(80)(Resources()))
    check(SIZES, training(), 1, Device(kind="cuda", bytes=None, words="a GPU"))


def test_what_cannot_fit_is_refused_with_what_would_change_it():
    asked, small = training(precision="bf16", micro_batch_size=2), gigabytes_each(2.5)
    with pytest.raises(DoesNotFit) as caught:
        check(SIZES, asked, 1, small(Resources()))
    message = str(caught.value)
    assert "bert 768×12 needs 3.98 GB per worker (2.19 GB states" in message
    assert "a Tesla T4 has 2.5 GB; give more workers, a higher training.zero_stage" in message
    assert "\n" not in message
    assert reason_of(caught.value) == "out_of_memory"


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


def test_what_a_process_takes_of_a_gpu_besides_counts():
    alone, pair = (demand(SIZES, training(batch_size=8), ranks) for ranks in (1, 2))
    assert 0 < alone.outside < pair.outside
    parts = alone.states + alone.buffers + alone.working
    assert alone.total == pytest.approx(1.1 * parts + alone.outside)
    assert demand(replace(SIZES, device="cpu"), training(), 1).outside == 0


FULL_SCALE = {"large": {"width": 1024, "depth": 24}, "1B": {"size": "1B"}, "3B": {"size": "3B"}}


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", FULL_SCALE)
def test_demands_at_full_scale_are_those_of_tensors_that_are_not_there(size, half, monkeypatch):
    """4 rows of 512, 15 % masked: shapes and bytes of fake tensors, states over 8 and 32 ranks."""
    monkeypatch.setattr(_masked, "LONGEST_PLAIN", 0)  # attention as on a GPU
    family = build("model", {"family": "bert", **FULL_SCALE[size]}).sized(30524, 512)
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FakeTensorMode():
        with torch.device("cpu"):
            torch.set_default_dtype(torch.bfloat16 if half else torch.float32)
            try:
                module = family.build(30524, 30522, 512).train()
            finally:
                torch.set_default_dtype(torch.float32)
        weights = {p.untyped_storage()._cdata for p in module.parameters()}
        count = sum(p.numel() for p in module.parameters())
        tokens_BD, flat_K = (
            torch.zeros(4, 512, dtype=torch.long),
            torch.zeros(307, dtype=torch.long),
        )
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits_KV = module(tokens_BD, flat_K)
            cross_entropy(logits_KV.float(), torch.zeros(307, dtype=torch.long))
        activations = sum(
            tensor.untyped_storage().nbytes()
            for place, tensor in kept.items()
            if place not in weights
        )
    assert logits_KV.shape == (307, 30522)
    assert family.parameters(30524, 512) == count
    sizes = Sizes(family=family, vocabulary=30524, length=512, masked_share=307 / 2048)
    for ranks in (8, 32):
        asked = training(batch_size=4 * ranks, precision="bf16" if half else "fp32", zero_stage=2)
        needed = demand(sizes, asked, ranks)
        assert 1.0 < needed.activations / activations < 1.2
        theirs = estimate_zero2_model_states_mem_needs(count, 8, ranks // 8, False)[1]
        assert needed.states == pytest.approx(theirs) if half else needed.states > theirs
