"""Check the estimator where the answer is known: exact models, the identity, the founding figures.

Every model has an exactly known log p(x). Nothing is downloaded and nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mptune.cli import _arguments
from mptune.errors import InputError

if TYPE_CHECKING:
    from mptune.tools.verify import OnProgress

EXAMPLES = """\
examples:
  mptune verify --quick            under 20 seconds on one core
  mptune verify --seed 1           all replications, with other samples and masks
  mptune verify --json > verify.json

exit codes: 0 every check passed, 3 a check failed (standard error names it)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer replications")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of samples and masks; default 0"
    )
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from mptune.cli import _verify_text
    from mptune.tools.verify import verify

    if arguments.seed < 0:
        raise InputError(f"--seed: {arguments.seed} is negative; a seed is 0 or more")
    with _progress() as on_progress:
        found = verify(quick=arguments.quick, seed=arguments.seed, on_progress=on_progress)
    if arguments.json:
        print(json.dumps(_verify_text.as_json(found), indent=2))
    else:
        _verify_text.show(Console(highlight=False, width=_verify_text.WIDTH), found)
    for check in found.failed:
        print(f"mptune: failed: {check.name}: {check.words}", file=sys.stderr)
    return 3 if found.failed else 0


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A progress bar on standard error; nothing if that is not a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("verify", total=1.0)
        yield lambda text, share: bar.update(task, description=text, completed=share)
