"""When a search is enough: how sure it is of its recommendation, and what going on would bring.

The search ends by itself once P(recommended within delta of the best) reaches `search.certainty`,
or once no purchase of runs gains `search.worth` per worker-hour. delta is one nat per sequence, or
half a standard deviation of the difference between two seeds: what is less cannot be known.

"The best" is that of the candidates that were run; where the sampler has a surrogate, no point that
was not run may be better either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from mptune.analysis.comparison import Scores
from mptune.analysis.crossed import root
from mptune.analysis.exposure import Points, Surrogate
from mptune.analysis.selection import SearchSelection, expected_gains, select_trial
from mptune.spec.schema import Search
from mptune.status import EndedBy, MoreRuns, Outlook
from mptune.trial import Prepared, Trial

DRAWS = 3200
"""From the posterior, at each look."""

UNSEEN_SETTINGS, UNSEEN_DRAWS = 48, 32
"""Draws of the surrogate's settings, and of the scores at each."""


def outlook(
    trials: Sequence[Trial],
    prepared: Prepared,
    scores: Scores,
    settings: Search,
    unseen: Callable[[SearchSelection], tuple[float, float] | None] = lambda selection: None,
) -> Outlook:
    """What a search knows after the trials that have ended, and whether it ends.

    Args:
        trials: all trials of the search; those that have not ended have no effect.
        unseen: of a selection, the probability that no point that has not run is better by its
            `delta`, and the expected gain of one run of such a point, nats per token; None without
            a surrogate.
    """
    ended = [trial for trial in trials if trial.state not in ("WAITING", "RUNNING")]
    first = max(min(settings.startup_trials, settings.trials), len(settings.arms))
    if {*range(first)} - {trial.number for trial in ended}:
        return Outlook(trials=len(ended), unknown="start")
    if settings.choose_by != "heldout":
        by_worst = settings.choose_by == "worst_domain"
        return Outlook(trials=len(ended), unknown="worst_domain" if by_worst else "weights")
    selection = select_trial(ended, (), {}, prepared, scores, draws=DRAWS)
    if selection is None or selection.delta is None:
        return Outlook(trials=len(ended), unknown="seeds")
    candidate = selection.candidate(selection.recommended)
    assert candidate is not None
    assert candidate.expected_regret is not None
    length = prepared.heldout_tokens / prepared.heldout_sequences
    costs = {t.number: t.result.cost for t in ended if t.result is not None}
    seconds = {n: c.training_s + c.scoring_s + c.setting_up_s for n, c in costs.items()}
    hours = {n: seconds[n] * c.workers / 3600 for n, c in costs.items()}  # of all attempts
    more_runs = [
        MoreRuns(
            runs=gain.seeds,
            trial=gain.trial,
            gain=length * gain.nats_per_token,
            worker_hours=gain.seeds * hours[gain.trial],
        )
        for gain in selection.gains
    ]
    share, of_new = None, unseen(selection)
    if of_new is not None:
        share, gain_of_new = of_new
        mean_hours = math.fsum(hours.values()) / len(hours)
        more_runs.append(
            MoreRuns(runs=1, trial=None, gain=length * gain_of_new, worker_hours=mean_hours)
        )
    found = Outlook(
        trials=len(ended),
        recommended=selection.recommended,
        candidates=len(selection.candidates),
        delta=length * selection.delta,
        within=selection.within,
        unseen=share,
        expected_regret=length * candidate.expected_regret,
        more_runs=tuple(more_runs),
    )
    asked = {"wanted": settings.certainty, "worth": settings.worth}
    return found.model_copy(update={"ended_by": ended_by(found, settings), **asked})


def of_unseen(
    surrogate: Surrogate, points: Points, delta: float, rng: np.random.Generator
) -> tuple[float, float]:
    """What a surrogate says of points that have not run.

    Args:
        points: the last one is the recommended point, the others have not run.
        delta: difference that does not matter, in the unit of the surrogate.

    Returns:
        The probability that none is better than the recommended one by `delta`, and the expected
        gain of one run of one of them.
    """
    settings = list(surrogate.weights)
    drawn = rng.choice(len(settings), UNSEEN_SETTINGS, p=list(surrogate.weights.values()))
    better, gains = [], []
    for number, times in zip(*np.unique(drawn, return_counts=True), strict=True):
        mean_K, covariance_KK = surrogate.posterior(points, settings[number])
        count = UNSEEN_DRAWS * int(times)
        theta_DK = mean_K + rng.standard_normal((count, len(mean_K))) @ root(covariance_KK)
        better.append(theta_DK[:, :-1].max(1) - theta_DK[:, -1] > delta)
        noise_K = np.full(len(mean_K), (settings[number].noise * surrogate.evidence.scale) ** 2)
        gain = float(expected_gains(mean_K, covariance_KK, noise_K)[0, :-1].max())
        gains.append(times / len(drawn) * gain)
    return 1.0 - float(np.concatenate(better).mean()), math.fsum(gains)


def ended_by(found: Outlook, settings: Search) -> EndedBy | None:
    """Why the search ends by itself; None if it goes on."""
    probability, more = found.probability, found.best_more_runs
    if probability is not None and probability >= (settings.certainty or math.inf):
        return "certainty"
    if settings.worth is not None and more is not None and more.per_worker_hour < settings.worth:
        return "worth"
    return None
