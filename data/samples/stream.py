"""A table file read batch by batch in bounded memory: the types and missing values of data.table, whatever its size."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from l2d.data.errors import DataError
from l2d.data.sources.table import MISSING

READ_BUFFER = 1 << 20  # bytes of a Parquet column that are read ahead; else it is read whole, row group by row group


class TableStream:
    """A Parquet or CSV file opened for reading from the first row to the last.

    Args:
        path: the file.
        types: column -> polars type that it had where it was seen before. A CSV file only shows values: text may look
            like a number in this file ("007"), and a number may be missing in every row of it.
        text: columns without such a type that are text in a CSV file, whatever their values look like: ids.

    Attributes:
        schema: column -> type in this file.
        rows: how many there are, or None where the whole file would have to be read to know.

    Raises:
        DataError: there is no such file, it is of another format or damaged, or a column is not of the type it had.
    """

    def __init__(self, path: Path, types: Mapping[str, str], text: Collection[str] = ()):
        self.path = path
        self.is_csv = path.suffix.lower() == ".csv"
        if path.suffix.lower() not in (".parquet", ".csv"):
            raise DataError("is neither .parquet nor .csv", where=path, hint="convert the table to one of them")
        if not path.is_file():
            raise DataError("there is no such file", where=path, hint="give a Parquet or CSV file, or a cost cache")
        self.rows: int | None = None
        with self._naming():
            if self.is_csv:
                found = pl.scan_csv(path, infer_schema_length=None, null_values=MISSING).collect_schema()
                then = {**dict.fromkeys(text, "String"), **types}
                self.schema = {name: _csv_type(found[name], then.get(name)) for name in found}
            else:
                with pq.ParquetFile(path) as file:
                    self.rows = file.metadata.num_rows
                    found = pl.from_arrow(file.schema_arrow.empty_table()).schema
                self.schema = {name: _parquet_type(found[name], types.get(name)) for name in found}
        for name, then in types.items():
            now = self.schema.get(name, pl.Null)
            if now != pl.Null and _group(str(now)) != _group(then):
                raise DataError(
                    f"column {name!r} is of type {now}, it was {then} where the rejector was trained",
                    where=path,
                    hint="convert the column",
                )

    def frames(self, columns: list[str], rows_at_once: int) -> Iterator[pl.DataFrame]:
        """These columns, of the types in :attr:`schema`, in order of the rows.

        Raises:
            DataError: the file is damaged, or a value is not of its column's type.
        """
        batches = self._csv_frames if self.is_csv else self._parquet_frames
        with self._naming():
            yield from batches(columns, rows_at_once)

    def _csv_frames(self, columns: list[str], rows_at_once: int) -> Iterator[pl.DataFrame]:
        lazy = pl.scan_csv(self.path, schema=self.schema, null_values=MISSING).select(columns)
        for frame in lazy.collect_batches(chunk_size=rows_at_once, maintain_order=True, lazy=True):
            yield from frame.iter_slices(rows_at_once)

    def _parquet_frames(self, columns: list[str], rows_at_once: int) -> Iterator[pl.DataFrame]:
        with pq.ParquetFile(self.path, buffer_size=READ_BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=rows_at_once, columns=columns):
                yield pl.from_arrow(pa.Table.from_batches([batch])).cast({name: self.schema[name] for name in columns})

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Whatever a reader raises becomes a :class:`DataError` with the file's name."""
        try:
            yield
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError) as error:
            raise DataError(
                f"cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}",
                where=self.path,
                hint="is it a whole file of that format, and each value of its column's type?",
            ) from error


def _csv_type(found: pl.DataType, then: str | None) -> pl.DataType | type[pl.DataType]:
    """The type to read a CSV column as: what its values look like, unless that cannot be what they were before."""
    if then is None or _group(str(found)) == _group(then):
        return found
    if _group(then) == "text":
        return pl.String
    return _of_nothing(then) if found == pl.String else found  # no value at all, or one that will be refused


def _parquet_type(found: pl.DataType, then: str | None) -> pl.DataType | type[pl.DataType]:
    """The type to have a Parquet column in: its own, unless it has none because it holds nothing but nulls."""
    return _of_nothing(then) if found == pl.Null and then is not None else found


def _of_nothing(then: str) -> type[pl.DataType]:
    """A type in which nulls take part in expressions as they would in the type a column had."""
    return pl.Boolean if then == "Boolean" else {"number": pl.Float64, "text": pl.String}.get(_group(then), pl.Null)


def _group(kind: str) -> str:
    """Types that an expression may well be handed in place of each other."""
    kind = kind.partition("(")[0]
    if kind.startswith(("Int", "UInt", "Float", "Decimal", "Boolean")):
        return "number"
    return "text" if kind in ("String", "Categorical", "Enum") else kind
