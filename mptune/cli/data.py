"""Prepare the data of a spec and describe it, before any training.

Shows counts, lengths, vocabulary, missing values per channel, split sizes, duplicates across
splits, a masked example, and warnings about problems that would distort the score.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mptune.cli import _arguments
from mptune.errors import InputError, did_you_mean
from mptune.paths import cache_directory
from mptune.spec.schema import SearchSpec, build
from mptune.spec.source import SpecFile

EXAMPLES = """\
examples:
  mptune data inspect search_spaces/quickstart.yaml
  mptune data inspect spec.yaml --set data.length=256 --json
"""

ACTIONS = ("inspect",)

MANY_EPOCHS = 50
"""Passes over the training data after which small models begin to memorise it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", metavar="inspect", help="the only action")
    _arguments.add_spec(parser)
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="a run with scores of this data; default runs/NAME",
    )
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.action not in ACTIONS:
        raise InputError(
            f"no action {arguments.action!r}; actions: {', '.join(ACTIONS)}"
            f"{did_you_mean(arguments.action, ACTIONS)}"
        )
    from mptune.search.run import Run

    file = SpecFile.read(arguments.spec, arguments.overrides)
    spec = file.validate()
    modality = build("data", spec.data).resolved(file.path.absolute().parent)
    try:
        report = modality.inspect(modality.prepare(cache_directory() / "tables"))
    except (ValueError, OSError) as error:
        raise InputError(f"{file.origin_of('data')}: data: {error}") from None
    report["warnings"] += _spec_warnings(spec, report)
    folder = arguments.run_dir or Path("runs") / spec.name
    run = Run.open(folder) if arguments.run_dir or folder.is_dir() else None
    report["group_correlations"] = run.group_correlations(report["hash"]) if run else {}
    if arguments.run_dir and not report["group_correlations"]:
        report["warnings"].append(f"{folder} has no scores of this data")
    if arguments.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print("\n".join(_lines(report)))
    return 0


def _spec_warnings(spec: SearchSpec, report: dict[str, Any]) -> Iterator[str]:
    heldout = report["splits"]["heldout"]["sequences"]
    if spec.score.sequences > heldout:
        yield f"score.sequences is {spec.score.sequences}, but {heldout} are held out; all are used"
    passes = (spec.training.budget_tokens or 0) / (
        report["splits"]["train"]["sequences"] * report["length"]
    )
    if passes > MANY_EPOCHS:
        yield f"training.budget_tokens makes {passes:.0f} passes over the training data"


def _lines(report: dict[str, Any]) -> Iterator[str]:
    vocabulary, axes = report["vocabulary"], report["axes"]
    grid = " × ".join(f"{n} {name}" for name, n in axes.items())
    yield report["description"]
    yield (
        f"  D = {report['length']}{f' ({grid})' if grid else ''}; {vocabulary['size']} symbols, "
        f"{vocabulary['used_in_training']} of them in training, entropy "
        f"{vocabulary['entropy_nats']:.2f} nats"
    )
    if report["bytes_per_token"]:
        yield f"  {report['bytes_per_token']:.3f} bytes per token held out"
    if report["log_bin_width"]:
        yield f"  scores are densities: mean log bin width {report['log_bin_width']:.3f} nats"
    yield ""
    yield from _split_lines(report["splits"])
    yield f"group: {report['grouped_by']}; standard errors are between groups"
    for name, value in report["group_correlations"].items():
        of = {"score": "the best trial", "difference": "the difference of the two best"}[name]
        yield f"intraclass correlation of {of}: {value:.2f}"
    if report["channels"]:
        yield ""
        yield from _channel_lines(report["channels"])
    yield ""
    # With channels, each one has its own symbols, so common counts would mix them.
    if not report["channels"]:
        common = ", ".join(f"{word!r} {share:.1%}" for word, share in vocabulary["most_common"][:8])
        yield f"most common: {common}"
        yield ""
    yield "a held-out sequence, 30 % masked (▒ masked, · not observed):"
    yield from (f"  {line}" for line in report["example"].splitlines())
    yield ""
    yield from (f"! {warning}" for warning in report["warnings"])
    if not report["warnings"]:
        yield "no problem found"


def _split_lines(splits: dict[str, Any]) -> Iterator[str]:
    width = max(len(name) for name in splits)
    yield (
        f"{'':{width}}  sequences  groups  of (min, median, max)  observed (min, median, max)  "
        "filled  unigram nats  also in training"
    )
    for name, split in splits.items():
        low, middle, high = split["observed_per_sequence"]
        few, usual, most = split["sequences_per_group"]
        twins = split.get("also_in_train", "")
        yield (
            f"{name:{width}}  {split['sequences']:9,}  {split['groups']:6,}  "
            f"{f'{few:g}, {usual:g}, {most:g}':>21}  "
            f"{f'{low}, {middle}, {high}':>27}  {split['observed_share']:6.1%}  "
            f"{split['unigram_nats_per_token']:12.3f}  {twins:>16}"
        )


def _channel_lines(channels: list[dict[str, Any]]) -> Iterator[str]:
    width = max(7, *(len(c["name"]) for c in channels))
    yield (
        f"{'channel':{width}}  symbols  single values  missing: train  held out  "
        "     mean     scale"
    )
    for c in channels:
        numbers = f"{c['mean']:9.4g} {c['scale']:9.4g}" if "mean" in c else ""
        yield (
            f"{c['name']:{width}}  {c['symbols']:7}  {c['single_values']:13}  "
            f"{c['missing']['train']:14.1%}  {c['missing']['heldout']:8.1%}  {numbers}"
        )
