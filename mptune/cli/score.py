"""Commands that score checkpoints, and check the estimator where the answer is known."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mptune.cli._command import JSON, argument, command, flag, option, show
from mptune.errors import InputError

if TYPE_CHECKING:
    from mptune.tools.score import ModelScore, Race

Found = TypeVar("Found", bound="ModelScore | Race")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _count(text: str) -> int:
    return int(max(1.0, _positive(text)))


@command(
    argument("models", nargs="+", metavar="MODEL", help="one model to score, or two to compare"),
    argument(
        "--data",
        dest="source",
        nargs="+",
        required=True,
        metavar="SOURCE",
        help="text files, folders or globs, or python-stdlib",
    ),
    argument(
        "--documents",
        choices=("file", "line", "paragraph"),
        default="file",
        help="what counts as one document of a file; default file",
    ),
    argument(
        "--group",
        metavar="COLUMN",
        help="column of what belongs together (author, site), or file, of plain text; errors are "
        "between groups; default: each document is one",
    ),
    option("--target-se", "NATS", "stop at this standard error, nats per token", 0.01, _positive),
    argument(
        "--length",
        type=int,
        metavar="TOKENS",
        help="tokens per sequence; default: the model's maximum",
    ),
    option("--sequences", "N", "largest number of sequences", 2000, _count),
    argument("--max-forwards", type=_count, metavar="N", help="stop after N forwards per model"),
    option("--batch-size", "N", "sequences per forward pass", 32, _count),
    option("--seed", "N", "seed of the sequences drawn and of the masks", 0),
    option("--output", "DIR", "folder for curve.png and score.json", Path("scores")),
    JSON,
)
def run_score(models: list[str], output: Path, as_json: bool, **options: Any) -> None:
    """Score masked-LM checkpoints on text: the accumulated LML estimate with its interval.

    MODEL is a local folder or a name of the Hugging Face hub. One model is scored until its
    standard error is small enough; two are compared on the same sequences and masks until one is
    better.

    examples:
      mptune score models/my-bert --data corpus/heldout/*.txt --target-se 0.005
      mptune score answerdotai/ModernBERT-base --data python-stdlib --sequences 500 --json
      mptune score models/a models/b --data lines.txt --documents line
    """
    if len(models) > 2:
        raise InputError(f"{len(models)} models: give one to score or two to compare")
    from mptune.paths import write_aside, write_json
    from mptune.report.pages import curves_png
    from mptune.tools import score

    asked = score.Options(**options)
    prepared, same_tokens = score.prepare(models, asked)
    for one in prepared:
        observed = int(one.side.observed.sum())
        if one.unknown > observed / 1000:
            _warn(
                f"{one.model.name}: {one.unknown} of {observed} tokens are unknown to its "
                "tokenizer; their text is not scored, and bits per byte are too low"
            )
    if len(prepared) == 1:
        last = _watch(score.score(prepared[0], asked))
        score.add_figures(last, asked)
        found, estimates = last.figures(), [last.estimate]
    else:
        if not same_tokens:
            _warn("The tokenizers differ: only bits per byte can be compared.")
        race = _watch(score.race(prepared, same_tokens, asked))
        found, estimates = race.figures(), [race.comparison.a, race.comparison.b]
    write_json(output / "score.json", found)
    named = zip((Path(name).name for name in models), estimates, strict=True)
    with write_aside(output / "curve.png") as aside:
        aside.write_bytes(curves_png({name: estimate.curve for name, estimate in named}))
    show(found, as_json, "score")
    if not as_json:
        print(f"Written:\n  {output / 'curve.png'}\n  {output / 'score.json'}")


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


def _watch(results: Iterator[Found]) -> Found:
    """Print a line for each intermediate result, and return the last; Ctrl-C ends the scoring.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first result.
    """
    last: Found | None = None
    live = sys.stderr.isatty()
    try:
        for last in results:
            share, words = last.progress()
            done = round(20 * min(max(share, 0.0), 1.0))
            line = f"{'█' * done}{'░' * (20 - done)} {words}"
            print(f"\r\x1b[K{line}" if live else line, end="" if live else "\n", file=sys.stderr)
    except KeyboardInterrupt:
        if last is None:
            raise
        _warn("\ninterrupted: the result so far")
    if live:
        _warn("")
    assert last is not None, "scoring yields at least one result"
    return last


@command(
    flag("--quick", "fewer replications"),
    option("--seed", "N", "seed of samples and masks", 0),
    JSON,
)
def run_verify(quick: bool, seed: int, as_json: bool) -> int:
    """Check the estimator where the answer is known: exact models, and the identity.

    Every model has an exactly known log p(x). Nothing is downloaded and nothing is trained.

    examples:
      mptune verify --quick            under 20 seconds on one core
      mptune verify --seed 1           all replications, with other samples and masks
      mptune verify --json > verify.json

    exit codes: 0 every check passed, 3 a check failed (standard error names it)
    """
    from rich.console import Console
    from rich.progress import Progress

    from mptune.report.document import finite
    from mptune.tools.verify import verify

    if seed < 0:
        raise InputError(f"--seed: {seed} is negative; a seed is 0 or more")
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("verify", total=1.0)
        found = verify(
            quick=quick,
            seed=seed,
            on_progress=lambda text, share: bar.update(task, description=text, completed=share),
        )
    show(finite({"passed": not found.failed, **asdict(found)}), as_json, "verify")
    for check in found.failed:
        print(f"mptune: failed: {check.name}: {check.words}", file=sys.stderr)
    return 3 if found.failed else 0
