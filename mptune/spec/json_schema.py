"""The JSON schema of a spec file: editors complete and check keys with it.

pydantic writes the schema of the sections and of every plugin; added here are the plugins that a
plugin section may name, and where a dimension may take the place of a value.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mptune import plugins
from mptune.spec.schema import MODEL_KEYS, PLUGIN_SECTIONS, SearchSpec

Schema = dict[str, Any]

OF_THE_KEY = ("description", "default", "affects_results", "free_on_resume", "searchable")
"""Keywords that describe a key of the spec, whether its value is a dimension or not."""


def json_schema() -> Schema:
    """JSON schema (draft 2020-12) of a spec file, installed plugins included.

    Every file that `SpecFile.validate` accepts is valid. Misspelt keys and wrong types are not;
    rules between several keys, and the values of arms, are not checked.
    """
    classes = {
        section: [plugins.load(group, name) for name in plugins.modules(group)]
        for section, (group, _) in PLUGIN_SECTIONS.items()
    }
    models: list[type[BaseModel]] = [
        SearchSpec,
        *(model for found in classes.values() for model in found),
    ]
    references, collected = models_json_schema([(model, "validation") for model in models])
    defs: Schema = _tidy(collected["$defs"])
    for section, (_, key) in PLUGIN_SECTIONS.items():
        options = [references[model, "validation"] for model in classes[section]]
        for option in options:
            plugin = defs[_target(option)]
            names = {*MODEL_KEYS} & {*plugin["properties"]} or {key}
            plugin["required"] = sorted({*names, *plugin.get("required", ())})
        defs[section] = {"anyOf": options}

    spec: Schema = defs.pop(_target(references[SearchSpec, "validation"]))
    free = {"type": "object"}
    defs["arm"] = free | {
        "properties": {
            # The first option is for completion: an arm may change a part of a section only.
            name: {"anyOf": [{"$ref": f"#/$defs/{name}"}, free]} if name in PLUGIN_SECTIONS else {}
            for name in spec["properties"]
        },
        "additionalProperties": False,
    }
    defs["float_range"] = _range("float", {"type": "number"})
    defs["int_range"] = _range("int", {"type": "integer"})
    done: set[str] = set()
    for name, value in spec["properties"].items():
        if value.get("searchable"):
            spec["properties"][name] = _searchable(value, defs, done)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **spec, "$defs": defs}


def _target(reference: Schema) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _tidy(schema: Any) -> Any:
    """Without pydantic's titles and sections' defaults; `{"see": NAME}` becomes a reference."""
    if isinstance(schema, list):
        return [_tidy(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("see"), str):
        kept = {key: value for key, value in schema.items() if key in OF_THE_KEY}
        return {"$ref": f"#/$defs/{schema['see']}", **kept}
    return {
        key: _tidy(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
        and not (key == "default" and "$ref" in schema)
    }


def _range(kind: str, number: Schema) -> Schema:
    ends = {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
    return {
        "description": "a dimension: numbers from low to high",
        "type": "object",
        "properties": {
            kind: {"description": "[low, high], both included", **ends},
            "log": {"description": "search the logarithm", "type": "boolean"},
            "step": {"description": "grid of this width", **number, "exclusiveMinimum": 0},
        },
        "required": [kind],
        "additionalProperties": False,
    }


def _searchable(schema: Schema, defs: Schema, done: set[str]) -> Schema:
    """The schema of a value that may be a dimension, as may everything inside it."""
    inside = _inside(schema, defs, done)
    about = {key: inside.pop(key) for key in OF_THE_KEY if key in inside}
    choice = {
        "type": "object",
        "properties": {"choice": {"type": "array", "items": inside, "minItems": 1}},
        "required": ["choice"],
        "additionalProperties": False,
    }
    numbers = _types(inside, defs)
    ranges = ["int_range"] if numbers & {"integer", "number"} else []
    ranges += ["float_range"] if "number" in numbers else []
    options = [inside, choice, *({"$ref": f"#/$defs/{name}"} for name in ranges)]
    return {**about, "anyOf": options}


def _inside(schema: Schema, defs: Schema, done: set[str]) -> Schema:
    """The schema with dimensions allowed for the parts of its value."""
    changed = dict(schema)
    if "$ref" in schema and (name := _target(schema)) not in done:
        done.add(name)
        defs[name] = _inside(defs[name], defs, done)
    if "anyOf" in schema:
        changed["anyOf"] = [_inside(option, defs, done) for option in schema["anyOf"]]
    if "properties" in schema:
        changed["properties"] = {
            key: value
            if "const" in value or value.get("searchable") is False
            else _searchable(value, defs, done)
            for key, value in schema["properties"].items()
        }
    if "prefixItems" in schema:
        changed["prefixItems"] = [_searchable(item, defs, done) for item in schema["prefixItems"]]
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            changed[key] = _searchable(schema[key], defs, done)
    return changed


def _types(schema: Schema, defs: Schema) -> set[str]:
    """The JSON types of a value, through references and alternatives."""
    found = {schema["type"]} if isinstance(schema.get("type"), str) else set()
    if "$ref" in schema and _target(schema) not in PLUGIN_SECTIONS:
        found |= _types(defs[_target(schema)], defs)
    return found.union(*(_types(option, defs) for option in schema.get("anyOf", ())))
