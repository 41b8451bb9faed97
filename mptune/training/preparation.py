"""What a worker prepares once per study: the token table, the scoring plan, and the precision."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import torch
from torch.nn.functional import cross_entropy

from mptune.errors import InputError
from mptune.lml import LMLPlan
from mptune.spec.schema import build
from mptune.training.scoring import HeldOut
from mptune.trial import Prepared, PrepareRequest

Precision = Literal["fp32", "bf16"]

PROBE = {"family": "bert", "width": 128, "depth": 2}
ROWS, MASKED_SHARE, STEPS = 8, 0.3, 8

WORTHWHILE = 0.95
"""bf16 has fewer digits, so it must save more time than the measurement is noisy."""


def prepare(request: PrepareRequest) -> Prepared:
    """Make the token table, and freeze the scoring plan or check the existing one.

    Raises:
        InputError: the data is missing or broken, or the plan belongs to other data.
    """
    path = Path(request.plan)
    try:
        modality = build("data", request.data)
        table = modality.prepare(Path(request.cache))
        plan = LMLPlan.load(path) if path.exists() else None
        heldout = HeldOut.select(table, request.score, plan)
        warnings = modality.warnings(table)
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
    if plan is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        heldout.plan.save(path)
    precision: Precision = "fp32"
    if request.measure_precision:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = faster_precision(table.total_vocabulary, table.length, device)
    return Prepared(
        table=str(table.path),
        table_hash=table.hash,
        plan=str(path),
        plan_hash=heldout.hash,
        vocabulary_size=table.vocabulary_size,
        length=table.length,
        train_sequences=len(heldout.train.tokens),
        heldout_sequences=len(heldout.plan.kept),
        heldout_tokens=heldout.positions,
        bytes_per_token=table.bytes_per_token,
        description=table.description,
        warnings=warnings,
        precision=precision,
    )


def faster_precision(vocabulary: int, length: int, device: torch.device) -> Precision:
    """The precision that trains faster on this machine: bf16 on a GPU that has it; else measured.

    It depends on the vocabulary most of all: large products gain from bf16, small ones lose to the
    conversions of the optimizer's master weights. Without instructions for bf16 a machine converts
    back and forth, so nothing is measured.

    Args:
        vocabulary: ids, [MASK] and [PAD] included.
        length: positions per sequence.
        device: what trials train on.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    has = torch.cpu.get_capabilities()
    if not (has.get("avx512_bf16") or has.get("amx_bf16")):
        return "fp32"
    plain, half = (Probe(vocabulary, length, t) for t in (torch.float32, torch.bfloat16))
    pairs = [(plain.step_s(), half.step_s()) for _ in range(STEPS)]
    plain_s, half_s = (min(times) for times in zip(*pairs, strict=True))
    return "bf16" if half_s < WORTHWHILE * plain_s else "fp32"


class Probe:
    """A small model that trains on this CPU.

    As in DeepSpeed, the optimizer works on fp32 copies of half-precision weights.
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
        """Train one step; returns the seconds that it took."""
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
