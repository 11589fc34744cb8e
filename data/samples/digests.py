"""Digests of columns: the same for the same values, whatever file or type they come from; computed when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from l2d.data.cache import schema


class Lazy(Mapping[str, Any]):
    """Values by name, each worked out when it is first asked for and then kept."""

    def __init__(self, makers: dict[str, Callable[[], Any]]):
        self._makers = makers
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def column_digest(column: pl.Series) -> str:
    """SHA-256 of a column's values, first 16 hex digits. A whole number is the same in 8 and in 64 bits, a null is not
    NaN, and the order counts."""
    column = column.rechunk()
    kind = column.dtype
    null = column.is_null()
    if kind.is_integer() and kind not in (pl.UInt64, pl.Int128, pl.UInt128):
        values = column.cast(pl.Int64).fill_null(0).to_numpy()
        return _sha("whole", values, null)
    if kind in (pl.Float32, pl.Float64):
        values = column.cast(pl.Float64).fill_null(0.0).to_numpy()
        values = np.where(np.isnan(values), np.nan, values)  # one of the many forms of it
        return _sha("real", values, null)
    if kind == pl.Boolean:
        return _sha("truth", column.fill_null(False).to_numpy(), null)
    if kind == pl.String:
        return _sha("text", schema.ids_bytes(column.fill_null("")), null)
    texts = pl.Series([None if value is None else repr(value) for value in column.to_list()], dtype=pl.String)
    return _sha("other", schema.ids_bytes(texts.fill_null("")), null)


def _sha(what: str, values: np.ndarray, null: pl.Series) -> str:
    state = hashlib.sha256(f"{what} {len(null)} ".encode())
    state.update(np.ascontiguousarray(values).view(np.uint8))
    if null.any():
        state.update(np.packbits(null.to_numpy()))
    return state.hexdigest()[:16]
