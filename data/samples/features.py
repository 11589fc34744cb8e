"""From a table's columns to a dense feature matrix; everything fitted is fitted on the training split alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl

from l2d.data.errors import DataError

MISSING_CATEGORY = "(missing)"
MOST_CATEGORIES = 100  # a text column of more is more likely a mistake


@dataclass(frozen=True, kw_only=True)
class NumericFeature:
    """A number: missing values become the training median, with an indicator column if training misses any."""

    expression: str
    name: str
    median: float
    indicator: bool

    def columns(self) -> list[str]:
        return [self.name, f"{self.name} is missing"] if self.indicator else [self.name]


@dataclass(frozen=True, kw_only=True)
class CategoricalFeature:
    """A category, one column per value seen in training; unseen values are all zeros."""

    expression: str
    name: str
    categories: tuple[str, ...]

    def columns(self) -> list[str]:
        return [f"{self.name} = {category}" for category in self.categories]


class FeatureEncoder:
    """Encodes table rows as float32 features of fixed width.

    Args:
        features: one per source expression, in order.
        columns: column of the source -> its polars type where the encoder was fitted; caches built before types were
            kept do not say.
    """

    def __init__(self, features: list[NumericFeature | CategoricalFeature], columns: Mapping[str, str] | None = None):
        self.features = features
        self.names = [column for feature in features for column in feature.columns()]
        self.columns = dict(columns or {})

    @classmethod
    def fit(cls, table: pl.DataFrame, expressions: list[str]) -> FeatureEncoder:
        """Fit on the training rows.

        Args:
            table: training rows.
            expressions: SQL expressions over the columns, optionally ``… AS name``; text becomes a category.

        Raises:
            DataError: an expression fails, gives neither numbers nor text, or is empty in training.
        """
        fitted: list[NumericFeature | CategoricalFeature] = []
        for expression in expressions:
            column = evaluate_rows(table, expression)
            if column.dtype == pl.String:
                values = sorted(column.fill_null(MISSING_CATEGORY).unique().to_list())
                if len(values) > MOST_CATEGORIES:
                    raise DataError(
                        f"feature {expression!r} is text with {len(values)} values in the training split",
                        hint=f"at most {MOST_CATEGORIES} become categories: CAST it to DOUBLE, or leave it out",
                    )
                fitted.append(CategoricalFeature(expression=expression, name=column.name, categories=tuple(values)))
            elif column.dtype.is_numeric() or column.dtype == pl.Boolean:
                numbers = _numbers(column)
                if numbers.null_count() == len(numbers):
                    raise DataError(f"feature {expression!r} has no value in the training split", hint="leave it out")
                indicator = numbers.null_count() > 0
                fitted.append(
                    NumericFeature(
                        expression=expression, name=column.name, median=float(numbers.median()), indicator=indicator
                    )
                )
            else:
                raise DataError(
                    f"feature {expression!r} is of type {column.dtype}", hint="CAST it to DOUBLE or VARCHAR"
                )
        needed = {name for expression in expressions for name in columns_of(expression)}
        encoder = cls(fitted, {name: str(kind) for name, kind in table.schema.items() if name in needed})
        if len(set(encoder.names)) != len(encoder.names):
            twice = sorted({name for name in encoder.names if encoder.names.count(name) > 1})
            raise DataError(f"two features are called {twice[0]!r}", hint="name one of them: `… AS other_name`")
        return encoder

    def transform(self, table: pl.DataFrame, first_row: int = 0) -> np.ndarray:
        """Features of each row: float32, shape (rows, len(names)), all finite.

        Args:
            first_row: number of the first row, for messages, where the table is a part of a larger one.

        Raises:
            DataError: a column is not there or of another type, or a number does not fit a 32-bit float.
        """
        columns = []
        for feature in self.features:
            if isinstance(feature, CategoricalFeature):
                values = evaluate(table, feature.expression, pl.String).fill_null(MISSING_CATEGORY)
                columns += [(values == category).to_numpy() for category in feature.categories]
            else:
                column = evaluate(table, feature.expression)
                try:
                    numbers = _numbers(column)
                except pl.exceptions.PolarsError as error:
                    raise DataError(
                        f"feature {feature.name!r} is no number: {str(error).splitlines()[0]}",
                        hint=f"it is {feature.expression!r}; a missing number is an empty cell or a null",
                    ) from error
                columns.append(numbers.fill_null(feature.median).to_numpy())
                if feature.indicator:
                    columns.append(numbers.is_null().to_numpy())
        with np.errstate(over="ignore"):  # refused below
            matrix = np.stack(columns, axis=1).astype(np.float32)
        if not np.isfinite(matrix).all():
            row, column = np.argwhere(~np.isfinite(matrix))[0]
            raise DataError(
                f"feature {self.names[column]!r} of row {first_row + row} does not fit a 32-bit float",
                hint="rescale it, or its log",
            )
        return matrix

    def to_json(self) -> dict:
        """The fitted encoder as plain values, kept in ``cache.json``."""
        return {
            "names": self.names,
            "encoder": [{"type": type(feature).__name__, **asdict(feature)} for feature in self.features],
            "columns": self.columns,
        }

    @classmethod
    def from_json(cls, value: dict) -> FeatureEncoder:
        """Inverse of :meth:`to_json`."""
        kinds = {kind.__name__: kind for kind in (NumericFeature, CategoricalFeature)}
        features = []
        for facts in value["encoder"]:
            facts = {name: tuple(v) if isinstance(v, list) else v for name, v in facts.items()}
            features.append(kinds[facts.pop("type")](**facts))
        return cls(features, value.get("columns"))


def standardisation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column (constant columns get 1), float32, shape (width,)."""
    return _as_stored(features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64))


def standardisation_of_parts(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """:func:`standardisation` of a matrix that comes in parts (n, width), read once.

    Each part's mean and squared deviations are merged in float64 (Chan, Golub and LeVeque 1979, "Updating formulae and
    a pairwise algorithm for computing sample variances"): no difference of large sums, so as exact as two passes.

    Raises:
        ValueError: there is no part.
    """
    count, mean, squares = 0, None, None
    for part in parts:
        exact = part.astype(np.float64)
        part_mean = exact.mean(axis=0)
        exact -= part_mean
        part_squares = np.einsum("ij,ij->j", exact, exact)
        if mean is None:
            count, mean, squares = len(part), part_mean, part_squares
            continue
        step, total = part_mean - mean, count + len(part)
        mean += step * (len(part) / total)
        squares += part_squares + step**2 * (count * len(part) / total)
        count = total
    if mean is None:
        raise ValueError("no part")
    return _as_stored(mean, np.sqrt(squares / count))


def _as_stored(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return mean.astype(np.float32), np.where(std < 1e-6, 1.0, std).astype(np.float32)


def columns_of(expression: str) -> list[str]:
    """Names of the columns that an SQL expression looks at; none where it is no SQL, which evaluating it will tell."""
    try:
        return list(dict.fromkeys(pl.sql_expr(expression).meta.root_names()))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError):
        return []


def evaluate(table: pl.DataFrame, expression: str, dtype: pl.DataType | type | None = None) -> pl.Series:
    """One SQL expression over a table's columns, cast to ``dtype`` if one is given.

    Raises:
        DataError: the expression is not SQL, names an unknown column, fails, or does not give that type.
    """
    try:
        found = pl.sql_expr(expression)
        result = table.select(found)
        if result.height != table.height:  # a constant, or an aggregate
            result = table.select(found.first().repeat_by(pl.len()).explode())
        column = result.to_series()
        return column if dtype is None else column.cast(dtype)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"cannot evaluate {expression!r}: {reason}",
            hint=f'the columns are {", ".join(table.columns)}; quote odd names: "d.time"',
        ) from error


def evaluate_rows(table: pl.DataFrame, expression: str) -> pl.Series:
    """:func:`evaluate` an expression that must look at one row at a time.

    A feature that is, say, a difference from the average would tell training rows about test rows.

    Raises:
        DataError: as :func:`evaluate`, or a row's value changes with the rows around it.
    """
    column, half = evaluate(table, expression), table.height // 2
    for part, values in ((table[:half], column[:half]), (table[half:], column[half:])):
        if part.height and not evaluate(part, expression).equals(values, null_equal=True):
            raise DataError(f"{expression!r} depends on more than its own row", hint="use no aggregates or windows")
    return column


def _numbers(column: pl.Series) -> pl.Series:
    """As float64 with NaN and infinities as missing."""
    numbers = column.cast(pl.Float64)
    return numbers.to_frame().select(pl.when(pl.first().is_finite()).then(pl.first())).to_series()
