"""The command line: one file per command, each with `EXAMPLES`, `add_arguments` and `run`.

Command modules are imported only when used, so that `mptune --help` and `mptune validate` stay
fast and need neither torch nor ray.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from mptune import __version__
from mptune.errors import InputError, MptuneError, did_you_mean

COMMANDS = {
    "init": "write a commented spec for your own data",
    "validate": "check a spec fully, in under a second",
    "data": "show the data of a spec and warn about problems, before any training",
    "search": "search policies and sizes; the same command again resumes",
    "compare": "compare named arms over several seeds",
    "launch": "run a search on Ray, Kubernetes or Slurm, and follow it",
    "score": "score masked-LM checkpoints on text, or compare two",
    "status": "show the state of a search",
    "stop": "stop a running search; it can be resumed",
    "logs": "show the log of one trial",
    "fsck": "check a run directory against its storage, and repair it",
    "report": "write the report and print the ranking",
    "bundle": "pack the evidence behind a report into one file",
    "replay": "recompute every number of a bundled report",
    "best": "print the recommended policy, or export it",
    "verify": "check the estimator where the answer is known",
    "impute": "fill a table's missing values with a trained model",
    "list": "list policies, model families, data modalities or launchers",
    "schema": "print the JSON schema of a spec, for completion in editors",
    "policy": "show what a mask policy does, with a picture",
}

DESCRIPTION = """\
Which mask rate should masked pre-training use? mptune searches mask-rate policies together with
model sizes, scores every trial by its accumulated log-marginal-likelihood estimate with a standard
error, and recommends a policy and a model size, with the uncertainty."""

EPILOG = """\
examples:
  mptune search search_spaces/quickstart.yaml       run the quickstart (5 minutes on 2 cores)
  mptune init mydata && mptune validate mydata/spec.yaml
  mptune list policies

exit codes: 0 done, 2 your input is wrong, 3 no usable result, 130 interrupted (can be resumed)
"""


class _Parser(argparse.ArgumentParser):
    """Report a wrong argument in one line with exit code 2, and suggest the nearest command."""

    def error(self, message: str) -> None:  # type: ignore[override]
        hint = ""
        if "invalid choice" in message:
            word = message.split("'")[1]
            hint = did_you_mean(word, COMMANDS)
            message = f"no command {word!r}; commands: {', '.join(COMMANDS)}"
        raise InputError(f"{message}{hint}")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="mptune", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"mptune {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, formatter_class=raw, add_help=False)
    return parser


def _command_parser(name: str) -> argparse.ArgumentParser:
    module = import_module(f"mptune.cli.{name}")
    parser = _Parser(
        prog=f"mptune {name}",
        description=module.__doc__,
        epilog=module.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def _run_command(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        _parser().parse_args(arguments or ["--help"])
    known, rest = _parser().parse_known_args(arguments[:1])
    parsed = _command_parser(known.command).parse_args([*rest, *arguments[1:]])
    return int(import_module(f"mptune.cli.{known.command}").run(parsed) or 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. An error is printed as one line per problem."""
    try:
        return _run_command(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return error.exit_code
    except MptuneError as error:
        print(f"mptune: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mptune: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
