"""The classes of a table's rows: what the values of its target are, and their names."""

from __future__ import annotations

import numpy as np
import polars as pl

from l2d.data.errors import DataError
from l2d.data.samples.cells import first_true
from l2d.data.samples.column_file import Table
from l2d.data.samples.expressions import evaluate

MOST_CLASSES = 10_000  # agents answer with a probability of each
MOST_NUMBERS = 1000  # of classes that are numbers with decimals, or more than half as many as rows


def classes_of(
    table: Table, target_cla: str | None, given: list[str] | None
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Class index of each row, int32 (n,), and the classes' names.

    Args:
        target_cla: SQL that gives the class, None where there is no such target.
        given: the classes in order where they are text, else names for their values, sorted.

    Raises:
        DataError: a row has no class, there is one class only, or there are too many; or ``given`` does not name them.
    """
    if target_cla is None:
        if given is not None:
            raise DataError("`classes` is given without `target_cla`", hint="remove it")
        return None, ()
    column = evaluate(table, target_cla)
    if column.dtype.is_float():
        column = column.fill_nan(None)
    if column.null_count():
        row = first_true(column.is_null())
        raise DataError(f"row {row} has no target_cla", hint="filter such rows with `where`")
    if column.dtype == pl.String:
        values = column.unique().sort().to_numpy()
        index = column.cast(pl.Enum(values.tolist())).to_physical().to_numpy()
    elif column.dtype.is_integer():  # NumPy would sort the rows, with five times their memory
        values = column.unique().sort().to_numpy()
        index = np.searchsorted(values, column.to_numpy())
    else:
        values, index = np.unique(column.to_numpy(), return_inverse=True)
    if len(values) < 2:
        raise DataError(f"target_cla has one value, {values[0]}", hint="a class needs at least two")
    most = MOST_NUMBERS if column.dtype.is_float() and (column != column.round(0)).any() else MOST_CLASSES
    if len(values) > most or len(values) > max(MOST_NUMBERS, len(column) // 2):
        raise DataError(
            f"target_cla has {len(values)} values in {len(column)} rows",
            hint=f"is it an id, or a number and a target_reg? At most {most:,} classes, and half as many as rows",
        )
    names = given or [str(value) for value in values]
    if len(set(names)) != len(names):
        raise DataError(f"`classes` names a class twice: {names}", hint="give each class a name of its own")
    if len(names) != len(values):
        raise DataError(
            f"`classes` names {len(names)} classes, target_cla has {len(values)} values: {values[:10].tolist()}",
            hint="one name for each value, in sorted order",
        )
    if given is not None and column.dtype == pl.String:
        if sorted(names) != sorted(values.tolist()):
            raise DataError(
                f"`classes` is {names}, but target_cla is one of {values[:10].tolist()}",
                hint="where target_cla is text, `classes` puts its values in order; it cannot rename them",
            )
        index = np.array([names.index(value) for value in values])[index]
    return index.astype(np.int32), tuple(names)
