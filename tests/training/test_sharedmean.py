"""Gradients averaged by three processes in memory that they share."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from mptune.spec.schema import Training
from mptune.training import ranks as sharedmean
from mptune.training.deepspeed_private import average_after_backward
from mptune.training.ranks import Ranks, SharedMean

WORLD = 3
SHARE = 1 / WORLD
SHAPES = ((7, 5), (1,), (3, 2, 2))


def given(rank, kind=torch.float32):
    """A rank's tensors; their sum over the ranks depends on its order."""
    made = torch.Generator().manual_seed(rank)
    return [torch.randn(shape, generator=made).to(kind) * 10**rank for shape in SHAPES]


def averaged(shared, rank, kind=torch.float32):
    tensors = given(rank, kind)
    return shared.average(tensors), [tensor.tolist() for tensor in tensors]


def mapped():
    return Path("/proc/self/maps").read_text().count("mptune-gradients")


def elsewhere(rank):
    """Averages of ranks that believe to be on machines of their own."""
    real, sharedmean._machine = sharedmean._machine, lambda: (str(rank), "")
    try:
        return averaged(SharedMean(Ranks(rank, WORLD)), rank)
    finally:
        sharedmean._machine = real


def serve(rank, meeting, answers):
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD)
    files = len(os.listdir("/proc/self/fd"))
    shared = SharedMean(Ranks(rank, WORLD))
    found = {"once": averaged(shared, rank), "again": averaged(shared, rank)}
    found["half"] = averaged(shared, rank, torch.bfloat16)
    # Of each layout one mapping; Python keeps a copy of the descriptor with it.
    found["mappings"] = mapped(), len(os.listdir("/proc/self/fd")) - files
    found["elsewhere"] = elsewhere(rank)
    if rank == WORLD - 1:
        answers.put((rank, found))
        answers.close()
        answers.join_thread()
        os._exit(1)
    with pytest.raises(RuntimeError):
        averaged(shared, rank)
    del shared
    found["left"] = mapped(), len(os.listdir("/proc/self/fd")) - files
    answers.put((rank, found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank has found; the last one dies, and the others call once more."""
    meeting = f"file://{tmp_path_factory.mktemp('ranks')}/store"
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=serve, args=(r, meeting, answers)) for r in range(WORLD)]
    for process in processes:
        process.start()
    yield [found for _, found in sorted(answers.get(timeout=60) for _ in processes)]
    for process in processes:
        process.join(10)
        process.kill()


def mean(kind=torch.float32):
    """Shares of the mean, summed in the order of the ranks."""
    rows = zip(*(given(rank, kind) for rank in range(WORLD)), strict=True)
    return [(a * SHARE + b * SHARE + c * SHARE).tolist() for a, b, c in rows]


def test_all_ranks_have_the_mean_to_the_last_bit(found):
    assert [f["once"] for f in found] == [(True, mean())] * WORLD
    assert [f["again"] for f in found] == [(True, mean())] * WORLD
    assert [f["half"] for f in found] == [(True, mean(torch.bfloat16))] * WORLD


def test_a_layout_is_mapped_once_and_given_back(found):
    assert [f["mappings"] for f in found] == [(2, 2)] * WORLD
    assert [f["left"][0] for f in found[:-1]] == [0] * (WORLD - 1)


def test_ranks_of_other_machines_share_nothing(found):
    untouched = [(False, [tensor.tolist() for tensor in given(rank)]) for rank in range(WORLD)]
    assert [f["elsewhere"] for f in found] == untouched


def test_a_lost_peer_is_noticed(found):
    assert all("left" in f for f in found[:-1])


def engine_of(world_size, **section):
    made = SimpleNamespace(allreduce_no_retain="theirs", enable_backward_allreduce=True)
    training = Training.model_validate({"budget_tokens": 1, "deepspeed": section})
    average_after_backward(made, training, Ranks(0, world_size))
    return made


def test_which_engines_average_in_shared_memory():
    one, two, asked = engine_of(1), engine_of(2), engine_of(2, prescale_gradients=True)
    assert (one.enable_backward_allreduce, one.allreduce_no_retain) == (False, "theirs")
    assert (two.enable_backward_allreduce, two.allreduce_no_retain == "theirs") == (False, False)
    assert (asked.enable_backward_allreduce, asked.allreduce_no_retain) == (True, "theirs")


def test_where_no_memory_is_shared_deepspeed_averages(monkeypatch):
    calls, bucket = [], [torch.ones(3)]
    monkeypatch.setattr(sharedmean, "shared_memory", lambda ranks, size: None)
    made = SimpleNamespace(allreduce_no_retain=lambda b, **options: calls.append((b, options)))
    average_after_backward(made, Training(budget_tokens=1), Ranks(0, 2))
    for _ in range(2):
        made.allreduce_no_retain(bucket, dp_world_size=2)
    assert calls == [(bucket, {"dp_world_size": 2})] * 2
