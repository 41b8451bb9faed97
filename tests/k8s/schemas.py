"""Validates manifests as strictly as an API server with `fieldValidation=Strict`.

The schemas are Kubernetes' own OpenAPI and the CRDs of KubeRay and Kueue. They are not part of the
project: MPTUNE_K8S_SCHEMAS names their folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parent.parent.parent
DEFAULT = ROOT.parent / "shared" / "k8s-schemas"
META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
# Neither has a resource of its own in the trimmed OpenAPI's list of kinds with a group.
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"


def folder() -> Path | None:
    """The folder of the schemas on this machine, if there is one."""
    named = os.environ.get("MPTUNE_K8S_SCHEMAS")
    path = Path(named) if named else DEFAULT
    return path if (path / "kubernetes" / "definitions-trimmed.json").is_file() else None


class Refused(Exception):
    """A manifest that an API server would refuse; one line per problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a duplicate key; YAML parsers silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(k, deep=True) for k, _ in node.value]
        twice = sorted({str(k) for k in keys if keys.count(k) > 1})
        if twice:
            line = node.start_mark.line + 1
            raise Refused([f"line {line}: duplicate key {', '.join(twice)}"])
        return super().construct_mapping(node, deep)


def documents(text: str) -> list[dict[str, Any]]:
    """Every document of the text.

    Raises:
        Refused: there is no document, one is not a mapping, or a key is given twice.
    """
    found = [d for d in yaml.load_all(text, _Loader) if d is not None]
    if not found:
        raise Refused(["no document at all"])
    if any(not isinstance(d, dict) for d in found):
        raise Refused(["a document that is no mapping"])
    return found


class Schemas:
    """All schemas of a folder, by (apiVersion, kind)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def kinds(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {**self._builtin(), **self._custom()}

    @cached_property
    def _definitions(self) -> dict[str, Any]:
        text = (self.root / "kubernetes" / "definitions-trimmed.json").read_text()
        found = json.loads(text)["definitions"]
        found[QUANTITY] = {"type": ["string", "number"]}
        found[INT_OR_STRING] = {"type": ["string", "integer"]}
        return {name: _closed(d) for name, d in found.items()}

    def _builtin(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {
            (_api_version(k["group"], k["version"]), k["kind"]): {"$ref": f"#/definitions/{name}"}
            for name, d in self._definitions.items()
            for k in d.get("x-kubernetes-group-version-kind", ())
        }

    def _custom(self) -> dict[tuple[str, str], dict[str, Any]]:
        found = {}
        for path in sorted(self.root.glob("*/*.yaml")):
            spec = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]
            for version in spec["versions"]:
                key = (_api_version(spec["group"], version["name"]), spec["names"]["kind"])
                found[key] = _closed(version["schema"]["openAPIV3Schema"])
        return found

    @cache  # noqa: B019 - one per session
    def _validator(self, key: tuple[str, str]) -> Draft202012Validator:
        return Draft202012Validator({**self.kinds[key], "definitions": self._definitions})

    def problems(self, manifest: dict[str, Any]) -> Iterator[str]:
        """One line for each problem that the API server would refuse."""
        key = (str(manifest.get("apiVersion")), str(manifest.get("kind")))
        if key not in self.kinds:
            yield f"unknown kind {key[0]} {key[1]}"
            return
        for error in self._validator(key).iter_errors(manifest):
            yield f"{key[1]}.{'.'.join(str(p) for p in error.absolute_path)}: {error.message[:200]}"

    def check(self, manifests: list[dict[str, Any]]) -> None:
        """Raises Refused unless an API server accepts all of them."""
        found = [p for m in manifests for p in self.problems(m)]
        if found:
            raise Refused(found)


def _api_version(group: str, version: str) -> str:
    return f"{group}/{version}" if group else version


def _closed(schema: Any) -> Any:
    """The schema with unknown fields refused, except where it allows any field."""
    if isinstance(schema, list):
        return [_closed(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["string", "number"]}
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {k: _closed(v) for k, v in schema.items()}
    closed = {k: _closed(v) for k, v in schema.items() if k != "properties"}
    closed["properties"] = {k: _property(k, v) for k, v in properties.items()}
    if not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def _property(name: str, schema: dict[str, Any]) -> Any:
    # CRDs allow any metadata, but the API server decodes it as ObjectMeta.
    if name == "metadata" and schema.get("type") == "object" and "properties" not in schema:
        return {"$ref": f"#/definitions/{META}"}
    return _closed(schema)
