"""Arms of a comparison: as text, as typed after `--arms`, and the learning rate of each.

    best                        the recommended trial
    trial 7                     any finished trial of the search
    accumulated                 a named arm of the spec, or a policy's label in the report
    fixed r=0.15                a policy by its kind and parameters, as in the spec
    uniform on width=128        any of these at another size, given by parameters,
    best on trial 3             by a trial, or by the size's label in the report
    fixed r=0.4 on bert 64×2

An arm takes the size that it does not give from the recommended trial. The searched dimensions of
training (the learning rate above all) are those of its own best trial: the best trial of the search
with the same kind of policy, about the same exposure and the same size. Where there is none, three
learning rates are tried on seeds that are not compared. With the recommended trial's values every
other arm would be handicapped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mptune import plugins
from mptune.errors import InputError, did_you_mean
from mptune.paths import RunDirectory
from mptune.search.run import Run
from mptune.spec.schema import MODEL_KEYS, Comparison, build, plugin_name
from mptune.spec.source import Concrete, SpecFile, SpecSource, merge_arm, parse_yaml, plain
from mptune.spec.space import Space
from mptune.trial import Trial, TrialSpec

Tree = dict[str, Any]

SHORT = {"r": "rate"}
"""Abbreviations of policy parameters."""

ALIASES = {"accumulated": "uniform"}

SECTIONS = ("model", "policy", "training")

RATE = "training.optimizer.learning_rate"

LADDER = (1 / 3, 1.0, 3.0)
"""Factors of the recommended learning rate that are tried for an arm without a trial of its own."""

CLOSE = 0.05
"""Two policies of one kind train alike if their mean mask rates differ by less."""


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
        best: the trial of the recommended policy, of the search or of a comparison.
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
        if on:
            # At another size, the training of a trial is no longer its own.
            given = tree if policy.strip() in self.space.file.arms("compare") else {}
            tree = {key: tree[key] for key in tree if key != "training" or key in given}
            tree["model"] = self._size(size.strip(), tree["model"], name)
        return tree

    def _policy(self, what: str, name: str) -> Tree:
        arm = self.space.file.arms("compare").get(what)
        if arm is not None:
            given = plain(arm)
            tree = _sections(merge_arm(self._concrete(self.best), given, arm.origin))
            return {key: tree[key] if key != "training" else given.get(key, {}) for key in tree}
        same = [r for r in self._finished() if what in (r.arm, r.label, r.policy_label)]
        record = self._trial(what, name) or max(same, key=_score, default=None)
        if record is not None:
            return self._at(record)
        return {"model": self._at(self.best)["model"], "policy": self._kind(what, name)}

    def _at(self, record: Trial) -> Tree:
        return _sections(self._concrete(record))

    def _concrete(self, record: Trial) -> Concrete:
        """The concrete spec of a trial. An arm may be no point of the space: it has its own."""
        if record.stage == "search" or record.spec is None:
            return self.space.at(record.params)
        own = record.spec.model_dump(mode="json", include=set(SECTIONS))
        base = next(self.space.file.probes())
        return Concrete({**base.tree, **own}, base.origins)

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

    def _finished(self) -> list[Trial]:
        return [trial for trial in self.found if trial.finished]

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
            return self._at(trial)["model"]
        sizes = {r.size_label: r for r in self._finished()}
        if size in sizes:
            return dict(self._at(sizes[size])["model"])
        if "=" not in size:
            raise InputError(
                f"--arms {name!r}: no trial has the size {size!r}; give width=128, trial N, or "
                f"one of {', '.join(sorted(sizes))}{did_you_mean(size, sizes)}"
            )
        family = plugins.load("families", str(plugin_name("family", model)))
        keys = list(dict.fromkeys([*family.model_fields, *model]))
        changes = dict(_parameters(size.split(), keys, name))
        # A family has a size, or a width and a depth; arguments of a class are not related.
        sizes_too = ("width", "depth", "heads") if "size" in changes else ("size",)
        dropped = () if {*MODEL_KEYS} & {*model} else sizes_too
        return {**{k: v for k, v in model.items() if k not in dropped}, **changes}


def _sections(concrete: Concrete) -> Tree:
    return {key: concrete.tree[key] for key in SECTIONS}


def _score(record: Trial) -> tuple[float, int]:
    return record.nats_per_token, -record.number


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


# --- values of training --------------------------------------------------------------------------


def own_trial(trials: Sequence[Trial], arm: TrialSpec) -> Trial | None:
    """The best finished trial of the arm's size and of about its policy; None if there is none."""
    near = [
        trial
        for trial in trials
        if trial.finished
        if (trial.size_label, trial.policy["kind"]) == (arm.size_label, arm.policy["kind"])
        if _distance(trial.policy, arm.policy) <= CLOSE
    ]
    return max(near, key=_score, default=None)


def _distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Mean difference of the mask rates of two policies over training, quantile by quantile."""
    laws = [build("policy", dict(policy)) for policy in (one, other)]
    cdfs = [np.cumsum([law.pmf(64, (step + 0.5) / 8) for step in range(8)], axis=1) for law in laws]
    return float(np.abs(cdfs[0] - cdfs[1]).mean())


def most_ladder_runs(file: SpecFile, comparison: Comparison | None) -> int:
    """Most runs of a ladder for the arms of a comparison; known exactly only after the search."""
    if comparison is None or RATE not in file.dimensions:
        return 0
    arms = file.arms("compare")
    return len(LADDER) * sum(leaves_open(plain(arms[name]), RATE) for name in comparison.arms)


def at_rate(arm: Concrete, rate: float) -> Concrete:
    """The arm with this learning rate."""
    change = {"training": {"optimizer": {"learning_rate": rate}}}
    return merge_arm(arm, change, "the ladder of learning rates")


def leaves_open(change: Mapping[str, Any], dimension: str) -> bool:
    """Whether an arm's changes leave a dimension of the search as it is."""
    node: Any = change
    for part in dimension.split("."):
        if not isinstance(node, Mapping):
            return False
        if part not in node:
            return True
        node = node[part]
    return False


def value_at(tree: Mapping[str, Any], dimension: str, otherwise: Any) -> Any:
    """The value of a dotted name in a tree; `otherwise` if it is inside one option of a choice."""
    node: Any = tree
    for part in dimension.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return otherwise
        node = node[part]
    return otherwise if isinstance(node, Mapping) else node
