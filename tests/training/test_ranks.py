"""What ranks exchange besides gradients."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mptune.training.ranks import Ranks


class Others:
    """A process group of several ranks, each in a thread, that sums."""

    def __init__(self, count: int) -> None:
        self._barrier, self._given = threading.Barrier(count, timeout=20), dict[int, Any]()

    def all_reduce(self, values: torch.Tensor) -> None:
        self._given[threading.get_ident()] = values.clone()
        self._barrier.wait()
        total = sum(self._given.values())
        self._barrier.wait()
        values.copy_(total)


def test_every_rank_gets_every_value_and_nothing_is_unpickled(monkeypatch):
    given = [None, ["worker_died", "größer " * 40], {"a.pt": (12, "ff")}]
    others, found = Others(3), dict[int, Any]()
    monkeypatch.setattr(dist, "all_reduce", others.all_reduce)

    def run(rank: int) -> None:
        ranks = Ranks(rank, 3)
        found[rank] = ranks.gathered(given[rank]), ranks.from_first(given[rank])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_of_them = (None, ["worker_died", "größer " * 40], {"a.pt": [12, "ff"]})
    assert found == dict.fromkeys(range(3), (all_of_them, None))


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_is_no_json_is_refused_with_any_number_of_ranks(world_size):
    with pytest.raises(TypeError, match="not JSON serializable"):
        Ranks(0, world_size).gathered(object())


def test_a_rank_may_take_its_share_of_what_others_leave(monkeypatch):
    """Of a GPU of 80 GB, of which torch holds 10 GB here; without a GPU."""
    free, limits = 60e9, []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10e9)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: limits.append(share)
    )
    alone = Ranks(device=torch.device("cuda", 0))
    assert alone.memory_bytes() == pytest.approx(70.7e9)
    assert alone.memory_bytes(0.5) == 40e9
    assert Ranks(world_size=2, device=alone.device).memory_bytes() == pytest.approx(71.4e9)
    free = 20e9
    assert alone.memory_bytes(0.5) == pytest.approx(30.7e9)
    for share in (1.0, 0.5):
        alone.keep_to(share)
    assert limits == [pytest.approx((40e9 - 0.7e9) / 80e9)]
    Ranks().keep_to(0.5)
    assert len(limits) == 1
