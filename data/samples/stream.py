"""A table file read batch by batch in bounded memory, its cells by the rules of the whole table that it is like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from l2d.data.errors import DataError
from l2d.data.samples import cells
from l2d.data.sources.text_table import Missing, cleared, markers_of, missing_by_column, read_header, require_readable

READ_BUFFER = 1 << 20  # bytes of a Parquet column that are read ahead; else it is read whole, row group by row group


class FileStream:
    """A Parquet or text file opened for reading from the first row to the last.

    Args:
        path: the file.
        types: column -> polars type that it had where it was seen before. A text file only shows values: text may look
            like a number in this file ("007"), and a number may be missing in every row of it. Its other columns are
            text.
        notations: column -> how its numbers were written, see :mod:`l2d.data.samples.cells`.
        missing: what was missing there, see :func:`l2d.data.sources.text_table.read_table`.

    Attributes:
        schema: column -> type in this file.
        rows: how many there are, or None where the whole file would have to be read to know.

    Raises:
        DataError: there is no such file, it is of another format or damaged, or a column is not of the type it had.
    """

    def __init__(
        self,
        path: Path,
        types: Mapping[str, str],
        *,
        notations: Mapping[str, str] | None = None,
        missing: Missing = None,
    ):
        self.path = path
        require_readable(path, hint="give a Parquet or CSV file, or a cost cache")
        self.is_csv = path.suffix.lower() != ".parquet"
        self.types, self.notations, self.missing = dict(types), dict(notations or {}), missing
        self.rows: int | None = None
        with self._naming():
            if self.is_csv:
                self.header = read_header(path)
                self.schema = {name: _csv_type(types.get(name)) for name in self.header.names}
            else:
                with pq.ParquetFile(path) as file:
                    self.rows = file.metadata.num_rows
                    found = pl.from_arrow(file.schema_arrow.empty_table()).schema
                self.schema = {name: _parquet_type(found[name], types.get(name)) for name in found}
        for name, then in types.items():
            now = self.schema.get(name, pl.Null)
            if now != pl.Null and not self.is_csv and _group(str(now)) != _group(then):
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
        with self._naming(), closing(_one_ahead(batches(columns, rows_at_once))) as found:
            yield from found

    def _csv_frames(self, columns: list[str], rows_at_once: int) -> Iterator[pl.DataFrame]:
        """Columns of plain numbers are read as such, until polars meets another cell: from there on all is text."""
        kinds = {name: self._plain_type(name) for name in columns}
        numbers = {name: kind for name, kind in kinds.items() if kind is not None}
        first_row = 0
        with suppress(pl.exceptions.PolarsError):
            for frame in self._csv_batches(columns, rows_at_once, numbers) if numbers else ():
                yield pl.DataFrame(
                    [c if c.name in numbers else self._typed(c, first_row) for c in frame.iter_columns()]
                )
                first_row += frame.height
            if numbers:
                return
        for frame in self._csv_batches(columns, rows_at_once, {}, first_row):
            yield pl.DataFrame([self._typed(column, first_row) for column in frame.iter_columns()])
            first_row += frame.height

    def _csv_batches(
        self, columns: list[str], rows_at_once: int, numbers: dict[str, type[pl.DataType]], first_row: int = 0
    ) -> Iterator[pl.DataFrame]:
        """Cells as they are written, null where one is empty; those of ``numbers`` as numbers of a type."""
        options = {"separator": self.header.separator}
        raw = pl.read_csv(self.path, n_rows=0, infer_schema=False, **options).columns
        named = dict(zip(self.header.names, raw, strict=True))
        kinds = {named[name]: kind for name, kind in numbers.items()}
        lazy = pl.scan_csv(self.path, infer_schema=False, schema_overrides=kinds, **options)
        lazy = lazy.select(pl.col(named[name]).alias(name) for name in columns).slice(first_row)
        for frame in lazy.collect_batches(chunk_size=rows_at_once, maintain_order=True, lazy=True):
            yield from frame.iter_slices(rows_at_once)

    def _typed(self, column: pl.Series, first_row: int) -> pl.Series:
        """A column of a text file as the type that it had before."""
        name, then = column.name, self.types.get(column.name, "String")
        plain = self._plain_numbers(column)
        if plain is not None:
            return plain
        text = cells.trimmed(column, missing_by_column(self.missing)(name))
        markers = markers_of(self.missing, name)
        notation = self.notations.get(name, cells.PLAIN)
        found = cells.of_type(text, then, notation, markers)
        strange = found.is_null() & text.is_not_null() & (~text.is_in(markers) if _group(then) == "number" else True)
        if strange.any():
            row = int(strange.arg_max() or 0)
            written = f", written like {notation}" if notation != cells.PLAIN else ""
            raise DataError(
                f"{name!r} of row {first_row + row} is {text[row]!r}, it was of type {then}{written} where the "
                "rejector was trained",
                where=self.path,
                hint="correct it, or leave the cell empty",
            )
        return found.cast(self.schema[name]) if found.dtype == pl.Null else found

    def _plain_numbers(self, column: pl.Series) -> pl.Series | None:
        """A column of which every cell is a plain number of its type: most are, and need no second look."""
        kind = self._plain_type(column.name)
        if kind is None:
            return None
        numbers = column.cast(kind, strict=False)
        return numbers if numbers.null_count() == column.null_count() else None

    def _plain_type(self, name: str) -> type[pl.DataType] | None:
        """Of a column of numbers that were written plainly, none of them a mark of what is missing; else None."""
        then = self.types.get(name, "String")
        if missing_by_column(self.missing)(name) or self.notations.get(name, cells.PLAIN) != cells.PLAIN:
            return None
        return pl.Float64 if then.startswith("Float") else pl.Int64 if then.startswith(("Int", "UInt")) else None

    def _parquet_frames(self, columns: list[str], rows_at_once: int) -> Iterator[pl.DataFrame]:
        with pq.ParquetFile(self.path, buffer_size=READ_BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=rows_at_once, columns=columns):
                frame = pl.from_arrow(pa.Table.from_batches([batch])).cast(
                    {name: self.schema[name] for name in columns}
                )
                yield cleared(frame, self.missing)

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


def _one_ahead(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same; while one is at work the next is read, in a thread."""
    with ThreadPoolExecutor(1) as reader:
        waiting = reader.submit(next, frames, None)
        while (frame := waiting.result()) is not None:
            waiting = reader.submit(next, frames, None)
            yield frame


def _csv_type(then: str | None) -> pl.DataType | type[pl.DataType]:
    """The type to read a column of text as: what it was before; text where that is not known."""
    if then is None:
        return pl.String
    known = {"Date": pl.Date, "Datetime": pl.Datetime("us"), "List": pl.List(pl.Float64), "Array": pl.List(pl.Float64)}
    base = then.partition("(")[0]
    if base in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"):
        return pl.Int64
    return known.get(base, _of_nothing(then))


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
