"""Sensors and time series: channels x time steps, gaps and missing values unobserved.

Shape suffixes: _N rows of the source, _T time steps of one series, _WT windows x steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mptune.data import _frames, _sources
from mptune.data._frames import RECORDING, Frame
from mptune.data._sources import File
from mptune.data.rows import TRAIN, RowModality
from mptune.errors import plural

IntArray = NDArray[np.int64]

BLOCK = 10
"""Windows of one stretch: neighbours in time are similar, so single windows would leak."""


class Series(RowModality):
    """Series of one or many sensors: D = `window` time steps x channels, time the slower axis.

    Values become quantile bins of the training steps, so scores are densities; a value that many
    steps share (0 mm of rain) is a symbol with a probability. Missing values and gaps in `time`
    are not observed. A window never crosses from one series, or one split, to another.

    NumPy files hold values [steps, channels], [recordings, steps, channels], or several arrays of
    which `values` names one: an array or list of recordings; labels of recordings come along.
    Without `group`, whole recordings are held out, or stretches of a single series.
    """

    kind: Literal["series"] = "series"
    channels: tuple[str, ...] = Field(
        min_length=1, description="columns of numbers; of a NumPy file, names of its channels"
    )
    window: int = Field(24, ge=1, description="time steps per sequence, at least 1")
    stride: int | None = Field(
        None,
        ge=1,
        description="steps between training windows; default window. Others never overlap",
    )
    step_s: float | None = Field(
        None, gt=0, description="seconds from one step to the next; default the smallest difference"
    )
    every: int = Field(1, ge=1, description="use every n-th step of each series")
    values: str | None = Field(None, description="name of the values in a NumPy file of several")

    def words(self) -> str:
        grid = f"{plural(len(self.channels), 'channel')} × {plural(self.window, 'step')}"
        return f"{_sources.short(self.source)}, {grid}"

    @property
    def _window(self) -> int:
        return self.window

    _own_group: ClassVar[str] = "stretch"

    def _own_labels(self, frame: Frame) -> NDArray[Any]:
        """One long series is held out in stretches of `BLOCK` windows, fewer of a short one."""
        windows = len(frame) // (self.window * self.every)
        block = self.window * self.every * max(1, min(BLOCK, windows // 20))
        return (np.arange(len(frame)) // block).astype(str)

    @property
    def _names(self) -> Sequence[str]:
        return self.channels

    @property
    def _axes(self) -> dict[str, int]:
        return {"time": self.window, "channel": len(self.channels)}

    def frame(self, files: Sequence[File]) -> Frame:
        return _frames.read(files, self.errors, self.channels, self.values)

    def _grid(self, frame: Frame, split_N: IntArray) -> tuple[IntArray, IntArray]:
        rows, splits = [], []
        for series_T in self._series(frame):
            for run_T, split in _runs(series_T, split_N):
                stride = (self.stride or self.window) if split == TRAIN else self.window
                found = _windows(run_T, self.window, stride)
                rows.append(found)
                splits.append(np.full(len(found), split))
        return np.concatenate(rows), np.concatenate(splits)

    def cover(self, frame: Frame) -> IntArray:
        """Windows that overlap, so that every step is near the middle of one."""
        stride, parts = max(1, self.window // 4), []
        for series_T in self._series(frame):
            short = max(0, self.window - len(series_T))
            series_T = np.pad(series_T, (0, short), constant_values=-1)
            parts.append(_windows(series_T, self.window, stride))
            parts.append(series_T[None, -self.window :])
        return np.concatenate(parts)

    def _series(self, frame: Frame) -> Iterator[IntArray]:
        """Rows of each series in order of time, -1 where a step is missing."""
        labels = self._labels(frame) if self.group else np.zeros(len(frame))
        if RECORDING in frame.columns:
            labels = frame.columns[RECORDING]
        times_N = frame.times(self.time) if self.time else None
        order = np.argsort(labels, kind="stable")
        for rows in np.split(order, np.flatnonzero(labels[order][1:] != labels[order][:-1]) + 1):
            if times_N is not None:
                rows = self._on_time(frame, rows, times_N[rows])
            yield rows[:: self.every]

    def _on_time(self, frame: Frame, rows: IntArray, times: NDArray[np.float64]) -> IntArray:
        """The rows on a regular grid of time; a second row of one step is broken."""
        rows, times = rows[~np.isnan(times)], times[~np.isnan(times)]
        if not len(rows):
            return rows
        order = np.argsort(times, kind="stable")
        rows, times = rows[order], times[order]
        differences = np.diff(times)
        positive = differences[differences > 0]
        step = self.step_s or (float(positive.min()) if len(positive) else 1.0)
        at = np.rint((times - times[0]) / step).astype(np.int64)
        for twin in np.flatnonzero(np.diff(at) == 0) + 1:
            place = frame.place(rows[twin])
            frame.broken(place, "second row of one time step; skip keeps the first")
        if at[-1] > 1000 * len(rows) + 1000:
            raise ValueError(
                f"step_s: steps of {step:g} s make {at[-1]} steps of {len(rows)} rows; give the "
                "true sampling interval"
            )
        grid = np.full(at[-1] + 1, -1, np.int64)
        grid[at[::-1]] = rows[::-1]
        return grid


def _runs(series_T: IntArray, split_N: IntArray) -> Iterator[tuple[IntArray, int]]:
    """Stretches of one split; a gap belongs to the stretch before it."""
    known = series_T >= 0
    last = np.maximum.accumulate(np.where(known, np.arange(len(series_T)), 0))
    split_T = split_N[series_T[last]]
    for part in np.split(np.arange(len(series_T)), np.flatnonzero(np.diff(split_T)) + 1):
        yield series_T[part], int(split_T[part[0]])


def _windows(run_T: IntArray, window: int, stride: int) -> IntArray:
    """Windows [W, T] of a run; the end that is shorter than a window is left out."""
    if len(run_T) < window:
        return np.zeros((0, window), np.int64)
    return np.lib.stride_tricks.sliding_window_view(run_T, window)[::stride]
