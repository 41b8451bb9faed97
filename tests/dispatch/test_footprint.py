"""When memory that does not come back costs a gang: the least it ever held is what counts."""

from __future__ import annotations

from mptune.dispatch.footprint import Footprint, Growth, own_host_bytes
from mptune.spec.schema import Resources

LIMITS = Resources(memory_growth_mb=10, gpu_memory_growth_mb=5)
MB = 10**6


def excess(*footprints: tuple[int, int], rank: int = 0) -> str | None:
    growth = Growth()
    for host, gpu in footprints:
        growth.note(rank, Footprint(host * MB, gpu * MB))
    return growth.excess(LIMITS)


def test_what_a_gang_has_after_its_first_trial_is_its_own():
    assert excess() is None
    assert excess((900, 400)) is None
    assert excess((900, 400), (910, 405)) is None


def test_growth_counts_from_the_least_there_was():
    assert (
        excess((100, 0), (111, 0))
        == "11 MB of memory of rank 0 did not come back (memory_growth_mb)"
    )
    assert excess((900, 0), (100, 0), (111, 0)) is not None
    assert excess((100, 0), (105, 0), (100, 0)) is None


def test_a_gpu_has_a_limit_of_its_own():
    found = excess((100, 10), (100, 16), rank=3)
    assert found == "6 MB of GPU memory of rank 3 did not come back (gpu_memory_growth_mb)"


def test_a_process_sees_memory_that_it_takes_and_gives_back():
    before = own_host_bytes()
    taken = b"x" * (64 * MB)
    assert own_host_bytes() - before > 60 * MB
    del taken
    assert own_host_bytes() - before < 4 * MB
