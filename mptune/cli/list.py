"""List the plugins that a spec can use, with parameters, ranges and sources."""

from __future__ import annotations

import argparse
import inspect
import json
from typing import Any

from mptune import plugins
from mptune.cli import _arguments

EXAMPLES = """\
examples:
  mptune list policies
  mptune list families --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "group", choices=sorted(plugins.GROUPS), metavar="GROUP", help=", ".join(plugins.GROUPS)
    )
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    found = {n: _describe(arguments.group, n) for n in plugins.modules(arguments.group)}
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    for name, entry in found.items():
        print(_text(name, entry))
    return 0


def _describe(group: str, name: str) -> dict[str, Any]:
    plugin = plugins.load(group, name)
    schema = plugin.model_json_schema()
    required = schema.get("required", [])
    return {
        "description": inspect.cleandoc(plugin.__doc__ or ""),
        "parameters": {
            key: _parameter(field, key in required)
            for key, field in schema["properties"].items()
            if "const" not in field
        },
    }


def _parameter(field: dict[str, Any], required: bool) -> dict[str, Any]:
    described = {"type": _type(field), "description": field.get("description", "")}
    return described | ({"required": True} if required else {"default": field.get("default")})


def _type(field: dict[str, Any]) -> str:
    """The type and its range, e.g. `number in (0, 1]`."""
    options = [o for o in field.get("anyOf", ()) if o.get("type") != "null"]
    if options:
        return " or ".join(_type(o) for o in options)
    if "enum" in field:
        return " | ".join(str(v) for v in field["enum"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    return f"{field.get('see') or field.get('type', 'value')}{_bounds(field)}"


def _bounds(field: dict[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    found = [f"{sign} {field[key]}" for key, sign in signs.items() if key in field]
    return f" {', '.join(found)}" if found else ""


def _text(name: str, entry: dict[str, Any]) -> str:
    lines = [name, *(f"    {line}".rstrip() for line in entry["description"].splitlines())]
    for key, parameter in entry["parameters"].items():
        default = "required" if "required" in parameter else f"default {parameter['default']}"
        about = f"  {parameter['description']}" if parameter["description"] else ""
        lines.append(f"      {key}: {parameter['type']}; {default}{about}")
    return "\n".join([*lines, ""])
