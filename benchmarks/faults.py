"""Faults of every kind at random moments of a search, while other commands read the same run.

    python benchmarks/faults.py [--quick] [--kinds driver rank ...] [--repeats 20] [--seed 1]
        [--folder FOLDER] [--json FILE]

One search of short trainings for each kind of fault, on a Ray cluster of two machines (two sets of
Ray's processes on this one): gangs of two DeepSpeed ranks on CPU, one on each. All are struck
`--repeats` times, with `status`, `report`, `fsck` and `bundle` running beside them in a loop. What
they leave must be what a search without faults leaves, to the last digit.

    driver     killed (-9); the same command again
    rank       killed (-9), either one
    node       all processes of a machine killed (-9); another machine joins
    head       all processes of all machines killed (-9), started again; the same command again
    database   PostgreSQL stopped (fast, immediate) or killed (-9), started after .5 to 3 s
    disk       the file system of the run directory is full for .2 to 3 s; the same command again
               if the search ended
    clock      the wall clock of the driver's machine, or of the others, jumps by up to a day
    network    connections closed from outside: between ranks, of the driver to Ray's head or to
               PostgreSQL; or PostgreSQL's is silent for 1 to 6 s

Counted: trials that are lost or were trained again after their result was written; outcomes
(state, parameters, scores) that differ; processes, actors and placement groups that are left; the
ranking of `mptune report`; answers of the commands beside it that are no result and no clear line.
With --folder the undisturbed search is kept and used again. --quick strikes once with three kinds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import studies
from tests.faults.cluster import RayCluster, close_connections, ray_cluster, wait_until_gone
from tests.faults.postgres import Postgres, Relay
from tests.faults.search import PATIENCE_S, Running, Searches

CHANGES = (
    "search.pruner={kind: median, rungs: [0.5], startup_trials: 4}",
    "search.sampler={kind: tpe}",
    "search.seed=2",
    "search.concurrency=1",
    "resources.workers=2",
    "resources.retries=100",
)

DAY_S = 86400.0

WITHIN_S = 1.2
"""A fault strikes at a random moment of so many seconds after a training has begun."""

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

static double *offset;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("CLOCK_OFFSET");
    int file = name ? open(name, O_RDONLY) : -1;
    if (file >= 0) offset = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    if (offset == MAP_FAILED) offset = 0;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, now);
    if (!failed && offset && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        now->tv_sec += (time_t)*offset;
    return failed;
}

time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec of;
    clock_gettime(CLOCK_REALTIME, &of);
    now->tv_sec = of.tv_sec;
    now->tv_usec = of.tv_nsec / 1000;
    return 0;
}

/* What waits until a time of this clock gets the kernel's; one since boot is a small number. */
static struct timespec of_kernel(const struct timespec *until) {
    struct timespec found = *until;
    if (offset && found.tv_sec > 100000000) found.tv_sec -= (time_t)*offset;
    return found;
}

int pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *until) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!real) real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    struct timespec kernel = of_kernel(until);
    return real(c, m, &kernel);
}

long syscall(long number, long a, long b, long c, long d, long e, long f) {
    static long (*real)(long, ...);
    if (!real) real = dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_futex && (b & FUTEX_CLOCK_REALTIME) && d) {
        struct timespec kernel = of_kernel((const struct timespec *)d);
        return real(number, a, b, c, &kernel, e, f);
    }
    return real(number, a, b, c, d, e, f);
}
"""
"""Puts the C library's wall clock off by a number of seconds that is read from a file."""


@dataclass
class Clock:
    """The wall clock of the processes with `env`."""

    library: Path
    file: Path

    def __post_init__(self) -> None:
        self.file.write_bytes(struct.pack("d", 0.0))

    @property
    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "CLOCK_OFFSET": str(self.file)}

    def jump(self, offset_s: float) -> None:
        with self.file.open("r+b") as file, mmap.mmap(file.fileno(), 8) as held:
            held[:] = struct.pack("d", offset_s)


@dataclass
class Ground:
    """What is struck. `clocks`: of the driver's machine, and of the cluster's."""

    cluster: RayCluster
    searches: Searches
    clocks: tuple[Clock, Clock]
    disk: Path
    draw: random.Random
    server: Postgres | None = None
    relay: Relay | None = None

    def start(self, name: str) -> Running:
        where = self.relay or self.server
        storage = ("--set", f"storage.url={where.url}") if where else ()
        return self.searches.start(name, *storage)

    def again(self, running: Running, code: int) -> Running:
        """The same command, once the driver has ended; it may just have finished, too."""
        if running.process.wait(PATIENCE_S) == 0:
            return running
        running.end(code)
        return self.start(str(running.run.root.relative_to(self.searches.folder)))

    def members(self) -> list[int]:
        """Processes of gangs, whoever started them."""
        found = []
        for pid in set[int]().union(*(node.pids() for node in self.cluster.nodes)):
            with suppress(psutil.Error):
                if "Member" in psutil.Process(pid).name():
                    found.append(pid)
        return sorted(found)

    def mptune(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output of a command, in two minutes at most."""
        done = subprocess.run(
            ["timeout", "120", "nice", sys.executable, "-m", "mptune", *arguments],
            env=dict(self.searches.env), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout


def driver(ground: Ground, running: Running) -> Running:
    running.process.kill()
    return ground.again(running, -signal.SIGKILL)


def rank(ground: Ground, running: Running) -> Running:
    if members := ground.members():
        with suppress(ProcessLookupError):
            os.kill(ground.draw.choice(members), signal.SIGKILL)
    return running


def node(ground: Ground, running: Running) -> Running:
    ground.cluster.kill(ground.cluster.nodes[-1])
    ground.cluster.add_nodes(1, 1)
    return running


def head(ground: Ground, running: Running) -> Running:
    cluster = ground.cluster
    for each in list(cluster.nodes):
        cluster.kill(each)
    cluster.start_head(1)
    cluster.add_nodes(1, 1)
    return ground.again(running, 3)


def database(ground: Ground, running: Running) -> Running:
    assert ground.server is not None
    how = ground.draw.choice(["fast", "immediate", "kill"])
    ground.server.kill() if how == "kill" else ground.server.stop(how)
    time.sleep(ground.draw.uniform(0.5, 3))
    ground.server.start()
    return running


def disk(ground: Ground, running: Running) -> Running:
    filler = ground.disk / "filler"
    with filler.open("wb") as file, suppress(OSError):
        while True:  # what is freed meanwhile, too
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), 4096)
    time.sleep(ground.draw.uniform(0.2, 3))
    filler.unlink()
    return running


def clock(ground: Ground, running: Running) -> Running:
    ground.draw.choice(ground.clocks).jump(ground.draw.uniform(-DAY_S, DAY_S))
    return running


def network(ground: Ground, running: Running) -> Running:
    assert ground.relay is not None
    draw, here = ground.draw, running.process.pid
    ports = {"head": ground.cluster.port, "database": ground.relay.port}
    what = draw.choice(["ranks", "silent", *ports])
    if what == "silent":
        ground.relay.silent.set()
        time.sleep(draw.uniform(1, 6))
        ground.relay.silent.clear()
    elif what == "ranks":
        close_connections(set(ground.members()))
    else:
        close_connections({here}, {ports[what]})
    return running


FAULTS: dict[str, Callable[[Ground, Running], Running]] = {
    f.__name__: f for f in (driver, rank, node, head, database, disk, clock, network)
}


@dataclass
class Readers:
    """Commands that read the run while it is disturbed, one after the other."""

    ground: Ground
    run: Path
    answers: list[tuple[str, int, str]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Readers:
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self._thread.join()

    def _loop(self) -> None:
        bundle = str(self.ground.searches.folder / "bundle.zip")
        for command in itertools.cycle(("status", "report", "fsck", "bundle")):
            if self.ended.wait(2):
                return
            more = ("--out", bundle) if command == "bundle" else ()
            self.answers.append((command, *self.ground.mptune(command, str(self.run), *more)))

    def wrong(self) -> list[tuple[str, int, str]]:
        """Those that are neither a result (0) nor one line that says why there is none (3)."""
        return [a for a in self.answers if a[1] not in (0, 3) or "Traceback" in a[2]]


def finished(running: Running, url: str | None) -> dict[int, int]:
    """Trials whose result the study has -> when its file was written."""
    return {
        trial.number: running.run.trial(trial.number).result.stat().st_mtime_ns
        for trial in studies.trials(running.run, url, "faults")
        if trial.state == "COMPLETE"
    }


def disturb(ground: Ground, kind: str, name: str, repeats: int) -> dict[str, Any]:
    """Drive one search through its faults; how often it was struck, and what it did wrong."""
    url = ground.server.url if ground.server else None
    began, running = time.monotonic(), ground.start(name)
    struck, starts, again, written = 0, 0, set[int](), dict[int, int]()
    struck_at = began

    def compare() -> None:
        now = finished(running, url)
        again.update(number for number, at in written.items() if now.get(number) != at)
        written.update(now)

    with Readers(ground, running.run.root) as readers:
        while running.process.poll() is None or (kind == "disk" and running.process.poll() == 3):
            if running.process.poll() == 3:
                running = ground.again(running, 3)
            now = len(running.events("started"))
            if now == starts or struck == repeats:
                assert time.monotonic() - struck_at < PATIENCE_S, running.events()[-3:]
                time.sleep(0.05)
                continue
            starts = now
            time.sleep(ground.draw.uniform(0, WITHIN_S))
            compare()
            if running.process.poll() is None:
                running = FAULTS[kind](ground, running)
                struck, struck_at = struck + 1, time.monotonic()
        out = running.end()
    compare()
    left = wait_until_gone(ground.members())
    return {
        "struck": struck,
        "seconds": round(time.monotonic() - began),
        "trained again": sorted(again),
        "processes left": [" ".join(psutil.Process(p).cmdline()) for p in left],
        "left on the cluster": ground.cluster.leftovers(),
        "outcome": json.loads(
            json.dumps(ground.searches.outcome(name, url), default=BaseModel.model_dump)
        ),
        "ranking": ranking(ground, running),
        "fsck": ground.mptune("fsck", str(running.run.root)),
        "answers": len(readers.answers),
        "wrong answers": readers.wrong(),
        "output": out,
    }


def ranking(ground: Ground, running: Running) -> Any:
    code, out = ground.mptune("report", str(running.run.root), "--json")
    return json.loads(out)["ranking"] if code == 0 else out


def verdict(kind: str, found: dict[str, Any], undisturbed: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    numbers = {row[0] for row in undisturbed["outcome"]}
    lost = numbers - {row[0] for row in found["outcome"]} | set(found["trained again"])
    differ = [row for row in found["outcome"] if row not in undisturbed["outcome"]]
    return {
        "fault": kind,
        "struck": found["struck"],
        "lost": len(lost),
        "wrong states or scores": len(differ),
        "orphans": len(found["processes left"]) + len(found["left on the cluster"]),
        "same ranking": "yes" if found["ranking"] == undisturbed["ranking"] else "no",
        "fsck": "no problems" if found["fsck"][0] == 0 else found["fsck"][1].strip(),
        "commands beside it": f"{len(found['wrong answers'])} of {found['answers']} wrong",
        "seconds": found["seconds"],
    }


def run(kinds: list[str], repeats: int, seed: int, folder: Path) -> dict[str, Any]:
    """What became of the search of each kind."""
    library = folder / "clock.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"],
        input=CLOCK, text=True, check=True,
    )  # fmt: skip
    here, there = (Clock(library, folder / name) for name in ("here", "there"))
    (folder / "disk").mkdir(exist_ok=True)
    sets = [w for c in (*CHANGES, f"search.trials={3 * repeats + 5}") for w in ("--set", c)]
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        cluster = stack.enter_context(ray_cluster(1, RAY_worker_niceness="0", **there.env))
        cluster.add_nodes(1, 1)
        searches = Searches(folder, cluster.env | here.env, (*sets, "--address", cluster.address))
        for kind in kinds:
            ground = Ground(cluster, searches, (here, there), folder / "disk", random.Random(seed))
            name = f"{kind}-{seed}"
            with ExitStack() as of_kind:
                if kind in ("database", "network"):
                    data = of_kind.enter_context(tempfile.TemporaryDirectory(prefix="mptune-pg-"))
                    ground.server = Postgres(Path(data))
                    of_kind.callback(ground.server.close)
                if kind == "network":
                    assert ground.server is not None
                    ground.relay = of_kind.enter_context(Relay(ground.server))
                if kind == "disk":
                    name = f"disk/{name}"
                    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(ground.disk)]
                    subprocess.run(mount, check=True)
                    of_kind.callback(subprocess.run, ["umount", "-l", str(ground.disk)])
                found[kind] = disturb(ground, kind, name, 0 if kind == "none" else repeats)
                for each in ground.clocks:
                    each.jump(0.0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kinds", nargs="+", choices=FAULTS)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="mptune-faults-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        kept = folder / "undisturbed.json"
        kinds = options.kinds or (["rank", "database", "disk"] if options.quick else [*FAULTS])
        first = [] if kept.exists() else ["none"]
        repeats = 1 if options.quick else options.repeats
        found = run([*first, *kinds], repeats, options.seed, folder)
        if "none" in found:
            kept.write_text(json.dumps(found.pop("none")), encoding="utf-8")
        undisturbed = json.loads(kept.read_text(encoding="utf-8"))
    rows = [verdict(kind, each, undisturbed) for kind, each in found.items()]
    print(f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|", sep="\n")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, **found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
