"""Show a mask policy: q(M | s) over training, ω(M), mean rate and cost, with a picture.

M is the number of masked positions, s the training progress, q(M | s) the distribution from which
the policy draws M, and ω(M) the share of mask count M in the expected training loss.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mptune.cli import _arguments
from mptune.errors import InputError
from mptune.spec.source import read_plugin

if TYPE_CHECKING:
    from mptune.report.policy import Profile

EXAMPLES = """\
examples:
  mptune policy show policy.yaml
  mptune policy show policy.yaml --length 512 --model model.yaml --vocabulary 30522
  mptune policy show policy.yaml --picture policy.png --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["show"], metavar="show", help="the only action")
    parser.add_argument("policy", type=Path, metavar="POLICY", help="a policy, a YAML file")
    parser.add_argument(
        "--length", type=int, default=128, metavar="D", help="positions per sequence; default 128"
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="model section as a YAML file, for the cost; default: a small BERT",
    )
    parser.add_argument(
        "--vocabulary",
        type=int,
        default=8192,
        metavar="V",
        help="vocabulary size, for the cost; default 8192",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="PNG",
        help="file of the picture; default POLICY with the suffix .png",
    )
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from mptune.paths import write_aside

    profile = _profile(arguments)
    picture: Path = arguments.picture or arguments.policy.with_suffix(".png")
    try:
        with write_aside(picture) as aside:
            aside.write_bytes(profile.png())
    except OSError as error:
        raise InputError(f"--picture {picture}: cannot be written: {error.strerror}") from None
    if arguments.json:
        print(json.dumps({**profile.as_json(), "picture": str(picture)}, ensure_ascii=False))
        return 0
    print(profile.text())
    print(f"picture: {picture}")
    return 0


def _profile(arguments: argparse.Namespace) -> Profile:
    from mptune.report.policy import Profile
    from mptune.spec.schema import build

    for name in ("length", "vocabulary"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name} {getattr(arguments, name)}: must be at least 1")
    policy = read_plugin(arguments.policy, "policies", "kind")
    if arguments.model is None:
        family = build("model", {"family": "bert", "width": 128, "depth": 2})
    else:
        family = read_plugin(arguments.model, "families", "family")
    return Profile.of(policy, family, arguments.length, arguments.vocabulary)
