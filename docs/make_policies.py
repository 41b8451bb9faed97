"""Writes docs/policies.md and its pictures from the code.

python docs/make_policies.py
"""

from __future__ import annotations

import inspect
from pathlib import Path

from mptune import plugins
from mptune.report.policy import Profile
from mptune.spec.schema import build

FOLDER = Path(__file__).parent
LENGTH, VOCABULARY = 128, 8192
MODEL = {"family": "bert", "width": 128, "depth": 2}

HEAD = """\
# Mask policies

Made by `python docs/make_policies.py` from the code; do not edit. Each row is the first example of
its file in `mptune/policies`, on sequences of D = 128 positions. *Mean rate* is E[M]/D over
training; *M* is what can be drawn; ω is the share of each count in the loss over its mean (1
everywhere trains on the accumulated log marginal likelihood); *cost* is training FLOPs per token
over those of a fixed rate of 15 %, for bert 128×2 with 8192 symbols.

| policy | example | mean rate | M | ω at 15 % | ω at 50 % | ω at 95 % | cost |
|---|---|---|---|---|---|---|---|
"""


def profiles() -> dict[str, Profile]:
    """The first example of every policy."""
    family = build("model", MODEL)
    return {
        name: Profile.of(plugins.load("policies", name).examples()[0], family, LENGTH, VOCABULARY)
        for name in plugins.modules("policies")
    }


def row(name: str, profile: Profile) -> str:
    omegas = " | ".join(f"{profile.omega_at(rate):.2f}" for rate in (0.15, 0.5, 0.95))
    return (
        f"| [{name}](#{name}) | {profile.words} | {100 * profile.mean_rate:.1f} % | "
        f"{profile.lowest}–{profile.highest} | {omegas} | {profile.flops_to_fixed_15:.2f} |"
    )


def section(name: str) -> str:
    about = inspect.cleandoc(plugins.load("policies", name).__doc__ or "")
    return f"## {name}\n\n{about}\n\n![q over progress, and ω, of {name}](policies/{name}.png)\n"


def document(found: dict[str, Profile]) -> str:
    table = "\n".join(row(name, profile) for name, profile in found.items())
    return HEAD + table + "\n\n" + "\n".join(section(name) for name in found)


def main() -> None:
    found = profiles()
    (FOLDER / "policies.md").write_text(document(found), encoding="utf-8")
    for name, profile in found.items():
        (FOLDER / "policies" / f"{name}.png").write_bytes(profile.png())


if __name__ == "__main__":
    main()
