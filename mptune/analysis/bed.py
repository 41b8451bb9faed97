"""The bed: real trainings of tiny masked transformers, to replay a search without training.

Its card, benchmarks/bed/README.md, says how it was made and what it cannot answer.

Shape suffixes: P policies, Z sizes, R seeds, T rungs, G bands (tenths of the mask rate), K groups.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mptune.errors import InputError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Bed:
    """The trainings on one kind of data; NaN where one was not made.

    Attributes:
        policies: the spec of each policy [P], for `mptune.spec.schema.build("policy", ...)`.
        parameters: of a model of each size [Z].
        rungs: progress of each rung [T]; the last one is 1.
        lml_PZRT: LML estimate, nats per position, all on one plan.
        curves_PZRTG: S, nats per masked position, by tenths of the mask rate.
        groups_PZRTK: mean score of each group of held-out sequences, nats per position.
        flops_PZRT: spent in training until the rung.
        cpu_s_PZRT: CPU seconds of the same, on one core.
        learned: (policy, size, seed) -> what the law of a learned policy became, as a spec.
        about: everything else, e.g. `length` (D), `group_sizes` [K] and the score of a `unigram`.
    """

    policies: list[dict[str, Any]]
    parameters: list[int]
    rungs: list[float]
    lml_PZRT: FloatArray
    curves_PZRTG: FloatArray
    groups_PZRTK: FloatArray
    flops_PZRT: FloatArray
    cpu_s_PZRT: FloatArray
    learned: dict[tuple[int, int, int], dict[str, Any]]
    about: dict[str, Any]


def load(path: Path | str | None = None) -> dict[str, Bed]:
    """The bed of each kind of data: text, sensors, images.

    Args:
        path: of the file; by default that of the source tree, which is not in the wheel.

    Raises:
        InputError: there is no such file.
    """
    path = Path(path or Path(__file__).parents[2] / "benchmarks" / "bed" / "bed.npz")
    if not path.exists():
        raise InputError(
            f"{path}: there is no bed; wheels do not have it, take benchmarks/bed/bed.npz of the "
            "source tree"
        )
    with np.load(path) as file:
        about = json.loads(str(file["about"]))

        def array(name: str) -> FloatArray:
            values: NDArray[Any] = file[name]
            if values.dtype != np.int16:
                return values.astype(np.float64)
            known = values > np.iinfo(np.int16).min
            return np.where(known, values * about["resolution"], np.nan)

        return {
            name: Bed(
                policies=own.pop("policies"),
                parameters=own.pop("parameters"),
                rungs=about["rungs"],
                lml_PZRT=array(f"{name}/lml"),
                curves_PZRTG=array(f"{name}/curves"),
                groups_PZRTK=array(f"{name}/groups"),
                flops_PZRT=array(f"{name}/flops"),
                cpu_s_PZRT=array(f"{name}/cpu_s"),
                learned={(p, z, r): law for p, z, r, law in own.pop("learned")},
                about={**{k: v for k, v in about.items() if k != "data"}, **own},
            )
            for name, own in about["data"].items()
        }
