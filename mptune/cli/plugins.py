"""Commands that show plugins: which there are, and what a mask policy does."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from mptune import plugins
from mptune.cli._command import JSON, argument, as_text, command, option, path, trial_directory
from mptune.errors import InputError, did_you_mean
from mptune.paths import write_aside
from mptune.spec.schema import PLUGIN_SECTIONS, SearchSpec, build, nested
from mptune.spec.source import SpecFile, plain, plugin_problems, read_plugin


@command(
    argument(
        "group",
        choices=[*sorted(plugins.GROUPS), "keys"],
        metavar="GROUP",
        help=f"{', '.join(plugins.GROUPS)}, keys",
    ),
    argument("section", nargs="?", metavar="SECTION", help="of keys: a section or a key's name"),
    JSON,
)
def run_list(group: str, section: str | None, as_json: bool) -> None:
    """List the plugins that a spec can use, or the keys of a spec, with ranges and defaults.

    examples:
      mptune list policies
      mptune list families --json
      mptune list keys search.sampler
      mptune list keys width_rule
    """
    keys = _keys(section) if group == "keys" else {}
    found = keys or {name: _describe(group, name) for name in plugins.modules(group)}
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print(as_text("list", {"keys": keys, "plugins": {} if keys else found}))


def _describe(group: str, name: str) -> dict[str, Any]:
    plugin = plugins.load(group, name)
    about = inspect.cleandoc(plugin.__doc__ or "").partition("\n\nAttributes:")[0]
    return {"description": about, "parameters": _parameters(plugin)}


def _parameters(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    schema = model.model_json_schema()
    required = schema.get("required", [])
    return {
        key: {"type": _type(field), "description": field.get("description", "")}
        | ({"required": True} if key in required else {"default": field.get("default")})
        for key, field in schema["properties"].items()
        if "const" not in field
    }


def _keys(section: str | None) -> dict[str, dict[str, Any]]:
    """The keys of a spec in this section, or with this name; all without one.

    Raises:
        InputError: there is no such section or key.
    """
    known = dict(_keys_inside(SearchSpec, ""))
    for name, (group, key) in PLUGIN_SECTIONS.items():
        for kind in plugins.modules(group):
            inside = _keys_inside(plugins.load(group, kind), "")
            known |= {f"{name}.{each} ({key}: {kind})": about for each, about in inside}
    found = {k: v for k, v in known.items() if f".{section or ''}." in f"..{k.split(' ')[0]}."}
    if not found:
        parts = {part for key in known for part in key.split(" ")[0].split(".")}
        raise InputError(f"no key {section!r}{did_you_mean(section, sorted(parts))}")
    return found


def _keys_inside(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, about in _parameters(model).items():
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        annotation = fields[key].annotation
        inside = nested(annotation)
        if inside is None and get_origin(annotation) is dict:
            inside, key = nested(get_args(annotation)[1]), f"{key}.NAME"
        if inside is None:
            yield f"{prefix}{key.removesuffix('.NAME')}", about
        else:
            yield from _keys_inside(inside, f"{prefix}{key}.")


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
    path("file", "FILE|MODEL", "a spec or a `model` section; or a run, a trial or its kept model"),
    option("--vocabulary", "V", "symbols that can be predicted", 100),
    option("--length", "D", "positions per sequence", 32),
)
def run_check(file: Path, vocabulary: int, length: int) -> int:
    """Check a kept model, or each model of a file against the contract of `model.class`.

    A kept model is opened by transformers in a process without mptune, which runs code in its
    folder; log-probabilities of held-out sequences must be mptune's to 1e-5. Of a model that is not
    trained yet, on the CPU, there is one line per check; exit code 2 if one fails:

      constructor  the class can be made, twice with the same weights from torch's generator
      shape        logits of all positions, or of the masked ones, over all symbols
      numbers      logits are finite numbers
      repeats      the same call gives the same logits, in train mode after the same seed
      context      logits of a masked position depend on the other tokens
      leak         they do not depend on earlier calls or other sequences, which may show its token
      padding      they do not depend on tokens where the attention mask is 0
      gradient     a loss changes all parameters
      state        state_dict holds all that a resumed training needs

    examples:
      mptune check model.yaml      # model: {class: my_package.models:MyMaskedLM, hidden: 64}
      mptune check spec.yaml --vocabulary 8192 --length 128
      mptune check runs/mydata     # the recommended trial's, with training.keep_weights: true
    """
    from mptune.tools.check import check_folder, check_model

    if file.is_dir():
        folder, difference = check_folder(trial_directory(file))
        print(f"{folder}: opens without mptune; log p differs by at most {difference:.1g} nats")
        return 0
    spec = SpecFile.read(file)
    if "model" not in plain(spec.root):
        raise InputError(f"{file}: has no section `model`")
    probes = list(spec.probes())
    problems = [line for probe in probes for line in plugin_problems(("model",), probe)]
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    models = [probe.tree["model"] for probe in probes]
    failed = False
    for model in (m for n, m in enumerate(models) if m not in models[:n]):
        label, parameters, checks = check_model(model, vocabulary, length)
        print(f"{label}: {parameters:,} parameters with {vocabulary} symbols and length {length}")
        for name, problem in checks:
            print(f"  {name:12} {problem or 'ok'}")
            failed |= problem is not None
    return 2 if failed else 0


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
        print(as_text("policy", {"p": profile}))
        print(f"picture: {picture}")
