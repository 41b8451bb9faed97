"""Parses the arms of a comparison as text, as typed after `--arms`.

    best                        the recommended trial
    trial 7                     any finished trial of the search
    accumulated                 a named arm of the spec, or a policy's label in the report
    fixed r=0.15                a policy by its kind and parameters, as in the spec
    uniform on width=128        any of these at another size, given by parameters,
    best on trial 3             by a trial, or by the size's label in the report
    fixed r=0.4 on bert 64×2

An arm takes values that it does not give (size, learning rate) from the recommended trial.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mptune import plugins
from mptune.errors import InputError, did_you_mean
from mptune.paths import RunDirectory
from mptune.search.run import Run
from mptune.spec.source import Concrete, SpecFile, SpecSource, merge_arm, parse_yaml, plain
from mptune.spec.space import Space
from mptune.trial import Trial

Tree = dict[str, Any]

SHORT = {"r": "rate"}
"""Abbreviations of policy parameters."""

ALIASES = {"accumulated": "uniform"}

SECTIONS = ("model", "policy", "training")


def with_arms(
    spec: SpecSource, overrides: Sequence[str], run_dir: Path | str | None, texts: Sequence[str]
) -> SpecFile:
    """The spec with these arms as its comparison; the first is the baseline.

    Seeds, level and other options are those of the spec's comparison, if it has one.

    Raises:
        InputError: there is no finished search, or an arm cannot be parsed.
    """
    file = SpecFile.of(spec, [o for o in overrides if not o.startswith("compare")])
    valid = file.validate(data_is_here=False)
    run = Run(RunDirectory(Path(run_dir or Path("runs") / valid.name)), file, valid)
    found, root = run.storage.trials("search"), run.directory.root
    if not any(trial.finished for trial in found):
        raise InputError(f"--arms: no trial of {root} has finished; run `mptune search` first")
    arms = Arms(Space(file), found, run.best()).read(texts)
    kept = valid.compare.model_dump(mode="json") if valid.compare else {}
    section = {**kept, "arms": arms, "baseline": next(iter(arms))}
    return SpecFile.of(spec, [f"compare={json.dumps(section)}", *overrides])


@dataclass(frozen=True)
class Arms:
    """Resolves arms against a finished search.

    Attributes:
        space: the space of the spec that was searched.
        found: trials of the search.
        best: the recommended trial.
    """

    space: Space
    found: Sequence[Trial]
    best: Trial

    def read(self, texts: Sequence[str]) -> dict[str, Tree]:
        """Each arm's name and its model, policy and training sections.

        Raises:
            InputError: fewer than two arms, a repeated one, or one that cannot be parsed.
        """
        names = [" ".join(text.split()) for text in texts]
        if len(set(names)) < max(2, len(names)):
            raise InputError(f"--arms needs at least two different arms; got {', '.join(names)}")
        return {name: self.one(name) for name in names}

    def one(self, name: str) -> Tree:
        """The sections of one arm."""
        policy, on, size = name.partition(" on ")
        tree = self._policy(policy.strip(), name)
        return {**tree, "model": self._size(size.strip(), tree["model"], name)} if on else tree

    def _policy(self, what: str, name: str) -> Tree:
        arm = self.space.file.arms("compare").get(what)
        if arm is not None:
            return _sections(merge_arm(self.space.at(self.best.params), plain(arm), arm.origin))
        record = self._trial(what, name) or self._searched(what)
        if record is not None:
            return self._at(record)
        return {**self._at(self.best), "policy": self._kind(what, name)}

    def _at(self, record: Trial) -> Tree:
        return _sections(self.space.at(record.params))

    def _trial(self, what: str, name: str) -> Trial | None:
        """The trial that `best` or `trial 7` names; None for other texts."""
        if what == "best":
            return self.best
        head, _, number = what.partition(" ")
        if head != "trial":
            return None
        finished = {str(r.number): r for r in self._finished()}
        if number not in finished:
            raise InputError(
                f"--arms {name!r}: no finished trial {number!r}; finished: {', '.join(finished)}"
            )
        return finished[number]

    def _searched(self, what: str) -> Trial | None:
        """The best trial whose arm, label or policy label is `what`."""
        same = [r for r in self._finished() if what in (r.arm, r.label, r.policy_label)]
        return max(same, key=_score, default=None)

    def _finished(self) -> list[Trial]:
        return [r for r in self.found if r.result is not None and r.state == "COMPLETE"]

    def _kind(self, what: str, name: str) -> Tree:
        """The policy section for a kind and its parameters."""
        kind, *parameters = what.split()
        kind = ALIASES.get(kind, kind)
        if kind not in plugins.modules("policies"):
            raise InputError(
                f"--arms {name!r}: not an arm; give best, trial N, a named arm, or a policy such "
                f"as 'fixed r=0.15'{did_you_mean(what, self._known())}"
            )
        fields = plugins.load("policies", kind).model_fields
        return {"kind": kind, **dict(_parameters(parameters, list(fields), name))}

    def _known(self) -> Iterator[str]:
        yield "best"
        yield from (r.policy_label for r in self._finished())
        yield from (n for s in ("compare", "search") for n in self.space.file.arms(s))
        yield from (*ALIASES, *plugins.modules("policies"))

    def _size(self, size: str, model: Mapping[str, Any], name: str) -> Tree:
        """The model section for a trial, a size label, or changed parameters of `model`."""
        trial = self._trial(size, name)
        if trial is not None:
            found: Tree = self._at(trial)["model"]
            return found
        sizes = {r.size_label: r for r in self._finished()}
        if size in sizes:
            return dict(self._at(sizes[size])["model"])
        if "=" not in size:
            raise InputError(
                f"--arms {name!r}: no trial has the size {size!r}; give width=128, trial N, or "
                f"one of {', '.join(sorted(sizes))}{did_you_mean(size, sizes)}"
            )
        family = plugins.load("families", str(model["family"]))
        changes = dict(_parameters(size.split(), list(family.model_fields), name))
        dropped = ("width", "depth", "heads") if "size" in changes else ("size",)
        return {**{k: v for k, v in model.items() if k not in dropped}, **changes}


def _sections(concrete: Concrete) -> Tree:
    return {key: concrete.tree[key] for key in SECTIONS}


def _score(record: Trial) -> tuple[float, int]:
    assert record.result is not None
    return record.result.lml.nats_per_token, -record.number


def _parameters(texts: Sequence[str], known: Sequence[str], name: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of each `rate=0.15`, the value parsed as YAML."""
    for text in texts:
        key, equals, value = text.partition("=")
        key = SHORT.get(key, key)
        if not equals or key not in known:
            raise InputError(
                f"--arms {name!r}: {text!r} is not KEY=VALUE with a key of {', '.join(known)}"
                f"{did_you_mean(key, known)}"
            )
        yield key, plain(parse_yaml(value, f"--arms {name!r}"))
