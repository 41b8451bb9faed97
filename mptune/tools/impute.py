"""Fills missing values of sensors and tables with a trained masked model.

A missing value is a masked position: one forward gives its distribution given everything observed
around it. Mean and interval come from that distribution; draws fill the missing values of a
sequence step by step in random order, each given the ones before, so that they vary together.

Shape suffixes: _N rows of the table, C columns, _WT sequences x window, _WD sequences x positions,
_K missing cells, V symbols.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mptune.artifacts import artifacts_of
from mptune.data import _sources
from mptune.data._bins import Bins, Categories, column
from mptune.data._frames import Frame
from mptune.data._inspect import codec_columns
from mptune.data._rows import DOMAIN, HELDOUT, TRAIN, RowModality
from mptune.data.table import TokenTable
from mptune.errors import InputError, did_you_mean
from mptune.paths import TrialDirectory, write_aside
from mptune.spec.schema import build
from mptune.trial import TrialSpec

if TYPE_CHECKING:
    from torch import nn

Column = Bins | Categories
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BATCH = 256
DRAW_STEPS = 8
"""Steps in which a draw fills a sequence: more follow the joint distribution better."""


@dataclass(frozen=True)
class Cells:
    """Missing values: where they are, and what the model says of each.

    Attributes:
        row_K, column_K: of the table.
        mean_K: expected value, of numbers; the most probable category's number, of categories.
        low_K, high_K: ends of the interval, of numbers; the category's probability twice.
        draws_SK: S joint draws; category numbers for categories.
    """

    row_K: IntArray
    column_K: IntArray
    mean_K: FloatArray
    low_K: FloatArray
    high_K: FloatArray
    draws_SK: FloatArray


class Imputer:
    """A trained model with the columns that it was trained on."""

    def __init__(self, directory: Path) -> None:
        """Load a finished trial.

        Raises:
            InputError: the directory holds no trial with weights, or of other data.
        """
        files = TrialDirectory(directory)
        if not files.spec.exists():
            raise InputError(f"{directory}: no trained weights in it; it is no trial's directory")
        self.trial = TrialSpec.model_validate_json(files.spec.read_text(encoding="utf-8"))
        self.modality = build("data", self.trial.data)
        if not isinstance(self.modality, RowModality):
            raise InputError(
                f"{directory}: was trained on {self.trial.data['kind']!r}; only series and tabular "
                "data have values to fill in"
            )
        try:
            self.table = TokenTable.open(self.trial.prepared.table)
        except OSError:
            raise InputError(
                f"{self.trial.prepared.table}: the prepared data are gone; run "
                "`mptune data inspect` on the spec to make them again"
            ) from None
        self.columns: dict[str, Column] = {
            name: column(dict(stored)) for name, stored in codec_columns(self.table).items()
        }
        weights = files.module.relative_to(files.root).as_posix()
        with artifacts_of(files.root, self.trial.artifacts).fetched([weights]) as folder:
            if not (folder / weights).exists():
                raise InputError(
                    f"{directory}: no trained weights in it; train with training.keep_weights: true"
                )
            self._module = self._load(folder / weights)

    def _load(self, weights: Path) -> nn.Module:
        import torch

        family, table = build("model", self.trial.model), self.table
        module: nn.Module = family.build(
            table.total_vocabulary, table.vocabulary_size, table.length
        )
        family.lay_out(module, tuple(table.axes.values()), table.sizes)
        module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return module.eval()

    def read(self, path: str) -> Frame:
        """A table with the same columns as the training data.

        Raises:
            InputError: it cannot be read; one line names file and row.
        """
        try:
            source = _sources.absolute((path,), Path.cwd())
            frame: Frame = self.modality.frame(_sources.files("TABLE", source))
            for name in self.columns:
                frame.column(name)
            return frame
        except (ValueError, OSError) as error:
            raise InputError(str(error)) from None

    def values(self, frame: Frame) -> list[NDArray[Any]]:
        """The columns' values [N]: numbers with NaN, categories with None, where missing."""
        return [
            frame.numbers(name) if isinstance(c, Bins) else frame.words(name)
            for name, c in self.columns.items()
        ]

    def fill(
        self,
        frame: Frame,
        values: Sequence[NDArray[Any]],
        *,
        level: float = 0.9,
        draws: int = 0,
        seed: int = 0,
        only: NDArray[np.bool_] | None = None,
    ) -> Cells:
        """What the model says of every missing value, or of those in `only` [N, C].

        Args:
            level: probability that the interval holds.
            draws: joint draws of all of them.
        """
        pairs = zip(self.columns.values(), values, strict=True)
        symbols_NC = np.stack([c.symbols(v) for c, v in pairs], axis=1)
        wanted_NC = symbols_NC < 0 if only is None else only & (symbols_NC < 0)
        rows_WT = self.modality.cover(frame)
        rows_WT = rows_WT[(wanted_NC[rows_WT].any(2) & (rows_WT >= 0)).any(1)]
        places = _best_places(rows_WT, wanted_NC)
        probabilities: dict[tuple[int, int], FloatArray] = {}
        drawn: dict[tuple[int, int], IntArray] = {}
        for first in range(0, len(rows_WT), BATCH):
            rows = rows_WT[first : first + BATCH]
            here = [(w - first, t, c) for w, t, c in places if 0 <= w - first < len(rows)]
            batch = self._batch(symbols_NC, rows)
            keys = [(int(rows[w, t]), c) for w, t, c in here]
            probabilities |= dict(zip(keys, self._predict(*batch, here), strict=True))
            sampled_SK = self._sample(*batch, here, draws, seed + first)
            drawn |= dict(zip(keys, sampled_SK.T, strict=True))
        return self._summary(probabilities, drawn, level, seed)

    def _batch(self, symbols_NC: IntArray, rows_WT: IntArray) -> tuple[IntArray, NDArray[np.bool_]]:
        """(symbols [W, D], 0 where unknown; which are known)."""
        symbols_WD = np.where(rows_WT[..., None] >= 0, symbols_NC[rows_WT], -1)
        symbols_WD = symbols_WD.reshape(len(rows_WT), -1)
        return np.maximum(symbols_WD, 0), symbols_WD >= 0

    def _forward(
        self, symbols_WD: IntArray, known_WD: NDArray[np.bool_], asked_WD: NDArray[np.bool_]
    ) -> FloatArray:
        """p [asked, V] of the asked positions, which are masked; other unknown ones are padding."""
        import torch

        table = self.table
        tokens_WD = np.where(known_WD, symbols_WD, table.pad_id)
        tokens_WD = np.where(asked_WD, table.mask_id, tokens_WD)
        attend_WD = known_WD | asked_WD
        with torch.inference_mode():
            logits_KV = self._module(
                torch.from_numpy(tokens_WD), torch.from_numpy(asked_WD), torch.from_numpy(attend_WD)
            )
        found: FloatArray = logits_KV.double().softmax(1).numpy()
        return found

    def _predict(
        self, symbols_WD: IntArray, known_WD: NDArray[np.bool_], cells: list[tuple[int, int, int]]
    ) -> FloatArray:
        asked_WD = self._asked(known_WD, cells)
        found = self._forward(symbols_WD, known_WD, asked_WD)
        place_WD = np.cumsum(asked_WD.ravel()).reshape(asked_WD.shape) - 1
        return found[[place_WD[w, t * len(self.columns) + c] for w, t, c in cells]]

    def _asked(
        self, known_WD: NDArray[np.bool_], cells: list[tuple[int, int, int]]
    ) -> NDArray[np.bool_]:
        asked_WD = np.zeros_like(known_WD)
        for w, t, c in cells:
            asked_WD[w, t * len(self.columns) + c] = True
        return asked_WD

    def _sample(
        self,
        symbols_WD: IntArray,
        known_WD: NDArray[np.bool_],
        cells: list[tuple[int, int, int]],
        draws: int,
        seed: int,
    ) -> IntArray:
        """Symbols [S, cells], drawn jointly within each sequence."""
        rng = np.random.default_rng([seed, 3])
        asked_WD = self._asked(known_WD, cells)
        places = [(w, t * len(self.columns) + c) for w, t, c in cells]
        found = np.zeros((draws, len(cells)), np.int64)
        for draw in range(draws):
            symbols, known, left = symbols_WD.copy(), known_WD.copy(), asked_WD.copy()
            step_WD = rng.integers(DRAW_STEPS, size=asked_WD.shape)
            for step in range(DRAW_STEPS):
                now_WD = left & (step_WD == step)
                if now_WD.any():
                    p_AV = self._forward(symbols, known, left)[now_WD[left]]
                    u_A1 = rng.random((len(p_AV), 1)) * p_AV.sum(1, keepdims=True)
                    symbols[now_WD] = (p_AV.cumsum(1) < u_A1).sum(1)
                    known |= now_WD
                    left &= ~now_WD
            found[draw] = [symbols[w, d] for w, d in places]
        return found

    def _summary(
        self,
        probabilities: dict[tuple[int, int], FloatArray],
        drawn: dict[tuple[int, int], IntArray],
        level: float,
        seed: int,
    ) -> Cells:
        keys, columns = sorted(probabilities), list(self.columns.values())
        rng = np.random.default_rng([seed, 4])
        stats = [_moments(columns[c], probabilities[r, c], level) for r, c in keys]
        draws = [_drawn(columns[c], drawn[r, c], rng) for r, c in keys]
        row_K, column_K = (np.array([k[i] for k in keys], np.int64) for i in (0, 1))
        mean_K, low_K, high_K = np.array(stats, np.float64).reshape(-1, 3).T
        return Cells(row_K, column_K, mean_K, low_K, high_K, np.array(draws).T)


def _best_places(rows_WT: IntArray, wanted_NC: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """(sequence, step, column) for each wanted cell: where it is nearest to the middle."""
    window = rows_WT.shape[1]
    best: dict[int, tuple[float, int, int]] = {}
    for w, t in np.argwhere(rows_WT >= 0):
        row = int(rows_WT[w, t])
        far = abs(float(t) - (window - 1) / 2)
        if row not in best or far < best[row][0]:
            best[row] = (far, int(w), int(t))
    cells = np.argwhere(wanted_NC)
    found = [(*best[int(r)][1:], int(c)) for r, c in cells if int(r) in best]
    return sorted(found)


def _moments(column: Column, p_V: FloatArray, level: float) -> tuple[float, float, float]:
    """(mean, low, high); of categories the most probable one, and its probability twice."""
    p_V = p_V[: column.size]
    if isinstance(column, Categories):
        return float(p_V.argmax()), float(p_V.max()), float(p_V.max())
    low, high = (column.quantile(p_V, q) for q in ((1 - level) / 2, (1 + level) / 2))
    return float(p_V @ column.centres() / p_V.sum()), low, high


def _drawn(column: Column, symbols: IntArray, rng: np.random.Generator) -> FloatArray:
    return column.draw(symbols, rng) if isinstance(column, Bins) else symbols.astype(np.float64)


# --- files -------------------------------------------------------------------------------------


def impute(
    model: Path,
    source: str,
    out: Path,
    cells_out: Path | None = None,
    level: float = 0.9,
    draws: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Fill `source` into the CSV `out`; every filled cell into `cells_out`.

    Returns:
        Per column how many values were missing and filled.

    Raises:
        InputError: the model or the table cannot be used.
    """
    imputer = Imputer(model)
    frame = imputer.read(source)
    values = imputer.values(frame)
    cells = imputer.fill(frame, values, level=level, draws=draws, seed=seed)
    _write_table(out, frame, imputer, cells)
    if cells_out is not None:
        _write_cells(cells_out, frame, imputer, cells)
    names = list(imputer.columns)
    return {
        name: {
            "missing": int((imputer.columns[name].symbols(values[c]) < 0).sum()),
            "filled": int((cells.column_K == c).sum()),
        }
        for c, name in enumerate(names)
    }


def _shown(column: Column, value: float) -> str:
    return column.names[int(value)] if isinstance(column, Categories) else f"{value:.6g}"


def _write_table(out: Path, frame: Frame, imputer: Imputer, cells: Cells) -> None:
    columns = {name: values.astype(object) for name, values in frame.columns.items()}
    names = list(imputer.columns)
    for r, c, mean in zip(cells.row_K, cells.column_K, cells.mean_K, strict=True):
        columns[names[c]][r] = _shown(imputer.columns[names[c]], mean)
    with write_aside(out) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_cells(out: Path, frame: Frame, imputer: Imputer, cells: Cells) -> None:
    names = list(imputer.columns)
    heads = [f"draw_{s + 1}" for s in range(len(cells.draws_SK))]
    with write_aside(out) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "column", "mean", "low", "high", *heads])
        for k, (r, c) in enumerate(zip(cells.row_K, cells.column_K, strict=True)):
            column = imputer.columns[names[c]]
            drawn = [_shown(column, v) for v in cells.draws_SK[:, k]]
            ends = [f"{cells.low_K[k]:.6g}", f"{cells.high_K[k]:.6g}"]
            place = int(frame.row_N[r])
            writer.writerow([place, names[c], _shown(column, cells.mean_K[k]), *ends, *drawn])


# --- checking ----------------------------------------------------------------------------------


def check(
    model: Path,
    source: str,
    share: float,
    on: str = "heldout",
    level: float = 0.9,
    seed: int = 0,
) -> dict[str, Any]:
    """Hide known values of held-out rows, fill them in, and compare with the truth.

    Args:
        share: of the known values of numbers in those rows, hidden at random.
        on: `heldout`, a domain's name, or `all`.

    Returns:
        Per column: hidden values, interval coverage, and the root mean square error of the model
        and of each baseline in training standard deviations.

    Raises:
        InputError: the model or the table cannot be used, or there is no such split.
    """
    imputer = Imputer(model)
    frame = imputer.read(source)
    try:
        split_N = imputer.modality.splits(frame)
    except ValueError as error:
        raise InputError(str(error)) from None
    truth_NC = np.stack([v.astype(np.float64) for v in _numeric(imputer, frame)], axis=1)
    rng = np.random.default_rng([seed, 5])
    rows_N = _chosen(imputer.modality, split_N, on)
    hidden_NC = rows_N[:, None] & ~np.isnan(truth_NC) & (rng.random(truth_NC.shape) < share)
    if not hidden_NC.any():
        raise InputError(f"{source}: no known value in the rows of {on!r} to hide")
    given_NC = np.where(hidden_NC, np.nan, truth_NC)
    cells = imputer.fill(frame, list(given_NC.T), level=level, seed=seed, only=hidden_NC)
    guesses = {"mptune": _scattered(cells, truth_NC.shape)}
    train_N = split_N == TRAIN
    guesses |= {n: make(imputer, frame, given_NC, train_N) for n, make in BASELINES.items()}
    return {
        "on": on,
        "share": share,
        "level": level,
        "rmse": _overall(truth_NC, hidden_NC, guesses, imputer),
        "coverage": _coverage(truth_NC, cells),
        "columns": list(_compared(imputer, truth_NC, hidden_NC, cells, guesses)),
    }


def _numeric(imputer: Imputer, frame: Frame) -> Iterator[NDArray[Any]]:
    for name, found in imputer.columns.items():
        if not isinstance(found, Bins):
            raise InputError(f"column {name!r} is of categories; check compares numbers only")
        yield frame.numbers(name)


def _chosen(modality: RowModality, split_N: IntArray, on: str) -> NDArray[np.bool_]:
    known = {"heldout": HELDOUT} | {n: DOMAIN + i for i, n in enumerate(modality.domains)}
    if on == "all":
        return np.ones(len(split_N), bool)
    if on not in known:
        raise InputError(
            f"{on!r} is none of all, {', '.join(known)}{did_you_mean(on, ['all', *known])}"
        )
    chosen: NDArray[np.bool_] = split_N == known[on]
    return chosen


def _scattered(cells: Cells, shape: tuple[int, ...]) -> FloatArray:
    found = np.full(shape, np.nan)
    found[cells.row_K, cells.column_K] = cells.mean_K
    return found


def _inside(truth_NC: FloatArray, cells: Cells) -> NDArray[np.bool_]:
    truth_K = truth_NC[cells.row_K, cells.column_K]
    return (cells.low_K <= truth_K) & (truth_K <= cells.high_K)


def _coverage(truth_NC: FloatArray, cells: Cells) -> float:
    return float(_inside(truth_NC, cells).mean())


def _overall(
    truth_NC: FloatArray,
    hidden_NC: NDArray[np.bool_],
    guesses: dict[str, FloatArray],
    imputer: Imputer,
) -> dict[str, float]:
    """Root mean square error over all hidden values, in training standard deviations."""
    scale_C = np.array([c.scale for c in imputer.columns.values() if isinstance(c, Bins)])
    return {
        method: float(np.sqrt(np.mean((((guess - truth_NC) / scale_C)[hidden_NC]) ** 2)))
        for method, guess in guesses.items()
    }


def _compared(
    imputer: Imputer,
    truth_NC: FloatArray,
    hidden_NC: NDArray[np.bool_],
    cells: Cells,
    guesses: dict[str, FloatArray],
) -> Iterator[dict[str, Any]]:
    inside = _inside(truth_NC, cells)
    for c, (name, found) in enumerate(imputer.columns.items()):
        here = hidden_NC[:, c]
        assert isinstance(found, Bins)
        truth = truth_NC[here, c]
        yield {
            "column": name,
            "hidden": int(here.sum()),
            "coverage": float(inside[cells.column_K == c].mean()),
            "rmse": {
                method: float(np.sqrt(np.nanmean((guess[here, c] - truth) ** 2)) / found.scale)
                for method, guess in guesses.items()
            },
        }


def _mean(
    imputer: Imputer, frame: Frame, given_NC: FloatArray, train_N: NDArray[np.bool_]
) -> FloatArray:
    return np.broadcast_to(np.nanmean(given_NC[train_N], axis=0), given_NC.shape)


def _last_value(
    imputer: Imputer, frame: Frame, given_NC: FloatArray, train_N: NDArray[np.bool_]
) -> FloatArray:
    """The last known value of the same series; the mean where there is none."""
    found = np.array(_mean(imputer, frame, given_NC, train_N))
    mean_C = found[0].copy()
    for series_T in _series_of(imputer.modality, frame):
        last_C = mean_C.copy()
        for row in series_T[series_T >= 0]:
            found[row] = last_C
            last_C = np.where(np.isnan(given_NC[row]), last_C, given_NC[row])
    return found


def _iterative(
    imputer: Imputer, frame: Frame, given_NC: FloatArray, train_N: NDArray[np.bool_]
) -> FloatArray:
    """scikit-learn's IterativeImputer on each row with the steps before and after it."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    columns = given_NC.shape[1]
    wide = np.concatenate([given_NC, np.full((len(given_NC), 2 * columns), np.nan)], axis=1)
    for series_T in _series_of(imputer.modality, frame):
        for near, far, block in (
            (series_T[1:], series_T[:-1], 1),
            (series_T[:-1], series_T[1:], 2),
        ):
            both = (near >= 0) & (far >= 0)
            wide[near[both], block * columns : (block + 1) * columns] = given_NC[far[both]]
    warnings.simplefilter("ignore")  # it says each time that it could go on for ever
    fitted = IterativeImputer(max_iter=10, random_state=0, keep_empty_features=True)
    filled: FloatArray = fitted.fit(wide[train_N]).transform(wide)[:, :columns]
    return filled


def _series_of(modality: RowModality, frame: Frame) -> Iterator[IntArray]:
    series: Callable[[Frame], Iterator[IntArray]] | None = getattr(modality, "_series", None)
    return iter([np.arange(len(frame))]) if series is None else series(frame)


BASELINES: dict[str, Callable[..., FloatArray]] = {
    "mean": _mean,
    "last value": _last_value,
    **({"IterativeImputer": _iterative} if find_spec("sklearn") else {}),
}
"""Name -> (imputer, table, values with the hidden ones missing [N, C], training rows) -> filled."""
