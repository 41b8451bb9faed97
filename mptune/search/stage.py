"""Stages of a run: search, confirmation, ladder and comparison, as values that one driver drives.

The ladder tries learning rates for arms of a comparison that the search has no trial of.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mptune.analysis.exposure import model_context
from mptune.errors import input_errors
from mptune.paths import RunDirectory
from mptune.spec.schema import SearchSpec, build
from mptune.spec.source import Concrete
from mptune.spec.space import Space, Suggests
from mptune.study.queue import PlannedRun
from mptune.study.records import ASKED
from mptune.trial import Forks, Prepared, StageName, TrialSpec

if TYPE_CHECKING:
    import optuna

FIRST_SEEDS: Mapping[StageName, int] = {
    "comparison": 1_000_000,
    "confirmation": 2_000_000,
    "ladder": 3_000_000,
}
"""First training seed of a stage, apart from the search's: no stage sees a seed that chose it."""

FRESH_PLAN = 1_000_003
"""Added to the score's seed for a confirmation: its sequences, counts and masks are new."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run; stages differ in these values only.

    Attributes:
        study: name of its study in the storage.
        prepared: the token table and the scoring plan of its trials.
        data: the spec's data section, its paths absolute.
        first_seed: training seed of a search's trials (one that repeats an earlier trial's point
            with another seed has its own); of run 0 of an arm.
        total: trials that it is to have.
        rungs: training progress at which trials report.
        artifacts: URL for checkpoints and weights; None is the run directory.
        space: what the sampler proposes from; None where `runs` are given.
        runs: the runs to make, in order.
    """

    name: StageName
    run: RunDirectory
    study: str
    prepared: Prepared
    data: Mapping[str, Any]
    first_seed: int
    total: int = 0
    rungs: tuple[float, ...] = ()
    artifacts: str | None = None
    space: Space | None = None
    runs: tuple[PlannedRun, ...] = ()

    @property
    def forks(self) -> str:
        """Folder or URL of the checkpoints that its trials share."""
        return (
            str(self.run.forks.absolute()) if self.artifacts is None else f"{self.artifacts}/forks"
        )

    @cached_property
    def shared(self) -> frozenset[tuple[float, str]]:
        """What several arms have in common: a point where a policy changes, and all until there.

        A search shares nothing: its trials must report every rung to the pruner.
        """
        trees = {run.key: run.tree for run in self.runs}.values()
        points = {at for tree in trees for at in build("policy", tree["policy"]).changes()}
        found = Counter((at, _prefix(tree, at)) for tree in trees for at in points)
        return frozenset(prefix for prefix, arms in found.items() if arms > 1)

    def propose(self, trial: optuna.Trial) -> TrialSpec:
        """The TrialSpec of an asked trial: a new proposal, or the run that it was queued for."""
        if self.space is not None:
            concrete = self.space.suggest(trial)
            repeat = trial.user_attrs.get(ASKED, {}).get("repeat", 0)
            return self.make(concrete, trial.number, self.first_seed + repeat)
        seed = trial.suggest_int("seed", 0, 10_000)
        concrete = Concrete(trial.user_attrs["tree"], {})
        return self.make(concrete, trial.number, self.first_seed + seed)

    def define(self, trial: Suggests) -> dict[str, Any]:
        """What an exposure sampler is to know of a trial: policy, training, and the model's size.

        Raises:
            InputError: the values do not make a spec, or a model.
        """
        if self.space is None:
            return {}
        tree = self.space.suggest(trial).tree
        model, parameters = self._model(tree["model"])
        context = model_context(model.model_dump(mode="json"), parameters)
        return {"policy": tree["policy"], "training": tree["training"], "model": context}

    def _model(self, section: Mapping[str, Any]) -> tuple[Any, int]:
        """The model of a section with its size decided, and its parameters.

        Raises:
            InputError: no model has the parameter count that the section gives.
        """
        vocabulary, length = self.prepared.vocabulary_size + 2, self.prepared.length
        with input_errors("model."):
            model = build("model", section).sized(vocabulary, length)
        return model, model.parameters(vocabulary, length)

    def make(self, concrete: Concrete, number: int, seed: int) -> TrialSpec:
        """The TrialSpec of a concrete spec, as trial `number` with this training seed.

        Raises:
            InputError: no model has the parameter count that the spec gives.
        """
        spec = SearchSpec.model_validate(concrete.tree)
        policy, (model, parameters) = build("policy", spec.policy), self._model(spec.model)
        training = spec.training
        if training.precision == "auto":
            # A trial is a pure function of its spec: what `auto` means is written into it.
            training = training.model_copy(update={"precision": self.prepared.precision})
        directory = self.run.trial(number, self.name).root
        tree = concrete.tree
        at = tuple(sorted(at for at, prefix in self.shared if _prefix(tree, at) == prefix))
        shares = at and spec.resources.share_prefixes
        artifacts = self.artifacts
        if artifacts is not None:
            artifacts = f"{artifacts}/{directory.relative_to(self.run.root).as_posix()}"
        return TrialSpec(
            study=self.study,
            number=number,
            policy_label=policy.words(),
            size_label=model.words(),
            seed=seed,
            data=dict(self.data),
            model=model.model_dump(mode="json"),
            policy=policy.model_dump(mode="json"),
            training=training,
            score=spec.score,
            rungs=self.rungs,
            resources=spec.resources.for_model(parameters),
            prepared=self.prepared,
            directory=str(directory.absolute()),
            artifacts=artifacts,
            forks=Forks(store=self.forks, at=at) if shares else None,
        )


def _prefix(tree: Mapping[str, Any], at: float) -> str:
    """What determines a training until a point of progress, as far as arms may differ."""
    until = build("policy", tree["policy"]).until(at)
    return json.dumps([tree["model"], tree["training"], until], sort_keys=True, default=str)
