"""The command that checks the estimator."""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.progress import Progress

from mptune.cli import _verify_text
from mptune.cli._command import JSON, command, flag, option
from mptune.errors import InputError


@command(
    flag("--quick", "fewer replications"),
    option("--seed", "N", "seed of samples and masks", 0),
    JSON,
)
def run_verify(quick: bool, seed: int, as_json: bool) -> int:
    """Check the estimator where the answer is known: exact models, and the identity.

    Every model has an exactly known log p(x). Nothing is downloaded and nothing is trained.

    examples:
      mptune verify --quick            under 20 seconds on one core
      mptune verify --seed 1           all replications, with other samples and masks
      mptune verify --json > verify.json

    exit codes: 0 every check passed, 3 a check failed (standard error names it)
    """
    from mptune.tools.verify import verify

    if seed < 0:
        raise InputError(f"--seed: {seed} is negative; a seed is 0 or more")
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("verify", total=1.0)
        found = verify(
            quick=quick,
            seed=seed,
            on_progress=lambda text, share: bar.update(task, description=text, completed=share),
        )
    if as_json:
        print(json.dumps(_verify_text.as_json(found), indent=2))
    else:
        _verify_text.show(Console(highlight=False, width=_verify_text.WIDTH), found)
    for check in found.failed:
        print(f"mptune: failed: {check.name}: {check.words}", file=sys.stderr)
    return 3 if found.failed else 0
