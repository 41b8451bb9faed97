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

    from mptune.report.findings import search_certainty
    from mptune.report.language import language
    from mptune.search.run import Run

    found = Run.open(arguments.run_dir)
    best, selection = found.best(), found.selection()
    recommended = {"policy": found.export_policy(arguments.export), "model": best.model}
    if arguments.json:
        lml = best.result.lml.model_dump(mode="json") if best.result else None
        candidate = selection.candidate(best.number) if selection else None
        sure = candidate.model_dump(mode="json") if candidate else None
        print(json.dumps({**recommended, "trial": best.number, "lml": lml, "selection": sure}))
        return 0
    scope = f", {best.result.lml.scope}" if best.result and best.result.lml.scope else ""
    print(f"trial {best.number}: {best.label}, {best.nats_per_token:.4f} nats/token{scope}")
    for words in search_certainty(selection, language()) if selection else ():
        print(words)
    print(yaml.safe_dump(recommended, sort_keys=False), end="")
    return 0
