"""Measured memory of trials on a CPU, compared with the estimate that refuses trials.

    python benchmarks/memory.py [--quick] [--json FILE]

Each case is a trial of real workers, including DeepSpeed, in new processes. Measured is how much
the largest resident set of rank 0 grows during training and scoring. A smaller trial runs first,
so that libraries are loaded. The table has the estimate of `models._memory`, the measured value,
and their ratio. With a ratio below 1, a trial that does not fit would be accepted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mptune.models import _memory as memory
from mptune.spec.schema import Resources, Score, Training
from mptune.training.worker import Worker
from mptune.trial import Finished, Prepared, PrepareRequest, Rung, StopReason, TrialSpec

STEPS, DEADLINE_S = 4, 300

CHECKPOINTS = {"deepspeed": {"activation_checkpointing": {}}}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A trial whose memory is measured."""

    width: int
    depth: int
    vocabulary: int
    length: int
    batch: int
    precision: str
    stage: int = 0
    workers: int = 1
    rate: float = 0.15
    scored: int = 32
    family: str = "bert"
    training: dict[str, Any] = field(default_factory=dict)

    def words(self) -> str:
        what = f"{self.family} {self.width}×{self.depth}, V {self.vocabulary}, D {self.length}"
        saved = ", activations computed again" if self.training else ""
        return f"{what}, batch {self.batch}, rate {self.rate:g}, {self.scored} scored{saved}"

    def score(self) -> Score:
        return Score(sequences=64, forwards=2, rates=(0.5,), batch_size=self.scored)

    def trial(self, prepared: Prepared, data: dict[str, Any], directory: Path) -> TrialSpec:
        section = {
            "budget_tokens": STEPS * self.batch * self.length,
            "batch_size": self.batch,
            "precision": self.precision,
            "zero_stage": self.stage,
            **self.training,
        }
        return TrialSpec(
            study="memory",
            number=0,
            policy_label=self.words(),
            size_label="",
            seed=0,
            data=data,
            model={"family": self.family, "width": self.width, "depth": self.depth},
            policy={"kind": "fixed", "rate": self.rate},
            training=Training.model_validate(section),
            score=self.score(),
            resources=Resources(workers=self.workers),
            prepared=prepared,
            directory=str(directory),
        )


def cases(quick: bool) -> Iterator[Case]:
    """The cases; with few, one of each kind: dominated by states, blocks, logits or scoring."""
    states = {"width": 768, "depth": 4, "vocabulary": 4000, "length": 32, "batch": 2}
    blocks = {"width": 128, "depth": 8, "vocabulary": 200, "length": 256, "batch": 32}
    logits = {"width": 64, "depth": 2, "vocabulary": 12000, "length": 128}
    for precision in ("fp32", "bf16"):
        for stage in (0, 3) if quick else (0, 1, 2, 3):
            yield Case(**states, precision=precision, stage=stage)
        yield Case(**blocks, precision=precision)
        yield Case(**logits, batch=64, rate=0.5, precision=precision)
        if quick:
            continue
        yield Case(**logits, batch=8, scored=128, precision=precision)
        yield Case(**blocks, precision=precision, training=CHECKPOINTS)
        for stage in (1, 2, 3):
            yield Case(**states, precision=precision, stage=stage, workers=2)
        for family in ("modernbert", "esm"):
            yield Case(**blocks, precision=precision, family=family)


class Free:
    """A control that lets a trial run."""

    def stop_requested(self) -> StopReason | None:
        return None

    def go_on(self, rung: Rung) -> bool:
        return True


def resident(key: str) -> int:
    """`VmRSS`, or `VmHWM` (the maximum since `forget_largest`), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def forget_largest() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def work(rank: int, port: int, folder: Path, case: Case, answers: Any) -> None:
    """One rank: a small trial, then the one that is measured."""
    worker = Worker(rank, case.workers, rank)
    worker.join("127.0.0.1", port)
    prepared = Prepared.model_validate_json((folder / "prepared.json").read_text())
    data = json.loads((folder / "data.json").read_text())
    small = replace(case, width=32, depth=1).trial(prepared, data, folder / "small")
    list(worker.run(small, Free()))
    before = resident("VmRSS")
    forget_largest()
    events = list(worker.run(case.trial(prepared, data, folder / "measured"), Free()))
    if rank == 0:
        assert isinstance(events[-1], Finished), events[-1]
        answers.put(resident("VmHWM") - before)


def prepared_in(folder: Path, case: Case) -> Prepared:
    """A table of random symbols that contains the whole vocabulary."""
    rows = max(400, -(-case.vocabulary // case.length))
    tokens_ND = np.random.default_rng(0).integers(case.vocabulary, size=(rows, case.length))
    tokens_ND.flat[: case.vocabulary] = np.arange(case.vocabulary)
    np.save(folder / "tokens.npy", tokens_ND)
    source = str(folder / "tokens.npy")
    data = {"kind": "array", "source": source, "length": case.length, "heldout": 0.5}
    asked = PrepareRequest(
        data=data, score=case.score(), cache=str(folder / "cache"), plan=str(folder / "plan.npz")
    )
    prepared = Worker(0, 1).prepare(asked)
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "prepared.json").write_text(prepared.model_dump_json())
    return prepared


def measured(case: Case) -> tuple[memory.Demand, int]:
    """The estimate, and the bytes that were used."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trial = case.trial(prepared_in(folder, case), {}, folder)
        needed = memory.demand(memory.Sizes.of(trial, "cpu"), trial.training, case.workers)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        ranks = [
            context.Process(target=work, args=(rank, port, folder, case, answers), daemon=True)
            for rank in range(case.workers)
        ]
        for rank in ranks:
            rank.start()
        taken = answers.get(timeout=DEADLINE_S)
        for rank in ranks:
            rank.join()
    return needed, taken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a third of the cases")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to FILE")
    arguments = parser.parse_args()
    print("| trial | precision | ZeRO | workers | estimated, MB | used, MB | estimated / used |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for case in cases(arguments.quick):
        needed, taken = measured(case)
        ratio = needed.total / taken
        rows.append({"case": case.words(), "needed": needed.total, "taken": taken})
        print(
            f"| {case.words()} | {case.precision} | {case.stage} | {case.workers} "
            f"| {needed.total / 1e6:.0f} | {taken / 1e6:.0f} | {ratio:.2f} |",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
