"""Derive every number of a bundled report again, from its scores, without data or training.

Exit code 3 if any number comes out differently.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mptune.paths import RunDirectory

EXAMPLES = """\
examples:
  mptune replay quickstart.bundle.zip
  mptune replay quickstart.bundle.zip --into checked     # keep the run directory and its report
  mptune replay quickstart.bundle.zip --lang ja
  mptune replay quickstart.bundle.zip --json             # the report's numbers, derived again
"""

SHOWN = 10
"""Differences that are told."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mptune.cli import _arguments

    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="written by `mptune bundle`")
    parser.add_argument("--into", type=Path, metavar="DIR", help="a new folder to unpack it in")
    _arguments.add_json(parser)
    _arguments.add_lang(parser)


def run(arguments: argparse.Namespace) -> int:
    from mptune.errors import InputError

    if arguments.into is None:
        with tempfile.TemporaryDirectory() as folder:
            return _replay(arguments, Path(folder))
    if arguments.into.exists():
        raise InputError(f"{arguments.into} exists; name a new folder")
    return _replay(arguments, arguments.into)


def _replay(arguments: argparse.Namespace, folder: Path) -> int:
    from mptune import report
    from mptune.errors import NoResultError
    from mptune.report.document import as_json
    from mptune.report.findings import findings
    from mptune.report.language import language
    from mptune.search.bundle import unpack

    say = language(arguments.lang)
    found = unpack(arguments.bundle, folder)
    said = json.loads(found.report_json.read_text(encoding="utf-8"))
    evidence = _evidence(found, said["input"])
    text = as_json(evidence)
    wrong = [*_wrong_scores(found), *_differences(said, json.loads(text))]
    if arguments.into is not None:
        report.write(evidence, found, say)
    if wrong:
        shown = "\n  ".join(wrong[:SHOWN])
        raise NoResultError(f"{arguments.bundle}: {len(wrong)} numbers differ:\n  {shown}")
    if arguments.json:
        print(text, end="")
    else:
        print(say("terminal.replayed", bundle=arguments.bundle))
        print("\n".join(findings(evidence, say).recommendation))
    return 0


def _evidence(run: RunDirectory, said: dict[str, Any]) -> Any:
    """What the report is made from; when, where and by which command is taken from the bundle."""
    from mptune.search.evidence import collect, stored_spec
    from mptune.spec.schema import Storage

    spec = stored_spec(run).model_copy(update={"storage": Storage()})
    sizes = [e["at"]["parameters"] for law in _laws(said) for e in law["extrapolation"]]
    made = {"created": said["created"], "versions": said["versions"]}
    found = collect(run, spec, said["commands"][0], list(dict.fromkeys(sizes)) or None)
    return found.model_copy(update={**made, "commands": tuple(said["commands"])})


def _laws(said: dict[str, Any]) -> list[dict[str, Any]]:
    by_size = said.get("by_size") or {}
    return [law for law in (by_size.get("best_rate"), by_size.get("gap")) if law]


def _wrong_scores(run: RunDirectory) -> Iterator[str]:
    """Trials whose score is not the mean of their sequences' scores."""
    import numpy as np

    for path in sorted(run.root.glob("*/*/scores.npz")):
        result = json.loads((path.parent / "result.json").read_text(encoding="utf-8"))
        stated = float(result["lml"]["nats_per_sequence"])
        with np.load(path) as stored:
            mean = float(stored["nats_per_sequence"].mean())
        if not math.isclose(mean, stated, rel_tol=1e-9, abs_tol=1e-9):
            where = path.parent.relative_to(run.root)
            yield f"{where}: nats per sequence {stated} is not the mean of its scores, {mean}"


def _differences(said: Any, found: Any, where: str = "report") -> Iterator[str]:
    """Where two JSON values differ."""
    if isinstance(said, dict) and isinstance(found, dict) and said.keys() == found.keys():
        for key in said:
            yield from _differences(said[key], found[key], f"{where}.{key}")
    elif isinstance(said, list) and isinstance(found, list) and len(said) == len(found):
        for number, pair in enumerate(zip(said, found, strict=True)):
            yield from _differences(*pair, f"{where}[{number}]")
    elif said != found:
        yield f"{where}: was {str(said)[:80]}, is {str(found)[:80]}"
