"""Opening a study, bound to the spec that it was begun with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import optuna

from mptune.errors import InputError
from mptune.paths import RunDirectory
from mptune.spec.schema import fixed_on_resume
from mptune.study.storage import open_storage

DRIVEN = (
    "arm",
    "detail",
    "fingerprint",
    "label",
    "learning",
    "reason",
    "refused",
    "retries",
    "run_key",
    "same_as",
    "tree",
)
"""User attributes of trials that a driver reads of all of them."""


def open_study(
    run: RunDirectory, url: str | None, name: str, *, pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    """Create or load the study to drive it, with the metric named for whoever opens a dashboard.

    Its trials come with the attributes that a driver needs; see `mptune.study.storage`.
    """
    study = optuna.create_study(
        study_name=name,
        storage=open_storage(run, url, only=DRIVEN),
        direction="maximize",
        load_if_exists=True,
        pruner=pruner,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(["LML (nats per token)"])
    return study


def claim_spec(study: optuna.Study, resolved: Mapping[str, Any]) -> None:
    """Bind the study to its spec; a resume with another one is refused.

    Raises:
        InputError: the stored spec differs in something that changes results.
    """
    wanted = fixed_on_resume(resolved)
    stored = study.user_attrs.get("spec")
    if stored is None:
        study.set_user_attr("spec", json.dumps(wanted, sort_keys=True))
        return
    differences = list(_differences(json.loads(stored), json.loads(json.dumps(wanted)), ""))
    if differences:
        raise InputError(
            f"study {study.study_name!r} was begun with another spec: {differences[0]}; "
            "use --fresh to start anew, or another --run-dir"
        )


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            inner = f"{path}.{key}" if path else key
            yield from _differences(old.get(key), new.get(key), inner)
    elif old != new:
        yield f"{path} was {json.dumps(old)}, is {json.dumps(new)}"
