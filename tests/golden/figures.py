"""The figures of a run directory that must not change, as a flat mapping of name to value.

Only these accessors know where a figure is stored. When a file format changes, edit them and keep
the stored figures as they are. Times, versions, paths and sentences are no figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import optuna

Figure = float | int | str | bool | None
Row = tuple[str, Figure]

STAGES = {"search": "", "confirm": "/confirm", "compare": "/compare"}
"""Stage -> what its study's name has after the name of the search."""


def of_run(run: Path, name: str) -> dict[str, Figure]:
    """Every figure of a run directory whose search has the three stages; `name` is its name."""
    stages = (trials(run, name, stage) for stage in STAGES)
    return dict(chain(chain.from_iterable(stages), of_report(report(run))))


def of_search(run: Path, name: str) -> dict[str, Figure]:
    """Those of a search alone: its trials and their scores, wherever its data are."""
    results = (result(f"trial.{t['number']}", t) for t in report(run)["input"]["trials"])
    found = dict(chain(trials(run, name), chain.from_iterable(results)))
    return {key: value for key, value in found.items() if not key.endswith(".fingerprint")}


def report(run: Path) -> dict[str, Any]:
    """report.json."""
    found: dict[str, Any] = json.loads((run / "report" / "report.json").read_text("utf-8"))
    return found


# --- trials, from Optuna's storage ---------------------------------------------------------------


def trials(run: Path, name: str, stage: str = "search") -> Iterator[Row]:
    """What was proposed, in order, and what became of it."""
    storage = f"sqlite:///{run / 'study.db'}"
    study = optuna.load_study(study_name=name + STAGES[stage], storage=storage)
    yield f"{stage}.trials", len(study.trials)
    for trial in study.trials:
        yield from _trial(f"{stage}.{trial.number}", trial)


def _trial(prefix: str, trial: optuna.trial.FrozenTrial) -> Iterator[Row]:
    yield f"{prefix}.state", trial.state.name
    for key, value in sorted(trial.params.items()):
        yield f"{prefix}.params.{key}", value
    spec = json.loads(trial.system_attrs["trial_spec"])
    yield f"{prefix}.seed", spec["seed"]
    yield f"{prefix}.score_seed", spec["score"]["seed"]
    for section in ("model", "policy"):
        yield from flat(f"{prefix}.{section}", spec[section])
    yield f"{prefix}.learning_rate", spec["training"]["optimizer"]["learning_rate"]
    yield f"{prefix}.budget_tokens", spec["training"]["budget_tokens"]
    yield from flat(f"{prefix}.rungs", spec["rungs"])
    yield f"{prefix}.fingerprint", trial.user_attrs["fingerprint"]
    yield f"{prefix}.reason", trial.user_attrs.get("reason")
    yield f"{prefix}.nats_per_token", trial.value
    for step, value in sorted(trial.intermediate_values.items()):
        yield f"{prefix}.rung.{step}", value


def flat(prefix: str, value: Any) -> Iterator[Row]:
    """The leaves of nested mappings and lists."""
    if isinstance(value, Mapping):
        for key in value:
            yield from flat(f"{prefix}.{key}", value[key])
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from flat(f"{prefix}.{place}", inner)
    else:
        yield prefix, value


# --- report.json ---------------------------------------------------------------------------------


def of_report(report: Mapping[str, Any]) -> Iterator[Row]:
    """Ranking, selection, differences, laws over size, importance, sums."""
    given = report["input"]
    yield from flat("recommended.policy", report["recommended"]["policy"])
    yield "recommended.trial", report["recommended"]["best_trial"]
    yield "verdict", report["findings"]["verdict"]
    yield from flat("check", [check["ok"] for check in report["findings"]["checks"]])
    for flip in report["findings"]["flips"]:
        yield from _fields(f"flip.{flip['size_label']}", flip, ("by_loss", "by_lml", "disagree"))
    for place in report["ranking"]:
        figures = ("trial", "nats_per_token", "half_width", "bits_per_byte")
        yield from _fields(f"ranking.{place['place']}", place, figures)
    for trial in given["trials"]:
        yield from result(f"trial.{trial['number']}", trial)
    yield from _selection(given["selection"])
    yield from _comparison(given["comparison"])
    yield from _by_size(given["by_size"])
    for row in given["importance"]:
        yield from _fields(f"importance.{row['name']}", row, ("share", "trials"))
    yield from _fields("spend", given["spend"], ("trials", "tokens", "flops", "worker_s"))


def _fields(prefix: str, row: Mapping[str, Any], names: Iterable[str]) -> Iterator[Row]:
    for name in names:
        yield f"{prefix}.{name}", row[name]


def result(prefix: str, trial: Mapping[str, Any]) -> Iterator[Row]:
    """The scores of one trial of the search; no score where it did not finish."""
    yield f"{prefix}.parameters", trial["parameters"]
    yield from flat(f"{prefix}.mask_rates", [trial["mask_rates"][i] for i in (0, -1)])
    found = trial["result"]
    if found is None:
        return
    lml = ("nats_per_sequence", "nats_per_token", "bits_per_byte", "se_population", "se_fixed")
    lml += ("sequences", "forwards", "effective_sample_size")
    yield from _fields(f"{prefix}.lml", found["lml"], lml)
    yield from flat(f"{prefix}.curve", found["lml"]["curve"])
    yield from flat(f"{prefix}.rates", found["rates"])
    yield from _fields(f"{prefix}.cost", found["cost"], ("tokens", "flops", "steps", "parameters"))
    yield f"{prefix}.mean_mask_rate", found["mean_mask_rate"]


def _selection(selection: Mapping[str, Any]) -> Iterator[Row]:
    fields = ("recommended", "chosen_by", "seed_runs", "overturned")
    yield from _fields("selection", selection, fields)
    yield from flat("selection.seed_sd", selection["seed_sd"])
    for candidate in selection["candidates"]:
        prefix = f"selection.trial {candidate['trial']}"
        figures = ("nats_per_token", "half_width_total", "runs", "expected", "half_width")
        figures += ("probability", "expected_regret")
        yield from _fields(prefix, candidate, figures)
        if candidate["confirmation"] is not None:
            yield from flat(f"{prefix}.confirmation", candidate["confirmation"])


def _comparison(comparison: Mapping[str, Any]) -> Iterator[Row]:
    yield from _fields("comparison", comparison, ("baseline", "level"))
    for name, arm in comparison["arms"].items():
        prefix, finished = f"arm.{name}", [trial for trial in arm if trial["result"]]
        yield from flat(f"{prefix}.seeds", [trial["seed"] for trial in finished])
        scores = [trial["result"]["lml"]["nats_per_token"] for trial in finished]
        yield from flat(f"{prefix}.nats_per_token", scores)
        learning = ("progress", "tokens", "flops", "nats_per_token", "se")
        for place, point in enumerate(comparison["learning"].get(name, ())):
            yield from _fields(f"{prefix}.learning.{place}", point, learning)
    differences = ("nats_per_sequence", "half_width", "low", "high", "level", "seeds", "sequences")
    differences += ("se_seed", "se_sequences", "p_value", "verdict", "nats_per_token")
    differences += ("bits_per_byte", "challengers", "margin", "look", "looks", "carried_by")
    for row in comparison["differences"]:
        prefix = f"difference.{row['arm']} - {row['baseline']}"
        yield from _fields(prefix, row, (*differences, "more_seeds", "sequences_needed"))
    for row in comparison["selection"]:
        yield from _fields(f"best arm.{row['arm']}", row, ("probability", "expected_regret"))
    compute = ("level", "factor", "low", "high", "confidence", "reading", "spent", "seeds")
    for row in comparison["compute"]:
        prefix = f"compute.{row['arm']} to {row['reaches']} in {row['unit']}"
        yield from _fields(prefix, row, (*compute, "probability_reached"))


def _by_size(by_size: Mapping[str, Any]) -> Iterator[Row]:
    for name in ("best_rate", "gap"):
        law = by_size[name]
        yield f"law.{name}.exists", law is not None
        if law is not None:
            yield from _fields(f"law.{name}", law, ("covered", "size_matters"))
            for part in ("forms", "points", "left_out", "extrapolation"):
                yield from flat(f"law.{name}.{part}", law[part])
            yield from flat(f"law.{name}.curve", [law["curve"][0], law["curve"][-1]])
