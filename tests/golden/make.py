"""Store the figures again: `python -m tests.golden.make [NAME ...]`.

Only when they are meant to change: a new version of a library, a corrected formula. The commit then
says which figures changed, and why. When a file format changes, edit `figures.py` instead.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.golden import cases, stored

NAMES = ("search", "quickstart", "hashes", "real")


def main(names: list[str]) -> None:
    """Make the named cases, or all of them."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MPTUNE_CACHE"] = f"{folder}/cache"
        for name in names or NAMES:
            case = getattr(cases, name)
            stored.save(name, case() if name == "hashes" else case(Path(folder) / name))


if __name__ == "__main__":
    main(sys.argv[1:])
