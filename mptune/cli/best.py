"""Print the recommended policy of a finished search, or export it as YAML."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mptune.cli import _arguments

EXAMPLES = """\
examples:
  mptune best runs/quickstart
  mptune best runs/quickstart --export policy.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the policy as YAML")
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    import yaml

    from mptune.search.run import Run

    found = Run.open(arguments.run_dir)
    best = found.best()
    recommended = {"policy": found.export_policy(arguments.export), "model": best.model}
    if arguments.json:
        lml = best.result.lml.model_dump(mode="json") if best.result else None
        print(json.dumps({**recommended, "trial": best.number, "lml": lml}))
        return 0
    print(f"trial {best.number}: {best.label}, {best.nats_per_token:.4f} nats/token")
    print(yaml.safe_dump(recommended, sort_keys=False), end="")
    return 0
