"""The command that shows the data of a spec."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mptune.cli._command import JSON, OVERRIDES, SPEC, argument, columns, command, path
from mptune.errors import InputError
from mptune.paths import cache_directory
from mptune.spec.schema import build
from mptune.spec.source import SpecFile


@command(
    argument("action", choices=["inspect"], metavar="inspect", help="the only action"),
    SPEC,
    OVERRIDES,
    path("--run-dir", "DIR", "a run with scores of this data; default runs/NAME"),
    JSON,
)
def run_data(
    action: str, spec: Path, overrides: list[str], run_dir: Path | None, as_json: bool
) -> None:
    """Prepare the data of a spec and describe it, before any training.

    Shows counts, lengths, vocabulary, missing values per channel, split sizes, duplicates across
    splits, a masked example, and warnings about problems that would distort the score.

    examples:
      mptune data inspect search_spaces/quickstart.yaml
      mptune data inspect spec.yaml --set data.length=256 --json
    """
    from mptune.search.preflight import data_warnings
    from mptune.search.run import Run

    file = SpecFile.read(spec, overrides)
    checked = file.validate()
    modality = build("data", checked.data).resolved(file.path.absolute().parent)
    try:
        report = modality.inspect(modality.prepare(cache_directory() / "tables"))
    except (ValueError, OSError) as error:
        raise InputError(f"{file.origin_of('data')}: data: {error}") from None
    report["warnings"] += data_warnings(checked, report)
    folder = run_dir or Path("runs") / checked.name
    run = Run.open(folder) if run_dir or folder.is_dir() else None
    report["group_correlations"] = run.group_correlations(report["hash"]) if run else {}
    if run_dir and not report["group_correlations"]:
        report["warnings"].append(f"{folder} has no scores of this data")
    print(
        json.dumps(report, indent=2, ensure_ascii=False) if as_json else "\n".join(_lines(report))
    )


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
    yield from columns(
        ("", "sequences", "groups", "of (min, median, max)", "observed (min, median, max)",
         "filled", "unigram nats", "also in training"),
        [
            (name, f"{split['sequences']:,}", f"{split['groups']:,}",
             ", ".join(f"{n:g}" for n in split["sequences_per_group"]),
             ", ".join(map(str, split["observed_per_sequence"])), f"{split['observed_share']:.1%}",
             f"{split['unigram_nats_per_token']:.3f}", str(split.get("also_in_train", "")))
            for name, split in report["splits"].items()
        ],
    )  # fmt: skip
    yield f"group: {report['grouped_by']}; standard errors are between groups"
    for name, value in report["group_correlations"].items():
        of = {"score": "the best trial", "difference": "the difference of the two best"}[name]
        yield f"intraclass correlation of {of}: {value:.2f}"
    if report["channels"]:
        yield ""
        yield from columns(
            ("channel", "symbols", "single values", "missing: train", "held out", "mean", "scale"),
            [
                (c["name"], str(c["symbols"]), str(c["single_values"]),
                 f"{c['missing']['train']:.1%}", f"{c['missing']['heldout']:.1%}",
                 *(f"{c[key]:.4g}" if key in c else "" for key in ("mean", "scale")))
                for c in report["channels"]
            ],
        )  # fmt: skip
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
