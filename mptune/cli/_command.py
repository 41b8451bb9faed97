"""Commands as functions, and the arguments that several commands share."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mptune.errors import InputError, did_you_mean, plural
from mptune.launch.base import Launcher
from mptune.paths import RunDirectory, TrialDirectory
from mptune.spec.source import read_plugin

if TYPE_CHECKING:
    from jinja2 import Template


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line with exit code 2, and suggests the nearest command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> None:  # type: ignore[override]
        if wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            word, known = wrong[1], wrong[2].replace("'", "")
            if "argument COMMAND" in message:
                message = f"no command {word!r}; commands: {known}"
            message += did_you_mean(word, known.split(", "))
        raise InputError(message)


Argument: TypeAlias = tuple[tuple[str, ...], dict[str, Any]]
"""Names and options of `add_argument`."""


def argument(*names: str, **options: Any) -> Argument:
    """One argument of a command; the options are those of `add_argument`."""
    return names, options


def flag(name: str, meaning: str) -> Argument:
    """An option without a value."""
    return argument(name, action="store_true", help=meaning)


def path(name: str, metavar: str, meaning: str) -> Argument:
    """A file or a folder."""
    return argument(name, type=Path, metavar=metavar, help=meaning)


def option(
    name: str, metavar: str, meaning: str, default: Any, kind: Callable[[str], Any] | None = None
) -> Argument:
    """An option with a default, of the default's type unless `kind` parses it."""
    return argument(
        name,
        type=kind or type(default),
        default=default,
        metavar=metavar,
        help=f"{meaning}; default {default}",
    )


@dataclass(frozen=True)
class Command:
    """A function as a command: its docstring is the help, its parameters are the arguments.

    A call parses a command line and returns the exit code.
    """

    run: Callable[..., int | None]
    arguments: tuple[Argument, ...]

    def __call__(self, name: str, line: Sequence[str]) -> int:
        description, _, examples = inspect.cleandoc(self.run.__doc__ or "").partition("examples:\n")
        parser = Parser(prog=name, description=description, epilog=f"examples:\n{examples}")
        for names, options in self.arguments:
            parser.add_argument(*names, **options)
        return self.run(**vars(parser.parse_args(line))) or 0


def command(*arguments: Argument) -> Callable[[Callable[..., int | None]], Command]:
    """Make a function a command with these arguments."""
    return lambda run: Command(run, arguments)


def _language(code: str) -> str:
    """Check the language now, not after hours of search."""
    from mptune.report.language import language

    return language(code).code


RUN_DIR = path("run_dir", "RUN_DIR", "a search's run directory")
JSON = argument("--json", dest="as_json", action="store_true", help="print the result as JSON")
LANG = argument(
    "--lang",
    default="en",
    type=_language,
    metavar="CODE",
    help="language of the report: en (default), ja",
)
SPEC = path("spec", "SPEC", "the search spec, a YAML file")
OVERRIDES = argument(
    "--set",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    dest="overrides",
    help="change one value of the spec, e.g. --set training.budget_tokens=2e6 (repeatable)",
)
WHERE = (
    path("--on", "PROFILE", "a launcher profile: launchers/ray.yaml"),
    argument(
        "--address",
        metavar="HOST:PORT",
        help="an existing Ray cluster, or auto; default: start Ray on this machine",
    ),
)


def address_of(on: Path | None, address: str | None) -> str | None:
    """The Ray cluster that the arguments name, or None.

    Raises:
        InputError: the profile is wrong.
    """
    if address or on is None:
        return address
    launcher: Launcher = read_plugin(on, "launchers", "kind")
    return launcher.ray_address()


def trial_directory(model: Path) -> Path:
    """The directory of a trial: itself, that of a kept model, or of a run's recommended trial.

    Raises:
        InputError: there is no such directory.
    """
    if not model.is_dir():
        raise InputError(f"{model}: no such directory; give a run's or a trial's")
    if RunDirectory(model).resolved.exists():
        from mptune.search.run import Run

        run = Run.open(model)
        return run.trial_directory(run.best()).root
    is_kept = TrialDirectory(model.parent).module.exists() and (model / "config.json").exists()
    return model.parent if is_kept else model


def show(found: Any, as_json: bool, block: str) -> None:
    """Print a result as JSON, or as text by a block of `output.txt`, which has its values."""
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print(as_text(block, found))


def as_text(block: str, values: Mapping[str, Any]) -> str:
    """The text of a block, in which `x|f(".2f")` formats numbers as an f-string does."""
    template = _output()
    return "".join(template.blocks[block](template.new_context(dict(values)))).rstrip()


@cache
def _output() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Imports scipy, which takes as long as all else that a command needs.
    from mptune.analysis.intervals import half_width
    from mptune.report.formatting import about, count

    environment = Environment(
        loader=PackageLoader("mptune.cli", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Names that users give cannot break a table.
        finalize=lambda value: str(value).replace("¦", "|").replace("\n", " "),
    )
    environment.filters |= {"f": number, "columns": columns, "half_width": half_width}
    environment.filters |= {"about": about, "count": count, "plural": plural}
    return environment.get_template("output.txt")


def number(value: float | None, form: str) -> str:
    """A number as in an f-string; a dash if it is not known, or NaN."""
    return "–" if value is None or value != value else format(value, form)


def columns(text: str) -> str:
    """Align the cells of a table, which `¦` separates: the first left, the others right.

    A line that begins with `¦` continues the line above it, if there is one.
    """
    rows = text.strip().replace("\n¦", "¦").splitlines()
    cells = [line.split("¦") for line in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        numbers = zip(others, widths[1:], strict=True)
        line = [first.ljust(widths[0]), *(text.rjust(width) for text, width in numbers)]
        lines.append("  ".join(line).rstrip())
    return "\n".join([*lines, ""])
