"""A believable study, made up: a search over policies and sizes, and a comparison on 3 seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mptune.analysis.arms import ArmScores, compare, selection_probabilities
from mptune.analysis.comparison import ComparisonReport
from mptune.analysis.results import Report, spend
from mptune.trial import Cost, CurvePoint, LMLScore, Prepared, RateScore, Trial, TrialResult

D = 128
PLAN = "3f9a61c2d07be845"
VERSIONS = {"mptune": "0.1.0", "torch": "2.13.0", "deepspeed": "0.19.8", "optuna": "5.0.0"}

SIZES = {"bert 64 × 2, 4 heads": 139_328, "bert 128 × 4, 4 heads": 860_416}

# Policy in words -> (its dictionary, score lost where it did not train: at low r, at high r).
POLICIES: dict[str, tuple[dict[str, Any], float, float]] = {
    "fixed 15 %": ({"kind": "fixed", "rate": 0.15}, 0.00, 0.52),
    "fixed 30 %": ({"kind": "fixed", "rate": 0.30}, 0.03, 0.30),
    "uniform (accumulated)": ({"kind": "uniform", "reduction": "seq_mean"}, 0.06, 0.0),
    "beta(2.1, 1.7)": ({"kind": "beta", "a": 2.1, "b": 1.7}, 0.10, 0.03),
    "linear 60 → 15 %": ({"kind": "linear", "start": 0.6, "end": 0.15}, 0.03, 0.16),
}


def curve(size: str, policy: str) -> tuple[CurvePoint, ...]:
    """S(r): worse with more masked, and lower where the policy never trained."""
    _, low, high = POLICIES[policy]
    rates = np.linspace(0.02, 0.98, 25)
    best = -1.05 - 2.0 * rates**1.8 + 0.12 * (SIZES[size] > 500_000)
    scores = best - low * (1 - rates) ** 4 - high * rates**3
    errors = 0.03 + 0.05 * (1 - rates) ** 3
    return tuple(
        CurvePoint(mask_rate=float(r), nats_per_token=float(s), se=float(e))
        for r, s, e in zip(rates, scores, errors, strict=True)
    )


def result(size: str, policy: str, offset: float = 0.0) -> TrialResult:
    points = curve(size, policy)
    lml = float(np.mean([p.nats_per_token for p in points])) + offset
    loss = -float(
        np.interp(0.15, [p.mask_rate for p in points], [p.nats_per_token for p in points])
    )
    return TrialResult(
        fingerprint="0123456789abcdef",
        lml=LMLScore(
            nats_per_sequence=lml * D,
            nats_per_token=lml,
            bits_per_byte=-lml / np.log(2),
            se_population=2.1,
            df_population=383.0,
            se_per_token=2.1 / D,
            largest_share=0.02,
            groups_needed=12,
            groups=384,
            grouped_by="document",
            se_fixed=0.9,
            sequences=384,
            forwards=768,
            effective_sample_size=512.0,
            plan_hash=PLAN,
            curve=points,
        ),
        rates=(
            RateScore(rate=0.15, loss=loss - offset, loss_se=0.02, accuracy=0.66, accuracy_se=0.01),
        ),
        cost=Cost(
            tokens=1_500_000,
            flops=6.0 * SIZES[size] * 1_500_000,
            steps=366,
            training_s=48.0,
            scoring_s=6.0,
            total_s=57.0,
            workers=2,
            parameters=SIZES[size],
            tokens_per_s=31_000.0,
        ),
        mean_mask_rate=0.4,
        versions=VERSIONS,
    )


def trial(number: int, size: str, policy: str, **changes: Any) -> Trial:
    finished = result(size, policy, 0.002 * (number % 3))
    finished = finished.model_copy(update={"fingerprint": f"{number:016x}"})
    row = Trial(
        number=number,
        policy=POLICIES[policy][0],
        policy_label=policy,
        size_label=size,
        parameters=SIZES[size],
        state="COMPLETE",
        seconds=57.0,
        result=finished,
        rungs=((0.5, finished.lml.nats_per_token - 0.2),),
    )
    return row.model_copy(update=changes)


def search() -> tuple[Trial, ...]:
    rows = [trial(n, s, p) for n, (s, p) in enumerate((s, p) for s in SIZES for p in POLICIES)]
    small = next(iter(SIZES))
    rows[0] = rows[0].model_copy(update={"arm": "fixed 15 %"})
    rows[2] = rows[2].model_copy(update={"arm": "accumulated"})
    rows.append(
        trial(10, small, "fixed 30 %", state="PRUNED", reason="pruned",
              detail="pruned at step 183", result=None, rungs=((0.5, -2.31),))
    )  # fmt: skip
    rows.append(
        trial(11, small, "beta(2.1, 1.7)", state="FAIL", reason="non_finite_loss",
              detail="training loss is nan at step 41", result=None, rungs=())
    )  # fmt: skip
    rows.append(
        trial(12, small, "beta(2.1, 1.7)", state="FAIL", reason="non_finite_loss",
              detail="training loss is inf at step 77", result=None, rungs=())
    )  # fmt: skip
    return tuple(rows)


def comparison(names: tuple[str, ...] = ("fixed 15 %", "accumulated")) -> ComparisonReport:
    """Arms at the large size over three seeds."""
    size = list(SIZES)[1]
    words = {"accumulated": "uniform (accumulated)"}
    rng = np.random.default_rng(0)
    shared_N = 12 * rng.normal(size=384)
    arms, scores = {}, []
    for name in names:
        policy = words.get(name, name)
        base = result(size, policy).lml.nats_per_sequence
        z_SN = base + shared_N + rng.normal(0, 1.2, (3, 1)) + rng.normal(0, 3, (3, 384))
        scores.append(ArmScores(name, z_SN, (0, 1, 2), D, 1.0))
        arms[name] = tuple(
            Trial(
                stage="comparison", number=len(names) * s + len(arms), state="COMPLETE", arm=name,
                seed=s, policy=POLICIES[policy][0], policy_label=policy, size_label=size,
                result=result(size, policy, float(z_SN[s].mean() - base) / D),
            )
            for s in range(3)
        )  # fmt: skip
    return ComparisonReport(
        baseline=names[0],
        arms=arms,
        differences=tuple(compare(scores, names[0])),
        selection=tuple(selection_probabilities(scores)),
    )


def make(
    trials: tuple[Trial, ...] | None = None, compared: ComparisonReport | None = None
) -> Report:
    rows = search() if trials is None else trials
    results = [row.result for row in rows if row.result is not None]
    arms = compared.arms.values() if compared else ()
    results += [t.result for arm in arms for t in arm if t.result is not None]
    return Report(
        study="python-bytes",
        data="Python standard library, 1 412 modules as bytes, 128 positions per sequence",
        prepared=Prepared(
            table="/data/tables/ab12", table_hash="ab12cd34", plan="/runs/python-bytes/plan.npz",
            plan_hash=PLAN, vocabulary_size=257, length=D, train_sequences=81_204,
            heldout_sequences=384, heldout_tokens=49_152, bytes_per_token=1.0,
            description="Python standard library as bytes",
        ),
        trials=rows,
        comparison=compared,
        spend=spend(results, trials=len(rows) + 6 * (compared is not None), wall_s=1_284.0),
        plan_hash=PLAN,
        versions=VERSIONS,
        commands=("mptune search search_spaces/python-bytes.yaml",),
        created="2026-11-23T22:40:00+00:00",
    )  # fmt: skip


@pytest.fixture(scope="session")
def everything() -> Report:
    """A study with all there is: domains, missing values, sizes, KPI, confirmation."""
    from tests.report.everything import study

    return study()


@pytest.fixture(scope="session")
def compared() -> Report:
    """A search and its comparison."""
    return make(compared=comparison())


@pytest.fixture(scope="session")
def searched() -> Report:
    """A search without a comparison."""
    return make()


@pytest.fixture(scope="session")
def empty() -> Report:
    """Nothing has finished: one trial failed, one waits."""
    failed, waiting = search()[-1], trial(1, next(iter(SIZES)), "fixed 15 %", state="WAITING")
    return make((failed, waiting.model_copy(update={"result": None, "rungs": ()})))
