"""The sections of the report below its first screen: one file each.

A section's file has `ORDER`, its place on the page, and `section`, which makes it from a `Context`
or returns None where the study has nothing for it. A new section is one new file, and its words in
`lang/`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol

from mptune.analysis.ranking import best_per_policy, policy_kind
from mptune.analysis.results import Report
from mptune.report.blocks import Section
from mptune.report.findings import Findings, findings
from mptune.report.language import Language
from mptune.trial import Trial


@dataclass(frozen=True)
class Context:
    """What a section is made from."""

    report: Report
    say: Language

    @cached_property
    def found(self) -> Findings:
        return findings(self.report, self.say)

    @property
    def ranked(self) -> tuple[Trial, ...]:
        return self.found.ranked

    @cached_property
    def _kinds(self) -> dict[str, int]:
        kinds = [policy_kind(trial) for trial in best_per_policy(self.ranked)]
        comparison = self.report.comparison
        arms = comparison.arms.values() if comparison else ()
        kinds += [policy_kind(arm[0]) for arm in arms if arm]
        return {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}

    def trial(self, number: int | None) -> Trial:
        """The trial of the search with this number."""
        return next(trial for trial in self.report.trials if trial.number == number)

    def colour(self, trial: Trial) -> int:
        """Number of the colour of its kind of policy, the same in every figure."""
        return self._kinds.get(policy_kind(trial), len(self._kinds))

    @staticmethod
    def labels(trials: Sequence[Trial]) -> list[str]:
        """Policies in words, with the size where these trials have more than one."""
        one_size = len({trial.size_label for trial in trials}) < 2
        return [trial.policy_label if one_size else trial.label for trial in trials]


class SectionFile(Protocol):
    """A module of this folder."""

    ORDER: int

    def section(self, context: Context) -> Section | None: ...


@cache
def section_files() -> Sequence[SectionFile]:
    """The modules of this folder, in the order of the page."""
    names = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    modules: list[SectionFile] = [importlib.import_module(f"{__name__}.{n}") for n in names]
    return sorted(modules, key=lambda module: module.ORDER)


def sections(context: Context) -> list[Section]:
    """Every section that this study has something for."""
    made = (module.section(context) for module in section_files())
    return [section for section in made if section is not None]
