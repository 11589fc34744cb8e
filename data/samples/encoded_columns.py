"""Features held column by column, 32 bits a number, from which rows are put together as they are looked at."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from l2d.data.samples.column_file import Table
from l2d.data.samples.features import ROWS_AT_ONCE, Feature, FeatureEncoder, encoded_columns
from l2d.data.samples.numbers import write_columns


class EncodedColumns:
    """Features of n samples, float32 (n, width), held as columns, truth values as such.

    Attributes:
        shape: of the matrix.
    """

    def __init__(self, rows: int, columns: list[np.ndarray]):
        self._columns = columns  # (n,) or (n, several)
        self.shape = rows, sum(1 if one.ndim == 1 else one.shape[1] for one in columns)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        matrix = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        write_columns(matrix, 0, (column[start:stop] for column in self._columns))
        return matrix

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the matrix, as hexadecimal text."""
        state = hashlib.sha256()
        for start in range(0, len(self), ROWS_AT_ONCE):
            state.update(self[start : start + ROWS_AT_ONCE].data)
        return state.hexdigest()


def columns_of_features(
    table: Table, expressions: list[str], rows: np.ndarray, reading: Mapping[str, Any]
) -> tuple[FeatureEncoder, EncodedColumns]:
    """An encoder fitted on training rows, and the features of all rows, each column looked at once.

    Args:
        rows: the training rows, bool (n,).
        expressions, reading: as for :meth:`l2d.data.samples.features.FeatureEncoder.fit`.

    Raises:
        DataError: as :meth:`FeatureEncoder.fit` and :meth:`FeatureEncoder.transform`.
    """
    found: dict[int, list[np.ndarray]] = {}
    wrong: dict[int, tuple[int, int]] = {}  # feature -> first row that does not fit, and which of its columns
    lock = threading.Lock()

    def encode(position: int, feature: Feature, part: pl.DataFrame) -> None:
        columns = []
        for values in encoded_columns(part, feature, 0):
            with np.errstate(over="ignore"):  # refused below
                kept = values if values.dtype == bool else np.ascontiguousarray(values, dtype=np.float32)
            if kept.base is not None:
                kept = kept.copy()  # else what it is a view of would be held
            columns.append(kept)
        bad = _first_not_finite(columns)
        with lock:
            found[position] = columns
            if bad is not None:
                wrong[position] = bad

    encoder = FeatureEncoder.fit(table, expressions, rows=rows, reading=reading, with_each=encode)
    if wrong:
        row, position = min((row, position) for position, (row, _) in wrong.items())
        before = sum(len(feature.columns()) for feature in encoder.features[:position])
        raise encoder.does_not_fit(row, before + wrong[position][1])
    return encoder, EncodedColumns(len(table), [one for position in sorted(found) for one in found[position]])


def _first_not_finite(columns: list[np.ndarray]) -> tuple[int, int] | None:
    """First row of one feature's columns with a number that is not finite, and which of the columns it is in."""
    found, place = [], 0
    for column in columns:
        if column.dtype != bool and not np.isfinite(column).all():
            row, *inside = np.argwhere(~np.isfinite(column))[0]
            found.append((int(row), place + int(inside[0] if inside else 0)))
        place += 1 if column.ndim == 1 else column.shape[1]
    return min(found, default=None)
