"""Do intervals of extrapolated size laws cover? One straight line (old) and averaged forms (new).

    python benchmarks/sizes.py               # 500 replications of every cell; minutes
    python benchmarks/sizes.py --quick       # 20, to see that it runs
    python benchmarks/sizes.py --json sizes.json --laws linear power

Sizes are 4 times apart, u = ln(N / smallest N). Gaps have a noise between 0.005 and 0.03 nats per
token from seed to seed (log-uniform over replications). A cell is a law, a number of sizes (3 to 5)
and of seeds (2 to 4). The step and the valley are no form that the tool knows. The best rate is
read from five fixed rates at each size, one run each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from mptune.analysis import sizes
from mptune.analysis.sizes import Measured, SizeLaw, averaged_law, by_size, size_law
from mptune.trial import Cost, LMLScore, Trial, TrialResult

Law = Callable[[np.ndarray], np.ndarray]

GAPS: dict[str, Law] = {
    "constant": lambda u: 0.05 + 0 * u,
    "linear": lambda u: 0.05 + 0.02 * u,
    "power": lambda u: 0.03 * np.exp(0.35 * u),
    "saturating": lambda u: 0.1 * u / (u + 1.5),
    "step": lambda u: 0.1 / (1 + np.exp(6 - 3 * u)),
    "valley": lambda u: 0.02 * (u - 2) ** 2,
}
LOGITS: dict[str, Law] = {
    "best rate, constant": lambda u: -0.6 + 0 * u,
    "best rate, linear": lambda u: -0.2 - 0.25 * u,
    "best rate, saturating": lambda u: -1.2 + 1.2 * u / (u + 1.5),
}
SIZES, SEEDS, BEYOND = (3, 4, 5), (2, 3, 4), (2.0, 4.0, 10.0)
SMALLEST, RATES = 1e5, (0.1, 0.15, 0.3, 0.5, 0.7)
sizes.GRID = 2  # no curve is drawn


def straight(n_S: np.ndarray, y_S: np.ndarray, v_S: np.ndarray, n_T: np.ndarray, noise: float,
             degrees: int) -> np.ndarray:  # fmt: skip
    """The old method: weighted least squares of a straight line; ends of the interval [2, T]."""
    x_S2, x_T2 = (np.stack([np.ones_like(n), n - n_S.mean()], 1) for n in (n_S, n_T))
    inverse = np.linalg.inv(x_S2.T / v_S @ x_S2)
    line = inverse @ x_S2.T / v_S @ y_S
    squares = noise + ((y_S - x_S2 @ line) ** 2 / v_S).sum()
    degrees += len(n_S) - 2
    half = stdtrit(degrees, 0.975) * np.sqrt(
        squares / degrees * np.einsum("ti,ij,tj->t", x_T2, inverse, x_T2)
    )
    return x_T2 @ line + np.array([[-1], [1]]) * half


def measured_gaps(law: Law, S: int, k: int, rng: np.random.Generator) -> Measured:
    u_S = math.log(4) * np.arange(S)
    sd = math.exp(rng.uniform(math.log(0.005), math.log(0.03)))
    gaps = law(u_S)[:, None] + sd * rng.normal(size=(S, k))
    squares = float(k * gaps.var(1).sum())
    return Measured(
        SMALLEST * np.exp(u_S), gaps.mean(1), np.eye(S) / k, squares, S * (k - 1), [k] * S
    )


def searched(law: Law, S: int, rng: np.random.Generator) -> list[Trial]:
    """Trials of fixed rates; the score is a parabola in the logit of the rate."""
    found = []
    for u, r in itertools.product(math.log(4) * np.arange(S), RATES):
        top = float(law(np.array(u)))
        y = -3 + 0.2 * u - 0.08 * (math.log(r / (1 - r)) - top) ** 2 + 0.01 * rng.normal()
        lml = LMLScore.model_construct(nats_per_token=y)
        cost = Cost.model_construct(parameters=round(SMALLEST * math.exp(u)))
        result = TrialResult.model_construct(lml=lml, cost=cost, mean_mask_rate=r)
        policy = {"kind": "fixed", "rate": r}
        found.append(Trial.model_construct(state="COMPLETE", policy=policy, seed=0, result=result))
    return found


def cell(name: str, S: int, k: int, replications: int) -> dict[str, object]:
    """Coverage, mean width and share that is stated, at each multiple of the largest size."""
    rng = np.random.default_rng([S, k, *name.encode()])
    u_T = math.log(4) * (S - 1) + np.log(BEYOND)
    at = SMALLEST * np.exp(u_T)
    rows: dict[str, list[object]] = {key: [] for key in ("old", "old width", "new", "width")}
    rows |= {key: [] for key in ("stated", "marked", "left out covers", "size matters")}
    for _ in range(replications):
        if name in GAPS:
            truth, values = GAPS[name](u_T), measured_gaps(GAPS[name], S, k, rng)
            law: SizeLaw = size_law("gap", name, values, at.tolist())
            ends = averaged_law(values, at).quantiles_T3[:, [0, 2]].T
            v_S = np.diag(values.covariance_SS)
            old = straight(
                np.log(values.parameters_S),
                values.y_S,
                v_S,
                np.log(at),
                values.squares,
                values.degrees,
            )
            rows["old"].append((old[0] <= truth) & (truth <= old[1]))
            rows["old width"].append(old[1] - old[0])
        else:
            truth = 1 / (1 + np.exp(-LOGITS[name](u_T)))
            report = by_size(searched(LOGITS[name], S, rng), at.tolist())
            if report is None or report.best_rate is None:
                continue
            law = report.best_rate
            nothing = (math.nan, math.nan)
            ends = np.array(
                [(e.at.low, e.at.high) if e.at else nothing for e in law.extrapolation]
            ).T
        rows["new"].append(
            np.where(np.isnan(ends[0]), np.nan, (ends[0] <= truth) & (truth <= ends[1]))
        )
        rows["width"].append(ends[1] - ends[0])
        rows["stated"].append([e.at is not None for e in law.extrapolation])
        rows["marked"].append(
            [e.verdict == "forms differ" or e.at is None for e in law.extrapolation]
        )
        rows["left out covers"].append(law.covered)
        rows["size matters"].append(law.size_matters)
    means = {key: np.nanmean(np.array(x, float), 0).tolist() for key, x in rows.items() if x}
    both = np.array(rows["new"], float), np.array(rows["stated"], float)
    means["new, stated"] = (np.nansum(both[0] * both[1], 0) / both[1].sum(0).clip(1)).tolist()
    return {"law": name, "sizes": S, "seeds": k, "replications": len(rows["new"]), **means}


def table(cells: Sequence[dict[str, object]]) -> str:
    """One line for each law: means over its cells, and the lowest cell in brackets."""

    def percent(rows: list[np.ndarray], place: int) -> str:
        values = 100 * np.array([row[place] for row in rows])
        return f"{values.mean():.0f} ({values.min():.0f})"

    lines = [
        "| law | × | old, % | width | new, % | width | stated, % | of these covered | marked, % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(str(c["law"]) for c in cells):
        own = [c for c in cells if c["law"] == name]
        for place, beyond in enumerate(BEYOND):
            get = {
                k: [np.array(c[k]) for c in own if k in c]
                for k in own[0]
                if isinstance(own[0][k], list)
            }
            old = percent(get["old"], place) if "old" in get else "–"
            width = f"{np.mean([w[place] for w in get['old width']]):.3f}" if "old" in get else "–"
            lines.append(
                f"| {name} | {beyond:g} | {old} | {width} | {percent(get['new'], place)} | "
                f"{np.mean([w[place] for w in get['width']]):.3f} | "
                f"{100 * np.mean([s[place] for s in get['stated']]):.0f} | "
                f"{percent(get['new, stated'], place)} | "
                f"{100 * np.mean([s[place] for s in get['marked']]):.0f} |"
            )
        left = 100 * np.mean([c["left out covers"] for c in own])
        matters = 100 * np.mean([c["size matters"] for c in own])
        lines.append(
            f"| | | largest size left out: covered {left:.0f} %; size matters {matters:.0f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="20 replications of every cell")
    parser.add_argument("--replications", type=int, default=500, metavar="N", help="of every cell")
    laws = [*GAPS, *LOGITS]
    parser.add_argument("--laws", nargs="+", choices=laws, default=laws, help="which to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    options = parser.parse_args()
    replications = 20 if options.quick else options.replications
    cells = [
        cell(name, S, k, replications)
        for name in options.laws
        for S, k in itertools.product(SIZES, SEEDS if name in GAPS else (1,))
    ]
    print(table(cells))
    if options.json:
        options.json.write_text(json.dumps(cells, indent=1), "utf-8")


if __name__ == "__main__":
    main()
