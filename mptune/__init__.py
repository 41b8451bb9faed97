"""mptune: which mask-rate policy to pre-train with, at which size, and how sure.

The names below are loaded when first used, so that `import mptune` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mptune.lml import LMLEstimate, LMLPlan, estimate_lml
    from mptune.policies._collator import MaskingCollator
    from mptune.policies.base import MaskPolicy

__version__ = "0.1.0"
__all__ = ["LMLEstimate", "LMLPlan", "MaskPolicy", "MaskingCollator", "__version__", "estimate_lml"]

_HOMES = {
    "LMLEstimate": "mptune.lml",
    "LMLPlan": "mptune.lml",
    "MaskPolicy": "mptune.policies.base",
    "MaskingCollator": "mptune.policies._collator",
    "estimate_lml": "mptune.lml",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mptune' has no attribute {name!r}")
