"""Which precision is chosen, and that the probe which chooses trains."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch

from mptune.training import execution
from mptune.training.ranks import CPU


def has(monkeypatch, **instructions):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)


def test_without_instructions_nothing_is_measured(monkeypatch):
    has(monkeypatch, avx512_bf16=False)
    monkeypatch.setattr(execution, "Probe", None)
    assert execution.faster_precision(258, 16, CPU) == "fp32"


@pytest.mark.parametrize(
    ("plain_s", "half_s", "chosen"),
    [(1.0, 0.9, "bf16"), (1.0, 0.97, "fp32"), (1.0, 1.3, "fp32")],
)
def test_bf16_is_to_save_time(monkeypatch, plain_s, half_s, chosen):
    """By the fastest step of each: a disturbance makes steps slower only."""
    has(monkeypatch, avx512_bf16=True)
    times = {torch.float32: cycle([3.0, plain_s]), torch.bfloat16: cycle([half_s, 9.0])}

    class Probe:
        def __init__(self, vocabulary, length, dtype):
            self.step_s = times[dtype].__next__

    monkeypatch.setattr(execution, "Probe", Probe)
    assert execution.faster_precision(258, 16, CPU) == chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_trains_and_leaves_the_generator_alone(dtype):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    probe = execution.Probe(20, 8, dtype)
    before = [p.detach().clone() for p in probe.module.parameters()]
    assert probe.step_s() > 0
    assert any(not torch.equal(old, p) for old, (p, _) in zip(before, probe.pairs, strict=True))
    assert {p.dtype for p, _ in probe.pairs} == {dtype}
    assert torch.rand(1) == expected
