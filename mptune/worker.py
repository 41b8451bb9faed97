"""Replay one trial from its JSON file, on this machine:

python -m mptune.worker runs/x/trials/0007/trial.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path

from mptune.errors import InputError, NoResultError
from mptune.paths import free_port
from mptune.training.worker import Worker
from mptune.trial import Event, Failed, Finished, PrepareRequest, Rung, StopReason, TrialSpec


class NeverStopped:
    """Control of a replay: the trial is neither stopped nor pruned."""

    def stop_requested(self) -> StopReason | None:
        return None

    def go_on(self, rung: Rung) -> bool:
        return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay a trial; 0 if it finished, 2 if its input is wrong, 3 if it failed."""
    parser = argparse.ArgumentParser(prog="python -m mptune.worker", description=__doc__)
    parser.add_argument("trial", type=Path, help="a trial.json")
    parser.add_argument("--workers", type=int, help="worker processes; default the trial's own")
    parser.add_argument("--out", type=Path, help="directory of the replay; default beside it")
    given = parser.parse_args(arguments)
    try:
        trial = TrialSpec.model_validate_json(given.trial.read_text(encoding="utf-8"))
        workers = given.workers or trial.resources.workers
        resources = trial.resources.model_copy(update={"workers": workers})
        directory = str((given.out or given.trial.parent / "replay").resolve())
        trial = trial.model_copy(
            update={"resources": resources, "directory": directory, "artifacts": None}
        )
        table, plan = trial.prepared.table, trial.prepared.plan
        if not (Path(table).exists() and Path(plan).exists()):
            cache = str(Path(table).parent)
            request = PrepareRequest(data=trial.data, score=trial.score, cache=cache, plan=plan)
            Worker(0, 1).prepare(request)
    except (OSError, ValueError, InputError) as error:
        print(f"{given.trial}: {error}", file=sys.stderr)
        return InputError.exit_code
    spawn, spec, port = multiprocessing.get_context("spawn"), trial.model_dump_json(), free_port()
    others = [
        spawn.Process(target=run_rank, args=(spec, rank, port), daemon=True)
        for rank in range(1, workers)
    ]
    for process in others:
        process.start()
    last = run_rank(spec, 0, port)
    for process in others:
        process.join(timeout=10)
        process.terminate()
    if isinstance(last, Finished):
        print(last.result.model_dump_json())
        return 0
    wrong = isinstance(last, Failed) and last.reason == "wrong_input"
    return InputError.exit_code if wrong else NoResultError.exit_code


def run_rank(trial_json: str, rank: int, port: int) -> Event | None:
    """Run one rank of the trial, printing its events a line each; returns the last one."""
    trial = TrialSpec.model_validate_json(trial_json)
    worker = Worker(rank, trial.resources.workers, rank)
    worker.join("127.0.0.1", port)
    event = None
    for event in worker.run(trial, NeverStopped()):
        # The result is printed apart.
        fields = event.model_dump(exclude={"type", "number", "result"}, exclude_none=True)
        print(event.type, *(f"{key}={value}" for key, value in fields.items()), flush=True)
    worker.close()
    return event


if __name__ == "__main__":
    raise SystemExit(main())
