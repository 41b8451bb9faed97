"""Every state of a trial, every end of a search and every decision of a pruner in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mptune.analysis.explanation import ending_words, explain, judged_words, note
from mptune.spec.schema import Sampler, Search
from mptune.status import MoreRuns, Outlook
from mptune.trial import Trial
from tests import fakes

EXPOSURE = Search(sampler=Sampler(kind="exposure"))


def story(settings: Search = EXPOSURE, **values: Any) -> str:
    trial = Trial.model_validate({"number": 9, "state": "RUNNING", **values})
    found = explain("a", settings, [trial], None, None, {9: [120]} if values.get("seed") else {})
    return " ".join(found.trials[0].sentences)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"asked": {"why": "start: a second seed"}}, "Asked for: start: a second seed. Running."),
        ({"arm": "fixed 15 %"}, "the spec names it (search.arms: fixed 15 %)"),
        ({"asked": {"finished": 1}}, "in place of the exposure sampler from 1 finished"),
        ({"seed": 3}, "Resumed from its checkpoint at step 120."),
        ({"retries": 2}, "Run again 2 times because its machine failed."),
        ({"state": "WAITING"}, "In the queue"),
        ({"state": "WAITING", "reason": "budget", "detail": "0 s left"}, "On hold: 0 s left."),
        ({"state": "PRUNED", "detail": "pruned at step 7"}, "Stopped early: pruned at step 7."),
        ({"state": "FAIL", "reason": "nan", "detail": "at step 3"}, "Failed (nan): at step 3."),
        ({"state": "FAIL", "refused": True, "detail": "needs 9 GB"}, "Refused without training"),
    ],
)  # fmt: skip
def test_what_became_of_a_trial(values: dict[str, Any], words: str) -> None:
    assert words in story(**values)


def test_a_note_shows_how_a_policy_changes(tmp_path: Path) -> None:
    policy = {"kind": "linear", "start": 0.9, "end": 0.1}
    spec = fakes.trial(3, tmp_path, policy=policy)
    why = "; ".join(["others are better"] * 6)  # one line would be as wide as the page
    paused = {"decision": "pause", "progress": 0.5, "why": why}
    trial = Trial(number=3, state="PRUNED", detail="paused", judged=(paused,), spec=spec,
                  policy_label="falling", size_label="small", seed=1)  # fmt: skip
    assert note(trial, EXPOSURE).split("\n\n") == [
        "falling · small, training seed 1.",
        "It hides 88 % of the tokens at the start of its training and 12 % at the end: "
        "`█▇▇▆▆▆▅▅▄▄▄▃▃▂▂▂`.",
        "Asked for: proposed by Optuna's TPE, in place of the exposure sampler.",
        f"Paused at 50%: {'others are better; ' * 4}others are better;  \nothers are better.",
        "Stopped early: paused.",
    ]


def test_of_other_samplers() -> None:
    tpe = story(Search(sampler=Sampler(kind="tpe")), asked={"finished": 8})
    assert "Asked for: proposed by Optuna's TPE from 8 finished trials." in tpe
    assert "drawn at random" in story(Search(sampler=Sampler(kind="random")))


def test_a_decision_of_the_pruner_has_its_numbers() -> None:
    judged = {"decision": "pause", "progress": 0.5, "probability": 0.008, "threshold": 0.01,
              "best": -2.5, "delta": 0.03, "finished": 7}  # fmt: skip
    assert judged_words(judged) == (
        "Paused at 50%: its chance to end within 0.03 nats per token of the best (-2.500) is "
        "0.8 %, the limit 1 %, from 7 finished trials of its size"
    )
    assert judged_words({**judged, "decision": "continue"}).startswith("Continued at 50%")
    assert judged_words({**judged, "probability": None}) == ""


def test_what_ended_the_search_and_what_more_would_bring() -> None:
    seeds = MoreRuns(runs=4, trial=5, gain=0.4, worker_hours=0.2)
    new = MoreRuns(runs=1, trial=None, gain=0.01, worker_hours=0.05)
    found = Outlook(
        trials=14, recommended=5, candidates=9, delta=1.3, within=0.99, unseen=0.97,
        expected_regret=0.6,
        more_runs=(new, seeds), wanted=0.95, ended_by="certainty",
    )  # fmt: skip
    said = " ".join(ending_words(found))
    assert said.startswith("The search ended by itself after 14 trials: trial 5 is")
    assert "within 1.3 nats per sequence of the best of the 9 points that were run" in said
    assert "together 96 % (search.certainty asks for 95 %)" in said
    assert "Going on: 4 more seeds of trial 5 would gain 0.4 nats per sequence" in said
    assert "(2 per worker-hour). Or: a point that was not run" in said
    assert "can gain at most 0.6 nats" in said
    budget = found.model_copy(update={"ended_by": "budget", "unseen": 0.8})
    assert "A budget ended the search after 14 trials: undecided, " in " ".join(
        ending_words(budget)
    )
    unknown = Outlook(trials=6, unknown="seeds", ended_by="trials")
    assert "trained no policy with two seeds" in " ".join(ending_words(unknown))
    going_on = " ".join(ending_words(unknown.model_copy(update={"ended_by": None})))
    assert going_on.startswith("The search has not ended; after 6 trials: ")
    stopped = Trial(number=0, state="PRUNED")
    assert "the 1 trial stopped early would have" in " ".join(ending_words(unknown, [stopped]))
    assert list(ending_words(None)) == ["The search has not begun."]
    assert "not stored" in " ".join(ending_words(None, [stopped]))
