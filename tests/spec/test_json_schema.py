"""The JSON schema accepts every ready spec, dimensions included, and no misspelt key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mptune.cli import main
from mptune.spec.json_schema import json_schema
from mptune.spec.source import SpecFile, parse_yaml, plain

ROOT = Path(__file__).parents[2]
SPECS = [
    *sorted(p for p in (ROOT / "search_spaces").glob("*.yaml") if p.stem != "claims"),
    ROOT / "mptune/cli/spec_template.yaml",
]

VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def read(text: str) -> Any:
    return plain(parse_yaml(text, "spec.yaml"))


def test_it_is_a_schema() -> None:
    VALIDATOR.check_schema(VALIDATOR.schema)


@pytest.mark.parametrize("path", SPECS, ids=[p.stem for p in SPECS])
def test_ready_specs_are_valid(path: Path) -> None:
    VALIDATOR.validate(read(path.read_text("utf-8")))


def test_a_resolved_spec_is_valid() -> None:
    file = SpecFile.read(ROOT / "search_spaces" / "quickstart.yaml")
    VALIDATOR.validate(json.loads(json.dumps(file.resolved(file.validate()))))


SPEC = """
name: demo
data: {kind: text, source: [a.txt, b.txt], length: 64}
model: {family: bert, size: {choice: [1M, 2e6]}}
policy:
  choice:
    - {kind: fixed, rate: {float: [0.1, 0.5], step: 0.1}, structure: span}
    - {kind: fixed, rate: 0.3, structure: {kind: span, p: {float: [0.1, 0.4]}}}
    - {kind: linear, start: {kind: beta, a: 2, b: {choice: [1, 2]}}, end: {kind: beta, a: 1, b: 1}}
    - {kind: mixture, components: [{weight: {float: [0.1, 1]}, policy: 0.2}]}
training:
  budget_tokens: 1e6
  batch_size: {int: [8, 64], log: true}
  optimizer: {learning_rate: {float: [1e-4, 1e-2], log: true}, betas: [0.9, {choice: [0.98, 0.99]}]}
search: {arms: {short: {policy: {kind: beta}, training: {batch_size: 8}}}}
resources: {by_size: {100M: {workers: 4}}}
"""


def test_every_form_of_a_dimension_is_valid() -> None:
    VALIDATOR.validate(read(SPEC))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("resources:", "resource:"),
        ("length: 64", "lenght: 64"),
        ("kind: text", "kind: txet"),
        ("rate: 0.3", "rat: 0.3"),
        ("p: {float", "q: {float"),
        ("step: 0.1", "steps: 0.1"),
        ("weight:", "wieght:"),
        ("float: [1e-4", "flaot: [1e-4"),
        ("batch_size: {int", "batchsize: {int"),
        ("training: {batch", "trainig: {batch"),
        ("workers: 4", "worker: 4"),
        ("{int: [8, 64]", "{float: [8.5, 64]"),
        ("budget_tokens: 1e6", "budget_tokens: {choice: [1e6, 2e6]}"),
        ("length: 64", "length: {choice: [32, 64]}"),
        ("rate: 0.3", "rate: 1.3"),
        ("size: {choice: [1M", "size: {choice: [1X"),
    ],
)
def test_a_mistake_is_not_valid(old: str, new: str) -> None:
    assert old in SPEC
    assert not VALIDATOR.is_valid(read(SPEC.replace(old, new, 1)))


def test_init_writes_it_beside_the_spec(tmp_path: Path) -> None:
    assert main(["init", str(tmp_path)]) == 0
    first = (tmp_path / "spec.yaml").read_text("utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=spec.schema.json"
    written = json.loads((tmp_path / "spec.schema.json").read_text("utf-8"))
    assert written == VALIDATOR.schema


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == VALIDATOR.schema
