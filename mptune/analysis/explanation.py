"""Why a search did what it did, in sentences: each trial, and the end."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from mptune.analysis.ranking import ranking
from mptune.analysis.results import mask_rates
from mptune.analysis.selection import SearchSelection
from mptune.errors import plural
from mptune.spec.schema import Search
from mptune.status import MoreRuns, Outlook
from mptune.trial import Message, StageName, Trial

SAMPLERS = {
    "tpe": "Optuna's TPE",
    "cmaes": "Optuna's CMA-ES",
    "gp": "Optuna's Gaussian process",
    "exposure": "Optuna's TPE, in place of the exposure sampler",
}


class TrialStory(Message):
    """What happened to one trial, and why."""

    trial: Trial
    rank: int | None = Field(description="among the finished trials; 1 has the highest score")
    sentences: tuple[str, ...]


class Explanation(Message):
    """Why a search ran its trials and ended; `str` gives the sentences."""

    study: str
    outlook: Outlook | None
    end: tuple[str, ...] = Field(description="why it ended, and what is not known")
    trials: tuple[TrialStory, ...]

    def __str__(self) -> str:
        stories = (f"trial {s.trial.number}: {' '.join(s.sentences)}" for s in self.trials)
        return "\n".join([*stories, *self.end])


def explain(
    study: str,
    settings: Search,
    trials: Sequence[Trial],
    selection: SearchSelection | None,
    outlook: Outlook | None,
    resumed: Mapping[int, Sequence[int]],
) -> Explanation:
    """The story of a search.

    Args:
        trials: of the search.
        selection: its choice, for what is expected of its candidates.
        outlook: with which it ended, or the last one.
        resumed: number of a trial -> steps at which it was resumed from a checkpoint.
    """
    places = {trial.number: place for place, trial in enumerate(ranking(trials), start=1)}
    stories = tuple(
        TrialStory(
            trial=trial,
            rank=places.get(trial.number),
            sentences=tuple(
                _story(trial, settings, places, selection, resumed.get(trial.number, ()))
            ),
        )
        for trial in trials
    )
    end = tuple(ending_words(outlook, trials))
    return Explanation(study=study, outlook=outlook, end=end, trials=stories)


BARS = "▁▂▃▄▅▆▇█"

NOTE_WIDTH = 110
"""Characters of a line of a note."""


def note(trial: Trial, settings: Search) -> str:
    """One trial on its own, for those who look at its study: Markdown."""
    about, *sentences = _story(trial, settings, {}, None, ())
    if rates := mask_rates(trial.spec):
        (low, first, high), (*_, last, _) = rates[0], rates[-1]
        means = [mean for _, mean, _ in rates]
        law = f"It hides {100 * first:.0f} % of the tokens"
        if max(means) - min(means) > 0.005:
            bars = "".join(BARS[min(7, int(8 * mean))] for mean in means)
            law += f" at the start of its training and {100 * last:.0f} % at the end: `{bars}`"
        elif high - low > 0.02:
            law += f" on average, mostly {100 * low:.0f} to {100 * high:.0f} %"
        sentences.insert(0, f"{law}.")
    # The page of a trial is as wide as its longest attribute: a line would go on out of sight.
    lines = (textwrap.wrap(words, NOTE_WIDTH) for words in (about, *sentences))
    return "\n\n".join(map("  \n".join, lines))


def study_note(name: str, stage: StageName, outlook: Outlook | None, folder: str) -> str:
    """What a study is, how to read it, and how the search ended: Markdown."""
    end = f"\n\n{' '.join(ending_words(outlook))}" if outlook and stage == "search" else ""
    return f"""**{name}**: {STAGES[stage]}

The value of a trial is its LML, the accumulated log-marginal likelihood of held-out sequences, in
nats per token: **higher, so closer to zero, is better**, whatever mask rate the model was trained
at. All trials of a size have the same training budget, held-out sequences and masks. *Pruned* is a
trial that was stopped early; nothing is known of its final score. Parameters are named as in the
spec: `policy.fixed.rate` is the `rate` of the policy `fixed`.

Each trial has a note: its policy, why it was run, and what became of it. The recommendation, with
its certainty, is in the report, `{folder}/report/report.html`.{end}
"""


STAGES: Mapping[StageName, str] = {
    "search": "a search for the mask policy and the model size to pre-train with.",
    "confirmation": "the best trials of the search, trained again with fresh seeds.",
    "ladder": "learning rates for policies that the search has not tried.",
    "comparison": "policies (arms) trained with paired seeds: equal `seed`, equal data order.",
}


def _story(
    trial: Trial,
    settings: Search,
    places: Mapping[int, int],
    selection: SearchSelection | None,
    resumed: Sequence[int],
) -> Iterator[str]:
    if trial.policy_label:
        yield f"{trial.label}, training seed {trial.seed}."
    yield f"Asked for: {reason_asked(trial, settings)}."
    for judged in trial.judged:
        if words := judged_words(judged):
            yield f"{words}."
    for step in resumed:
        yield f"Resumed from its checkpoint at step {step}."
    if trial.retries:
        yield f"Run again {plural(trial.retries, 'time')} because its machine failed."
    match trial.state:
        case "COMPLETE" if trial.finished:
            yield from _scored(trial, places, selection)
        case "COMPLETE":
            yield "Trained, but its score is not finite."
        case "PRUNED":
            yield f"Stopped early: {trial.detail or 'no reason is stored'}."
        case "FAIL" if trial.refused:
            yield f"Refused without training: {trial.detail}."
        case "FAIL":
            yield f"Failed ({trial.reason or 'error'}): {trial.detail or 'no detail is stored'}."
        case "RUNNING":
            yield "Running."
        case "WAITING" if trial.reason is not None:
            yield f"On hold: {trial.detail}."
        case "WAITING":
            yield "In the queue: it has not started, or its driver was interrupted."


def reason_asked(trial: Trial, settings: Search) -> str:
    """Why the trial's point was proposed."""
    if trial.stage != "search":
        return f"the {trial.stage} trains {trial.arm}"
    if trial.arm is not None:
        return f"the spec names it (search.arms: {trial.arm})"
    if trial.asked is not None and trial.asked.get("why"):
        return str(trial.asked["why"])
    if settings.sampler.kind == "random":
        return "drawn at random"
    known = (trial.asked or {}).get("finished")
    of = "" if known is None else f" from {plural(known, 'finished trial')}"
    return f"proposed by {SAMPLERS[settings.sampler.kind]}{of}"


def judged_words(judged: Mapping[str, Any]) -> str:
    """A decision of a pruner; empty where the predictive one had too few trials to decide."""
    verb = {"pause": "Paused", "continue": "Continued"}.get(judged["decision"], "Went on")
    if "why" in judged:
        return f"{verb} at {100 * judged['progress']:g}%: {judged['why']}"
    if judged.get("probability") is None:
        return ""
    return (
        f"{verb} at {100 * judged['progress']:g}%: its chance to end within {judged['delta']:.2g} "
        f"nats per token of the best ({judged['best']:.3f}) is {_percent(judged['probability'])}, "
        f"the limit {_percent(judged['threshold'])}, from {judged['finished']} finished trials of "
        "its size"
    )


def _scored(
    trial: Trial, places: Mapping[int, int], selection: SearchSelection | None
) -> Iterator[str]:
    if trial.same_as is not None:
        yield f"Not trained: trial {trial.same_as} has the same spec, and this is its result."
        return
    se = trial.require_result().lml.error[0]
    place = places.get(trial.number)
    rank = "" if place is None else f", rank {place} of {len(places)}"
    yield f"Scored {trial.nats_per_token:.4f} nats per token (standard error {se:.2g}){rank}."
    if (unkept := trial.require_result().unkept) is not None:
        yield f"Its weights were not kept: {unkept}."
    candidate = selection.candidate(trial.number) if selection else None
    if candidate is None or candidate.expected is None or candidate.half_width is None:
        return
    best = candidate.probability or 0.0
    runs = f"from its {plural(candidate.runs, 'run')} and what other candidates tell"
    yield (
        f"The score expected of its policy and size is {candidate.expected:.4f} ± "
        f"{candidate.half_width:.2g} (95 % interval, {runs}); it is the best candidate with "
        f"probability {_percent(best)}."
    )


def ending_words(outlook: Outlook | None, trials: Sequence[Trial] = ()) -> Iterator[str]:
    """Why the search ended, what more would bring, and what is not known."""
    if outlook is None:
        yield "How sure the search is, is not stored." if trials else "The search has not begun."
        return
    yield f"{END[outlook.ended_by]} after {plural(outlook.trials, 'trial')}: {_surety(outlook)}."
    more_runs = sorted(outlook.more_runs, key=lambda more: -more.per_worker_hour)
    if outlook.delta is not None and more_runs:
        yield f"Going on: {_gain_of(more_runs[0])}."
        other = next(
            (b for b in more_runs if (b.trial is None) != (more_runs[0].trial is None)), None
        )
        if other is not None:
            yield f"Or: {_gain_of(other)}."
        yield (
            "More seeds of the points that were run can gain at most "
            f"{outlook.expected_regret:.2g} nats per sequence on average."
        )
    stopped = sum(trial.state == "PRUNED" for trial in trials)
    failed = sum(trial.state == "FAIL" for trial in trials)
    if stopped:
        yield f"What the {plural(stopped, 'trial')} stopped early would have scored is not known."
    if failed:
        yield f"What the {plural(failed, 'failed trial')} would have scored is not known."


END = {
    None: "The search has not ended;",
    "certainty": "The search ended by itself",
    "worth": "The search ended by itself, because going on is not worth search.worth,",
    "trials": "The search ended with its last trial (search.trials),",
    "budget": "A budget ended the search",
}

UNKNOWN = {
    "start": "how sure it is, is not known yet: the trials that it begins with have not all ended",
    "seeds": "how sure it was is not known: the search itself trained no policy with two seeds "
    "(search.sampler: {kind: exposure} does, once six have finished); the report says what later "
    "stages add",
    "worst_domain": "how sure it is, is not known: it chooses by the worst domain, and certainty "
    "is computed for the score on held-out data",
    "weights": "how sure it is, is not known: it chooses by weights of domains, and certainty is "
    "computed for the score on held-out data",
}


def _surety(outlook: Outlook) -> str:
    if outlook.probability is None or outlook.within is None:
        return UNKNOWN[outlook.unknown or "seeds"]
    wanted = outlook.wanted
    asked = "" if wanted is None else f" (search.certainty asks for {_percent(wanted)})"
    undecided = "undecided, " if outlook.undecided else ""
    words = (
        f"{undecided}trial {outlook.recommended} is within {outlook.delta:.2g} nats per sequence "
        f"of the best of the {outlook.candidates} points that were run with probability "
        f"{_percent(outlook.within)}"
    )
    if outlook.unseen is None:
        return f"{words}{asked}; nothing is known of points that were not run"
    return (
        f"{words}; by the exposure law, no other point is better by as much with probability "
        f"{_percent(outlook.unseen)}; together {_percent(outlook.probability)}{asked}"
    )


def _gain_of(more: MoreRuns) -> str:
    what = "a point that was not run"
    if more.trial is not None:
        what = f"{plural(more.runs, 'more seed')} of trial {more.trial}"
    return (
        f"{what} would gain {more.gain:.2g} nats per sequence on average, for "
        f"{more.worker_hours:.2g} worker-hours ({more.per_worker_hour:.3g} per worker-hour)"
    )


def _percent(share: float) -> str:
    if 0 < share < 0.001 or 0.999 < share < 1 or share in (0, 1):
        return "more than 99.9 %" if share > 0.5 else "less than 0.1 %"
    return f"{100 * share:.3g} %"
