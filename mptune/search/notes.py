"""What a valid spec allows and should mean: said before anything trains."""

from __future__ import annotations

from mptune.spec.schema import SearchSpec
from mptune.spec.source import SpecFile

RATE = "training.optimizer.learning_rate"


def notes(file: SpecFile, spec: SearchSpec) -> list[str]:
    """One line each."""
    dimensions, optimizer = file.dimensions, spec.training.optimizer
    sizes = any(name.split(".")[0] == "model" for name in dimensions)
    chosen = (RATE, "training.optimizer.width_rule", "training.optimizer", "training")
    if not sizes or optimizer.width_rule != "none" or any(name in dimensions for name in chosen):
        return []
    return [
        f"{RATE} {optimizer.learning_rate:g} is the same for every size, so size and learning rate "
        "are confounded; make it a dimension, or set training.optimizer.width_rule: mup"
    ]
