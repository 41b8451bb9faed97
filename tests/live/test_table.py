"""The live view: plain lines without a terminal, a table that fits with one."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from mptune.live.table import LiveView
from mptune.status import Forecast, Trials
from mptune.trial import Failed, Finished, GangChanged, Progress, Rung, Scoring, Started, Stopped
from tests.report.conftest import SIZES, result
from tests.standings import running, standing

SMALL = next(iter(SIZES))


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def started(number: int, resumed_at: int = 0) -> Started:
    return Started(
        number=number, gang="g0", pids=(1, 2), total_steps=400, parameters=139_328,
        resumed_at=resumed_at,
    )  # fmt: skip


def progress(number: int, share: float) -> Progress:
    return Progress(
        number=number, step=round(400 * share), total_steps=400, progress=share, loss=2.345,
        mask_rate=0.4, learning_rate=1e-3, tokens_per_s=31_234.0,
    )  # fmt: skip


def finished(number: int) -> Finished:
    return Finished(number=number, result=result(SMALL, "fixed 15 %"))


def plain() -> tuple[LiveView, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    return LiveView(Console(file=out, width=60), "quickstart", 3, clock=clock), out, clock


def test_plain_lines_tell_the_whole_story() -> None:
    view, out, _ = plain()
    with view:
        view.on_event(GangChanged(gang="g0", state="ready"))
        view.trial(0, "fixed 15 %", SMALL)
        view.on_event(started(0))
        view.on_event(
            Rung(
                number=0,
                index=0,
                progress=0.5,
                nats_per_token=-2.1,
                se=0.02,
                tokens=0,
                flops=0.0,
                seconds=0.0,
            )
        )
        view.on_event(Scoring(number=0))
        view.on_event(finished(0))
        view.finish_trial(0, "complete")
        view.trial(1, "[b]beta[/b]", SMALL)
        view.on_event(started(1, resumed_at=200))
        view.on_event(Failed(number=1, reason="out_of_memory", detail="2 GiB asked"))
        view.finish_trial(1, "failed: out_of_memory")
        view.on_event(Stopped(number=2, reason="pruned", step=200))
        view.on_event(GangChanged(gang="g0", state="gone", detail="idle"))
    assert out.getvalue().splitlines() == [
        "quickstart: 3 trials, 0 of them done",
        "gang g0 ready",
        "trial 0 (fixed 15 %): started on gang g0, 139 k parameters, 400 steps",
        "trial 0 (fixed 15 %): rung 0 at 50%: LML −2.100 ± 0.039 nats per token (95 %)",
        "trial 0 (fixed 15 %): trained, scoring",
        "trial 0 (fixed 15 %): LML −1.894 ± 0.032 nats per token (95 %)",
        "trial 0 (fixed 15 %): complete (1 of 3 done)",
        "trial 1 ([b]beta[/b]): started on gang g0, 139 k parameters, 400 steps, "
        "resumed at step 200",
        "trial 1 ([b]beta[/b]): failed, out_of_memory: 2 GiB asked",
        "trial 1 ([b]beta[/b]): failed: out_of_memory (2 of 3 done)",
        "trial 2: pruned at step 200",
        "gang g0 gone: idle",
        "quickstart: 2 of 3 trials done",
    ]


def test_plain_progress_at_most_every_ten_seconds() -> None:
    view, out, clock = plain()
    with view:
        view.trial(0, "uniform", SMALL)
        for second in range(25):
            clock.now = 100.0 + second
            view.on_event(progress(0, second / 25))
    lines = [line for line in out.getvalue().splitlines() if "tokens/s" in line]
    assert lines == [
        f"trial 0 (uniform): {share}%, loss 2.345 at mask rate 0.40, 31.2 k tokens/s"
        for share in (0, 40, 80)
    ]


def rendered(view: LiveView, width: int = 130, height: int = 30) -> str:
    console = Console(file=io.StringIO(), record=True, width=width, height=height)
    console.print(view)
    return console.export_text()


def terminal(total: int, height: int = 30, done: int = 0, width: int = 130) -> LiveView:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height)
    return LiveView(console, "quickstart", total, done=done, clock=Clock())


def test_running_trials_are_in_the_table_and_ended_ones_a_line_above() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=130, height=30)
    with LiveView(console, "quickstart", 4, clock=Clock()) as view:
        view.trial(0, "fixed 15 %", SMALL)
        view.trial(1, "uniform (accumulated)", SMALL)
        view.on_event(started(0))
        view.on_event(finished(0))
        view.finish_trial(0, "complete")
        view.hold_trial(2, "no budget")
        view.look(standing(gangs=1, queue=()))
        text = rendered(view)
        assert "31.2 k" in text
        assert "1/4 trials" in text
        assert "training" in text
        assert "complete" not in text
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    score = "LML −1.894 ± 0.032 nats per token"  # the interval of the report, not one error
    assert f"trial 0 (fixed 15 %): complete, {score} (1 of 4 done)" in text
    assert "trial 2: held back: no budget" in text
    assert "started on gang" not in text


def test_what_was_interrupted_is_not_done() -> None:
    view = terminal(4)
    view.trial(0, "uniform", SMALL)
    view.finish_trial(0, "interrupted")
    assert "0/4 trials" in rendered(view)


def test_trials_that_an_earlier_driver_paused_count_once() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=130, height=30)
    with LiveView(console, "quickstart", 4, done=0.75, clock=Clock()) as view:
        view.trial(0, "uniform", SMALL)  # paused at 25 % until now
        view.look(standing(trials=Trials(total=4, used=0.5), running=()))
        view.finish_trial(0, "complete")
        assert "1.5/4 trials" in rendered(view)
        view.finish_trial(1, "pruned")  # paused at 50 %, and the search is over
        assert "1.5/4 trials" in rendered(view)


def test_time_left_from_the_share_that_this_driver_did() -> None:
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=True, width=130, height=30)
    view = LiveView(console, "quickstart", 4, done=2, clock=clock)
    view.trial(2, "uniform", SMALL)
    clock.now += 60
    # An eighth of the search in a minute, three eighths left.
    unknown = Forecast(trials=4, worker_seconds=None, gpu_hours=None, left_s=None, limited_by=None)
    used = Trials(total=4, used=2)
    view.look(standing(running=(running(2),), forecast=unknown, trials=used))
    assert "2/4 trials" in rendered(view)
    assert "1 min 00 s · 3 min 00 s left" in rendered(view)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_gangs_queue_spend_and_forecast_fit_the_terminal(width: int) -> None:
    view = terminal(16, width=width, height=40)
    for number in range(1, 5):
        view.trial(number, "uniform (accumulated) at all rates", SMALL)
    view.look(standing())
    lines = [line.rstrip() for line in rendered(view, width, height=40).splitlines()]
    assert max(map(len, lines)) <= width
    for known in (
        ["1", "2.345", "31.2 k", "2 min", "training"],
        ["gang-0", "2 x 0.5 CPU, 1 GPU", "2", "0", "7", "busy"],
        ["gang-99", "idle"],
        ["3", "4", "50 s", "reserved: needs 4, 2 free"],
        ["4", "4", "50 s", "fits, but would delay trial 3"],
        ["spent 1.23 k of 5 k worker-s (forecast 4.90 k), 0.5"],
        ["1/16 trials", "about 10 min left"],
    ):
        assert any(all(word in line for word in known) for line in lines), (known, lines)
    assert sum(line.strip().startswith("3 ") for line in lines) == 1, "it waits: not among trials"


@pytest.mark.parametrize("height", [12, 16, 24])
def test_tables_fit_the_height_of_the_terminal(height: int) -> None:
    view = terminal(100, height=height)
    running_ones = tuple(map(running, range(50)))
    view.look(standing(gangs=30, queued=40, running=running_ones))
    text = rendered(view, height=height)
    assert len(text.splitlines()) <= height - 2
    assert " 0  uniform" in text
    if height == 24:
        assert all(f"+{hidden}" in text for hidden in (42, 27, 37))


def test_a_log_has_a_line_about_the_whole_now_and_then() -> None:
    view, out, clock = plain()
    with view:
        for second in range(0, 130, 10):
            clock.now = 100.0 + second
            view.look(standing())
    lines = [line for line in out.getvalue().splitlines() if "worker-s" in line]
    assert len(lines) == 2
    assert lines[0].startswith(
        "quickstart: 1 of 16 trials done, 1 running on 1 of 2 gangs; 2 queued (trial 3 "
        "reserved: needs 4, 2 free); spent 1.23 k of 5 k worker-s (forecast 4.90 k), "
        "0.50 GPU-hours (forecast 2); about 10 min left; its worker-seconds end it at "
    )
