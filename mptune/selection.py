"""How sure a search can be of its winner: both noises, and the winner's curse."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mptune.trial import Message


class Confirmation(Message):
    """A candidate trained again with fresh seeds, and scored on a fresh plan."""

    nats_per_token: float = Field(description="mean over the fresh seeds")
    half_width: float = Field(description="of its 95 % interval, both noises, nats per token")
    seeds: int
    optimism: float = Field(
        description="score in the search minus this: the winner's curse and the change of plan"
    )
    probability: float = Field(description="that it is the best of the confirmed ones")
    expected_regret: float = Field(description="of choosing it among those, nats per token")


class Candidate(Message):
    """One finished trial of the search, as something to choose."""

    trial: int
    label: str
    nats_per_token: float = Field(description="its score in the search")
    shrunken: float = Field(
        description="what to expect of it, nats per token: drawn to the mean of all candidates as "
        "far as their spread is noise (empirical Bayes), which undoes the winner's curse"
    )
    half_width: float = Field(description="of the 95 % interval of that, nats per token")
    probability: float = Field(description="that it is truly the best of all candidates")
    expected_regret: float = Field(
        description="nats per token lost on average by choosing it instead of the truly best"
    )
    confirmation: Confirmation | None = None


class SearchSelection(Message):
    """The choice that a search makes, and how sure it is."""

    candidates: tuple[Candidate, ...] = Field(description="by score in the search, best first")
    recommended: int = Field(description="number of the trial")
    chosen_by: Literal["search", "confirmation", "worst_domain"] = "search"
    seed_sd: float | None = Field(
        None,
        description="standard deviation of a trial's score over training seeds, beside what all "
        "trials share, nats per token; None: not known, so evaluation noise only",
    )
    seed_runs: int = Field(0, description="runs of comparison and confirmation that it rests on")
    overturned: bool = Field(
        False, description="the recommended one was not the search's best: confirming changed it"
    )
