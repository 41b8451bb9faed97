"""The remote side of a gang: a Ray actor that is one rank, in its own process."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, cast

import psutil
import ray

from mptune import __version__, plugins
from mptune.dispatch import process
from mptune.dispatch.base import Controls, Runtime, guarded
from mptune.dispatch.placement import Shape
from mptune.dispatch.process import MemoryGrowth
from mptune.paths import TrialDirectory, free_port
from mptune.trial import PrepareRequest, StopReason, TrialSpec


@dataclass(frozen=True)
class MemberInfo:
    """Where a member runs."""

    pid: int
    node: str
    """Ray's id of its node."""
    address: str
    port: int
    """Free on its node, for the ranks to connect."""
    log: str
    """File of its error output on its node."""
    version: str = ""
    """Of mptune, as installed there."""


class Member:
    """One rank of a gang.

    Ray runs the methods outside the concurrency groups in one thread of their own, in order. That
    matters: CUDA's current device and the process group belong to the thread that joined.
    """

    def __init__(self, runtime: str, rank: int, shape: Shape) -> None:
        set_environment(shape)
        self._runtime, self._rank, self._shape = runtime, rank, shape
        self._worker: Runtime  # made by `load`, which comes first
        self._controls, self._growth = Controls(), MemoryGrowth()
        self._events: SimpleQueue[str] = SimpleQueue()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self._on_preemption())

    def _on_preemption(self) -> None:
        """The node is to be taken away: stop with a checkpoint, or exit if nothing runs."""
        running = self._controls.all()
        if not running:
            os._exit(128 + signal.SIGTERM)
        for control in running:
            control.stop("preempted")

    def info(self) -> MemberInfo:
        return MemberInfo(
            pid=os.getpid(),
            node=ray.get_runtime_context().get_node_id(),
            address=ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
            port=free_port(),
            log=os.readlink("/proc/self/fd/2"),
            version=__version__,
        )

    def load(self) -> None:
        """Import what trials need, while other ranks still start."""
        with _exit_as_error():
            # Ray shows each member only its own GPUs: its device is always the first.
            self._worker = plugins.load_object(self._runtime)(self._rank, self._shape.workers, 0)

    def join(self, address: str, port: int) -> None:
        with _exit_as_error():
            self._worker.join(address, port)

    def prepare(self, request: str) -> str:
        with _exit_as_error():
            prepared = self._worker.prepare(PrepareRequest.model_validate_json(request))
        return prepared.model_dump_json()

    def run(self, ticket: int, trial_json: str) -> str | None:
        """Run one trial; returns what memory it did not release, if that is much.

        Errors on rank 0 become an event, those on other ranks are raised.
        """
        trial, control = TrialSpec.model_validate_json(trial_json), self._controls.of(ticket)
        log = TrialDirectory.of(trial.directory).log(self._rank)
        try:
            with process.output_to(log, self._rank):
                if self._rank == 0:
                    for event in guarded(self._worker, trial, control):
                        self._events.put(event.model_dump_json())
                else:
                    with _exit_as_error():
                        deque(self._worker.run(trial, control), maxlen=0)
        finally:
            self._controls.end(ticket)
        memory, resources = psutil.Process().memory_info(), trial.resources
        # Pages of files do not count: those of a mapped table come and go.
        host, gpu = memory.rss - memory.shared, self._worker.device_bytes()
        excess = self._growth.excess(resources, memory=host, gpu_memory=gpu)
        return f"rank {self._rank} did not release {excess}" if excess else None

    @ray.method(concurrency_group="events")
    def next_events(self) -> list[str]:
        """The events so far, at least one: blocks."""
        events = [self._events.get()]
        while not self._events.empty():
            events.append(self._events.get())
        return events

    @ray.method(concurrency_group="control")
    def decide(self, ticket: int, go_on: bool) -> None:
        self._controls.of(ticket).decide(go_on)

    @ray.method(concurrency_group="control")
    def stop(self, ticket: int, reason: StopReason) -> None:
        self._controls.of(ticket).stop(reason)

    @ray.method(concurrency_group="control")
    def idle_s(self, ticket: int) -> float:
        """Seconds since the trial last took a step or scored a batch."""
        return self._controls.of(ticket).idle_s()

    @ray.method(concurrency_group="control")
    def write_stacks(self) -> None:
        """Write the stack of every thread to the log of the trial, where all output goes."""
        faulthandler.dump_traceback(2)

    @ray.method(concurrency_group="life")
    def live(self) -> None:
        """Never returns: its reference fails when the process dies, whatever it is doing."""
        threading.Event().wait()


# Untyped: Ray's types know no concurrency groups.
RemoteMember: Any = cast(Any, ray.remote)(
    max_restarts=0, concurrency_groups={"control": 1, "events": 1, "life": 1}
)(Member)


def set_environment(shape: Shape) -> None:
    """Set what libraries read when they are first imported: threads and devices."""
    threads = str(max(1, int(shape.cpus)))
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{library}_NUM_THREADS"] = threads
    if shape.gpus:
        # Batches differ in rows: blocks that grow are not left behind, too small for the next one.
        if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its name before torch 2.9
            os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@contextmanager
def _exit_as_error() -> Iterator[None]:
    """Turn `exit()` into an error: in a thread of a member it would have no effect."""
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"the worker called exit({error.code})") from error
