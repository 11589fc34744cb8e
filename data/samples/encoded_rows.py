"""Features of a table: in memory, or of a large file encoded anew as its rows are looked at."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl

from l2d.data.samples.column_file import ColumnFile, Table, held
from l2d.data.samples.encoded_columns import EncodedColumns, columns_of_features
from l2d.data.samples.expressions import columns_of
from l2d.data.samples.features import ROWS_AT_ONCE, FeatureEncoder
from l2d.data.samples.text import TextSettings

HELD = 384 << 20  # bytes of 32-bit numbers, up to which a file's features are held
NUMBER = np.dtype(np.float32).itemsize
BLOCK = 16_384  # rows that are read and encoded at once
THREADS = 2  # that encode, while the next rows are read


class EncodedRows:
    """Features of the rows of a file, float32 (n, width), of which a few blocks at a time are in memory.

    All are encoded once at first, so that each is known to be finite. Rows in their order are cheap; others are looked
    for from the row group on that they lie in.

    Attributes:
        digest: SHA-256 of the matrix, as hexadecimal text.

    Raises:
        DataError: as :meth:`l2d.data.samples.features.FeatureEncoder.transform`; later, that the file has changed.
    """

    def __init__(self, encoder: FeatureEncoder, file: ColumnFile):
        self._encoder, self._file = encoder, file
        self.shape = len(file), len(encoder.names)
        self._lock = threading.Lock()  # of what stands below
        self._block, self._start = np.empty((0, self.shape[1]), np.float32), 0
        self._blocks: Iterator[np.ndarray] | None = None  # those behind it
        state = hashlib.sha256()
        for block in blocks_of(encoder, file):
            state.update(block.data)
        self.digest = state.hexdigest()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        found = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        at = start
        with self._lock:
            while at < stop:
                if not self._start <= at < self._start + len(self._block):
                    self._turn_to(at)
                part = self._block[at - self._start : stop - self._start]
                found[at - start : at - start + len(part)] = part
                at += len(part)
        return found

    def _turn_to(self, row: int) -> None:
        """Have the block that begins with a row."""
        if self._blocks is None or row != self._start + len(self._block):
            self._blocks = blocks_of(self._encoder, self._file, row)
        self._block, self._start = next(self._blocks), row

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __reduce__(self) -> tuple:
        return np.asarray, (self[:],)  # where it is sent the file need not be


def fitted_and_encoded(
    table: Table,
    expressions: list[str],
    *,
    rows: np.ndarray,
    text: Mapping[str, TextSettings],
    reading: Mapping[str, Any],
) -> tuple[FeatureEncoder, np.ndarray | EncodedColumns | EncodedRows]:
    """An encoder fitted on training rows, and the features of all rows.

    Args:
        table, expressions, rows, text, reading: as for :meth:`l2d.data.samples.features.FeatureEncoder.fit`. A table
            that is not held has no text among its features.

    Raises:
        DataError: as :meth:`FeatureEncoder.fit` and :meth:`FeatureEncoder.transform`.
    """
    if text or len(table) <= ROWS_AT_ONCE:
        whole = held(table)
        encoder = FeatureEncoder.fit(whole, expressions, rows=rows, text=text, reading=reading)
        return encoder, encoder.transform(whole)
    if isinstance(table, pl.DataFrame) or len(table) * len(expressions) * NUMBER <= HELD:
        return columns_of_features(table, expressions, rows, reading)
    encoder = FeatureEncoder.fit(table, expressions, rows=rows, reading=reading)
    return encoder, EncodedRows(encoder, table)


def blocks_of(encoder: FeatureEncoder, file: ColumnFile, start: int = 0) -> Iterator[np.ndarray]:
    """Features of a file's rows from one on, block by block, two of which are encoded while the next rows are read."""
    columns = list(dict.fromkeys(name for feature in encoder.features for name in columns_of(feature.expression)))
    with ThreadPoolExecutor(THREADS, thread_name_prefix="encoding") as pool:
        under_way: deque[Future[np.ndarray]] = deque()
        for frame in file.frames(columns or file.columns[:1], BLOCK, start):
            under_way.append(pool.submit(encoder.transform, frame, start))
            start += len(frame)
            if len(under_way) > THREADS:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
