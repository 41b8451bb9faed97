"""Renders overlays with the real kubectl, and searches with `--dry-run`."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from tests.k8s.schemas import ROOT, documents

OVERLAYS = sorted(p.parent for p in (ROOT / "k8s" / "overlays").glob("*/kustomization.yaml"))
PROFILES = sorted((ROOT / "launchers").glob("kubernetes*.yaml"))


def kustomize(folder: Path) -> str:
    """`kubectl kustomize FOLDER`."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run(
        [str(kubectl), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def overlay(folder: Path) -> list[dict[str, Any]]:
    return documents(kustomize(folder))
