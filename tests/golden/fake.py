"""The command line with a fake worker: `python -m tests.golden.fake search spec.yaml --local`.

The worker scores real policies by a formula, so that a whole search takes a second. It can kill or
interrupt its own process at an exact step, which makes the tests of a resumed search deterministic.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mptune.trial import Control, Event, Finished, Progress, TrialSpec
from tests import fakes

SIGNAL = "GOLDEN_SIGNAL"
"""Environment variable `STUDY:TRIAL:SIGNAL`: send this signal in the middle of this trial."""

DIVERGES = ("golden", 4)
"""Study and number of the trial whose loss is not a number."""


class GoldenWorker(fakes.FakeWorker):
    """The fake worker, for real policies."""

    def run(self, trial: TrialSpec, control: Control) -> Iterator[Event]:
        seen = trial.model_copy(update={"policy": _fake_policy(trial)})
        for event in super().run(seen, control):
            if isinstance(event, Progress) and event.progress > 0.5:
                _disturb(trial)
            yield _finish(trial, event) if isinstance(event, Finished) else event


def _fake_policy(trial: TrialSpec) -> Mapping[str, Any]:
    """What the fake scores: a mask rate by which policies, and learning rates, differ."""
    policy = trial.policy
    match policy["kind"]:
        case "fixed":
            rate = policy["rate"]
        case "beta":
            rate = policy["a"] / (policy["a"] + policy["b"])
        case "linear":
            rate = (policy["start"]["rate"] + 2 * policy["end"]["rate"]) / 3
        case _:
            rate = 0.45
    # A power of two apart, so that no mathematical library can round it differently.
    rate += 0.03 * abs(math.frexp(trial.training.optimizer.learning_rate)[1] + 8)
    diverges = (trial.study, trial.number) == DIVERGES
    return {"kind": "fake", "rate": rate, "behaviour": "nan" if diverges else "ok"}


def _finish(trial: TrialSpec, event: Finished) -> Finished:
    """The result under the fingerprint of the trial as it was proposed."""
    result = event.result.model_copy(update={"fingerprint": trial.fingerprint()})
    (Path(trial.directory) / "result.json").write_text(result.model_dump_json(), encoding="utf-8")
    return event.model_copy(update={"result": result})


def _disturb(trial: TrialSpec) -> None:
    study, _, rest = os.environ.get(SIGNAL, "::").partition(":")
    number, _, name = rest.partition(":")
    if name and (trial.study, trial.number) == (study, int(number)):
        os.environ[SIGNAL] = "::"
        os.kill(os.getpid(), signal.Signals[name])


def main(arguments: list[str]) -> int:
    """Run a command with the fake worker in the place of the real one; returns the exit code."""
    from mptune import cli

    with patch("mptune.plugins.load_object", return_value=GoldenWorker):
        return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
