"""Writes the files of a report; each appears whole or not at all."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mptune.paths import RunDirectory, write_aside, write_text
from mptune.report.findings import Findings, findings
from mptune.report.model import SCHEMA_VERSION, ReportInput
from mptune.report.text import markdown


def write(report: ReportInput, paths: RunDirectory) -> list[Path]:
    """Write report.json, report.md, figures/*.png and report.html; returns their paths."""
    from mptune.report.figures import draw
    from mptune.report.html import page

    figures = draw(report)
    images = [paths.report / "figures" / f"{figure.name}.png" for figure in figures]
    for figure, image in zip(figures, images, strict=True):
        with write_aside(image) as aside:
            aside.write_bytes(figure.png)
    captions = [(f"figures/{figure.name}.png", figure.caption) for figure in figures]
    write_text(paths.report_json, as_json(report))
    write_text(paths.report_md, markdown(report, captions))
    write_text(paths.report_html, page(report, figures))
    return [paths.report_html, paths.report_md, paths.report_json, *images]


def as_json(report: ReportInput) -> str:
    """Input and findings as strict JSON: a number that is not finite becomes null."""
    found = findings(report)
    value = {
        "schema_version": SCHEMA_VERSION,
        "study": report.study,
        "recommended": _recommended(found),
        "ranking": [
            {
                "place": row.place,
                "trial": row.trial.number,
                "label": row.trial.label,
                "nats_per_token": row.nats_per_token,
                "half_width": row.half_width,
                "bits_per_byte": row.bits_per_byte,
            }
            for row in found.ranked
        ],
        "findings": {
            "headline": found.headline,
            "recommendation": found.recommendation,
            "verdict_title": found.verdict_title,
            "verdict": found.verdict_word,
            "verdict_label": found.verdict_label,
            "verdict_words": found.verdict,
            "certainty": found.certainty,
            "cost": found.cost,
            "flips": [{**asdict(flip), "disagree": flip.disagree} for flip in found.flips],
            "checks": [asdict(check) for check in found.checks],
        },
        "input": report.model_dump(mode="python"),
    }
    return json.dumps(_strict(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _recommended(found: Findings) -> dict[str, Any] | None:
    if found.choice is None:
        return None
    return {
        "policy": found.choice.policy,
        "policy_words": found.choice.policy_words,
        "model_words": found.choice.model_words,
        "best_trial": found.recommended.trial.number if found.recommended else None,
    }


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
