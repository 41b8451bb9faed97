"""Pack the evidence behind a report into one file that `mptune replay` can check anywhere.

The file contains the spec, the study, the frozen scoring plan, the score of every sequence and the
report, each with its SHA-256 checksum. It contains no data and no weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mptune.cli import _arguments

EXAMPLES = """\
examples:
  mptune bundle runs/quickstart                          # runs/quickstart.bundle.zip
  mptune bundle runs/quickstart --out evidence.zip
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_run_dir(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the bundle; default RUN_DIR.bundle.zip"
    )


def run(arguments: argparse.Namespace) -> int:
    from mptune.search.bundle import pack
    from mptune.search.run import Run

    found = Run.open(arguments.run_dir)
    root = found.directory.root
    target = arguments.out or root.with_name(f"{root.resolve().name}.bundle.zip")
    count = pack(found, target)
    print(f"{target}: {count} files, {target.stat().st_size / 1e6:.1f} MB")
    return 0
