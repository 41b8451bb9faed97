"""Which precision trains faster on this machine: measured, once per search."""

from __future__ import annotations

import time
from typing import Literal

import torch
from torch.nn.functional import cross_entropy

from mptune.spec.schema import build

Precision = Literal["fp32", "bf16"]

PROBE = {"family": "bert", "width": 128, "depth": 2}
ROWS, MASKED_SHARE, STEPS = 8, 0.3, 8

WORTHWHILE = 0.95
"""bf16 has fewer digits: it is to save more than noise in the measurement would."""


def has_bf16(device: torch.device) -> bool:
    """Whether there are instructions for it; without, bf16 is converted back and forth."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def faster(vocabulary: int, length: int, device: torch.device) -> Precision:
    """bf16 on a GPU that has it, and on a CPU that has it where it saves time.

    Which it is depends on the vocabulary most of all: large products gain, small ones pay for the
    conversions of the optimizer's master weights.

    Args:
        vocabulary: ids, [MASK] and [PAD] included.
        length: positions per sequence.
        device: what trials train on.
    """
    if not has_bf16(device):
        return "fp32"
    if device.type == "cuda":
        return "bf16"
    plain, half = (Probe(vocabulary, length, t) for t in (torch.float32, torch.bfloat16))
    pairs = [(plain.step_s(), half.step_s()) for _ in range(STEPS)]
    fastest = [min(times) for times in zip(*pairs, strict=True)]
    return "bf16" if fastest[1] < WORTHWHILE * fastest[0] else "fp32"


class Probe:
    """A small model that trains on this CPU.

    As DeepSpeed has it, the optimizer works on fp32 copies of half-precision weights.
    """

    def __init__(self, vocabulary: int, length: int, dtype: torch.dtype) -> None:
        with torch.random.fork_rng(devices=[]):
            module = build("model", PROBE).build(vocabulary, vocabulary - 2, length)
        self.module = module.to(dtype)
        masters = [p.detach().float().clone() for p in self.module.parameters()]
        self.pairs = list(zip(self.module.parameters(), masters, strict=True))
        self.optimizer = torch.optim.AdamW(masters, fused=True)
        self.tokens_BD = torch.arange(ROWS * length).reshape(ROWS, length) % (vocabulary - 2)
        self.masked_K = torch.arange(max(1, round(MASKED_SHARE * ROWS * length)))

    def step_s(self) -> float:
        """Take a step; how long it took."""
        began = time.perf_counter()
        target_K = self.tokens_BD.flatten()[self.masked_K]
        self.module.zero_grad()
        logits_KV = self.module(self.tokens_BD, self.masked_K)
        torch.autograd.backward(cross_entropy(logits_KV.float(), target_K))
        for parameter, master in self.pairs:
            assert parameter.grad is not None
            master.grad = parameter.grad.float()
        self.optimizer.step()
        with torch.no_grad():
            for parameter, master in self.pairs:
                parameter.copy_(master)
        return time.perf_counter() - began
