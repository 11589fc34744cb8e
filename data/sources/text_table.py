"""Reading tables of text and Parquet: separators, headers, missing cells and types, said where they are guessed."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from l2d.data.errors import DataError
from l2d.data.samples import cells
from l2d.data.samples.column_file import ColumnFile, Table

TEXT_FORMATS = (".csv", ".tsv")
FORMATS = (".parquet", *TEXT_FORMATS)
SEPARATORS = (",", ";", "\t", "|")

#: What the user says is missing: of every column, or column -> what. None where nothing is said.
Missing = Sequence[str] | Mapping[str, Sequence[str]] | None


@dataclass(frozen=True)
class Header:
    """How a text file is cut into columns.

    Attributes:
        separator: of cells.
        names: of columns, in order, each one different from the others.
        notes: what was made of names that were empty or there twice.
    """

    separator: str
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What a reader made of a file, for people and for reading another file in the same way.

    Attributes:
        separator: of cells; None of a Parquet file.
        notations: column -> how its numbers are written, where that is not plain.
        markers: column -> text that counts as missing -> in how many cells.
        types: column -> kind, of what is text in the file and was recognised as more than a plain number.
        notes: what else was read in a special way.
    """

    separator: str | None = None
    notations: dict[str, str] = field(default_factory=dict)
    markers: dict[str, dict[str, int]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self, missing: Missing) -> dict[str, Any]:
        """What reads another file in the same way, as plain values; empty where nothing is special."""
        found = {"notations": self.notations, "missing": missing}
        return {name: value for name, value in found.items() if value or (name == "missing" and value is not None)}

    def lines(self) -> list[str]:
        """What was read in a special way, in a few short lines."""
        found = list(self.notes)
        if self.separator not in (None, ","):
            found.append(f"cells are separated by {self.separator!r}")
        for notation in dict.fromkeys(self.notations.values()):
            columns = [name for name, how in self.notations.items() if how == notation]
            found.append(f"numbers written like {notation}: {', '.join(columns)}")
        if self.markers:
            counted = (
                f"{column} ({', '.join(f'{text!r} {count:,}' for text, count in texts.items())})"
                for column, texts in self.markers.items()
            )
            found.append(f"missing numbers: {', '.join(counted)}")
        for kind in dict.fromkeys(self.types.values()):
            found.append(f"read as {kind}: {', '.join(name for name, its in self.types.items() if its == kind)}")
        return found


def read_table(path: Path, *, text: Collection[str] = (), missing: Missing = None) -> tuple[pl.DataFrame, Reading]:
    """A whole Parquet or text file with the types that its cells show.

    In a text file blanks around a cell do not count, and an empty cell is missing; what else is missing ``missing``
    says. Where it says nothing of a column, :data:`l2d.data.samples.cells.MARKERS` are missing if all its other cells
    are numbers, which the reading tells. A Parquet file has types and nulls of its own; ``missing`` adds to these.

    Args:
        text: columns of a text file that are text whatever they look like: ids, where a leading zero counts.
        missing: what counts as missing.

    Raises:
        DataError: there is no such file, it is of another kind, or it cannot be read.
    """
    require_readable(path)
    stat = path.stat()
    # of a text file its own columns alone: whoever asks for others too asks for the same, and is not to read it again
    named = () if path.suffix.lower() == ".parquet" else tuple(sorted(set(text) & set(read_header(path).names)))
    version = (path.resolve(), stat.st_mtime_ns, stat.st_size, named, repr(missing))
    return _read(_Request(version, path, missing))


def open_table(path: Path, *, text: Collection[str] = (), missing: Missing = None) -> tuple[Table, Reading]:
    """:func:`read_table`, but a large Parquet file is not read before its columns are looked at.

    Raises:
        DataError: there is no such file, it is of another kind, or it cannot be read.
    """
    require_readable(path)
    if path.suffix.lower() == ".parquet" and not missing and (file := ColumnFile(path)).is_worth_it:
        return file, Reading()
    return read_table(path, text=text, missing=missing)


@dataclass(frozen=True)
class _Request:
    """What is read and how. Two are the same if their versions are, however the path is written."""

    version: tuple
    path: Path = field(compare=False)
    missing: Missing = field(compare=False)


@lru_cache(maxsize=1)  # an import looks at the table, and then builds from it
def _read(request: _Request) -> tuple[pl.DataFrame, Reading]:
    path, missing, text = request.path, request.missing, request.version[3]
    said = missing_by_column(missing)
    if path.suffix.lower() == ".parquet":
        frame = reading_errors(path, lambda: pl.read_parquet(path))
        return cleared(frame, missing), Reading()
    header = read_header(path)
    frame = reading_errors(path, lambda: _by_polars(path, header, text, missing))
    comma = header.separator == ";"  # and so may be the sign before decimals
    found = []
    for column in frame.iter_columns():
        if column.dtype != pl.String:
            found.append(cells.Typed(column))
        elif column.name in text:
            found.append(cells.Typed(cells.trimmed(column, said(column.name))))
        elif not comma and not said(column.name) and (numbers := cells.plain_numbers(column)) is not None:
            found.append(cells.Typed(numbers))
        else:
            column = cells.trimmed(column, said(column.name))
            markers = markers_of(missing, column.name)
            found.append(cells.typed(column, separator=header.separator, markers=markers))
    if comma and any(one.notation == cells.COMMA for one in found):  # then 1.234 is a thousand in other columns too
        again = ((cells.trimmed(frame[one.values.name], said(one.values.name)), one) for one in found)
        found = [
            cells.typed(column, markers=markers_of(missing, column.name), notations=(cells.COMMA, cells.PLAIN))
            if one.values.dtype == pl.Float64 and one.notation == cells.PLAIN
            else one
            for column, one in again
        ]
    reading = Reading(
        separator=header.separator,
        notations={one.values.name: one.notation for one in found if one.notation != cells.PLAIN},
        markers={one.values.name: one.markers for one in found if one.markers},
        types={one.values.name: kind for one in found if (kind := _kind(one.values.dtype)) is not None},
        notes=header.notes,
    )
    return pl.DataFrame([one.values for one in found]), reading


def let_go_of_table() -> None:
    """Hold the table that was read last no longer."""
    _read.cache_clear()


def read_text(path: Path) -> tuple[pl.DataFrame, Header]:
    """A whole text file, every cell as trimmed text; empty cells are null. For callers that bring types of their own.

    Raises:
        DataError: as :func:`read_table`.
    """
    require_readable(path)
    header = read_header(path)
    frame = reading_errors(path, lambda: pl.read_csv(path, infer_schema=False, separator=header.separator))
    frame.columns = list(header.names)
    return frame.select(cells.trimmed(column) for column in frame.iter_columns()), header


def read_header(path: Path) -> Header:
    """Separator and column names of a text file: the separator is what occurs most often in the first line.

    A column without a name gets one with its number, and columns of one name get their numbers behind it.

    Raises:
        DataError: the file is empty, not UTF-8, or has numbers where names should be.
    """

    def first() -> tuple[str, list[str]]:
        with open(path, encoding="utf-8-sig", newline="") as file:
            line = next((line for line in file if line.strip()), "")
        outside = "".join(line.split('"')[::2])
        separator = max(SEPARATORS, key=outside.count)
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=separator)
            return separator, next((row for row in rows if any(cell.strip() for cell in row)), [])

    separator, given = reading_errors(path, first)
    stripped = [name.strip() for name in given]
    if not stripped:
        raise DataError("is empty", where=path, hint="the first line has the columns' names")
    if all(_is_number(name) for name in stripped):
        raise DataError(
            f"the first line holds numbers, not names: {', '.join(stripped[:5])}",
            where=path,
            hint="put a line with the columns' names above it",
        )
    names, notes = [], []
    for position, name in enumerate(stripped, start=1):
        if not name:
            names.append(f"(column {position})")
            notes.append(f"column {position} has no name: it is called {names[-1]!r}")
        elif stripped.count(name) > 1:
            names.append(f"{name} (column {position})")
        else:
            names.append(name)
    for name in dict.fromkeys(name for name in stripped if name and stripped.count(name) > 1):
        called = [one for one, was in zip(names, stripped, strict=True) if was == name]
        notes.append(f"the header has {name!r} {len(called)} times: they are called {', '.join(map(repr, called))}")
    return Header(separator, tuple(names), tuple(notes))


def require_readable(path: Path, hint: str = "relative paths are relative to the recipe") -> None:
    """Raises :class:`DataError` with a hint unless there is a file of a format that is read here."""
    try:
        there, found = path.exists(), path.is_file()
    except OSError:  # the name is too long
        there = found = False
    if there and path.suffix.lower() not in FORMATS:
        raise DataError("is neither .parquet nor .csv", where=path, hint="convert the table to one of them")
    if not found:
        raise DataError("there is no such file", where=path, hint=hint)


def reading_errors(path: Path, read: Callable):
    """What ``read`` returns; what it raises about a damaged file becomes a :class:`DataError`."""
    try:
        return read()
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: {error.reason}", where=path, hint="save it as CSV UTF-8") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, csv.Error) as error:
        what = (str(error) or type(error).__name__).splitlines()[0]
        hint = "is it a whole file of that format?"
        if "utf-8" in what:
            hint = "save it as CSV UTF-8"
        elif "more fields" in what:
            hint = "a row has more cells than the header has names: quote cells that hold the separator"
        raise DataError(f"cannot be read: {what}", where=path, hint=hint) from error


def _by_polars(path: Path, header: Header, text: Collection[str], missing: Missing) -> pl.DataFrame:
    """A text file in types that the first rows show; where a later row is not of its type, all of it as text."""
    options = {"separator": header.separator}
    given = pl.read_csv(path, n_rows=0, infer_schema=False, **options).columns
    if len(given) != len(header.names):  # what polars takes for the header is another line
        raise DataError("the header cannot be told", where=path, hint="the first line has the columns' names")
    names = dict(zip(given, header.names, strict=True))
    by_column = missing if isinstance(missing, Mapping) else {}
    as_text = {raw: pl.String for raw, name in names.items() if name in text or name in by_column}
    if missing and not by_column:
        options["null_values"] = list(missing)
    try:
        if header.separator == ";":  # cells are needed as they are written
            raise pl.exceptions.ComputeError
        frame = pl.read_csv(path, infer_schema_length=cells.SAMPLE, schema_overrides=as_text, **options)
    except pl.exceptions.ComputeError:
        frame = pl.read_csv(path, infer_schema=False, **options)
    return frame.rename(names)


def missing_by_column(missing: Missing) -> Callable[[str], list[str]]:
    """What the user says is missing in a column, beside the empty cell."""
    if isinstance(missing, Mapping):
        return lambda column: list(missing.get(column, ()))
    return lambda column: list(missing or ())


def markers_of(missing: Missing, column: str) -> Sequence[str]:
    """What counts as missing among numbers of a column that the user has said nothing about."""
    said = column in missing if isinstance(missing, Mapping) else missing is not None
    return () if said else cells.MARKERS


def cleared(frame: pl.DataFrame, missing: Missing) -> pl.DataFrame:
    """A frame with types of its own, with null in the place of what the user says is missing, as text or as number."""
    said, changed = missing_by_column(missing), []
    for name, kind in frame.schema.items():
        texts = said(name)
        gone = [float(text) for text in texts if _is_number(text)] if kind.is_numeric() else texts
        if gone and (kind.is_numeric() or kind == pl.String):
            here = pl.col(name).cast(pl.Float64) if kind.is_numeric() else pl.col(name)
            changed.append(pl.when(~here.is_in(gone)).then(pl.col(name)).alias(name))
    return frame.with_columns(changed)


def _kind(kind: pl.DataType) -> str | None:
    """What to say of a type that text was recognised as; None of numbers and text."""
    if isinstance(kind, pl.List):
        return "lists of numbers"
    return "dates" if kind in (pl.Date, pl.Datetime) else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
