"""What may happen to a gang: the real fault, its reason in the trial, and how the trial ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from mptune.errors import DiskFull
from mptune.paths import RunDirectory
from mptune.trial import Event, Failed, Finished, GangChanged, Progress, Scoring, Started, Stopped
from tests.faults.cluster import close_connections
from tests.faults.conftest import (
    PAIR,
    SCORE,
    STEPS,
    Ground,
    Search_,
    gone,
    members,
    once,
    orphans,
    pids,
)

pytestmark = pytest.mark.slow

OTHERS: list[dict[str, Any]] = [
    {"training": {"zero_stage": 3, "batch_size": 16}, "policy": {"kind": "fixed", "rate": 0.3}},
    {"training": {"zero_stage": 2, "precision": "bf16"}},
    {"training": {"zero_stage": 1}, "model": {"family": "bert", "width": 64, "depth": 2}},
    {"training": {"optimizer": {"learning_rate": 1e30}, "gradient_clipping": 0}},
]
"""Trials that leave a gang with other stages, sizes and precisions behind it, and a failed one."""

OFTEN = {"checkpoint_every_s": 1e-6}
"""A checkpoint after each step."""

LONG_SCORE = SCORE.model_copy(update={"rates": tuple(round(0.02 * k, 2) for k in range(1, 40))})
"""More forwards than can be done in a pause before a signal arrives."""


@pytest.fixture
def pause(ground: Ground) -> Iterator[Path]:
    """The trial waits to be struck, until the strike removes this file."""
    ground.pause.touch()
    yield ground.pause
    ground.pause.unlink(missing_ok=True)


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


def test_a_rank_killed_in_a_step_costs_nothing_but_time(ground, undisturbed, tmp_path, pause):
    def strike(event: Event, search: Search_) -> bool:
        if isinstance(event, Started):
            os.kill(event.pids[1], signal.SIGKILL)
            pause.unlink()
        return isinstance(event, Started)

    search = ground.search(tmp_path, once(strike))
    survived(search, "worker_died")
    detail = search.ends(Failed)[0].detail
    assert f"(pid {search.started[0].pids[1]}) died: killed, or crashed" in detail
    assert search.files.traceback.exists()
    assert search.ends(Finished)[0].result.lml == undisturbed.result.lml


def test_a_rank_killed_in_a_checkpoint_write_leaves_the_one_before(
    ground, undisturbed, tmp_path, pause
):
    def wait_and_kill(search: Search_, pid: int) -> None:
        while True:
            named = named_tag(search)
            tags = {p.name for p in search.files.checkpoint.glob("step*")}
            if named and any(tag > named for tag in tags):
                os.kill(pid, signal.SIGKILL)
                pause.unlink()
                return
            time.sleep(0.0005)

    def strike(event: Event, search: Search_) -> bool:
        if isinstance(event, Started):
            threading.Thread(target=wait_and_kill, args=(search, event.pids[0])).start()
        return isinstance(event, Started)

    search = ground.search(tmp_path, once(strike), training=OFTEN)
    survived(search, "worker_died")
    assert search.started[1].resumed_at > 0
    assert search.ends(Finished)[0].result.lml == undisturbed.result.lml


def test_a_rank_killed_in_scoring(ground, undisturbed, tmp_path, pause):
    def strike(event: Event, search: Search_) -> bool:
        if isinstance(event, Scoring):
            os.kill(search.pids[1], signal.SIGKILL)
            pause.unlink()
        return isinstance(event, Scoring)

    search = ground.search(tmp_path, once(strike), score=LONG_SCORE, training=OFTEN)
    survived(search, "worker_died")
    goes_straight_to_scoring(search)
    assert search.ends(Finished)[0].result.lml == undisturbed.result.lml


def test_a_connection_between_ranks_that_is_cut_costs_nothing_but_time(
    ground, undisturbed, tmp_path, pause
):
    """No process has died, but they cannot reach each other any more."""

    def strike(event: Event, search: Search_) -> bool:
        if isinstance(event, Started):
            close_connections(event.pids)
            pause.unlink()
        return isinstance(event, Started)

    search = ground.search(tmp_path, once(strike))
    survived(search, "connection_lost")
    assert search.ends(Finished)[0].result.lml == undisturbed.result.lml


def test_a_rank_that_hangs_is_seen_and_stacks_are_kept(ground, undisturbed, tmp_path, pause):
    resources = PAIR.model_copy()

    def strike(event: Event, search: Search_) -> None:
        """Only the driver of the stopped gang is impatient: a busy machine is no stall."""
        if isinstance(event, Started) and not search.ends(Failed):
            os.kill(event.pids[1], signal.SIGSTOP)
            pause.unlink()
            vars(resources)["stall_timeout_s"] = 3.0
        if isinstance(event, Failed):
            vars(resources)["stall_timeout_s"] = PAIR.stall_timeout_s

    search = ground.search(tmp_path, strike, resources=resources)
    survived(search, "stalled")
    assert search.ends(Failed)[0].detail.endswith(
        "did nothing for 3 s; stacks are at the end of its ranks' logs"
    )
    assert "training/ranks.py" in search.files.log(0).read_text(), "where rank 0 waits for rank 1"
    assert search.ends(Finished)[0].result.lml == undisturbed.result.lml


def test_sigterm_leaves_a_checkpoint_just_in_time(ground, tmp_path, pause):
    """Once in a step, and once more in scoring."""
    due = [Progress, Scoring]

    def strike(event: Event, search: Search_) -> None:
        if due and type(event) is due[0] and getattr(event, "step", 2) > 1:
            del due[0]
            os.kill(search.pids[1], signal.SIGTERM)
            if not due:
                pause.unlink()

    rare = {"checkpoint_every_s": 1e6}
    search = ground.search(tmp_path, strike, score=LONG_SCORE, training=rare)
    in_step, in_scoring = search.ends(Stopped)
    assert (in_step.reason, in_scoring.reason) == ("preempted", "preempted")
    assert search.started[1].resumed_at == in_step.step > 0
    assert in_scoring.step == STEPS > in_step.step
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
    training = {"zero_stage": stage, "keep_weights": True}
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


def limit_memory(pids: tuple[int, ...], more: int | None) -> None:
    """Let each process have so many bytes more than it has; without a number, all it wants."""
    for pid in pids:
        hard = resource.prlimit(pid, resource.RLIMIT_AS)[1]
        used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * 4096
        soft = hard if more is None else used + more
        resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))


def test_an_allocation_that_does_not_fit_fails_the_trial_alone(
    ground, undisturbed, tmp_path, pause
):
    """The allocator refuses for real: the ranks' address space is limited from outside.

    In the first of the step's forwards; what comes after it, the optimizer's state in the end,
    needs memory that no rank has yet.
    """

    def strike(event: Event, search: Search_) -> bool:
        if isinstance(event, Started):
            limit_memory(event.pids, 2**20)
            pause.unlink()
        return isinstance(event, Started)

    wide = {"family": "plain", "width": 512, "depth": 8}
    training = {"batch_size": 512, "micro_batch_size": 16, "budget_tokens": 2 * 512 * 16}
    search = ground.search(tmp_path, once(strike), model=wide, training=training)
    assert search.record.reason == "out_of_memory", search.record.detail
    with suppress(ProcessLookupError):  # they may have died of it
        limit_memory(search.pids, None)
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


def test_a_full_disk_ends_the_search_and_its_trial_is_run_again(ground, tmp_path, small_disk):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trials").symlink_to(small_disk)
    wide = {"family": "plain", "width": 256, "depth": 8}
    with pytest.raises(DiskFull, match=r"No space left on device.*; finished trials are kept"):
        ground.search(tmp_path / "run", model=wide, training=OFTEN)
    assert list(RunDirectory(tmp_path / "run").trial(0).checkpoint.glob("step*")) == []
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    search = ground.search(tmp_path / "run", model=wide, training=OFTEN)
    assert search.record.state == "COMPLETE"


def test_damaged_checkpoints_are_removed_and_the_trial_begins_anew(ground, tmp_path, pause):
    def strike(event: Event, search: Search_) -> bool:
        if not isinstance(event, Started | Progress) or named_tag(search) is None:
            return False
        for pid in search.pids:
            os.kill(pid, signal.SIGKILL)
        for file in search.files.checkpoint.glob("step*/*.pt"):
            file.write_bytes(b"not a checkpoint")
        pause.unlink()
        return True

    search = ground.search(tmp_path, once(strike), training=OFTEN)
    assert [e.reason for e in search.ends(Failed)] == ["worker_died", "damaged_checkpoint"]
    assert search.started[-1].resumed_at == 0
    assert search.record.state == "COMPLETE"
