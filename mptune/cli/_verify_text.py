"""The output of `mptune verify`: tables for a terminal, and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table

from mptune.report.document import finite
from mptune.report.formatting import minus

if TYPE_CHECKING:
    from rich.console import Console

    from mptune.tools.verify import Verification

WIDTH = 100
"""Characters of the longest line."""


def as_json(found: Verification) -> Any:
    """All figures as JSON values; an infinite number or NaN becomes None."""
    return finite({"passed": not found.failed, **asdict(found)})


def show(console: Console, found: Verification) -> None:
    """Print the tables, the notes below them, and the verdict on the last line."""
    for part in _parts(found):
        if isinstance(part, Table):
            console.print(part)
        else:
            console.print(part, markup=False, soft_wrap=True)


def _parts(found: Verification) -> Iterator[str | Table]:
    yield "Models whose log p(x) is known exactly, nats per sequence"
    yield _bed_table(found)
    yield _bed_notes(found)
    yield "\nIdentity Σ S(M) = log p(x), every mask enumerated"
    yield _table(
        ("model", "sequences", "masks", "largest error"),
        [(i.name, f"{i.sequences}", f"{i.masks}", f"{i.error:.1e}") for i in found.identity],
    )
    passed = len(found.checks) - len(found.failed)
    verdict = "all passed" if not found.failed else f"{len(found.failed)} FAILED"
    yield f"\n{passed} of {len(found.checks)} checks passed: {verdict} ({found.seconds:.0f} s)"


def _bed_table(found: Verification) -> Table:
    head = ("model", "truth", "estimate", "SE", "z", "bias z", "population", "fixed set", "SE/sd")
    rows = [
        (
            bed.name,
            minus(bed.truth, 3),
            minus(bed.estimate, 3),
            f"{bed.se:.3f}",
            _signed(bed.z),
            _signed(bed.bias_z),
            f"{100 * bed.coverage_population:.1f} %",
            f"{100 * bed.coverage_fixed:.1f} %",
            f"{bed.se_over_spread:.2f}",
        )
        for bed in found.beds
    ]
    return _table(head, rows)


def _bed_notes(found: Verification) -> str:
    population, fixed = (_span(found.coverage_allowed[kind]) for kind in ("population", "fixed"))
    low, high = found.spread_allowed
    return (
        f"SE and z: of {found.beds[0].sequences} fixed sequences. The other columns, over\n"
        f"{found.replications} replications: bias; coverage of nominal 95 % intervals, for the\n"
        "population and for exactly these sequences; SE/sd, the SE for these sequences over its\n"
        "actual spread (above 1: the intervals are wider than necessary). Allowed: coverage\n"
        f"{population} (population) and {fixed} (fixed set), SE/sd {low:.2f} to {high:.2f};\n"
        f"a true coverage of 95 % gives {_span(found.coverage_band)} in 95 of 100 runs."
    )


def _span(band: tuple[float, float]) -> str:
    return f"{100 * band[0]:.1f} to {100 * band[1]:.1f} %"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """Columns without a frame, the first left-aligned and the others right-aligned."""
    first, *others = head
    columns = [Column(first), *(Column(name, justify="right") for name in others)]
    table = Table(*columns, box=None, padding=(0, 0, 0, 2), header_style="dim")
    for row in rows:
        table.add_row(*row)
    return table
