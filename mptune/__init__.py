"""mptune: which mask-rate policy to pre-train with, at which size, and how sure.

The names below are loaded when first used, so that `import mptune` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mptune import search
    from mptune.analysis import bed
    from mptune.lml.adaptive import LMLComparison, compare_lml, estimate_to_target
    from mptune.lml.covariates import TokenCovariates
    from mptune.lml.estimator import LMLEstimate, estimate_lml
    from mptune.lml.plan import LMLPlan
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
    "mptune.lml.adaptive": ("LMLComparison", "compare_lml", "estimate_to_target"),
    "mptune.lml.covariates": ("TokenCovariates",),
    "mptune.lml.estimator": ("LMLEstimate", "estimate_lml"),
    "mptune.lml.plan": ("LMLPlan",),
    "mptune.policies._collator": ("MaskingCollator",),
    "mptune.policies.base": ("MaskPolicy",),
    "mptune.search.run": ("Run",),
    "mptune.spec.schema": ("SearchSpec",),
    "mptune.study.exposure": ("ExposureSampler",),
    "mptune.study.pruners": ("PredictivePruner",),
    "mptune.trial": ("Trial",),
}
_ROOMS = {"bed": "mptune.analysis.bed", "search": "mptune.search"}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(_ROOMS[name])
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
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
