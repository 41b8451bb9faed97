"""A search that ends by itself: after which trial, and what another driver makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from mptune import dispatch
from mptune.cli import main
from mptune.dispatch.local import LocalDispatcher
from mptune.report.pages import markdown
from mptune.search import application
from mptune.search.application import Silence
from mptune.search.ending import Ending
from mptune.search.run import OUTLOOK, Run
from mptune.status import Outlook
from mptune.study.optuna_private import set_attributes
from mptune.study.records import PAUSED, describe, ended_trials
from tests.cli.test_commands import SPEC
from tests.fakes import FAKE_WORKER

Said = list[str]


def search(run_dir: str, said: Said | None = None, **changes: Any) -> Run:
    spec: dict[str, Any] = yaml.safe_load(SPEC)
    sampler = {"kind": "exposure", "startup_trials": 4}
    spec["search"] |= {"trials": 20, "sampler": sampler, "concurrency": 3, **changes}
    del spec["compare"]
    lines = [] if said is None else said
    return application.search(spec, run_dir, observer=Silence(), say=lines.append)


def outlook(run: Run) -> Outlook:
    found = run.outlook()
    assert found is not None
    return found


def kept(monkeypatch: pytest.MonkeyPatch) -> list[Outlook]:
    """Every outlook that searches store from here on."""
    found, store = list[Outlook](), Ending.store

    def keep(ending: Ending, new: Outlook) -> None:
        found.append(new)
        store(ending, new)

    monkeypatch.setattr(Ending, "store", keep)
    return found


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dispatch, "make", lambda *a, **k: LocalDispatcher(FAKE_WORKER))


def test_it_ends_when_it_is_sure_and_running_trials_finish_and_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = kept(monkeypatch)
    run = search("runs/a")
    found, last, trials = stored[-2], outlook(run), run.trials()
    assert found.ended_by == last.ended_by == "certainty"
    assert found.probability is not None
    assert found.probability >= 0.95
    assert 4 <= found.trials < 20
    assert [t.state for t in trials] == ["COMPLETE"] * len(trials)
    assert found.trials < len(trials) <= found.trials + 2, "two others were running"
    assert last.trials == len(trials)
    assert last.recommended == run.best().number
    assert (last.within, last.unseen) != (found.within, found.unseen)


def test_it_stays_finished_and_goes_on_with_another_certainty() -> None:
    first, said = search("runs/a"), Said()
    less_sure = outlook(first).model_copy(update={"within": 0.9})  # by trials that ran at its end
    first.study().set_user_attr(OUTLOOK, less_sure.model_dump(mode="json"))
    again = search("runs/a", said)
    assert outlook(again) == outlook(first)
    assert len(again.trials()) == len(first.trials())
    assert any("ended by itself" in line for line in said)
    total = len(first.trials()) + 2
    off = search("runs/a", certainty=None, trials=total)
    assert len(off.trials()) == total
    assert outlook(off).ended_by == "trials"
    assert outlook(off).probability is not None


def test_more_trials_go_on_where_not_every_trial_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mptune.search.ending.LOOKS", 2)
    assert outlook(search("runs/a", certainty=None, trials=5)).ended_by == "trials"
    assert len(search("runs/a", certainty=None, trials=7).trials()) == 7


class Killed(BaseException):
    """The driver dies."""


def test_a_driver_that_dies_at_its_end_leaves_the_same_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = kept(monkeypatch)
    undisturbed, store = search("runs/a"), Ending.store
    ends = [found.trials for found in stored if found.ended_by is not None]
    for number, (last, is_stored) in enumerate(
        [(ends[0], False), (ends[0], True), (ends[-1], False)]
    ):

        def die(
            ending: Ending, found: Outlook, last: int = last, is_stored: bool = is_stored
        ) -> None:
            if is_stored or found.trials != last:
                store(ending, found)
            if found.trials == last:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Ending, "store", die)
            with pytest.raises(Killed):
                search(f"runs/{number}")
        assert len([t for t in Run.open(f"runs/{number}").trials() if t.finished]) == last
        resumed = search(f"runs/{number}")
        assert outlook(resumed) == outlook(undisturbed)
        assert [(t.params, t.seed, t.state) for t in resumed.trials()] == [
            (t.params, t.seed, t.state) for t in undisturbed.trials()
        ]


def test_not_before_the_start_has_ended_nor_without_second_seeds() -> None:
    run = search("runs/a", trials=7, sampler={"kind": "exposure", "startup_trials": 7})
    assert (len(run.trials()), outlook(run).trials) == (7, 7)
    tpe = search("runs/b", trials=6, sampler={"kind": "tpe"})
    assert len(tpe.trials()) == 6
    assert (outlook(tpe).unknown, outlook(tpe).ended_by) == ("seeds", "trials")


def test_it_ends_when_going_on_is_not_worth_it_and_a_budget_says_so() -> None:
    run = search("runs/a", certainty=None, worth=1e12)
    assert outlook(run).ended_by == "worth"
    count = len(run.trials())
    assert len(search("runs/a", certainty=None, worth=2e12).trials()) == count
    assert len(search("runs/a", certainty=None, worth=None, trials=count + 1).trials()) > count
    spent = search("runs/b", certainty=None, budget_worker_seconds=1e-9)
    assert outlook(spent).ended_by == "budget"


def test_where_no_budget_is_left_no_trial_of_a_dead_driver_stays_paused_or_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = search("runs/a", trials=4)
    study, known = run.storage.create("search"), run.trials()[0].spec
    assert known is not None
    files = run.directory.trial(4)
    for number in (4, 5):
        trial = study.ask()
        directory = str(run.directory.trial(number).root)
        describe(trial, known.model_copy(update={"number": number, "directory": directory}))
        if number == 4:
            set_attributes(trial, reason=PAUSED, detail="paused at 50%: unlikely")
            files.checkpoint.mkdir(parents=True)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("mptune.search.driver.tell_pruned", die)
        with pytest.raises(Killed):
            search("runs/a", trials=8, budget_worker_seconds=1e-9)
    assert not files.checkpoint.exists()
    trials = search("runs/a", trials=8, budget_worker_seconds=1e-9).trials()
    assert (trials[4].state, trials[4].reason) == ("PRUNED", "pruned")
    assert trials[4].detail == "paused at 50%: unlikely"
    assert (trials[5].state, trials[5].reason) == ("WAITING", "budget")


def test_explain_tells_of_every_trial_and_of_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    run = search("runs/a", trials=8, certainty=None)
    found = run.explain()
    assert [story.trial.number for story in found.trials] == list(range(8))
    assert sorted(story.rank or 0 for story in found.trials) == list(range(1, 9))
    assert all("Asked for: " in " ".join(story.sentences) for story in found.trials)
    assert "The search ended with its last trial" in str(found)
    assert main(["explain", "runs/a", "3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("trial 3: ")
    assert "trial 4: " not in said
    assert found.end[0] in said
    assert main(["explain", "runs/a", "9"]) == 3
    assert main(["status", "runs/a"]) == 0
    assert found.end[0] in capsys.readouterr().out
    page = markdown(run.report())
    assert "The search ended at its 8 trials" in page
    assert "predicted-fixed" in page


def test_a_paused_trial_of_the_start_counts_as_ended_and_is_read_again() -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr("reason", PAUSED)
    study.ask()
    assert [(n, t.state) for n, t in ended_trials(study, "search", ()).items()] == [(0, "PRUNED")]
    assert ended_trials(study, "search", besides={0}) == {}
