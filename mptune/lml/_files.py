"""Writing arrays so that no reader sees half a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def save_npz(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write an .npz aside, then move it into place."""
    target = Path(path)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
