"""Tables as datasets: features learned from training rows alone, SQL expressions, refusals that say where."""

from __future__ import annotations

import json

import hypothesis
import numpy as np
import polars as pl
import pytest
from conftest import load_patients as load
from conftest import patients, refused, table_settings
from hypothesis import strategies as st

from l2d.data.errors import DataError
from l2d.data.samples.expressions import evaluate
from l2d.data.samples.features import FeatureEncoder
from l2d.data.sources.table import TableConfig, load_table


def test_features_are_numbers_indicators_and_one_column_a_category(tmp_path):
    table = patients()
    dataset = load(tmp_path, table)
    train = [row for row, keep in zip(table.to_dicts(), dataset.train, strict=True) if keep]
    seen = sorted(row["x2"] for row in train if row["x2"] is not None)
    half = len(seen) // 2
    median = seen[half] if len(seen) % 2 else (seen[half - 1] + seen[half]) / 2
    assert dataset.inputs["features"]["names"] == ["x1", "x2", "x2 is missing", "ward = a", "ward = b", "ward = c"]
    for row, found in zip(table.to_dicts(), dataset.features, strict=True):
        expected = [row["x1"], median if row["x2"] is None else row["x2"], row["x2"] is None]
        expected += [row["ward"] == ward for ward in "abc"]
        np.testing.assert_allclose(found, np.float32(expected), rtol=1e-6)
    assert dataset.features.dtype == np.float32


def test_test_rows_teach_the_encoder_nothing(tmp_path):
    table = patients()
    before = load(tmp_path, table)
    test = pl.Series(before.split != "train")
    changed = table.with_columns(
        pl.when(test).then(1e6).otherwise(pl.col("x1")).alias("x1"),
        pl.when(test).then(None).otherwise(pl.col("x2")).alias("x2"),
        pl.when(test).then(pl.lit("new")).otherwise(pl.col("ward")).alias("ward"),
    )
    after = load(tmp_path, changed)
    assert after.inputs == before.inputs
    np.testing.assert_array_equal(after.features[before.train], before.features[before.train])
    assert (after.features[test.to_numpy()][:, 3:] == 0).all()  # an unseen category is all zeros
    fewer = load(tmp_path, changed.filter(~test | (pl.col("id") < "p0060")))
    assert fewer.inputs["features"]["names"] == before.inputs["features"]["names"]


def test_a_gap_in_test_rows_alone_gets_the_median_and_no_indicator(tmp_path):
    table = patients().with_columns(pl.col("x2").fill_null(0.25))
    split = load(tmp_path, table).split
    holed = table.with_columns(pl.when(pl.Series(split == "test")).then(None).otherwise(pl.col("x2")).alias("x2"))
    dataset = load(tmp_path, holed)
    assert "x2 is missing" not in dataset.inputs["features"]["names"]
    np.testing.assert_allclose(
        dataset.features[split == "test", 1], np.median(table["x2"].to_numpy()[split == "train"]), rtol=1e-6
    )


@pytest.mark.parametrize("feature", ["x1 - AVG(x1) AS centered", "x1 - LAG(x1) OVER (ORDER BY id) AS step"])
def test_a_feature_that_looks_at_other_rows_is_refused_since_it_would_leak_test_rows(tmp_path, feature):
    refused(lambda: load(tmp_path, patients(), features=[feature]), DataError, repr(feature), "more than its own row")


def test_not_a_number_and_infinity_count_as_missing(tmp_path):
    values = patients()["x1"].to_list()
    values[0], values[1], values[2] = float("nan"), float("inf"), float("-inf")
    encoder = FeatureEncoder.fit(pl.DataFrame({"x": values}), ["x"])
    found = encoder.transform(pl.DataFrame({"x": values}))
    np.testing.assert_array_equal(found[:4, 1], [1, 1, 1, 0])
    np.testing.assert_allclose(found[:3, 0], np.median(values[3:]), rtol=1e-6)


def test_a_missing_category_is_a_category_of_its_own():
    encoder = FeatureEncoder.fit(pl.DataFrame({"w": ["b", None, "a"]}), ["w"])
    assert encoder.names == ["w = (missing)", "w = a", "w = b"]
    found = encoder.transform(pl.DataFrame({"w": [None, "b", "z"]}))
    np.testing.assert_array_equal(found, [[1, 0, 0], [0, 0, 1], [0, 0, 0]])


def test_the_encoder_survives_json():
    table = patients()
    encoder = FeatureEncoder.fit(table[:80], ["x1", "x2 * 2 AS double", "ward", "x1 > 0 AS positive"])
    again = FeatureEncoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert again.names == encoder.names
    np.testing.assert_array_equal(again.transform(table), encoder.transform(table))


def test_sql_expressions_compute_what_they_say(tmp_path):
    table = patients()
    dataset = load(
        tmp_path,
        table,
        id="'h-' || id",
        target_cla="stay > 3",
        classes=["short", "long"],
        target_reg="log2(1 + stay)",
        features=["ln(stay) AS log_stay", "CASE WHEN ward = 'a' THEN 'A' ELSE 'other' END AS group", "1"],
    )
    stay = table["stay"].to_numpy()
    assert dataset.ids == [f"h-{sample}" for sample in table["id"]]
    np.testing.assert_array_equal(dataset.target_cla, stay > 3)
    np.testing.assert_allclose(dataset.target_reg, np.log2(1 + stay), rtol=1e-6)
    np.testing.assert_allclose(dataset.features[:, 0], np.log(stay), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(dataset.features[:, 1], table["ward"].to_numpy() == "a")
    np.testing.assert_array_equal(dataset.features[:, 3], 1)
    assert dataset.classes == ("short", "long")


WORDS = ["x1", "ward", "died", "AVG(", *"()+a1*,", "AS", "'b'", "NULL", "CASE", "WHEN", "END", "IN"]


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.one_of(st.text(max_size=12), st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)))
@pytest.mark.slow
def test_whatever_stands_as_an_expression_gives_a_value_a_row_or_is_refused(expression):
    table = patients(10)
    try:
        column = evaluate(table, expression)
    except DataError:
        return
    assert len(column) == 10


def test_where_keeps_rows_that_are_true_and_drops_unknown_ones(tmp_path):
    table = patients()
    dataset = load(tmp_path, table, where="x2 > 0 AND ward <> 'c'")
    kept = [r["id"] for r in table.to_dicts() if r["x2"] is not None and r["x2"] > 0 and r["ward"] != "c"]
    assert dataset.ids == kept


def test_classes_are_the_sorted_values_unless_named(tmp_path):
    dataset = load(tmp_path, patients(), target_cla="ward")
    assert dataset.classes == ("a", "b", "c")
    assert [dataset.classes[k] for k in dataset.target_cla] == patients()["ward"].to_list()


def test_csv_and_parquet_give_the_same_dataset(tmp_path):
    table = patients()
    table.write_csv(tmp_path / "table.csv")
    clusters = {"features": ["x1", "x2"], "count": 2}
    one = load(tmp_path, table, clusters=clusters)
    other = load_table(TableConfig(**table_settings(tmp_path / "table.csv", clusters=clusters)), "test")
    assert one.ids == other.ids
    for name in ("split", "features", "target_cla", "target_reg"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.fingerprint() == other.fingerprint()
    assert one.inputs == other.inputs
    assert one.columns["cluster"].equals(other.columns["cluster"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": ["x9"]}, "x9"),
        ({"features": ["x1 +"]}, r"x1 \+"),
        ({"features": ["x1", "x2 AS x1"]}, "two features are called 'x1'"),
        ({"features": ["CAST(NULL AS DOUBLE) AS nothing"]}, "no value in the training split"),
        ({"keep": ["nope"]}, "'nope'"),
        ({"target_cla": "no_such"}, "no_such"),
        ({"where": "x1 > 1000"}, "no rows are left"),
        ({"where": "ward"}, "ward"),
        ({"target_reg": "ward"}, "ward"),
        ({"target_cla": "1"}, "one value"),
        ({"target_cla": "x1"}, "2000 values"),
        ({"classes": ["a", "b", "c"]}, "3 classes"),
        ({"target_cla": None, "classes": ["a", "b"]}, "`classes` is given without"),
        ({"target_cla": None, "target_reg": None}, "no target"),
        ({"split": {"column": "ward"}}, "row 0 is in the split"),
        ({"clusters": {"count": 90}}, "90 clusters of"),
    ],
)
def test_a_setting_that_does_not_fit_the_table_is_refused_with_the_file_and_a_hint(tmp_path, changes, message):
    table = patients(2000) if changes.get("target_cla") == "x1" else patients()
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, table, **changes)
    assert str(caught.value.where) == str(tmp_path / "table.parquet")
    assert caught.value.hint


def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path):
    (tmp_path / "table.xlsx").write_bytes(b"x")
    for name, message in (("none.parquet", "no such file"), ("table.xlsx", "neither .parquet nor .csv")):
        with pytest.raises(DataError, match=message) as caught:
            load_table(TableConfig(**table_settings(tmp_path / name)), "test")
        assert caught.value.where == tmp_path / name


@pytest.mark.parametrize("length", [0, 3, 0.5, -1])
def test_a_truncated_parquet_file_is_refused(tmp_path, length):
    path = tmp_path / "table.parquet"
    patients().write_parquet(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(length * len(content)) if isinstance(length, float) else length])
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_table(TableConfig(**table_settings(path)), "test")
    assert caught.value.where == path


def test_a_repeated_id_names_both_rows(tmp_path):
    table = patients().with_columns(pl.when(pl.col("id") == "p0097").then(pl.lit("p0013")).otherwise("id").alias("id"))
    with pytest.raises(DataError, match="'p0013' stands at rows 13 and 97"):
        load(tmp_path, table)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("died", None, "row 7 has no target_cla"),
        ("stay", None, "sample 'p0007' has no finite target_reg"),
        ("stay", float("inf"), "sample 'p0007' has no finite target_reg"),
        ("id", None, "row 7 has no id"),
    ],
)
def test_a_missing_target_or_id_names_the_row(tmp_path, column, value, message):
    table = patients().with_row_index("row")
    table = table.with_columns(pl.when(pl.col("row") == 7).then(pl.lit(value)).otherwise(column).alias(column))
    with pytest.raises(DataError, match=message):
        load(tmp_path, table)


def test_a_class_that_is_not_a_number_is_missing_and_no_class(tmp_path):
    table = patients().with_columns(
        pl.when(pl.col("id") == "p0007").then(float("nan")).otherwise(pl.col("died").cast(pl.Float64)).alias("died")
    )
    with pytest.raises(DataError, match="7"):
        load(tmp_path, table)
