"""report.json holds what its schema says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mptune.analysis.results import Report
from mptune.report.document import SCHEMA_VERSION, as_json, schema

KEYS = Path(__file__).parent.parent.parent / "docs" / "report.md"


@pytest.mark.parametrize("name", ["everything", "searched", "empty"])
def test_a_report_is_valid(name: str, request: pytest.FixtureRequest) -> None:
    report: Report = request.getfixturevalue(name)
    value = json.loads(as_json(report))
    jsonschema.validate(value, json.loads(schema()))
    assert value["schema_version"] == SCHEMA_VERSION


def test_an_unknown_key_is_not_valid(searched: Report) -> None:
    value: dict[str, Any] = json.loads(as_json(searched))
    with pytest.raises(jsonschema.ValidationError, match="'extra' was unexpected"):
        jsonschema.validate({**value, "extra": 1}, json.loads(schema()))


def test_every_key_at_the_top_is_documented() -> None:
    text = KEYS.read_text(encoding="utf-8")
    made = json.loads(schema())
    keys = [*made["properties"], *made["$defs"]["Report"]["properties"]]
    assert [key for key in keys if f"`{key}`" not in text] == []
