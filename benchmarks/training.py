"""Training speed of mptune, compared with `transformers.Trainer`.

    python benchmarks/training.py [--quick] [--threads N] [--clock cpu] [--json FILE]
    python benchmarks/training.py --quick       # under 2 minutes on 2 idle cores; without, about 6

The other side is `transformers.Trainer` with `DataCollatorForLanguageModeling`: the same model,
batch, data, learning rate and precision, on the same threads of the same machine, in turns. The
output has the ratio of tokens per second, the share of a step that masking takes, and the speed-up
of two data-parallel workers over one at the same global batch.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import multiprocessing
import os
import platform
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mptune.data._table import Split
from mptune.spec.schema import Training, build
from mptune.training import engine as ds
from mptune.training.feed import BatchKey, Feed, Inputs
from mptune.training.loop import Loop
from mptune.training.ranks import Ranks
from mptune.training.schedule import Spent

SEQUENCES = 4096


@dataclass(frozen=True)
class Shape:
    name: str
    width: int
    depth: int
    vocabulary: int
    batch: int
    steps: int
    """Steps of a turn that are timed in a full run."""
    length: int = 128
    continued: bool = False
    """Both sides go on from a checkpoint on disk."""


SHAPES = (
    Shape("bert 128×2, V 8192", 128, 2, 8192, 32, steps=8),
    Shape("the same, continued", 128, 2, 8192, 32, steps=8, continued=True),
    Shape("bert 64×2, bytes", 64, 2, 256, 32, steps=32),
)
BARS = {
    ("bert 128×2, V 8192", 0.15): (2.5, 4.0),
    ("bert 128×2, V 8192", 0.5): (1.6, 2.5),
    ("the same, continued", 0.15): (2.5, 4.0),
    ("the same, continued", 0.5): (1.6, 2.5),
    ("bert 64×2, bytes", 0.15): (1.3, 2.0),
    ("bert 64×2, bytes", 0.5): (1.2, 1.8),
}
"""(bar, aim) of the ratio in tokens per second, in fp32 and in bf16."""

SPEED_UP, MASKING = (1.6, 1.9), (0.03, 0.01)
"""(bar, aim) of two workers over one, and of masking's share of a step."""


@dataclass(frozen=True)
class Effort:
    """How many steps and turns are measured."""

    turns: int
    warm: int
    """Steps of a turn before its clock starts."""
    share: float
    """Of each shape's `steps`."""

    def steps(self, shape: Shape) -> int:
        return round(self.share * shape.steps)

    def words(self) -> str:
        steps = " or ".join(f"{self.steps(s)} ({s.name})" for s in SHAPES)
        return f"{self.turns} turns of {steps} steps, after {self.warm} to warm up"


FULL, QUICK = Effort(turns=5, warm=3, share=1.0), Effort(turns=2, warm=2, share=0.375)


def tokens_of(shape: Shape) -> Any:
    return np.random.default_rng(0).integers(0, shape.vocabulary, (SEQUENCES, shape.length))


def now(clock: str) -> float:
    """Seconds of wall-clock time, or of this process's CPU time."""
    return time.perf_counter() if clock == "wall" else time.process_time()


class Watch:
    """A control that runs a number of steps, and times those after the warm-up."""

    def __init__(self, steps: int, warm: int, clock: str) -> None:
        self.steps, self.warm, self.clock, self.asked = steps, warm, clock, 0
        self.began = self.ended = 0.0

    def stop_requested(self) -> Any:
        self.asked += 1
        if self.asked == self.warm:
            self.began = now(self.clock)
        self.ended = now(self.clock)
        return "pruned" if self.asked >= self.warm + self.steps else None

    def go_on(self, rung: Any) -> bool:
        return True

    @property
    def step_s(self) -> float:
        return (self.ended - self.began) / self.steps


class NoCheckpoints:
    def load(self, engine: Any) -> Spent:
        return Spent()


@dataclass(frozen=True)
class Case:
    """One case that is timed, and its number of steps."""

    shape: Shape
    rate: float
    precision: str
    effort: Effort
    clock: str
    threads: int


def inputs_of(shape: Shape, rate: float, precision: str, **more: Any) -> Inputs:
    tokens_ND = tokens_of(shape).astype(np.uint16)
    observed_ND = np.ones(tokens_ND.shape, bool)
    training = Training.model_validate(
        {
            "budget_tokens": 1e12,
            "batch_size": shape.batch,
            "precision": precision,
            "checkpoint_every_s": 1e9,
            **more,
        }
    )
    return Inputs(
        number=0,
        seed=0,
        training=training,
        rungs=(),
        policy=build("policy", {"kind": "fixed", "rate": rate}),
        family=build(
            "model",
            {"from": checkpoint_of(shape)}
            if shape.continued
            else {"family": "bert", "width": shape.width, "depth": shape.depth},
        ),
        train=Split(tokens_ND, observed_ND, np.zeros(SEQUENCES, np.int32)),
        # The tokenizer of a checkpoint has [MASK] and [PAD], too.
        vocabulary_size=shape.vocabulary + 2 * shape.continued,
    )


def ours(case: Case, ranks: Any, **more: Any) -> float:
    """Seconds per optimizer step of mptune; `more` are further keys of the training section."""
    shape = case.shape
    inputs = inputs_of(shape, case.rate, case.precision, **more)
    torch.manual_seed(0)
    symbols = inputs.vocabulary_size
    module = inputs.family.build(symbols + 2, symbols, shape.length)
    watch = Watch(case.effort.steps(shape), case.effort.warm, case.clock)
    with ds.engine(module, inputs.training, ranks) as engine:
        loop = Loop(inputs, engine, ranks, NoCheckpoints(), lambda: (0.0, 0.0))  # type: ignore[arg-type]
        for _ in loop.run(watch):
            pass
    return watch.step_s


def tokenizer_of(shape: Shape) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"t{i}": i for i in range(shape.vocabulary)}
    vocabulary |= {"[MASK]": shape.vocabulary, "[PAD]": shape.vocabulary + 1}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, mask_token="[MASK]", pad_token="[PAD]", unk_token="[PAD]"
    )


def bert_of(shape: Shape) -> Any:
    """The model of transformers, randomly initialised."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=shape.vocabulary + 2,
            hidden_size=shape.width,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.width // 32,
            intermediate_size=4 * shape.width,
            max_position_embeddings=shape.length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
    )


@cache
def checkpoint_of(shape: Shape) -> str:
    """A folder with the model and its tokenizer."""
    folder = tempfile.mkdtemp()
    bert_of(shape).save_pretrained(folder)
    tokenizer_of(shape).save_pretrained(folder)
    return folder


def theirs(case: Case) -> float:
    """Seconds per optimizer step of a Hugging Face training, in a process of its own.

    In our process it would find a process group, and wrap the model for data-parallel training.
    """
    from transformers import (
        AutoModelForMaskedLM,
        DataCollatorForLanguageModeling,
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            times.append(now(case.clock))

    torch.set_num_threads(case.threads)
    shape, precision, warm = case.shape, case.precision, case.effort.warm
    steps = case.effort.steps(shape)
    inputs = inputs_of(shape, case.rate, precision)
    if shape.continued:
        model = AutoModelForMaskedLM.from_pretrained(checkpoint_of(shape))
    else:
        model = bert_of(shape)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=warm + steps,
            per_device_train_batch_size=shape.batch,
            learning_rate=inputs.training.optimizer.learning_rate,
            weight_decay=inputs.training.optimizer.weight_decay,
            bf16=precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
        )
        tokenizer = tokenizer_of(shape)
        trainer = Trainer(
            model,
            arguments,
            train_dataset=[{"input_ids": row} for row in tokens_of(shape).tolist()],
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=case.rate),
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return (times[-1] - times[warm - 1]) / steps


def masking_share(case: Case, step_s: float) -> float:
    """The time to draw masks and build a batch, as a share of the step."""
    inputs = inputs_of(case.shape, case.rate, "fp32")
    feed, spent = Feed(inputs, Ranks()), []
    for step in range(200):
        began = now(case.clock)
        # A fixed rate has no code length; training stops computing it at its first step.
        feed.take(BatchKey(step, 0.5, inputs.policy, code=False))
        spent.append(now(case.clock) - began)
    return statistics.median(spent) / step_s


def ratios(case: Case, ranks: Any, other: Any) -> dict[str, Any]:
    """The ratio of our tokens per second to theirs, measured in turns."""
    shape, pairs = case.shape, []
    for _ in range(case.effort.turns):
        their_s = other.apply(theirs, (case,))
        pairs.append((ours(case, ranks), their_s))
        gc.collect()
    each = [t / o for o, t in pairs]
    our_s = statistics.median(o for o, _ in pairs)
    return {
        "model": shape.name,
        "rate": case.rate,
        "precision": case.precision,
        "ratio": statistics.median(each),
        "lowest": min(each),
        "highest": max(each),
        **dict(zip(("bar", "aim"), BARS[shape.name, case.rate], strict=True)),
        "our_tokens_per_s": shape.batch * shape.length / our_s,
        "their_tokens_per_s": shape.batch * shape.length / statistics.median(t for _, t in pairs),
        "masking_share": masking_share(case, our_s),
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Gang:
    """Workers with one thread each, which train on request."""

    def __init__(self, world: int) -> None:
        context, port = multiprocessing.get_context("spawn"), free_port()
        self.orders = [context.Queue() for _ in range(world)]
        self.found = context.Queue()
        self.processes = [
            context.Process(target=_rank, args=(r, world, port, self.orders[r], self.found))
            for r in range(world)
        ]
        for process in self.processes:
            process.start()

    def step_s(self, effort: Effort) -> float:
        """Seconds per step of the same global batch, whatever the number of workers."""
        for orders in self.orders:
            orders.put(Case(SHAPES[0], 0.15, "fp32", effort, "wall", 1))
        return float(self.found.get(timeout=300))

    def close(self) -> None:
        for orders in self.orders:
            orders.put(None)
        for process in self.processes:
            process.join(30)


def _rank(rank: int, world: int, port: int, orders: Any, found: Any) -> None:
    torch.set_num_threads(1)
    ranks = ds.join(rank, world, rank, "127.0.0.1", port)
    while (case := orders.get()) is not None:
        step_s = ours(case, ranks)
        if rank == 0:
            found.put(step_s)
    ds.leave()


def speed_up(effort: Effort) -> dict[str, Any]:
    """The speed-up of two workers over one: one thread each, the same global batch."""
    one, two = Gang(1), Gang(2)
    each = [one.step_s(effort) / two.step_s(effort) for _ in range(effort.turns)]
    one.close()
    two.close()
    return {
        "speed_up": statistics.median(each),
        "lowest": min(each),
        "highest": max(each),
        **dict(zip(("bar", "aim"), SPEED_UP, strict=True)),
    }


def machine(threads: int) -> str:
    kind = platform.processor() or platform.machine()
    return f"{kind}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}"


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['model']:20} {row['precision']} rate {row['rate']:4}: {row['ratio']:5.2f} "
        f"[{row['lowest']:.2f}, {row['highest']:.2f}]  "
        f"bar {row['bar']}, aim {row['aim']}  "
        f"{row['our_tokens_per_s']:8.0f} against {row['their_tokens_per_s']:8.0f}  "
        f"masking {100 * row['masking_share']:.2f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps and turns")
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="threads of both sides; default: all cores",
    )
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="use cpu on a shared machine"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    given = parser.parse_args()
    effort = QUICK if given.quick else FULL
    began = time.monotonic()
    print(f"{machine(given.threads)}; {given.clock} time; {effort.words()}", flush=True)
    if given.quick:
        print("quick: a rough check; use the full run for results")
    workers = speed_up(effort)
    other = multiprocessing.get_context("spawn").Pool(1)
    torch.set_num_threads(given.threads)
    ranks = ds.join(0, 1, 0, "127.0.0.1", free_port())
    print("tokens/s, ours over transformers.Trainer, median [lowest, highest]")
    rows = []
    for precision, shape, rate in itertools.product(("fp32", "bf16"), SHAPES, (0.15, 0.5)):
        case = Case(shape, rate, precision, effort, given.clock, given.threads)
        rows.append(ratios(case, ranks, other))
        print(_line(rows[-1]), flush=True)
    other.terminate()
    print(
        f"two workers over one: {workers['speed_up']:.2f} "
        f"[{workers['lowest']:.2f}, {workers['highest']:.2f}]  "
        f"bar {workers['bar']}, aim {workers['aim']}"
    )
    scratch, continued = ([r for r in rows if r["model"] == s.name] for s in SHAPES[:2])
    for one, other_one in zip(scratch, continued, strict=True):
        share = other_one["our_tokens_per_s"] / one["our_tokens_per_s"]
        case_words = f"{one['precision']} rate {one['rate']}"
        print(f"continued over from scratch, {case_words}: {share:.2f}  bar 0.95")
    most = max(row["masking_share"] for row in rows)
    print(
        f"masking, at most {100 * most:.2f} % of a step  bar {MASKING[0]:.0%}, aim {MASKING[1]:.0%}"
    )
    print(f"{time.monotonic() - began:.0f} s in all")
    if given.json:
        found = {
            "machine": machine(given.threads),
            "clock": given.clock,
            "measured": effort.words(),
            "ratios": rows,
            "two_workers": workers,
        }
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    ds.leave()


if __name__ == "__main__":
    main()
