"""report.json: its contents, and its JSON schema (`python -m mptune.report.document` prints it)."""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from mptune.analysis.intervals import lml_half_width
from mptune.analysis.results import Report
from mptune.report.findings import Conclusions, findings
from mptune.spec.schema import describe_fields
from mptune.trial import Message

SCHEMA_VERSION = 2
"""Version of report.json; raised when a key changes its meaning or is removed."""


class Recommended(Message):
    """What to pre-train with.

    Attributes:
        policy: as in a spec.
        best_trial: number of the trial that the search recommends; None without a search.
    """

    policy: dict[str, Any]
    policy_label: str
    size_label: str
    best_trial: int | None


class RankedTrial(Message):
    """A finished trial in its place.

    Attributes:
        place: 1 is the best.
        trial: its number.
        label: policy and size in words.
        nats_per_token: accumulated LML estimate; higher is better.
        half_width: of its 95 % interval over new held-out sequences, nats per token.
        bits_per_byte: code length of text; lower is better.
    """

    place: int
    trial: int
    label: str
    nats_per_token: float
    half_width: float
    bits_per_byte: float | None


class Document(Message):
    """The whole of report.json. A number that is not finite is null.

    Attributes:
        recommended: null when nothing has finished.
        ranking: finished trials, best first.
        findings: in English, whatever language the page has.
        input: everything that the report is made from.
    """

    schema_version: int
    study: str
    recommended: Recommended | None
    ranking: tuple[RankedTrial, ...]
    findings: Conclusions
    input: Report


def document(report: Report) -> Document:
    """The contents of report.json."""
    found = findings(report)
    recommended = found.choice and Recommended(
        policy=found.choice.policy,
        policy_label=found.choice.policy_label,
        size_label=found.choice.size_label,
        best_trial=found.recommended.number if found.recommended else None,
    )
    return Document(
        schema_version=SCHEMA_VERSION,
        study=report.study,
        recommended=recommended,
        ranking=tuple(
            RankedTrial(
                place=place,
                trial=trial.number,
                label=trial.label,
                nats_per_token=trial.nats_per_token,
                half_width=lml_half_width(trial.require_result().lml),
                bits_per_byte=trial.require_result().lml.bits_per_byte,
            )
            for place, trial in enumerate(found.ranked, start=1)
        ),
        findings=found,
        input=report,
    )


def as_json(report: Report) -> str:
    """report.json as strict JSON; see `document`."""
    value = finite(document(report).model_dump(mode="python"))
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """JSON values with None in place of an infinite number or NaN."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# --- schema ------------------------------------------------------------------------------------


class _Schema(GenerateJsonSchema):
    """Describes fields as the docstring of their class does under `Attributes:`.

    A number may be null: those that are not finite are written as null.
    """

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"type": ["number", "null"]}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        describe_fields(made, schema["cls"])
        return made

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        made = super().dataclass_schema(schema)
        describe_fields(made, schema["cls"])
        return made


def schema() -> str:
    """The JSON schema of report.json (draft 2020-12), from the model."""
    made = Document.model_json_schema(mode="serialization", schema_generator=_Schema)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"report.json of mptune, version {SCHEMA_VERSION}",
    }
    return json.dumps({**made, **head}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
