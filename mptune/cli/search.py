"""Search mask-rate policies and model sizes; the same command again resumes.

Optuna proposes, Ray dispatches, DeepSpeed trains, and every trial is scored by its accumulated
log-marginal-likelihood estimate on one frozen plan. A spec with a `compare` section ends with the
comparison of its arms over paired seeds. Ctrl-C stops every trial at its next step with a
checkpoint.
"""

from __future__ import annotations

import argparse

from mptune.cli import _arguments, _run

EXAMPLES = """\
examples:
  mptune search search_spaces/quickstart.yaml
  mptune search spec.yaml --run-dir runs/long --set training.budget_tokens=2e8
  mptune search spec.yaml --fresh --yes        # delete the earlier trials of this run directory
  mptune search spec.yaml --dry-run            # what would run, without running it
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_spec(parser)
    _arguments.add_run(parser)


def run(arguments: argparse.Namespace) -> int:
    return _run.execute(arguments, searching=True)
