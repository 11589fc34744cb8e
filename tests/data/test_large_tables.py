"""Tables that are not held: a Parquet file read column by column, features put together as rows are looked at."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from l2d.cache_builder import builder
from l2d.cache_builder.agents import table as table_agent
from l2d.cache_builder.builder import build
from l2d.cache_builder.committing import committing
from l2d.cache_builder.importing.predictions import draft_predictions
from l2d.cache_builder.importing.source import Source
from l2d.cache_builder.prepare import prepare
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.cache.verifying import verify
from l2d.data.errors import DataError
from l2d.data.samples import column_file, dataset, encoded_columns, features, scratch, texts
from l2d.data.samples.column_file import ColumnFile
from l2d.data.samples.encoded_columns import EncodedColumns, fitted_and_encoded
from l2d.data.samples.scratch import Scratch, ScratchColumn
from l2d.data.samples.texts import Texts
from l2d.data.sources import load_dataset
from l2d.data.sources.table import TableConfig, load_table
from l2d.data.sources.text_table import open_table, read_table

ROWS = 150
WAYS = {"held": None, "columns": 1 << 30, "half": 5000, "scratch": 0}  # how features are held -> bytes that may be


def frame() -> pl.DataFrame:
    """A column of every kind that features are made of, most of them with gaps."""
    generator = np.random.default_rng(0)
    number = generator.normal(size=ROWS)
    gaps = [None if row % 7 == 3 else float(value) for row, value in enumerate(number)]
    begin = datetime(2024, 1, 1)
    return pl.DataFrame(
        {
            "id": [f"s{row:03d}" for row in range(ROWS)],
            "plain": number,
            "gaps": gaps,
            "nan": [float("nan") if value is None else value for value in gaps],
            "short": pl.Series(number, dtype=pl.Float32),
            "whole": generator.integers(0, 9, ROWS),
            "truth": number > 0.5,
            "day": [date(2024, 1, 1) + timedelta(days=int(day)) for day in generator.integers(0, 900, ROWS)],
            "seen": pl.Series([begin + timedelta(seconds=row) for row in range(ROWS)]).dt.replace_time_zone(
                "Asia/Tokyo"
            ),
            "ward": [None if row % 11 == 5 else "abc"[row % 3] for row in range(ROWS)],
            "vector": [None if row % 13 == 2 else [float(row), 1.0 / (1 + row)] for row in range(ROWS)],
            "note": [f"note {row}" for row in range(ROWS)],
            "constant": [1.0] * ROWS,
            "index": range(ROWS),
            "copy": ["xyz"[row % 3] for row in range(ROWS)],
            "y": ["xyz"[(row * row) % 3 if row % 5 else 2] for row in range(ROWS)],
        }
    )


@pytest.fixture
def folder(tmp_path):
    table = frame()
    table.write_parquet(tmp_path / "features.parquet", row_group_size=37)
    answers = {"id": table["id"], **{f"agent {k}": table["y"].shift(k, fill_value="x") for k in range(2)}}
    pl.DataFrame(answers).write_parquet(tmp_path / "answers.parquet")
    return tmp_path


def use(monkeypatch, way: str) -> None:
    """Have this small table treated as a large one."""
    monkeypatch.setattr(column_file, "WORTH_IT", 1 << 60 if way == "held" else 0)
    monkeypatch.setattr(encoded_columns, "HELD", WAYS[way])
    monkeypatch.setattr(encoded_columns, "BLOCK", 1000)
    monkeypatch.setattr(texts, "FEW", 1 << 30 if way == "held" else 0)
    monkeypatch.setattr(texts, "AT_ONCE", 13)
    monkeypatch.setattr(builder, "THREADS", 0 if way == "held" else 2)
    for module in (features, encoded_columns, dataset, table_agent) if way != "held" else ():
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 10)


def files_of(cache) -> dict[str, bytes]:
    return {str(file.relative_to(cache)): file.read_bytes() for file in cache.rglob("*") if file.is_file()}


def imported(folder, told: list[str]) -> dict[str, bytes]:
    """The files of a cache that is imported, in chunks that are no multiple of what is read at once."""
    source = Source(folder / "features.parquet", folder / "answers.parquet", "id", target="y", model="agent 0")
    draft = draft_predictions(source, folder, "my.cache", told.append)
    recipe = draft.recipe.replace("[costs.cla]", 'keep = ["ward", "short"]\n\n[build]\nchunk_size = 41\n\n[costs.cla]')
    (folder / "my.toml").write_text(recipe)
    build(load_recipe(str(folder / "my.toml")), folder / "my.cache", device="cpu", overwrite=True)
    verify(CostCache(folder / "my.cache"))
    return files_of(folder / "my.cache")


def test_a_large_table_gives_the_bytes_of_a_held_one(folder, monkeypatch):
    found, said = {}, {}
    for way in WAYS:
        use(monkeypatch, way)
        said[way] = []
        found[way] = imported(folder, said[way])
        assert said[way] == said["held"]
    assert any("row numbers" in line for line in said["held"])
    for way in found:
        different = [name for name in found["held"] if found[way].get(name) != found["held"][name]]
        assert found[way].keys() == found["held"].keys()
        assert not different, way


@pytest.mark.parametrize(("model", "held"), [("", ["ward"]), ('[[agents]]\nname = "m"\nkind = "two_head"\n', None)])
def test_no_column_is_held_that_no_agent_looks_at(folder, model, held):
    source = Source(folder / "features.parquet", folder / "answers.parquet", "id", target="y", model="agent 0")
    recipe = draft_predictions(source, folder, "my.cache", print).recipe
    first, agents = recipe.replace("[costs.cla]", 'keep = ["ward"]\n\n[costs.cla]').split("[[agents]]", 1)
    (folder / "my.toml").write_text(f"{first}{model}[[agents]]{agents}")
    read = prepare(load_recipe(str(folder / "my.toml")), folder / "my.cache")[0]
    assert read.columns.columns == (held or frame().columns)
    whole = load_dataset(load_recipe(str(folder / "my.toml")).dataset, "my")
    assert read.fingerprint() == whole.fingerprint()


FEATURES = [
    "plain",
    "gaps - plain AS less",
    "nan",
    "short",
    "whole",
    "truth",
    "day",
    "seen",
    "ward",
    "vector",
    "2 AS two",
]


def load(folder, **keys):
    settings = {"kind": "table", "path": folder / "features.parquet", "id": "id", "target_cla": "y"}
    return load_table(TableConfig(**{**settings, "features": FEATURES, **keys}), "test")


@pytest.mark.parametrize("way", ["columns", "half", "scratch"])
def test_rows_in_any_order(folder, monkeypatch, way):
    use(monkeypatch, "held")
    expected = load(folder)
    use(monkeypatch, way)
    dataset = load(folder)
    assert isinstance(dataset.columns, ColumnFile)
    assert isinstance(dataset.ids, Texts)
    assert dataset.ids == expected.ids
    assert isinstance(dataset.features, EncodedColumns)
    in_a_file = [isinstance(column, ScratchColumn) for column in dataset.features._columns]
    assert any(in_a_file) == (way != "columns")
    assert all(in_a_file) == (way == "scratch")
    assert dataset.inputs == expected.inputs
    assert dataset.fingerprint() == expected.fingerprint()
    np.testing.assert_array_equal(dataset.matrix, expected.features)
    for rows in (range(100, 101), range(31, 90), range(90, 150), range(40, 40), range(150), range(149, 150)):
        batch, known = dataset.batch(rows), expected.batch(rows)
        np.testing.assert_array_equal(batch.features, known.features)
        assert batch.columns.equals(known.columns, null_equal=True)
    assert dataset.column_digests() == expected.column_digests()
    columns, matrix = pickle.loads(pickle.dumps((dataset.columns, dataset.features)))  # where the file is not there
    assert isinstance(columns, pl.DataFrame)
    assert columns.equals(expected.columns, null_equal=True)
    np.testing.assert_array_equal(np.asarray(matrix), expected.features)


@pytest.mark.parametrize(
    "keys", [{"where": "whole > 2"}, {"text": ["note"]}, {"clusters": {"count": 2}}, {"keep": ["ward"]}]
)
def test_what_is_not_looked_at_row_by_row(folder, monkeypatch, keys):
    use(monkeypatch, "held")
    expected = load(folder, **keys)
    use(monkeypatch, "scratch")
    dataset = load(folder, **keys)
    assert dataset.ids == expected.ids
    assert dataset.inputs == expected.inputs
    np.testing.assert_array_equal(dataset.matrix, expected.matrix)
    assert dataset.fingerprint() == expected.fingerprint()


BAD = {
    "large": (lambda row: 1e39 if row in (77, 99) else 0.5, ["large"], "of row 77 does not fit a 32-bit float"),
    "list": (lambda row: [1.0] * (3 if row == 120 else 2), ["list"], "is a list of 3 numbers"),
    "mixed": (lambda row: "unknown" if row == 50 else str(row / 7), ["mixed"], "row 50 is 'unknown'"),
    "unknown": (lambda row: row, ["nowhere"], "nowhere"),
    "average": (lambda row: float(row), ["average - AVG(average) AS a"], "depends on more than its own row"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_cells_are_named_as_in_a_held_table(folder, monkeypatch, name):
    cell, wanted, message = BAD[name]
    table = frame().with_columns(pl.Series(name, [cell(row) for row in range(ROWS)]))
    table.write_parquet(folder / "features.parquet", row_group_size=37)
    errors = {}
    for way in WAYS:
        use(monkeypatch, way)
        with pytest.raises(DataError) as found:
            load(folder, features=["plain", *wanted])
        errors[way] = str(found.value)
    assert set(errors.values()) == {errors["held"]}
    assert message in errors["held"]


def test_a_file_that_changes_while_it_is_read_is_refused(folder, monkeypatch):
    use(monkeypatch, "scratch")
    dataset = load(folder)
    path = folder / "features.parquet"
    os.utime(path, ns=(1, 1))
    assert len(dataset.features[0:5]) == 5  # put aside when they were read
    with pytest.raises(DataError, match="has changed while it was read"):
        dataset.columns["plain"]


def test_an_id_that_stands_twice_is_named(folder, monkeypatch):
    table = frame().with_columns(id=pl.when(pl.col("index") == 140).then(pl.lit("s007")).otherwise("id"))
    table.write_parquet(folder / "features.parquet", row_group_size=37)
    use(monkeypatch, "scratch")
    with pytest.raises(DataError, match="'s007' stands at rows 7 and 140"):
        load(folder)


def test_small_files_and_those_with_named_gaps_are_held(folder, monkeypatch):
    path = folder / "features.parquet"
    assert isinstance(open_table(path)[0], pl.DataFrame)
    use(monkeypatch, "scratch")
    assert isinstance(open_table(path)[0], ColumnFile)
    assert isinstance(open_table(path, missing=["b"])[0], pl.DataFrame)
    assert open_table(path)[0].select(["id", "ward"]).equals(read_table(path)[0].select("id", "ward"))


def test_damage_is_named(folder, monkeypatch):
    use(monkeypatch, "scratch")
    path = folder / "features.parquet"
    content = bytearray(path.read_bytes())
    content[200:3000] = bytes(2800)
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load(folder)


def test_rows_of_a_large_file_are_those_of_one_matrix(tmp_path, monkeypatch):
    """At their real sizes: several blocks, several row groups, a last one that is not full."""
    rows = 82_043
    table = pl.DataFrame({"a": np.arange(rows) / 7, "b": np.arange(rows)[::-1] % 5})
    table.write_parquet(tmp_path / "t.parquet", row_group_size=30_000)
    file, train = ColumnFile(tmp_path / "t.parquet"), np.arange(rows) % 2 == 0
    monkeypatch.setattr(encoded_columns, "BLOCK", 100_000)
    monkeypatch.setattr(encoded_columns, "HELD", 4 * rows)  # one of the two
    encoder, found = fitted_and_encoded(file, ["a", "b"], rows=train, text={}, reading={})
    whole = encoder.transform(table)
    np.testing.assert_array_equal(found[:], whole)
    np.testing.assert_array_equal(found[60_001:60_005], whole[60_001:60_005])
    assert found.digest == hashlib.sha256(whole.tobytes()).hexdigest()


def test_a_full_disk_says_where_the_file_lies_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    column = Scratch().put(np.arange(5.0))
    np.testing.assert_array_equal(column[1:3], [1.0, 2.0])
    assert not list(tmp_path.iterdir())  # the file has no name
    full = lambda *given: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))  # noqa: E731
    monkeypatch.setattr(scratch.os, "pwrite", full)
    with pytest.raises(DataError, match=rf"No space left[^\n]*\n *where: {tmp_path}\n.*TMPDIR=FOLDER"):
        Scratch().put(np.arange(5.0))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="a temporary file"):
        Scratch()


def test_parts_committed_in_threads_end_before_the_first_that_failed_is_told():
    done = []

    def commit(number: int) -> None:
        if number == 1:
            raise DataError("the disk is full")
        done.append(number)

    def commit_all() -> None:
        with committing(2) as later:
            for number in range(9):
                later(commit, number)

    with pytest.raises(DataError, match="the disk is full"):
        commit_all()
    assert 0 in done
    assert 8 not in done
    with committing(0) as now:
        now(done.append, 10)
        assert done[-1] == 10
    with committing(3) as later:
        for number in range(20, 30):
            later(done.append, number)
    assert sorted(done)[-10:] == list(range(20, 30))
