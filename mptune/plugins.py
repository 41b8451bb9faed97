"""Policies, model families, data modalities and launchers by name.

A plugin is one file: a module in the group's folder that defines one subclass of the group's base
class. Its name is the file's name. Other packages add plugins through an entry point of the group,
e.g. `[project.entry-points."mptune.policies"] mine = "mypackage.mine"`.

Plugin modules are imported to read their parameters, so they import heavy libraries (torch,
transformers) inside functions only: `mptune validate` must be fast.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from mptune.errors import InputError, did_you_mean

GROUPS = {
    "policies": ("mptune.policies", "MaskPolicy"),
    "families": ("mptune.models", "ModelFamily"),
    "modalities": ("mptune.data", "Modality"),
    "launchers": ("mptune.launch", "Launcher"),
}
"""Group name -> (folder as a package, name of the base class in its `base` module)."""


@cache
def modules(group: str) -> dict[str, str]:
    """Plugin name -> importable module name, for every plugin of the group, sorted by name."""
    package, _ = GROUPS[group]
    folder = importlib.import_module(package)
    own = {
        m.name: f"{package}.{m.name}"
        for m in pkgutil.iter_modules(folder.__path__)
        if not m.ispkg and not m.name.startswith("_") and m.name != "base"
    }
    installed = {e.name: e.value for e in entry_points(group=f"mptune.{group}")}
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
    package, base_name = GROUPS[group]
    base = getattr(importlib.import_module(f"{package}.base"), base_name)
    module = importlib.import_module(known[name])
    found = [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, base) and c.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise InputError(
            f"{module.__name__} must define exactly one {base_name}, it defines {len(found)}"
        )
    return found[0]


def load_object(reference: str) -> Any:
    """Import `"package.module:attribute"`."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
