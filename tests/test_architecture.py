"""The arrows between rooms point one way, there is no cycle, and light commands stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "mptune"

WAIST = {"spec", "trial", "status", "paths", "artifacts", "plugins", "errors"}
HEAVY = {"torch", "deepspeed", "transformers", "ray", "optuna"}

TOP_LEVEL = {
    *("__init__", "__main__", "artifacts", "errors", "paths", "plugins", "status", "trial"),
    "worker",
}

# Room -> (rooms it may import besides the waist, heavy packages it may import).
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    **{room: (set(), set()) for room in WAIST},
    "study": ({"analysis"}, {"optuna"}),
    "dispatch": (set(), {"ray"}),
    "analysis": ({"lml"}, set()),
    "search": (
        {"study", "dispatch", "analysis", "trackers", "models._memory", "tools.prepare"}
        | {"tools.propose"},
        set(),
    ),
    "trackers": (set(), set()),
    "report": ({"analysis"}, set()),
    "live": ({"report", "analysis"}, set()),
    "launch": (set(), {"ray"}),
    "cli": (
        {
            "search",
            "study",
            "dispatch",
            "analysis",
            "report",
            "live",
            "launch",
            "tools",
            "trackers",
        },
        set(),
    ),
    "policies": (set(), {"torch"}),
    "models": (set(), {"torch", "transformers"}),
    "data": (set(), set()),
    "lml": (set(), {"torch"}),
    "training": ({"policies", "models", "data", "lml"}, {"torch", "deepspeed"}),
    "worker": ({"training"}, set()),
    "tools": ({"models", "data", "lml"}, {"torch"}),
    "__main__": ({"cli"}, set()),
    "__init__": ({"analysis.bed", "lml", "policies", "search", "study", "live"}, set()),
}

# `launch` talks to a Ray cluster through the client of its Jobs API, and in no other way.
JOBS_CLIENT = {"ray.job_submission.JobSubmissionClient", "ray.exceptions.AuthenticationError"}

# Doors: (room, module that it loads by a name in a string). All others follow ALLOWED.
DOORS = {
    ("plugins", "policies"),
    ("plugins", "models"),
    ("plugins", "data"),
    ("plugins", "launch"),
    ("plugins", "trackers"),
    ("dispatch", "training.worker"),
}

FILES = sorted(p for p in ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def room_of(module: str) -> str:
    return module.split(".")[0]


def imports_of(path: Path, *, for_types: bool = False) -> list[str]:
    """Every module that the file imports, anywhere in it; type-checking blocks only if asked."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
        if not for_types
    }
    found: list[str] = []
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [f"{node.module}.{a.name}" for a in node.names]
    return found


LOADERS = ("import_module", "load_object", "__import__")
OWN_MODULE = re.compile(r"(mptune(?:\.\w+)+)(?::\w+|\.)?")


def strings_of(path: Path) -> list[str]:
    """Every module that a string of the file names: own ones, and what a loader is called with."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            own = OWN_MODULE.fullmatch(node.value)
            found += [own[1]] if own else []
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in LOADERS:
            given = node.args[0] if node.args else None
            if isinstance(given, ast.Constant) and not str(given.value).startswith("mptune."):
                found.append(str(given.value).partition(":")[0])
    return found


def wrong_arrows(path: Path) -> list[str]:
    room = room_of(module_of(path))
    rooms, packages = ALLOWED[room]
    wrong = []
    doors = {f"mptune.{target}" for origin, target in DOORS if origin == room}
    for name in [*imports_of(path), *(n for n in strings_of(path) if n not in doors)]:
        top, _, rest = name.partition(".")
        if top in HEAVY and top not in packages:
            wrong.append(name)
        if top == "mptune" and rest:
            target = room_of(rest)
            fits = any(rest == r or rest.startswith(f"{r}.") for r in rooms)
            known = target in WAIST or target == room
            if not known and target in ALLOWED and not fits:
                wrong.append(name)
    return wrong


def test_imports_follow_the_arrows() -> None:
    found = {module_of(path): wrong for path in FILES if (wrong := wrong_arrows(path))}
    assert found == {}


def test_every_door_is_used() -> None:
    used = {
        (room_of(module_of(p)), n.removeprefix("mptune.")) for p in FILES for n in strings_of(p)
    }
    assert used >= DOORS


def test_the_top_level_has_no_other_file() -> None:
    assert {p.stem for p in ROOT.glob("*.py")} == TOP_LEVEL


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("import ray", ["ray"]),
        ("from mptune.policies import base", ["mptune.policies.base"]),
        ("def f():\n    import ray", ["ray"]),
        ("if TYPE_CHECKING:\n    import ray", []),
        ("import_module('ray')", ["ray"]),
        ("importlib.import_module('mptune.policies.base')", ["mptune.policies.base"]),
        ("load_object('mptune.training.worker:Worker')", ["mptune.training.worker"]),
        ("load_object('optuna:Study')", ["optuna"]),
        ("HOME = {'a': 'mptune.search'}", ["mptune.search"]),
        ("import_module(f'mptune.cli.{name}')", ["mptune.cli"]),
        ("'mptune.lml.plan is this room'; 'mptune.lml.regression'", []),
    ],
)
def test_a_wrong_arrow_is_seen(
    text: str, wrong: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *a, **k: text)
    assert wrong_arrows(ROOT / "lml" / "plan.py") == wrong


@pytest.mark.parametrize(
    ("package", "home"), [("ray", "dispatch"), ("deepspeed", "training"), ("optuna", "study")]
)
def test_one_room_owns_each_engine(package: str, home: str) -> None:
    owners = {
        room
        for p in FILES
        for room in [room_of(module_of(p))]
        for name in imports_of(p)
        if name.split(".")[0] == package and not (room == "launch" and name in JOBS_CLIENT)
    }
    assert home in owners
    assert owners == {home}


def test_no_import_cycle_between_rooms() -> None:
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        room = room_of(module_of(path))
        targets = {
            room_of(n.removeprefix("mptune.")) for n in imports_of(path) if n.startswith("mptune.")
        }
        arrows.setdefault(room, set()).update((targets & set(ALLOWED)) - {room})
    assert cycle(arrows) == []


def test_no_import_cycle_between_files_not_even_for_types() -> None:
    modules = {f"mptune.{module_of(p)}": p for p in FILES}
    arrows: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = imports_of(path, for_types=True)
        homes = {name if name in modules else name.rpartition(".")[0] for name in names}
        arrows[module] = (homes & set(modules)) - {module}
    assert cycle(arrows) == []


def cycle(arrows: dict[str, set[str]]) -> list[str]:
    """What is left when everything that leads to no cycle is taken away; empty if all is."""
    remaining = dict(arrows)
    while free := [name for name, targets in remaining.items() if not targets & set(remaining)]:
        for name in free:
            del remaining[name]
    return sorted(remaining)


def test_a_cycle_is_seen() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import mptune"],
        ["-m", "mptune", "--help"],
        ["-m", "mptune", "validate", "search_spaces/quickstart.yaml"],
        ["-m", "mptune", "list", "policies"],
        ["-m", "mptune", "list", "families"],
        ["-m", "mptune", "schema"],
        ["-m", "mptune", "verify", "--help"],
        ["-m", "mptune", "launch", "--help"],
    ],
)
def test_light_commands_import_neither_torch_nor_ray(command: list[str]) -> None:
    heavy = {"torch", "ray", "deepspeed", "transformers"}
    if "--help" in command:
        heavy.add("scipy")
    assert not imported(command) & heavy


def test_a_worker_imports_transformers_for_a_model_that_needs_it_only() -> None:
    """It takes longer than all else in the start of a rank."""
    found = imported(["-c", "import mptune.training.worker"])
    assert "torch" in found
    assert "transformers" not in found


def imported(command: list[str]) -> set[str]:
    """The modules that Python imports for this command."""
    probe = [sys.executable, "-X", "importtime", *command]
    done = subprocess.run(probe, capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
