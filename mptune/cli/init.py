"""Write a commented spec for your own data, ready to edit and validate."""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

from mptune.errors import InputError
from mptune.paths import write_json, write_text
from mptune.spec.json_schema import json_schema

EXAMPLES = """\
examples:
  mptune init mydata            # writes mydata/spec.yaml and its schema for editors
  mptune validate mydata/spec.yaml && mptune search mydata/spec.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory",
        type=Path,
        nargs="?",
        default=Path(),
        metavar="DIR",
        help="folder for spec.yaml; default: the current folder",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing spec.yaml")


def run(arguments: argparse.Namespace) -> int:
    path = arguments.directory / "spec.yaml"
    if path.exists() and not arguments.force:
        raise InputError(f"{path} exists; --force replaces it")
    name = arguments.directory.absolute().name
    template = files("mptune.cli").joinpath("spec_template.yaml").read_text(encoding="utf-8")
    write_text(path, template.replace("NAME", _safe(name)))
    # The template names this file in its first line, for completion in editors.
    write_json(arguments.directory / "spec.schema.json", json_schema())
    print(f"wrote {path}; point data.source at your files, then: mptune validate {path}")
    return 0


def _safe(name: str) -> str:
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in name).strip("-")
    return kept[:63] or "search"
