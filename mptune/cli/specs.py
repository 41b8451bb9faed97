"""Commands that write or check a spec, or show its data."""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from importlib.resources import files
from pathlib import Path

from mptune.cli._command import (
    JSON,
    OVERRIDES,
    SPEC,
    WHERE,
    address_of,
    argument,
    as_text,
    command,
    flag,
    option,
    path,
    show,
)
from mptune.errors import InputError, plural
from mptune.paths import write_json, write_text
from mptune.search import preflight
from mptune.search.fitting import fitted
from mptune.search.kpi import check_importable
from mptune.spec.json_schema import json_schema
from mptune.spec.source import SpecFile
from mptune.spec.space import Space


@command(
    argument(
        "directory",
        type=Path,
        nargs="?",
        default=Path(),
        metavar="DIR",
        help="folder for spec.yaml; default: the current folder",
    ),
    flag("--force", "replace an existing spec.yaml"),
    argument(
        "--from",
        dest="source",
        metavar="DATA",
        help="a file, folder or glob: write the spec that fits it",
    ),
    argument(
        "--hours",
        type=float,
        metavar="H",
        help="with --from: train each model for some seconds here, and set the budget so that the "
        "search takes about H hours on this machine",
    ),
)
def run_init(directory: Path, force: bool, source: str | None, hours: float | None) -> None:
    """Write a commented spec for your own data, ready to edit and validate.

    With --from, it looks at names, columns and the first rows of the data, prepares them, and says
    what it cannot tell.

    examples:
      mptune init mydata            # writes mydata/spec.yaml and its schema for editors
      mptune init mydata --from stations.csv
      mptune init mydata --from texts/ --hours 8
      mptune validate mydata/spec.yaml && mptune search mydata/spec.yaml
    """
    file = directory / "spec.yaml"
    if file.exists() and not force:
        raise InputError(f"{file} exists; --force replaces it")
    if hours is not None and (source is None or not 0 < hours < math.inf):
        raise InputError(f"--hours {hours:g}: give a positive number, and --from DATA")
    letters = (c if c.isalnum() and c.isascii() else "-" for c in directory.absolute().name)
    name = "".join(letters).strip("-")[:63] or "search"
    template = files("mptune.cli").joinpath("spec_template.yaml").read_text(encoding="utf-8")
    text = template.replace("NAME", name)
    if source is None:
        write_text(file, text)
        said = ["point data.source at your files, then"]
    else:
        text, said = fitted(text, source, directory, hours, partial(print, file=sys.stderr))
        write_text(file, text)
        said.append("then")
    # The template names this file in its first line, for completion in editors.
    write_json(directory / "spec.schema.json", json_schema())
    print(f"wrote {file}; " + "\n".join(said) + f": mptune validate {file}")


@command(
    SPEC,
    OVERRIDES,
    *WHERE,
    flag("--data", "also prepare the data: columns, tokenizer, number of sequences"),
    JSON,
)
def run_validate(
    spec: Path,
    overrides: list[str],
    on: Path | None,
    address: str | None,
    data: bool,
    as_json: bool,
) -> None:
    """Check a spec without torch or ray: keys, values, ranges, files, and every option.

    examples:
      mptune validate search_spaces/quickstart.yaml
      mptune validate spec.yaml --set training.budget_tokens=2e6
      mptune validate spec.yaml --address 10.0.0.5:6379    # also: do gangs and models fit there?
      mptune validate spec.yaml --set resources.memory_gb=16    # do models fit in 16 GB per worker?
      mptune validate spec.yaml --data          # also: does the data have the columns?
    """
    file = SpecFile.read(spec, overrides)
    checked = file.validate()
    Space(file).arms()
    check_importable(checked.score)
    cluster = address_of(on, address)
    if cluster is not None:
        preflight.refuse_misfits(file, checked, cluster)
    found = {name: str(dimension) for name, dimension in file.dimensions.items()}
    expected = preflight.expected(file, checked, cluster, here=False)
    notes = preflight.notes(file, checked)
    if data:
        notes += preflight.inspect_data(file, checked)["warnings"]
    if as_json:
        result = {"valid": True, "name": checked.name, "dimensions": found, "notes": notes}
        print(json.dumps({**result, "expected": expected}, indent=2))
        return
    trials, dimensions = plural(checked.search.trials, "trial"), plural(len(found), "dimension")
    print(f"{spec} is valid: {trials} over {dimensions}")
    for name, text in found.items():
        print(f"  {name}: {text}")
    for note in notes:
        print(f"note: {note}")
    if not data:
        print("not checked: columns, tokenizer and size of the data; --data checks them, too")
    if expected is not None:
        print(as_text("plan", expected))
    what = "time, FLOPs, memory and disk are" if expected is None else "time is"
    print(f"{what} measured by: mptune plan {spec}")


@command(
    SPEC,
    OVERRIDES,
    *WHERE,
    flag("--local", "train in this process, without Ray"),
    option("--seconds", "S", "seconds of training for each model", 5.0),
    JSON,
)
def run_plan(
    spec: Path,
    overrides: list[str],
    on: Path | None,
    address: str | None,
    local: bool,
    seconds: float,
    as_json: bool,
) -> None:
    """Predict time, memory and disk of a search from a few seconds of training of each model.

    Every model is trained for real, where the search would run, at both ends of every range.
    Nothing is written to a run directory.

    examples:
      mptune plan search_spaces/quickstart.yaml
      mptune plan spec.yaml --address 10.0.0.5:6379 --seconds 20
    """
    found = preflight.plan(
        spec,
        overrides=overrides,
        address=address_of(on, address),
        local=local,
        seconds=seconds,
        say=partial(print, file=sys.stderr),
    )
    show(found, as_json, "plan")


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
    from mptune.search.run import Run

    file = SpecFile.read(spec, overrides)
    checked = file.validate()
    report = preflight.inspect_data(file, checked)
    folder = run_dir or Path("runs") / checked.name
    run = Run.open(folder) if run_dir or folder.is_dir() else None
    report["group_correlations"] = run.group_correlations(report["hash"]) if run else {}
    if run_dir and not report["group_correlations"]:
        report["warnings"].append(f"{folder} has no scores of this data")
    show(report, as_json, "data")


@command()
def run_schema() -> None:
    """Print the JSON schema of a spec, with which editors complete keys and mark mistakes.

    It includes all installed plugins.

    examples:
      mptune schema > spec.schema.json
      # then, as the first line of a spec, for editors with a YAML language server:
      # yaml-language-server: $schema=spec.schema.json
    """
    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))
