"""Trainings that agree up to a point of progress train that prefix once, bit for bit."""

from __future__ import annotations

import pytest

from mptune.paths import TrialDirectory
from mptune.spec.schema import build
from mptune.trial import Finished, Forks
from tests.objects import bucket
from tests.training.trials import Script

FALLING = {
    "kind": "step",
    "stages": [{"at": 0, "policy": 0.3}, {"at": 0.5, "policy": {"kind": "uniform"}}],
}
LATER = {"kind": "step", "stages": [{"at": 0, "policy": 0.3}, {"at": 0.75, "policy": 0.6}]}


def figures(events, directory):
    """What a trial found, without its times."""
    assert isinstance(events[-1], Finished), events[-1]
    result = events[-1].result.model_dump(exclude={"cost", "learning"})
    learning = [(p.progress, p.nats_per_token, p.flops) for p in events[-1].result.learning]
    return result, learning, TrialDirectory(directory).scores.read_bytes()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shared_prefix_changes_no_number(study, alone, pair, tmp_path, workers):
    run, forks = {1: alone, 2: pair}[workers], Forks(store=str(tmp_path / "f"), at=(0.5, 0.75))

    def trial(name, policy, shared):
        directory = tmp_path / f"{name} {'shared' if shared else 'alone'}"
        asked = {"policy": policy, "rungs": (0.25, 0.6), "forks": forks if shared else None}
        events = run(study(directory, workers, **asked))
        return events, figures(events, directory)

    first, _ = trial("fixed", {"kind": "fixed", "rate": 0.3}, shared=True)
    assert first[0].resumed_at == 0
    assert first[-1].result.cost.shared == (0, 0)
    for name, policy, step in (("falling", FALLING, 12), ("later", LATER, 18)):
        events, found = trial(name, policy, shared=True)
        assert events[0].resumed_at == step
        assert found == trial(name, policy, shared=False)[1]
        cost = events[-1].result.cost
        assert 0.3 * cost.flops < cost.shared[1] < 0.8 * cost.flops


def test_only_equal_prefixes_are_shared(study, alone, tmp_path):
    forks = Forks(store=str(tmp_path / "f"), at=(0.5,))
    alone(study(tmp_path / "a", policy={"kind": "fixed", "rate": 0.3}, forks=forks))
    for changes in (
        {"seed": 4},
        {"policy": {**FALLING, "corruption": "bert"}},
        {"training": {"optimizer": {"learning_rate": 5e-3}}},
        {"rungs": (0.2,)},
    ):
        events = alone(study(tmp_path / "b", **{"policy": FALLING, "forks": forks, **changes}))
        assert events[0].resumed_at == 0, changes


def test_a_stopped_trial_goes_on_from_its_own_checkpoint(study, alone, tmp_path):
    forks = Forks(store=f"{bucket(tmp_path / 'bucket')}/forks", at=(0.5,))
    alone(study(tmp_path / "a", policy={"kind": "fixed", "rate": 0.3}, forks=forks))
    spec = study(tmp_path / "b", policy=FALLING, forks=forks)
    assert alone(spec, Script(stop_at=3))[-1].step == 15
    events = alone(spec)
    assert events[0].resumed_at == 15
    assert events[-1].result.cost.shared > (0, 0)


def test_a_damaged_or_unwritable_prefix_costs_the_sharing_only(study, alone, tmp_path):
    store = tmp_path / "f"
    forks = Forks(store=str(store), at=(0.5,))
    alone(study(tmp_path / "a", policy={"kind": "fixed", "rate": 0.3}, forks=forks))
    for file in store.rglob("*.pt"):
        file.write_bytes(b"damaged")
    events = alone(study(tmp_path / "b", policy=FALLING, forks=forks))
    assert events[0].resumed_at == 0
    assert isinstance(events[-1], Finished)


class Drawn(type(build("policy", {"kind": "fixed", "rate": 0.3}))):
    """A plugin that draws its counts in another way than by its law."""

    def draw_counts(self, lengths_B, progress, rng):
        return lengths_B // 2


def test_a_policy_that_draws_in_its_own_way_is_another_one_in_a_schedule():
    drawn, step = Drawn(rate=0.3), build("policy", FALLING)
    stages = (step.stages[0].model_copy(update={"policy": drawn}), step.stages[1])
    assert step.model_copy(update={"stages": stages}).until(0.5) != drawn.until(0.5)
    assert step.until(0.5) == build("policy", {"kind": "fixed", "rate": 0.3}).until(0.5)


@pytest.mark.parametrize(
    ("one", "other", "until", "same"),
    [
        ({"kind": "fixed", "rate": 0.3}, FALLING, 0.5, True),
        ({"kind": "fixed", "rate": 0.3}, FALLING, 0.51, False),
        (FALLING, LATER, 0.5, True),
        (FALLING, LATER, 0.75, False),
        (
            {"kind": "warmup_plateau_decay", "start": 0.1, "plateau": 0.4, "end": 0.2},
            {"kind": "warmup_plateau_decay", "start": 0.1, "plateau": 0.4, "end": 0.3},
            0.8,
            True,
        ),
        (
            {"kind": "warmup_plateau_decay", "start": 0.1, "plateau": 0.4, "end": 0.2},
            {"kind": "warmup_plateau_decay", "start": 0.1, "plateau": 0.4, "end": 0.3},
            0.81,
            False,
        ),
        (
            {"kind": "linear", "start": 0.1, "end": 0.4},
            {"kind": "cosine_schedule", "start": 0.1, "end": 0.4},
            0.5,
            False,
        ),
        ({"kind": "adaptive"}, {"kind": "uniform"}, 0.1, False),
    ],
)
def test_when_two_policies_draw_the_same_masks(one, other, until, same):
    one, other = build("policy", one), build("policy", other)
    assert (one.until(until) == other.until(until)) == same


def test_where_policies_change():
    assert build("policy", FALLING).changes() == (0.5,)
    assert build("policy", {"kind": "uniform"}).changes() == ()
    assert build("policy", {"kind": "linear", "start": 0.3, "end": 0.1}).changes() == ()
    wpd = {"kind": "warmup_plateau_decay", "start": 0.1, "plateau": 0.4, "end": 0.2}
    assert build("policy", wpd).changes() == (0.1, 0.8)
