"""Columns of numbers as they lie in memory: without gaps, their median, and many of them as the rows of a matrix."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import polars as pl

Given = TypeVar("Given")
Made = TypeVar("Made")

ROWS_AT_ONCE = 1024  # that are turned from columns to rows: what a core's cache holds of 64 columns


def as_they_lie(column: pl.Series) -> np.ndarray | None:
    """A column of floating numbers without a gap, (n,), where all are finite; None of any other column.

    A view, unless the column lies in several pieces.
    """
    if column.dtype not in (pl.Float64, pl.Float32) or column.null_count():
        return None
    values = column.to_numpy()
    return values if np.isfinite(values).all() else None


def median_of(values: np.ndarray) -> float:
    """The median of finite float64 numbers (n,), with the bits that polars gives it, in less than half the time."""
    middle = len(values) // 2
    if len(values) % 2:
        found = float(np.partition(values, middle)[middle])
    else:
        lower, upper = np.partition(values, (middle - 1, middle))[middle - 1 : middle + 1]
        with np.errstate(over="ignore"):
            found = float(lower + (upper - lower) * 0.5)
    if found == 0 or not np.isfinite(found):  # which of two zeros it is hangs on how they were sorted
        again = pl.Series(values).median()
        assert isinstance(again, float)  # of numbers, one at least
        return again
    return found


def in_threads(make: Callable[[Given], Made], of: Iterable[Given], worth_it: bool = True) -> list[Made]:
    """What ``make`` makes of each, in order; the first that raises does, as in a loop.

    For work of numpy and polars on columns, during which other threads may run.

    Args:
        worth_it: whether each takes long enough for threads.
    """
    if not worth_it:
        return [make(one) for one in of]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(make, of))


def write_columns(matrix: np.ndarray, place: int, columns: Iterable[np.ndarray]) -> int:
    """Write columns, (n,) or (n, several), into a float32 matrix (n, width) from the column ``place`` on.

    Returns:
        The place behind them.
    """
    alone: list[np.ndarray] = []
    for values in columns:
        if values.ndim == 1:
            alone.append(values)
            continue
        place, alone = _side_by_side(matrix, place, alone), []
        matrix[:, place : place + values.shape[1]] = values
        place += values.shape[1]
    return _side_by_side(matrix, place, alone)


def _side_by_side(matrix: np.ndarray, place: int, columns: list[np.ndarray]) -> int:
    """Columns (n,): a row's numbers are written together, since each would cost a line of the processor's cache."""
    stop = place + len(columns)
    if not columns:
        return stop
    turned = np.empty((len(columns), ROWS_AT_ONCE + 16), np.float32)  # columns share no corner of the cache
    for start in range(0, len(matrix), ROWS_AT_ONCE):
        rows = matrix[start : start + ROWS_AT_ONCE, place:stop]
        for row, column in zip(turned, columns, strict=True):
            row[: len(rows)] = column[start : start + ROWS_AT_ONCE]
        rows[:] = turned[:, : len(rows)].T
    return stop
