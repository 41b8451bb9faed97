"""`mptune search`, with a worker that records times (see `peer.Stamped`).

python benchmarks/ours.py SPEC --run-dir FOLDER
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mptune import dispatch
from mptune.cli import main

if __name__ == "__main__":
    dispatch.make = partial(dispatch.make, runtime="benchmarks.peer:Stamped")
    sys.exit(main(["search", *sys.argv[1:]]))
