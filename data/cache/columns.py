"""Arrow columns of the cache as numpy arrays, and back. A recorded failure is null in the file and 0 in an array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from l2d.data.cache import schema

if TYPE_CHECKING:
    import polars as pl

LARGEST_TEXT = (1 << 31) - 1  # bytes of a column of text whose offsets have 32 bits

#: Types whose values are an array as they lie. ``to_numpy`` would import pandas wherever it is installed.
NUMBERS = {
    pa.int8(): "i1", pa.int16(): "<i2", pa.int32(): "<i4", pa.int64(): "<i8",
    pa.float32(): "<f4", pa.float64(): "<f8",
}  # fmt: skip


def dense_array(values: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """A float matrix (n, width) as a fixed-width list column, null in the rows of ``missing`` (bool, (n,))."""
    flat = number_column(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    mask = None if missing is None else truth_column(missing)
    return pa.FixedSizeListArray.from_arrays(flat, type=schema.dense(values.shape[1]), mask=mask)


def dense_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Inverse of :func:`dense_array`: float32 (n, width), a view of the column where nothing is missing."""
    array = column.combine_chunks()
    width = array.type.list_size
    flat = array.values.slice(array.offset * width, len(array) * width)
    return numbers(flat).reshape(-1, width)


def numbers(column: pa.Array | pa.ChunkedArray, missing: float = 0) -> np.ndarray:
    """A number column as an array, a view where nothing is missing; a number of its type stands for what is."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = NUMBERS.get(array.type)
    if kind is None:
        return (array.fill_null(missing) if array.null_count else array).to_numpy(zero_copy_only=False)
    if not len(array):
        return np.empty(0, kind)
    values = np.frombuffer(array.buffers()[1], kind, len(array), array.offset * array.type.bit_width // 8)
    return np.where(gaps(array), np.array(missing, kind), values) if array.null_count else values


def gaps(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Where a column of any type has no value, bool (n,). ``is_null().to_numpy()`` would import pandas."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if array.null_count in (0, len(array)):
        return np.full(len(array), array.null_count > 0)
    valid = np.frombuffer(array.buffers()[0], np.uint8)
    return np.unpackbits(valid, count=array.offset + len(array), bitorder="little")[array.offset :] == 0


def number_column(values: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """Numbers of a type in :data:`NUMBERS` as a column, null in the rows of ``missing`` (bool, (n,)).

    As ``pa.array`` makes it, which imports pandas wherever it is installed.
    """
    kind = next(kind for kind, name in NUMBERS.items() if np.dtype(name) == values.dtype)
    return pa.Array.from_buffers(kind, len(values), [_valid(missing), pa.py_buffer(np.ascontiguousarray(values))])


def truth_column(values: np.ndarray) -> pa.Array:
    """Truth values, bool (n,), as a column, made likewise."""
    bits = pa.py_buffer(np.packbits(values, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, bits])


def split_positions(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Position in :data:`l2d.data.cache.schema.SPLITS` of each split named, (n,).

    Told by the lengths of the names, which differ: a list of texts takes 30 times as long.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(array):
        return np.empty(0, np.int64)
    lengths = np.diff(np.frombuffer(array.buffers()[1], "<i4")[array.offset : array.offset + len(array) + 1])
    places = np.zeros(max(map(len, schema.SPLITS)) + 2, np.int64)  # the last: of what is longer
    places[[len(name) for name in schema.SPLITS]] = range(len(schema.SPLITS))
    return places.take(lengths, mode="clip")


def texts_column(values: list[str] | list[str | None]) -> pa.Array:
    """Texts, None where one is missing, as a column, made likewise."""
    texts: list[Any] = values
    if texts.count(None) == len(texts):
        return pa.nulls(len(values), pa.string())
    import polars as pl  # here, since what reads a cache has no use for it

    return text_of_series(pl.Series(values, dtype=pl.String))


def text_values(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A column of texts, or of lists of texts, as an array of objects (n,), None where one is missing."""
    return np.fromiter(column.to_pylist(), dtype=object, count=len(column))


def text_of_series(series: pl.Series) -> pa.Array:
    """A polars column of text as Arrow's with offsets of 32 bits. Arrow's own cast would import its compute functions.

    Raises:
        ArrowInvalid: it holds more than 2 GiB.
    """
    import polars as pl

    array = series.to_arrow(compat_level=pl.CompatLevel.oldest())
    valid, offsets, data = array.buffers()
    if array.offset or not len(array) or data is None or data.size > LARGEST_TEXT:
        return array.cast(pa.string())
    ends = np.frombuffer(offsets, "<i8")[: len(array) + 1].astype(np.int32)
    return pa.Array.from_buffers(pa.string(), len(array), [valid, pa.py_buffer(ends), data])


def text_column(names: list[str], codes: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """``names[code]`` of each code as a column of text, null likewise."""
    encoded = [name.encode() for name in names]
    lengths = np.array([len(name) for name in encoded], np.int64)[codes]
    if missing is not None:
        lengths = np.where(missing, 0, lengths)
        codes = codes[~missing]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    data = b"".join([encoded[code] for code in codes.tolist()])
    buffers = [_valid(missing), pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string(), len(lengths), buffers)


def _valid(missing: np.ndarray | None) -> pa.Buffer | None:
    if missing is None or not missing.any():
        return None
    return pa.py_buffer(np.packbits(~missing, bitorder="little"))
