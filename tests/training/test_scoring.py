"""The score of models whose log p is known, on one rank."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mptune.data._table import Meta, Split
from mptune.errors import InputError
from mptune.lml.estimator import NonFiniteLogProb
from mptune.lml.groups import group_standard_error, tails
from mptune.lml.plan import LMLPlan
from mptune.spec.schema import Missing, Score
from mptune.training.ranks import Ranks
from mptune.training.scoring import HeldOut, Scorer, bits_per_byte
from tests.data.test_table import store
from tests.training.syncs import Syncs

ROWS = np.arange(60)
SYMBOLS, LENGTH = 5, 12
SCORE = Score(sequences=30, forwards=2, rates=(0.25, 0.5), rung_sequences=24, batch_size=7)


class Constant(torch.nn.Module):
    """The same logits at every masked position; notes what it was asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.masks, self.inputs, self.modes = torch.tensor(logits), [], [], []

    def forward(self, tokens_BD, flat_K, attend_BD=None):
        mask_BD = torch.zeros_like(tokens_BD, dtype=torch.bool)
        mask_BD.view(-1)[flat_K] = True
        self.masks.append(mask_BD)
        self.inputs.append(tokens_BD)
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        return self.logits.expand(int(mask_BD.sum()), -1)


@pytest.fixture
def table(tmp_path):
    def made(log_widths=None, groups=ROWS, **meta):
        rng = np.random.default_rng(0)
        tokens = rng.choice(SYMBOLS, size=(60, LENGTH), p=[0.4, 0.3, 0.1, 0.1, 0.1])
        observed = np.arange(LENGTH) < rng.integers(4, LENGTH + 1, size=(60, 1))
        split = Split(tokens, observed, np.asarray(groups, np.int32))
        if log_widths is not None:
            split = replace(split, log_widths=np.where(observed, log_widths, 0.0))
        words = {"description": "made up", "groups": {}, "grouped_by": "document", **meta}
        info = Meta(vocabulary_size=SYMBOLS, length=LENGTH, **words)
        name = "-".join(
            ["table", str(len(set(groups))), *meta, *(["binned"] if log_widths is not None else [])]
        )
        return store(tmp_path / name, lambda: (info, split, split))

    return made


def scorer(table, model, score=SCORE):
    return Scorer(model, HeldOut.select(table, score), Ranks())


def test_uniform_model_has_its_exact_score(table):
    model = Constant([0.0] * SYMBOLS)
    score, per_sequence, rows = scorer(table(bytes_per_token=2.0), model).lml()
    assert score.nats_per_token == pytest.approx(-math.log(SYMBOLS), rel=1e-6)
    assert score.bits_per_byte == pytest.approx(math.log2(SYMBOLS) / 2, rel=1e-6)
    assert score.nats_per_sequence == pytest.approx(per_sequence.mean())
    assert (score.sequences, score.forwards) == (30, 60)
    assert score.se_fixed == pytest.approx(0.0, abs=1e-5)
    lengths = table(bytes_per_token=2.0).heldout.observed[rows].sum(1)
    assert per_sequence == pytest.approx(-math.log(SYMBOLS) * lengths, rel=1e-6)


def test_counting_symbols_scores_what_a_model_of_their_frequencies_scores(table, tmp_path):
    for widths in (None, -1.5):
        made = table(log_widths=widths)
        rng = np.random.default_rng(2)
        tokens = rng.choice(SYMBOLS, size=(60, LENGTH), p=[0.4, 0.3, 0.1, 0.1, 0.1])
        train = Split(tokens, tokens >= 0, ROWS.astype(np.int32))
        words = {"description": "two samples", "groups": {}, "grouped_by": "document"}
        info = Meta(vocabulary_size=SYMBOLS, length=LENGTH, **words)
        both = store(tmp_path / f"both {widths}", lambda: (info, train, made.heldout))  # noqa: B023
        model = Constant(np.log(np.bincount(tokens.ravel()) + 0.5).tolist())
        held = scorer(both, model)
        score, per_sequence, _ = held.lml()
        se = score.se_fixed * len(per_sequence) / held.heldout.positions
        assert held.heldout.counting() == pytest.approx(score.nats_per_token, abs=3 * se)
        assert se < 0.01


def test_counting_knows_the_frequencies_of_each_column(tmp_path):
    tokens = np.tile(np.arange(LENGTH) % SYMBOLS, (60, 1))
    split = Split(tokens, np.full((60, LENGTH), True), ROWS.astype(np.int32))
    info = Meta(SYMBOLS, LENGTH, description="columns of one value", groups={}, grouped_by="row")
    held = HeldOut.select(store(tmp_path / "table", lambda: (info, split, split)), SCORE)
    frequency = np.array([3, 3, 2, 2, 2]) * 60 + 0.5
    p_D = (frequency / frequency.sum())[tokens[0]]
    assert held.counting() == pytest.approx(np.log((60 + p_D) / 61).mean(), rel=1e-9)


def test_the_last_value_is_worth_what_theory_says(tmp_path):
    """Each channel goes up by its own step, modulo V: any earlier value of it tells the rest.

    In a random order, none of t earlier values is seen before a value with probability 1 / (t + 1).
    So the score per value is -log V sum_t 1 / (t + 1) / T.
    """
    rng, T, V = np.random.default_rng(0), 6, 4

    def split(count):
        start_N1C = rng.integers(V, size=(count, 1, 2))
        tokens = ((start_N1C + np.arange(T)[:, None] * [1, 2]) % V).reshape(count, 2 * T)
        return Split(tokens, np.full(tokens.shape, True), np.arange(count, dtype=np.int32))

    words = {"description": "", "groups": {}, "grouped_by": "row"}
    info = Meta(V, 2 * T, axes={"time": T, "channel": 2}, **words)
    made = store(tmp_path / "table", lambda: (info, split(20_000), split(400)))
    held = HeldOut.select(made, SCORE.model_copy(update={"sequences": 400, "forwards": 4}))
    theory = -np.log(V) * sum(1 / (t + 1) for t in range(T)) / T
    assert held.last_value() == pytest.approx(theory, abs=0.02)
    assert held.counting() == pytest.approx(-np.log(V), abs=0.01)


def test_missing_values_are_no_last_values(tmp_path):
    """Half of the values are missing, where the table has padding; the others repeat the first."""
    rng = np.random.default_rng(0)
    tokens = np.repeat(rng.integers(4, size=(4000, 1)), 8, axis=1)
    seen = rng.random(tokens.shape) < 0.5
    split = Split(np.where(seen, tokens, 5), seen, np.arange(4000, dtype=np.int32))
    info = Meta(4, 8, "", {}, "row", axes={"time": 8, "channel": 1})
    held = HeldOut.select(store(tmp_path / "table", lambda: (info, split, split)), SCORE)
    # Of k values, sum_t 1 / (t + 1) are expected to have none before them.
    k = np.random.default_rng(1).binomial(8, 0.5, 20_000)
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, 9))])
    assert held.last_value() == pytest.approx(-np.log(4) * harmonic[k].sum() / k.sum(), abs=0.05)
    text = store(tmp_path / "text", lambda: (Meta(4, 8, "", {}, "row"), split, split))
    assert HeldOut.select(text, SCORE).last_value() is None


def test_scored_positions_are_masked_observed_and_in_eval_mode(table):
    model = Constant([0.0] * SYMBOLS).train()
    held = scorer(table(), model)
    held.lml()
    assert set(model.modes) == {(False, True)}
    assert model.training
    for mask, inputs in zip(model.masks, model.inputs, strict=True):
        assert (inputs[mask] == SYMBOLS).all()
        assert not (inputs[~mask] == SYMBOLS).any()
        assert len(mask) <= SCORE.batch_size
    masked = sum(int(mask.sum()) for mask in model.masks)
    assert masked == held.heldout.plan.counts_Nk.sum()


def test_rates_have_exact_counts_and_exact_values(table):
    model = Constant([1.0, 0.0, 0.0, 0.0, 0.0])
    held = scorer(table(), model)
    quarter, half = held.rates()
    plan = held.heldout.rate_plans[0.25]
    assert (plan.counts_Nk[:, 0] == np.maximum(np.rint(0.25 * plan.lengths), 1)).all()
    for rate, found in ((0.25, quarter), (0.5, half)):
        assert found.rate == rate
        # log p of symbol 0 is higher by one than that of the others.
        assert found.loss == pytest.approx(math.log(math.e + 4) - found.accuracy, rel=1e-6)
        assert found.loss_se == pytest.approx(found.accuracy_se, rel=1e-5)
        assert abs(found.accuracy - 0.4) < 4 * found.accuracy_se


def test_a_rung_is_scored_on_the_first_sequences(table):
    model = Constant([0.0] * SYMBOLS)
    found = scorer(table(), model).rung()
    assert found.nats_per_token == pytest.approx(-math.log(SYMBOLS), rel=1e-6)
    # Sequences differ in length, but every token costs the same.
    assert found.se == pytest.approx(0.0, abs=1e-6)
    assert scorer(table(), Constant([2.0, 1.0, 0.0, 0.0, -1.0])).rung().se > 0.01
    assert sum(len(mask) for mask in model.masks) == 24 * SCORE.forwards


def test_binned_reals_are_scored_as_densities(table):
    symbols, densities = table(), table(log_widths=-1.5)
    model = Constant([0.3, 0.0, 0.0, 0.0, 0.0])
    plain, binned = scorer(symbols, model), scorer(densities, model)
    assert binned.lml()[0].nats_per_token == pytest.approx(plain.lml()[0].nats_per_token + 1.5)
    assert binned.rung().nats_per_token == pytest.approx(plain.rung().nats_per_token + 1.5)
    assert binned.rates()[0].loss == pytest.approx(plain.rates()[0].loss - 1.5)


def test_every_value_counts_with_its_own_width(table):
    widths = np.random.default_rng(1).normal(size=(60, LENGTH))
    model = Constant([0.0] * SYMBOLS)
    made = scorer(table(log_widths=widths), model)
    score, per_sequence, rows = made.lml()
    split = made.heldout.table.heldout
    expected = -(np.log(SYMBOLS) * split.observed + split.log_widths).sum(1)[rows]
    assert per_sequence == pytest.approx(expected, rel=1e-5)
    assert score.nats_per_sequence == pytest.approx(expected.mean(), rel=1e-5)


def test_more_forwards_until_the_target(table):
    model = Constant([2.0, 0.0, 0.0, 0.0, 0.0])
    wanting = SCORE.model_copy(update={"target_se": 1e-9, "max_forwards": 7})
    frozen, _, _ = scorer(table(), model).lml()
    extended, _, _ = scorer(table(), model, wanting).lml()
    assert extended.forwards == 3 * frozen.forwards
    assert extended.se_fixed < frozen.se_fixed
    assert extended.nats_per_sequence == pytest.approx(
        frozen.nats_per_sequence, abs=4 * frozen.se_fixed
    )
    easy = SCORE.model_copy(update={"target_se": 1e9})
    assert scorer(table(), model, easy).lml()[0].forwards == frozen.forwards


def test_a_score_that_is_not_finite(table):
    with pytest.raises(NonFiniteLogProb):
        scorer(table(), Constant([math.nan] * SYMBOLS)).lml()


def test_the_plan_is_frozen(table):
    first = HeldOut.select(table(), SCORE)
    again = HeldOut.select(table(), SCORE, first.plan)
    assert again.hash == first.hash
    assert HeldOut.select(table(), SCORE.model_copy(update={"seed": 1})).hash != first.hash


def test_a_plan_of_other_data_is_refused(table):
    other = LMLPlan.make(np.ones((30, LENGTH), bool), forwards=2, seed=0)
    with pytest.raises(InputError, match=r"belongs to other data.*delete plan\.npz"):
        HeldOut.select(table(), SCORE, other)


def test_the_plan_holds_sequences_of_as_many_groups_as_there_are(table):
    groups = np.r_[np.zeros(20), np.arange(40) % 20 + 1]
    held = HeldOut.select(table(groups=groups), SCORE)
    assert np.bincount(np.bincount(groups[held.rows].astype(int)))[1:].tolist() == [12, 9]
    assert (np.unique(groups)[held.plan.groups_N] == groups[held.rows]).all()
    assert (held.rung_plan.groups_N == held.plan.groups_N[:24]).all()
    other = replace(held.plan, groups_N=np.arange(30))
    with pytest.raises(InputError, match="belongs to other data"):
        HeldOut.select(table(groups=groups), SCORE, other)


def test_errors_are_between_groups_and_of_the_population_from_eight_on(table):
    model = Constant([2.0, 1.0, 0.0, 0.0, -1.0])
    found, z, rows = scorer(table(groups=ROWS % 10), model).lml()
    lengths = table().heldout.observed[rows].sum(1)
    error, (per_token, df) = (
        group_standard_error(z, rows % 10)[0],
        group_standard_error(z, rows % 10, lengths),
    )
    assert found.se_per_token == pytest.approx(per_token)
    assert found.largest_share == pytest.approx(tails(z, rows % 10).share)
    assert found.groups_needed == tails(z, rows % 10).needed > 0
    assert (found.groups, found.grouped_by, found.scope) == (10, "document", "")
    assert (found.se_population, found.df_population) == pytest.approx((error, df))
    few, z, _ = scorer(table(groups=ROWS % 7), model).lml()
    assert (few.groups, few.se_population) == (7, None)
    assert few.error == pytest.approx((few.se_fixed * few.nats_per_token / z.mean(), 30))
    assert few.scope == "on these 7 groups only (document)"
    held = HeldOut.select(table(groups=ROWS % 10), SCORE)
    plan, log_p = held.rate_plans[0.25], model.logits.log_softmax(0).numpy()
    mask_ND = plan.masks(np.arange(30), np.zeros(30, int))
    losses = -np.where(mask_ND, log_p[np.where(mask_ND, held.tokens, 0).astype(int)], 0.0).sum(1)
    expected = group_standard_error(losses, plan.groups_N, mask_ND.sum(1))[0]
    assert Scorer(model, held, Ranks()).rates()[0].loss_se == pytest.approx(expected, rel=1e-5)


def test_bits_per_byte():
    assert bits_per_byte(-math.log(2), 4.0) == pytest.approx(0.25)
    assert bits_per_byte(-1.0, None) is None


@pytest.mark.parametrize("kind", ["random", "block"])
def test_missing_values_are_neither_seen_nor_scored(table, kind):
    score = SCORE.model_copy(update={"missing": (Missing(fraction=0.3, kind=kind),)})
    home = HeldOut.select(table(log_widths=-1.5), score)
    there = home.without(0)
    gone = home.plan.observed_ND & ~there.plan.observed_ND
    lengths = home.plan.observed_ND.sum(1)
    assert gone.sum(1) == pytest.approx(np.rint(0.3 * lengths))
    assert (there.tokens[gone] == home.table.pad_id).all()
    assert (there.tokens[~gone] == home.tokens[~gone]).all()
    model = Constant([0.0] * SYMBOLS)
    found, per_sequence, _ = Scorer(model, there, Ranks()).lml()
    expected = (1.5 - math.log(SYMBOLS)) * there.plan.observed_ND.sum(1)
    assert per_sequence == pytest.approx(expected, rel=1e-6)
    assert found.plan_hash != home.hash
    assert (home.without(0).plan.observed_ND == there.plan.observed_ND).all(), "frozen"


def test_a_forward_does_not_wait_for_the_device(table):
    """No operation but those of the fake model reads values: indices are sent flat."""
    made = table()
    found = Syncs()
    with found:
        scorer(made, Constant([0.0] * SYMBOLS)).lml()
    assert {place for place in found.places if "test_scoring.py" not in place} == set()
