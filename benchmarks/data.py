"""Speed, memory and accuracy of data preparation.

    python benchmarks/data.py                 # 15 minutes on 2 cores, 10 GB of disk
    python benchmarks/data.py --quick         # 2 minutes
    python benchmarks/data.py --json out.json

- speed: text through a BPE, compared with a plain `datasets` map that calls the same tokenizer
- memory: peak resident memory of a process that prepares 100 MB to 2 GB of text
- loader: time to read one global batch from the largest table, compared with a step of two workers
- density: the integral of binned densities minus 1, and the score of a Gaussian source minus its
  negative entropy
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mptune.data._bins import Bins
from mptune.data._table import TokenTable
from mptune.spec.schema import Score, Training, build
from mptune.training.feed import DataOrder
from mptune.trial import PrepareRequest, Resources, TrialSpec

DOCUMENT_LINES = 60
BATCH, LENGTH = 16, 128


def documents(megabytes: float, seed: int = 0) -> Iterator[str]:
    """Documents of about 2 kB, made of lines of the standard library in random order."""
    folder = Path(os.__file__).parent
    lines = [
        line
        for file in sorted(folder.glob("*.py"))
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    rng, left = np.random.default_rng(seed), megabytes * 1e6
    while left > 0:
        text = "\n".join(lines[i] for i in rng.integers(len(lines), size=DOCUMENT_LINES))
        left -= len(text.encode())
        yield text


def corpus(path: Path, megabytes: float) -> Path:
    """A JSONL file with this amount of text."""
    with path.open("w", encoding="utf-8") as file:
        for text in documents(megabytes):
            file.write(json.dumps({"text": text}) + "\n")
    return path


def text_section(source: Path, tokenizer: str) -> dict[str, Any]:
    return {"kind": "text", "source": str(source), "tokenizer": tokenizer, "length": LENGTH}


# --- speed -------------------------------------------------------------------------------------


def train_tokenizer(folder: Path) -> Path:
    """A byte-level BPE with 8192 symbols, saved in a folder that both sides load."""
    from mptune.data._records import Record
    from mptune.data._tokenizers import Subwords

    texts = (Record("", "", text.encode()) for text in documents(4, seed=9))
    folder.mkdir(exist_ok=True)
    Subwords.train(texts, 8192).save(folder)
    return folder


def bare_map(source: Path, tokenizer: Path, cache: Path) -> float:
    """Seconds of `datasets.map` with the tokenizer's `encode_batch`, from JSONL to Arrow."""
    import datasets
    from tokenizers import Tokenizer

    datasets.disable_progress_bars()
    made = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    began = time.perf_counter()
    found = datasets.load_dataset("json", data_files=str(source), cache_dir=str(cache))["train"]

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [e.ids for e in made.encode_batch(batch["text"])]}

    found.map(encode, batched=True, remove_columns=["text"], load_from_cache_file=False)
    return time.perf_counter() - began


def speed(folder: Path, megabytes: float, rounds: int) -> dict[str, Any]:
    """Megabytes per second of both sides: the best of several rounds, in turn."""
    source, tokenizer = corpus(folder / "speed.jsonl", megabytes), train_tokenizer(folder / "bpe")
    bare, ours = [], []
    for number in range(rounds):
        bare.append(bare_map(source, tokenizer, folder / f"bare{number}"))
        began = time.perf_counter()
        build("data", text_section(source, str(tokenizer))).prepare(folder / f"ours{number}")
        ours.append(time.perf_counter() - began)
    rates = {"bare": megabytes / min(bare), "mptune": megabytes / min(ours)}
    return {"megabytes": megabytes, "mb_per_s": rates, "ratio": rates["mptune"] / rates["bare"]}


# --- memory ------------------------------------------------------------------------------------


def prepare_here(source: str, cache: str) -> None:
    """Prepare the data and print the table, the peak memory in MB and the seconds."""
    began = time.perf_counter()
    table = build("data", text_section(Path(source), "bytes")).prepare(Path(cache))
    # getrusage would count the parent's memory: a child's maximum starts with it.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = float(next(v for v in status.splitlines() if v.startswith("VmHWM")).split()[1]) / 1024
    print(json.dumps([str(table.path), peak, time.perf_counter() - began]))


def memory(folder: Path, sizes: list[float]) -> tuple[dict[str, Any], Path]:
    """Peak memory in MB for each corpus size, and the table of the largest corpus."""
    peaks, seconds, table = {}, {}, ""
    for megabytes in sizes:
        source = corpus(folder / f"{megabytes:g}.jsonl", megabytes)
        command = [sys.executable, __file__, "--prepare", str(source), str(folder / "cache")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        table, peaks[f"{megabytes:g} MB"], seconds[f"{megabytes:g} MB"] = json.loads(
            done.stdout.splitlines()[-1]
        )
        source.unlink()
    values = list(peaks.values())
    return {
        "peak_mb": peaks,
        "seconds": seconds,
        "growth": max(values) / min(values) - 1,
    }, Path(table)


# --- loader ------------------------------------------------------------------------------------


def loader(folder: Path, large: Path, steps: int) -> dict[str, Any]:
    """Milliseconds to read the global batch, and of the whole step of a gang of two workers."""
    train = TokenTable.open(large).train
    order = DataOrder(len(train), BATCH, seed=0)
    order.rows(0)
    began = time.perf_counter()
    for step in range(steps):
        rows = order.rows(step)
        train.tokens[rows], train.observed[rows]
    read_ms = 1000 * (time.perf_counter() - began) / steps
    step_ms = 1000 * gang_step_s(folder)
    return {
        "rows": len(train),
        "read_ms": read_ms,
        "step_ms": step_ms,
        "share": read_ms / step_ms,
    }


def gang_step_s(folder: Path) -> float:
    """Seconds per step of the quickstart's model on two worker processes."""
    from mptune.training.worker import Worker

    score = Score(sequences=8, forwards=1, rung_sequences=8)
    data = {"kind": "text", "source": "python-stdlib", "length": LENGTH}
    plan, cache = str(folder / "plan.npz"), str(folder / "small")
    request = PrepareRequest(data=data, score=score, cache=cache, plan=plan)
    trial = TrialSpec(
        study="benchmark",
        number=0,
        policy_label="step",
        size_label="",
        seed=0,
        data=data,
        model={"family": "modernbert", "width": 64, "depth": 2},
        policy={"kind": "uniform"},
        training=Training(budget_tokens=150 * BATCH * LENGTH, batch_size=BATCH),
        score=score,
        resources=Resources(workers=2),
        prepared=Worker(0, 1).prepare(request),
        directory=str(folder / "trial"),
    )
    (folder / "trial.json").write_text(trial.model_dump_json())
    command = [sys.executable, "-m", "mptune.worker", str(folder / "trial.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    cost = json.loads(done.stdout.splitlines()[-1])["cost"]
    return float(cost["training_s"] / cost["steps"])


# --- density -----------------------------------------------------------------------------------


def density() -> dict[str, Any]:
    """Integrals of binned densities (sums over fine grids), and Gaussian scores."""
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=200_000), rng.normal(size=200_000)
    entropy = 0.5 * np.log(2 * np.pi * np.e)
    grid = np.linspace(-60, 60, 4_000_001)
    errors, gaps = [], {}
    for size in (4, 8, 16, 32, 64, 128, 256):
        bins = Bins.fit(train, size)
        counts = np.bincount(bins.symbols(train), minlength=bins.size)
        drawn = rng.dirichlet(np.ones(bins.size))
        mass = drawn[bins.symbols(grid)] * np.exp(-bins.log_widths(grid))
        errors.append(abs(float(mass.sum() * (grid[1] - grid[0])) - 1))
        p = counts / counts.sum()
        score = np.mean(np.log(p[bins.symbols(test)]) - bins.log_widths(test))
        gaps[str(size)] = float(-score - entropy)
    return {"largest_integral_error": max(errors), "entropy": float(entropy), "gap_by_bins": gaps}


# --- report ------------------------------------------------------------------------------------


def machine() -> str:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory_gb:.0f} GiB, Python {platform.python_version()}"


def measure(folder: Path, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"machine": machine(), "density": density()}
    found["speed"] = speed(folder, 8 if quick else 40, 2 if quick else 3)
    found["memory"], large = memory(folder, [20, 100] if quick else [100, 500, 2000])
    found["loader"] = loader(folder, large, 500 if quick else 5000)
    return found


def lines(found: dict[str, Any]) -> Iterator[str]:
    fast, flat, load, true = (found[k] for k in ("speed", "memory", "loader", "density"))
    yield found["machine"]
    yield (
        f"speed: {fast['mb_per_s']['mptune']:.1f} MB/s of text through a BPE, plain map "
        f"{fast['mb_per_s']['bare']:.1f} MB/s: {fast['ratio']:.2f} ×"
    )
    peaks = ", ".join(f"{size}: {peak:.0f} MB" for size, peak in flat["peak_mb"].items())
    yield f"memory: {peaks}; it grows by {flat['growth']:.1%}"
    rates = ", ".join(
        f"{size}: {float(size.split()[0]) / s:.0f} MB/s" for size, s in flat["seconds"].items()
    )
    yield f"bytes: {rates}"
    yield (
        f"loader: {load['read_ms']:.3f} ms of a {load['step_ms']:.1f} ms step: "
        f"{load['share']:.2%}, {load['rows']:,} rows"
    )
    yield f"density: integrals are 1 within {true['largest_integral_error']:.1e}"
    gaps = ", ".join(f"{size}: {gap:.4f}" for size, gap in true["gap_by_bins"].items())
    yield f"Gaussian source, nats above its entropy by number of bins: {gaps}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, 2 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument("--prepare", nargs=2, metavar="PATH", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prepare:
        prepare_here(*given.prepare)
        return
    with tempfile.TemporaryDirectory(prefix="mptune-benchmark-") as folder:
        os.environ["MPTUNE_CACHE"] = folder
        found = measure(Path(folder), given.quick)
    print("\n".join(lines(found)))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
