"""A Parquet file as a table that is never held whole: columns are read when they are looked at, rows in their order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar, cast, overload

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from l2d.data.errors import DataError

WORTH_IT = 64 << 20  # bytes in memory, from which on a table is not held
CELL = 8  # bytes that a cell takes, about
GLANCE = 10  # first rows that are kept at hand: as many as l2d.data.samples.columns looks at first
READ_BUFFER = 1 << 20  # bytes of a column that are read ahead; else it is read whole, row group by row group

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
        """Whether it is large, and both libraries that read it, of columns and of rows, give its columns one type."""
        if self.height * len(self.columns) * CELL < WORTH_IT:
            return False
        with pq.ParquetFile(self.path) as file:
            by_rows = self._read(lambda: pl.DataFrame(pl.from_arrow(file.schema_arrow.empty_table())))
        return by_rows.schema == self.schema

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

    def frames(self, names: Sequence[str], rows_at_once: int, start: int = 0) -> Iterator[pl.DataFrame]:
        """Some columns from a row on, that many rows at once, in order. Row groups before that row are not read."""
        batches = self._batches(names, rows_at_once, start)
        waiting: list[pl.DataFrame] = []
        while (frame := self._read(lambda: next(batches, None))) is not None:
            waiting.append(frame)
            if sum(map(len, waiting)) >= rows_at_once:
                whole = pl.concat(waiting) if len(waiting) > 1 else waiting[0]
                yield whole[:rows_at_once]
                waiting = [whole[rows_at_once:]] if len(whole) > rows_at_once else []
        if waiting:
            yield pl.concat(waiting)

    def _batches(self, names: Sequence[str], rows_at_once: int, start: int) -> Iterator[pl.DataFrame]:
        with pq.ParquetFile(self.path, buffer_size=READ_BUFFER, pre_buffer=False) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            first = 0
            while first < len(sizes) and start >= sizes[first]:
                start -= sizes[first]
                first += 1
            groups = range(first, len(sizes))
            for batch in file.iter_batches(rows_at_once, row_groups=groups, columns=list(names)) if groups else ():
                frame, start = cast(pl.DataFrame, pl.from_arrow(batch))[start:], max(0, start - len(batch))
                if len(frame):
                    yield frame.select(names)

    def __reduce__(self) -> tuple:
        return pl.DataFrame, (self.select(self.columns).get_columns(),)  # where it is sent the file need not be

    def _read(self, read: Callable[[], Found]) -> Found:
        try:
            found = read()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError) as error:
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
