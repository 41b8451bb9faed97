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

`python docs/make_policies.py` writes this page from the code; do not edit it. A *mask policy*
decides how many tokens of each training sequence are masked. The table shows the first example of
each policy in `mptune/policies`, for sequences of D = 128 positions:

- *mean rate* is the average mask rate, E[M]/D, over training.
- *M* is the range of mask counts that can be drawn.
- *ω* is the weight of a mask count in the training loss, divided by the mean weight. A policy with
  ω = 1 for every count trains on the accumulated log-marginal likelihood.
- *cost* is training FLOPs per token, divided by those of a fixed rate of 15 %, for bert 128×2 with
  a vocabulary of 8192.

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
