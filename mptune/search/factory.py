"""From a concrete spec to the trial that a worker runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mptune.errors import InputError
from mptune.paths import RunDirectory
from mptune.spec.schema import SearchSpec, Training, build
from mptune.spec.source import Concrete
from mptune.trial import Prepared, TrialSpec


@dataclass(frozen=True)
class TrialFactory:
    """Turns a concrete spec into the trial that a worker runs."""

    study: str
    folder: str
    run: RunDirectory
    prepared: Prepared
    data: Mapping[str, Any]
    rungs: tuple[float, ...] = ()
    artifacts: str | None = None
    """URL of the search's artifacts, if they are not in the run directory."""

    def make(self, concrete: Concrete, number: int, seed: int) -> TrialSpec:
        """The TrialSpec of trial `number`."""
        spec = SearchSpec.model_validate(concrete.tree)
        policy, model = build("policy", spec.policy), self._sized(build("model", spec.model))
        parameters = model.parameters(self.prepared.vocabulary_size + 2, self.prepared.length)
        directory = self.run.trial(number, self.folder).root
        return TrialSpec(
            study=self.study,
            number=number,
            policy_label=policy.words(),
            size_label=model.words(),
            seed=seed,
            data=dict(self.data),
            model=model.model_dump(mode="json"),
            policy=policy.model_dump(mode="json"),
            training=self._training(spec.training),
            score=spec.score,
            rungs=self.rungs,
            resources=spec.resources.for_model(parameters),
            prepared=self.prepared,
            directory=str(directory.absolute()),
            artifacts=self.artifacts
            and f"{self.artifacts}/{directory.relative_to(self.run.root).as_posix()}",
        )

    def _training(self, training: Training) -> Training:
        """With the precision that `auto` means: a trial is a pure function of its spec."""
        if training.precision != "auto":
            return training
        return training.model_copy(update={"precision": self.prepared.precision})

    def _sized(self, model: Any) -> Any:
        """The model with its width and depth, if the spec gives a parameter count."""
        try:
            return model.sized(self.prepared.vocabulary_size + 2, self.prepared.length)
        except ValueError as error:
            raise InputError(f"model.{error}") from None
