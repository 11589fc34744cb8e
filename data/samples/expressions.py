"""SQL expressions over a table's columns, each giving a value a row; times become days where a number is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import cast

import polars as pl

from l2d.data.errors import DataError, nearest
from l2d.data.samples.column_file import Table, narrowed

#: From what no implicit number is taken: a cast would give microseconds, or whatever unit the file happens to have.
TEMPORAL = (pl.Date, pl.Datetime, pl.Duration, pl.Time)
IN_DAYS = "(discharged - admitted) / INTERVAL '1 day' is a number of days; a date or duration by itself is in days too"
MICROSECONDS = 86_400_000_000  # in a day


def columns_of(expression: str) -> list[str]:
    """Names of the columns that an SQL expression looks at; none where it is no SQL, which evaluating it will tell."""
    return list(_columns_of(expression))


@lru_cache(maxsize=4096)  # a file is read batch by batch
def _columns_of(expression: str) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(pl.sql_expr(expression).meta.root_names()))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError):
        return ()


@lru_cache(maxsize=4096)
def column_named(expression: str) -> str | None:
    """The column that an expression stands for, with or without ``AS``; None where it computes something."""
    names = columns_of(expression)
    if len(names) != 1:
        return None
    return names[0] if pl.sql_expr(expression).meta.undo_aliases().meta.eq(pl.col(names[0])) else None


@lru_cache(maxsize=4096)
def name_of(expression: str) -> str:
    """What an SQL expression's column is called; the expression where it is no SQL, which evaluating it will tell."""
    try:
        return pl.sql_expr(expression).meta.output_name()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError):
        return expression


def quoted(column: str) -> str:
    """A column's name in SQL."""
    return column if columns_of(column) == [column] else '"' + column.replace('"', '""') + '"'


def evaluate(table: Table, expression: str, dtype: pl.DataType | type | None = None) -> pl.Series:
    """One SQL expression over a table's columns, cast to ``dtype`` if one is given.

    As a floating number a date or time is in days since the first of January 1970 and a duration in days.

    Raises:
        DataError: the expression is not SQL, names an unknown column, fails, takes a time for a number, or does not
            give that type.
    """
    whole, table = table, narrowed(table, columns_of(expression))
    try:
        named = column_named(expression)
        if named is not None and named in table.columns:
            column = table[named].alias(name_of(expression))
        else:
            found = pl.sql_expr(expression)
            _refuse_times_as_numbers(table, found, expression)
            result = table.select(found)
            if result.height != table.height:  # a constant, or an aggregate
                result = table.select(found.first().repeat_by(pl.len()).explode())
            column = result.to_series()
        if dtype is not None and column.dtype in TEMPORAL and dtype in (pl.Float64, pl.Float32):
            column = days(column)
        return column if dtype is None else column.cast(dtype)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError) as error:
        raise _refusal(whole, expression, error) from error


def check(table: Table, expression: str) -> None:
    """See that an expression is SQL over columns that are there, without a value being computed.

    Raises:
        DataError: as :func:`evaluate`.
    """
    try:
        found = pl.sql_expr(expression)
        _refuse_times_as_numbers(table, found, expression)
        table.lazy().select(found).collect_schema()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError) as error:
        raise _refusal(table, expression, error) from error


def evaluate_rows(table: Table, expression: str) -> pl.Series:
    """:func:`evaluate` an expression that must look at one row at a time.

    A feature that is, say, a difference from the average would tell training rows about test rows.

    Raises:
        DataError: as :func:`evaluate`, or a row's value changes with the rows around it.
    """
    if column_named(expression) is not None:
        return evaluate(table, expression)
    table = narrowed(table, columns_of(expression))
    column, half = evaluate(table, expression), table.height // 2
    for part, values in ((table[:half], column[:half]), (table[half:], column[half:])):
        if part.height and not evaluate(part, expression).equals(values, null_equal=True):
            raise DataError(f"{expression!r} depends on more than its own row", hint="use no aggregates or windows")
    return column


def days(column: pl.Series) -> pl.Series:
    """Dates, times and durations as Float64: days since 1970-01-01, or how many days they last."""
    kind = column.dtype
    if kind == pl.Date:
        return column.to_physical().cast(pl.Float64)
    if kind == pl.Time:
        return column.to_physical().cast(pl.Float64) / (1000 * MICROSECONDS)
    if isinstance(kind, pl.Datetime) and kind.time_zone is not None:
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    unit = {"ns": 1000 * MICROSECONDS, "us": MICROSECONDS, "ms": MICROSECONDS // 1000}[
        cast(pl.Datetime, column.dtype).time_unit
    ]
    return column.to_physical().cast(pl.Float64) / unit


def _refuse_times_as_numbers(table: Table, expression: pl.Expr, text: str) -> None:
    """Raises :class:`DataError` where a time is taken for a number, which would be in the unit that it is stored in: by
    a cast, a comparison with a number, or a CASE that gives now the one and now the other."""
    written = str(expression)
    roots = (table.schema[name] for name in expression.meta.root_names() if name in table.schema)
    if "strptime" not in written and ".dt." not in written and not any(kind in TEMPORAL for kind in roots):
        return
    lazy = table.lazy()
    for part in _parts(expression):
        inner = part.meta.pop()
        kinds = [lazy.select(one).collect_schema().dtypes()[0] for one in inner]
        time = next((str(kind).partition("(")[0].lower() for kind in kinds if kind in TEMPORAL), None)
        if time is None:
            continue
        becomes = lazy.select(part).collect_schema().dtypes()[0]
        start = f"{inner[0]}."
        if len(inner) == 1 and str(part).startswith((f"{start}strict_cast(", f"{start}cast(")):
            if becomes.is_numeric():
                raise DataError(f"{text!r} casts a {time} to a number, whose unit is not said", hint=IN_DAYS)
        elif any(kind.is_numeric() for kind in kinds) and (becomes.is_numeric() or becomes in (pl.Boolean, pl.Unknown)):
            raise DataError(f"{text!r} takes a {time} for a number, whose unit is not said", hint=IN_DAYS)


def _parts(expression: pl.Expr) -> Iterator[pl.Expr]:
    yield expression
    for part in expression.meta.pop():
        yield from _parts(part)


def _refusal(table: Table, expression: str, error: BaseException) -> DataError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    unknown = [name for name in columns_of(expression) if name not in table.columns]
    if unknown:
        hint = nearest(unknown[0], table.columns, "the columns are") + '; quote odd names: "d.time"'
    elif "cannot cast List" in reason or "cannot cast Array" in reason:
        hint = "a list of numbers is a feature as it stands: name the column alone"
    elif "date/datetime/time" in reason:
        hint = "compare dates with dates: admitted > DATE '2024-01-31'"
    else:
        hint = f'the columns are {", ".join(table.columns[:40])}; quote odd names: "d.time"'
    return DataError(f"cannot evaluate {expression!r}: {reason}", hint=hint)
