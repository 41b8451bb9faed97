"""mptune: which mask-rate policy to pre-train with, at which size, and how sure.

The names below are loaded when first used, so that `import mptune` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mptune import search
    from mptune.analysis import bed
    from mptune.lml import (
        LMLComparison,
        LMLEstimate,
        LMLPlan,
        TokenCovariates,
        compare_lml,
        estimate_lml,
        estimate_to_target,
    )
    from mptune.policies._collator import MaskingCollator
    from mptune.policies.base import MaskPolicy
    from mptune.search.run import Run
    from mptune.spec.schema import SearchSpec
    from mptune.study.exposure import ExposureSampler
    from mptune.study.pruners import PredictivePruner
    from mptune.trial import Trial

__version__ = "0.1.0"
__all__ = [
    "ExposureSampler",
    "LMLComparison",
    "LMLEstimate",
    "LMLPlan",
    "MaskPolicy",
    "MaskingCollator",
    "PredictivePruner",
    "Run",
    "SearchSpec",
    "TokenCovariates",
    "Trial",
    "__version__",
    "bed",
    "compare",
    "compare_lml",
    "estimate_lml",
    "estimate_to_target",
    "search",
]

_HOMES = {
    "ExposureSampler": "mptune.study.exposure",
    "LMLComparison": "mptune.lml",
    "LMLEstimate": "mptune.lml",
    "LMLPlan": "mptune.lml",
    "MaskPolicy": "mptune.policies.base",
    "MaskingCollator": "mptune.policies._collator",
    "PredictivePruner": "mptune.study.pruners",
    "Run": "mptune.search.run",
    "SearchSpec": "mptune.spec.schema",
    "TokenCovariates": "mptune.lml",
    "Trial": "mptune.trial",
    "compare_lml": "mptune.lml",
    "estimate_lml": "mptune.lml",
    "estimate_to_target": "mptune.lml",
}

_ROOMS = {"bed": "mptune.analysis.bed", "search": "mptune.search"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(_ROOMS[name])
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mptune' has no attribute {name!r}")


def compare(*args: Any, **options: Any) -> Run:
    """See `mptune.search.application.compare`; progress is shown unless `observer` is given."""
    from mptune.search.application import compare as start

    return start(*args, **with_progress(options))


def with_progress(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `search` and `compare`, showing progress on a terminal or in a notebook."""
    from functools import partial

    from rich.console import Console

    from mptune.live.table import LiveView

    console = Console(highlight=False)
    defaults = {
        "observer": partial(LiveView, console),
        "say": partial(console.print, soft_wrap=True, markup=False),
    }
    return {**defaults, **options}
