"""The recommended policy of a finished search; --export writes it for use elsewhere."""

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

    from mptune.paths import write_text
    from mptune.search.evidence import recommended, stored_spec

    run_directory = _arguments.existing_run(arguments.run_dir)
    spec = stored_spec(run_directory)
    best = recommended(run_directory, spec)
    assert best.spec is not None
    assert best.result is not None
    policy = best.result.learned_policy or best.spec.policy
    found = {"policy": policy, "model": best.spec.model}
    if arguments.export:
        head = f"# {best.label}: trial {best.number} of {spec.name}, by accumulated LML estimate\n"
        write_text(arguments.export, head + yaml.safe_dump(policy, sort_keys=False))
    score = best.result.lml
    if arguments.json:
        print(json.dumps({**found, "trial": best.number, "lml": score.model_dump(mode="json")}))
        return 0
    print(f"trial {best.number}: {best.label}, {score.nats_per_token:.4f} nats/token")
    print(yaml.safe_dump(found, sort_keys=False), end="")
    return 0
