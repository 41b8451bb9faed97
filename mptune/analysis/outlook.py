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

from mptune.analysis.comparison import Scores
from mptune.analysis.selection import SearchSelection, select_trial
from mptune.spec.schema import Search
from mptune.status import EndedBy, Outlook, Purchase
from mptune.trial import Prepared, Trial


def outlook(
    trials: Sequence[Trial],
    prepared: Prepared,
    scores: Scores,
    settings: Search,
    unseen: Callable[[SearchSelection], tuple[float, float]] | None = None,
) -> Outlook:
    """What a search knows after the trials that have ended, and whether it ends.

    Args:
        trials: all trials of the search; those that have not ended have no effect.
        unseen: of a selection, the probability that no point that has not run is better by its
            `delta`, and the expected gain of one run of such a point, nats per token.
    """
    ended = [trial for trial in trials if trial.state not in ("WAITING", "RUNNING")]
    first = max(settings.sampler.startup_trials, len(settings.arms))
    if {*range(first)} - {trial.number for trial in ended}:
        return Outlook(trials=len(ended), unknown="start")
    if settings.choose_by == "worst_domain":
        return Outlook(trials=len(ended), unknown="worst_domain")
    selection = select_trial(ended, (), {}, prepared, scores)
    if selection is None or selection.delta is None:
        return Outlook(trials=len(ended), unknown="seeds")
    candidate = selection.candidate(selection.recommended)
    assert candidate is not None
    assert candidate.expected_regret is not None
    length = prepared.heldout_tokens / prepared.heldout_sequences
    costs = {t.number: t.result.cost for t in ended if t.result is not None}
    hours = {n: cost.total_s * cost.workers / 3600 for n, cost in costs.items()}
    buys = [
        Purchase(
            runs=gain.seeds,
            trial=gain.trial,
            gain=length * gain.nats_per_token,
            worker_hours=gain.seeds * hours[gain.trial],
        )
        for gain in selection.gains
    ]
    share = None
    if unseen is not None:
        share, gain_of_new = unseen(selection)
        mean_hours = math.fsum(hours.values()) / len(hours)
        buys.append(
            Purchase(runs=1, trial=None, gain=length * gain_of_new, worker_hours=mean_hours)
        )
    found = Outlook(
        trials=len(ended),
        recommended=selection.recommended,
        candidates=len(selection.candidates),
        delta=length * selection.delta,
        within=selection.within,
        unseen=share,
        loss=length * candidate.expected_regret,
        buys=tuple(buys),
    )
    return found.model_copy(update={"ended_by": ended_by(found, settings)})


def ended_by(found: Outlook, settings: Search) -> EndedBy | None:
    """Why the search ends by itself; None if it goes on."""
    probability, buy = found.probability, found.best_buy
    if probability is not None and probability >= (settings.certainty or math.inf):
        return "certainty"
    if settings.worth is not None and buy is not None and buy.per_worker_hour < settings.worth:
        return "worth"
    return None
