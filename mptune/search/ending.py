"""Whether a search ends by itself: asked after each of its trials, and answered by analysis.

The answer depends on the trials that have ended and on nothing else, and it is stored with the
study: a search whose driver was killed, and one that was not, end at the same trial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mptune.analysis.crossed import Array
from mptune.analysis.exposure import Exposed, Surrogate, differ, same
from mptune.analysis.outlook import ended_by, of_unseen, outlook
from mptune.analysis.prediction import evidence_of
from mptune.analysis.selection import SearchSelection
from mptune.errors import InputError
from mptune.search.run import OUTLOOK, Run
from mptune.search.stage import Stage
from mptune.status import EndedBy, Outlook
from mptune.study import queue
from mptune.study.exposure import Suggestions
from mptune.study.records import PAUSED, ended_trials
from mptune.trial import Trial

if TYPE_CHECKING:
    import optuna

LOOKS = 50
"""From this number of trials on, a look takes so many more trials that there are few of them: each
costs more, and every look is a chance to end too early."""

RANDOM, PARENTS, NEIGHBOURS = 96, 3, 16
"""Points that have not run and might be better: so many random ones, and changes of the best."""


def kept_end(run: Run) -> Outlook | None:
    """With what the search has ended by itself; None if it goes on by the spec's present values."""
    found, settings = run.outlook(), run.spec.search
    if found is None:
        return None
    is_kept = {
        "certainty": (settings.certainty or math.inf) <= (found.wanted or 0.0),
        "worth": (settings.worth or 0.0) >= (found.worth or math.inf),
    }
    return found if is_kept.get(found.ended_by or "") else None


@dataclass
class Ending:
    """Looks at the trials of a search that have ended; a call says whether it ends.

    Attributes:
        stage: the search.
        study: its study, which gets the answer as an attribute.
    """

    run: Run
    stage: Stage
    study: optuna.Study
    _trials: dict[int, Trial] = field(default_factory=dict)
    _scores: dict[int, Mapping[str, Array]] = field(default_factory=dict)

    def __call__(self) -> Outlook:
        """How sure the search is now; as before if this is no time to look."""
        if (kept := kept_end(self.run)) is not None:
            return kept
        before, count = self.run.outlook(), queue.ended(self.study)
        if before is not None and not before.ended_by and count % max(1, count // LOOKS):
            return before
        found = self._look()
        self.store(found)
        return found

    def close(self, by: EndedBy) -> None:
        """Store how sure the search is after all its trials; `by` ended it, unless it did."""
        kept, found = kept_end(self.run), self.run.outlook()
        if found is None or found.trials != queue.ended(self.study):
            found = self._look()
        itself = kept.ended_by if kept else ended_by(found, self.run.spec.search)
        self.store(found.model_copy(update={"ended_by": itself or by}))

    def _look(self) -> Outlook:
        settings = self.run.spec.search
        if settings.sampler.kind != "exposure":  # no other asks for a second seed
            return Outlook(trials=queue.ended(self.study), unknown="seeds")
        # A paused trial may go on, so it is read again at the next look.
        known = {n for n, trial in self._trials.items() if trial.reason != PAUSED}
        self._trials |= ended_trials(self.study, self.stage.name, besides=known)
        trials = [trial for _, trial in sorted(self._trials.items())]
        return outlook(trials, self.stage.prepared, self._scores_of, settings, self._of_unseen)

    def store(self, found: Outlook) -> None:
        """Store the answer with the study."""
        self.study.set_user_attr(OUTLOOK, found.model_dump(mode="json"))

    def _of_unseen(self, selection: SearchSelection) -> tuple[float, float] | None:
        """See `mptune.analysis.outlook.of_unseen`; None where the surrogate knows no policy.

        The points are random ones of the space, and neighbours of the best candidates.
        """
        trials = [t for t in self._trials.values() if (t.finished or t.rungs) and t.same_as is None]
        seen = [self._point(None, t.params, {}) for t in trials]
        rng = np.random.default_rng([self.run.spec.search.seed, len(self._trials)])
        best = [self._trials[c.trial] for c in selection.candidates[:PARENTS]]
        parents: list[Mapping[str, Any]] = [{}] * RANDOM
        parents += [t.params for t in best for _ in range(NEIGHBOURS)]
        drawn = [p for params in parents if (p := self._point(rng, {}, params)) is not None]
        ran = [(p, t) for p, t in zip(seen, trials, strict=True) if p is not None]
        if not ran or not drawn or not differ(drawn):
            return None
        drawn += [p for p, t in ran if not t.finished]
        chosen = self._point(None, self._trials[selection.recommended].params, {})
        assert chosen is not None
        assert selection.delta is not None
        margin = 1 / self.stage.prepared.mean_length
        evidence, points, _ = evidence_of(
            [p for p, _ in ran], [t for _, t in ran], [*drawn, chosen], margin
        )
        # Points that have finished are known from their scores.
        finished_N = np.array([t.finished for _, t in ran])
        is_known_K: NDArray[np.bool_] = np.any(same(points, evidence.points)[:, finished_N], axis=1)
        is_known_K[-1] = False
        if is_known_K[:-1].all():
            return 1.0, 0.0
        surrogate = Surrogate.of(evidence)
        return of_unseen(surrogate, points.take(~is_known_K), selection.delta, rng)

    def _point(
        self, rng: np.random.Generator | None, known: Mapping[str, Any], parent: Mapping[str, Any]
    ) -> Exposed | None:
        """A point of the space, see `Suggestions`; None if it has no valid policy."""
        with suppress(KeyError, ValueError, InputError):
            tree = self.stage.define(Suggestions(rng, known, parent))
            return Exposed.of(tree, round(self.stage.prepared.length))
        return None

    def _scores_of(self, trial: Trial) -> Mapping[str, Array]:
        if trial.number not in self._scores:
            self._scores[trial.number] = self.run.group_scores(trial)
        return self._scores[trial.number]
