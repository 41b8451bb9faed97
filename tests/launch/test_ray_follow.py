"""What following a search on a Ray cluster shows, in which order."""

from __future__ import annotations

from typing import cast

from mptune.launch._jobs_api import JobsApi
from mptune.launch.ray import _Follower


class _Ended:
    """A job that ended between two looks: its last lines come with its last state."""

    def state(self, job: str) -> str:
        return "SUCCEEDED"

    def log(self, job: str) -> list[str]:
        return ["trial 2 of 2", "report written"]


def test_its_last_lines_come_before_the_word_that_it_has_ended() -> None:
    said: list[str] = []
    state = _Follower(cast(JobsApi, _Ended()), "tiny", "job", said.append).look()
    assert state is not None
    assert state.ended
    assert said == ["trial 2 of 2", "report written", "tiny: finished"]
