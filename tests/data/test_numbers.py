"""Numbers as they lie: the same bits as polars and numpy give them column by column."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conftest import patients

from l2d.data.cache.columns import (
    gaps,
    number_column,
    numbers,
    split_positions,
    text_column,
    text_of_series,
    texts_column,
    truth_column,
)
from l2d.data.cache.schema import SPLITS
from l2d.data.errors import DataError
from l2d.data.samples import features
from l2d.data.samples.features import FeatureEncoder
from l2d.data.samples.numbers import as_they_lie, in_threads, median_of, write_columns
from l2d.data.samples.standardise import LOST, lost_in_32_bits


@pytest.mark.parametrize("kind", [pa.string(), pa.float32(), pa.list_(pa.int8()), pa.null()])
@pytest.mark.parametrize("there", ["", "1", "0", "1101", "0" * 9 + "1" * 9])
def test_gaps_are_found_as_arrow_finds_them(kind, there):
    some = {pa.string(): "a", pa.float32(): 0.0, pa.list_(pa.int8()): []}.get(kind)
    values = [some if one == "1" else None for one in there]
    whole = pa.chunked_array([pa.array(values, kind), pa.array(values[:3], kind)], kind)
    for column in (whole, whole.slice(1), whole.slice(2, 9), whole.combine_chunks().slice(1)):
        assert gaps(column).tolist() == column.is_null().to_pylist()


def test_medians_have_the_bits_that_polars_gives_them():
    generator = np.random.default_rng(0)
    for count in (*range(1, 40), 999, 1000):
        for scale in (1e-300, 1e-5, 1.0, 1e12, 1e308):
            values = generator.uniform(-1, 1, count) * scale
            assert median_of(values).hex() == float(pl.Series(values).median()).hex()


@pytest.mark.parametrize("values", [[0.0], [-0.0], [-0.0, 0.0], [0.0, -0.0, -0.0], [-1.5e308, 1.6e308], [5.0, 5.0]])
def test_medians_of_zeros_and_of_numbers_whose_difference_is_too_large(values):
    assert median_of(np.array(values)).hex() == float(pl.Series(values).median()).hex()


@pytest.mark.parametrize("rows", [0, 1, 1023, 1024, 3000])
def test_columns_of_any_type_become_the_rows_of_a_matrix(rows):
    generator = np.random.default_rng(1)
    columns = [generator.normal(size=rows), generator.random(rows) < 0.5, generator.integers(0, 9, rows)]
    columns.append(generator.normal(size=rows).astype(np.float32))
    matrix = np.full((rows, 7), -1, np.float32)
    assert write_columns(matrix, 2, columns) == 6
    expected = np.stack([column.astype(np.float32) for column in columns], axis=1)
    assert np.array_equal(matrix[:, 2:6], expected)
    assert (matrix[:, [0, 1, 6]] == -1).all()
    assert write_columns(matrix, 3, []) == 3


def test_only_columns_of_finite_floating_numbers_are_taken_as_they_lie():
    assert as_they_lie(pl.Series([1.5, 2.5])).tolist() == [1.5, 2.5]
    assert as_they_lie(pl.Series([1.5, 2.5], dtype=pl.Float32)).dtype == np.float32
    for values in ([1.0, None], [1.0, float("nan")], [1.0, float("inf")], [1, 2], ["1"], [True]):
        assert as_they_lie(pl.Series(values)) is None


def test_what_is_lost_in_32_bits_is_what_rounding_moves():
    generator = np.random.default_rng(2)
    limits = np.finfo(np.float32)
    for middle in (0.0, 1.0, 1e3, 1e6, 1.7e9, 1e15, 1e37, 1e300):
        for spread in (0.0, 1e-200, 1e-40, 1e-3, 1.0, 20.0, 1e5, 1e36):
            values = middle + spread * generator.normal(size=50)
            with np.errstate(over="ignore"):
                moved = np.abs(values.astype(np.float32) - values).max()
                deviation = values.std()
            expected = np.abs(values).max() > limits.max
            expected |= deviation > 0 and (moved > LOST * deviation or deviation < limits.tiny)
            assert lost_in_32_bits(values[:, None])[0] == expected, (middle, spread)


def test_columns_are_what_pyarrow_makes_of_the_same_values():
    missing = np.array([False, True, False])
    values = np.array([1, 2, 3], np.int32)
    assert number_column(values, missing).equals(pa.array(values, mask=missing))
    assert truth_column(missing).equals(pa.array(missing))
    assert len(truth_column(np.zeros(0, bool))) == 0
    for texts in ([], [None, None], ["a", None, "ü"], ["x", "y"]):
        made = texts_column(texts)
        assert made.type == pa.string()
        assert made.equals(pa.array(texts, pa.string()))
    assert text_column(["train", "test"], np.array([1, 0, 1])).to_pylist() == ["test", "train", "test"]


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.float32(), pa.float64()])
def test_what_is_missing_of_a_column_is_a_number_in_the_array(kind):
    column = pa.chunked_array([pa.array([1, None, 3, 4], kind), pa.array([None] * 9 + [2], kind)])
    for part in (column, column.slice(1, 11), column.chunk(1).slice(3), column.slice(2, 2), column.slice(0, 0)):
        assert numbers(part).tolist() == [value or 0 for value in part.to_pylist()]
        assert numbers(part, missing=7).tolist() == [7 if value is None else value for value in part.to_pylist()]
    assert numbers(column).dtype == numbers(column.slice(0, 1)).dtype


def test_texts_of_polars_become_those_of_arrow():
    for values in ([], [None], ["a", None, "ü", ""], ["x"] * 3):
        series = pl.Series(values, dtype=pl.String)
        for part in (series, series[1:], pl.concat([series, series[:1]], rechunk=False)):
            found = text_of_series(part)
            found.validate(full=True)
            assert found.type == pa.string()
            assert found.to_pylist() == part.to_list()


def test_splits_are_told_by_their_names():
    names = ["test", "train", "validation", "train", "test"]
    column = pa.array(["validation", *names])[1:]
    assert split_positions(column).tolist() == [SPLITS.index(name) for name in names]
    assert split_positions(pa.chunked_array([column, column[:0]])).tolist() == [SPLITS.index(name) for name in names]
    assert split_positions(column[:0]).tolist() == []
    assert len({len(name) for name in SPLITS}) == len(SPLITS)  # what they are told by


def test_threads_make_what_a_loop_makes_and_raise_what_it_raises():
    assert in_threads(lambda k: k * k, range(50)) == in_threads(lambda k: k * k, range(50), False)
    for worth_it in (True, False):
        with pytest.raises(ZeroDivisionError, match="by zero"):
            in_threads(lambda k: 1 // (k - 3) if k < 5 else [].pop(), range(50), worth_it)


def test_features_of_many_blocks_are_those_of_one(monkeypatch):
    table = patients(200)
    expressions = [f'"{name}"' for name in ("x1", "ward", "stay")]
    rows = np.arange(200) % 3 > 0
    whole = FeatureEncoder.fit(table, expressions, rows=rows)
    found = whole.transform(table)
    monkeypatch.setattr(features, "ROWS_AT_ONCE", 32)
    blocks = FeatureEncoder.fit(table, expressions, rows=rows)
    assert blocks.to_json() == whole.to_json()
    np.testing.assert_array_equal(blocks.transform(table), found)
    broken = table.with_columns(x1=pl.when(pl.int_range(200) == 70).then(1e300).otherwise("x1"))
    with pytest.raises(DataError, match="feature 'x1' of row 70 "):
        blocks.transform(broken)
