"""Real trainings on one and on two worker processes, and what stops them."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mptune.artifacts import Remote
from mptune.data._table import TokenTable
from mptune.errors import InputError, NonFiniteLoss
from mptune.live.status import event_words
from mptune.paths import TrialDirectory, free_port
from mptune.spec.schema import Missing, build
from mptune.training.checkpoint import Checkpoints
from mptune.training.feed import Inputs, code_weights
from mptune.training.loop import Loop
from mptune.training.ranks import AgreedFailure, Ranks
from mptune.training.schedule import Spent
from mptune.training.worker import Worker
from mptune.trial import Failed, Finished, Progress, Rung, Scoring, Started, Stopped
from tests.objects import bucket
from tests.training.trials import LENGTH, NO_MEMORY, SCORE, Gang, Script


def result(events):
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1].result


def numbers(events):
    """What a trial found, without what it took."""
    return result(events).model_dump(exclude={"fingerprint", "cost", "learning"})


def kinds(events):
    """What a trial told, without its progress."""
    return [type(event) for event in events if not isinstance(event, Progress)]


def weights(folder):
    """The kept weights, by name, as bytes."""
    kept = torch.load(TrialDirectory(folder).module)
    return {name: tensor.numpy().tobytes() for name, tensor in kept.items()}


def losses(events):
    return [loss for _, loss in result(events).loss_curve]


@pytest.fixture(scope="module")
def one(study, alone, tmp_path_factory):
    """The events of the plain trial on one worker."""
    return alone(study(tmp_path_factory.mktemp("one"), rungs=(0.5,)))


def test_events_come_in_order(one):
    kinds = [type(event) for event in one]
    assert kinds[0] is Started
    assert kinds[-2:] == [Scoring, Finished]
    assert kinds.count(Rung) == 1
    last = next(event for event in reversed(one) if isinstance(event, Progress))
    assert (last.step, last.progress, last.checkpoint_s) == (24, 1.0, None)


def test_code_weights_make_the_summed_loss_a_code_length():
    """By enumeration over M: E[weight · M · loss] is the sum of the losses at every M."""
    law, losses_M = build("policy", {"kind": "beta", "a": 2.0, "b": 1.5}), np.arange(1, 7) ** 0.5
    counts_M, q_M = np.arange(1, 7), law.pmf(6, 0.3)
    weights_M = code_weights(law, counts_M, np.full(6, 6), 0.3)
    assert (q_M * weights_M * counts_M * losses_M).sum() == pytest.approx(losses_M.sum())


@pytest.mark.parametrize(
    "policy",
    [
        {"kind": "fixed", "rate": 0.15},
        {"kind": "uniform", "corruption": "bert"},
        {"kind": "uniform", "structure": {"kind": "span"}},
    ],
)
def test_no_code_length_where_a_mask_count_or_its_masks_are_left_out(policy):
    counts_B = np.array([1, 1])
    assert code_weights(build("policy", policy), counts_B, np.array([6, 6]), 0.5) is None


def test_the_prequential_score_follows_the_training(study, alone, pair, tmp_path):
    """Worse than the final score, as it has the untrained model in it; the same on two workers."""
    uniform = {"policy": {"kind": "uniform"}, "training": {"budget_tokens": 8 * 32 * LENGTH}}
    first = result(alone(study(tmp_path / "a", **uniform))).prequential
    assert first == pytest.approx(-math.log(11), rel=0.15)
    second = result(pair(study(tmp_path / "b", workers=2, **uniform))).prequential
    assert second == pytest.approx(first, rel=1e-5)
    fixed = {"policy": {"kind": "fixed", "rate": 0.3}}
    assert result(alone(study(tmp_path / "c", **fixed))).prequential is None


def test_it_learns(study, alone, tmp_path):
    changes = {"training": {"budget_tokens": 200 * 32 * LENGTH}}
    events = alone(study(tmp_path, model={"family": "modernbert", "width": 32}, **changes))
    assert losses(events)[0] == pytest.approx(math.log(11), rel=0.1)
    assert result(events).lml.nats_per_token > -math.log(11) + 0.3


def test_it_counts(one):
    found = result(one)
    assert (found.cost.steps, found.cost.tokens) == (24, 24 * 32 * LENGTH)
    assert found.mean_mask_rate == pytest.approx(0.3, abs=0.04)
    assert found.learning[0].progress == 0.5
    assert [found.learning[0].nats_per_token] == [
        e.nats_per_token for e in one if isinstance(e, Rung)
    ]


def test_a_rung_keeps_what_it_had_cost(one, study, alone, tmp_path):
    half = result(one).learning[0]
    assert (half.progress, half.tokens) == (0.5, 12 * 32 * LENGTH)
    assert 0.4 < half.flops / result(one).cost.flops < 0.6
    assert 0 < half.seconds < result(one).cost.training_s
    gone = Missing(fraction=0.5)
    ends = study(tmp_path, rungs=(0.5, 1.0), score=SCORE.model_copy(update={"missing": (gone,)}))
    found = result(alone(ends))
    assert [p.progress for p in found.learning] == [0.5, 1.0]
    assert found.lml_missing[0].fraction == 0.5
    halved = found.lml_missing[0].lml.nats_per_sequence / found.lml.nats_per_sequence
    assert halved == pytest.approx(0.5, abs=0.05), "what is gone is not scored"
    with np.load(TrialDirectory.of(ends.directory).scores) as scores:
        means = scores["at_rungs"].mean(1) / LENGTH
    assert means[0] == pytest.approx(half.nats_per_token, rel=0.1)
    assert means[1] > means[0]


def test_two_workers_train_and_score_alike(one, study, pair, tmp_path):
    two = pair(study(tmp_path, workers=2, rungs=(0.5,)))
    assert len(set(two[0].pids)) == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert result(two).lml.nats_per_token == pytest.approx(result(one).lml.nats_per_token, rel=1e-4)
    rung, alike = (result(each).learning[0].nats_per_token for each in (two, one))
    assert rung == pytest.approx(alike, rel=1e-4)
    assert result(two).rates[1].loss == pytest.approx(result(one).rates[1].loss, rel=1e-4)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_train_alike(one, study, pair, tmp_path, stage):
    events = pair(study(tmp_path, workers=2, training={"zero_stage": stage}))
    assert losses(events) == pytest.approx(losses(one), rel=1e-4)


@pytest.mark.parametrize("workers", [1, 2])
def test_micro_batches_train_alike(one, study, alone, pair, tmp_path, workers):
    gang = alone if workers == 1 else pair
    events = gang(study(tmp_path, workers, training={"micro_batch_size": 8}))
    assert losses(events) == pytest.approx(losses(one), rel=1e-4)


@pytest.mark.parametrize("reduction", ["token_mean", "elbo"])
def test_weighted_objectives_do_not_depend_on_the_workers(study, alone, pair, tmp_path, reduction):
    policy = {"kind": "uniform", "reduction": reduction}
    one = alone(study(tmp_path / "1", policy=policy))
    two = pair(study(tmp_path / "2", workers=2, policy=policy))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def test_the_deepspeed_section_brings_its_own_optimizer(study, alone, tmp_path):
    optimizer = {"type": "AdamW", "params": {"lr": 5e-3, "torch_adam": True}}
    section = {"deepspeed": {"optimizer": optimizer}, "schedule": {"kind": "constant", "warmup": 0}}
    events = alone(study(tmp_path, training=section))
    assert {e.learning_rate for e in events if isinstance(e, Progress)} == {5e-3}


def test_bf16(one, study, alone, tmp_path):
    events = alone(study(tmp_path, training={"precision": "bf16"}))
    assert losses(events) == pytest.approx(losses(one), rel=0.05)
    assert losses(events) != losses(one)


def test_bf16_on_two_workers(one, study, pair, tmp_path):
    events = pair(study(tmp_path, workers=2, training={"precision": "bf16"}))
    assert losses(events) == pytest.approx(losses(one), rel=0.05)


@pytest.mark.nightly
def test_a_compiled_model_trains_alike(one, study, alone, tmp_path):
    compiled = alone(study(tmp_path, training={"compile": True}))
    assert losses(compiled) == pytest.approx(losses(one), rel=1e-4)
    assert result(compiled).lml.nats_per_token == pytest.approx(
        result(one).lml.nats_per_token, rel=1e-4
    )


def test_offloading_and_activation_checkpoints_train_alike(one, study, pair, tmp_path):
    section = {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "activation_checkpointing": {"partition_activations": False},
    }
    events = pair(study(tmp_path, workers=2, training={"deepspeed": section}))
    assert losses(events) == pytest.approx(losses(one), rel=1e-4)


def test_packed_rows_train_alike_with_less_compute(one, study, alone, tmp_path):
    packed = alone(study(tmp_path, training={"pack": True}))
    assert losses(packed) == pytest.approx(losses(one), rel=1e-4)
    assert result(packed).cost.tokens <= result(one).cost.tokens


@pytest.mark.parametrize("kind", ["adaptive", "clipped"])
def test_a_law_that_is_learned_goes_on_after_a_resume(study, alone, tmp_path, kind):
    changes = {"policy": {"kind": kind, "every": 0.25, "reduction": "elbo"}}
    whole = alone(study(tmp_path / "whole", **changes))
    spec = study(tmp_path / "halves", **changes)
    alone(spec, Script(stop_at=10))
    resumed = alone(spec)
    assert numbers(resumed) == numbers(whole)
    learned = result(whole).learned_policy
    assert [stage["at"] for stage in learned["stages"]] == pytest.approx([0, 0.25, 0.5, 0.75])
    policy = build("policy", learned)
    assert policy.relearn_every is None
    assert policy.reduction == "elbo"
    again = alone(study(tmp_path / "again", policy=learned))
    assert losses(again) == losses(whole)


def test_events_say_what_training_does(one):
    events = [event for event in one if isinstance(event, Progress)]
    last = events[-1]
    assert last.flops_per_s > 0
    assert last.utilisation is None
    assert last.gradient_norm is None or last.gradient_norm > 0
    assert {rate for rate, _ in last.loss_by_rate} <= {0.25, 0.35}
    assert all(0 < loss < 4 for _, loss in last.loss_by_rate)


@pytest.mark.parametrize("stage", [0, 3])
def test_kept_weights_open_in_transformers(study, pair, tmp_path, stage):
    from transformers import AutoModelForMaskedLM

    pair(study(tmp_path, workers=2, training={"keep_weights": True, "zero_stage": stage}))
    model = AutoModelForMaskedLM.from_pretrained(TrialDirectory(tmp_path).weights)
    assert model.config.vocab_size == 13
    assert all(torch.isfinite(p).all() and p.numel() for p in model.parameters())


def test_a_trial_whose_weights_cannot_be_kept_has_its_score(study, alone, tmp_path, monkeypatch):
    def differs(*_):
        raise InputError("the kept weights give other log-probabilities")

    monkeypatch.setattr("mptune.models._masked.check_opens", differs)
    end = alone(study(tmp_path, training={"keep_weights": True}))[-1]
    assert end.result.unkept == "the kept weights give other log-probabilities"
    assert event_words(end).endswith("; its weights were not kept: " + end.result.unkept)
    assert "unkept" in TrialDirectory(tmp_path).result.read_text()
    assert not TrialDirectory(tmp_path).weights.exists()
    assert not (tmp_path / ".model").exists()


def test_a_structure_that_the_data_does_not_fit(study, alone, tmp_path):
    policy = {"kind": "fixed", "rate": 0.3, "structure": {"kind": "block", "columns": 5}}
    failed = alone(study(tmp_path, policy=policy))[-1]
    assert isinstance(failed, Failed)
    assert (failed.reason, "not whole rows of 5" in failed.detail) == ("wrong_input", True)


def test_flops_budget(one, study, alone, tmp_path):
    half = result(one).cost.flops / 2
    spent = result(alone(study(tmp_path, training={"budget_tokens": None, "budget_flops": half})))
    step = result(one).cost.flops / 24
    assert half <= spent.cost.flops < half + 1.5 * step


def test_seconds_budget_is_agreed_on(study, pair, tmp_path):
    training = {"budget_tokens": None, "budget_seconds": 0.3}
    found = result(pair(study(tmp_path, workers=2, training=training)))
    assert found.cost.training_s >= 0.3
    assert found.loss_curve[-1][0] == 1.0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rung_prunes(study, alone, pair, tmp_path, workers):
    run = alone if workers == 1 else pair
    events = run(study(tmp_path, workers=workers, rungs=(0.25, 0.5)), Script(go=False))
    assert [type(e) for e in events[-2:]] == [Rung, Stopped]
    assert (events[-1].reason, events[-1].step) == ("pruned", 6)
    assert not TrialDirectory(tmp_path).checkpoint.exists()


@pytest.mark.parametrize(("workers", "stage"), [(1, 0), (2, 0), (2, 1), (2, 3)])
def test_a_resumed_trial_is_the_same_bit_for_bit(study, alone, pair, tmp_path, workers, stage):
    """It is stopped while its rung is scored, between two steps, and while it is scored."""
    run = alone if workers == 1 else pair
    changes = {
        "training": {"zero_stage": stage, "keep_weights": True},
        "model": {"family": "bert", "width": 16, "depth": 1, "dropout": 0.1},
        "policy": {"kind": "linear", "start": 0.6, "end": 0.2},
        "rungs": (0.25,),
    }
    whole = run(study(tmp_path / "whole", workers, **changes))
    spec = study(tmp_path / "halves", workers, **changes)
    in_rung = run(spec, Script(stop_at=7))
    assert kinds(in_rung) == [Started, Stopped]
    between = run(spec, Script(stop_at=10))
    assert kinds(between) == [Started, Rung, Stopped]
    in_scoring = run(spec, Script(stop_at=24 - between[-1].step + 4, reason="preempted"))
    assert kinds(in_scoring) == [Started, Scoring, Stopped]
    assert [e[-1].reason for e in (between, in_scoring)] == ["interrupted", "preempted"]
    resumed = run(spec)
    assert kinds(resumed) == [Started, Scoring, Finished]
    steps = [events[-1].step for events in (in_rung, between, in_scoring)]
    assert steps == [6, steps[1], 24]
    assert [e[0].resumed_at for e in (between, in_scoring, resumed)] == steps
    assert numbers(resumed) == numbers(whole)
    assert weights(tmp_path / "halves") == weights(tmp_path / "whole")
    assert not TrialDirectory(tmp_path / "halves").checkpoint.exists()


def test_a_trial_stopped_in_the_step_of_a_rung_reports_it_when_resumed(study, alone, tmp_path):
    whole = alone(study(tmp_path / "whole", rungs=(0.25,)))
    spec = study(tmp_path / "halves", rungs=(0.25,))
    stopped = alone(spec, Script(stop_at=6))
    assert not any(isinstance(event, Rung) for event in stopped)
    resumed = alone(spec)
    rungs = [[(e.progress, e.nats_per_token) for e in events if isinstance(e, Rung)]
             for events in (whole, resumed)]  # fmt: skip
    assert rungs[0] == rungs[1] != []
    assert numbers(resumed) == numbers(whole)


def test_killed_during_a_checkpoint_it_goes_on_from_the_last_good_one(study, alone, tmp_path):
    """In an object store; in a folder: tests/faults/test_gang.py.

    The weights at the end are those of a run that was never disturbed, bit for bit.
    """
    changes = {"training": {"keep_weights": True, "checkpoint_every_s": 1e-9}}
    alone(study(tmp_path / "whole", **changes))
    artifacts = f"{bucket(tmp_path / 'bucket')}/0007"
    spec = study(tmp_path / "killed", artifacts=artifacts, **changes)
    kept = Remote(artifacts)
    child = multiprocessing.get_context("spawn").Process(target=_killed_while_saving, args=(spec,))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    with kept.fetched(["checkpoint/latest.json"]) as folder:
        marker = json.loads((folder / "checkpoint" / "latest.json").read_text())
    assert marker["tag"] == "step00000001"
    resumed = alone(spec)
    assert resumed[0].resumed_at == 1
    whole = load_file(TrialDirectory(tmp_path / "whole").weights / "model.safetensors")
    with kept.fetched(["model/model.safetensors"]) as folder:
        killed = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert "checkpoint" not in kept.children()


def _killed_while_saving(spec):
    """Die when the second checkpoint's files are there, and the marker does not name it yet."""
    worker = Worker(0, 1)
    worker.join("127.0.0.1", free_port())
    moments, write = iter((False, True)), Remote.write

    def dying(self, name, text):
        if next(moments):
            assert "step00000002" in self.children()
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, name, text)

    Remote.write = dying
    list(worker.run(spec, Script()))


def test_a_long_trial_is_checkpointed_on_the_way(study, pair, tmp_path):
    changes = {"training": {"checkpoint_every_s": 1e-9}}
    stopped = pair(study(tmp_path, 2, **changes), Script(stop_at=6, reason="pruned"))
    assert (stopped[-1].reason, stopped[-1].step) == ("pruned", 6)


def test_the_end_of_a_long_training_is_kept_for_its_scoring(study, alone, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, engine, spent: saved.append(spent.steps))
    rare, often = ({"training": {"checkpoint_every_s": every_s}} for every_s in (1e9, 1e-9))
    alone(study(tmp_path / "short", **rare))
    monkeypatch.setattr("mptune.training.loop.WORTH_KEEPING", 0.0)
    alone(study(tmp_path / "long", **rare))
    kept = alone(study(tmp_path / "kept", **often))
    assert next(e for e in kept if isinstance(e, Progress)).checkpoint_s is not None
    assert saved == [24, *range(1, 25)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loss_that_is_not_finite(study, alone, pair, tmp_path, workers):
    run = alone if workers == 1 else pair
    training = {"optimizer": {"learning_rate": 1e30}, "gradient_clipping": 0.0}
    failed = run(study(tmp_path, workers, training=training))[-1]
    assert isinstance(failed, Failed)
    assert failed.reason == "non_finite_loss"
    assert "no update was made" in failed.detail


class Stub:
    """An engine that gives chosen logits and counts what it is asked to do."""

    lr_scheduler = None

    def __init__(self, logit):
        self.logit, self.updates, self.backwards = logit, 0, 0
        self.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)

    def __call__(self, tokens, mask, attend, *more):
        if self.logit is None:
            raise torch.OutOfMemoryError("too large")
        return torch.full((len(mask), 11), self.logit, requires_grad=True)

    def backward(self, loss, scale_wrt_gas):
        self.backwards += 1

    def step(self):
        self.updates += 1


class NoCheckpoints:
    def load(self, engine):
        return Spent()


def loop(study, tmp_path, logit, *, apart=False):
    """On a stub; `apart`: its backward pass waits for no other rank, as at ZeRO stage 0."""
    spec = study(tmp_path)
    inputs = Inputs(
        number=0,
        seed=0,
        training=spec.training,
        rungs=(),
        policy=build("policy", spec.policy),
        family=build("model", spec.model),
        train=TokenTable.open(spec.prepared.table).train,
        vocabulary_size=11,
    )
    engine = Stub(logit)
    engine.enable_backward_allreduce = not apart
    return Loop(inputs, engine, Ranks(), NoCheckpoints(), lambda: (0.0, 0.0))


@pytest.mark.parametrize("logit", [math.nan, math.inf])
def test_nothing_is_updated_from_a_loss_that_is_not_finite(study, tmp_path, logit):
    training = loop(study, tmp_path, logit)
    with pytest.raises(NonFiniteLoss, match="at step 0"):
        list(training.run(Script()))
    assert (training.engine.updates, training.engine.backwards) == (0, 0)


@pytest.mark.parametrize("apart", [False, True])
def test_nothing_is_updated_either_where_the_backward_pass_is_ahead(
    study, tmp_path, monkeypatch, apart
):
    monkeypatch.setattr(Ranks, "overlaps", not apart)
    training = loop(study, tmp_path, math.nan, apart=apart)
    with pytest.raises(NonFiniteLoss, match="at step 0"):
        list(training.run(Script()))
    assert (training.engine.updates, training.engine.backwards) == (0, 1)


def test_a_backward_pass_ahead_changes_nothing(one, study, alone, tmp_path, monkeypatch):
    """As on a GPU, where the host reads the loss while the backward pass is under way."""
    monkeypatch.setattr(Ranks, "overlaps", True)
    ahead = alone(study(tmp_path, rungs=(0.5,)))
    assert numbers(ahead) == numbers(one)


def _overlap():
    Ranks.overlaps = True


@pytest.fixture(scope="module")
def overlapping():
    """A gang of two processes that overlaps as on GPUs."""
    gang = Gang(2, begin=_overlap)
    yield gang.run
    gang.close()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_a_gang_that_goes_ahead_trains_alike(study, pair, overlapping, tmp_path, stage):
    changes = {"training": {"zero_stage": stage}}
    ahead = overlapping(study(tmp_path / "ahead", 2, **changes))
    assert losses(ahead) == losses(pair(study(tmp_path / "plain", 2, **changes)))


def test_a_gang_goes_ahead_where_as_much_was_done_before(study, tmp_path, monkeypatch):
    """In a step that needs more memory than any before, all ranks first hear that it was enough."""
    monkeypatch.setattr(Ranks, "overlaps", True)
    training = loop(study, tmp_path, 0.0)
    training.ranks = Ranks(0, 2)
    sizes = [(32, 100), (32, 100), (32, 120), (16, 90), (33, 90), (33, 120)]
    steps = [SimpleNamespace(rows_computed=rows, head_rows=[head]) for rows, head in sizes]
    assert [training._goes_ahead(s) for s in steps] == [False, True, False, True, False, True]
    training.ranks = Ranks()
    assert training._goes_ahead(SimpleNamespace(rows_computed=99, head_rows=[999]))


@pytest.mark.parametrize("apart", [False, True])
def test_a_forward_that_fails_is_told_to_all(study, tmp_path, apart):
    training = loop(study, tmp_path, None, apart=apart)
    with pytest.raises(AgreedFailure, match="too large") as caught:
        list(training.run(Script()))
    assert caught.value.reason == "out_of_memory"
    assert (training.engine.updates, training.engine.backwards) == (0, 0)


@pytest.mark.slow
def test_a_peer_that_went_ahead_hears_of_a_forward_that_failed(study, pair, tmp_path):
    failed = pair(study(tmp_path, workers=2, number=NO_MEMORY))[-1]
    assert (failed.reason, failed.detail) == (
        "out_of_memory",
        "rank 1: OutOfMemoryError: too large",
    )
