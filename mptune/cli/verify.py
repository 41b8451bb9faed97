"""The command that checks the estimator."""

from __future__ import annotations

import sys
from dataclasses import asdict

from rich.console import Console
from rich.progress import Progress

from mptune.cli._command import JSON, command, flag, option, show
from mptune.errors import InputError
from mptune.report.document import finite


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
    show(finite({"passed": not found.failed, **asdict(found)}), as_json, "verify.txt")
    for check in found.failed:
        print(f"mptune: failed: {check.name}: {check.words}", file=sys.stderr)
    return 3 if found.failed else 0
