"""Check a spec fully, without torch or ray: keys, values, ranges, files, and every option."""

from __future__ import annotations

import argparse
import json
import math

from mptune.cli import _arguments
from mptune.errors import InputError
from mptune.search import notes as _notes
from mptune.search import refusals as _memory
from mptune.spec.schema import SearchSpec
from mptune.spec.source import Choice, SpecFile
from mptune.spec.space import Space

EXAMPLES = """\
examples:
  mptune validate search_spaces/quickstart.yaml
  mptune validate spec.yaml --set training.budget_tokens=2e6
  mptune validate spec.yaml --address 10.0.0.5:6379    # also whether gangs and models fit there
  mptune validate spec.yaml --set resources.memory_gb=16    # or in so much for each worker
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_spec(parser)
    _arguments.add_where(parser)
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    file = SpecFile.read(arguments.spec, arguments.overrides)
    spec = file.validate()
    Space(file).arms()
    address = _arguments.address(arguments)
    _refuse_what_never_fits(file, spec, address)
    found = {name: _words(dimension) for name, dimension in file.dimensions.items()}
    refused = [f"will be refused: {line}" for line in _memory.refusals(file, spec, address)]
    notes = [*_notes.notes(file, spec), *refused]
    if arguments.json:
        said = {"valid": True, "name": spec.name, "dimensions": found, "notes": notes}
        print(json.dumps(said, indent=2))
        return 0
    print(f"{arguments.spec} is valid: {spec.search.trials} trials over {len(found)} dimensions")
    for name, words in found.items():
        print(f"  {name}: {words}")
    for note in notes:
        print(f"note: {note}")
    return 0


def _refuse_what_never_fits(file: SpecFile, spec: SearchSpec, address: str | None) -> None:
    """Where the cluster is known: every gang of the search has room in it.

    Raises:
        InputError: one line per gang that has none.
        DispatchError: the cluster cannot be reached.
    """
    if address is None or spec.resources.scale_up_timeout_s:
        return
    from mptune.dispatch import misfits

    at = f"{file.origin_of('resources')}: resources"
    problems = [f"{at}: {why}" for why in misfits(spec.resources, address)]
    if problems:
        raise InputError(problems)


def _words(dimension: object) -> str:
    if isinstance(dimension, Choice):
        return f"one of {', '.join(str(label) for label in dimension.labels)}"
    low, high = dimension.low, dimension.high  # type: ignore[attr-defined]
    log = ", log scale" if dimension.log else ""  # type: ignore[attr-defined]
    return f"{_number(low)} to {_number(high)}{log}"


def _number(value: float) -> str:
    return str(int(value)) if math.floor(value) == value else f"{value:g}"
