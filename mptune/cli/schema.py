"""Print the JSON schema of a spec, with which editors complete keys and mark mistakes."""

from __future__ import annotations

import argparse
import json

from mptune.spec.json_schema import json_schema

EXAMPLES = """\
examples:
  mptune schema > spec.schema.json
  # then, as the first line of a spec, for editors with a YAML language server:
  # yaml-language-server: $schema=spec.schema.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments: the schema always includes all installed plugins."""


def run(arguments: argparse.Namespace) -> int:
    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))
    return 0
