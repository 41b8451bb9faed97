"""Write k8s/requirements/: what the image installs, as constraints.txt pins it, with hashes.

    pip install uv && python tools/lock.py      # after a change of a pin; asks PyPI

The hashes are those of PyPI's wheels for the image's Python and its platforms. `torch.txt` has
torch and what it alone needs, CUDA's libraries: another index has another torch, without them.
`source.txt` has what is built on the image, after torch; `packages.txt` has everything else.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "k8s" / "requirements"

EXTRAS = ("cluster", "dashboard", "postgres")
"""Those that k8s/Dockerfile installs mptune with."""

PYTHON, PLATFORMS = "3.12", ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
"""Of the image's base."""

OF_TORCH = re.compile(r"torch|triton|nvidia-.*|cuda-.*")


def packages(platform: str) -> list[dict]:
    """The packages of a platform, as in a `pylock.toml`."""
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    output = subprocess.run(
        ["uv", "pip", "compile", "--quiet", "--format", "pylock.toml", "--python-version", PYTHON,
         "--python-platform", platform, "--default-index", "https://pypi.org/simple",
         "--constraint", "constraints.txt", *extras, "pyproject.toml"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return tomllib.loads(output)["packages"]


def main() -> None:
    files: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for package in (each for platform in PLATFORMS for each in packages(platform)):
        name, wheels = package["name"], package.get("wheels")
        file = "torch" if OF_TORCH.fullmatch(name) else "packages" if wheels else "source"
        hashes = {each["hashes"]["sha256"] for each in wheels or [package["sdist"]]}
        files[file][f"{name}=={package['version']}"] |= hashes
    FOLDER.mkdir(exist_ok=True)
    for file, pins in files.items():
        lines = [f"# Written by tools/lock.py, for Python {PYTHON}."]
        lines += [" \\\n  --hash=sha256:".join([pin, *sorted(pins[pin])]) for pin in sorted(pins)]
        (FOLDER / f"{file}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
