"""One input, as a program has it, to the features that the same row of a file would have, bit for bit.

Plain numbers, categories and arithmetic are encoded here, in some microseconds; other SQL together, by one query. What
needs more (text, dates, lists, images, token lists) goes through the code that reads files, as a table of one row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from l2d.data.errors import DataError, UsageError, close_to
from l2d.data.samples import cells
from l2d.data.samples.expressions import column_named, columns_of
from l2d.data.samples.features import MISSING_CATEGORY, CategoricalFeature, FeatureEncoder, NumericFeature
from l2d.data.sources.text_table import cleared
from l2d.rejector.rows.unlabelled import InputRecord, reader_of
from l2d.rejector.serving.formulas import Formula, NotPlain, formula

WHERE = "this input"
PLAIN_NUMBERS = ("Int", "UInt", "Float", "Boolean")
LARGEST = float(np.finfo(np.float32).max)


class RowEncoder:
    """Encodes inputs one by one.

    Args:
        record: what the rejector looks at.
        width: numbers a sample.
    """

    def __init__(self, record: InputRecord, width: int):
        self._record, self.width = record, width
        encoder = record.encoder
        self._features = encoder if isinstance(encoder, FeatureEncoder) else None
        self.columns = self._source_columns()
        self._types = dict(encoder.columns) if encoder is not None else {}
        self._missing = getattr(encoder, "reading", {}).get("missing") or None
        self._numbers: list[tuple[str, int, float, bool, float]] = []
        self._categories: list[tuple[str, int, dict[str, int]]] = []
        self._formulas: list[tuple[NumericFeature, int, list[str], Formula]] = []
        self._computed: list[tuple[NumericFeature | CategoricalFeature, int]] = []
        self._others: list[tuple[FeatureEncoder, int]] = []
        if self._features is not None and not self._missing:
            self._plan(self._features)
        rest = [one.features[0] for one, _ in self._others] + [feature for feature, _ in self._computed]
        needed = {name for feature in rest for name in columns_of(feature.expression)}
        self._slow_columns = [name for name in self.columns if name in needed]
        self._query = [
            pl.sql_expr(feature.expression)
            .cast(pl.String if isinstance(feature, CategoricalFeature) else pl.Float64)
            .alias(str(place))
            for feature, place in self._computed
        ]
        self._by_file = self._features is None or bool(self._missing)
        self.texts = [name for name in self.columns if self._types.get(name) == "String"]

    def _source_columns(self) -> list[str]:
        encoder = self._record.encoder
        if encoder is None:
            return ["image" if self._record.column == "image" else "features"]
        if isinstance(encoder, FeatureEncoder):
            named = [name for feature in encoder.features for name in columns_of(feature.expression)]
            return list(dict.fromkeys(encoder.columns or named))
        return list(encoder.needed)

    def _plan(self, encoder: FeatureEncoder) -> None:
        """Tell plain columns from what takes a table."""
        place = 0
        for feature in encoder.features:
            column = column_named(feature.expression)
            kind = encoder.columns.get(column, "") if column else ""
            if column and isinstance(feature, NumericFeature) and kind.startswith(PLAIN_NUMBERS):
                self._numbers.append((column, place, feature.median, feature.indicator, feature.shift))
            elif column and isinstance(feature, CategoricalFeature) and kind == "String":
                known = {category: place + k for k, category in enumerate(feature.categories)}
                self._categories.append((column, place, known))
            elif isinstance(feature, NumericFeature | CategoricalFeature) and self._is_timeless(feature.expression):
                names = columns_of(feature.expression)
                plain = isinstance(feature, NumericFeature) and all(
                    self._types[name].startswith(PLAIN_NUMBERS[:3]) for name in names
                )
                found = formula(feature.expression, tuple(names)) if plain else None
                if found is None or not isinstance(feature, NumericFeature):
                    self._computed.append((feature, place))
                else:
                    self._formulas.append((feature, place, names, found))
            else:
                self._others.append((FeatureEncoder([feature], encoder.columns), place))
            place += len(feature.columns())

    def _is_timeless(self, expression: str) -> bool:
        """Whether an expression has columns, and no times among them: those have rules of their own."""
        kinds = [self._types.get(name, "") for name in columns_of(expression)]
        plain = (*PLAIN_NUMBERS, "String")
        return bool(kinds) and all(kind.startswith(plain) for kind in kinds) and "strptime" not in expression.lower()

    def __call__(self, row: Mapping[str, Any] | str | np.ndarray) -> np.ndarray:
        """Features of one input, float32 (width,).

        Args:
            row: column -> value; None and NaN are missing. Or a text, where that is all the rejector looks at. Or the
                features themselves, (width,).

        Raises:
            DataError: a column is not there, or a value cannot be used.
            UsageError: a text alone is not enough.
        """
        if isinstance(row, np.ndarray):
            return self._ready(row)
        if isinstance(row, str):
            row = {self._only_text(): row}
        if not isinstance(row, Mapping):
            raise DataError(
                f"an input is an object of columns and values, not {type(row).__name__}",
                where=WHERE,
                hint=f"give {', '.join(self.columns)}",
            )
        if "features" in row and "features" not in self.columns:
            return self._ready(row["features"])
        if self._by_file:
            return self._as_file(row)
        found = np.zeros(self.width, np.float32)
        try:
            for name, place, median, indicator, shift in self._numbers:
                value = row[name]
                self._put(found, _number(value, name) if value.__class__ is not float else value, place, median,
                          indicator, shift)  # fmt: skip
            for feature, place, names, computed in self._formulas:
                try:
                    value = computed([row[name] for name in names])
                except NotPlain:
                    self._by_polars(found, feature, place, self._frame(row, names))
                else:
                    self._put(found, value, place, feature.median, feature.indicator, feature.shift)
            for name, _, known in self._categories:
                value = row[name]
                at = known.get(MISSING_CATEGORY if value is None else _text(value, name))
                if at is not None:
                    found[at] = 1
        except KeyError as error:
            raise self._no_column(str(error.args[0]), row) from None
        if self._slow_columns:
            frame = self._frame(row, self._slow_columns)
            self._compute(found, frame)
            for encoder, place in self._others:
                values = _named(lambda one=encoder: one.transform(frame))
                found[place : place + values.shape[1]] = values[0]
        return found

    def _put(self, found: np.ndarray, value: float, place: int, median: float, indicator: bool, shift: float) -> None:
        """A number, NaN or infinite where it is missing."""
        if value - value != 0:  # neither is finite
            value = median
            if indicator:
                found[place + 1] = 1
        value -= shift
        found[place] = value if -LARGEST <= value <= LARGEST else self._in_32_bits(value, place)

    def _compute(self, found: np.ndarray, frame: pl.DataFrame) -> None:
        if not self._computed:
            return
        try:
            values = frame.select(self._query).row(0)
        except pl.exceptions.PolarsError:  # which feature, and why, is found one by one
            for feature, place in self._computed:
                self._by_polars(found, feature, place, frame)
            return
        for (feature, place), value in zip(self._computed, values, strict=True):
            if isinstance(feature, NumericFeature):
                number = math.nan if value is None else value
                self._put(found, number, place, feature.median, feature.indicator, feature.shift)
            else:
                category = MISSING_CATEGORY if value is None else value
                if category in feature.categories:
                    found[place + feature.categories.index(category)] = 1

    def _by_polars(
        self, found: np.ndarray, feature: NumericFeature | CategoricalFeature, place: int, frame: pl.DataFrame
    ) -> None:
        encoder = FeatureEncoder([feature], self._types)
        values = _named(lambda: encoder.transform(frame))[0]
        found[place : place + len(values)] = values

    def _in_32_bits(self, value: float, place: int) -> float:
        assert self._features is not None
        with np.errstate(over="ignore"):
            if np.isfinite(np.float32(value)):
                return value
        name = self._features.names[place]
        raise DataError(f"feature {name!r} does not fit a 32-bit float", where=WHERE, hint="rescale it, or its log")

    def _ready(self, values: Any) -> np.ndarray:
        try:
            given = np.asarray(values, np.float64)
        except (TypeError, ValueError):
            given = np.empty(0)
        if given.shape != (self.width,):
            raise DataError(
                f"`features` are {self.width} numbers, these are of shape {given.shape}",
                where=WHERE,
                hint="features have to be those of the cache that the rejector was trained on",
            )
        with np.errstate(over="ignore"):
            found = given.astype(np.float32)
        if not np.isfinite(found).all():
            place = int((~np.isfinite(found)).argmax())
            raise DataError(
                f"feature {place} is {given[place]}", where=WHERE, hint="features are finite numbers, in 32 bits"
            )
        return found

    def _as_file(self, row: Mapping[str, Any]) -> np.ndarray:
        if self.columns == ["features"]:
            if "features" not in row:
                raise self._no_column("features", row)
            return self._ready(row["features"])
        frame = cleared(self._frame(row, self.columns), self._missing)

        def read() -> np.ndarray:
            _, reads = reader_of(frame.schema, self._record, self.width, Path(WHERE))
            return reads(frame, 0)

        return _named(read)[0]

    def _frame(self, row: Mapping[str, Any], columns: list[str]) -> pl.DataFrame:
        for name in columns:
            if name not in row:
                raise self._no_column(name, row)
        return pl.DataFrame([_series(name, row[name], self._types.get(name)) for name in columns])

    def _only_text(self) -> str:
        if len(self.columns) == 1 and self.texts:
            return self.columns[0]
        raise UsageError(
            f"a text alone is not what this rejector looks at: {', '.join(self.columns)}",
            where=WHERE,
            hint="give an object with these columns",
        )

    def _no_column(self, name: str, row: Mapping[str, Any]) -> DataError:
        near = close_to(name, [str(key) for key in row])
        return DataError(
            f"there is no column {name!r}",
            where=WHERE,
            hint=(f"is it {near!r}? " if near else "")
            + f"the rejector looks at {', '.join(self.columns)}; a value that is missing is null",
        )


def _named(read: Any) -> np.ndarray:
    try:
        return read()
    except DataError as error:
        raise DataError(error.what, where=WHERE, hint=error.hint) from error


def _number(value: Any, name: str) -> float:
    """A cell of a column of numbers; NaN where it is missing."""
    if value is None:
        return math.nan
    if isinstance(value, int | float | np.integer | np.floating | np.bool_):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    raise DataError(
        f"{name!r} is {str(value)[:40]!r}, it was a number where the rejector was trained",
        where=WHERE,
        hint="give a number, or null where it is missing",
    )


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    raise DataError(
        f"{name!r} is {str(value)[:40]}, it was text where the rejector was trained",
        where=WHERE,
        hint="give text, or null where it is missing",
    )


def _series(name: str, value: Any, then: str | None) -> pl.Series:
    """A column of one value, of the type that it had in training."""
    base = (then or "").partition("(")[0]
    if base.startswith(PLAIN_NUMBERS):
        if isinstance(value, bool) or (base == "Boolean" and value is None):
            return pl.Series(name, [value], pl.Boolean)
        number = _number(value, name)
        whole = isinstance(value, int | np.integer) and abs(int(value)) < 2**63
        return pl.Series(name, [int(value) if whole else None if value is None else number])
    if base in ("String", "Categorical", "Enum"):
        return pl.Series(name, [None if value is None else _text(value, name)], pl.String)
    if value is None:
        empty: dict[str, Any] = {"Date": pl.Date, "Datetime": pl.Datetime("us"), "List": pl.List(pl.Float64)}
        return pl.Series(name, [None], empty.get(base, pl.Null))
    if base in ("Date", "Datetime"):
        found = pl.Series(name, [value]) if isinstance(value, date | datetime) else None
        if isinstance(value, str):
            found = cells.of_type(pl.Series(name, [value]), base)
        if found is None or found.null_count():
            raise DataError(
                f"{name!r} is {str(value)[:40]!r}, it was of type {then} where the rejector was trained",
                where=WHERE,
                hint="write dates and times as ISO 8601 does: 2026-11-28, 2026-11-28T09:30:00",
            )
        return found
    if base in ("List", "Array"):
        try:
            return pl.Series(name, [[None if item is None else float(item) for item in value]], pl.List(pl.Float64))
        except (TypeError, ValueError):
            raise DataError(
                f"{name!r} is {str(value)[:40]!r}, it was a list of numbers where the rejector was trained",
                where=WHERE,
                hint="give a list of numbers, or null where it is missing",
            ) from None
    try:
        return pl.Series(name, [value], strict=True)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{name!r} is {str(value)[:40]!r}, which is no cell of a table", where=WHERE) from error
