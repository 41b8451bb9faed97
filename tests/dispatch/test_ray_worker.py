"""The Ray dispatcher with the worker that trains: two ranks, DeepSpeed, a death in mid-training."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mptune.dispatch.ray_dispatcher import RayDispatcher
from mptune.paths import TrialDirectory
from mptune.spec.schema import Resources, Score, Training
from mptune.trial import Finished, Progress, Rung, Started, TrialSpec
from tests.dispatch.helpers import ends, prepare_request, until, until_ended

SCORE = Score(sequences=16, rung_sequences=8)
SHAPE = Resources(workers=2, cpus_per_worker=0.5)


@pytest.mark.slow
def test_trials_train_on_a_warm_gang_and_survive_the_death_of_a_rank(tmp_path):
    source = tmp_path / "text.txt"
    source.write_text("\n\n".join(f"{n} sheep and {n + 1} goats" * 20 for n in range(200)))
    data = {"kind": "text", "source": str(source), "tokenizer": "bytes", "length": 32,
            "documents": "paragraph"}  # fmt: skip
    dispatcher = RayDispatcher(SHAPE)
    try:
        request = prepare_request(tmp_path, data=data, score=SCORE)
        prepared = dispatcher.prepare(request)

        def trial(number: int, steps: int) -> TrialSpec:
            fields: dict[str, Any] = {
                "study": "search", "policy_label": "uniform", "size_label": "tiny",
                "seed": 7, "data": data, "score": SCORE,
                "model": {"family": "bert", "width": 16, "depth": 1},
                "policy": {"kind": "uniform"},
                "training": Training(budget_tokens=steps * 8 * 32, batch_size=8),
            }  # fmt: skip
            return TrialSpec(
                **fields, number=number, rungs=(0.5,), resources=SHAPE, prepared=prepared,
                directory=str(tmp_path / f"{number:04d}"),
            )  # fmt: skip

        dispatcher.submit(trial(0, steps=6))
        events = until_ended(dispatcher, 0)
        finished = ends(events)[0]
        assert isinstance(finished, Finished), finished
        assert any(isinstance(e, Rung) for e in events)

        long = trial(1, steps=100_000)
        dispatcher.submit(long)
        started = until(dispatcher, Started, 1)
        assert len(set(started.pids)) == 2
        assert started.turnaround_s is not None
        until(dispatcher, Progress, 1)
        os.kill(started.pids[1], signal.SIGKILL)
        died = ends(until_ended(dispatcher, 1))[1]
        assert died.reason == "worker_died"
        assert f"(pid {started.pids[1]}) died" in died.detail
        assert TrialDirectory(Path(long.directory)).traceback.exists()

        dispatcher.submit(trial(2, steps=6))
        again = ends(until_ended(dispatcher, 2))[2]
        assert isinstance(again, Finished), again
        assert again.result.lml == finished.result.lml
    finally:
        dispatcher.close()
