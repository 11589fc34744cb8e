"""Text tables: separators, headers, missing cells, and cells that hold numbers, dates and lists."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import hypothesis
import numpy as np
import polars as pl
import pytest
from hypothesis import strategies as st

from l2d.data.errors import DataError
from l2d.data.samples import cells
from l2d.data.samples.stream import FileStream
from l2d.data.sources.text_table import Reading, read_header, read_table, read_text


def read(folder: Path, content: str, **options) -> tuple[pl.DataFrame, Reading]:
    path = folder / "table.csv"
    path.write_text(content, encoding="utf-8")
    return read_table(path, **options)


NUMBERS = {
    "plain": (["1", "-2.5", "1e3", ""], [1, -2.5, 1000, None], []),
    "blanks": (["1", " 41.5", "2 ", " "], [1, 41.5, 2, None], []),
    "thousands": (['"1,234"', "7", '"-1,234,567.5"', ""], [1234, 7, -1234567.5, None], ["1,234.5: x"]),
    "whole thousands": (['"1,234"', "7", '"12,000"'], [1234, 7, 12000], ["1,234.5: x"]),
    "decimal comma": (['"1,5"', '"1.234,25"', "7"], [1.5, 1234.25, 7], ["1.234,5: x"]),
    "powers of ten": (['"1,5e3"', '"2,25E-1"', "7"], [1500, 0.225, 7], ["1.234,5: x"]),
    "a zero before the comma": (['"0,123"', '"1,500"'], [0.123, 1.5], ["1.234,5: x"]),
    "NA among numbers": (["1", "NA", "3", "NA"], [1, None, 3, None], ["missing numbers: x ('NA' 2)"]),
    "a dash": (["1.5", "-", "3"], [1.5, None, 3], ["missing numbers: x ('-' 1)"]),
    "leading zeros": (["007", "10"], [7, 10], []),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_are_recognised_however_they_are_written(tmp_path, case):
    written, expected, said = NUMBERS[case]
    frame, reading = read(tmp_path, "id,x\n" + "".join(f"c{k},{cell}\n" for k, cell in enumerate(written)))
    assert frame["x"].dtype.is_numeric()
    assert frame["x"].to_list() == expected
    assert all(any(text in line for line in reading.lines()) for text in said)
    assert len(reading.lines()) == len(said)


def test_whole_numbers_stay_whole(tmp_path):
    frame, _ = read(tmp_path, 'a,b,c\n1,1.0,"1,000"\n 2,2.0,"2,000"\n')
    assert frame.dtypes == [pl.Int64, pl.Float64, pl.Int64]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_the_separator_is_that_of_the_header(tmp_path, separator):
    frame, reading = read(tmp_path, f"id{separator}x\na{separator}1\nb{separator}2\n")
    assert frame.to_dict(as_series=False) == {"id": ["a", "b"], "x": [1, 2]}
    assert reading.separator == separator
    assert reading.lines() == [f"cells are separated by {separator!r}"]


def test_in_a_semicolon_table_the_comma_is_the_decimal_sign_and_the_point_groups(tmp_path):
    frame, reading = read(tmp_path, "id;x;y;z\na;1,5;1.234;0.5\nb;2,25;2;1.5\n")
    assert frame["x"].to_list() == [1.5, 2.25]
    assert frame["y"].to_list() == [1234, 2]  # as the comma is for decimals in x
    assert frame["z"].to_list() == [0.5, 1.5]  # not a group of thousands
    assert reading.notations == {"x": cells.COMMA, "y": cells.COMMA}
    assert read(tmp_path, "id;x\na;1.234\nb;2.5\n")[0]["x"].to_list() == [1.234, 2.5]


def test_only_the_empty_cell_is_missing_in_text(tmp_path):
    frame, reading = read(tmp_path, 'id,c\na,NA\nb,\nc,null\nd,"NA "\ne,""\nf,N/A\ng,nan\nh,EU\n')
    assert frame["c"].to_list() == ["NA", None, "null", "NA", None, "N/A", "nan", "EU"]
    assert reading.lines() == []


def test_what_is_missing_is_what_the_user_says(tmp_path):
    text = "id,x,c\na,1,NA\nb,unknown,\nc,NA,unknown\nd,-999,EU\n"
    frame, _ = read(tmp_path, text, missing=["unknown", "NA", "-999"])
    assert frame["x"].to_list() == [1, None, None, None]
    assert frame["c"].to_list() == [None, None, None, "EU"]
    frame, reading = read(tmp_path, text, missing={"x": ["unknown", "NA"]})
    assert frame["x"].to_list() == [1, None, None, -999]
    assert frame["c"].to_list() == ["NA", None, "unknown", "EU"]
    assert reading.lines() == []
    frame, _ = read(tmp_path, "id,x\na,1\nb,NA\n", missing=[])
    assert frame["x"].to_list() == ["1", "NA"]


def test_text_of_parquet_has_real_nulls(tmp_path):
    table = pl.DataFrame({"c": ["NA", None, "", "null"], "x": ["1", "2", "3", " 4"]})
    table.write_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet")[0].equals(table)
    found, _ = read_table(tmp_path / "t.parquet", missing={"c": ["null"]})
    assert found["c"].to_list() == ["NA", None, "", None]
    numbers = pl.DataFrame({"a": [1, -999, None], "b": [-999.0, 0.5, float("nan")], "c": ["-999", "x", None]})
    numbers.write_parquet(tmp_path / "n.parquet")
    found, _ = read_table(tmp_path / "n.parquet", missing=["-999", "x"])
    assert found["a"].to_list() == [1, None, None]
    assert found["b"][:2].to_list() == [None, 0.5]
    assert found["b"].is_nan()[2]
    assert found["c"].to_list() == [None, None, None]
    assert found.dtypes == numbers.dtypes


def test_dates_and_times_are_recognised_in_iso_form(tmp_path):
    frame, reading = read(
        tmp_path,
        "id,day,time,zoned,other\na,2024-01-31,2024-01-31 10:00,2024-01-31T10:00:00Z,31/01/2024\n"
        "b,,2024-02-01T11:30:00.5,2024-01-31T10:00:00+02:00,01/02/2024\n",
    )
    assert frame["day"].to_list() == [date(2024, 1, 31), None]
    assert frame["time"].to_list() == [datetime(2024, 1, 31, 10), datetime(2024, 2, 1, 11, 30, 0, 500_000)]
    assert frame["zoned"].to_list() == [datetime(2024, 1, 31, 10), datetime(2024, 1, 31, 8)]
    assert frame["other"].dtype == pl.String
    assert reading.lines() == ["read as dates: day, time, zoned"]
    assert read(tmp_path, "day\n2024-02-29\n2023-02-29\n")[0]["day"].dtype == pl.String  # not a day of that year


def test_lists_of_numbers_are_recognised_as_json_and_numpy_write_them(tmp_path):
    frame, _ = read(tmp_path, 'id,e,n\na,"[0.5, -1e-3]",[1 2]\nb,"[1, 2]","[ 0.5\n  3. ]"\nc,,[4 5]\n')
    assert frame["e"].to_list() == [[0.5, -1e-3], [1, 2], None]
    assert frame["n"].to_list() == [[1, 2], [0.5, 3], [4, 5]]
    assert read(tmp_path, "id,e\na,[x]\nb,[1]\n")[0]["e"].to_list() == ["[x]", "[1]"]


def test_ids_are_text_without_the_blanks_around_them(tmp_path):
    frame, _ = read(tmp_path, "id,x\n007,1\n 8,2\nNA,3\n", text=["id"])
    assert frame["id"].to_list() == ["007", "8", "NA"]


def test_nameless_columns_and_names_given_twice_get_numbers(tmp_path):
    frame, reading = read(tmp_path, ",x,y,x, \n1,2,3,4,5\n")
    assert frame.columns == ["(column 1)", "x (column 2)", "y", "x (column 4)", "(column 5)"]
    assert frame.row(0) == (1, 2, 3, 4, 5)
    lines = reading.lines()
    assert "column 1 has no name: it is called '(column 1)'" in lines
    assert "the header has 'x' 2 times: they are called 'x (column 2)', 'x (column 4)'" in lines


def test_a_header_with_blanks_a_mark_of_order_and_quotes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfid, "b; c" , d\n1,2,3\n')
    assert read_header(path).names[::2] == ("id", "d")
    path.write_bytes('\ufeff"a,b";c;d\n1;2;3\n'.encode())
    assert read_header(path).names == ("a,b", "c", "d")


REFUSED = {
    "nothing": (b"", "is empty"),
    "no header": (b"1,2.5\n3,4\n", "holds numbers, not names"),
    "latin-1": ("id,x\né,1\n".encode("latin-1"), "UTF-8|utf-8"),
    "a cell too many": (b"id,x\na,1,2\n", "more fields"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_cannot_be_read_are_refused_by_name(tmp_path, case):
    content, said = REFUSED[case]
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=said) as refused:
        read_table(tmp_path / "t.csv")
    assert refused.value.where == tmp_path / "t.csv"
    assert refused.value.hint


def test_the_way_through_text_gives_what_the_quick_way_gives(tmp_path):
    rows = [f"r{k},{k},{k / 7},{k % 2 == 0},{'ab'[k % 2]}" for k in range(3000)]
    quick, _ = read(tmp_path, "\n".join(["id,n,f,b,c", *rows]))
    slow, reading = read(
        tmp_path, "\n".join(["id,n,f,b,c,late", *(f"{row},{k}" for k, row in enumerate(rows)), "z,,,,,NA"])
    )
    assert slow.drop("late")[:3000].equals(quick)
    assert reading.markers == {"late": {"NA": 1}}


def test_everything_as_text(tmp_path):
    (tmp_path / "t.csv").write_text("id;x\n007; 1,5\nNA;\n")
    frame, header = read_text(tmp_path / "t.csv")
    assert frame.rows() == [("007", "1,5"), ("NA", None)]
    assert header.separator == ";"


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64) | st.none(), min_size=1))
def test_a_number_that_is_written_is_the_number_that_is_read(values):
    column = pl.Series("x", [None if value is None else repr(value) for value in values], pl.String)
    found = cells.typed(column).values
    if any(value is not None for value in values):
        assert found.cast(pl.Float64).to_list() == values


SUSPICIOUS = {
    "one unknown among thousands": (
        [*map(str, range(3000)), "unknown"],
        "3,000 of 3,001 cells are numbers, row 3000 is",
    ),
    "numbers as text": ([str(k / 2) for k in range(50)], "text that holds numbers, 50 different"),
    "days of another form": (["31/01/2024", "01/02/2024"], "look like dates"),
    "a day that is not": (["2023-02-28", "2023-02-29"], "look like dates, such as '2023-02-29'"),
    "dollars": ([f"${k},000" for k in range(1, 40)], "look like numbers"),
    "units": ([f"{k} mg" for k in range(40)], "look like numbers"),
    "another minus": ([f"\u2212{k}.5" for k in range(40)], "look like numbers"),
    "per cent": ([f"{k}%" for k in range(40)], "look like numbers"),
}


@pytest.mark.parametrize("case", SUSPICIOUS)
def test_text_that_ought_to_be_numbers_or_dates_is_noticed(case):
    values, said = SUSPICIOUS[case]
    assert said in cells.suspicion(pl.Series("x", values)).what


@pytest.mark.parametrize(
    "values",
    [["a", "b"], ["1", "2", "3", "none"], [f"ICU{k}" for k in range(50)], ["NA", "EU"], [f"V{k}.1" for k in range(30)]],
)
def test_categories_are_not_suspicious(values):
    assert cells.suspicion(pl.Series("x", values)) is None


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_stream_reads_what_the_whole_reader_reads(tmp_path, form):
    """Batch by batch, with the types, notations and missing values of the table that was read as a whole."""
    generator = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "n": generator.integers(-999, 5000, 500),
            "f": generator.normal(size=500).round(3) * 1000,
            "c": generator.choice(["NA", "EU", "x"], 500),
            "t": [f"2024-01-{1 + k % 31:02d}T{k % 24:02d}:00" for k in range(500)],
        }
    ).with_columns(n=pl.when(pl.int_range(500) % 7 == 0).then(-999).otherwise("n"))
    path = tmp_path / f"t.{form}"
    if form == "parquet":
        table.write_parquet(path)
    else:
        commas = table.with_columns(pl.col("f").cast(pl.String).str.replace(".", ",", literal=True))
        path.write_text(commas.write_csv(separator=";"), encoding="utf-8")
    missing = ["-999", "x"]
    whole, reading = read_table(path, missing=missing)
    types = {name: str(kind) for name, kind in whole.schema.items()}
    stream = FileStream(path, types, **reading.to_json(missing))
    found = pl.concat(stream.frames(list(types), 64))
    assert found.equals(whole)
    assert found["n"].null_count() > 60


CELLS = [
    "", '""', " 1.5", "1.5 ", '" 1.5"', "+1.5", "-0.0", "1E-5", ".5", "5.", "inf", "NaN", "1e400", "1e-400", "NA",
    "n/a", "null", "0x10", "1_0", '"1,5"', "123456789012345678901234567890", "0.1000000000000000055511151231257827",
    "true", "1e", "--1", "1.5f", "\t2", "1 000", "٣", "1.5\u00a0", "9007199254740993", '"4.3""5"',
    "9223372036854775807", "9223372036854775808", "007", "5.0", " 5", '"5"',
]  # fmt: skip


def _as_numbers(stream: FileStream) -> pl.DataFrame | str:
    try:
        return pl.concat(stream.frames(list(stream.types), 5), how="vertical_relaxed")
    except DataError as error:
        return error.what


def _as_texts(stream: FileStream) -> pl.DataFrame | str:
    (texts,) = stream._csv_batches(list(stream.types), 12, {})
    try:
        return pl.DataFrame([stream._typed(column, 0) for column in texts.iter_columns()])
    except DataError as error:
        return error.what


@pytest.mark.parametrize(("column", "place"), [("f", 0), ("f", 9), ("n", 9)])
def test_a_stream_takes_a_number_for_what_its_text_says_wherever_it_stands(tmp_path, column, place):
    """Plain numbers are read as numbers; the text of every cell, looked at by itself, has to say the same."""
    path = tmp_path / "t.csv"
    for cell in CELLS:
        rows = [f"{k}.25,{k},t{k}" for k in range(12)]
        rows[place] = f"{cell},{place},x" if column == "f" else f"{place}.5,{cell},x"
        path.write_text("\n".join(["f,n,c", *rows, ""]), encoding="utf-8")
        stream = FileStream(path, {"f": "Float64", "n": "Int64", "c": "String"})
        found, expected = _as_numbers(stream), _as_texts(stream)
        if isinstance(expected, str):
            assert found == expected, cell
            assert f"of row {place} is" in expected
        else:
            assert found.equals(expected.cast(dict(found.schema))), cell
            assert found[column].to_numpy().tobytes() == expected[column].to_numpy().tobytes(), cell
