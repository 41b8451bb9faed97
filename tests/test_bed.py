"""The bed's script on tiny data: its trainings are mptune's, its scores too, and parts resume."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mptune
from mptune.data._table import Split
from mptune.errors import InputError
from mptune.lml.covariates import TokenCovariates
from mptune.lml.estimator import estimate_lml
from mptune.lml.plan import LMLPlan
from mptune.paths import free_port
from mptune.spec.schema import Training, build
from mptune.training import engine as ds
from mptune.training.feed import Inputs
from mptune.training.loop import Loop
from mptune.training.schedule import Spent

SYMBOLS, AXES, LENGTH, STEPS = 7, (4, 3), 12, 20
POLICIES = (
    {"kind": "uniform"},
    {"kind": "linear", "start": 0.9, "end": 0.1, "reduction": "token_mean"},
    {"kind": "adaptive", "every": 0.2, "reduction": "elbo", "corruption": "swap"},
    {"kind": "fixed", "rate": 0.4, "structure": "unit"},
)


@pytest.fixture(scope="module")
def make():
    path = Path(__file__).parent.parent / "benchmarks" / "bed" / "make.py"
    spec = importlib.util.spec_from_file_location("bed_make", path)
    sys.modules["bed_make"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bed_make"]


@pytest.fixture(scope="module")
def data(make):
    """Sequences in which a symbol follows from the one before it."""
    rng = np.random.default_rng(0)
    steps_ND = rng.choice([1, 2], (112, LENGTH), p=[0.9, 0.1])
    tokens_ND = (rng.integers(SYMBOLS, size=(112, 1)) + steps_ND.cumsum(1)) % SYMBOLS
    plan = LMLPlan.make(
        np.ones((48, LENGTH), bool), forwards=2, seed=1, groups=np.arange(48) % 5 // 2
    )
    return make.Data("images", tokens_ND[48:], tokens_ND[:48], plan, SYMBOLS, AXES)


@pytest.fixture
def settings(make):
    return make.Settings(width=8, learning_rate=1e-2, steps=STEPS, batch=6)


@pytest.mark.parametrize("policy", POLICIES[:3], ids=lambda policy: policy["kind"])
def test_runs_at_once_are_the_runs_one_by_one(make, data, settings, policy):
    together = make.train(policy, data, settings, [3, 4, 5])
    alone = make.train(policy, data, settings, [4])
    np.testing.assert_allclose(together["sums"][1], alone["sums"][0], rtol=1e-4)
    np.testing.assert_array_equal(together["flops"][1], alone["flops"][0])
    assert not np.allclose(together["sums"][0], together["sums"][1], rtol=1e-2)


class Alone(torch.nn.Module):
    """One model of the bed as a module that mptune trains."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        weights = {n.replace(".", "/"): w[0].detach() for n, w in model.weights.items()}
        self.own = torch.nn.ParameterDict(weights)

    def forward(self, tokens_BD, masked_K, *more):
        self.model.weights = {n.replace("/", "."): w[None] for n, w in self.own.items()}
        return self.model.logits(tokens_BD[None], masked_K[None])[0]


class NoStop:
    def stop_requested(self):
        return None


class NoCheckpoints:
    def load(self, engine):
        return Spent()

    def save(self, engine, spent):
        pass


@pytest.fixture(scope="module")
def ranks():
    yield ds.join(0, 1, 0, "127.0.0.1", free_port())
    ds.leave()


@pytest.mark.parametrize("policy", POLICIES[:3], ids=lambda policy: policy["kind"])
def test_a_run_is_a_training_of_mptune(make, data, settings, ranks, policy):
    mine = make.train(policy, data, settings, [2])
    training = Training(
        budget_tokens=STEPS * settings.batch * LENGTH,
        batch_size=settings.batch,
        optimizer={"learning_rate": settings.learning_rate},
        schedule=make.SCHEDULE,
    )
    count = len(data.train_ND)
    inputs = Inputs(
        number=0,
        seed=2,
        training=training,
        rungs=(),
        policy=build("policy", policy),
        family=build("model", {"family": "bert", "width": settings.width, "depth": make.DEPTH}),
        train=Split(data.train_ND, np.ones((count, LENGTH), bool), np.zeros(count, np.int32)),
        vocabulary_size=SYMBOLS,
    )
    module = Alone(make.Model(data, settings.width, [2]))
    with ds.engine(module, training, ranks) as engine:
        loop = Loop(inputs, engine, ranks, NoCheckpoints(), lambda: None)
        list(loop.run(NoStop()))
    module(torch.zeros(1, LENGTH, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    np.testing.assert_allclose(mine["sums"][0, -1], module.model.score(data)[0], rtol=1e-3)
    assert loop.spent.flops == mine["flops"][0, -1]


def test_scores_are_those_of_the_estimator(make, data):
    model = make.Model(data, 8, [0, 1])
    covariates = TokenCovariates.fit(data.train_ND, None, SYMBOLS)

    def log_prob(tokens_BD, mask_BD):
        inputs_BD = torch.from_numpy(np.where(mask_BD, SYMBOLS, tokens_BD)).expand(2, -1, -1)
        every = torch.arange(tokens_BD.size).expand(2, -1)
        logits = model.logits(inputs_BD, every)[1].reshape(*tokens_BD.shape, SYMBOLS)
        chosen = torch.from_numpy(tokens_BD)[..., None]
        return torch.log_softmax(logits, -1).gather(-1, chosen)[..., 0]

    expected = estimate_lml(log_prob, data.score_ND, plan=data.plan, covariates=covariates)
    blank = make.observations(
        data.plan, np.zeros(data.plan.counts_Nk.shape), data.score_ND, data.covariates
    )
    found = make.scores(data.plan, blank, model.score(data)[1])
    assert found["lml"] == pytest.approx(expected.nats_per_position, rel=1e-5)
    per_group = [expected.per_sequence[data.plan.groups_N == g].mean() / LENGTH for g in range(3)]
    np.testing.assert_allclose(found["groups"], per_group, rtol=1e-5)
    # The mean over mask counts is the score; few forwards per band, so not exactly.
    counts_G = np.diff(np.floor(np.linspace(0, LENGTH, 11) + 1e-9))
    assert found["curves"] @ counts_G / LENGTH == pytest.approx(found["lml"], abs=0.05)


@pytest.fixture
def tiny(make, data, monkeypatch):
    """A bed of two kinds of data, two policies, two sizes and three seeds, made in a second."""
    for name, value in {
        "STEPS": 5, "BATCH": 4, "POLICIES": POLICIES[2:], "SIZES": {"S": 4, "M": 8},
        "LEARNING_RATES": {"S": 0.01, "M": 0.01}, "SEEDS": ((0,), (1, 2)),
        "SOURCES": {"sensors": {}, "images": {}}, "UNITS": {"sensors": "span", "images": "span"},
        "load_data": lambda name, cache: replace(data, name=name),
    }.items():  # fmt: skip
        monkeypatch.setattr(make, name, value)


def test_a_part_that_exists_is_not_made_again(make, tiny, tmp_path, capsys, monkeypatch):
    made = []
    train = make.train
    monkeypatch.setattr(make, "train", lambda *a: made.append(a) or train(*a))
    make.run(tmp_path, hours=1)
    assert len(made) == len(list(make.units())) == 16
    units = list(make.units())
    assert [(u.size, u.seeds) for u in units[:5]] == [("S", (0,))] * 4 + [("S", (1, 2))]
    units[5].path(tmp_path).unlink()
    make.run(tmp_path, hours=1)
    assert len(made) == 17
    make.run(tmp_path, hours=0)
    make.status(tmp_path)
    assert "size M, seeds (1, 2): 4 of 4 parts" in capsys.readouterr().out


def test_the_file_has_what_the_parts_have(make, tiny, tmp_path):
    make.run(tmp_path, hours=1)
    unit = make.Unit("images", "M", 1, (1, 2))
    part = dict(np.load(unit.path(tmp_path)))
    gone = make.Unit("images", "M", 0, (0,))
    gone.path(tmp_path).unlink()
    make.pack(tmp_path, tmp_path / "bed.npz")
    bed = mptune.bed.load(tmp_path / "bed.npz")
    assert list(bed) == ["sensors", "images"]
    images = bed["images"]
    assert images.lml_PZRT.shape == (2, 2, 3, 5)
    assert images.policies[1] == {"kind": "fixed", "rate": 0.4, "structure": "span"}
    data = make.load_data("images", tmp_path)
    blank = make.observations(
        data.plan, np.zeros(data.plan.counts_Nk.shape), data.score_ND, data.covariates
    )
    expected = make.scores(data.plan, blank, part["sums"][1, 3].astype(float))
    at = 1, 1, 2, 3  # policy, size, seed, rung
    assert images.lml_PZRT[at] == pytest.approx(expected["lml"], rel=1e-6)
    np.testing.assert_allclose(images.curves_PZRTG[at], expected["curves"], atol=2.6e-4)
    np.testing.assert_allclose(images.groups_PZRTK[at], expected["groups"], atol=2.6e-4)
    assert images.flops_PZRT[at] == pytest.approx(part["flops"][1, 3])
    assert np.isnan(images.lml_PZRT[0, 1, 0]).all()
    assert np.isnan(images.curves_PZRTG[0, 1, 0]).all()
    assert np.isnan(images.lml_PZRT).sum() == 5
    assert set(images.learned) == {(0, z, r) for z in range(2) for r in range(3)} - {(0, 1, 0)}
    part = np.load(make.Unit("images", "S", 0, (1, 2)).path(tmp_path))
    laws = json.loads(str(part["learned"]))
    assert laws[0] != laws[1]
    assert [images.learned[0, 0, r] for r in (1, 2)] == laws
    assert build("policy", images.learned[0, 0, 1]).relearn_every is None


def test_parts_of_other_settings_are_refused(make, tiny, tmp_path, monkeypatch):
    make.run(tmp_path, hours=1)
    monkeypatch.setattr(make, "LEARNING_RATES", {"S": 0.02, "M": 0.01})
    with pytest.raises(ValueError, match="made with other settings"):
        make.pack(tmp_path, tmp_path / "bed.npz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="there is no bed"):
        mptune.bed.load(tmp_path / "bed.npz")


def test_a_band_has_its_own_score(make, data):
    """A step that no smooth curve has is in the bands; without noise they are nearly exact."""
    plan = data.plan
    score_Nk = np.where(plan.counts_Nk <= LENGTH // 2, -1.0, -2.0)
    blank = make.observations(plan, np.zeros(plan.counts_Nk.shape))
    found = make.scores(plan, blank, score_Nk * plan.counts_Nk)
    np.testing.assert_allclose(found["curves"], [-1.0] * 5 + [-2.0] * 5, atol=0.1)
    assert found["lml"] == pytest.approx(-1.5, abs=0.05)


def test_the_catalogue_has_every_kind_and_no_policy_twice(make):
    from mptune.plugins import modules

    for name in make.SOURCES:
        built = [build("policy", make.policy_on(name, p)) for p in range(len(make.POLICIES))]
        assert len(built) >= 60
        assert len({policy.model_dump_json() for policy in built}) == len(built)
        assert {policy.kind for policy in built} == set(modules("policies"))
        assert {policy.reduction for policy in built} == {"seq_mean", "token_mean", "elbo"}


def test_the_cards_example_runs(monkeypatch, capsys):
    rng = np.random.default_rng(0)
    lml_PZRT = -2.0 + 0.01 * rng.normal(size=(62, 3, 6, 5))
    lml_PZRT[40] += 1.0
    blank = dict.fromkeys(mptune.bed.Bed.__dataclass_fields__)
    bed = mptune.bed.Bed(**{**blank, "policies": [{}] * 62, "lml_PZRT": lml_PZRT})
    monkeypatch.setattr(mptune.bed, "load", lambda: {"text": bed})
    card = (Path(__file__).parent.parent / "benchmarks" / "bed" / "README.md").read_text()
    exec(card.split("```python\n")[1].split("```")[0], {})
    regret = float(capsys.readouterr().out.split(":")[1])
    assert 0 <= regret < 1.1
