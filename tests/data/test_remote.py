"""Caches pushed to a store and fetched from it: byte for byte, resumable, readable in place, never half there."""

from __future__ import annotations

import duckdb
import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import RECIPE

from l2d.data.cache.reader import CostCache
from l2d.data.cache.remote import fetch, push
from l2d.data.errors import CorruptPart, DataError, IncompleteCache, UsageError

EXTRA = """
[[agents]]
name = "extra"
kind = "column"
prob = "risk_good"
reg = "stay_bad"
"""


@pytest.fixture
def url():
    """A folder of fsspec's store in memory, which keeps objects and knows no folders, as object stores do."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield "memory://bucket/caches/one"
    store.store.clear()


def contents(workshop, out: str) -> dict[str, bytes]:
    return {name: content for name, (_, content) in workshop.files(out).items()}


def test_what_is_fetched_is_what_was_pushed(workshop, url, tmp_path):
    workshop.build(RECIPE)
    files = len(workshop.files())
    assert push(workshop.cache(), url) == files
    fetched = fetch(url, tmp_path / "copy")
    assert contents(workshop, "copy") == contents(workshop, "cache")
    assert [agent.name for agent in fetched.agents] == ["model", "expert", "cheap"]


def test_a_push_and_a_fetch_that_were_cut_off_go_on(workshop, url, tmp_path, monkeypatch):
    workshop.build(RECIPE)
    store, left = fsspec.filesystem("memory"), 7
    whole = type(store).pipe_file

    def cut(self, path, value, **options):
        nonlocal left
        left -= 1
        if left < 0:
            raise ConnectionError("reset by peer")
        return whole(self, path, value, **options)

    monkeypatch.setattr(type(store), "pipe_file", cut)
    with pytest.raises(DataError, match="reset by peer"):
        push(workshop.cache(), url)
    monkeypatch.setattr(type(store), "pipe_file", whole)
    with pytest.raises(DataError, match="no cost cache"):
        fetch(url, tmp_path / "copy")  # half a cache is none
    push(workshop.cache(), url)

    read, left = type(store).cat_file, 9

    def cut_off(self, path, *args, **options):
        nonlocal left
        left -= 1
        if left < 0:
            raise ConnectionError("reset by peer")
        return read(self, path, *args, **options)

    monkeypatch.setattr(type(store), "cat_file", cut_off)
    with pytest.raises(DataError, match="reset by peer"):
        fetch(url, tmp_path / "copy")
    with pytest.raises(UsageError):
        CostCache(tmp_path / "copy")
    names: list[str] = []
    monkeypatch.setattr(type(store), "cat_file", lambda self, path, *a, **o: (names.append(path), read(self, path))[1])
    there = len(list((tmp_path / "copy").rglob("*.*")))
    fetch(url, tmp_path / "copy")
    assert len(names) < len(workshop.files()) + 2 - there + 1  # what had arrived did not travel again
    assert contents(workshop, "copy") == contents(workshop, "cache")


def test_an_agent_added_later_travels_alone(workshop, url, tmp_path):
    workshop.build(RECIPE)
    push(workshop.cache(), url)
    workshop.build(RECIPE + EXTRA)
    copied = push(workshop.cache(), url)
    added = [name for name in workshop.files() if name.startswith("agents/extra/")]
    assert copied == len(added) + 1 + 3  # cache.json, and the record of each other agent
    fetch(url, tmp_path / "copy")
    assert contents(workshop, "copy") == contents(workshop, "cache")


def test_what_arrives_damaged_is_refused_naming_the_file(workshop, url, tmp_path):
    workshop.build(RECIPE)
    push(workshop.cache(), url)
    store = fsspec.filesystem("memory")
    name = next(name for name in store.find("/bucket/caches/one") if "expert/predictions/00001" in name)
    content = bytearray(store.cat_file(name))
    content[len(content) // 2] ^= 4
    store.pipe_file(name, bytes(content))
    with pytest.raises(CorruptPart, match="expert/predictions/00001"):
        fetch(url, tmp_path / "copy")


def test_another_cache_is_not_written_over(workshop, url, tmp_path):
    workshop.build(RECIPE)
    push(workshop.cache(), url)
    workshop.edit_data()
    workshop.build(RECIPE, "other")
    with pytest.raises(DataError, match="another cache"):
        push(workshop.cache("other"), url)
    with pytest.raises(DataError, match="another cache"):
        fetch(url, workshop.folder / "other")


def test_an_incomplete_cache_stays_where_it_is(workshop, url):
    workshop.build(RECIPE)
    next((workshop.folder / "cache/agents/expert/predictions").glob("*.parquet")).unlink()
    with pytest.raises(IncompleteCache):
        push(workshop.cache(), url)
    assert not fsspec.filesystem("memory").find("/bucket")


def test_an_address_that_nobody_knows_is_refused(workshop):
    workshop.build(RECIPE)
    with pytest.raises(UsageError, match="pip install"):
        push(workshop.cache(), "nosuchstore://bucket/cache")


def test_others_read_the_files_where_they_are(workshop, url):
    """Plain Parquet: pyarrow on what fsspec opens, DuckDB's and polars' own readers, none of our code."""
    workshop.build(RECIPE)
    push(workshop.cache(), url)
    costs = f"agents/expert/{workshop.costs_folder()}"
    expected = workshop.column(workshop.costs_folder(), "cost_reg", "expert").mean()
    store = fsspec.filesystem("memory")
    tables = [pq.read_table(store.open(name)) for name in store.find(f"/bucket/caches/one/{costs}")]
    assert pa.concat_tables(tables)["cost_reg"].to_numpy().mean() == pytest.approx(expected)
    local = workshop.folder / "cache" / costs / "*.parquet"
    sql = f"SELECT avg(cost_reg), count(DISTINCT sample_id) FROM read_parquet('{local}')"
    assert duckdb.sql(sql).fetchall() == [(pytest.approx(expected), 120)]
    assert pl.scan_parquet(local).select(pl.col("cost_reg").mean()).collect().item() == pytest.approx(expected)
