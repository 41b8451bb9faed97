"""Which tests run one after the other when `pytest -n 2` runs tests in two processes.

Tests of one group share a process. One group has all that start Ray: a cluster that starts beside
another one, on two processors, is slow enough to miss its deadlines. Another has workers that take
seconds to start. Every other file is a group of its own, so that its module's fixtures are made
once; a file in `SPREAD` is dealt out test by test.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

from xdist.scheduler import LoadScopeScheduling

GROUPS: dict[str, Sequence[str]] = {
    "postgres": ("tests/faults/test_storage.py", "tests/k8s/test_postgres.py"),
    # Started by the tests, by `ray start` or by drivers.
    "ray": (
        "tests/faults/*",
        "tests/dispatch/*",
        "tests/launch/*",
        "tests/test_end_to_end.py",
        "tests/cli/test_watch.py",
    ),
    # They use the session's worker, or its gang of two.
    "gangs": (
        "tests/models/test_trainable.py",
        "tests/training/test_loop.py",
        "tests/training/test_model_card.py",
        "tests/training/test_prefixes.py",
        "tests/training/test_resume.py",
        "tests/training/test_worker.py",
        "tests/tools/test_impute.py",
    ),
}
"""Group -> its files, of which the first pattern counts; groups start in this order."""

SPREAD = ("tests/policies/test_conformance.py",)
"""Files of many tests without costly fixtures."""


def group(nodeid: str) -> str:
    """The group of a test."""
    path = nodeid.partition("::")[0]
    if any(fnmatch(path, pattern) for pattern in SPREAD):
        return nodeid
    return next(
        (name for name, files in GROUPS.items() if any(fnmatch(path, file) for file in files)), path
    )


def place(nodeid: str) -> int:
    """Sorting key of a test: groups one after the other, the other files last."""
    names = list(GROUPS)
    name = group(nodeid)
    return names.index(name) if name in names else len(names)


class Groups(LoadScopeScheduling):
    """Gives each process a group at a time, in the order in which they were collected."""

    def __init__(self, config: Any, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)
