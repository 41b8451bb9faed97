"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from mptune.launch.base import Launcher
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
        "--run-dir", type=Path, metavar="DIR", help="folder of the run; default runs/NAME"
    )
    add_where(parser)
    parser.add_argument(
        "--local", action="store_true", help="run trials in this process, without Ray"
    )
    parser.add_argument("--fresh", action="store_true", help="delete the trials and start over")
    parser.add_argument("--yes", action="store_true", help="with --fresh: do not ask")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and stop")
    add_json(parser)
    add_lang(parser)


def add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on", type=Path, metavar="PROFILE", help="a launcher profile, e.g. launchers/ray.yaml"
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="an existing Ray cluster, or auto; default: start Ray on this machine",
    )


def address(arguments: argparse.Namespace) -> str | None:
    """The Ray cluster that the arguments name, or None.

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
    """Check the language now, not after hours of search."""
    from mptune.report.language import language

    return language(code).code


def add_run_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a search's run directory")
