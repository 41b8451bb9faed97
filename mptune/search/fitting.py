"""A spec that fits the user's data, and the time that the user has."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mptune.errors import InputError
from mptune.search import preflight
from mptune.spec.source import SpecFile
from mptune.tools.propose import propose
from mptune.trial import MIN_GROUPS

MODELS = {
    0: ((32, 1), (64, 2)),
    300_000: ((64, 2), (128, 2)),
    10_000_000: ((64, 2), (128, 4)),
    300_000_000: ((128, 4), (256, 6)),
}
"""Observed training positions, from which on models have these widths and depths."""

PASSES, LEAST_POSITIONS = 10, 1e6
"""Passes over the training data of each trial, if no time is given; of small data more."""

MOST_PASSES = 40
"""More of them train on what is known already."""

ENOUGH_GROUPS = 12
"""Held-out groups that are aimed at where a tenth of all is fewer than `MIN_GROUPS`."""

MOST_HELDOUT = 0.4

MEASURED_S = 2.0
"""Seconds of training of each model for a budget of hours."""


def fitted(
    template: str, source: str, directory: Path, hours: float | None, say: Callable[[str], None]
) -> tuple[str, list[str]]:
    """A spec with the data, models and budget for a source, and lines about what it is.

    Args:
        template: a valid spec with other data.
        source: an entry of `data.source`; relative paths start from the current folder.
        directory: where the spec will lie.
        hours: of the whole search on this machine; None: some passes over the data.
        say: called with a line for each measurement.

    Raises:
        InputError: the source is missing, broken or of no known kind, or the time is too short.
    """
    data, unsure = propose(source)
    with tempfile.TemporaryDirectory(prefix="mptune-init-") as folder:
        draft = Draft(template, Path(folder, "spec.yaml"))
        report = draft.inspect(data)
        groups = [report["splits"][name]["groups"] for name in ("train", "heldout")]
        if groups[1] < MIN_GROUPS <= sum(groups) * MOST_HELDOUT:
            data["heldout"] = round(min(MOST_HELDOUT, ENOUGH_GROUPS / sum(groups)), 2)
            report = draft.inspect(data)
        train, heldout = (report["splits"][name] for name in ("train", "heldout"))
        sizes = next(s for least, s in reversed(MODELS.items()) if train["observed"] >= least)
        positions = train["sequences"] * report["length"]
        usual = passes = min(MOST_PASSES, max(PASSES, LEAST_POSITIONS / positions))
        draft.change(
            {
                "model": {"choice": [{"family": "bert", "width": w, "depth": d} for w, d in sizes]},
                "budget_tokens": _tokens(passes * positions),
                "batch_size": max(8, min(64, 1 << (train["sequences"] // 16).bit_length() >> 1)),
                "sequences": min(512, heldout["sequences"]),
            }
        )
        said = [report["description"], *(f"cannot tell: {line}" for line in unsure)]
        if hours is not None:
            plan = preflight.plan(draft.path, local=True, seconds=MEASURED_S, say=say)
            # Starting and scoring take the same with any budget.
            fixed = (plan["fixed_s"] or 0.0) / (plan["wall_s"] or 1.0)
            share = 3600 * hours / (plan["wall_s"] or 3600 * hours)
            if share <= fixed:
                raise InputError(f"--hours {hours:g}: is too short for scoring alone")
            passes = min(MOST_PASSES, passes * (share - fixed) / (1 - fixed))
            draft.change({"budget_tokens": _tokens(passes * positions)})
            took = (fixed + (1 - fixed) * passes / usual) * plan["wall_s"] / 3600
            said.append(f"about {took:.2g} h on this machine, from {MEASURED_S:g} s of each model")
        said.append(f"{passes:.2g} passes over {positions:,} training positions in each trial")
        # What follows from the template's values does not hold any more.
        about = ("score.", "training.")
        said += [f"warning: {w}" for w in report["warnings"] if not w.startswith(about)]
        SpecFile.read(draft.path).validate()
        if Path(data["source"]).is_relative_to(directory.absolute()):
            draft.change({"data": data | {"source": os.path.relpath(data["source"], directory)}})
        return draft.text, said


def _tokens(count: float) -> str:
    return f"{count:.2g}".replace("e+0", "e")


class Draft:
    """A spec that is being written."""

    def __init__(self, text: str, path: Path) -> None:
        self.text, self.path = text, path

    def change(self, values: Mapping[str, Any]) -> None:
        """Give sections (mappings), or keys of one line inside a section, other values."""
        for key, value in values.items():
            if isinstance(value, dict):
                made = yaml.safe_dump({key: value}, sort_keys=False, default_flow_style=None)
                pattern, new = rf"^{key}:.*\n(?:  .*\n)+", made
            else:
                pattern, new = rf"^  {key}: [^\s#]+", f"  {key}: {value}"
            self.text = re.sub(pattern, lambda _: new, self.text, flags=re.MULTILINE)  # noqa: B023
        self.path.write_text(self.text, encoding="utf-8")

    def inspect(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """What `mptune data inspect` finds with this data section."""
        self.change({"data": dict(data)})
        file = SpecFile.read(self.path)
        try:
            return preflight.inspect_data(file, file.validate())
        except InputError as error:
            lines = [re.sub(r"^spec.yaml:\d+: data", "--from", p) for p in error.problems]
            raise InputError(lines) from None
