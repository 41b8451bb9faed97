"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from mptune.errors import InputError, did_you_mean
from mptune.launch.base import Launcher
from mptune.paths import RunDirectory
from mptune.spec.source import read_plugin


def add_spec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", type=Path, metavar="SPEC", help="the search spec, a YAML file")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change one value of the spec, e.g. --set training.budget_tokens=2e6 (repeatable)",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="where everything goes; default runs/NAME"
    )
    add_where(parser)
    parser.add_argument(
        "--local", action="store_true", help="run trials in this process, without Ray"
    )
    parser.add_argument("--fresh", action="store_true", help="begin anew instead of resuming")
    parser.add_argument("--yes", action="store_true", help="with --fresh: delete what is there")
    add_json(parser)
    add_lang(parser)


def add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on", type=Path, metavar="PROFILE", help="a launcher profile, e.g. launchers/ray.yaml"
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="an existing Ray cluster, or auto; default: start one",
    )


def address(arguments: argparse.Namespace) -> str | None:
    """The Ray cluster that is meant, if one is.

    Raises:
        InputError: the profile is wrong.
    """
    if arguments.address or arguments.on is None:
        return arguments.address  # type: ignore[no-any-return]
    launcher: Launcher = read_plugin(arguments.on, "launchers", "kind")
    return launcher.ray_address()


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_lang(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lang",
        default="en",
        type=_language,
        metavar="CODE",
        help="language of the report: en (default), ja",
    )


def _language(code: str) -> str:
    """The code, if there is such a language: a search of hours must not end with a misspelt one."""
    from mptune.report.language import language

    return language(code).code


def add_run_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a search's run directory")


def existing_run(root: Path) -> RunDirectory:
    """The run directory, if it is one.

    Raises:
        InputError: there is no search in it.
    """
    run = RunDirectory(root)
    if not run.resolved.exists():
        beside = [p.name for p in root.parent.glob("*/")] if root.parent.is_dir() else []
        hint = did_you_mean(root.name, beside) if not root.is_dir() else ""
        raise InputError(f"{root}: no search in it (no {run.resolved.name}){hint}")
    return run
