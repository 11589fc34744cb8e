"""True answers of questions as lists of texts, from whatever form a table has them in."""

from __future__ import annotations

import json

import polars as pl

from l2d.data.errors import DataError
from l2d.data.samples.cells import first_true
from l2d.data.samples.column_file import Table
from l2d.data.samples.expressions import evaluate

LISTS = pl.List(pl.String)
FIELD = "text"  # of a record of answers, as SQuAD's files have it: {"text": […], "answer_start": […]}


def true_texts(table: Table, expression: str) -> tuple[pl.Series, list[str]]:
    """The true answers of each row, a list of texts that may be empty, and what was read in a special way.

    Args:
        expression: SQL that gives a text, a whole number, a list of texts, or a record with the field ``text``. Where
            every text is a list as JSON writes it, it is taken for one.

    Raises:
        DataError: a row has no value, or the values are something else.
    """
    column = evaluate(table, expression)
    notes = []
    if isinstance(column.dtype, pl.Struct) and FIELD in [field.name for field in column.dtype.fields]:
        column = column.struct.field(FIELD)
        notes.append(f"true answers: the field {FIELD!r} of {expression}")
    if column.null_count():
        row = first_true(column.is_null())
        hint = "filter it with `where`; a question without an answer has the empty list, []"
        raise DataError(f"row {row} has no target_text", hint=hint)
    kind = column.dtype
    if kind == pl.String and (lists := _as_json(column)) is not None:
        notes.append(f"true answers: {expression} holds lists of texts, as JSON writes them")
        return lists, notes + _without(lists)
    if isinstance(kind, pl.List | pl.Array):
        if kind.inner not in (pl.String, pl.Null):
            raise _refused(f"is a list of {kind.inner}", "write the answers in quotes: [\"1912\"]")  # fmt: skip
        lists = column.cast(LISTS)
        gaps = lists.list.eval(pl.element().is_null()).list.any()
        if gaps.any():
            raise DataError(f"row {first_true(gaps)} of target_text has a gap in its list", hint="take it out")
        return lists, notes + _without(lists)
    if not (kind == pl.String or kind.is_integer() or isinstance(kind, pl.Categorical | pl.Enum)):
        raise _refused(f"is of type {kind}", "CAST(… AS VARCHAR) writes it as you want it compared")
    return column.cast(pl.String).reshape((-1, 1)).cast(LISTS), notes


def _without(lists: pl.Series) -> list[str]:
    """A line on questions that have no true answer."""
    count = int((lists.list.len() == 0).sum())
    said = f"true answers: {count:,} of {len(lists):,} questions have none, where an empty text is right"
    return [said] if count else []


def _refused(what: str, hint: str) -> DataError:
    return DataError(f"target_text {what}, and true answers are texts or lists of texts", hint=hint)


def _as_json(column: pl.Series) -> pl.Series | None:
    """Lists of texts, where every cell is one in JSON."""
    if not column.str.starts_with("[").all():
        return None
    found = []
    for cell in column:
        try:
            texts = json.loads(cell)
        except ValueError:
            return None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return None
        found.append(texts)
    return pl.Series(column.name, found, dtype=LISTS)
