"""Features held column by column, 32 bits a number, from which rows are put together as they are looked at."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from l2d.data.samples.column_file import Table, held
from l2d.data.samples.features import ROWS_AT_ONCE, Feature, FeatureEncoder, encoded_columns
from l2d.data.samples.numbers import write_columns
from l2d.data.samples.scratch import Scratch, ScratchColumn
from l2d.data.samples.text import TextSettings

HELD = 128 << 20  # bytes of features, and of a table that is held, in memory; what comes then lies in a file
BESIDE = 16  # bytes of that which each row takes away, since its id, split and answers are held too
BLOCK = 16 << 20  # bytes of rows that are put together at once for their digest


class EncodedColumns:
    """Features of n samples, float32 (n, width), held as columns, truth values as such.

    Attributes:
        shape: of the matrix.
    """

    def __init__(self, rows: int, columns: list[np.ndarray | ScratchColumn]):
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
        """SHA-256 of the matrix, as hexadecimal text. Rows are put together while those before them are hashed."""
        state, step = hashlib.sha256(), max(1, BLOCK // (4 * max(1, self.shape[1])))
        with ThreadPoolExecutor(1, thread_name_prefix="rows") as pool:
            coming = pool.submit(self.__getitem__, slice(0, step))
            for start in range(0, len(self), step):
                block, coming = coming.result(), pool.submit(self.__getitem__, slice(start + step, start + 2 * step))
                state.update(block.data)
        return state.hexdigest()


def fitted_and_encoded(
    table: Table,
    expressions: list[str],
    *,
    rows: np.ndarray,
    text: Mapping[str, TextSettings],
    reading: Mapping[str, Any],
) -> tuple[FeatureEncoder, np.ndarray | EncodedColumns]:
    """An encoder fitted on training rows, and the features of all rows.

    Args:
        table, expressions, rows, text, reading: as for :meth:`l2d.data.samples.features.FeatureEncoder.fit`. A table
            that is not held has no text among its features.

    Raises:
        DataError: as :meth:`FeatureEncoder.fit` and :meth:`FeatureEncoder.transform`; there is no room for a file.
    """
    if text or len(table) <= ROWS_AT_ONCE:
        whole = held(table)
        encoder = FeatureEncoder.fit(whole, expressions, rows=rows, text=text, reading=reading)
        return encoder, encoder.transform(whole)
    return columns_of_features(table, expressions, rows, reading)


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
    found: dict[int, list[np.ndarray | ScratchColumn]] = {}
    wrong: dict[int, tuple[int, int]] = {}  # feature -> first row that does not fit, and which of its columns
    lock, scratch = threading.Lock(), None
    room = HELD - BESIDE * len(table) - (int(table.estimated_size()) if isinstance(table, pl.DataFrame) else 0)

    def kept(columns: list[np.ndarray]) -> list[np.ndarray | ScratchColumn]:
        nonlocal room, scratch
        with lock:
            room -= sum(column.nbytes for column in columns)
            if room >= 0:
                # of a view what it is a view of would be held
                return [column if column.base is None else column.copy() for column in columns]
            scratch = scratch or Scratch()
        return [scratch.put(column) for column in columns]

    def encode(position: int, feature: Feature, part: pl.DataFrame) -> None:
        columns = []
        for values in encoded_columns(part, feature, 0):
            with np.errstate(over="ignore"):  # refused below
                columns.append(np.ascontiguousarray(values, dtype=None if values.dtype == bool else np.float32))
        bad, encoded = _first_not_finite(columns), kept(columns)
        with lock:
            found[position] = encoded
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
