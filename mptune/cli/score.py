"""Score masked-LM checkpoints on text: the accumulated LML estimate with its interval.

MODEL is a local folder or a name of the Hugging Face hub. One model is scored until its standard
error is small enough; two are compared on the same sequences and masks until one is better.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mptune.cli import _arguments, _score_progress, _score_text
from mptune.errors import InputError

if TYPE_CHECKING:
    from mptune.tools.score import ModelText, Options

EXAMPLES = """\
examples:
  mptune score models/my-bert --data corpus/heldout/*.txt --target-se 0.005
  mptune score answerdotai/ModernBERT-base --data python-stdlib --sequences 500 --json
  mptune score models/a models/b --data lines.txt --documents line
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="one model to score, or two to compare")
    add("--data", nargs="+", required=True, metavar="SOURCE",
        help="text files, folders or globs, or python-stdlib")  # fmt: skip
    add("--documents", choices=("file", "line", "paragraph"), default="file",
        help="what counts as one document of a file; default file")  # fmt: skip
    add("--group", metavar="COLUMN",
        help="column of what belongs together (author, site), or file, of plain text; errors are "
        "between groups; default: each document is one")  # fmt: skip
    add("--target-se", type=_positive, default=0.01, metavar="NATS",
        help="stop at this standard error, nats per token; default 0.01")  # fmt: skip
    add("--length", type=int, metavar="TOKENS",
        help="tokens per sequence; default: the model's maximum")  # fmt: skip
    add("--sequences", type=_count, default=2000, metavar="N",
        help="largest number of sequences; default 2000")  # fmt: skip
    add("--max-forwards", type=_count, metavar="N", help="stop after N forwards per model")
    add("--batch-size", type=_count, default=32, metavar="N",
        help="sequences per forward pass; default 32")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N",
        help="seed of the sequences drawn and of the masks; default 0")  # fmt: skip
    add("--output", type=Path, default=Path("scores"), metavar="DIR",
        help="folder for curve.png and score.json; default scores")  # fmt: skip
    _arguments.add_json(parser)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _count(text: str) -> int:
    value = int(float(text))
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def run(arguments: argparse.Namespace) -> int:
    if len(arguments.models) > 2:
        raise InputError(f"{len(arguments.models)} models: give one to score or two to compare")
    from mptune.tools import score

    options = score.Options(
        source=tuple(arguments.data),
        documents=arguments.documents,
        group=arguments.group,
        length=arguments.length,
        sequences=arguments.sequences,
        max_forwards=arguments.max_forwards,
        target_se=arguments.target_se,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    prepared, same_tokens = score.prepare(arguments.models, options)
    if len(prepared) == 1:
        found, curves = _score_one(prepared[0], options)
    else:
        found, curves = _compare_two(prepared, same_tokens, options)
    _write(arguments.output, found, curves)
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print(_score_text.text(found))
        print(f"Written:\n  {arguments.output / 'curve.png'}\n  {arguments.output / 'score.json'}")
    return 0


def _score_one(prepared: ModelText, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    from mptune.tools import score

    _warn_about_unknown_tokens(prepared)
    results = score.score(prepared, options)
    last = _score_progress.watch(results, lambda now: _score_progress.model_progress(now, options))
    score.add_figures(last, options)
    curves = {prepared.model.name: last.estimate.curve}
    return _score_text.model_figures(last, options.target_se), curves


def _compare_two(
    prepared: list[ModelText], same_tokens: bool, options: Options
) -> tuple[dict[str, Any], dict[str, Any]]:
    from mptune.tools import score

    for one in prepared:
        _warn_about_unknown_tokens(one)
    if not same_tokens:
        print("The tokenizers differ: only bits per byte can be compared.", file=sys.stderr)
    results = score.race(prepared, same_tokens, options)
    last = _score_progress.watch(results, _score_progress.race_progress)
    estimates = (last.comparison.a, last.comparison.b)
    curves = {p.model.name: e.curve for p, e in zip(prepared, estimates, strict=True)}
    return _score_text.race_figures(last), curves


def _warn_about_unknown_tokens(prepared: ModelText) -> None:
    observed = int(prepared.side.observed.sum())
    if prepared.unknown > observed / 1000:
        print(
            f"{prepared.model.name}: {prepared.unknown} of {observed} tokens are unknown to its "
            "tokenizer; their text is not scored, and bits per byte are too low",
            file=sys.stderr,
        )


def _write(folder: Path, found: dict[str, Any], curves: dict[str, Any]) -> None:
    from mptune.paths import write_aside, write_text
    from mptune.report.figures import curves_png

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "score.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    png = curves_png({Path(name).name: curve for name, curve in curves.items()})
    with write_aside(folder / "curve.png") as aside:
        aside.write_bytes(png)
