"""Checks and measures mptune on one GPU: correctness, speed, memory; under 8 minutes.

    make gpu-check                                       # all parts; results in gpu-check.json
    python benchmarks/gpu.py [PART...] [--json FILE] [--quick]
    python benchmarks/gpu.py --rehearse                  # tiny, on a CPU: does the script run?

Every part runs in processes of its own and has a time limit, so that a broken CUDA context or a
hang ends only that part. Each figure is one line of JSON.

Shape suffixes: B sequences, H heads, D positions, W channels of a head, K rows of the head.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = {"tests": 65, "training": 150, "usage": 75, "search": 90, "share": 60, "kernels": 40}
TINY = bool(os.environ.get("MPTUNE_REHEARSE"))
QUICK = bool(os.environ.get("MPTUNE_QUICK"))

BF16: dict[str, Any] = {"precision": "bf16"}
ZERO_1 = {
    "precision": "bf16",
    "zero_stage": 1,
    # With it the host waits least for DeepSpeed.
    "deepspeed": {"bf16": {"check_grad_overflow": False}},
}

BASE: dict[str, Any] = {"family": "bert", "width": 768, "depth": 12}
MODERN = BASE | {"family": "modernbert"}
LARGE = {"family": "bert", "width": 1024, "depth": 24}
SMALL = {"width": 32, "depth": 2}
FIFTEEN, UNIFORM = {"kind": "fixed", "rate": 0.15}, {"kind": "uniform"}
ROWS, LENGTH, VOCABULARY = (4, 64, 500) if TINY else (64, 512, 30522)
STEPS, WARM = (1, 2) if TINY else (12, 5)


def tell(part: str, **values: Any) -> None:
    """Print one figure."""
    shown = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}
    print(json.dumps({"part": part, **shown}), flush=True)


def device() -> Any:
    import torch

    return torch.device("cpu" if TINY else "cuda")


def timed_ms(run: Callable[[], object], repeats: int = 8) -> float:
    """Median milliseconds, by events of the device."""
    import torch

    times = []
    for repeat in range(1 if TINY else 3 + repeats):
        began = time.perf_counter()
        if TINY:
            run()
            times.append(1e3 * (time.perf_counter() - began))
            continue
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()  # type: ignore[no-untyped-call]
        run()
        last.record()  # type: ignore[no-untyped-call]
        last.synchronize()  # type: ignore[no-untyped-call]
        if repeat >= 3:
            times.append(first.elapsed_time(last))  # type: ignore[no-untyped-call]
    return sorted(times)[len(times) // 2]


# --- Kernels -------------------------------------------------------------------------------------


def attention() -> None:
    """Forward and backward of attention: without a mask, with masks, and by lengths."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    sizes = [(2, 2, 64, 32)] if TINY else [(64, 12, 512, 64), (64, 24, 512, 32), (16, 12, 2048, 64)]
    for B, H, D, W in sizes:
        q, k, v = (
            torch.randn(B, H, D, W, device=device(), dtype=torch.bfloat16, requires_grad=True)
            for _ in range(3)
        )
        place_D = torch.arange(D, device=device())
        document_BD = (place_D // max(D // 4, 1))[None].expand(B, D)
        masks = {
            "none": None,
            "padding": (place_D != D // 2)[None, None, None].expand(B, 1, D, D),
            "documents": (document_BD[:, None, :, None] == document_BD[:, None, None]).contiguous(),
            "window": ((place_D[:, None] - place_D).abs() <= 64)[None, None].expand(B, 1, D, D),
        }
        # Forward 4 B H D D W, backward two and a half times that.
        flops = 3.5 * 4 * B * H * D * D * W

        def measure(what: str, run: Callable[[], Any], given: Any, flops: float = flops) -> None:
            try:
                ms = timed_ms(lambda: torch.autograd.grad(run().sum(), given))
                tell("attention", H=H, D=D, W=W, mask=what, ms=ms, tflops=flops / ms / 1e9)  # noqa: B023
            except Exception as error:  # this version has no such kernel
                tell("attention", D=D, mask=what, error=str(error).splitlines()[0][:160])  # noqa: B023

        for name, mask in masks.items():
            measure(
                name,
                lambda mask=mask, q=q, k=k, v=v: scaled_dot_product_attention(
                    q, k, v, attn_mask=mask
                ),
                (q, k, v),
            )
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            with sdpa_kernel(backend):
                measure(
                    f"none, {backend.name}",
                    lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v),
                    (q, k, v),
                )
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError as error:
            tell("attention", mask="varlen", error=str(error))
            continue
        flat = [t.detach().transpose(1, 2).reshape(B * D, H, W).requires_grad_() for t in (q, k, v)]
        quarter = max(D // 4, 1)
        for what, step in (("varlen rows", D), ("varlen documents", quarter)):
            ends = torch.arange(0, B * D + 1, step, device=device(), dtype=torch.int32)
            measure(
                what,
                lambda flat=flat, ends=ends, step=step: varlen_attn(*flat, ends, ends, step, step),
                flat,
            )
        ends = torch.arange(0, B * D + 1, D, device=device(), dtype=torch.int32)
        measure(
            "varlen window 128",
            lambda flat=flat, ends=ends, D=D: varlen_attn(
                *flat, ends, ends, D, D, window_size=(64, 64)
            ),
            flat,
        )


def head() -> None:
    """The decoder and its loss, by size of the vocabulary."""
    import torch
    from torch.nn.functional import cross_entropy, linear

    rows, width, sizes = (64, 32, (1000,)) if TINY else (16384, 768, (30522, 30528, 50368))
    for vocabulary in sizes:
        hidden_KW = torch.randn(rows, width, device=device(), dtype=torch.bfloat16)
        hidden_KW.requires_grad_()
        table = torch.randn(vocabulary + 2, width, device=device(), dtype=torch.bfloat16)
        table.requires_grad_()
        target_K = torch.randint(vocabulary, (rows,), device=device())

        def logits(hidden: Any = hidden_KW, table: Any = table, count: int = vocabulary) -> Any:
            return linear(hidden, table[:count])

        def loss(given: Any, target_K: Any = target_K) -> Any:
            return cross_entropy(given.float(), target_K, reduction="none").sum()

        cases = {"products": lambda x: x.sum(), "loss": loss, "compiled loss": torch.compile(loss)}
        for what, reduce in cases.items():
            before = 0 if TINY else torch.cuda.memory_allocated()
            if not TINY:
                torch.cuda.reset_peak_memory_stats()
            ms = timed_ms(
                lambda reduce=reduce, logits=logits, given=(hidden_KW, table): torch.autograd.grad(
                    reduce(logits()), given
                )
            )
            peak = 0 if TINY else torch.cuda.max_memory_allocated() - before
            tflops = 6 * rows * width * vocabulary / ms / 1e9
            tell("head", vocabulary=vocabulary, what=what, ms=ms, tflops=tflops, peak_gb=peak / 1e9)


def precisions() -> None:
    """A matrix product in fp32, TF32 and bf16."""
    import torch

    n = 128 if TINY else 4096
    for name, dtype, allowed in (
        ("fp32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bf16", torch.bfloat16, "highest"),
    ):
        torch.set_float32_matmul_precision(allowed)
        a, b = (torch.randn(n, n, device=device(), dtype=dtype) for _ in range(2))
        tell("precision", precision=name, tflops=2 * n**3 / timed_ms(lambda a=a, b=b: a @ b) / 1e9)


def kernels() -> None:
    attention()
    head()
    precisions()


# --- Training ------------------------------------------------------------------------------------


def inputs(
    model: dict[str, Any],
    policy: dict[str, Any],
    rows: int = ROWS,
    length: int = LENGTH,
    vocabulary: int = VOCABULARY,
    *,
    documents: int | None = None,
    **training: Any,
) -> Any:
    """Random tokens; `documents` is the mean length of those that padded rows begin with."""
    import numpy as np

    from mptune.data._table import Split
    from mptune.spec.schema import Training, build
    from mptune.training.feed import Inputs

    rng, count = np.random.default_rng(0), max(4 * rows, 256)
    tokens = rng.integers(0, vocabulary, (count, length)).astype(np.uint16)
    observed = np.ones(tokens.shape, bool)
    if documents is not None:
        lengths = np.clip(rng.geometric(1 / documents, count), 8, length)
        observed = np.arange(length) < lengths[:, None]
        tokens[~observed] = vocabulary + 1
    section = {"budget_tokens": 1e15, "batch_size": rows, "checkpoint_every_s": 1e9, **training}
    return Inputs(
        number=0,
        seed=0,
        training=Training.model_validate(section),
        rungs=(),
        policy=build("policy", policy),
        family=build("model", {**model, **SMALL} if TINY else model),
        train=Split(tokens, observed, np.zeros(count, np.int32)),
        vocabulary_size=vocabulary,
    )


class Steps:
    """A control that times some steps after the warm-up."""

    def __init__(self, steps: int, warm: int) -> None:
        self.steps, self.warm, self.asked = steps, warm, 0
        self.began = self.ended = 0.0

    def stop_requested(self) -> Any:
        import torch

        self.asked += 1
        if self.asked in (self.warm, self.warm + self.steps) and not TINY:
            torch.cuda.synchronize()
        if self.asked == self.warm:
            self.began = time.perf_counter()
        self.ended = time.perf_counter()
        return "pruned" if self.asked >= self.warm + self.steps else None

    def go_on(self, rung: Any) -> bool:
        return True

    @property
    def step_s(self) -> float:
        return (self.ended - self.began) / self.steps


class NoCheckpoints:
    def load(self, engine: Any) -> Any:
        from mptune.training.schedule import Spent

        return Spent()


def joined() -> Any:
    from mptune.paths import free_port
    from mptune.training import engine as ds

    return ds.join(0, 1, 0, "127.0.0.1", free_port())


def step_s(given: Any, ranks: Any, steps: int = STEPS, look: Any = None) -> float:
    """Seconds of a step; `look` is given the loop before it runs."""
    import torch

    from mptune.training import engine as ds
    from mptune.training.loop import Loop

    torch.manual_seed(0)
    module = given.family.build(given.vocabulary_size + 2, given.vocabulary_size, given.length)
    control = Steps(1 if TINY else steps, WARM)
    with ds.engine(module, given.training, ranks) as engine:
        loop = Loop(given, engine, ranks, NoCheckpoints(), lambda: None)  # type: ignore[arg-type, return-value]
        if look is not None:
            look(loop)
        for _ in loop.run(control):
            pass
    del module, engine, loop
    ds.reclaim()
    return control.step_s


def rate(what: str, given: Any, ranks: Any, steps: int = STEPS) -> None:
    """Report tokens per second and utilisation, both with padding."""
    from mptune.training import engine as ds

    rows = given.training.batch_size
    try:
        took_s = step_s(given, ranks, steps)
    except Exception as error:
        tell("step", what=what, error=f"{type(error).__name__}: {error}"[:300])
        return
    flops = given.step_flops(
        round(given.policy.mean_rate(given.length) * rows * given.length), rows
    )
    tokens_per_s = rows * given.length / took_s
    mfu = ds.utilisation(flops / took_s, ranks, given.training)
    tell("step", what=what, ms=1e3 * took_s, tokens_per_s=tokens_per_s, utilisation=mfu)


def steps(ranks: Any) -> None:
    """BERT-base and ModernBERT as a search trains them, and what each choice costs."""
    long = {"length": 128 if TINY else 2048, "rows": 2 if TINY else 16}
    narrow = {**BASE, "heads": 2 if TINY else 24}
    everywhere = {**MODERN, "window": 2 * long["length"] + 2}
    cases = [
        ("base, 15 %", inputs(BASE, FIFTEEN, **BF16)),
        ("base", inputs(BASE, UNIFORM, **BF16)),
        ("base, compiled", inputs(BASE, UNIFORM, compile=True, **BF16)),
        ("base, documents of 128, padded", inputs(BASE, UNIFORM, documents=128, **BF16)),
        (
            "base, documents of 128, packed",
            inputs(BASE, UNIFORM, documents=128, pack=True, **BF16),
        ),
        ("base, heads of 32", inputs(narrow, UNIFORM, **BF16)),
        ("base, ZeRO 1", inputs(BASE, UNIFORM, **ZERO_1)),
        ("base, fp32", inputs(BASE, UNIFORM)),
        ("modernbert, D 2048, window 128", inputs(MODERN, FIFTEEN, **long, **BF16)),
        ("modernbert, D 2048, global", inputs(everywhere, FIFTEEN, **long, **BF16)),
        ("base, 15 %, compiled", inputs(BASE, FIFTEEN, compile=True, **BF16)),
    ]
    for what, given in cases[:5] if QUICK else cases:
        rate(what, given, ranks)


def clear_ranks() -> None:
    """Keep a process from joining the group of the one that started it."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def peer(ranks: Any) -> None:
    """`transformers.Trainer` on the same model and batch, at 15 %."""
    import multiprocessing

    from training import Case, Effort, Shape, theirs

    width, depth = (32, 2) if TINY else (768, 12)
    shape = Shape(f"bert {width}×{depth}", width, depth, VOCABULARY, ROWS, STEPS, LENGTH)
    case = Case(shape, 0.15, "bf16", Effort(1, WARM, 1.0), "wall", 1)
    with multiprocessing.get_context("spawn").Pool(1, clear_ranks) as other:
        took_s = other.apply(theirs, (case,))
    tell(
        "step",
        what="transformers.Trainer, 15 %",
        ms=1e3 * took_s,
        tokens_per_s=ROWS * LENGTH / took_s,
    )


def overlap(ranks: Any) -> None:
    """Whether the device has nothing left to do when the host has drawn the next batch."""
    import torch

    draws: list[float] = []
    idle: list[bool] = []

    def look(loop: Any) -> None:
        fetch = loop._feed.fetch

        def watched(key: Any) -> None:
            done = None if TINY else torch.cuda.Event()
            if done is not None:
                done.record()
            began = time.perf_counter()
            fetch(key)
            draws.append(time.perf_counter() - began)
            idle.append(done is None or done.query())

        loop._feed.fetch = watched

    rows, width = (8, 32) if TINY else (1024, 256)
    model = {"family": "bert", "width": width, "depth": 4}
    for stage, how in ((1, ZERO_1), (0, BF16)):
        draws.clear()
        idle.clear()
        setting = {**how, "micro_batch_size": rows // 4}
        took_s = step_s(inputs(model, UNIFORM, rows, **setting), ranks, look=look)
        tell(
            "overlap",
            zero_stage=stage,
            batch=rows,
            step_ms=1e3 * took_s,
            draw_ms=1e3 * sorted(draws)[len(draws) // 2],
            idle_share=sum(idle) / len(idle),
        )


def memory(ranks: Any) -> None:
    """Memory that the admission demands of a device, over what was taken."""
    import torch

    from mptune.models._memory import Sizes, demand

    cases = (
        ("base, 15 %", BASE, FIFTEEN, {}),
        ("base", BASE, UNIFORM, {}),
        ("base, ZeRO 1", BASE, UNIFORM, ZERO_1),
        ("base, fp32", BASE, UNIFORM, {"precision": "fp32"}),
        ("large, 30 %", LARGE, {"kind": "fixed", "rate": 0.3}, {}),
        ("modernbert", MODERN, UNIFORM, {}),
    )
    for what, model, policy, more in cases:
        given = inputs(model, policy, **{**BF16, **more})
        sizes = Sizes(
            family=given.family,
            vocabulary=given.vocabulary_size + 2,
            length=given.length,
            masked_share=given.policy.mean_rate(given.length),
        )
        needed = demand(sizes, given.training, 1)
        asked = needed.total - needed.outside
        if not TINY:
            torch.cuda.reset_peak_memory_stats()
        step_s(given, ranks, steps=3)
        taken = 1.0 if TINY else float(torch.cuda.max_memory_reserved())
        free, total = (0, 0) if TINY else torch.cuda.mem_get_info()
        used = 1.0 if TINY else float(torch.cuda.max_memory_allocated())
        tell(
            "memory",
            what=what,
            predicted_gb=asked / 1e9,
            reserved_gb=taken / 1e9,
            allocated_gb=used / 1e9,
            ratio=asked / taken,
            # What the process takes besides, and `_memory.CONTEXT` says.
            outside_gb=0.0 if TINY else (total - free - torch.cuda.memory_reserved()) / 1e9,
            outside_predicted_gb=needed.outside / 1e9,
        )


def small(ranks: Any) -> None:
    """Models of a quick search, whose steps wait for launches."""
    for width, depth, compiled in ((64, 2, False), (256, 4, False), (512, 8, False), (64, 2, True)):
        model = {"family": "modernbert", "width": width, "depth": depth}
        given = inputs(model, UNIFORM, 64, 128, 256, compile=compiled, **BF16)
        how = ", compiled" if compiled else ""
        rate(f"modernbert {width}×{depth}, D 128{how}", given, ranks, steps=30)
        if TINY:
            return


def scoring(ranks: Any) -> None:
    """Forwards per second of scoring, over those of training."""
    import numpy as np
    import torch

    from mptune.data._table import Meta, Split, TokenTable  # noqa: F401
    from mptune.lml.plan import LMLPlan
    from mptune.spec.schema import Score
    from mptune.training import engine as ds
    from mptune.training.scoring import HeldOut, Scorer

    given = inputs(BASE, UNIFORM, **BF16)
    trained = ROWS / step_s(given, ranks)
    score = Score.model_validate(
        {"sequences": 8 if TINY else 1024, "forwards": 2, "batch_size": ROWS}
    )
    tokens = np.asarray(given.train.tokens)
    tokens = np.resize(tokens, (max(score.sequences or 0, 8), LENGTH))
    observed = np.ones(tokens.shape, bool)

    class Table:
        mask_id, pad_id, vocabulary_size = VOCABULARY, VOCABULARY + 1, VOCABULARY

    plan = LMLPlan.make(observed, forwards=2, seed=0)
    held = HeldOut(
        Table(),  # type: ignore[arg-type]
        score,
        np.arange(len(tokens)),
        tokens,
        plan,
    )
    torch.manual_seed(0)
    module = given.family.build(VOCABULARY + 2, VOCABULARY, LENGTH)
    with ds.engine(module, given.training, ranks) as engine:
        scorer = Scorer(engine, held, ranks)
        scorer._sums(plan)
        began = time.perf_counter()
        scorer._sums(plan)
        scored = plan.counts_Nk.size / (time.perf_counter() - began)
    ds.reclaim()
    tell("scoring", forwards_per_s=scored, training_forwards_per_s=trained, ratio=scored / trained)


def in_one_process(*parts: Callable[[Any], None]) -> None:
    """Run measurements that need the process group, which is joined once."""
    ranks = joined()
    for part in parts:
        try:
            part(ranks)
        except Exception as error:
            tell(part.__name__, error=f"{type(error).__name__}: {error}"[:400])


def training() -> None:
    in_one_process(peer, steps)


def usage() -> None:
    in_one_process(memory, scoring, overlap, small)


# --- Whole searches ------------------------------------------------------------------------------


def spec(folder: Path) -> Path:
    """A small but real search: byte pairs of Python's library, checkpoints, a rung."""
    size = "width: 64, depth: 1" if TINY else "width: 512, depth: 6"
    gpus, cores = (0, 1) if TINY else (1, 4)
    made = folder / "gpu.yaml"
    made.write_text(
        f"""
name: gpu
data:
  kind: text
  source: python-stdlib
  tokenizer: bpe
  vocabulary: {300 if TINY else 8192}
  length: {64 if TINY else 256}
  heldout: 0.1
  max_heldout_sequences: 1000
model:
  choice: [{{family: bert, {size}}}, {{family: modernbert, {size}}}]
policy:
  choice:
    - {{kind: fixed, rate: {{choice: [0.15, 0.40]}}}}
    - {{kind: uniform}}
    - {{kind: linear, start: 0.6, end: 0.15}}
training:
  budget_tokens: {2e4 if TINY else 3e6}
  batch_size: {16 if TINY else 128}
  precision: auto
  optimizer: {{learning_rate: 1e-3}}
  checkpoint_every_s: 3
score: {{sequences: 256, forwards: 2, rates: [0.15], rung_sequences: 64, batch_size: 64}}
search:
  trials: 4
  sampler: {{kind: tpe, startup_trials: 4}}
  pruner: {{kind: median, rungs: [0.5]}}
resources: {{workers: 1, gpus_per_worker: {gpus}, cpus_per_worker: {cores}}}
""",
        encoding="utf-8",
    )
    return made


def mptune(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "mptune", *map(str, arguments)]


def trials_of(run: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(run.glob("**/result.json")):
        yield json.loads(file.read_text(encoding="utf-8"))


def search() -> None:
    """A search by Ray, DeepSpeed and NCCL that is stopped in mid-training and resumed."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = mptune("search", spec(Path(folder)), "--run-dir", run)
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", file=sys.stderr)
            if "%, loss" in line:  # a trial trains
                time.sleep(2)
                process.send_signal(signal.SIGTERM)
                break
        print(process.stdout.read(), file=sys.stderr)
        tell("search", stopped_rc=process.wait(), seconds=time.monotonic() - began)
        began = time.monotonic()
        again = subprocess.run(command, capture_output=True, text=True)
        print(again.stdout, again.stderr, file=sys.stderr)
        found = list(trials_of(run))
        tell(
            "search",
            resumed_rc=again.returncode,
            seconds=time.monotonic() - began,
            trials=len(found),
            tokens_per_s=[round(t["cost"]["tokens_per_s"]) for t in found],
            training_s=[round(t["cost"]["training_s"], 1) for t in found],
            scoring_s=[round(t["cost"]["scoring_s"], 1) for t in found],
            setting_up_s=[round(t["cost"]["setting_up_s"], 2) for t in found],
            nats_per_token=[round(t["lml"]["nats_per_token"], 3) for t in found],
        )


def share() -> None:
    """Two trials that share a GPU; their tokens per second add up, beside those of `search`."""
    with tempfile.TemporaryDirectory() as folder:
        began, run = time.monotonic(), Path(folder, "run")
        done = subprocess.run(
            mptune(
                "search", spec(Path(folder)), "--run-dir", run,
                "--set", f"resources.gpus_per_worker={0 if TINY else 0.5}",
                "--set", f"training.budget_tokens={1e4 if TINY else 1e7}",
                "--set", "search.trials=2", "--set", "search.pruner.kind=none",
            ),
            capture_output=True, text=True,
        )  # fmt: skip
        print(done.stdout, done.stderr, file=sys.stderr)
        costs = [t["cost"] for t in trials_of(run)]
        tell(
            "share",
            rc=done.returncode,
            seconds=time.monotonic() - began,
            tokens_per_s=[round(c["tokens_per_s"]) for c in costs],
            training_s=[round(c["training_s"], 1) for c in costs],
        )


PARTS: dict[str, Callable[[], None]] = {
    f.__name__: f for f in (training, usage, search, share, kernels)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(LIMIT_S)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument("--quick", action="store_true", help="under 2 minutes")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        PARTS[given.parts[0]]()
        return
    environment = dict(
        os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )
    environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as in a search
    if given.rehearse:
        environment["MPTUNE_REHEARSE"] = "1"
    if given.quick:
        environment["MPTUNE_QUICK"] = "1"
    found: list[dict[str, Any]] = []
    parts = given.parts or (["tests", "training"] if given.quick else list(LIMIT_S))
    for name in parts:
        command = [sys.executable, __file__, name, "--child"]
        if name == "tests":
            command = [sys.executable, "-m", "pytest", "-q", "-ra", "tests/training/test_gpu.py"]
        limit, began = LIMIT_S[name] * (5 if given.rehearse else 1), time.monotonic()
        ended = "ended"
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            told, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            told, _ = process.communicate()
            ended = f"stopped after its {limit} s"
        lines = told.splitlines()
        found += [json.loads(line) for line in lines if line.startswith("{")]
        found.append(
            {
                "part": name,
                "code": process.returncode,
                "how": ended,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        print(*lines, json.dumps(found[-1]), sep="\n", flush=True)
        if given.json:
            given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
