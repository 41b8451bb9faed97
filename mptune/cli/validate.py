"""Check a spec fully, without torch or ray: keys, values, ranges, files, and every option."""

from __future__ import annotations

import argparse
import json
import math

from mptune.cli import _arguments
from mptune.space import Space
from mptune.specfile import Choice, SpecFile

EXAMPLES = """\
examples:
  mptune validate search_spaces/quickstart.yaml
  mptune validate spec.yaml --set training.budget_tokens=2e6
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_spec(parser)
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    file = SpecFile.read(arguments.spec, arguments.overrides)
    spec = file.validate()
    Space(file).arms()
    found = {name: _words(dimension) for name, dimension in file.dimensions.items()}
    if arguments.json:
        print(json.dumps({"valid": True, "name": spec.name, "dimensions": found}, indent=2))
        return 0
    print(f"{arguments.spec} is valid: {spec.search.trials} trials over {len(found)} dimensions")
    for name, words in found.items():
        print(f"  {name}: {words}")
    return 0


def _words(dimension: object) -> str:
    if isinstance(dimension, Choice):
        return f"one of {', '.join(str(label) for label in dimension.labels)}"
    low, high = dimension.low, dimension.high  # type: ignore[attr-defined]
    log = ", log scale" if dimension.log else ""  # type: ignore[attr-defined]
    return f"{_number(low)} to {_number(high)}{log}"


def _number(value: float) -> str:
    return str(int(value)) if math.floor(value) == value else f"{value:g}"
