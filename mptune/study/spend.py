"""What a study has used, kept in it as one attribute: one write per trial."""

from __future__ import annotations

import time

import optuna

from mptune.search.ledger import Ledger

ATTRIBUTE = "spend"


def load_spend(study: optuna.Study) -> tuple[float, Ledger]:
    """(Wall-clock seconds that drivers have run, what trials have used), over all resumes."""
    stored = study.user_attrs.get(ATTRIBUTE, {"wall_s": 0.0, "ledger": None})
    return float(stored["wall_s"]), Ledger.from_json(stored["ledger"])


def save_spend(study: optuna.Study, wall_s: float, ledger: Ledger) -> None:
    """Inverse of `load_spend`, with what running trials have used so far."""
    stored = {"wall_s": round(wall_s, 3), "ledger": ledger.as_json(time.monotonic())}
    study.set_user_attr(ATTRIBUTE, stored)
