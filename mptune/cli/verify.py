"""Hold the estimator against known answers: exact models, the identity, the founding figures.

Every model has an exactly known log p(x). Nothing is downloaded and nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any

from mptune.cli import _arguments
from mptune.errors import InputError
from mptune.report.formatting import minus

if TYPE_CHECKING:
    from mptune.tools.verify import BedResult, FoundingResult, OnProgress, RateResult, Verification

EXAMPLES = """\
examples:
  mptune verify --quick            under 20 seconds on one core
  mptune verify --seed 1           the full replications, on other samples and masks
  mptune verify --json > verify.json

exit codes: 0 every check passed, 3 one failed (named on standard error)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer replications")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of samples and masks; default 0"
    )
    _arguments.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from mptune.tools.verify import verify

    if arguments.seed < 0:
        raise InputError(f"--seed: {arguments.seed} is negative; a seed is 0 or more")
    with _progress() as on_progress:
        found = verify(quick=arguments.quick, seed=arguments.seed, on_progress=on_progress)
    if arguments.json:
        print(json.dumps(_record(found), indent=2))
    else:
        print("\n".join(_lines(found)))
    for check in found.failed:
        print(f"mptune: failed: {check.name}: {check.words}", file=sys.stderr)
    return 3 if found.failed else 0


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """One line on standard error while it runs, and nothing without a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("verify", total=1.0)
        yield lambda words, share: bar.update(task, description=words, completed=share)


def _record(found: Verification) -> Any:
    return _plain({"passed": not found.failed, **asdict(found)})


def _plain(value: Any) -> Any:
    """JSON has no word for what is not finite: null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _lines(found: Verification) -> Iterator[str]:
    yield from _bed_lines(found)
    yield "\nIdentity Σ S(M) = log p(x), every mask enumerated"
    yield from _table(
        ("model", "sequences", "masks", "largest error"),
        [(i.name, f"{i.sequences}", f"{i.masks}", f"{i.error:.1e}") for i in found.identity],
    )
    yield from _rate_lines(found.rates)
    yield from _founding_lines(found.founding)
    passed = len(found.checks) - len(found.failed)
    verdict = "all passed" if not found.failed else f"{len(found.failed)} FAILED"
    yield f"\n{passed} of {len(found.checks)} checks passed: {verdict} ({found.seconds:.0f} s)"


def _bed_lines(found: Verification) -> Iterator[str]:
    yield "Models whose log p(x) is known exactly, nats per sequence"
    head = ("model", "truth", "estimate", "SE", "z", "bias z", "population", "fixed set", "SE/sd")
    yield from _table(head, [_bed_cells(bed) for bed in found.beds])
    yield from _bed_notes(found)


def _bed_notes(found: Verification) -> Iterator[str]:
    population, fixed = (_span(found.coverage_allowed[kind]) for kind in ("population", "fixed"))
    low, high = found.spread_allowed
    yield f"SE and z: of {found.beds[0].sequences} fixed sequences. The other columns, over"
    yield f"{found.replications} replications: bias; coverage of nominal 95 % intervals, for the"
    yield "population and for exactly these sequences; and the latter's SE over the actual spread,"
    yield "above 1 where intervals are wider than they need be. Allowed: coverage"
    yield f"{population} (population) and {fixed} (fixed set), SE/sd {low:.2f} to {high:.2f};"
    yield f"a true coverage of 95 % shows {_span(found.coverage_band)} in 95 of 100 runs."


def _bed_cells(bed: BedResult) -> tuple[str, ...]:
    return (
        bed.name,
        minus(bed.truth, 3),
        minus(bed.estimate, 3),
        f"{bed.se:.3f}",
        _signed(bed.z),
        _signed(bed.bias_z),
        _percent(bed.coverage_population),
        _percent(bed.coverage_fixed),
        f"{bed.se_over_spread:.2f}",
    )


def _rate_lines(found: RateResult) -> Iterator[str]:
    yield "\nBias of scoring at one mask count, D·S(M) − log p(x), nats"
    yield from _table(
        ("", *(f"M = {m + 1}" for m in range(len(found.closed_form)))),
        [
            ("closed form", *map(_signed, found.closed_form)),
            ("sampled, enumerated", *map(_signed, found.sampled)),
            ("z of the difference", *map(_signed, found.z)),
            ("recorded, another PPCA", *map(_signed, found.recorded)),
        ],
    )
    yield f"Setup: {found.setup}."
    yield "The recorded figures' parameters are not given: only signs and fall are compared."


def _founding_lines(found: FoundingResult) -> Iterator[str]:
    yield "\nFounding table (arXiv 2306.00520): exp_2_area_fig1.py -n 1000 -d 200 -k 5, beta = 5"
    head = ("", "forwards", "recorded", "sd", "here", "sd or SE", "z")
    yield from _table(head, [*_founding_rows(found), *_own_rows(found)])
    yield from _FOUNDING_NOTES


def _founding_rows(found: FoundingResult) -> Iterator[tuple[str, ...]]:
    """Recorded beside recomputed."""
    yield "exact LML", "", minus(found.recorded_exact, 4), "", minus(found.exact, 4), "", ""
    for row in found.rows:
        name, recorded = f"accumulated, P = {row.permutations}", minus(row.recorded, 3)
        here = minus(row.mean, 4), f"{row.sd:.4f}"
        yield name, f"{row.forwards:,}", recorded, f"{row.recorded_sd:.3f}", *here, ""


def _own_rows(found: FoundingResult) -> Iterator[tuple[str, ...]]:
    """The founding estimator with other seeds, then ours."""
    own = minus(found.own_mean, 4), f"{found.own_sd:.4f}", _signed(found.own_z)
    yield f"P = 1, {found.own_seeds} other seeds", f"{found.rows[0].forwards:,}", "", "", *own
    for row in found.ours:
        here = minus(row.estimate, 4), f"{row.se:.4f}", _signed(row.z)
        yield "mptune", f"{row.forwards:,}", "", "", *here


_FOUNDING_NOTES = (
    "Recorded: what the founding code printed. Here: computed anew from the same random numbers",
    "(its data seed and its five mask seeds), in double rather than single precision. A forward",
    "is one mask of one sequence; the founding estimator shares its masks over all 1000 of them.",
    "sd: of one run, over seeds. SE: of mptune, which at 200,000 forwards (not in --quick) costs",
    "as much as P = 1. The founding quirk is kept: noise with standard deviation 1/beta, shared",
    "over dimensions, under a covariance with variance 1/beta.",
)


def _span(band: tuple[float, float]) -> str:
    return f"{100 * band[0]:.1f} to {100 * band[1]:.1f} %"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Aligned columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for cells in (head, *rows):
        first, *others = zip(cells, widths, strict=True)
        aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        yield ("  " + "  ".join(aligned)).rstrip()
