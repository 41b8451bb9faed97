"""The Ray dispatcher: real Ray, real processes, the fake worker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import optuna
import psutil
import pytest
import ray
from ray._raylet import AuthenticationMode, get_authentication_mode

from mptune.dispatch import faults, make, member, ray_dispatcher
from mptune.dispatch import gang as gang_module
from mptune.dispatch.gang import Gang
from mptune.dispatch.lifecycle import GangState
from mptune.dispatch.placement import ClusterNode, FreeResources, Shape
from mptune.dispatch.ray_dispatcher import RayDispatcher
from mptune.errors import DispatchError, InputError
from mptune.paths import RunDirectory, TrialDirectory
from mptune.search.driver import StudyDriver
from mptune.spec.schema import Resources, Search
from mptune.study.samplers import make_sampler
from mptune.trial import (
    Event,
    Failed,
    Finished,
    GangChanged,
    Progress,
    Rung,
    Started,
    Stopped,
    StopReason,
    TrialSpec,
)
from tests import fakes, studies
from tests.dispatch.helpers import changes, ends, prepare_request, until, until_ended

PAIR = Resources(workers=2, cpus_per_worker=0.5)


class Silent:
    def trial(self, number: int, label: str, size: str) -> None: ...

    def on_event(self, event: Event) -> None: ...

    def hold_trial(self, number: int, why: str) -> None: ...

    def finish_trial(self, number: int, state: str) -> None: ...


@pytest.fixture(scope="module")
def dispatcher() -> Iterator[RayDispatcher]:
    made = RayDispatcher(PAIR, runtime=fakes.FAKE_WORKER)
    yield made
    made.close()


def trial(number: int, directory: Path, **changes: Any) -> TrialSpec:
    """A trial on a pair of ranks; keys that are no fields of it go to the policy."""
    fields = {k: changes.pop(k) for k in list(changes) if k in TrialSpec.model_fields}
    return fakes.trial(number, directory, policy=changes, **{"resources": PAIR, **fields})


def whole_machine(**fields: Any) -> Resources:
    """A shape of which one gang fits, so that its trials run one after the other."""
    return Resources(cpus_per_worker=ray.cluster_resources()["CPU"], **fields)


def started(events: list[Any]) -> dict[int, Started]:
    return {e.number: e for e in events if isinstance(e, Started)}


def test_a_gang_is_used_again_with_the_same_processes(dispatcher, tmp_path):
    for number in range(3):
        dispatcher.submit(trial(number, tmp_path, resources=Resources(cpus_per_worker=0.9)))
    events = until_ended(dispatcher, 0, 1, 2)
    assert all(isinstance(end, Finished) for end in ends(events).values())
    gangs = {s.gang: s.pids for s in started(events).values()}
    assert {(s.gang, s.pids) for s in started(events).values()} == set(gangs.items())
    assert all(pid != os.getpid() and psutil.pid_exists(pid) for (pid,) in gangs.values())


def test_two_ranks_run_every_trial_of_their_gang(dispatcher, tmp_path):
    dispatcher.submit(trial(0, tmp_path))
    dispatcher.submit(trial(1, tmp_path, seed=1))
    events = until_ended(dispatcher, 0, 1)
    for number in (0, 1):
        runs, end = started(events)[number], ends(events)[number]
        assert len(set(runs.pids)) == 2
        assert end.result == fakes.result(trial(number, tmp_path, seed=number))
    assert [e.step for e in events if isinstance(e, Progress) and e.number == 0] == [
        4, 8, 12, 16, 20,
    ]  # fmt: skip


def test_the_turnaround_is_reported(dispatcher, tmp_path):
    began = time.monotonic()
    for number in range(3):
        dispatcher.submit(trial(number, tmp_path, resources=whole_machine()))
    runs = started(until_ended(dispatcher, 0, 1, 2))
    assert runs[1].turnaround_s > 0
    assert runs[2].turnaround_s > 0
    assert runs[1].turnaround_s + runs[2].turnaround_s < time.monotonic() - began


def test_a_rung_waits_for_the_driver(dispatcher, tmp_path):
    dispatcher.submit(trial(0, tmp_path, rungs=(0.25, 0.5)))
    dispatcher.submit(trial(1, tmp_path, rungs=(0.25, 0.5)))
    events = until_ended(dispatcher, 0, 1, go_on=lambda rung: rung.number == 0 or rung.index == 0)
    assert isinstance(ends(events)[0], Finished)
    assert ends(events)[1] == Stopped(number=1, reason="pruned", step=10)
    assert [e.index for e in events if isinstance(e, Rung) and e.number == 0] == [0, 1]


@pytest.mark.parametrize("reason", ["interrupted", "pruned"])
def test_a_running_trial_is_stopped_and_its_gang_stays(dispatcher, tmp_path, reason: StopReason):
    dispatcher.submit(trial(0, tmp_path, steps=10_000, step_s=0.01))
    pids = until(dispatcher, Started, 0).pids
    dispatcher.stop(0, reason)
    events = until_ended(dispatcher, 0)
    assert ends(events)[0].reason == reason
    dispatcher.submit(trial(1, tmp_path))
    assert started(until_ended(dispatcher, 1))[1].pids == pids


def test_a_trial_waiting_at_a_rung_is_stopped(dispatcher, tmp_path):
    dispatcher.submit(trial(0, tmp_path, rungs=(0.25,)))
    until(dispatcher, Rung, 0)
    dispatcher.stop(0, "interrupted")
    assert ends(until_ended(dispatcher, 0))[0] == Stopped(number=0, reason="interrupted", step=5)


def test_a_queued_trial_and_one_whose_gang_starts_are_dropped(dispatcher, tmp_path):
    dispatcher.submit(trial(0, tmp_path, resources=whole_machine()))
    dispatcher.submit(trial(1, tmp_path, resources=whole_machine()))
    until(dispatcher, GangChanged, 0)
    for number in (0, 1):
        dispatcher.stop(number, "interrupted")
    ended = ends(until_ended(dispatcher, 0, 1))
    assert [ended[n] for n in (0, 1)] == [
        Stopped(number=n, reason="interrupted", step=0) for n in (0, 1)
    ]


def test_a_large_gang_that_came_first_is_not_starved_by_small_ones(dispatcher, tmp_path):
    """Small gangs would fit in what is free, again and again."""
    half = Resources(cpus_per_worker=ray.cluster_resources()["CPU"] / 2)
    for number in (0, 1):
        dispatcher.submit(trial(number, tmp_path, resources=half))
    until_ended(dispatcher, 0, 1)
    for number, step_s in ((2, 0.02), (3, 0.06)):
        dispatcher.submit(trial(number, tmp_path, resources=half, step_s=step_s))
    before = dispatcher.events(0)
    dispatcher.submit(trial(4, tmp_path, resources=whole_machine()))
    for number in range(5, 9):
        dispatcher.submit(trial(number, tmp_path, resources=half))
    order = list(started(before + until_ended(dispatcher, *range(2, 9))))
    assert set(order[:2]) == {2, 3}
    assert order[2] == 4


def test_states_in_the_study_are_what_happened_to_the_trials(dispatcher, tmp_path):
    """Pruned is PRUNED, not COMPLETE with what there was; NaN is FAIL, not RUNNING for ever."""
    run = RunDirectory(tmp_path)
    pruner = optuna.pruners.ThresholdPruner(upper=-1e9)  # any score is above it
    opened = studies.create(run, None, "states", pruner=pruner)
    behaviours = [{"rungs": (0.5,)}, {"behaviour": "nan"}, {}]
    StudyDriver(
        study=opened, trials=3, dispatcher=dispatcher, observer=Silent(), concurrency=1,
        propose=lambda t: trial(
            t.number, tmp_path / "trials", **behaviours[t.number]
        ),
        sampler=lambda number: make_sampler(Search(), number),
    ).run()  # fmt: skip
    found = studies.trials(run, None, "states")
    assert [(r.state, r.reason) for r in found] == [
        ("PRUNED", "pruned"), ("FAIL", "non_finite_loss"), ("COMPLETE", None),
    ]  # fmt: skip


def test_placement_groups_are_one_per_gang_and_not_nested(dispatcher, tmp_path):
    dispatcher.submit(trial(0, tmp_path))
    until_ended(dispatcher, 0)
    table = ray.util.placement_group_table().values()
    standing = [group for group in table if group["state"] != "REMOVED"]
    assert sorted(len(group["bundles"]) for group in standing) == sorted(
        gang.shape.workers for gang in dispatcher._pool.gangs.values()
    )
    assert all(group["state"] == "CREATED" for group in standing)


def test_a_diverged_trial_keeps_its_gang(dispatcher, tmp_path):
    dispatcher.submit(trial(0, tmp_path, behaviour="nan"))
    events = until_ended(dispatcher, 0)
    assert ends(events)[0].reason == "non_finite_loss"
    dispatcher.submit(trial(1, tmp_path))
    assert started(until_ended(dispatcher, 1))[1].pids == started(events)[0].pids


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_costs_its_trial_and_its_gang_only(dispatcher, tmp_path, rank):
    dying = trial(0, tmp_path, behaviour="exit", only_rank=rank, step_s=0.02)
    dispatcher.submit(dying)
    events = until_ended(dispatcher, 0)
    gang, pids = started(events)[0].gang, started(events)[0].pids
    assert ends(events)[0] == Failed(
        number=0,
        reason="worker_died",
        detail=f"rank {rank} of {gang} (pid {pids[rank]}) died: killed, or crashed",
    )
    assert changes(events)[-1] == "gone"
    files = TrialDirectory(Path(dying.directory))
    assert "exits as asked" in files.traceback.read_text()
    assert "exits as asked" in files.log(rank).read_text()
    assert "exits as asked" not in files.log(1 - rank).read_text()

    dispatcher.submit(trial(1, tmp_path))
    events = until_ended(dispatcher, 1)
    assert isinstance(ends(events)[1], Finished)
    assert not set(pids) & set(started(events)[1].pids)
    psutil.wait_procs([psutil.Process(p) for p in pids if psutil.pid_exists(p)], timeout=60)
    assert not any(map(psutil.pid_exists, pids))


def test_retries_have_an_end(dispatcher, tmp_path):
    once_more = PAIR.model_copy(update={"retries": 1})
    run, events = RunDirectory(tmp_path), []

    class Observer(Silent):
        def on_event(self, event: Event) -> None:
            events.append(event)

    StudyDriver(
        study=studies.create(run, None, "retries"), trials=1, dispatcher=dispatcher,
        propose=lambda t: trial(
            t.number, tmp_path, behaviour="exit", step_s=0.02, resources=once_more
        ),
        sampler=lambda number: make_sampler(Search(), number), concurrency=1,
        observer=Observer(),
    ).run()  # fmt: skip
    pids = [event.pids for event in events if isinstance(event, Started)]
    assert len(set(pids)) == len(pids) == 2
    (found,) = studies.trials(run, None, "retries")
    assert (found.state, found.reason) == ("FAIL", "worker_died")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_fails_its_trial(dispatcher, tmp_path, rank):
    raising = trial(0, tmp_path, behaviour="crash", only_rank=rank, step_s=0.02)
    dispatcher.submit(raising)
    end = ends(until_ended(dispatcher, 0))[0]
    assert end.reason == "error"
    assert "RuntimeError: crashed at step 10, as asked" in end.detail
    traceback = TrialDirectory(Path(raising.directory)).traceback.read_text()
    assert "_fault" in traceback
    assert "\x1b" not in traceback


def test_a_worker_that_cannot_start_fails_the_trial(dispatcher, tmp_path, monkeypatch):
    monkeypatch.setattr(dispatcher._pool, "_runtime", "tests.dispatch.helpers:Missing")
    dispatcher.submit(trial(0, tmp_path, resources=Resources(workers=2, cpus_per_worker=0.3)))
    events = until_ended(dispatcher, 0)
    assert ends(events)[0].reason == "error"
    assert "has no attribute 'Missing'" in ends(events)[0].detail
    assert changes(events)[-1] == "gone"


def test_another_version_of_mptune_on_a_worker_is_named(dispatcher, tmp_path, monkeypatch):
    monkeypatch.setattr(gang_module, "__version__", "99.0")  # the driver's; workers have their own
    dispatcher.submit(trial(0, tmp_path, resources=Resources(workers=2, cpus_per_worker=0.4)))
    end = ends(until_ended(dispatcher, 0))[0]
    assert end.reason == "wrong_input"
    assert "the driver has 99.0: install the same version on every node" in end.detail


def test_an_idle_gang_that_dies_costs_no_trial(dispatcher, tmp_path):
    dispatcher.submit(trial(0, tmp_path))
    pids = started(until_ended(dispatcher, 0))[0].pids
    os.kill(pids[1], signal.SIGKILL)
    assert until(dispatcher, GangChanged, -1).state == "gone"
    dispatcher.submit(trial(1, tmp_path))
    assert isinstance(ends(until_ended(dispatcher, 1))[1], Finished)


def test_a_trial_that_does_not_stop_loses_its_gang(dispatcher, tmp_path, monkeypatch):
    monkeypatch.setattr(gang_module, "STOP_TIMEOUT_S", 0.2)
    dispatcher.submit(trial(0, tmp_path, behaviour="hang", at=0.2))
    until(dispatcher, Progress, 0)
    dispatcher.stop(0, "pruned")
    end = ends(until_ended(dispatcher, 0))[0]
    assert end.reason == "worker_died"
    assert "did not stop when asked" in end.detail


@pytest.fixture
def never_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver takes no value that is not there yet, and waits no longer than it is asked to."""
    get, wait = ray.get, ray.wait

    def get_ready(ref: Any) -> Any:
        ready, _ = wait([ref], timeout=0)
        assert ready, "the driver would wait for this value"
        return get(ref)

    def wait_briefly(refs: list[Any], *, num_returns: int, timeout: float) -> Any:
        assert timeout <= ray_dispatcher.SLICE_S
        return wait(refs, num_returns=num_returns, timeout=timeout)

    monkeypatch.setattr(ray, "get", get_ready)
    monkeypatch.setattr(ray, "wait", wait_briefly)


def test_the_driver_goes_on_while_a_stopped_gang_is_to_write_its_stacks(
    dispatcher, tmp_path, monkeypatch, never_blocks
):
    monkeypatch.setattr(faults, "ANSWER_TIMEOUT_S", 3.0)  # rank 0 has to answer
    quick = PAIR.model_copy(update={"stall_timeout_s": 0.3})
    hanging = trial(0, tmp_path, behaviour="hang", resources=quick)
    dispatcher.submit(hanging)
    os.kill(until(dispatcher, Started, 0).pids[1], signal.SIGSTOP)
    assert ends(until_ended(dispatcher, 0))[0].reason == "stalled"
    log = TrialDirectory(Path(hanging.directory)).log(0).read_text()
    assert "_fault" in log  # where rank 0 is


def test_the_driver_goes_on_while_a_broken_connection_may_mean_a_death(
    dispatcher, tmp_path, monkeypatch, never_blocks
):
    """No process has died here."""
    monkeypatch.setattr(faults, "ANSWER_TIMEOUT_S", 1.0)
    cut = {"behaviour": "cut", "at": 0.002, "steps": 10_000, "step_s": 0.01}
    dispatcher.submit(trial(0, tmp_path, only_rank=1, **cut))
    until(dispatcher, Started, 0)
    end = ends(until_ended(dispatcher, 0))[0]
    assert end.reason == "error"
    assert "ConnectionError: connection closed by peer, as asked" in end.detail


def test_a_result_counts_even_if_another_rank_hangs_after_it(dispatcher, tmp_path, monkeypatch):
    monkeypatch.setattr(gang_module, "AGREE_TIMEOUT_S", 0.2)
    dispatcher.submit(trial(0, tmp_path, behaviour="hang", only_rank=1))
    events = until_ended(dispatcher, 0)
    assert isinstance(ends(events)[0], Finished)
    assert changes(events)[-1] == "gone"


def test_a_gang_is_remade_after_its_share_of_trials(dispatcher, tmp_path):
    for number in range(3):
        dispatcher.submit(trial(number, tmp_path, resources=whole_machine(trials_per_gang=2)))
    runs = started(until_ended(dispatcher, 0, 1, 2))
    assert runs[0].pids == runs[1].pids != runs[2].pids


@pytest.mark.parametrize(
    ("leak", "what"),
    [
        ("leak_mb", r"remade: rank 0 did not release \d+ MB \(memory_growth_mb\)"),
        ("gpu_leak_mb", r"remade: rank 0 did not release 60 MB \(gpu_memory_growth_mb\)"),
    ],
)
def test_a_gang_whose_memory_does_not_come_back_is_remade(dispatcher, tmp_path, leak, what):
    limits = {"memory_growth_mb": 50, "gpu_memory_growth_mb": 50}
    shape = whole_machine(**limits)
    for number, megabytes in enumerate([0, 30, 30, 0]):
        dispatcher.submit(trial(number, tmp_path, resources=shape, **{leak: megabytes}))
    events = until_ended(dispatcher, 0, 1, 2, 3)
    pids = [runs.pids for runs in started(events).values()]
    assert pids[0] == pids[1] == pids[2] != pids[3]
    gone = [e.detail for e in events if isinstance(e, GangChanged) and e.state == "gone"]
    assert re.search(what, gone[-1])


def test_capacity_is_what_the_machine_holds(dispatcher):
    assert dispatcher.capacity() == ray.cluster_resources()["CPU"]  # a pair takes one


def test_a_trial_that_can_never_fit_is_refused_at_once(dispatcher, tmp_path):
    dispatcher.submit(trial(0, tmp_path, resources=Resources(gpus_per_worker=99)))
    end = ends(until_ended(dispatcher, 0))[0]
    assert end.reason == "wrong_input"
    assert "needs 1 worker of 1 CPU and 99 GPU; the cluster holds" in end.detail


def test_a_trial_waits_for_the_return_of_machines_but_not_without_end(
    dispatcher, tmp_path, monkeypatch
):
    """On which it would have fitted; as if they were gone from the cluster."""
    dispatcher.submit(trial(0, tmp_path))
    until_ended(dispatcher, 0)
    nodes = dispatcher._cluster.nodes

    def only(found: list[ClusterNode]) -> None:
        monkeypatch.setattr(dispatcher._cluster, "nodes", lambda: found)
        dispatcher._pool.update_nodes()

    only([ClusterNode("small", 0.1)])
    dispatcher.submit(trial(1, tmp_path))
    assert ends(dispatcher.events(0.5) + dispatcher.events(0.5)) == {}
    only(nodes())
    assert isinstance(ends(until_ended(dispatcher, 1))[1], Finished)

    monkeypatch.setattr(ray_dispatcher, "RETURNING_S", 0.5)
    only([ClusterNode("small", 0.1)])
    dispatcher.submit(trial(2, tmp_path))
    assert ends(dispatcher.events(0)) == {}
    end = ends(until_ended(dispatcher, 2))[2]
    assert end.reason == "wrong_input"
    assert "needs 2 workers of 0.5 CPU; the cluster holds 0.1 CPU and 0 GPU" in end.detail
    only(nodes())


@pytest.mark.parametrize("room", [False, True], ids=["no room yet", "no gang yet"])
def test_preparing_waits_for_no_head_that_is_lost(dispatcher, tmp_path, monkeypatch, room):
    """Neither for others to leave room, nor for a gang to start."""

    def lost() -> bool:
        raise DispatchError("the head is away")

    monkeypatch.setattr(dispatcher._pool, "gangs", {})
    monkeypatch.setattr(dispatcher._cluster.head, "is_reachable", lost)
    if not room:
        full = FreeResources.of([ClusterNode("small", 0.1)])
        monkeypatch.setattr(dispatcher._pool, "free", lambda: full)
    else:
        starting = Mock(state=GangState.STARTING)
        monkeypatch.setattr(dispatcher, "_spare_gang", lambda shape: starting)
    with pytest.raises(DispatchError, match="the head is away"):
        dispatcher.prepare(prepare_request(tmp_path))


def test_data_is_prepared_on_a_gang_that_trials_then_use(dispatcher, tmp_path):
    assert Path(dispatcher.prepare(prepare_request(tmp_path)).plan).exists()
    with pytest.raises(InputError, match=r"data.path: nowhere does not exist"):
        dispatcher.prepare(
            prepare_request(tmp_path, data={"behaviour": "wrong_input", "path": "nowhere"})
        )


def test_members_do_not_fight_for_threads_and_find_devices(monkeypatch):
    monkeypatch.setattr(os, "environ", {"PATH": "/usr/bin", "OMP_NUM_THREADS": "64"})
    member.set_environment(Shape(workers=4, cpus=2.5, gpus=0))
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert "PYTORCH_ALLOC_CONF" not in os.environ
    for given, wanted in (({}, "expandable_segments:True"), ({"PYTORCH_ALLOC_CONF": "x"}, "x")):
        monkeypatch.setattr(os, "environ", dict(given))
        member.set_environment(Shape(workers=1, cpus=1, gpus=1))
        assert os.environ["PYTORCH_ALLOC_CONF"] == wanted
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_members_are_out_of_the_terminals_reach(dispatcher, tmp_path):
    dispatcher.submit(trial(0, tmp_path))
    runs = started(until_ended(dispatcher, 0))[0]
    assert all(os.getpgid(pid) != os.getpgid(0) for pid in runs.pids)


def test_ray_here_is_on_loopback_with_a_token_and_without_a_dashboard(dispatcher):
    assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
    assert get_authentication_mode() == AuthenticationMode.TOKEN
    assert not ray._private.worker.global_worker.node.address_info["webui_url"]


def test_one_ray_per_process(dispatcher):
    with pytest.raises(DispatchError, match="Ray is already in use"):
        make(PAIR, local=False, address=None)


@contextmanager
def pinned_gang(node: str) -> Iterator[Gang]:
    """A gang whose answers have not been collected."""
    made = Gang("pinned", Shape(1, 0.1, 0), (node,), fakes.FAKE_WORKER, pinned=True)
    try:
        yield made
    finally:
        made.kill()


def test_a_gang_that_is_placed_is_not_displaced_however_slowly_it_starts(dispatcher, monkeypatch):
    (node,) = (n.id for n in dispatcher._cluster.nodes())
    with pinned_gang(node) as gang:
        ray.get(gang._group.ready(), timeout=60)
        monkeypatch.setattr(gang_module, "PLACE_TIMEOUT_S", 0.0)
        assert not gang.infos
        assert not gang.is_displaced()
        assert gang.state is GangState.STARTING


def test_a_gang_that_ray_does_not_place_in_time_is_displaced(dispatcher, monkeypatch):
    with pinned_gang("ab" * 28) as gang:
        assert not gang.is_displaced()
        monkeypatch.setattr(gang_module, "PLACE_TIMEOUT_S", 0.0)
        assert gang.is_displaced()


@contextmanager
def driver(directory: Path, behaviour: str) -> Iterator[tuple[subprocess.Popen[str], list[Any]]]:
    """A driver in its own session, once its trial runs; and all its processes but itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.dispatch.driver", str(directory), behaviour],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    try:
        while json.loads(process.stdout.readline())["type"] != "rung":
            pass
        yield process, psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_killed_driver_leaves_no_process_and_touches_no_other_ray(dispatcher, tmp_path):
    with driver(tmp_path, "hang") as (process, children):
        names = [child.name() for child in children]
        assert {"raylet", "gcs_server", "ray::Member"} <= set(names)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    dispatcher.submit(trial(0, tmp_path))
    assert isinstance(ends(until_ended(dispatcher, 0))[0], Finished)


def test_signals_to_the_group_reach_the_driver_alone_and_closing_leaves_no_process(tmp_path):
    with driver(tmp_path, "ok") as (process, children):
        os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C
        os.killpg(process.pid, signal.SIGTERM)  # timeout, Slurm, systemd
        assert process.stdout is not None
        events = [json.loads(line) for line in process.stdout]
        assert [e["type"] for e in events if e["type"] in ("failed", "gang")] == []
        assert events[-1]["type"] == "stopped"
        assert process.wait(timeout=60) == 0
        assert not [p for p in children if p.is_running()]
