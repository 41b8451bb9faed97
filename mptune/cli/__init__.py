"""The command line: every command is one function, in a file by topic.

The files are imported only when used, so that `mptune --help` and `mptune validate` stay fast and
need neither torch nor ray.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import import_module

from mptune import __version__
from mptune.cli._command import Command, Parser
from mptune.errors import InputError, MptuneError, is_disk_full, one_line

COMMANDS = {
    "demo": ("runs", "run the quickstart search: no data, no spec, 5 minutes on 2 cores"),
    "init": ("specs", "write a commented spec for your own data"),
    "validate": ("specs", "check a spec fully, and say what it will take"),
    "data": ("specs", "show the data of a spec and warn about problems, before any training"),
    "plan": ("specs", "predict time, memory and disk from a few seconds of training"),
    "search": ("runs", "search policies and sizes; the same command again resumes"),
    "compare": ("runs", "compare named arms over several seeds"),
    "reproduce": ("runs", "rerun claims that others have published, in miniature"),
    "launch": ("launch", "run a search on Ray, Kubernetes or Slurm, and follow it"),
    "score": ("score", "score masked-LM checkpoints on text, or compare two"),
    "status": ("watch", "show the state of a search"),
    "explain": ("watch", "tell why each trial was run, and why the search ended"),
    "stop": ("watch", "stop a running search; it can be resumed"),
    "logs": ("watch", "show the log of one trial"),
    "fsck": ("evidence", "check a run directory against its storage, and repair it"),
    "report": ("report", "write the report and print the ranking"),
    "bundle": ("evidence", "pack the evidence behind a report into one file"),
    "replay": ("evidence", "recompute every number of a bundled report"),
    "best": ("report", "print the recommended policy, or export it"),
    "verify": ("score", "check the estimator where the answer is known"),
    "impute": ("impute", "fill a table's missing values with a trained model"),
    "check": ("plugins", "check a model class of your own, or a kept model in transformers"),
    "list": ("plugins", "list policies, model families, ..., or the keys of a spec"),
    "schema": ("specs", "print the JSON schema of a spec, for completion in editors"),
    "policy": ("plugins", "show what a mask policy does, with a picture"),
}
"""Command -> (file, summary). Its function has the name `run_COMMAND`."""

DESCRIPTION = """\
Which mask rate should masked pre-training use? mptune searches mask-rate policies together with
model sizes, scores every trial by its accumulated log-marginal-likelihood estimate with a standard
error, and recommends a policy and a model size, with the uncertainty."""

EPILOG = """\
examples:
  mptune demo                                       run the quickstart (5 minutes on 2 cores)
  mptune init mydata && mptune validate mydata/spec.yaml
  mptune list policies

exit codes: 0 done, 2 your input is wrong, 3 no usable result, 70 a mistake of mptune,
130 interrupted (can be resumed)
"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="mptune", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"mptune {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def _run_command(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        _parser().parse_args(arguments or ["--help"])
    name = _parser().parse_known_args(arguments[:1])[0].command
    module = import_module(f"mptune.cli.{COMMANDS[name][0]}")
    command: Command = getattr(module, f"run_{name}")
    return command(f"mptune {name}", arguments[1:])


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
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        about = error.filename2 or error.filename
        print(f"mptune: {f'{about}: ' if about else ''}{error.strerror or error}", file=sys.stderr)
        return 3
    except Exception as error:
        if is_disk_full(error):  # as the database says it
            print(
                "mptune: the disk is full: make room, then the same command continues",
                file=sys.stderr,
            )
            return 3
        handle, file = tempfile.mkstemp(prefix="mptune-", suffix=".txt")
        with open(handle, "w", encoding="utf-8") as out:
            traceback.print_exc(file=out)
        print(f"mptune: a mistake of mptune: {one_line(error)}; see {file}", file=sys.stderr)
        return 70
    except KeyboardInterrupt:
        print("mptune: interrupted", file=sys.stderr)
        return 130
