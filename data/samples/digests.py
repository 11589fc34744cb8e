"""Digests of columns: the same for the same values, whatever file or type they come from; computed when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from l2d.data.cache import schema

ROWS_AT_ONCE = 1 << 18  # of a column that is hashed


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
    """Of a column's values and where they are missing, whatever width its numbers have; a few nanoseconds a cell."""
    kind, exact = column.dtype, None
    if kind.is_integer():
        exact = pl.UInt64 if kind == pl.UInt64 else pl.Int128 if kind == pl.Int128 else pl.Int64
    elif kind.is_float():
        exact = pl.Float64
    elif kind == pl.Boolean:
        exact = pl.Boolean
    elif kind == pl.Date:
        exact = pl.Date
    elif isinstance(kind, pl.Datetime | pl.Duration):
        exact = type(kind)("ns" if kind.time_unit == "ns" else "us")
    elif kind == pl.String or isinstance(kind, pl.Categorical | pl.Enum):
        exact = pl.String
    elif isinstance(kind, pl.List | pl.Array) and kind.inner.is_numeric():
        exact = pl.List(pl.Float64)
    elif kind == pl.List(pl.String):
        texts = column.explode(empty_as_null=False)
        return schema.digest([column_digest(column.list.len()), column_digest(texts)])
    if exact is None or exact == pl.Int128:
        return schema.ids_digest(["\0" if value is None else repr(value) for value in column.to_list()])[:16]
    if isinstance(kind, pl.Datetime) and kind.time_zone is not None:
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    state = hashlib.sha256(str(exact).encode())
    for start in range(0, len(column), ROWS_AT_ONCE):
        part = column.slice(start, ROWS_AT_ONCE).cast(exact)
        state.update(part.is_null().to_numpy().tobytes())
        part = part.drop_nulls()
        if exact == pl.String:
            state.update(part.str.len_bytes().to_numpy().tobytes())  # ("ab", "c") is not ("a", "bc")
            state.update("".join(part.to_list()).encode())
            continue
        if isinstance(exact, pl.List):
            state.update(part.list.len().to_numpy().tobytes())
            part = part.explode(empty_as_null=False).fill_null(float("nan"))
        values = part.to_physical().to_numpy()
        if values.dtype.kind == "f":
            values = np.where(np.isnan(values), np.nan, values)  # whatever bits a NaN has
        state.update(values.tobytes())
    return state.hexdigest()[:16]
