"""The metrics of a run as columns that grow with its file and never hold more than so many rows."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dina.eval.growing import GrowingFile
from dina.eval.runs import METRICS_FILE, Curve

MAX_ROWS = 16384
POINTS = 240
Row = dict[str, float | None]
_MEAN, _LOW, _HIGH = range(3)


@dataclass(frozen=True)
class Grid:
    """Into which parts a range of steps is cut for drawing.

    Attributes:
        edges: ``[n + 1]`` first steps of the parts, and the step after the last.
        places: ``[n]`` where a part is drawn.
    """

    edges: NDArray[np.int64]
    places: NDArray[np.int64]

    @classmethod
    def over(cls, steps: NDArray[np.int64], points: int = POINTS) -> Grid:
        """One part per step, or ``points`` equal ones where there are more steps."""
        if len(steps) <= points:
            return cls(np.append(steps, steps[-1:] + 1), steps)
        edges = np.linspace(steps[0], steps[-1] + 1, points + 1).round().astype(np.int64)
        return cls(edges, edges[1:] - 1)


class MetricStore:
    """Reads ``metrics.jsonl`` as it grows.

    Beyond ``MAX_ROWS`` rows, neighbours are merged in pairs: their mean, least and largest value are kept, so no
    extreme is ever lost. A later line of the same step replaces it and what came after, as a resumed run wants it.

    Args:
        run: the run's folder.
        on_row: is given every (step, metrics) in order; ``on_restart`` is told that all of them are void.
    """

    def __init__(
        self,
        run: Path,
        on_row: Callable[[int, Mapping[str, float | None]], object] = lambda step, row: None,
        on_restart: Callable[[], object] = lambda: None,
        max_rows: int = MAX_ROWS,
    ) -> None:
        self._file = GrowingFile(run / METRICS_FILE)
        self._on_row, self._on_restart, self._max_rows = on_row, on_restart, max_rows
        self._clear()

    @property
    def names(self) -> list[str]:
        """In order of first appearance."""
        return list(self._columns)

    @property
    def steps(self) -> NDArray[np.int64]:
        """Last step of every row."""
        return self._steps[: self._rows]

    @property
    def memory(self) -> int:
        """Bytes that the columns hold."""
        return self._steps.nbytes + self._weights.nbytes + sum(c.nbytes for c in self._columns.values())

    @property
    def last(self) -> Mapping[str, float | None]:
        """The newest row."""
        return self._last

    def refresh(self, seconds: float = math.inf) -> bool:
        """Reads what has come since, for at most about ``seconds``; True if there is no more."""
        end = time.monotonic() + seconds
        while True:
            if self._file.restarted():
                self._clear()
                self._on_restart()
            lines = self._file.read()
            if not lines:
                return True
            self._take([row for _, line in lines if (row := _parse(line)) is not None])
            if time.monotonic() > end:
                return False

    def curve(self, name: str, grid: Grid) -> Curve:
        """The metric over the parts of ``grid``: means, with the extremes where a part has several values."""
        if name not in self._columns:
            return Curve((), ())
        mean, low, high = self._columns[name][:, : self._rows]
        part = np.searchsorted(grid.edges, self.steps, side="right") - 1
        known = np.isfinite(mean) & (part >= 0) & (part < len(grid.places))
        if not known.any():
            return Curve((), ())
        part, weight = part[known], self._weights[: self._rows][known].astype(np.float64)
        starts = np.flatnonzero(np.diff(part, prepend=-1))
        value = np.add.reduceat(weight * mean[known], starts) / np.add.reduceat(weight, starts)
        least, most = np.minimum.reduceat(low[known], starts), np.maximum.reduceat(high[known], starts)
        x = grid.places[part[starts]].tolist()
        if np.array_equal(least, most):
            return Curve(x, least.tolist())
        return Curve(x, value.tolist(), least.tolist(), most.tolist())

    def tail_mean(self, name: str, share: float = 0.1) -> float:
        """Mean over the last ``share`` of the rows that have the metric; NaN without one."""
        if name not in self._columns:
            return math.nan
        mean = self._columns[name][_MEAN, : self._rows]
        known = mean[np.isfinite(mean)]
        return float(known[-max(1, round(share * len(known))) :].mean()) if len(known) else math.nan

    def _clear(self) -> None:
        self._rows = 0
        self._last: Row = {}
        self._steps = np.zeros(1024, dtype=np.int64)
        self._weights = np.zeros(1024, dtype=np.int64)
        self._columns: dict[str, NDArray[np.float32]] = {}

    def _take(self, rows: Sequence[tuple[int, Row]]) -> None:
        """Adds rows in pieces of rising steps."""
        begin = 0
        for number in range(1, len(rows) + 1):
            if number == len(rows) or rows[number][0] <= rows[number - 1][0]:
                self._append(rows[begin:number])
                begin = number

    def _append(self, rows: Sequence[tuple[int, Row]]) -> None:
        if not rows:
            return
        self._rows = int(np.searchsorted(self.steps, rows[0][0]))
        start, self._rows = self._rows, self._rows + len(rows)
        self._grow()
        self._steps[start : self._rows] = [step for step, _ in rows]
        self._weights[start : self._rows] = 1
        names = dict.fromkeys(chain.from_iterable(row for _, row in rows))
        for name in names:
            if name not in self._columns:
                self._columns[name] = np.full((3, len(self._steps)), np.nan, dtype=np.float32)
        for name, column in self._columns.items():
            values = [row.get(name) for _, row in rows] if name in names else [None] * len(rows)
            column[:, start : self._rows] = np.array(values, dtype=np.float32)
        self._last = rows[-1][1]
        for step, row in rows:
            self._on_row(step, row)
        while self._rows > self._max_rows:
            self._halve()

    def _grow(self) -> None:
        size = len(self._steps)
        if self._rows <= size:
            return
        more = max(self._rows, 2 * size) - size
        self._steps, self._weights = (np.pad(a, (0, more)) for a in (self._steps, self._weights))
        self._columns = {
            name: np.pad(column, ((0, 0), (0, more)), constant_values=np.nan)
            for name, column in self._columns.items()
        }

    def _halve(self) -> None:
        """Merges rows in pairs; the newest of an odd number stays alone."""
        even = self._rows // 2 * 2
        rest = slice(even, self._rows)
        weights = self._weights[:even].reshape(-1, 2)
        for column in self._columns.values():
            pairs = column[:, :even].reshape(3, -1, 2)
            known = np.isfinite(pairs[_MEAN])
            weight = np.where(known, weights, 0)
            total = (weight * np.where(known, pairs[_MEAN], 0)).sum(1)
            mean = np.where(known.any(1), total / np.maximum(weight.sum(1), 1), np.nan)
            low, high = np.fmin.reduce(pairs[_LOW], axis=1), np.fmax.reduce(pairs[_HIGH], axis=1)
            merged = np.concatenate([np.stack([mean, low, high]), column[:, rest]], axis=1)
            column[:, : merged.shape[1]] = merged
        for array, pairs in (
            (self._steps, self._steps[:even].reshape(-1, 2).max(1)),
            (self._weights, weights.sum(1)),
        ):
            array[: len(pairs) + self._rows - even] = np.concatenate([pairs, array[rest]])
        self._rows = even // 2 + self._rows - even


@dataclass(frozen=True)
class StoreView:
    """A range of a store's steps, for the panels."""

    store: MetricStore
    grid: Grid
    held_out: frozenset[str] = frozenset()

    @property
    def names(self) -> Sequence[str]:
        return self.store.names

    def curve(self, name: str) -> Curve:
        return self.store.curve(name, self.grid)


def _parse(line: bytes) -> tuple[int, Row] | None:
    """(step, metrics) of a line; ``None`` for one that is damaged."""
    try:
        entry: Any = json.loads(line)
    except ValueError:
        return None
    step = entry.pop("step", None) if isinstance(entry, dict) else None
    if not isinstance(step, int):
        return None
    # Runs write numbers and null; anything else comes from elsewhere.
    if set(map(type, entry.values())) <= {float, int}:
        return step, entry
    return step, {
        n: v if isinstance(v, int | float) else None
        for n, v in entry.items()
        if not isinstance(v, list | dict)
    }
