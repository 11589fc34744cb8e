"""Files of recorded answers, each cell as it was written."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl

from l2d.cache_builder.agents._answer_folders import joined, read_parts
from l2d.data.errors import DataError, nearest
from l2d.data.samples import cells
from l2d.data.samples.cells import first_true
from l2d.data.sources.text_table import TEXT_FORMATS, read_header

ROW = "__row__"
MANY = 1 << 20  # rows, from which on numbers are held in as few bits as they need
TOGETHER = "/"  # between the parts of an id that several columns make together


@dataclass(frozen=True)
class Piece:
    """Rows of a table of answers that one file holds: from which row on, how many, and the totals that it states."""

    root: Path  # that was read: the file, or a folder that it lies in
    file: Path
    first: int
    rows: int
    stated: dict[str, float]


@dataclass(frozen=True)
class Content:
    """What a file held when it was read. Two are the same if their versions are, however the path is written: an import
    looks at a file by one path, and the recipe that it writes names it by another."""

    version: tuple
    path: Path = field(compare=False)


class AnswerFile:
    """A file of answers, or a folder of them, a row each. Empty cells and nulls are missing.

    Args:
        path: see :func:`l2d.cache_builder.agents._answer_folders.read_parts`.
        missing: texts that are missing answers too.

    Raises:
        DataError: there is no such file, it is of another kind, or it cannot be read.
    """

    def __init__(self, path: Path, missing: Sequence[str] = ()):
        self.path = path
        try:
            stat = path.stat()
        except (OSError, ValueError) as error:
            raise DataError("there is no such file", where=path, hint="check the path") from error
        changed = stat.st_mtime_ns if not path.is_dir() else max(f.stat().st_mtime_ns for f in [path, *path.rglob("*")])
        self._content = Content((path.resolve(), changed, stat.st_size, tuple(missing)), path)
        self.table, self._pieces = _read(self._content)

    @property
    def columns(self) -> list[str]:
        return [name for name in self.table.columns if name != ROW]

    def need(self, column: str, key: str) -> str:
        """The column's name, if there is one of it.

        Args:
            key: of the recipe that names it, for messages.
        """
        if column not in self.table.columns or column == ROW:
            raise DataError(
                f"{key} = {column!r}: there is no such column",
                where=self.path,
                hint=nearest(column, self.columns, "it has"),
            )
        return column

    def together(self, columns: Sequence[str]) -> str:
        """The name of a column of ids that several columns make together, ``case7/FFDM``; null where one is empty."""
        name = TOGETHER.join(columns)
        if name not in self.table.columns:
            self.table = self.table.with_columns(together(self.table.select(self.need(one, "id") for one in columns)))
        return name

    def where(self, row: int) -> str:
        """A row of a file as people find it: in a CSV the header is row 1, elsewhere the first answer is."""
        piece = self._pieces[bisect_right([piece.first for piece in self._pieces], row) - 1]
        header = piece.file.suffix.lower() in (".csv", ".tsv")
        return f"{self._called(piece)}, row {row - piece.first + (2 if header else 1)}"

    def _called(self, piece: Piece) -> Path:
        """A piece's file as seen from this one's path, however the one was written that it was read by."""
        inside = piece.file.relative_to(piece.root)
        return self.path / inside if inside.parts else self.path

    def stating(self) -> list[tuple[Piece, pl.DataFrame]]:
        """Files that state totals beside their rows, each with its rows."""
        stating = [replace(piece, root=self.path, file=self._called(piece)) for piece in self._pieces if piece.stated]
        return [(piece, self.table.slice(piece.first, piece.rows)) for piece in stating]

    def text(self, column: str, rows: pl.DataFrame | None = None) -> pl.Series:
        """A column as text, null where nothing is written. Numbers without a fraction are written without one."""
        found = (self.table if rows is None else rows)[column]
        try:
            return as_text(found)
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{column} is of type {found.dtype}, not text", where=self.path) from error

    def numbers(self, column: str, rows: pl.DataFrame) -> np.ndarray:
        """A column as float64, NaN where nothing is written; ``true`` and ``false`` are 1 and 0.

        Raises:
            DataError: something else than a finite number is written; names file, row and value.
        """
        found = rows[column]
        if found.dtype == pl.String:
            notation = _notation(self._content, column)
            written = found.to_frame().select(pl.when(~pl.first().is_in(cells.MARKERS)).then(pl.first())).to_series()
            values = (
                cells.as_truth(written).cast(pl.Float64) if notation is None else cells.as_numbers(written, notation)
            )
        elif found.dtype.is_numeric() or found.dtype == pl.Boolean:
            written = values = found.cast(pl.Float64)
        else:
            written, values = found, pl.Series([None] * len(found), dtype=pl.Float64)
        wrong = written.is_not_null() & ~values.is_finite().fill_null(False)
        if wrong.any():
            position = first_true(wrong)
            raise DataError(
                f"{column} is {found[position]!r}, which is not a finite number",
                where=self.where(rows[ROW][position]),
                hint="correct it, or leave the cell empty",
            )
        return values.fill_null(float("nan")).to_numpy()

    def markers(self, column: str, rows: pl.DataFrame) -> int:
        """Cells of a column of numbers that say in words that there is none."""
        found = rows[column]
        return int(found.is_in(cells.MARKERS).sum()) if found.dtype == pl.String else 0

    def values(self, column: str) -> list[str]:
        """The distinct values of a column, sorted.

        Raises:
            DataError: a row has none.
        """
        texts = self.text(column)
        if texts.null_count():
            raise DataError(
                f"{column} is empty", where=self.where(first_true(texts.is_null())), hint="say whose answer it is"
            )
        return sorted(texts.unique().to_list())


def together(columns: pl.DataFrame) -> pl.Series:
    """Columns as one of texts, called by their names."""
    texts = pl.DataFrame([as_text(column) for column in columns.iter_columns()])
    return texts.select(pl.concat_str(pl.all(), separator=TOGETHER).alias(TOGETHER.join(columns.columns))).to_series()


def as_text(column: pl.Series) -> pl.Series:
    """A column as text; 3.0 is ``3``, so that ids and classes survive a program that made floats of them."""
    if column.dtype == pl.String:
        return column
    if column.dtype.is_float():
        whole = column.drop_nulls()
        if ((whole == whole.round()) & (whole.abs() < 2**53)).all():
            return column.cast(pl.Int64).cast(pl.String)
    return column.cast(pl.String)


@lru_cache(maxsize=4)
def _read(content: Content) -> tuple[pl.DataFrame, list[Piece]]:
    """The table, blanks around text cut off, and :data:`ROW`; and what each file holds of it. Read once for all agents
    that share it."""
    path = content.path
    parts = read_parts(path)
    table = joined(path, parts)
    names = [name.strip() for name in table.columns]
    for position, name in enumerate(names):
        if name == ROW or name in names[:position]:
            what = f"has two columns {name!r}" if name != ROW else f"has a column {ROW!r}"
            raise DataError(what, where=path, hint="rename it" if name == ROW else "rename one")
    starts = np.cumsum([0, *(len(part.table) for part in parts)]).tolist()
    held = zip(parts, starts, strict=False)
    pieces = [Piece(path, part.file, first, len(part.table), part.stated) for part, first in held]
    columns = [column.alias(name) for column, name in zip(table.iter_columns(), names, strict=True)]
    missing = content.version[-1]
    trimmed = not missing and all(part.file.suffix.lower() in TEXT_FORMATS for part in parts)  # as they were read
    del parts, table, held
    for place, column in enumerate(columns if pieces and sum(piece.rows for piece in pieces) > MANY else ()):
        if column.dtype.is_integer():  # the values count, not how wide they are held
            columns[place] = column.shrink_dtype()
    table = pl.DataFrame(columns)
    texts = pl.col(pl.String).str.strip_chars()
    changed = [] if trimmed else [pl.when(~texts.is_in(["", *missing])).then(texts)]
    table = table.with_columns(table.select(pl.col(pl.Float32, pl.Float64).fill_nan(None), *changed).get_columns())
    return table.with_row_index(ROW), pieces


def let_go_of_files() -> None:
    """Hold no table any longer for agents that may share it: all have read what they need."""
    _read.cache_clear()
    _notation.cache_clear()


@lru_cache(maxsize=256)
def _notation(content: Content, column: str) -> str | None:
    """How a column of text writes its numbers; None where it writes truth values."""
    path = content.path
    semicolons = path.suffix.lower() == ".csv" and read_header(path).separator == ";"
    typed = cells.typed(_read(content)[0][column], separator=";" if semicolons else ",")
    return None if typed.values.dtype == pl.Boolean else typed.notation
