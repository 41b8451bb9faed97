"""Check a spec without torch or ray: keys, values, ranges, files, and every option."""

from __future__ import annotations

import argparse
import json
import math

from mptune.cli import _arguments
from mptune.search import preflight
from mptune.spec.source import Choice, SpecFile
from mptune.spec.space import Space

EXAMPLES = """\
examples:
  mptune validate search_spaces/quickstart.yaml
  mptune validate spec.yaml --set training.budget_tokens=2e6
  mptune validate spec.yaml --address 10.0.0.5:6379    # also: do gangs and models fit there?
  mptune validate spec.yaml --set resources.memory_gb=16    # do models fit in 16 GB per worker?
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
    preflight.refuse_misfits(file, spec, address)
    found = {name: _describe(dimension) for name, dimension in file.dimensions.items()}
    refused = [
        f"will be refused: {line}" for line in preflight.memory_refusals(file, spec, address)
    ]
    notes = [*preflight.notes(file, spec), *refused]
    if arguments.json:
        result = {"valid": True, "name": spec.name, "dimensions": found, "notes": notes}
        print(json.dumps(result, indent=2))
        return 0
    print(f"{arguments.spec} is valid: {spec.search.trials} trials over {len(found)} dimensions")
    for name, text in found.items():
        print(f"  {name}: {text}")
    for note in notes:
        print(f"note: {note}")
    return 0


def _describe(dimension: object) -> str:
    if isinstance(dimension, Choice):
        return f"one of {', '.join(str(label) for label in dimension.labels)}"
    low, high = dimension.low, dimension.high  # type: ignore[attr-defined]
    log = ", log scale" if dimension.log else ""  # type: ignore[attr-defined]
    return f"{_number(low)} to {_number(high)}{log}"


def _number(value: float) -> str:
    return str(int(value)) if math.floor(value) == value else f"{value:g}"
