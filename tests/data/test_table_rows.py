"""How a user's table becomes samples: splits, columns that should not be features, dates, lists, images, classes."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import load_patients as load
from conftest import patients, table_settings

from l2d.data.errors import DataError
from l2d.data.samples.columns import is_row_number, why_not
from l2d.data.samples.digests import column_digest as _digest
from l2d.data.samples.expressions import evaluate
from l2d.data.samples.features import FeatureEncoder
from l2d.data.samples.splits import split_column
from l2d.data.sources.table import TableConfig, load_table


def load_csv(folder: Path, table: pl.DataFrame | str, **changes):
    path = folder / "table.csv"
    path.write_text(table if isinstance(table, str) else table.write_csv(), encoding="utf-8")
    return load_table(TableConfig(**table_settings(path, **changes)), "test")


def notes(dataset) -> str:
    return "\n".join([*dataset.inputs["table"]["columns"], *dataset.inputs["table"]["notes"]])


# --- splits -----------------------------------------------------------------------------------------------------------

BY_COLUMN = {"column": "split"}


def spelt(*names: str) -> pl.DataFrame:
    return patients().with_columns(split=pl.Series([names[row % len(names)] for row in range(120)]))


@pytest.mark.parametrize(
    "names",
    [("train", "validation", "test"), ("tr", "val", "te"), ("TRAIN", "dev", "Test"), ("training", "eval", "testing"),
     ("train ", " valid", "test")],
)  # fmt: skip
def test_known_spellings_of_splits_are_mapped_and_said(tmp_path, names):
    dataset = load(tmp_path, spelt(*names), split=BY_COLUMN)
    assert dataset.split.tolist() == ["train", "validation", "test"] * 40
    for name, split in zip(names, ("train", "validation", "test"), strict=True):
        assert (f"{name!r} is {split}" in notes(dataset)) == (name != split)


def test_a_cell_that_names_no_split_is_refused_with_row_and_value(tmp_path):
    table = spelt("train", "validation", "test")
    split = table["split"].to_list()
    split[7] = "holdout"
    with pytest.raises(DataError, match=r"row 7 is in the split 'holdout' \(1 rows") as refused:
        load(tmp_path, table.with_columns(split=pl.Series(split)), split=BY_COLUMN)
    assert "dev" in refused.value.hint
    split[7] = None
    with pytest.raises(DataError, match="row 7 names no split"):
        load(tmp_path, table.with_columns(split=pl.Series(split)), split=BY_COLUMN)


def test_eval_beside_validation_is_refused(tmp_path):
    with pytest.raises(DataError, match="'eval' and 'validation', and one may be the test split"):
        load(tmp_path, spelt("train", "validation", "eval"), split=BY_COLUMN)


def test_without_validation_rows_a_share_of_training_is_taken_and_said(tmp_path):
    split = {**BY_COLUMN, "validation": 0.25, "train": 0.5, "test": 0.25}
    dataset = load(tmp_path, spelt("train", "test"), split=split)
    assert (dataset.split[1::2] == "test").all()
    assert (dataset.split == "validation").sum() == 15
    assert (dataset.split[0::2] != "test").all()
    assert "'split' names no validation rows, so 15 are drawn from training" in notes(dataset)
    again = load(tmp_path, spelt("train", "test")[::-1], split=split)
    one, other = (set(np.array(found.ids)[found.split == "validation"]) for found in (dataset, again))
    assert one == other


@pytest.mark.parametrize(("names", "lacking"), [(("train", "validation"), "test"), (("val", "test"), "train")])
def test_a_split_column_without_training_or_test_rows_is_refused(tmp_path, names, lacking):
    with pytest.raises(DataError, match=f"{lacking} split has (no|0) samples"):
        load(tmp_path, spelt(*names), split=BY_COLUMN)


def test_a_split_column_that_is_not_used_is_told(tmp_path):
    assert "the column 'split' is not used, split = { column" in notes(load(tmp_path, spelt("train", "dev", "test")))
    assert "the column 'split' is not used, its values" in notes(load(tmp_path, spelt("a", "b")))
    assert "splits" not in notes(load(tmp_path, patients()))


def test_the_split_column_of_a_table_is_known_by_name_and_values():
    assert split_column(pl.DataFrame({"Set": ["train", "Test"]})) == "Set"
    assert split_column(pl.DataFrame({"split": ["train", "strange"]})) == "split"  # and refused when it is used
    assert split_column(pl.DataFrame({"split": ["train", "val"]}).cast(pl.Categorical)) == "split"
    assert split_column(pl.DataFrame({"set": ["a", "b"], "fold": [1, 2]})) is None
    assert split_column(pl.DataFrame({"kind": ["train", "test"]})) is None


def test_a_misspelt_feature_is_told_before_the_splits_of_a_tiny_table(tmp_path):
    with pytest.raises(DataError, match="'warrd'") as refused:
        load(tmp_path, patients()[:3], features=["x1", "warrd"])
    assert "did you mean 'ward'?" in refused.value.hint
    with pytest.raises(DataError, match="'wrd'"):
        load(tmp_path, patients()[:3], features=["x1"], split={"stratify": ["wrd"]})


# --- columns ----------------------------------------------------------------------------------------------------------

ROW_NUMBERS = {
    "Unnamed: 0": np.arange(40),
    "index": np.arange(40)[::-1],
    "level_0": np.arange(40) * 7 + 3,  # of a table from which rows were taken
    "__index_level_0__": np.random.default_rng(0).permutation(400)[:40],
    "rownames": np.arange(1, 41),
    "anything": np.arange(40),
    "shuffled": np.random.default_rng(0).permutation(40) + 1,
    "as a float": np.arange(40) * 1.0,
    "(column 1)": np.arange(40) * 2,
}


@pytest.mark.parametrize("name", ROW_NUMBERS)
def test_row_numbers_are_known(name):
    column = pl.Series(name, ROW_NUMBERS[name])
    assert is_row_number(column)
    assert why_not(column) == "row numbers"


@pytest.mark.parametrize(
    "values",
    [
        np.arange(40) // 2,
        np.random.default_rng(0).integers(0, 40, 40),
        np.arange(40) * 0.5,
        np.arange(40) * 7,
        range(5),
    ],
)
def test_other_numbers_are_not_row_numbers(values):
    assert not is_row_number(pl.Series("x", values))


def test_a_nameless_first_column_of_pandas_is_a_row_number_and_told(tmp_path):
    rows = patients().sort("died").with_row_index("")
    dataset = load_csv(tmp_path, rows, features=["x1", '"(column 1)"'])
    assert "warning: feature '(column 1)' counts the rows" in notes(dataset)
    dataset = load_csv(tmp_path, rows)
    assert "(column 1) (row numbers)" in dataset.inputs["table"]["columns"][1]
    assert "warning" not in notes(dataset)


def test_what_became_of_the_columns(tmp_path):
    table = patients().with_columns(
        day=pl.date(2024, 1, 1) + pl.duration(days=pl.int_range(120) % 30),
        emb=pl.concat_list("x1", pl.col("x1") * 2),
        one=pl.lit(1),
        note=pl.format("note {}", pl.int_range(120) * 7919 % 127),
    )
    dataset = load(tmp_path, table, features=["x1", "x2", "ward", "day", "emb"])
    features, others = dataset.inputs["table"]["columns"]
    assert features == "features: 2 numbers; categories: ward (3 values); in days: day; lists: emb (2 numbers)"
    assert others.startswith("not features: ")
    assert "one (one value)" in others
    assert "note (text of 120 values)" in others
    assert "died" not in others


UNREAD = {
    "unknown": ('"unknown" among numbers', "unknown", r"row 60 is 'unknown'", 'missing = { "x" = ["unknown"] }'),
    "n.a.": ("a marker that is not known", "n.a.", r"row 60 is 'n.a.'", 'missing = { "x" = ["n.a."] }'),
}


@pytest.mark.parametrize("case", UNREAD)
def test_a_number_with_a_stray_text_is_refused_with_both_ways_out(tmp_path, case):
    _, stray, said, hint = UNREAD[case]
    cells = [f"{k / 3}" for k in range(120)]
    cells[60] = stray
    table = patients().with_columns(x=pl.Series(cells))
    with pytest.raises(DataError, match=said) as refused:
        load_csv(tmp_path, table, features=["x", "ward"])
    assert hint in refused.value.hint
    assert 'CAST("x" AS VARCHAR) makes it a category' in refused.value.hint
    dataset = load_csv(tmp_path, table, features=["x", "ward"], missing={"x": [stray]})
    assert dataset.inputs["features"]["names"][0] == "x"
    assert dataset.inputs["features"]["reading"] == {"missing": {"x": [stray]}}
    with pytest.raises(DataError, match=r"text that holds numbers|cells are numbers"):
        load(tmp_path, table, features=["x"])  # in Parquet, where nothing is guessed


def test_missing_names_columns_that_are_there(tmp_path):
    with pytest.raises(DataError, match="`missing` names 'y'"):
        load_csv(tmp_path, patients(), missing={"y": ["?"]})


def test_a_class_called_NA_is_a_class(tmp_path):
    table = patients().with_columns(region=pl.Series(["EU", "NA", "null"] * 40))
    for dataset in (
        load(tmp_path, table, target_cla="region"),
        load_csv(tmp_path, table, target_cla="region"),
    ):
        assert dataset.classes == ("EU", "NA", "null")
        assert [dataset.classes[k] for k in dataset.target_cla] == table["region"].to_list()
    category = load_csv(tmp_path, table, features=["region"])
    assert category.inputs["features"]["names"] == ["region = EU", "region = NA", "region = null"]


def test_many_classes_and_what_is_no_class(tmp_path):
    table = pl.concat([patients(4000)] * 1).with_columns(topic=pl.Series([f"t{k % 1500:04d}" for k in range(4000)]))
    dataset = load(tmp_path, table, target_cla="topic")
    assert len(dataset.classes) == 1500
    assert dataset.classes[dataset.target_cla[1503]] == "t0003"
    with pytest.raises(DataError, match="4000 values in 4000 rows"):
        load(tmp_path, table, target_cla="id")


# --- dates ------------------------------------------------------------------------------------------------------------


def stays() -> pl.DataFrame:
    start = [date(2024, 1, 1) + timedelta(days=k) for k in range(120)]
    return patients().with_columns(
        admitted=pl.Series(start), discharged=pl.Series([day + timedelta(days=k % 17) for k, day in enumerate(start)])
    )


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_the_length_of_a_stay_is_in_days(tmp_path, form):
    settings = {
        "target_reg": "discharged - admitted",
        "features": ["discharged - admitted AS stay", "(discharged - admitted) / INTERVAL '1 day' AS days", "admitted"],
    }
    dataset = (load if form == "parquet" else load_csv)(tmp_path, stays(), **settings)
    expected = [k % 17 for k in range(120)]
    assert dataset.target_reg.tolist() == expected
    assert dataset.features[:, 0].tolist() == dataset.features[:, 1].tolist() == expected
    assert dataset.features[0, 2] == (date(2024, 1, 1) - date(1970, 1, 1)).days


def test_times_and_durations_are_days_whatever_their_unit():
    moment = datetime(2024, 1, 2, 6, 0)
    for unit in ("ms", "us", "ns"):
        frame = pl.DataFrame({"t": pl.Series([moment], dtype=pl.Datetime(unit)), "day": [date(2024, 1, 1)]})
        frame = frame.with_columns(z=pl.col("t").dt.replace_time_zone("Europe/Paris"), u=pl.col("t").dt.time())
        epoch = (moment - datetime(1970, 1, 1)).total_seconds() / 86400
        assert evaluate(frame, "t", pl.Float64).to_list() == [epoch]
        assert evaluate(frame, "t - day", pl.Float64).to_list() == [1.25]
        assert evaluate(frame, "z", pl.Float64).to_list() == [pytest.approx(epoch - 1 / 24)]
        assert evaluate(frame, "u", pl.Float64).to_list() == [0.25]
        found = FeatureEncoder.fit(frame, ["t - day AS stay"]).transform(frame)
        assert found.tolist() == [[1.25]]


@pytest.mark.parametrize(
    "expression",
    ["CAST(discharged - admitted AS DOUBLE)", "1 + (discharged - admitted)::int", "CAST(admitted AS BIGINT) AS day",
     "CASE WHEN CAST(discharged - admitted AS BIGINT) > 3 THEN 1 ELSE 0 END"],
)  # fmt: skip
def test_a_time_cast_to_a_number_of_no_unit_is_refused(expression):
    with pytest.raises(DataError, match=r"casts a (date|duration) to a number") as refused:
        evaluate(stays(), expression)
    assert "INTERVAL '1 day'" in refused.value.hint


@pytest.mark.parametrize(
    "expression",
    ["(discharged - admitted) > 3", "CASE WHEN died = 1 THEN discharged - admitted ELSE 0 END", "admitted > 19000",
     "3 < discharged - admitted", "discharged - STRPTIME('2024-01-01', '%Y-%m-%d') >= 5"],
)  # fmt: skip
def test_a_time_beside_a_number_is_refused(expression):
    with pytest.raises(DataError, match=r"takes a (date|duration) for a number"):
        evaluate(stays(), expression)


@pytest.mark.parametrize(
    "expression",
    ["(discharged - admitted) > INTERVAL '3 days'", "(discharged - admitted) / INTERVAL '1 day' > 3",
     "CASE WHEN discharged - admitted > INTERVAL '3 days' THEN 1 ELSE 0 END", "EXTRACT(DAY FROM admitted) > 3",
     "CASE WHEN died = 1 THEN discharged ELSE admitted END", "(discharged - admitted) * 2"],
)  # fmt: skip
def test_times_beside_times_are_taken_as_they_are(expression):
    assert len(evaluate(stays(), expression)) == 120


def test_casts_that_are_no_times_are_as_they_were():
    frame = stays()
    assert evaluate(frame, "CAST(died AS DOUBLE)").dtype == pl.Float64
    assert evaluate(frame, "CAST(admitted AS VARCHAR)")[0] == "2024-01-01"
    assert evaluate(frame, "EXTRACT(YEAR FROM admitted)")[0] == 2024


def test_a_date_compared_with_text_is_refused_with_how_it_is_written(tmp_path):
    with pytest.raises(DataError) as refused:
        load_csv(tmp_path, stays(), where="admitted > '2024-01-31'")
    assert "DATE '2024-01-31'" in refused.value.hint
    assert len(load_csv(tmp_path, stays(), where="admitted > DATE '2024-01-31'")) == 89


def test_dates_of_another_form_are_refused_and_read_with_strptime(tmp_path):
    table = stays().with_columns(admitted=pl.col("admitted").dt.strftime("%d/%m/%Y"))
    with pytest.raises(DataError, match="look like dates") as refused:
        load_csv(tmp_path, table, features=["admitted"])
    assert "STRPTIME" in refused.value.hint
    dataset = load_csv(tmp_path, table, target_reg="discharged - STRPTIME(admitted, '%d/%m/%Y')")
    assert dataset.target_reg.tolist() == [k % 17 for k in range(120)]


# --- lists ------------------------------------------------------------------------------------------------------------


def embedded(rows: int = 120, width: int = 5) -> tuple[pl.DataFrame, np.ndarray]:
    values = np.random.default_rng(1).normal(size=(rows, width))
    return patients(rows).with_columns(emb=pl.Series(values.tolist())), values


@pytest.mark.parametrize("form", ["list", "array", "json", "numpy"])
def test_a_list_of_numbers_is_as_many_features(tmp_path, form):
    table, values = embedded()
    if form == "array":
        table = table.with_columns(pl.col("emb").cast(pl.Array(pl.Float64, 5)))
    if form in ("json", "numpy"):
        separator = ", " if form == "json" else " "
        cells = [f"[{separator.join(map(repr, row))}]" for row in values.tolist()]
        dataset = load_csv(tmp_path, table.with_columns(emb=pl.Series(cells)), features=["x1", "emb"])
    else:
        dataset = load(tmp_path, table, features=["x1", "emb"])
    assert dataset.inputs["features"]["names"] == ["x1", *(f"emb[{k}]" for k in range(5))]
    np.testing.assert_array_equal(dataset.features[:, 1:], values.astype(np.float32))


def test_gaps_in_lists_become_medians_and_missing_lists_are_marked():
    table = pl.DataFrame({"e": [[1.0, 2.0], None, [3.0, None], [float("nan"), 6.0]]})
    encoder = FeatureEncoder.fit(table, ["e"])
    assert encoder.names == ["e[0]", "e[1]", "e is missing"]
    assert encoder.transform(table).tolist() == [[1, 2, 0], [2, 4, 1], [3, 4, 0], [2, 6, 0]]
    again = FeatureEncoder.from_json(encoder.to_json())
    assert again.transform(table).tolist() == encoder.transform(table).tolist()
    assert again.transform(table[1:2]).tolist() == [[2, 4, 1]]


def test_lists_of_another_length_are_refused_by_row():
    table = pl.DataFrame({"e": [[1.0, 2.0], None, [3.0]]})
    encoder = FeatureEncoder.fit(table[:2], ["e"])
    with pytest.raises(DataError, match=r"list of 1 numbers in row 12, elsewhere of 2"):
        encoder.transform(table, first_row=10)
    with pytest.raises(DataError, match=r"list of .* numbers, elsewhere of"):
        FeatureEncoder.fit(table, ["e"])
    with pytest.raises(DataError, match="is of type List"):
        FeatureEncoder.fit(pl.DataFrame({"e": [["a"], ["b"]]}), ["e"])


def test_a_list_is_part_of_what_tells_a_dataset_from_another(tmp_path):
    table, _ = embedded()
    one = load(tmp_path, table).content["column emb"]
    assert one == load(tmp_path, table.with_columns(pl.col("emb").cast(pl.Array(pl.Float64, 5)))).content["column emb"]
    moved = table.with_columns(emb=pl.col("emb").list.reverse())
    assert one != load(tmp_path, moved).content["column emb"]


def test_a_number_that_32_bits_cannot_hold_is_kept_less_a_constant():
    seconds = 1.7e9 + np.arange(100) * 0.25
    table = pl.DataFrame({"t": seconds, "x": np.arange(100) / 7})
    encoder = FeatureEncoder.fit(table, ["t", "x"])
    median = float(np.median(seconds))
    assert encoder.names == [f"t - {median:.10g}", "x"]
    np.testing.assert_array_equal(encoder.transform(table)[:, 0], (seconds - median).astype(np.float32))
    assert len(np.unique(encoder.transform(table)[:, 0])) == 100


# --- images -----------------------------------------------------------------------------------------------------------


def test_a_column_of_file_names_are_images(tmp_path):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for k in range(120):
        Image.new("RGB", (20, 12), (k, 2 * k, 0)).save(tmp_path / "pictures" / f"{k}.png")
    table = patients().with_columns(file=pl.format("{}.png", pl.int_range(120)))
    settings = {"features": None, "image": "'pictures/' || file", "image_size": 8}
    for dataset in (load(tmp_path, table, **settings), load_csv(tmp_path, table, **settings)):
        assert dataset.images[7] == tmp_path / "pictures" / "7.png"
        assert dataset.image_size == 8
        assert dataset.features is None
        assert dataset.inputs["image"] == {"file": "'pictures/' || file"}
    (tmp_path / "pictures" / "9.png").unlink()
    with pytest.raises(DataError, match="row 9: there is no such image") as refused:
        load(tmp_path, table, **settings)
    assert refused.value.where == tmp_path / "pictures" / "9.png"
    for changes, said in (
        ({"image": None, "features": ["x1"]}, "`image_size` needs"),
        ({"image": None, "image_size": None}, "to look at"),
    ):
        with pytest.raises(ValueError, match=said):
            load(tmp_path, table, **{**settings, **changes})


# --- digests ----------------------------------------------------------------------------------------------------------

COLUMNS = [
    [1, 2, 3],
    [1, 2, None],
    [1, None, 2],
    [2, 1, 3],
    [1.0, 2.0, 3.0],
    [1.0, 2.0, float("nan")],
    [1.0, 2.0, -0.0],
    [1.0, 2.0, 0.0],
    ["ab", "c", ""],
    ["a", "bc", ""],
    ["ab", "c", None],
    ["1", "2", "3"],
    [True, False, True],
    [True, True, False],
    [date(2024, 1, 1), date(2024, 1, 2), None],
    [datetime(2024, 1, 1), datetime(2024, 1, 2), None],
    [timedelta(days=1), timedelta(days=2), None],
    [[1.0], [2.0, 3.0], []],
    [[1.0, 2.0], [3.0], []],
    [[1.0], [2.0, 3.0], None],
    [b"a", b"b", b"c"],
    [{"a": 1}, {"a": 2}, None],
]


def test_columns_of_other_values_have_other_digests():
    digests = [_digest(pl.Series("x", values)) for values in COLUMNS]
    assert len(set(digests)) == len(COLUMNS)
    assert digests == [_digest(pl.Series("y", values)) for values in COLUMNS]


def test_a_digest_tells_values_and_not_the_width_they_are_stored_in(monkeypatch):
    numbers, text = pl.Series([1, None, 3]), pl.Series(["a", None, "b"])
    assert _digest(numbers) == _digest(numbers.cast(pl.Int8)) == _digest(numbers.cast(pl.UInt32))
    assert _digest(numbers) != _digest(numbers.cast(pl.Float64))
    assert _digest(numbers.cast(pl.Float32)) == _digest(numbers.cast(pl.Float64))
    assert _digest(text) == _digest(text.cast(pl.Categorical)) == _digest(text.cast(pl.Enum(["a", "b"])))
    times = pl.Series([datetime(2024, 1, 1, 12)])
    paris = times.dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Paris")
    assert _digest(times) == _digest(times.cast(pl.Datetime("ms"))) == _digest(paris)
    whole = pl.concat([pl.Series([1.5, 2.5]), pl.Series([3.5])], rechunk=False)
    assert _digest(whole) == _digest(whole.rechunk())
