"""Commands that show plugins: which there are, and what a mask policy does."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from mptune import plugins
from mptune.cli._command import JSON, argument, as_text, command, option, path
from mptune.errors import InputError
from mptune.paths import write_aside
from mptune.spec.schema import build
from mptune.spec.source import read_plugin


@command(
    argument(
        "group", choices=sorted(plugins.GROUPS), metavar="GROUP", help=", ".join(plugins.GROUPS)
    ),
    JSON,
)
def run_list(group: str, as_json: bool) -> None:
    """List the plugins that a spec can use, with parameters, ranges and sources.

    examples:
      mptune list policies
      mptune list families --json
    """
    found = {name: _describe(group, name) for name in plugins.modules(group)}
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for name, entry in found.items():
        print(name)
        for line in entry["description"].splitlines():
            print(f"    {line}".rstrip())
        for key, parameter in entry["parameters"].items():
            default = "required" if "required" in parameter else f"default {parameter['default']}"
            about = f"  {parameter['description']}" if parameter["description"] else ""
            print(f"      {key}: {parameter['type']}; {default}{about}")
        print()


def _describe(group: str, name: str) -> dict[str, Any]:
    plugin = plugins.load(group, name)
    schema = plugin.model_json_schema()
    required = schema.get("required", [])
    return {
        "description": inspect.cleandoc(plugin.__doc__ or ""),
        "parameters": {
            key: {"type": _type(field), "description": field.get("description", "")}
            | ({"required": True} if key in required else {"default": field.get("default")})
            for key, field in schema["properties"].items()
            if "const" not in field
        },
    }


def _type(field: dict[str, Any]) -> str:
    """The type and its range, e.g. `number in (0, 1]`."""
    options = [o for o in field.get("anyOf", ()) if o.get("type") != "null"]
    if options:
        return " or ".join(_type(o) for o in options)
    if "enum" in field:
        return " | ".join(str(v) for v in field["enum"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = ", ".join(f"{sign} {field[key]}" for key, sign in signs.items() if key in field)
    return f"{field.get('see') or field.get('type', 'value')} {bounds}".rstrip()


@command(
    argument("action", choices=["show"], metavar="show", help="the only action"),
    path("policy", "POLICY", "a policy, a YAML file"),
    option("--length", "D", "positions per sequence", 128),
    path("--model", "FILE", "model section as a YAML file, for the cost; default: a small BERT"),
    option("--vocabulary", "V", "vocabulary size, for the cost", 8192),
    path("--picture", "PNG", "file of the picture; default POLICY with the suffix .png"),
    JSON,
)
def run_policy(
    action: str,
    policy: Path,
    length: int,
    model: Path | None,
    vocabulary: int,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Show a mask policy: q(M | s) over training, ω(M), mean rate and cost, with a picture.

    M is the number of masked positions, s the training progress, q(M | s) the distribution from
    which the policy draws M, and ω(M) the share of mask count M in the expected training loss.

    examples:
      mptune policy show policy.yaml
      mptune policy show policy.yaml --length 512 --model model.yaml --vocabulary 30522
      mptune policy show policy.yaml --picture policy.png --json
    """
    from mptune.report.policy import Profile

    for name, value in (("length", length), ("vocabulary", vocabulary)):
        if value < 1:
            raise InputError(f"--{name} {value}: must be at least 1")
    masks = read_plugin(policy, "policies", "kind")
    family = build("model", {"family": "bert", "width": 128, "depth": 2})
    if model is not None:
        family = read_plugin(model, "families", "family")
    profile = Profile.of(masks, family, length, vocabulary)
    picture = picture or policy.with_suffix(".png")
    try:
        with write_aside(picture) as aside:
            aside.write_bytes(profile.png())
    except OSError as error:
        raise InputError(f"--picture {picture}: cannot be written: {error.strerror}") from None
    if as_json:
        print(json.dumps({**profile.as_json(), "picture": str(picture)}, ensure_ascii=False))
    else:
        print(as_text("policy.txt", {"p": profile}))
        print(f"picture: {picture}")
