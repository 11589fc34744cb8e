"""A Parquet file as a table that is never held whole: columns are read when they are looked at, rows in their order."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar, overload

import polars as pl

from l2d.data.errors import DataError

WORTH_IT = 64 << 20  # bytes in memory, from which on a table is not held
CELL = 8  # bytes that a cell takes, about
GLANCE = 10  # first rows that are kept at hand: as many as l2d.data.samples.columns looks at first

Found = TypeVar("Found")


class ColumnFile:
    """A Parquet file with the face of a table, as far as sources of samples look at one.

    Each look reads the file anew, so what is looked at twice is better kept. Reading column by column takes as long as
    reading the whole file.

    Raises:
        DataError: the file cannot be read; later, that it has changed since.
    """

    def __init__(self, path: Path):
        self.path = path
        self._stamp = _stamp(path)
        self.schema = self._read(lambda: pl.Schema(pl.read_parquet_schema(path)))
        self.height: int = self._read(lambda: pl.scan_parquet(path).select(pl.len()).collect().item())

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order."""
        return list(self.schema)

    def __contains__(self, name: str) -> bool:
        return name in self.schema

    def __len__(self) -> int:
        return self.height

    def is_empty(self) -> bool:
        """Whether there is no row."""
        return not self.height

    @overload
    def __getitem__(self, key: str) -> pl.Series: ...
    @overload
    def __getitem__(self, key: slice) -> pl.DataFrame: ...
    def __getitem__(self, key: str | slice) -> pl.Series | pl.DataFrame:
        """A column, or rows of all columns."""
        return self.select([key]).to_series() if isinstance(key, str) else self.rows(self.columns, key)

    def select(self, *names: str | Sequence[str]) -> pl.DataFrame:
        """Some columns, all rows."""
        wanted = [name for one in names for name in ([one] if isinstance(one, str) else one)]
        return self._read(lambda: pl.read_parquet(self.path, columns=wanted))

    def rows(self, names: Sequence[str], rows: slice) -> pl.DataFrame:
        """Some rows of some columns."""
        start, stop, _ = rows.indices(self.height)
        lazy = pl.scan_parquet(self.path).select(names).slice(start, max(0, stop - start))
        return self._read(lazy.collect)

    @property
    def is_worth_it(self) -> bool:
        """Whether it is large."""
        return self.height * len(self.columns) * CELL >= WORTH_IT

    @cached_property
    def first(self) -> pl.DataFrame:
        """The first rows of all columns."""
        return self._read(lambda: pl.read_parquet(self.path, n_rows=GLANCE))

    def lazy(self) -> pl.LazyFrame:
        """No row, for what needs the types of columns alone."""
        return pl.DataFrame(schema=self.schema).lazy()

    def looked_at_by(self, names: Sequence[str]) -> pl.DataFrame:
        """What an expression needs that looks at these columns: all rows, also where it looks at none.

        Where one is not there, no row of any, so that what is raised is that of a table.
        """
        if any(name not in self.schema for name in names):
            return pl.DataFrame(schema=self.schema)
        return self.select(list(names) or self.columns[:1])

    def __reduce__(self) -> tuple:
        return pl.DataFrame, (self.select(self.columns).get_columns(),)  # where it is sent the file need not be

    def _read(self, read: Callable[[], Found]) -> Found:
        try:
            found = read()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            what = f"cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}"
            raise DataError(what, where=self.path, hint="is it a whole file of that format?") from error
        if _stamp(self.path) != self._stamp:
            hint = "run the same command again, when nothing writes to it"
            raise DataError("has changed while it was read", where=self.path, hint=hint)
        return found


Table = pl.DataFrame | ColumnFile


def narrowed(table: Table, names: Sequence[str]) -> pl.DataFrame:
    """A table as an expression sees it that looks at these columns."""
    return table if isinstance(table, pl.DataFrame) else table.looked_at_by(names)


def held(table: Table) -> pl.DataFrame:
    """The whole table in memory."""
    return table if isinstance(table, pl.DataFrame) else table.select(table.columns)


def rows_of(table: Table, names: Sequence[str], rows: slice) -> pl.DataFrame:
    """Some rows of some columns."""
    return table.select(names)[rows] if isinstance(table, pl.DataFrame) else table.rows(names, rows)


def _stamp(path: Path) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns
