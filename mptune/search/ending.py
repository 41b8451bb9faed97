"""Whether a search ends by itself: asked after each of its trials, and answered by analysis.

The answer depends on the trials that have ended and on nothing else, and it is stored with the
study: a search whose driver was killed, and one that was not, end at the same trial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mptune.analysis.crossed import Array
from mptune.analysis.exposure import Surrogate, differ, same
from mptune.analysis.outlook import ended_by, of_unseen, outlook
from mptune.analysis.prediction import evidence_of
from mptune.analysis.selection import SearchSelection
from mptune.search.run import OUTLOOK, Run
from mptune.search.stage import Stage
from mptune.status import EndedBy, Outlook
from mptune.study import queue
from mptune.study.records import PAUSED, ended_trials
from mptune.study.samplers import exposure_sampler
from mptune.trial import Trial

if TYPE_CHECKING:
    import optuna

    from mptune.study.exposure import ExposureSampler

LOOKS = 50
"""From this number of trials on, a look takes so many more trials that there are few of them: each
costs more, and every look is a chance to end too early."""

PARENTS = 3
"""Best candidates, of which changes might be better."""


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
    _shared: dict[str, Any] = field(default_factory=dict)
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
        if self._exposure is None:  # no other asks for a second seed
            return Outlook(trials=queue.ended(self.study), unknown="seeds")
        # A paused trial may go on, so it is read again.
        known = {n for n, trial in self._trials.items() if trial.reason != PAUSED}
        found = ended_trials(self.study, self.stage.name, besides=known)
        self._trials |= {n: self._kept(trial) for n, trial in found.items()}
        trials = [trial for _, trial in sorted(self._trials.items())]
        return outlook(trials, self.stage.prepared, self._scores_of, settings, self._of_unseen)

    def _kept(self, trial: Trial) -> Trial:
        """What a look needs of it, equal parts of all specs once: memory of a long search."""
        spec, result = trial.spec, trial.result
        if spec is not None:
            parts = ((name, part) for name, part in spec if not isinstance(part, int | str))
            shared = {n: self._shared.setdefault(f"{n} {part!r}", part) for n, part in parts}
            spec = spec.model_copy(update=shared)
        if result is not None:
            empty: dict[str, Any] = {"learning": (), "rates": (), "loss_curve": (), "versions": {}}
            result = result.model_copy(update=empty)
        unread = {"learning": (), "judged": (), "asked": None}
        return trial.model_copy(update={"spec": spec, "result": result, **unread})

    @cached_property
    def _exposure(self) -> ExposureSampler | None:
        prepared = self.stage.prepared
        return exposure_sampler(self.run.spec.search, self.stage.define, prepared.mean_length)

    def store(self, found: Outlook) -> None:
        """Store the answer with the study."""
        self.study.set_user_attr(OUTLOOK, found.model_dump(mode="json"))

    def _of_unseen(self, selection: SearchSelection) -> tuple[float, float] | None:
        """See `mptune.analysis.outlook.of_unseen`; None where the surrogate knows no policy.

        The points are random ones of the space, and neighbours of the best candidates.
        """
        exposure = self._exposure
        assert exposure is not None
        scored = (t for _, t in sorted(self._trials.items()) if t.finished or t.rungs)
        trials = [t for t in scored if t.same_as is None]
        ran = [(p, t) for t in trials if (p := exposure.point_of(t.params)) is not None]
        rng = np.random.default_rng([self.run.spec.search.seed, len(self._trials)])
        best = [self._trials[c.trial].params for c in selection.candidates[:PARENTS]]
        drawn = [place.seen for place in exposure.draw_points(rng, best)]
        chosen = exposure.point_of(self._trials[selection.recommended].params)
        if chosen is None or not drawn or not differ(drawn):
            return None
        drawn += [p for p, t in ran if not t.finished]
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

    def _scores_of(self, trial: Trial) -> Mapping[str, Array]:
        if trial.number not in self._scores:
            self._scores[trial.number] = self.run.group_scores(trial)
        return self._scores[trial.number]
