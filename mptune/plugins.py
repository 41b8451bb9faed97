"""Policies, model families, data modalities, launchers and trackers by name.

A plugin is a subclass of its group's base class, in any module of the group's folder. Its name is
the default of its field `kind` (of a model family: `family`). Other packages add one with an entry
point of the group that has the plugin's name and names its module, e.g.
`[project.entry-points."mptune.policies"] mine = "mypackage.mine"`.

Plugin modules are imported to read their parameters, so they import heavy libraries (torch,
transformers) inside functions only: `mptune validate` must be fast.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from mptune.errors import InputError, did_you_mean

GROUPS = {
    "policies": ("mptune.policies", "MaskPolicy", "kind"),
    "families": ("mptune.models", "MaskedModel", "family"),
    "modalities": ("mptune.data", "Modality", "kind"),
    "launchers": ("mptune.launch", "Launcher", "kind"),
    "trackers": ("mptune.trackers", "Tracker", "kind"),
}
"""Group name -> (folder as a package, base class in its `base` module, field with the name)."""


@cache
def modules(group: str) -> dict[str, str]:
    """Plugin name -> importable module name, for every plugin of the group, sorted by name.

    Raises:
        InputError: an installed plugin has the name of one of mptune's own.
    """
    package, _, _ = GROUPS[group]
    folder = importlib.import_module(package)
    own = {
        name: f"{package}.{m.name}"
        for m in pkgutil.iter_modules(folder.__path__)
        if not m.ispkg and not m.name.startswith("_") and m.name != "base"
        for name in _defined(group, f"{package}.{m.name}")
    }
    installed = {e.name: e.value for e in entry_points(group=f"mptune.{group}")}
    for name in installed.keys() & own.keys():
        raise InputError(f"{installed[name]}: mptune has {name!r} among its own {group}; rename it")
    return dict(sorted({**installed, **own}.items()))


@cache
def load(group: str, name: str) -> type[Any]:
    """The plugin class `name` of `group`.

    Raises:
        InputError: there is no such plugin; the message lists all.
    """
    known = modules(group)
    if name not in known:
        raise InputError(
            f"{name!r} is not one of the {group}: {', '.join(known)}{did_you_mean(name, known)}"
        )
    found = _defined(group, known[name])
    if name not in found:
        _, base_name, key = GROUPS[group]
        raise InputError(f"{known[name]} defines no {base_name} with {key}: {name}")
    return found[name]


def _defined(group: str, module: str) -> dict[str, type[Any]]:
    """The plugins that a module defines, by name."""
    package, base_name, key = GROUPS[group]
    base = getattr(importlib.import_module(f"{package}.base"), base_name)
    found: list[Any] = [
        c
        for c in vars(importlib.import_module(module)).values()
        if inspect.isclass(c) and issubclass(c, base) and c.__module__ == module
    ]
    # Base classes of plugins have no name.
    names = [(c.model_fields[key].default, c) for c in found]
    return {name: c for name, c in names if isinstance(name, str)}


def require_package(reference: str) -> None:
    """Check that the package of `"package.module:attribute"` is there, without importing it.

    From then on, this process also imports from the current folder.

    Raises:
        ValueError: it is neither in the current folder nor on Python's path.
    """
    here, package = str(Path.cwd()), reference.partition(":")[0].partition(".")[0]
    if here not in sys.path:
        sys.path.append(here)
    try:
        exists = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        exists = False
    if not exists:
        raise ValueError(f"no package {package!r} in the current folder or on Python's path")


def load_object(reference: str) -> Any:
    """Import `"package.module:attribute"`."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
