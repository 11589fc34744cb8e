"""From a table's columns to a dense feature matrix; everything fitted is fitted on the training split alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from typing import Any

import numpy as np
import polars as pl

from l2d.data.errors import DataError
from l2d.data.samples.cells import suspicion
from l2d.data.samples.column_file import Table, narrowed
from l2d.data.samples.embedded_text import EmbeddedText, fit_embedding
from l2d.data.samples.expressions import TEMPORAL, check, column_named, columns_of, days, evaluate, evaluate_rows
from l2d.data.samples.numbers import as_they_lie, in_threads, median_of, write_columns
from l2d.data.samples.standardise import lost_in_32_bits
from l2d.data.samples.text import TextFeature, TextSettings, fit_text, packed, unpacked

MISSING_CATEGORY = "(missing)"
MOST_CATEGORIES = 100  # a text column of more is more likely a mistake
ROWS_AT_ONCE = 65_536  # that are encoded, so that no copy of all columns is held
MOST_ROWS_IN_THREADS = 4 << 20  # of a table: several features of more at a time would take too much memory
MOST_ELEMENTS = 65_536  # of a list: more is more likely something else than an embedding


@dataclass(frozen=True, kw_only=True)
class NumericFeature:
    """A number, or a time in days: missing values become the training median, with an indicator if training has any.

    Kept less ``shift``, which is 0 unless 32 bits could not tell the training values apart (unix seconds).
    """

    expression: str
    name: str
    median: float
    indicator: bool
    shift: float = 0.0

    def columns(self) -> list[str]:
        name = f"{self.name} - {self.shift:.10g}" if self.shift else self.name
        return [name, f"{self.name} is missing"] if self.indicator else [name]


@dataclass(frozen=True, kw_only=True)
class CategoricalFeature:
    """A category, one column per value seen in training; unseen values are all zeros."""

    expression: str
    name: str
    categories: tuple[str, ...]

    def columns(self) -> list[str]:
        return [f"{self.name} = {category}" for category in self.categories]


@dataclass(frozen=True, kw_only=True)
class ListFeature:
    """A list of numbers, all of one length, such as an embedding: a column each. What is missing becomes the training
    median of its place, with one indicator column for lists that are missing if training has any."""

    expression: str
    name: str
    medians: tuple[float, ...]
    indicator: bool

    def columns(self) -> list[str]:
        names = [f"{self.name}[{place}]" for place in range(len(self.medians))]
        return [*names, f"{self.name} is missing"] if self.indicator else names


Feature = NumericFeature | CategoricalFeature | ListFeature | TextFeature | EmbeddedText
TEXTS = (TextFeature, EmbeddedText)


class FeatureEncoder:
    """Encodes table rows as float32 features of fixed width.

    Args:
        features: one per source expression, in order.
        columns: column of the source -> its polars type where the encoder was fitted; caches built before types were
            kept do not say.
        reading: how the cells of a text file were read there: ``notations`` and ``missing``, see
            :mod:`l2d.data.sources.text_table`.
    """

    def __init__(
        self,
        features: list[Feature],
        columns: Mapping[str, str] | None = None,
        reading: Mapping[str, Any] | None = None,
    ):
        self.features = features
        self.names = [column for feature in features for column in feature.columns()]
        self.columns, self.reading = dict(columns or {}), dict(reading or {})

    @classmethod
    def fit(
        cls,
        table: Table,
        expressions: list[str],
        *,
        rows: np.ndarray | None = None,
        text: Mapping[str, TextSettings] | None = None,
        reading: Mapping[str, Any] | None = None,
        with_each: Callable[[int, Feature, pl.DataFrame], None] | None = None,
    ) -> FeatureEncoder:
        """Fit on the training rows.

        Args:
            table: with the training rows.
            rows: which of the table's they are, bool (n,); all if None.
            expressions: SQL expressions over the columns, optionally ``… AS name``; text becomes a category.
            text: name -> which text is read word by word, and how; these features come last.
            reading: how a text file's cells were read.
            with_each: told of each expression's place, its feature and the columns that it looks at, all rows.

        Raises:
            DataError: an expression fails, gives what cannot be a feature, or is empty in training.
        """
        chosen = None if rows is None else pl.Series(rows)

        def seen_by(expression: str) -> pl.DataFrame:  # the columns of one feature, so that no copy of all is held
            whole = narrowed(table, columns_of(expression))
            return whole.select(columns_of(expression) or whole.columns)

        def fit_one(place: int) -> Feature:
            expression, whole = expressions[place], seen_by(expressions[place])
            feature = _fitted(evaluate_rows(whole if chosen is None else whole.filter(chosen), expression), expression)
            if with_each is not None:
                with_each(place, feature, whole)
            return feature

        worth_it = ROWS_AT_ONCE < table.height <= MOST_ROWS_IN_THREADS
        fitted = in_threads(fit_one, range(len(expressions)), worth_it)
        for name, settings in (text or {}).items():
            expression = settings.expression
            fit = fit_text if settings.embed is None else fit_embedding
            whole = seen_by(expression)
            whole = whole if chosen is None else whole.filter(chosen)
            fitted.append(fit(evaluate_rows(whole, expression), name, settings))
        needed = {name for feature in fitted for name in columns_of(feature.expression)}
        encoder = cls(fitted, {name: str(kind) for name, kind in table.schema.items() if name in needed}, reading)
        if len(set(encoder.names)) != len(encoder.names):
            twice = sorted({name for name in encoder.names if encoder.names.count(name) > 1})
            raise DataError(f"two features are called {twice[0]!r}", hint="name one of them: `… AS other_name`")
        return encoder

    def transform(self, table: pl.DataFrame, first_row: int = 0) -> np.ndarray:
        """Features of each row: float32, shape (rows, len(names)), all finite.

        Args:
            first_row: number of the first row, for messages, where the table is a part of a larger one.

        Raises:
            DataError: a column is not there or of another type, a list is of another length, or a number does not fit
                a 32-bit float.
        """
        matrix = np.empty((table.height, len(self.names)), np.float32)

        def write(start: int) -> None:
            rows = slice(start, start + ROWS_AT_ONCE)
            with np.errstate(over="ignore"):  # refused below; of each thread its own
                self._write(matrix[rows], table[rows], first_row + start)

        starts = range(0, max(1, table.height), ROWS_AT_ONCE)
        in_threads(write, starts, table.height > ROWS_AT_ONCE)
        place = 0
        for feature in self.features:
            width, row = len(feature.columns()), 0
            if isinstance(feature, TEXTS):
                for values in feature.encode(evaluate(table, feature.expression)):
                    matrix[row : row + len(values), place : place + width] = values
                    row += len(values)
            place += width
        if not all(np.isfinite(matrix[start : start + ROWS_AT_ONCE]).all() for start in starts):
            row, column = np.argwhere(~np.isfinite(matrix))[0]
            raise self.does_not_fit(first_row + row, column)
        return matrix

    def does_not_fit(self, row: int, column: int) -> DataError:
        """That a number of a row is out of range, column by its place among :attr:`names`."""
        what = f"feature {self.names[column]!r} of row {row} does not fit a 32-bit float"
        return DataError(what, hint="rescale it, or its log")

    def _write(self, matrix: np.ndarray, table: pl.DataFrame, first_row: int) -> None:
        """Write all features but texts of some rows into a matrix."""
        place = 0
        for texts, features in groupby(self.features, lambda feature: isinstance(feature, TEXTS)):
            if texts:
                place += sum(len(feature.columns()) for feature in features)
                continue
            encoded = (encoded_columns(table, feature, first_row) for feature in features)
            place = write_columns(matrix, place, chain.from_iterable(encoded))

    def missing(self) -> tuple[np.ndarray, dict[int, int]]:
        """What a column holds where its value is missing, float64 (width,), and of the indicator of a number the place
        of that number: indicator -> number."""
        instead, indicators = np.zeros(len(self.names)), {}
        place = 0
        for feature in self.features:
            if isinstance(feature, NumericFeature):
                instead[place] = feature.median - feature.shift
                if feature.indicator:
                    indicators[place + 1] = place
            elif isinstance(feature, ListFeature):
                instead[place : place + len(feature.medians)] = feature.medians
            place += len(feature.columns())
        return instead, indicators

    def to_json(self) -> dict:
        """The fitted encoder as plain values, kept in ``cache.json``; of texts all but :meth:`frozen`, whose SHA-256
        stands there in its place."""
        frozen = self.frozen()
        described = (each.to_json() if isinstance(each, TEXTS) else asdict(each) for each in self.features)
        return {
            "names": self.names,
            "encoder": [
                {"type": type(feature).__name__, **facts}
                for feature, facts in zip(self.features, described, strict=True)
            ],
            "columns": self.columns,
            **({"reading": self.reading} if self.reading else {}),
            **({"frozen": hashlib.sha256(frozen).hexdigest()} if frozen is not None else {}),
        }

    def frozen(self) -> bytes | None:
        """Vocabularies, weights and directions of texts, as safetensors; None without text."""
        return packed([feature for feature in self.features if isinstance(feature, TEXTS)])

    @classmethod
    def from_json(cls, value: dict, frozen: bytes | None = None) -> FeatureEncoder:
        """Inverse of :meth:`to_json` and :meth:`frozen`.

        Raises:
            CorruptPart: ``frozen`` is not what was written.
        """
        kinds = {kind.__name__: kind for kind in (NumericFeature, CategoricalFeature, ListFeature)}
        features, arrays = [], iter(unpacked(value.get("frozen"), frozen))
        for facts in value["encoder"]:
            facts = {name: tuple(v) if isinstance(v, list) else v for name, v in facts.items()}
            kind = facts.pop("type")
            text = next((one for one in TEXTS if one.__name__ == kind), None)
            features.append(kinds[kind](**facts) if text is None else text.of(facts, next(arrays)))
        return cls(features, value.get("columns"), value.get("reading"))


def check_features(table: Table, expressions: list[str]) -> None:
    """See what can be seen of features before any row is in a split.

    Raises:
        DataError: an expression is not SQL over columns that are there; or is a column of text that looks like
            numbers or dates which could not be read.
    """
    for expression in expressions:
        check(table, expression)
    for expression in expressions:
        name = column_named(expression)
        found = suspicion(table[name]) if name is not None and table.schema[name] == pl.String else None
        if found is None:
            continue
        hint = found.hint
        if found.strays:
            listed = ", ".join(f'"{text}"' for text in found.strays[:3]) + (", …" if len(found.strays) > 3 else "")
            hint = f'[dataset] missing = {{ "{name}" = [{listed}] }} makes it a number; {hint}'
        raise DataError(f"feature {name!r} {found.what}", hint=hint)


def _fitted(column: pl.Series, expression: str) -> Feature:
    """What a feature's training values make of it."""
    name, kind = column.name, column.dtype
    if isinstance(kind, pl.Categorical | pl.Enum):
        column, kind = column.cast(pl.String), pl.String()
    if kind == pl.String:
        values = sorted(column.fill_null(MISSING_CATEGORY).unique().to_list())
        if len(values) > MOST_CATEGORIES:
            raise DataError(
                f"feature {expression!r} is text with {len(values)} values in the training split",
                hint=f"at most {MOST_CATEGORIES} become categories. Read it word by word, with [dataset] text = "
                f'["{name}"] (import: --text {name}); CAST it to DOUBLE; or leave it out',
            )
        return CategoricalFeature(expression=expression, name=name, categories=tuple(values))
    if isinstance(kind, pl.List | pl.Array) and _is_number(kind.inner):
        return _fitted_list(column, expression)
    if not _is_number(kind) and kind not in TEMPORAL:
        raise DataError(
            f"feature {expression!r} is of type {kind}",
            hint="a feature is a number, text, a date or time, or a list of numbers",
        )
    numbers = _numbers(column)
    if numbers.null_count() == len(numbers):
        raise DataError(f"feature {expression!r} has no value in the training split", hint="leave it out")
    filled = numbers.drop_nulls().to_numpy()
    median, indicator = median_of(filled), numbers.null_count() > 0
    shift = median if lost_in_32_bits(filled[:, None])[0] else 0.0
    return NumericFeature(expression=expression, name=name, median=median, indicator=indicator, shift=shift)


def _fitted_list(column: pl.Series, expression: str) -> ListFeature:
    filled = column.drop_nulls()
    if filled.is_empty():
        raise DataError(f"feature {expression!r} has no value in the training split", hint="leave it out")
    lengths = _lengths(filled).value_counts(sort=True)
    width = int(lengths[lengths.columns[0]][0])
    if not 0 < width <= MOST_ELEMENTS:
        raise DataError(f"feature {expression!r} is a list of {width:,} numbers", hint=f"at most {MOST_ELEMENTS:,}")
    matrix = _matrix(filled, width, expression, 0)
    empty = np.isnan(matrix).all(axis=0)
    if empty.any():
        raise DataError(
            f"feature {expression!r}: number {int(empty.argmax())} of the list has no value in the training split",
            hint="cut it off, or leave the list out",
        )
    medians = tuple(np.nanmedian(matrix, axis=0).tolist())
    return ListFeature(expression=expression, name=column.name, medians=medians, indicator=len(filled) < len(column))


def encoded_columns(table: pl.DataFrame, feature: Feature, first_row: int) -> Iterable[np.ndarray]:
    """The columns of one feature: (rows,) or (rows, width) each."""
    if isinstance(feature, CategoricalFeature):
        values = evaluate(table, feature.expression, pl.String).fill_null(MISSING_CATEGORY)
        return [(values == category).to_numpy() for category in feature.categories]
    column = evaluate(table, feature.expression)
    if isinstance(feature, NumericFeature) and not feature.shift and not feature.indicator:
        clean = as_they_lie(column)
        if clean is not None:
            return [clean]
    if isinstance(feature, ListFeature):
        if column.dtype == pl.Null:
            column = column.cast(pl.List(pl.Float64))
        if not isinstance(column.dtype, pl.List | pl.Array):
            raise DataError(f"feature {feature.name!r} is of type {column.dtype}, not a list of numbers")
        medians, missing = np.array(feature.medians), column.is_null().to_numpy()
        matrix = np.empty((table.height, len(medians)))
        matrix[missing] = medians
        found = _matrix(column.drop_nulls(), len(medians), feature.expression, first_row, column)
        matrix[~missing] = np.where(np.isnan(found), medians, found)
        return [matrix, missing] if feature.indicator else [matrix]
    try:
        numbers = _numbers(column)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"feature {feature.name!r} is not a number: {str(error).splitlines()[0]}",
            hint=f"it is {feature.expression!r}; a missing number is an empty cell or a null",
        ) from error
    filled = numbers.fill_null(feature.median).to_numpy() - feature.shift
    return [filled, numbers.is_null().to_numpy()] if feature.indicator else [filled]


def _matrix(
    lists: pl.Series, width: int, expression: str, first_row: int, whole: pl.Series | None = None
) -> np.ndarray:
    """Lists without nulls as float64 (rows, width), NaN where a number is missing or not finite."""
    wrong = (_lengths(lists) != width).to_numpy()
    if wrong.any():
        at = int(wrong.argmax())
        row = (
            f" in row {first_row + int(np.flatnonzero(whole.is_not_null().to_numpy())[at])}"
            if whole is not None
            else ""
        )
        raise DataError(
            f"feature {expression!r} is a list of {_lengths(lists)[at]} numbers{row}, elsewhere of {width}",
            hint="every list needs the same length; a row without one has a null",
        )
    if not len(lists):
        return np.empty((0, width))
    flat = lists.cast(pl.List(pl.Float64)).explode(empty_as_null=False).fill_null(float("nan"))
    matrix = flat.to_numpy().reshape(len(lists), width).copy()
    matrix[~np.isfinite(matrix)] = np.nan
    return matrix


def _lengths(lists: pl.Series) -> pl.Series:
    return lists.list.len() if isinstance(lists.dtype, pl.List) else lists.arr.to_list().list.len()


def _is_number(kind: pl.DataType | type[pl.DataType]) -> bool:
    return kind.is_numeric() or kind == pl.Boolean


def _numbers(column: pl.Series) -> pl.Series:
    """As float64, times in days, with NaN and infinities as missing."""
    numbers = days(column) if column.dtype in TEMPORAL else column.cast(pl.Float64)
    if as_they_lie(numbers) is not None:  # by numpy, in a quarter of the time
        return numbers
    return numbers.to_frame().select(pl.when(pl.first().is_finite()).then(pl.first())).to_series()
