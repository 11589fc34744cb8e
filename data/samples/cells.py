"""Cells that are written as text, as numbers, dates, lists and truth values: one set of rules for every reader of CSV.

A column is of one kind as a whole. It is a number if all its filled cells are; so one stray text makes it text, and
:func:`suspicion` tells a text that ought to have been something else from one that is a category.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

#: What programs write where a number is missing. Beside numbers these are missing and it is said; elsewhere they are
#: text like any other: NA is a country, a class and a surname.
MARKERS = ("NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None", "none", "-", ".", "?")

PLAIN, GROUPED, COMMA = "1234.5", "1,234.5", "1.234,5"  # notations, by an example of each
NOTATIONS = {
    GROUPED: r"^[+-]?([1-9]\d{0,2}(,\d{3})+|\d+)(\.\d*)?([eE][+-]?\d+)?$",
    COMMA: r"^[+-]?(\d+|[1-9]\d{0,2}(\.\d{3})+)(,\d+)?([eE][+-]?\d+)?$",
}

ISO_DATE = r"^\d{4}-\d{2}-\d{2}$"
ISO_TIME = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?(Z|[+-]\d{2}:?\d{2})?$"
LIST = r"^\[\s*[^\s,\[\]]+([\s,]+[^\s,\[\]]+)*\s*,?\s*\]$"
LOOKS_LIKE_DATE = r"^(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2}))([T ]\d{1,2}:.*)?$"
LOOKS_LIKE_NUMBER = r"^[$€£¥]?\s*[+\u2212-]?\d[\d.,' ]*\s*(%|[$€£¥]|\s\p{L}{1,6}(/\p{L}{1,4})?)?$"
FEW = 10  # distinct numbers, up to which a text beside them makes a category: grades 1, 2, 3 and "none"
SAMPLE = 1000  # cells that are looked at to see whether a column is worth trying


@dataclass(frozen=True)
class Typed:
    """A column of text as what it holds.

    Attributes:
        values: Int64, Float64, Boolean, Date, Datetime (microseconds, UTC), a list of Float64, or String.
        notation: how its numbers are written.
        markers: text that counts as missing beside numbers -> in how many cells.
    """

    values: pl.Series
    notation: str = PLAIN
    markers: dict[str, int] = field(default_factory=dict)


def trimmed(column: pl.Series, missing: Sequence[str] = ()) -> pl.Series:
    """Cells without blanks around them; null where nothing is left, or what ``missing`` lists."""
    found = column.str.strip_chars()
    gone = ["", *(text.strip() for text in missing)]
    return found.to_frame().select(pl.when(~pl.first().is_in(gone)).then(pl.first())).to_series()


def plain_numbers(column: pl.Series) -> pl.Series | None:
    """A column of text as Int64 or Float64 where each filled cell is a plain number, else None. The quick way."""
    sample = column.drop_nulls().head(SAMPLE)
    if sample.is_empty() or sample.cast(pl.Float64, strict=False).null_count():
        return None
    numbers = column.cast(pl.Float64, strict=False)
    if numbers.null_count() != column.null_count() or not numbers.is_finite().any():
        return None
    return numbers if sample.str.contains(r"[.eEnN]").any() else _whole(column, numbers, PLAIN)


def typed(
    column: pl.Series,
    *,
    separator: str = ",",
    markers: Sequence[str] = MARKERS,
    notations: Sequence[str] = (),
) -> Typed:
    """What a column of :func:`trimmed` text holds.

    ``1,234`` is a thousand in a file whose cells are separated by commas. Files separated by semicolons are so because
    the comma is their decimal sign, and there it is.

    Args:
        separator: of the file's cells.
        markers: what counts as missing where all other cells are numbers.
        notations: of numbers, in the order in which they are tried, where the separator does not say it.
    """
    filled = column.drop_nulls()
    if filled.is_empty():
        return Typed(column)
    sample = filled.head(SAMPLE)
    if sample.str.contains(r"^[+-]?[\d.]").any() or sample.is_in([*markers, "inf", "-inf"]).any():
        rest = _without(column, markers)
        for notation in notations or ((PLAIN, COMMA, GROUPED) if separator == ";" else (PLAIN, GROUPED, COMMA)):
            numbers = as_numbers(rest, notation)
            if numbers.null_count() == rest.null_count() and numbers.is_finite().any():
                counts = column.filter(rest.is_null() & column.is_not_null()).value_counts(sort=True)
                return Typed(_whole(rest, numbers, notation), notation, dict(counts.iter_rows()))
    lower = sample.str.to_lowercase()
    if lower.is_in(["true", "false"]).all() and (found := as_truth(column)).null_count() == column.null_count():
        return Typed(found)
    if (sample.str.contains(ISO_DATE) | sample.str.contains(ISO_TIME)).all():
        for read in (as_dates, as_times):
            if (found := read(column)).null_count() == column.null_count():
                return Typed(found)
    if sample.str.contains(LIST).all():
        found = as_lists(column)
        if found.null_count() == column.null_count() and not found.list.eval(pl.element().is_null()).list.any().any():
            return Typed(found)
    return Typed(column)


def as_numbers(column: pl.Series, notation: str = PLAIN) -> pl.Series:
    """Float64, null where a cell is not a number in that notation."""
    if notation == PLAIN:
        return column.cast(pl.Float64, strict=False)
    kept = column.to_frame().select(
        pl.when(pl.first().str.contains(NOTATIONS[notation])).then(pl.first().str.replace_all(r"[,.]$", ""))
    )
    if notation == COMMA:
        english = kept.to_series().str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
        return english.cast(pl.Float64, strict=False)
    english = kept.to_series().str.replace_all(",", "", literal=True)
    both = pl.DataFrame({"grouped": english, "plain": column}).cast(pl.Float64, strict=False)
    return both.select(pl.coalesce("grouped", "plain")).to_series().alias(column.name)


def as_truth(column: pl.Series) -> pl.Series:
    """Boolean, null where a cell is not ``true``, ``false`` in any case, ``1`` or ``0``."""
    return column.str.to_lowercase().replace_strict(
        {"true": True, "false": False, "1": True, "0": False}, default=None, return_dtype=pl.Boolean
    )


def as_dates(column: pl.Series) -> pl.Series:
    """Dates, null where a cell is not one as ISO 8601 writes them."""
    return column.str.to_date("%Y-%m-%d", strict=False)


def as_times(column: pl.Series) -> pl.Series:
    """Datetimes in microseconds, null where a cell is not one as ISO 8601 writes them; with an offset they are UTC."""
    whole = pl.col("text").str.replace(" ", "T").str.replace(r"(T\d{2}:\d{2})(Z|[+-]\d{2}:?\d{2})?$", "${1}:00$2")
    text = column.alias("text").to_frame().with_columns(whole)
    text = text.with_columns(pl.col("text").str.replace(r"Z$", "+00:00").str.replace(ISO_DATE, "${0}T00:00:00"))
    zoned = pl.col("text").str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", strict=False, time_unit="us", time_zone="UTC")
    local = pl.col("text").str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", strict=False, time_unit="us")
    return text.select(pl.coalesce(local, zoned.dt.replace_time_zone(None))).to_series().alias(column.name)


def as_lists(column: pl.Series) -> pl.Series:
    """Lists of Float64 as JSON (``[0.1, 0.2]``) and numpy (``[0.1 0.2]``) write them; an element that is not a number
    is null, a cell that is not a list too."""
    cells = column.to_frame().select(pl.when(pl.first().str.contains(LIST)).then(pl.first())).to_series()
    return cells.str.extract_all(r"[^\s,\[\]]+").cast(pl.List(pl.Float64), strict=False)


def of_type(column: pl.Series, kind: str, notation: str = PLAIN, markers: Sequence[str] = MARKERS) -> pl.Series:
    """Trimmed text as the type that its column had elsewhere, null where a cell is not of it.

    Args:
        kind: a polars type as text.
        notation: how numbers are written.
        markers: what counts as missing beside numbers.
    """
    base = kind.partition("(")[0]
    if base.startswith(("Int", "UInt", "Float", "Decimal")):
        rest = _without(column, markers)
        numbers = as_numbers(rest, notation)
        return _whole(rest, numbers, notation) if base.startswith(("Int", "UInt")) else numbers
    readers = {"Boolean": as_truth, "Date": as_dates, "Datetime": as_times, "List": as_lists, "Array": as_lists}
    return readers[base](column) if base in readers else column


def _without(column: pl.Series, markers: Sequence[str]) -> pl.Series:
    """A column with null in the place of markers, but for NaN, which is a number's own."""
    known = [text for text in markers if text.lower() != "nan"]
    return column.to_frame().select(pl.when(~pl.first().is_in(known)).then(pl.first())).to_series()


def _whole(text: pl.Series, numbers: pl.Series, notation: str) -> pl.Series:
    """Numbers as Int64 if all of them are written without fraction and fit, else as they are."""
    found = (text if notation == PLAIN else numbers).cast(pl.Int64, strict=False)
    same = found.null_count() == text.null_count() and (notation == PLAIN or (found == numbers).all())
    return found if same else numbers


@dataclass(frozen=True)
class Suspicion:
    """Why a column of text ought not to become a category without a word: what it is, a cell, and what can be done."""

    what: str
    hint: str
    strays: tuple[str, ...] = ()  # cells that keep it from being a number


def suspicion(column: pl.Series) -> Suspicion | None:
    """Whether a column of text looks like numbers or dates that could not be read; None where it is a category.

    Args:
        column: String, trimmed.
    """
    filled = column.drop_nulls()
    values = filled.unique()
    name = '"' + column.name.replace('"', '""') + '"'
    as_category = f"CAST({name} AS VARCHAR) makes it a category"
    if len(values) > 1 and values.str.contains(LOOKS_LIKE_DATE).all():
        strange = filled.filter(as_times(filled).is_null())
        example = strange[0] if len(strange) else values[0]
        what = f"is text, though its {len(values):,} values look like dates, such as {example!r}"
        return Suspicion(what, f"STRPTIME({name}, '%d/%m/%Y') reads dates of that form; {as_category}")
    for notation in (PLAIN, GROUPED, COMMA):
        numbers = as_numbers(values, notation)
        count = len(values) - numbers.null_count()
        if count <= FEW or 2 * count < len(values):
            continue
        strays = values.filter(numbers.is_null()).sort().to_list()
        if not strays:
            what = f"is text that holds numbers, {count:,} different ones"
            return Suspicion(what, f"CAST({name} AS DOUBLE) makes it a number; {as_category}")
        row, of_stray = column.index_of(strays[0]), int(filled.is_in(strays).sum())
        what = f"is text: {len(filled) - of_stray:,} of {len(filled):,} cells are numbers, row {row} is {strays[0]!r}"
        return Suspicion(what, as_category, tuple(strays))
    decorated = values.filter(values.str.contains(LOOKS_LIKE_NUMBER))
    if len(decorated) > FEW and 2 * len(decorated) >= len(values):
        what = f"is text, though {len(decorated):,} of its {len(values):,} values look like numbers: {decorated[0]!r}"
        return Suspicion(what, f"write plain numbers, or cut them out with REPLACE and CAST; {as_category}")
    return None


def first_true(found: pl.Series) -> int:
    """Position of the first true value of a column of truth values that has one."""
    return found.arg_max() or 0
