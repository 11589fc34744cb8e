"""What becomes of a table's columns: which can be features, why others should not, and how that is told."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, cast

import numpy as np
import polars as pl

from l2d.data.samples.cells import suspicion
from l2d.data.samples.column_file import Table
from l2d.data.samples.embedded_text import EmbeddedText
from l2d.data.samples.expressions import TEMPORAL, column_named, evaluate
from l2d.data.samples.features import (
    MOST_CATEGORIES,
    CategoricalFeature,
    FeatureEncoder,
    ListFeature,
)
from l2d.data.samples.text import COUNTS, TextFeature, texts_of

#: Names under which pandas, R and databases write the number of a row.
INDEX_NAMES = re.compile(
    r"^(unnamed: ?\d+(\.\d+)?|index|level_\d+|__index_level_\d+__|row|row[_ ]?(id|no|num|number|index|names?)|"
    r"rownum|\(column \d+\))$",
    re.IGNORECASE,
)
FEWEST_ROWS = 10  # of a table in which whole numbers in a row mean something
NAMES_SHOWN = 12
FREE_TEXT = "text of"  # begins the reason why text of many values is no category
MOST_STRAYS, STRAY_SHARE = 3, 0.5  # different texts, and share of the filled cells, that may be gaps among numbers


def is_row_number(column: pl.Series) -> bool:
    """Whether a column counts rows: 0, 1, 2 … in order or shuffled, or distinct whole numbers under an index's name.

    A file sorted by its class or time has these in its row numbers; a rejector that learns them has learnt the file.
    """
    if len(column) < FEWEST_ROWS or column.null_count():
        return False
    if column.dtype.is_float() and _are_whole(column.head(FEWEST_ROWS)) and _are_whole(column):
        column = column.cast(pl.Int64, strict=False)
    if not column.dtype.is_integer() or column.null_count():
        return False
    in_a_row, named = (
        cast(int, column.max()) - cast(int, column.min()) == len(column) - 1,
        INDEX_NAMES.match(column.name),
    )
    if not (in_a_row or named) or column.n_unique() < len(column):
        return False
    ordered = in_a_row and (column.cast(pl.Int64).diff().drop_nulls().abs() == 1).all()
    return bool(ordered or (in_a_row and column.min() in (0, 1)) or named)


def _are_whole(numbers: pl.Series) -> bool:
    """Of floating numbers without a gap; by numpy, which is done before polars has planned a query."""
    values = numbers.to_numpy()
    return bool(np.isfinite(values).all() and (values == np.round(values)).all())


def why_not(column: pl.Series) -> str | None:
    """Why a column should not be a feature unless it is asked for; None where it may be one."""
    kind = column.dtype
    if isinstance(kind, pl.List | pl.Array):
        if not kind.inner.is_numeric():
            return f"lists of {kind.inner}"
        lists = column.drop_nulls()
        lengths = (lists.list.len() if isinstance(kind, pl.List) else lists.arr.to_list().list.len()).unique()
        if lengths.is_empty() or lengths.to_list() == [0]:
            return "without a value"
        return None if len(lengths) == 1 else f"lists of {len(lengths)} lengths"
    if isinstance(kind, pl.Categorical | pl.Enum):
        column, kind = column.cast(pl.String), pl.String()
    if kind != pl.String and kind not in TEMPORAL and not kind.is_numeric() and kind != pl.Boolean:
        return f"of type {kind}"
    if column.null_count() == len(column):
        return "without a value"
    if _has_one_value(column):
        return "one value"
    if is_row_number(column):
        return "row numbers"
    if column.name.lower() == "split":
        return "names splits, but not train, validation and test"
    if kind == pl.String:
        found = suspicion(column)
        if found is not None:
            return found.what.removeprefix("is ")
        different = column.drop_nulls().n_unique()
        if different > MOST_CATEGORIES:
            return f"{FREE_TEXT} {different:,} values"
    return None


def _has_one_value(column: pl.Series) -> bool:
    """Whether all that is filled is one value; the first rows mostly show that it is not."""
    first = column.head(FEWEST_ROWS).drop_nulls()
    if len(first) > 1 and cast(Any, first.min()) < first.max():
        return False
    return bool(column.min() == column.max())  # quicker than to count its values


def stray_texts(column: pl.Series) -> tuple[str, ...]:
    """The few texts that keep a column from being a number, such as "unknown"; none if there are many, or it is not."""
    if column.dtype != pl.String or (found := suspicion(column)) is None or not 0 < len(found.strays) <= MOST_STRAYS:
        return ()
    filled = column.drop_nulls()
    return found.strays if filled.is_in(found.strays).mean() <= STRAY_SHARE else ()


def why_left(table: Table, name: str) -> str | None:
    """:func:`why_not` of a table's column. One that its first rows show to be a number is not read for that."""
    return None if name.lower() != "split" and _is_plainly_a_number(table, name) else why_not(table[name])


def _is_plainly_a_number(table: Table, name: str) -> bool:
    """Whether the first rows of a column that is not in memory show floating numbers that differ and count no rows."""
    if isinstance(table, pl.DataFrame):
        return False
    first = table.first[name]
    return first.dtype.is_float() and not _has_one_value(first) and not _are_whole(first)


def column_lines(table: Table, encoder: FeatureEncoder | None, others: Collection[str]) -> list[str]:
    """What became of a table's columns, in a line or two.

    Args:
        encoder: of the features, if there are any.
        others: columns that are something else: ids, targets, splits.
    """
    lines, used = [], set(others)
    if encoder is not None:
        parts = _kinds(encoder)
        numbers = parts.pop("numbers", [])
        found = [f"{len(numbers):,} {'number' if len(numbers) == 1 else 'numbers'}"] if numbers else []
        found += [f"{kind}: {some(names)}" for kind, names in parts.items()]
        lines.append(f"features: {'; '.join(found)}")
        used |= set(encoder.columns)
    left = {name: why_left(table, name) for name in table.columns if name not in used}
    if left:
        told = [name if why is None else f"{name} ({why})" for name, why in left.items()]
        lines.append(f"not features: {some(told)}")
    return lines


def row_number_notes(table: Table, expressions: Iterable[str]) -> list[str]:
    """A warning for each feature that is a column of row numbers."""
    named = [name for expression in expressions if (name := column_named(expression)) is not None]
    return [
        f"warning: feature {name!r} counts the rows, so a rejector can learn the order of the file; leave it out"
        for name in named
        if not _is_plainly_a_number(table, name) and is_row_number(table[name])
    ]


def no_text(table: Table, encoder: FeatureEncoder | None, ids: Sequence[str]) -> list[str]:
    """For each text, which samples have none."""
    lines = []
    for feature in encoder.features if encoder is not None else ():
        if isinstance(feature, TextFeature | EmbeddedText):
            texts = texts_of(evaluate(table, feature.expression), feature.expression)
            without = [ids[row] for row in np.flatnonzero((texts == "").to_numpy())]
            if without:
                lines.append(f"no {feature.name}: {len(without):,} of {len(ids):,} samples: {some(without, 5)}")
    return lines


def some(names: list[str], most: int = NAMES_SHOWN) -> str:
    """The first names of a list, and how many there are."""
    return ", ".join(names[:most]) + (f", … ({len(names):,})" if len(names) > most else "")


def _kinds(encoder: FeatureEncoder) -> dict[str, list[str]]:
    """Kind of feature -> what is said of each."""
    found: dict[str, list[str]] = {}
    for feature in encoder.features:
        if isinstance(feature, CategoricalFeature):
            count = len(feature.categories)
            found.setdefault("categories", []).append(f"{feature.name} ({count} value{'' if count == 1 else 's'})")
        elif isinstance(feature, TextFeature | EmbeddedText):
            found.setdefault("text", []).append(f"{feature.name} ({_of_text(feature)})")
        elif isinstance(feature, ListFeature):
            found.setdefault("lists", []).append(f"{feature.name} ({len(feature.medians):,} numbers)")
        else:
            column = column_named(feature.expression)
            kind = encoder.columns.get(column, "").partition("(")[0] if column else ""
            timed = kind in ("Date", "Datetime", "Duration", "Time")
            said = feature.name if not feature.shift else f"{feature.name} (less {feature.shift:.10g})"
            found.setdefault("in days" if timed else "numbers", []).append(said)
    return found


def _of_text(feature: TextFeature | EmbeddedText) -> str:
    fitted = f" of {feature.fitted:,} texts" if feature.fitted < feature.rows - feature.empty else ""
    kept = f"{feature.components} component{'' if feature.components == 1 else 's'} keep {feature.explained:.0%}"
    if isinstance(feature, EmbeddedText):
        return f"embeddings of {len(feature.mean):,} numbers{fitted}, {kept}, {len(COUNTS)} counts"
    return f"{len(feature.vocabulary):,} words{fitted}, {kept}, {len(COUNTS)} counts"
