"""Arrow columns of the cache as numpy arrays, and back. A recorded failure is null in the file and 0 in an array."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from l2d.data.cache import schema


def dense_array(values: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """A float matrix (n, width) as a fixed-width list column, null in the rows of ``missing`` (bool, (n,))."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    mask = None if missing is None else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(flat, type=schema.dense(values.shape[1]), mask=mask)


def dense_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Inverse of :func:`dense_array`: float32 (n, width), a view of the column where nothing is missing."""
    array = column.combine_chunks()
    width = array.type.list_size
    flat = array.values.slice(array.offset * width, len(array) * width)
    return numbers(flat).reshape(-1, width)


def numbers(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A number column as an array, a view where nothing is missing."""
    return (column.fill_null(0) if column.null_count else column).to_numpy()
