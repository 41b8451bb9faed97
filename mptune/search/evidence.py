"""What a report is made from, collected from Optuna's storage and the run directory."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from mptune import __version__, study
from mptune.analysis import ArmScores, compare, selection_probabilities
from mptune.analysis.compute import UNITS, Curves, equivalent_compute, mean_curve
from mptune.analysis.results import (
    ArmRow,
    ArmRun,
    ComparisonReport,
    Importance,
    Report,
    is_accumulated,
    is_fixed_15,
    spend,
)
from mptune.analysis.robustness import Scored as Everywhere
from mptune.analysis.robustness import robustness, worst_domain
from mptune.analysis.selection import Scored, SearchSelection, search_selection, seed_noise
from mptune.analysis.sequential import schedule
from mptune.analysis.sizes import ACCUMULATED, BASELINE, Measured, by_size
from mptune.errors import InputError
from mptune.paths import RunDirectory, TrialDirectory
from mptune.search import kpi as _kpi
from mptune.spec.schema import Comparison, SearchSpec, build
from mptune.spec.source import SpecFile
from mptune.trial import KpiValue, Prepared, Trial, TrialSpec

PROFILE_STEPS, PROFILE_LENGTH = 16, 512
"""Steps of progress, and the most positions, by which a policy's law is drawn."""

PACKAGES = ("torch", "deepspeed", "ray", "optuna", "transformers", "numpy")


def stored_spec(run: RunDirectory) -> SearchSpec:
    """The spec of a run directory, every dimension at its first value.

    Raises:
        InputError: the stored copy was changed by hand and is wrong now.
    """
    concrete = next(SpecFile.read(run.resolved).probes())
    try:
        return SearchSpec.model_validate(concrete.tree)
    except ValueError as error:
        raise InputError(f"{run.resolved}: {str(error).splitlines()[0]}") from None


def collect(
    run: RunDirectory, spec: SearchSpec, command: str, extrapolate_to: Sequence[float] | None = None
) -> Report:
    """Everything that the report of this run directory shows.

    `extrapolate_to` takes the place of the spec's sizes at which laws over size are stated.
    """
    if extrapolate_to is None:
        extrapolate_to = spec.search.extrapolate_to
    found = Found.of(run, spec)
    searched, prepared, arms = found.searched, found.prepared, found.arms()
    tried = [
        r
        for r in (*searched, *found.confirmed, *found.compared)
        if r.state not in ("WAITING", "RUNNING") and r.same_as is None
    ]
    results = [r.result for r in tried if r.result is not None]
    return Report(
        study=spec.name,
        data=prepared.description if prepared else build("data", spec.data).words(),
        prepared=_without_places(prepared),
        trials=tuple(_row(r, _kpi_of(found, r)) for r in searched if r.state != "WAITING"),
        comparison=comparison_report(found.asked, found.compared, prepared, run),
        selection=selection_report(found),
        by_size=by_size(list(_measured((*searched, *found.compared))), extrapolate_to),
        robustness=robustness(_everywhere(searched, arms), spec.search.choose_by != "heldout"),
        kpi=_kpi.report(run, spec.score, searched),
        spend=spend(results, trials=len(tried), wall_s=_wall_s(run, spec)),
        importance=importance_rows(searched, study.importances(run, spec.storage.url, spec.name)),
        plan_hash=prepared.plan_hash if prepared else "",
        versions=_versions(results[0].versions if results else {}),
        commands=(command,),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@dataclass(frozen=True)
class Found:
    """Everything that a run directory's studies hold."""

    run: RunDirectory
    spec: SearchSpec
    prepared: Prepared | None
    searched: Sequence[Trial]
    confirmed: Sequence[Trial]
    compared: Sequence[Trial]
    asked: Asked | None

    @classmethod
    def of(cls, run: RunDirectory, spec: SearchSpec) -> Found:
        searched, confirmed, compared = (
            study.records(run, spec.storage.url, name) for name in study.names(spec.name)
        )
        prepared, asked = _prepared(run), Asked.last(run, spec)
        return cls(run, spec, prepared, searched, confirmed, compared, asked)

    def arms(self) -> dict[str, list[Trial]]:
        """The runs of each arm of the comparison that was run last."""
        return self.asked.runs(self.compared) if self.asked else {}


def _everywhere(searched: Sequence[Trial], arms: Mapping[str, Sequence[Trial]]) -> list[Everywhere]:
    """Trials by score, then arms."""
    trials = [
        Everywhere(r.label, [r.result], trial=r.number)
        for r in finalists(searched, len(searched))
        if r.result is not None
    ]
    runs = {name: [r.result for r in rs if r.result is not None] for name, rs in arms.items()}
    return [*trials, *(Everywhere(name, found, arm=name) for name, found in runs.items())]


def _measured(found: Sequence[Trial]) -> Iterator[Measured]:
    """Every score of every finished run: at the end, and at the rungs before."""
    for r in found:
        if r.result is None or r.spec is None or r.state != "COMPLETE" or r.same_as is not None:
            continue
        kind = str(r.spec.policy.get("kind"))
        rate = r.spec.policy["rate"] if kind == "fixed" else r.result.mean_mask_rate
        scores = [
            (round(p.progress, 2), float(p.tokens), p.nats_per_token)
            for p in r.result.learning
            if p.progress < 1
        ]
        end = (1.0, float(r.result.cost.tokens), r.result.lml.nats_per_token)
        for level, tokens, nats in [*scores, end]:
            yield Measured(
                run=f"{r.spec.study}/{r.number}",
                policy=_side(r.spec.policy) or kind,
                kind=kind,
                rate=float(rate),
                parameters=r.result.cost.parameters,
                seed=r.spec.seed,
                level=level,
                tokens=tokens,
                nats_per_token=nats,
            )


def _side(policy: dict[str, Any]) -> str | None:
    if is_fixed_15(policy):
        return BASELINE
    return ACCUMULATED if is_accumulated(policy) else None


def _prepared(run: RunDirectory) -> Prepared | None:
    try:
        return Prepared.model_validate_json(run.prepared.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _without_places(prepared: Prepared | None) -> Prepared | None:
    """A report travels, and is nobody's map of the machine it was made on: names only."""
    if prepared is None:
        return None
    names = {"table": Path(prepared.table).name, "plan": Path(prepared.plan).name}
    return prepared.model_copy(update=names)


def _wall_s(run: RunDirectory, spec: SearchSpec) -> float:
    return sum(study.spent_s(run, spec.storage.url, name) for name in study.names(spec.name))


def importance_rows(
    searched: Sequence[Trial], shares: Mapping[str, float]
) -> tuple[Importance, ...]:
    """Each dimension's share, with the finished trials that took a value of it."""
    done = [r.params for r in searched if r.state == "COMPLETE"]
    return tuple(
        Importance(name=name, share=share, trials=sum(name in params for params in done))
        for name, share in shares.items()
    )


def mask_rates(spec: TrialSpec) -> tuple[tuple[float, float, float], ...]:
    """Quantile 0.05, mean and quantile 0.95 of the trial's mask rate at steps of progress.

    Empty where the policy is a plugin that is not installed here.
    """
    length = min(spec.prepared.length, PROFILE_LENGTH)
    try:
        policy = build("policy", spec.policy)
    except InputError:
        return ()
    rates_M = np.arange(1, length + 1) / length
    found = []
    for step in range(PROFILE_STEPS):
        q_M = policy.pmf(length, (step + 0.5) / PROFILE_STEPS)
        below, above = np.searchsorted(q_M.cumsum(), (0.05, 0.95)).clip(0, length - 1)
        found.append((float(rates_M[below]), float(rates_M @ q_M), float(rates_M[above])))
    return tuple(found)


def _kpi_of(found: Found, record: Trial) -> KpiValue | None:
    name = found.spec.score.kpi
    return None if name is None else _kpi.stored(found.run, name, record)


def _row(trial: Trial, kpi: KpiValue | None = None) -> Trial:
    rates = mask_rates(trial.spec) if trial.spec else ()
    return trial.model_copy(update={"kpi": kpi, "mask_rates": rates})


@dataclass(frozen=True)
class Asked:
    """A comparison, and what each of its arms runs.

    Attributes:
        keys: arm -> `study.run_key`; without an arm's key its runs are known by its name.
    """

    comparison: Comparison
    keys: Mapping[str, str]

    @classmethod
    def last(cls, run: RunDirectory, spec: SearchSpec) -> Asked | None:
        """The comparison that was run last; the spec's, if none was."""
        stored = study.asked_comparison(run, spec.storage.url, spec.name)
        if stored is None:
            return cls(spec.compare, {}) if spec.compare else None
        return cls(Comparison.model_validate(stored["comparison"]), stored["keys"])

    def as_json(self) -> dict[str, Any]:
        return {"comparison": self.comparison.model_dump(mode="json"), "keys": dict(self.keys)}

    def runs(self, found: Sequence[Trial]) -> dict[str, list[Trial]]:
        """The runs of each arm, whatever they were called when they were made."""
        keyed = [(study.run_key(r.spec) if r.spec else None, r) for r in found]
        return {
            name: [r for key, r in keyed if (key == wanted if wanted else r.arm == name)]
            for name in self.comparison.arms
            for wanted in [self.keys.get(name)]
        }


def comparison_report(
    asked: Asked | None,
    found: Sequence[Trial],
    prepared: Prepared | None,
    run: RunDirectory,
) -> ComparisonReport | None:
    """What comparing these runs of the arms says; None if there is nothing to compare."""
    if asked is None or not found or prepared is None:
        return None
    comparison, by_arm = asked.comparison, asked.runs(found)
    baseline = comparison.baseline or next(iter(comparison.arms))
    scores = [s for n, rs in by_arm.items() if (s := _scores(n, rs, prepared, run)) is not None]
    paired = _paired(scores, baseline)
    curves = {c.name: c for n, rs in by_arm.items() if (c := _curves(n, rs, run)) is not None}
    return ComparisonReport(
        baseline=baseline,
        level=comparison.level,
        arms=tuple(_arm(name, records, curves.get(name)) for name, records in by_arm.items()),
        differences=tuple(
            compare(paired, baseline, comparison.level, comparison.margin, _looks(comparison))
        )
        if paired
        else (),
        selection=tuple(selection_probabilities(paired)) if paired else (),
        compute=tuple(equivalent_compute(list(curves.values()), baseline, comparison.level))
        if baseline in curves
        else (),
    )


def finalists(found: Sequence[Trial], most: int, by_worst: bool = False) -> list[Trial]:
    """The best finished trials of a search, best first; the same point counts once.

    With `by_worst` they are judged by their worst domain, where there are domains.
    """
    unique: dict[str, Trial] = {}
    for record in found:
        result = record.result
        if record.state == "COMPLETE" and result and math.isfinite(result.lml.nats_per_token):
            unique.setdefault(result.fingerprint, record)
    key = _by_worst if by_worst else study.by_score
    return sorted(unique.values(), key=key)[:most]


def _by_worst(record: Trial) -> tuple[float, int]:
    worst = worst_domain([record.result]) if record.result else None
    return (-worst[1], record.number) if worst else study.by_score(record)


def selection_report(found: Found) -> SearchSelection | None:
    """The choice among the search's trials; None if none is scored."""
    run, prepared = found.run, found.prepared
    ranked = finalists(found.searched, len(found.searched))
    if not ranked or prepared is None:
        return None
    scored = [
        Scored(r.number, r.label, _per_sequence(run, r.spec))
        for r in ranked
        if r.spec is not None and _trial_directory(run, r.spec).scores.exists()
    ]
    if not scored:
        return None
    confirmed = _arm_scores(found.confirmed, prepared, run)
    arms = [
        s
        for name, records in found.arms().items()
        if (s := _scores(name, records, prepared, run)) is not None
    ]
    tokens = prepared.heldout_tokens / prepared.heldout_sequences
    noise, worst = seed_noise([confirmed, arms]), _worst_scores(found, ranked)
    return search_selection(scored, tokens, noise, confirmed, worst)


def _worst_scores(found: Found, ranked: Sequence[Trial]) -> dict[int, float] | None:
    """Score of each trial at its worst domain, of its fresh runs where there are any.

    None if that does not decide, or there are no domains.
    """
    if found.spec.search.choose_by != "worst_domain":
        return None
    scores = {}
    for record in ranked:
        own = [r.result for r in found.confirmed if r.arm == f"trial {record.number}"]
        fresh = [result for result in own if result is not None]
        worst = worst_domain(fresh or [record.result] if record.result else [])
        if worst is not None:
            scores[record.number] = worst[1]
    return scores or None


def _arm_scores(found: Sequence[Trial], prepared: Prepared, run: RunDirectory) -> list[ArmScores]:
    """The scores of every arm by its name."""
    names = dict.fromkeys(r.arm for r in found if r.arm is not None)
    scores = (_scores(n, [r for r in found if r.arm == n], prepared, run) for n in names)
    return [s for s in scores if s is not None]


def recommended(run: RunDirectory, spec: SearchSpec) -> Trial:
    """The trial to adopt: of the confirmed ones if there are any, else of all.

    Raises:
        NoResultError: no trial has finished.
    """
    found = Found.of(run, spec)
    selection = selection_report(found)
    number = selection.recommended if selection else None
    chosen = [r for r in found.searched if r.number == number]
    return chosen[0] if chosen else study.best(found.searched)


def _looks(comparison: Comparison) -> tuple[int, ...]:
    """Seeds at which a comparison that adds seeds may stop; empty if it does not add any."""
    if comparison.max_seeds is None:
        return ()
    return schedule(comparison.seeds, comparison.max_seeds)


def _paired(scores: Sequence[ArmScores], baseline: str) -> list[ArmScores]:
    """The arms that share a seed with the baseline, or none if nothing can be compared."""
    base = next((s for s in scores if s.name == baseline), None)
    paired = [s for s in scores if base is not None and set(s.seeds) & set(base.seeds)]
    common = set.intersection(*(set(s.seeds) for s in paired)) if paired else set()
    return paired if len(paired) > 1 and common else []


def _finished(records: Sequence[Trial]) -> list[Trial]:
    return [r for r in records if r.result is not None and r.spec is not None]


def _scores(
    name: str, records: Sequence[Trial], prepared: Prepared, run: RunDirectory
) -> ArmScores | None:
    done = _finished(records)
    rows = [_per_sequence(run, r.spec) for r in done if r.spec is not None]
    if not rows:
        return None
    return ArmScores(
        name=name,
        nats_per_sequence_SN=np.stack(rows),
        seeds=tuple(r.spec.seed for r in done if r.spec is not None),
        tokens_per_sequence=prepared.heldout_tokens / prepared.heldout_sequences,
        bytes_per_token=prepared.bytes_per_token,
    )


def _curves(name: str, records: Sequence[Trial], run: RunDirectory) -> Curves | None:
    """Learning curves of the runs that were scored at the same rungs; None if there are none."""
    learned = [
        (r.spec, r.result.learning, at_rungs_RN)
        for r in records
        if r.spec is not None and r.result is not None and r.result.learning
        if len(at_rungs_RN := _stored(run, r.spec, "at_rungs")) == len(r.result.learning)
    ]
    if not learned:
        return None
    shape = learned[0][2].shape
    alike = [(spec, points, z_RN) for spec, points, z_RN in learned if z_RN.shape == shape]
    z_SRN = np.stack([z_RN for _, _, z_RN in alike])
    first = alike[0][1]
    return Curves(
        name=name,
        seeds=tuple(spec.seed for spec, _, _ in alike),
        nats_per_sequence_SRN=z_SRN,
        cost_SR={
            unit: np.array([[float(getattr(p, unit)) for p in points] for _, points, _ in alike])
            for unit in UNITS
        },
        progress_R=tuple(point.progress for point in first),
        tokens_per_sequence=float(z_SRN[0, 0].mean()) / first[0].nats_per_token,
    )


def _per_sequence(run: RunDirectory, spec: TrialSpec) -> np.ndarray[Any, np.dtype[np.float64]]:
    return _stored(run, spec, "nats_per_sequence")


def _trial_directory(run: RunDirectory, spec: TrialSpec) -> TrialDirectory:
    """Where it is now; its spec says where it was made."""
    folder, number = Path(spec.directory).parts[-2:]
    return TrialDirectory(run.root / folder / number)


def _stored(run: RunDirectory, spec: TrialSpec, what: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """An array of its scores, wherever the run directory is now; empty if it was not kept."""
    with np.load(_trial_directory(run, spec).scores) as stored:
        found: np.ndarray[Any, np.dtype[np.float64]] = stored.get(what, np.zeros(0))
        return found


def _arm(name: str, records: Sequence[Trial], curves: Curves | None) -> ArmRow:
    specs = [r.spec for r in records if r.spec is not None]
    return ArmRow(
        name=name,
        policy=specs[0].policy if specs else {},
        policy_label=records[0].policy_label if records else "",
        size_label=records[0].size_label if records else "",
        runs=tuple(
            ArmRun(seed=r.spec.seed, result=r.result)
            for r in records
            if r.result is not None and r.spec is not None
        ),
        failures=sum(r.state == "FAIL" for r in records),
        learning=mean_curve(curves) if curves else (),
    )


def _versions(of_trials: Mapping[str, str]) -> dict[str, str]:
    """What the trials ran with; what is installed here where they did not say."""
    here = {"mptune": __version__, "python": platform.python_version()}
    return {**here, **{p: _installed(p) for p in PACKAGES}, **of_trials}


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
