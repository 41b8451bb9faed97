"""What may happen to a gang: the real fault, its reason in the trial, and how the trial ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mptune.trial import Event, Failed, Finished, GangChanged, Progress, Scoring, Started, Stopped
from tests.faults.conftest import PAIR, SCORE, Ground, Search_, gone, members, once, orphans, pids

pytestmark = pytest.mark.slow

FEW = {"budget_tokens": 40 * 8 * 16}
"""Steps enough for a curve."""

OTHERS: list[dict[str, Any]] = [
    {"training": {"zero_stage": 3, "batch_size": 16, **FEW},
     "policy": {"kind": "fixed", "rate": 0.3}},
    {"training": {"zero_stage": 2, "precision": "bf16", **FEW}},
    {"training": {"zero_stage": 1, **FEW}, "model": {"family": "bert", "width": 64, "depth": 2}},
    {"training": {"optimizer": {"learning_rate": 1e30}, "gradient_clipping": 0}},
]  # fmt: skip
"""Trials that leave a gang with other stages, sizes and precisions behind it, and a failed one."""

LONG = {"training": {"budget_tokens": 40 * 8 * 16, "checkpoint_every_s": 1e-6}}
"""Many steps, each followed by a checkpoint."""

LONG_SCORE = SCORE.model_copy(update={"rates": tuple(round(0.001 * k, 3) for k in range(1, 800))})
"""More forwards than can be done before a signal arrives."""


@pytest.fixture(autouse=True)
def no_orphans(ground: Ground) -> Iterator[None]:
    """Whatever was done to a gang: no process of it is left once the search has ended."""
    yield
    assert members() >= pids(ground.dispatcher)
    assert orphans(ground.dispatcher) == set()


def survived(search: Search_, reason: str) -> None:
    """The trial was run again and finished; no process of the lost gang is left."""
    assert [e.reason for e in search.ends(Failed)] == [reason]
    assert search.record.state == "COMPLETE"
    assert search.attrs["retries"] == 1
    assert len(search.started) == 2
    assert gone(search.started[0].pids)


def goes_straight_to_scoring(search: Search_) -> None:
    """The last run of the trial found the checkpoint of the end of its training."""
    last = search.started[-1]
    after = search.events[search.events.index(last) :]
    assert last.resumed_at == last.total_steps > 0
    assert [type(e) for e in after if not isinstance(e, GangChanged)] == [
        Started, Scoring, Finished,
    ]  # fmt: skip


def named_tag(search: Search_) -> str | None:
    try:
        return str(json.loads((search.files.checkpoint / "latest.json").read_text())["tag"])
    except (OSError, ValueError):
        return None


def test_a_rank_killed_in_a_step_costs_nothing_but_time(ground, undisturbed, tmp_path):
    def strike(event: Event, search: Search_) -> bool:
        if isinstance(event, Started):
            os.kill(event.pids[1], signal.SIGKILL)
        return isinstance(event, Started)

    search = ground.search(tmp_path, once(strike))
    survived(search, "worker_died")
    detail = search.ends(Failed)[0].detail
    assert f"(pid {search.started[0].pids[1]}) died: killed, or crashed" in detail
    assert search.files.traceback.exists()
    assert search.ends(Finished)[0].result.lml == undisturbed.result.lml


def test_a_rank_killed_in_a_checkpoint_write_leaves_the_one_before(ground, tmp_path):
    def wait_and_kill(search: Search_, pid: int) -> None:
        while True:
            named = named_tag(search)
            tags = {p.name for p in search.files.checkpoint.glob("step*")}
            if named and any(tag > named for tag in tags):
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.0005)

    def strike(event: Event, search: Search_) -> bool:
        if isinstance(event, Started):
            threading.Thread(target=wait_and_kill, args=(search, event.pids[0])).start()
        return isinstance(event, Started)

    search = ground.search(tmp_path, once(strike), **LONG)
    survived(search, "worker_died")
    assert search.started[1].resumed_at > 0
    again = ground.search(tmp_path / "undisturbed", **LONG)
    assert search.ends(Finished)[0].result.lml == again.ends(Finished)[0].result.lml


def test_a_rank_killed_in_scoring(ground, undisturbed, tmp_path):
    def strike(event: Event, search: Search_) -> bool:
        if isinstance(event, Scoring):
            os.kill(search.pids[1], signal.SIGKILL)
        return isinstance(event, Scoring)

    often = {"checkpoint_every_s": 1e-6}
    search = ground.search(tmp_path, once(strike), score=LONG_SCORE, training=often)
    survived(search, "worker_died")
    goes_straight_to_scoring(search)
    assert search.ends(Finished)[0].result.lml == undisturbed.result.lml


def test_a_rank_that_hangs_is_seen_and_all_stacks_are_kept(ground, undisturbed, tmp_path):
    resources = PAIR.model_copy()

    def strike(event: Event, search: Search_) -> None:
        """Only the driver of the stopped gang is impatient: a busy machine is no stall."""
        if isinstance(event, Started) and not search.ends(Failed):
            os.kill(event.pids[1], signal.SIGSTOP)
            vars(resources)["stall_timeout_s"] = 3.0
        if isinstance(event, Failed):
            vars(resources)["stall_timeout_s"] = PAIR.stall_timeout_s

    search = ground.search(tmp_path, strike, resources=resources)
    survived(search, "stalled")
    assert search.ends(Failed)[0].detail.endswith(
        "did nothing for 3 s; its stacks are in stacks.txt"
    )
    stacks = search.files.stacks.read_text()
    assert "training/ranks.py" in stacks, "where rank 0 waits for rank 1"
    assert "does not answer; state: stopped" in stacks
    assert search.ends(Finished)[0].result.lml == undisturbed.result.lml


def test_sigterm_leaves_a_checkpoint_just_in_time(ground, tmp_path):
    """Once in a step, and once more in scoring."""
    due = [Progress, Scoring]

    def strike(event: Event, search: Search_) -> None:
        if due and type(event) is due[0] and getattr(event, "step", 2) > 1:
            del due[0]
            os.kill(search.pids[1], signal.SIGTERM)

    rare = {"training": {"budget_tokens": 500 * 8 * 16, "checkpoint_every_s": 1e6}}
    search = ground.search(tmp_path, strike, score=LONG_SCORE, **rare)
    in_step, in_scoring = search.ends(Stopped)
    assert (in_step.reason, in_scoring.reason) == ("preempted", "preempted")
    assert search.started[1].resumed_at == in_step.step > 0
    assert 500 == in_scoring.step > in_step.step
    goes_straight_to_scoring(search)
    assert search.record.state == "COMPLETE"
    assert search.attrs.get("retries", 0) == 0
    assert gone(search.started[0].pids)


def test_a_loss_that_is_not_finite_fails_the_trial_and_keeps_the_gang(ground, tmp_path):
    bad = {"training": {"optimizer": {"learning_rate": 1e30}, "gradient_clipping": 0}}
    search = ground.search(tmp_path, **bad)
    assert search.record.state == "FAIL"
    assert search.record.reason == "non_finite_loss"
    assert len(search.started) == 1
    assert not gone_now(search.pids)


def digest(search: Search_) -> dict[str, bytes]:
    weights = torch.load(search.files.module)
    return {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("stage", "cpus"), [pytest.param(0, 0.4, marks=pytest.mark.nightly), (3, 0.3)]
)
def test_a_reused_gang_and_a_fresh_one_give_identical_results(ground, tmp_path, stage, cpus):
    shape = PAIR.model_copy(update={"cpus_per_worker": cpus})  # of which no gang is there yet
    training = {"zero_stage": stage, "keep_weights": True, **FEW}
    bert = {"family": "bert", "width": 16, "depth": 1, "heads": 2}
    fresh = ground.search(tmp_path / "fresh", resources=shape, training=training, model=bert)
    for number, other in enumerate(OTHERS):
        between = ground.search(tmp_path / f"{number}", resources=shape, **other)
        assert between.pids == fresh.pids
    warm = ground.search(tmp_path / "warm", resources=shape, training=training, model=bert)
    assert warm.pids == fresh.pids
    (one,), (two,) = (search.ends(Finished) for search in (fresh, warm))
    assert len(one.result.loss_curve) > 1
    assert two.result.loss_curve == one.result.loss_curve
    assert (two.result.lml, two.result.rates) == (one.result.lml, one.result.rates)
    assert digest(warm) == digest(fresh)


def gone_now(pids: tuple[int, ...]) -> bool:
    return not all(Path(f"/proc/{pid}").exists() for pid in pids)


def test_an_allocation_that_does_not_fit_fails_the_trial_alone(ground, undisturbed, tmp_path):
    """The allocator refuses for real: the ranks' address space is limited from outside."""
    import resource

    def strike(event: Event, search: Search_) -> bool:
        if isinstance(event, Started):
            for pid in event.pids:
                used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * 4096
                limit = used + 2**20
                resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        return isinstance(event, Started)

    wide = {"family": "plain", "width": 512, "depth": 24}
    training = {"batch_size": 512, "budget_tokens": 60 * 512 * 16}
    search = ground.search(tmp_path, once(strike), model=wide, training=training)
    assert search.record.reason == "out_of_memory", search.record.detail
    after = ground.search(tmp_path / "after")
    assert after.ends(Finished)[0].result.lml == undisturbed.result.lml


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_fails_the_trial_with_that_reason(ground, tmp_path, small_disk):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trials").symlink_to(small_disk)
    wide = {"family": "plain", "width": 256, "depth": 8}
    search = ground.search(tmp_path / "run", model=wide, training={"checkpoint_every_s": 1e-6})
    assert search.record.state == "FAIL"
    assert search.record.reason == "disk_full", search.record.detail
    assert "No space left on device" in (search.record.detail or "")
    assert list(search.files.checkpoint.glob("step*")) == []  # gives its room back


def test_damaged_checkpoints_are_removed_and_the_trial_begins_anew(ground, tmp_path):
    def strike(event: Event, search: Search_) -> bool:
        if not isinstance(event, Started | Progress) or named_tag(search) is None:
            return False
        for pid in search.pids:
            os.kill(pid, signal.SIGKILL)
        for file in search.files.checkpoint.glob("step*/*.pt"):
            file.write_bytes(b"not a checkpoint")
        return True

    search = ground.search(tmp_path, once(strike), **LONG)
    assert [e.reason for e in search.ends(Failed)] == ["worker_died", "damaged_checkpoint"]
    assert search.started[-1].resumed_at == 0
    assert search.record.state == "COMPLETE"


def test_retries_have_an_end(ground, tmp_path):
    def strike(event: Event, search: Search_) -> None:
        if isinstance(event, Started):
            os.kill(event.pids[0], signal.SIGKILL)

    once_more = PAIR.model_copy(update={"retries": 1})
    search = ground.search(tmp_path, strike, resources=once_more)
    assert len(search.started) == 2
    assert (search.record.state, search.record.reason) == ("FAIL", "worker_died")
