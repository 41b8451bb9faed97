"""The driver's own code for the workers of a shared cluster: mptune, and packages with plugins.

Ray puts what is shipped first on the workers' path. A distribution's metadata goes with its
package, because entry points are found by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mptune.plugins import GROUPS

OURS = "mptune"


def environment() -> dict[str, Any]:
    """Ray's runtime environment that has the driver's code in it."""
    code = dict.fromkeys(str(path) for path in _code())
    return {"py_modules": list(code), "excludes": ["__pycache__"]}


def _code() -> Iterator[Path]:
    """Packages, modules, and the folders of their metadata."""
    yield _home(OURS)
    with suppress(PackageNotFoundError):  # run from its sources
        yield from _metadata(Distribution.from_name(OURS))
    for plugin in _plugins():
        yield _home(plugin.module.partition(".")[0])
        if plugin.dist is not None:
            yield from _metadata(plugin.dist)


def _plugins() -> Iterator[EntryPoint]:
    for group in GROUPS:
        yield from entry_points(group=f"{OURS}.{group}")


def _home(package: str) -> Path:
    """The folder of a package, or the file of a module."""
    spec = find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"no module named {package!r}, which has plugins of mptune")
    # A namespace package has no file of its own.
    for folder in spec.submodule_search_locations or ():
        return Path(folder)
    assert spec.origin is not None, "what is no package is a file"
    return Path(spec.origin)


def _metadata(distribution: Distribution) -> Iterator[Path]:
    for file in distribution.files or ():
        if file.name == "entry_points.txt" or file.name == "METADATA":
            yield Path(str(file.locate())).parent
