"""Arithmetic of one row without polars: the bits of polars, or none at all."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from l2d.data.samples.features import FeatureEncoder, NumericFeature
from l2d.rejector.rows.unlabelled import InputRecord
from l2d.rejector.serving.encoding import RowEncoder
from l2d.rejector.serving.formulas import NotPlain, formula

TAKEN = ["ln(1 + x)", "LN(1 + x) AS more", "(x - y) / 2", "x / y", "-x * 3 + y", "sqrt(x)", "abs(x) - 0.1", "x + 1.5e3"]
LEFT = ["log10(x)", "x > 3", "coalesce(x, 0)", "x ^ 2", "'x'", "ln(x, 2)", "f(x)", "x ** 2", "z", "x % 2", "", "((x"]


@pytest.mark.parametrize("expression", TAKEN)
def test_bits_are_those_of_polars(expression):
    columns = pl.sql_expr(expression).meta.root_names()
    found = formula(expression, tuple(columns))
    assert found is not None
    generator = np.random.default_rng(7)
    rows = [*generator.normal(0, 50, (200, len(columns))).tolist(), [3] * len(columns), [0] * len(columns)]
    for row in rows:
        frame = pl.DataFrame({name: [value] for name, value in zip(columns, row, strict=True)})
        expected = frame.select(pl.sql_expr(expression).cast(pl.Float64)).item()
        own = found(row)
        assert own == expected or (math.isnan(own) and math.isnan(expected))
    assert math.isnan(found([None] * len(columns)))
    for odd in (True, "3", 10**12, np.float64(1)):
        with pytest.raises(NotPlain):
            found([odd] * len(columns))


@pytest.mark.parametrize("expression", LEFT)
def test_what_is_no_plain_arithmetic_is_left_to_polars(expression):
    assert formula(expression, ("x", "y")) is None


def test_an_encoder_gives_the_same_features_either_way():
    features = [
        NumericFeature(expression="ln(1 + x) AS more", name="more", median=0.5, indicator=True),
        NumericFeature(expression="x", name="x", median=1.0, indicator=False),
    ]
    whole = FeatureEncoder(features, {"x": "Float64"})
    encoder = RowEncoder(InputRecord(column="features", made=whole.to_json()), 3)
    assert encoder._formulas
    for value in (3.5, 0.0, -1.0, -5.0, 10**11, 4, None, math.nan, math.inf):
        frame = pl.DataFrame({"x": [value]}, schema={"x": pl.Int64 if isinstance(value, int) else pl.Float64})
        np.testing.assert_array_equal(encoder({"x": value}), whole.transform(frame)[0])
