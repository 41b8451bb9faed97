"""The exposure sampler: how it starts, what it asks for next, and where it leaves it to TPE."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

import mptune
from mptune.analysis.exposure import Exposed
from mptune.errors import InputError
from mptune.paths import RunDirectory
from mptune.study.exposure import MIN_FINISHED
from mptune.study.optuna_private import requeue
from mptune.study.records import MEMORY
from tests import studies

Define = Callable[[Any], Mapping[str, Any]]


def define(trial: Any) -> dict[str, Any]:
    kind = trial.suggest_categorical("kind", ["fixed", "uniform", "beta", "power", "linear"])
    policy: dict[str, Any] = {"kind": kind}
    if kind == "fixed":
        policy["rate"] = trial.suggest_float("rate", 0.05, 0.9)
    if kind == "beta":
        policy |= {name: trial.suggest_float(name, 0.5, 6, log=True) for name in "ab"}
    if kind == "power":
        policy["exponent"] = trial.suggest_int("exponent", 1, 3)
    if kind == "linear":
        policy |= {"start": trial.suggest_float("start", 0.3, 0.9), "end": 0.15}
    return {"policy": policy, "size": trial.suggest_categorical("size", [1e5, 1e6])}


def score(trial: optuna.Trial, define: Define = define) -> float:
    """Best where rates are near .4 and .6; the curve over rates falls."""
    seen = Exposed.of(define(trial))
    rates = np.arange(1, 41) / 40
    law = seen.omega_SF[-4:].mean(0)
    law /= law.sum()
    wide = law @ np.abs(rates[:, None] - rates) @ law
    value = -2 - abs(law @ rates - 0.5) + 0.3 * wide
    value += 0.003 * np.random.default_rng(trial.number).standard_normal()
    shape = 0.1 * np.log(0.05 + law) - rates
    curve = [(float(r), float(v)) for r, v in zip(rates, value + shape - shape.mean(), strict=True)]
    trial.set_user_attr("curve", curve)
    return float(value)


def study(seed: int = 0, make: Define = define, **options: Any) -> optuna.Study:
    sampler = mptune.ExposureSampler(make, seed=seed, **options)
    return optuna.create_study(direction="maximize", sampler=sampler)


def run(study: optuna.Study, trials: int) -> list[dict[str, Any]]:
    """What it asked for, trial by trial, each with its `asked` attribute."""
    study.optimize(score, n_trials=trials)
    return [{**t.params, **t.user_attrs["asked"]} for t in study.trials]


def policy_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in asked.items() if k not in ("repeat", "why")}


def test_it_starts_with_four_policies() -> None:
    asked = run(study(), 4)
    assert [a["kind"] for a in asked][::3] == ["fixed", "linear"]
    assert asked[0]["rate"] == pytest.approx(0.15, abs=0.08)
    assert asked[1]["kind"] in ("uniform", "power", "beta")
    assert [a["repeat"] for a in asked] == [0] * 4
    assert [a["why"][:6] for a in asked] == ["start:"] * 4
    assert "start" not in run(study(startup_trials=3), 4)[3]["why"]


def test_no_policy_gets_another_seed_before_six_have_finished() -> None:
    def one_size(trial: Any) -> dict[str, Any]:
        return {**define(trial), "size": 1e6}

    asked = [run(study(seed, one_size, startup_trials=3), 9) for seed in (0, 2, 5)]
    assert all(a["repeat"] == 0 for of_study in asked for a in of_study[:MIN_FINISHED])
    assert all(any(a["repeat"] for a in of_study[MIN_FINISHED:]) for of_study in asked)
    assert not any("inf" in a["why"] for of_study in asked for a in of_study)


def test_arms_that_ran_are_part_of_the_start() -> None:
    opened = study()
    opened.enqueue_trial({"kind": "fixed", "rate": 0.15})
    opened.enqueue_trial({"kind": "uniform", "size": 1e6})
    opened.optimize(score, n_trials=5)
    kinds = [t.params["kind"] for t in opened.trials]
    assert kinds[:2] == ["fixed", "uniform"]
    assert kinds[3] == "linear"
    assert "start" not in opened.trials[4].user_attrs["asked"]["why"]
    assert opened.trials[0].params["size"] in (1e5, 1e6)


def test_the_start_has_the_usual_reduction_where_the_space_has_it() -> None:
    def reduced(trial: Any) -> dict[str, Any]:
        tree = define(trial)
        reduction = trial.suggest_categorical("reduction", ["token_mean", "elbo", "seq_mean"])
        return {**tree, "policy": {**tree["policy"], "reduction": reduction}}

    opened = study(make=reduced)
    opened.optimize(lambda trial: score(trial, reduced), n_trials=4)
    found = {t.params["kind"]: t.params["reduction"] for t in opened.trials}
    assert (found["fixed"], found["uniform"], found["linear"]) == ("seq_mean",) * 3


def test_it_finds_the_best_policies_and_runs_them_again() -> None:
    studies = [study(seed) for seed in range(3)]
    repeats = [sum(a["repeat"] > 0 for a in run(opened, 16)) for opened in studies]
    sampler = optuna.samplers.RandomSampler(seed=0)
    random = optuna.create_study(direction="maximize", sampler=sampler)
    random.optimize(score, n_trials=40)
    late = [t.value or 0.0 for opened in studies for t in opened.trials[8:]]
    assert np.median(late) > np.quantile([t.value or 0.0 for t in random.trials], 0.7)
    assert 8 <= sum(repeats) <= 24


def test_minimising_finds_the_same() -> None:
    down = optuna.create_study(sampler=mptune.ExposureSampler(define))

    def loss(trial: optuna.Trial) -> float:
        value = -score(trial)
        trial.set_user_attr("curve", [(r, -v) for r, v in trial.user_attrs["curve"]])
        return value

    down.optimize(loss, n_trials=16)
    assert [t.params for t in down.trials] == [policy_of(a) for a in run(study(), 16)]


def test_an_equal_policy_is_another_seed_whatever_it_is_called() -> None:
    """Of one exposure under three names, only the first that ran is ever asked for."""

    def three_names(trial: Any) -> dict[str, Any]:
        kind = trial.suggest_categorical("kind", ["uniform", "power", "beta"])
        values = {"uniform": {}, "power": {"exponent": 1}, "beta": {"a": 1, "b": 1}}[kind]
        low = trial.suggest_categorical("reduction", ["seq_mean", "token_mean"])
        return {"policy": {"kind": kind, **values, "reduction": low}}

    opened = study(make=three_names)
    opened.optimize(lambda trial: score(trial, three_names), n_trials=12)
    points = {tuple(t.params.items()) for t in opened.trials}
    assert len(points) == 2
    assert sum(t.user_attrs["asked"]["repeat"] == 0 for t in opened.trials) == 2


def test_parallel_asks_differ() -> None:
    opened = study()
    opened.optimize(score, n_trials=10)
    asked = [opened.ask() for _ in range(6)]
    points = {tuple(define(trial)["policy"].items()) for trial in asked}
    assert len(points) >= 4
    seeds = {(*trial.params.items(), trial.user_attrs["asked"]["repeat"]) for trial in asked}
    assert len(seeds) == 6


def test_a_resumed_study_asks_for_the_same(tmp_path: Any) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    opened = optuna.create_study(study_name="a", storage=storage, direction="maximize")
    opened.sampler = mptune.ExposureSampler(define)
    run(opened, 10)
    undisturbed = run(study(), 12)
    again = optuna.load_study(
        study_name="a", storage=storage, sampler=mptune.ExposureSampler(define)
    )
    assert run(again, 2) == undisturbed
    assert run(study(seed=1), 12) != undisturbed


def two_policies(trial: Any) -> dict[str, Any]:
    return {"policy": {"kind": "fixed", "rate": trial.suggest_categorical("r", [0.2, 0.5])}}


def test_a_requeued_trial_keeps_its_point_and_its_seed(run: RunDirectory) -> None:
    opened = studies.create(run, None, "demo")
    opened.sampler = mptune.ExposureSampler(two_policies)
    opened.optimize(lambda trial: score(trial, two_policies), n_trials=6)
    trial = opened.ask()
    two_policies(trial)
    requeue(opened, trial)
    again = studies.create(run, None, "demo").ask()
    two_policies(again)
    assert (again.number, again.params) == (trial.number, trial.params)
    assert again.user_attrs["asked"] == trial.user_attrs["asked"]
    assert again.user_attrs["asked"]["repeat"] >= 1


def test_without_a_policy_to_search_tpe_proposes_and_says_so() -> None:
    def no_policy(trial: Any) -> dict[str, Any]:
        return {"policy": {"kind": "uniform"}, "rate": trial.suggest_float("rate", 0, 1)}

    opened = study(make=no_policy)
    with pytest.warns(UserWarning, match="no dimension of the policy is searched; TPE") as said:
        opened.optimize(lambda t: -((no_policy(t)["rate"] - 0.3) ** 2), n_trials=30)
    assert len([w for w in said if w.category is UserWarning]) == 1
    assert abs(opened.best_params["rate"] - 0.3) < 0.1
    assert "asked" not in opened.trials[-1].user_attrs
    assert isinstance(opened.sampler, mptune.ExposureSampler)
    first = opened.get_trials(deepcopy=False)[0]
    assert opened.sampler.goes_on(opened, first, [])[0], "none is paused for others of the start"


def test_a_foreign_dimension_is_left_to_tpe_and_said_so() -> None:
    opened = study()

    def objective(trial: optuna.Trial) -> float:
        return score(trial) - trial.suggest_float("dropout", 0, 1)

    with pytest.warns(UserWarning, match="'dropout' is no dimension of the sampler's own; TPE"):
        opened.optimize(objective, n_trials=9)
    assert all({"kind", "dropout"} <= t.params.keys() for t in opened.trials)


@pytest.mark.parametrize("error", [ValueError("of the user's"), InputError("'fixd' is not one")])
def test_errors_of_define_are_raised(error: Exception) -> None:
    def wrong(trial: Any) -> dict[str, Any]:
        rate = trial.suggest_float("rate", 0.1, 0.9)
        if isinstance(error, ValueError):
            raise error
        return {"policy": {"kind": "fixd", "rate": rate}}

    with pytest.raises(type(error), match=str(error)):
        study(make=wrong).ask().suggest_float("rate", 0.1, 0.9)


def test_a_curve_whose_rates_are_no_fractions_is_refused() -> None:
    opened = study()
    opened.optimize(score, n_trials=4)
    for trial in opened.get_trials(deepcopy=False):
        trial.user_attrs["curve"] = [(100 * r, y) for r, y in trial.user_attrs["curve"]]
    with pytest.raises(ValueError, match=r"curve of trial 0: mask rates .* not 2.5 to 100"):
        define(opened.ask())


def test_when_all_policies_have_run_one_is_run_again() -> None:
    opened = study(make=two_policies)
    opened.optimize(lambda trial: score(trial, two_policies), n_trials=8)
    assert opened.trials[-1].user_attrs["asked"]["why"].endswith("every policy has run")


def test_a_policy_that_is_not_valid_is_not_asked_for() -> None:
    def bounded(trial: Any) -> dict[str, Any]:
        low, high = trial.suggest_float("low", 0, 0.9), trial.suggest_float("high", 0.1, 1)
        return {"policy": {"kind": "uniform", "low": low, "high": high}}

    opened = study(make=bounded)
    for _ in range(12):
        trial = opened.ask()
        Exposed.of(bounded(trial))
        opened.tell(trial, 0.0)


def test_models_that_do_not_fit_are_not_asked_for_again() -> None:
    opened = study()
    for _ in range(16):
        trial = opened.ask()
        if define(trial)["size"] == 1e6:
            trial.set_constraint(MEMORY, 1.0)
            opened.tell(trial, state=TrialState.PRUNED)
        else:
            opened.tell(trial, score(trial))
    sizes = [t.params["size"] for t in opened.trials]
    assert sizes.count(1e6) <= 3
    assert 1e6 not in sizes[-8:]


def test_pruned_and_failed_trials_are_not_asked_for_again() -> None:
    opened = study()
    opened.optimize(score, n_trials=8)
    ended: list[dict[str, Any]] = []
    for number in range(8):
        trial = opened.ask()
        define(trial)
        trial.report(-9.0, 500)
        opened.tell(trial, state=TrialState.PRUNED if number % 2 else TrialState.FAIL)
        assert trial.params not in ended
        if not trial.user_attrs["asked"]["repeat"]:
            ended.append(trial.params)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_at_a_rung_that_is_not_finite_is_left_out(bad: float) -> None:
    opened, kept = study(startup_trials=3), study(startup_trials=3)
    for number in range(7):
        for each, value in ((opened, bad), (kept, None)):
            trial = each.ask()
            define(trial)
            if value is not None:
                trial.report(value, 250)
            if number % 3 == 1:
                each.tell(trial, state=TrialState.PRUNED)
            else:
                each.tell(trial, score(trial))
    assert [t.params for t in opened.trials] == [t.params for t in kept.trials]


def test_a_model_that_did_not_fit_after_its_first_rung_is_not_run_again() -> None:
    opened = study(startup_trials=3)
    for number in range(10):
        trial = opened.ask()
        define(trial)
        if number == 3:
            trial.report(9.0, 500)
            trial.set_constraint(MEMORY, 1.0)
            opened.tell(trial, state=TrialState.PRUNED)
        else:
            opened.tell(trial, score(trial))
    assert all(t.params != opened.trials[3].params for t in opened.trials[4:])


def test_scores_that_are_equal_are_no_error() -> None:
    """The curves differ by far more than the scores."""
    opened = study(make=two_policies, startup_trials=2)
    rng = np.random.default_rng(0)
    for _ in range(9):
        trial = opened.ask()
        two_policies(trial)
        value = -float(rng.integers(2))
        curve = [(g / 10 + 0.05, value - g * rng.random()) for g in range(10)]
        trial.set_user_attr("curve", curve)
        opened.tell(trial, value)
    assert len({t.params["r"] for t in opened.trials}) == 2


def test_the_next_trial_is_asked_for_within_a_second() -> None:
    opened = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    opened.optimize(score, n_trials=200)
    opened.sampler = mptune.ExposureSampler(define)
    define(opened.ask())
    began = time.process_time()
    define(opened.ask())
    assert time.process_time() - began < 1.0


@pytest.fixture(autouse=True)
def _no_other_warning() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
