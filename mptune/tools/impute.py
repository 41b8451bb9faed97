"""Fills missing values of sensors and tables with a trained masked model.

A missing value is a masked position: one forward gives its distribution given everything observed
around it. Mean and interval come from that distribution; draws fill the missing values of a
sequence step by step in random order, each given the ones before, so that they vary together.

Shape suffixes: N rows of the table, C columns, W sequences, T steps of a sequence, D its positions
(T x C), A positions to fill in a batch, K cells to fill in all, S draws, V symbols.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mptune.artifacts import store_at
from mptune.data import _sources
from mptune.data._bins import Bins, Categories, column
from mptune.data._frames import Frame, is_csv
from mptune.data._inspect import codec_columns
from mptune.data._records import is_missing, number
from mptune.data._sources import File
from mptune.data.rows import DOMAIN, HELDOUT, TRAIN, RowModality
from mptune.errors import InputError, did_you_mean, input_errors
from mptune.paths import TrialDirectory, write_aside
from mptune.spec.schema import build
from mptune.tools.baselines import BASELINES, Task
from mptune.tools.prepare import table_of_trial

Column = Bins | Categories
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BATCH = 256
CALIBRATION, TURNS = 1000, 5
"""Known values of each column that are hidden to calibrate intervals, and in how many turns."""

DECIMALS, _PLAIN = 6, re.compile(r"[-+]?\d*\.?(\d*)")
"""Most decimals that a filled number is written with, and a number without an exponent."""

DRAW_STEPS = 8
"""Steps in which a draw fills a sequence; with more it follows the joint distribution better."""


@dataclass(frozen=True)
class Cells:
    """Missing values: where they are, and what the model says of each.

    Attributes:
        row_K, column_K: of the table.
        mean_K: expected value, of numbers; the most probable category's number, of categories.
        low_K, high_K: ends of the interval, of numbers; the category's probability twice.
        draws_SK: S joint draws; category numbers for categories.
        loss_K: where the truth is given, the distribution's CRPS, of numbers, in their unit; its
            log loss, of categories, nats.
    """

    row_K: IntArray
    column_K: IntArray
    mean_K: FloatArray
    low_K: FloatArray
    high_K: FloatArray
    draws_SK: FloatArray
    loss_K: FloatArray


class Imputer:
    """A trained model with the columns that it was trained on."""

    def __init__(self, directory: Path) -> None:
        """Load a finished trial.

        Raises:
            InputError: the directory holds no trial with weights, or of other data.
        """
        import torch

        files = TrialDirectory(directory)
        trial, self.table = table_of_trial(files)
        table = self.table
        self.modality = build("data", trial.data)
        if not isinstance(self.modality, RowModality):
            raise InputError(
                f"{directory}: was trained on {trial.data['kind']!r}; only series and tabular "
                "data have values to fill in"
            )
        self.columns: dict[str, Column] = {
            name: column(dict(stored)) for name, stored in codec_columns(table).items()
        }
        family = build("model", trial.model)
        self._module = family.build(table.total_vocabulary, table.vocabulary_size, table.length)
        family.lay_out(self._module, tuple(table.axes.values()), table.sizes)
        weights = files.module.relative_to(files.root).as_posix()
        with store_at(trial.artifacts or files.root).fetched([weights]) as folder:
            if not (folder / weights).exists():
                raise InputError(
                    f"{directory}: no trained weights in it; train with training.keep_weights: true"
                )
            state = torch.load(folder / weights, map_location="cpu", weights_only=True)
        self._module.load_state_dict(state)
        self._module.eval()

    def read(self, path: str) -> tuple[Frame, list[File], list[NDArray[Any]]]:
        """A table with the same columns as the training data, its files, and the columns' values.

        Values [N] are numbers with NaN, or categories with None, where missing.

        Raises:
            InputError: it cannot be read, or has text in a column of numbers; one line names file
                and row.
        """
        with input_errors():
            files = _sources.files("TABLE", _sources.absolute((path,), Path.cwd()))
            frame: Frame = self.modality.frame(files)
            values = [
                frame.numbers(name) if isinstance(kind, Bins) else frame.words(name)
                for name, kind in self.columns.items()
            ]
            return frame, files, values

    def blank(self, frame: Frame) -> BoolArray:
        """Cells [N, C] that are empty or say that a value is missing (NA, null, ...)."""
        each = [frame.column(name).tolist() for name in self.columns]
        return np.array([[is_missing(value) for value in cells] for cells in each]).T

    def fill(
        self,
        frame: Frame,
        values: Sequence[NDArray[Any]],
        wanted_NC: BoolArray,
        *,
        level: float = 0.9,
        draws: int = 0,
        seed: int = 0,
        truth_NC: FloatArray | None = None,
    ) -> Cells:
        """The model's distribution of the wanted values, which are missing in `values`.

        A value that several sequences cover is filled where it is nearest to the middle.

        Args:
            level: probability that the interval holds the value.
            draws: joint draws of all of them.
            truth_NC: the values; of categories, their numbers.
        """
        columns = list(self.columns.values())
        found = self._distributions(frame, values, wanted_NC, wanted_NC, draws, seed)
        level_C = self._levels(frame, values, wanted_NC, level, seed)
        rng, keys, stats, drawn = np.random.default_rng([seed, 4]), sorted(found), [], []
        losses: list[float] = []
        for row, c in keys:
            p_V, symbols_S = found[row, c]
            stats.append(_moments(columns[c], p_V, level_C[c]))
            kind = columns[c]
            drawn.append(kind.draw(symbols_S, rng) if isinstance(kind, Bins) else symbols_S)
            if truth_NC is not None:
                value = float(truth_NC[row, c])
                if isinstance(kind, Bins):
                    losses.append(kind.crps(p_V, value))
                else:
                    losses.append(-math.log(p_V[int(value)]))
        row_K, column_K = np.array(keys, np.int64).reshape(-1, 2).T
        mean_K, low_K, high_K = np.array(stats, np.float64).reshape(-1, 3).T
        draws_SK = np.array(drawn, np.float64).T
        return Cells(row_K, column_K, mean_K, low_K, high_K, draws_SK, np.array(losses))

    def _levels(
        self,
        frame: Frame,
        values: Sequence[NDArray[Any]],
        wanted_NC: BoolArray,
        level: float,
        seed: int,
    ) -> list[float]:
        """For each column, the level at which the model's intervals hold the share `level`.

        The model's own level would be off: it is sure or unsure by whole bins. So some of the known
        values are hidden in turn, and the interval that just holds each is found: split conformal
        prediction (Lei et al. 2018, doi 10.1080/01621459.2017.1307116, section 2.2), for each
        column. Not of training rows, if the table has enough others.
        """
        kinds = list(self.columns.values())
        known_NC = np.stack([k.symbols(v) >= 0 for k, v in zip(kinds, values, strict=True)], axis=1)
        known_NC &= np.array([isinstance(kind, Bins) for kind in kinds])
        # Of every n-th row only, say: the others are in no sequence.
        known_NC &= np.isin(np.arange(len(frame)), self.modality.cover(frame))[:, None]
        with suppress(ValueError, InputError):  # a new table need not have all groups
            others_NC = known_NC & (self.modality.splits(frame) != TRAIN)[:, None]
            if others_NC.sum() >= CALIBRATION * others_NC.any(0).sum() > 0:
                known_NC = others_NC
        # A column's values are hidden by about two hundred, so that their surroundings stay known.
        turns = max(TURNS, int(known_NC.sum(0).max()) // (CALIBRATION // TURNS))
        turn_NC = np.random.default_rng([seed, 6]).integers(turns, size=known_NC.shape)
        levels: list[list[float]] = [[] for _ in kinds]
        for turn in range(TURNS):
            hidden_NC = known_NC & (turn_NC == turn)
            given, masked_NC = _hidden(values, hidden_NC), hidden_NC | wanted_NC
            found = self._distributions(frame, given, hidden_NC, masked_NC, 0, seed)
            for (row, c), (p_V, _) in found.items():
                kind = kinds[c]
                assert isinstance(kind, Bins)
                levels[c].append(kind.level_of(p_V, values[c][row]))
        ranks = [math.ceil((len(each) + 1) * level) for each in levels]
        return [
            sorted(each)[rank - 1] if rank <= len(each) else level
            for each, rank in zip(levels, ranks, strict=True)
        ]

    def _distributions(
        self,
        frame: Frame,
        values: Sequence[NDArray[Any]],
        wanted_NC: BoolArray,
        masked_NC: BoolArray,
        draws: int,
        seed: int,
    ) -> dict[tuple[int, int], tuple[FloatArray, IntArray]]:
        """(row, column) of wanted values -> probability of each symbol [V], drawn symbols [S].

        All of `masked_NC` are masked around them; other missing values are padding.
        """
        pairs = zip(self.columns.values(), values, strict=True)
        symbols_NC = np.stack([c.symbols(v) for c, v in pairs], axis=1)
        rows_WT = self.modality.cover(frame)
        rows_WT = rows_WT[(masked_NC[rows_WT].any(2) & (rows_WT >= 0)).any(1)]
        best_W, best_T = _best_places(rows_WT, len(wanted_NC))
        needed_w = np.unique(best_W[wanted_NC.any(1) & (best_W >= 0)])
        found: dict[tuple[int, int], tuple[FloatArray, IntArray]] = {}
        for first in range(0, len(needed_w), BATCH):
            w, t = needed_w[first : first + BATCH, None], np.arange(rows_WT.shape[1])
            rows_wT = rows_WT[w[:, 0]]
            here_wT = (rows_wT >= 0) & (best_W[rows_wT] == w) & (best_T[rows_wT] == t)
            asked_wTC = here_wT[..., None] & masked_NC[rows_wT]
            symbols_wTC = np.where(rows_wT[..., None] >= 0, symbols_NC[rows_wT], -1)
            symbols_wD, asked_wD = (a.reshape(len(rows_wT), -1) for a in (symbols_wTC, asked_wTC))
            known_wD, symbols_wD = symbols_wD >= 0, np.maximum(symbols_wD, 0)
            p_AV = self._forward(symbols_wD, known_wD, asked_wD)
            drawn_SA = self._sample(symbols_wD, known_wD, asked_wD, draws, seed + first)
            places = [(int(rows_wT[w, t]), int(c)) for w, t, c in np.argwhere(asked_wTC)]
            each = zip(places, p_AV, drawn_SA.T, strict=True)
            found |= {place: (p_V, drawn_S) for place, p_V, drawn_S in each if wanted_NC[place]}
        return found

    def _forward(
        self, symbols_WD: IntArray, known_WD: BoolArray, asked_WD: BoolArray
    ) -> FloatArray:
        """p [A, V] of the asked positions, which are masked; other unknown ones are padding."""
        import torch

        tokens_WD = np.where(known_WD, symbols_WD, self.table.pad_id)
        tokens_WD = np.where(asked_WD, self.table.mask_id, tokens_WD)
        given = (torch.from_numpy(a) for a in (tokens_WD, asked_WD, known_WD | asked_WD))
        with torch.inference_mode():
            p_AV = self._module(*given).double().softmax(1).numpy()
        # A model of the user's own does not know that some columns have fewer symbols.
        sizes_D = np.resize([kind.size for kind in self.columns.values()], tokens_WD.shape[1])
        size_A = np.broadcast_to(sizes_D, asked_WD.shape)[asked_WD]
        found: FloatArray = np.where(np.arange(p_AV.shape[1]) < size_A[:, None], p_AV, 0)
        return found / found.sum(1, keepdims=True)

    def _sample(
        self, symbols_WD: IntArray, known_WD: BoolArray, asked_WD: BoolArray, draws: int, seed: int
    ) -> IntArray:
        """Symbols [S, A], drawn jointly within each sequence."""
        rng = np.random.default_rng([seed, 3])
        found_SA = np.zeros((draws, int(asked_WD.sum())), np.int64)
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
            found_SA[draw] = symbols[asked_WD]
        return found_SA


def _best_places(rows_WT: IntArray, rows: int) -> tuple[IntArray, IntArray]:
    """The sequence and the step [N] at which each row is nearest to the middle; -1 if nowhere."""
    places_P2, middle = np.argwhere(rows_WT >= 0), (rows_WT.shape[1] - 1) / 2
    places_P2 = places_P2[np.argsort(abs(places_P2[:, 1] - middle), kind="stable")]
    row, first = np.unique(rows_WT[tuple(places_P2.T)], return_index=True)
    best_N2 = np.full((rows, 2), -1)
    best_N2[row] = places_P2[first]
    return best_N2[:, 0], best_N2[:, 1]


def _moments(column: Column, p_V: FloatArray, level: float) -> tuple[float, float, float]:
    """(mean, low, high); of categories the most probable one, and its probability twice."""
    p_V = p_V[: column.size]
    if isinstance(column, Categories):
        return float(p_V.argmax()), float(p_V.max()), float(p_V.max())
    low, high = (column.quantile(p_V, q) for q in ((1 - level) / 2, (1 + level) / 2))
    return float(p_V @ column.centres() / p_V.sum()), low, high


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

    Only missing values change: of one CSV file every other byte stays, also values that the model
    has no symbol for.

    Returns:
        Per column how many values were missing and filled, and each known value without a symbol
        with its number.

    Raises:
        InputError: the model or the table cannot be used.
    """
    imputer = Imputer(model)
    frame, files, values = imputer.read(source)
    names, blank_NC = list(imputer.columns), imputer.blank(frame)
    cells = imputer.fill(frame, values, blank_NC, level=level, draws=draws, seed=seed)
    filled: dict[tuple[int, str], str] = {}
    listed = [["row", "column", "mean", "low", "high", *(f"draw_{s + 1}" for s in range(draws))]]
    known = [
        frame.column(n)[~blank_N].tolist() for n, blank_N in zip(names, blank_NC.T, strict=True)
    ]
    writers = [_writer(k, v) for k, v in zip(imputer.columns.values(), known, strict=True)]
    for k, (row, c) in enumerate(zip(cells.row_K, cells.column_K, strict=True)):
        value, *drawn = map(writers[c], (cells.mean_K[k], *cells.draws_SK[:, k]))
        filled[int(row), names[c]] = value
        is_number = isinstance(imputer.columns[names[c]], Bins)
        mean = f"{cells.mean_K[k]:.6g}" if is_number else value
        ends = [f"{cells.low_K[k]:.6g}", f"{cells.high_K[k]:.6g}"]
        listed.append([str(int(frame.row_N[row])), names[c], mean, *ends, *drawn])
    if len(files) == 1 and imputer.modality.kind != "image" and is_csv(files[0]):
        with files[0].open() as given, write_aside(out) as aside:
            text = replace_cells(given.read().decode("utf-8"), files[0].suffix, filled)
            aside.write_bytes(text.encode("utf-8"))
    else:
        table = {name: column.astype(object) for name, column in frame.columns.items()}
        for (row, name), value in filled.items():
            table[name][row] = value
        _write_csv(out, [list(table), *zip(*table.values(), strict=True)])
    if cells_out is not None:
        _write_csv(cells_out, listed)
    columns = zip(imputer.columns.values(), values, strict=True)
    unknown_NC = np.stack([k.symbols(v) < 0 for k, v in columns], 1)
    unknown_NC &= ~blank_NC
    return {
        name: {
            "missing": int(blank_NC[:, c].sum()),
            "filled": int((cells.column_K == c).sum()),
            "unknown": dict(Counter(map(str, frame.column(name)[unknown_NC[:, c]])).most_common()),
        }
        for c, name in enumerate(names)
    }


def _writer(kind: Column, known: Sequence[Any]) -> Callable[[float], str]:
    """What writes a value of a column as its known ones are written.

    A number gets as many decimals as they have at most, so none among whole numbers; if they have
    more than `DECIMALS`, or are written with exponents, it gets 6 significant digits.
    """
    if isinstance(kind, Categories):
        return lambda value: kind.names[int(value)]
    if known and all(isinstance(value, bool) for value in known):
        return lambda value: str(value >= 0.5)
    # What is no number was skipped, as the data section says.
    known = [value for value in known if math.isfinite(number(value))]
    words = [v.strip() if isinstance(v, str) else f"{v:.15g}" for v in known]
    if known and all(number(value).is_integer() for value in known):
        words = ["0"]  # also 7500.0
    written = [_PLAIN.fullmatch(word) for word in words]
    decimals = max((len(match[1]) if match else 99 for match in written), default=99)
    if decimals > DECIMALS:
        return "{:.6g}".format
    return lambda value: f"{round(value, decimals) + 0.0:.{decimals}f}"  # without -0


def replace_cells(text: str, suffix: str, cells: Mapping[tuple[int, str], str]) -> str:
    """CSV text with the cells (row, column) replaced, and every other character as it was.

    Rows are numbered as they are read: without the header, blank lines and ragged rows.

    Raises:
        InputError: one of these cells is not blank, as quotes were read in another way.
    """
    delimiter = "\t" if suffix == ".tsv" else ","
    head = next(csv.reader(io.StringIO(text.removeprefix("\ufeff"), ""), delimiter=delimiter))
    place = {name: number for number, name in enumerate(head)}
    by_row: dict[int, list[tuple[int, str]]] = {}
    for (row, name), value in cells.items():
        by_row.setdefault(row, []).append((place[name], value))
    quoted = re.compile(r'^"((?:[^"]|"")*)"?')
    field = re.compile(rf'((?:"(?:[^"]|"")*"?)?[^{delimiter}\r\n]*)({delimiter}|\r\n|\r|\n|\Z)')
    parts, end, row, fields = list[str](), 0, -1, list[re.Match[str]]()
    # The reader leaves out a byte order mark, before which a quote would be none.
    for match in field.finditer(text, int(text.startswith("\ufeff"))):
        fields.append(match)
        if match[2] == delimiter:
            continue
        if len(fields) == len(head) and (len(fields) > 1 or match[1]):
            for number, value in sorted(by_row.get(row, ())):
                if not is_missing(quoted.sub(r"\1", fields[number][1], count=1)):
                    raise InputError(f"row {row + 1}: its quotes are not those of CSV")
                if any(character in value for character in f'{delimiter}"\r\n'):
                    value = '"' + value.replace('"', '""') + '"'
                parts += [text[end : fields[number].start(1)], value]
                end = fields[number].end(1)
            row += 1  # the header is -1
        fields.clear()
    return "".join([*parts, text[end:]])


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with write_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


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
        share: of the known values in those rows, hidden at random.
        on: `heldout`, a domain's name, or `all`.

    Returns:
        Per column, and of all numbers: hidden values, how many the model did not fill, and, of
        those that it did, `coverage` of its intervals, and `error` and `loss` of the model and of
        each baseline. Of numbers, in training standard deviations, these are the root mean square
        error and the CRPS, which is the mean distance of a method that gives single values; of
        categories, the share of wrong ones and the log loss in nats.

    Raises:
        InputError: the model or the table cannot be used, or there is no such split.
    """
    imputer = Imputer(model)
    frame, _, values = imputer.read(source)
    kinds = list(imputer.columns.values())
    numbers_C = np.array([isinstance(kind, Bins) for kind in kinds])
    truth_NC = np.stack([_as_numbers(k, v) for k, v in zip(kinds, values, strict=True)], axis=1)
    scale_C = np.array([kind.scale if isinstance(kind, Bins) else 1.0 for kind in kinds])
    chosen_N, train_N, series = _chosen(imputer.modality, frame, on)
    hidden_NC = chosen_N[:, None] & ~np.isnan(truth_NC)
    hidden_NC &= np.random.default_rng([seed, 5]).random(truth_NC.shape) < share
    if not hidden_NC.any():
        raise InputError(f"{source}: no known value in the rows of {on!r} to hide")
    cells = imputer.fill(
        frame, _hidden(values, hidden_NC), hidden_NC, level=level, seed=seed, truth_NC=truth_NC
    )
    others = _others(cells, truth_NC, hidden_NC, train_N, series, ~numbers_C)
    guesses, truth_K = {"mptune": cells.mean_K, **others}, truth_NC[cells.row_K, cells.column_K]
    inside_K = (cells.low_K <= truth_K) & (truth_K <= cells.high_K)
    distance_MK = (np.stack(list(guesses.values())) - truth_K) / scale_C[cells.column_K]
    # Of categories, single values have no log loss.
    loss_MK = np.where(numbers_C[cells.column_K], np.abs(distance_MK), np.nan)
    loss_MK[0] = cells.loss_K / scale_C[cells.column_K]

    def figures(columns: Sequence[int]) -> dict[str, Any]:
        here_K, is_number = np.isin(cells.column_K, columns), bool(numbers_C[columns].all())
        here_2MK = np.stack([distance_MK, loss_MK])[:, :, here_K]
        distances, losses = (dict(zip(guesses, found_MK, strict=True)) for found_MK in here_2MK)
        hidden = int(hidden_NC[:, columns].sum())
        return _figures(distances, losses, inside_K[here_K], hidden, is_number)

    return {
        "on": on,
        "share": share,
        "level": level,
        "all_numbers": figures(np.flatnonzero(numbers_C).tolist()) if numbers_C.any() else None,
        "columns": [{"column": n, **figures([c])} for c, n in enumerate(imputer.columns)],
    }


def _others(
    cells: Cells,
    truth_NC: FloatArray,
    hidden_NC: BoolArray,
    train_N: BoolArray,
    series: Sequence[IntArray],
    categories_C: BoolArray,
) -> dict[str, FloatArray]:
    """What other methods say of the cells that the model filled, by their names [K]."""
    place, filled_NC = (cells.row_K, cells.column_K), np.zeros_like(hidden_NC)
    filled_NC[place] = True
    given_NC = np.where(hidden_NC, np.nan, truth_NC)
    task = Task(given_NC, filled_NC, train_N, series, categories_C)
    return {name: method(task)[place] for name, method in BASELINES.items()}


def _hidden(values: Sequence[NDArray[Any]], hidden_NC: BoolArray) -> list[NDArray[Any]]:
    """The columns' values with some of them missing."""
    found = [v.copy() for v in values]
    for v, hidden_N in zip(found, hidden_NC.T, strict=True):
        v[hidden_N] = None if v.dtype == object else np.nan
    return found


def _as_numbers(kind: Column, values: NDArray[Any]) -> FloatArray:
    """Values [N] as numbers, categories by their number; NaN where missing or without a symbol."""
    if isinstance(kind, Bins):
        return values.astype(np.float64)
    symbols = kind.symbols(values)
    return np.where(symbols < 0, np.nan, symbols)


def _figures(
    distances: Mapping[str, FloatArray],
    losses: Mapping[str, FloatArray],
    inside_K: BoolArray,
    hidden: int,
    is_number: bool,
) -> dict[str, Any]:
    """What `check` says of some columns, from each method's distances to the truth [K]."""
    # NaN: of a method that has nothing to say of such a column.
    error = {
        method: None
        if np.isnan(d_K).all()
        else float(np.sqrt((d_K**2).mean()) if is_number else (d_K != 0).mean())
        for method, d_K in distances.items()
    }
    return {
        "hidden": hidden,
        "unfilled": hidden - len(inside_K),
        "coverage": float(inside_K.mean()) if is_number and len(inside_K) else None,
        "measure": "RMSE" if is_number else "wrong",
        "error": error,
        "loss": {
            m: None if np.isnan(l_K).all() else float(l_K.mean()) for m, l_K in losses.items()
        },
    }


def _chosen(
    modality: RowModality, frame: Frame, on: str
) -> tuple[BoolArray, BoolArray, list[IntArray]]:
    """The rows [N] of a split, a domain or all; those to train on; and the rows of each series."""
    known = {"heldout": HELDOUT} | {n: DOMAIN + i for i, n in enumerate(modality.domains)}
    if on not in ("all", *known):
        raise InputError(
            f"{on!r} is none of all, {', '.join(known)}{did_you_mean(on, ['all', *known])}"
        )
    with input_errors():
        split_N = modality.splits(frame)
    chosen_N = np.ones(len(frame), bool) if on == "all" else split_N == known[on]
    train_N = split_N == TRAIN
    series = list(getattr(modality, "_series", lambda frame: ())(frame))
    if series:  # of every n-th row only, say
        rows = np.concatenate(series)
        train_N &= np.isin(np.arange(len(frame)), rows[rows >= 0])
    return chosen_N, train_N, series
