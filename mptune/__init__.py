"""mptune: which mask-rate policy to pre-train with, at which size, and how sure.

The names below are loaded when first used, so that `import mptune` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

__version__ = "0.1.0"
__all__ = [
    "LMLComparison",
    "LMLEstimate",
    "LMLPlan",
    "MaskPolicy",
    "MaskingCollator",
    "TokenCovariates",
    "__version__",
    "compare_lml",
    "estimate_lml",
    "estimate_to_target",
]

_HOMES = {
    "LMLComparison": "mptune.lml",
    "LMLEstimate": "mptune.lml",
    "LMLPlan": "mptune.lml",
    "MaskPolicy": "mptune.policies.base",
    "MaskingCollator": "mptune.policies._collator",
    "TokenCovariates": "mptune.lml",
    "compare_lml": "mptune.lml",
    "estimate_lml": "mptune.lml",
    "estimate_to_target": "mptune.lml",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mptune' has no attribute {name!r}")
