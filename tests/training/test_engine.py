"""The optimizer's parameter groups."""

from __future__ import annotations

import pytest
import torch

from mptune.spec.schema import Training, build
from mptune.training.engine import parameter_groups, peak_flops, utilisation
from mptune.training.execution import has_bf16
from mptune.training.ranks import Ranks


def groups(width_rule, width=256):
    torch.manual_seed(0)
    module = build("model", {"family": "bert", "width": width, "depth": 1}).build(13, 11, 8)
    optimizer = {"learning_rate": 1e-3, "width_rule": width_rule, "base_width": 64}
    training = Training.model_validate({"budget_tokens": 1, "optimizer": optimizer})
    made = parameter_groups(module, training, width)
    assert sum(p.numel() for g in made for p in g["params"]) == sum(
        p.numel() for p in module.parameters()
    )
    return [g.get("lr", 1e-3) for g in made]


def test_width_rules():
    assert groups("none") == [1e-3, 1e-3]
    assert groups("mup") == pytest.approx([2.5e-4, 1e-3, 1e-3])
    assert groups("inverse_sqrt") == pytest.approx([5e-4, 5e-4, 5e-4])
    assert groups("mup", width=64) == pytest.approx([1e-3, 1e-3, 1e-3])


def test_what_cannot_be_compiled_is_refused():
    with pytest.raises(ValueError, match="compile does not work with zero_stage 3; use 2"):
        Training(budget_tokens=1, compile=True, zero_stage=3)


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 494e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA GB200", 2500e12, 1250e12),
        ("NVIDIA B200", 2250e12, 1125e12),
        ("NVIDIA GH200 480GB", 989e12, 494e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA A10G", 70e12, 35e12),
        ("NVIDIA A10", 125e12, 62.5e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("AMD Instinct MI300X", 1307e12, 653e12),
        ("Tesla V100-SXM2-16GB", 125e12, 15.7e12),
        ("NVIDIA L40", None, None),
    ],
)
def test_the_peak_of_a_gpu_is_that_of_its_name_and_precision(name, half, single):
    assert (peak_flops(name, half=True), peak_flops(name, half=False)) == (half, single)


@pytest.mark.parametrize(
    ("fields", "peak"),
    [
        ({}, 494e12),
        ({"precision": "bf16"}, 989e12),
        ({"precision": "bf16", "zero_stage": 1}, 989e12),
        ({"deepspeed": {"fp16": {"enabled": True}}}, 989e12),
    ],
)
def test_utilisation_is_of_the_peak_of_the_precision(monkeypatch, fields, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    training = Training(budget_tokens=1, **fields)
    ranks = Ranks(0, 2, torch.device("cuda", 0))
    assert utilisation(2 * peak, ranks, training) == pytest.approx(1.0)
    assert utilisation(2 * peak, Ranks(), training) is None


def test_bf16_that_is_emulated_does_not_count(monkeypatch):
    """As of a V100 or a T4."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation
    )
    assert not has_bf16()
