"""Caches pushed to a store and fetched from it: byte for byte, resumable, readable in place, never half there."""

from __future__ import annotations

import json
import socket

import duckdb
import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recipes import RECIPE, agent

from l2d.data.cache.integrity import json_digest
from l2d.data.cache.reader import CostCache
from l2d.data.cache.remote import fetch, push
from l2d.data.cache.store import DIGEST_FIELD
from l2d.data.errors import CorruptPart, DataError, IncompleteCache, UsageError

EXTRA = agent("extra", "column", prob="risk_good", reg="stay_bad")


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
    whole = type(store).put_file

    def cut(self, local, path, **options):
        nonlocal left
        left -= 1
        if left < 0:
            raise ConnectionError("reset by peer")
        return whole(self, local, path, **options)

    monkeypatch.setattr(type(store), "put_file", cut)
    with pytest.raises(DataError, match="reset by peer"):
        push(workshop.cache(), url)
    monkeypatch.setattr(type(store), "put_file", whole)
    with pytest.raises(DataError, match="no cost cache"):
        fetch(url, tmp_path / "copy")  # half a cache is none
    push(workshop.cache(), url)

    read, left = type(store).open, 9

    def cut_off(self, path, *args, **options):
        nonlocal left
        left -= 1
        if left < 0:
            raise ConnectionError("reset by peer")
        return read(self, path, *args, **options)

    monkeypatch.setattr(type(store), "open", cut_off)
    with pytest.raises(DataError, match="reset by peer"):
        fetch(url, tmp_path / "copy")
    with pytest.raises(UsageError):
        CostCache(tmp_path / "copy")
    names: list[str] = []
    monkeypatch.setattr(type(store), "open", lambda self, path, *a, **o: (names.append(path), read(self, path))[1])
    there = list((tmp_path / "copy").rglob("*.parquet"))
    fetch(url, tmp_path / "copy")
    parts = [name for name in workshop.files() if name.endswith(".parquet")]
    assert there
    assert len([name for name in names if name.endswith(".parquet")]) == len(parts) - len(there)  # none travels twice
    assert contents(workshop, "copy") == contents(workshop, "cache")


def test_an_agent_added_later_travels_alone(workshop, url, tmp_path):
    workshop.build(RECIPE)
    push(workshop.cache(), url)
    workshop.build(RECIPE.plus(EXTRA))
    copied = push(workshop.cache(), url)
    added = [name for name in workshop.files() if name.startswith("agents/extra/")]
    assert copied == len(added) + 1  # and cache.json
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


def test_a_push_repairs_what_is_damaged_or_gone_there_and_a_fetch_what_is_damaged_here(workshop, url, tmp_path):
    workshop.build(RECIPE)
    whole, store = len(workshop.files()), fsspec.filesystem("memory")
    assert push(workshop.cache(), url) == whole
    assert push(workshop.cache(), url) == 0
    names = sorted(name for name in store.find("/bucket/caches/one") if not name.endswith("croissant.json"))
    for position, name in enumerate(names):
        content = store.cat_file(name)
        if position % 2:
            store.rm_file(name)
        else:
            store.pipe_file(name, content[:-1] + bytes([content[-1] ^ 1]))
        assert push(workshop.cache(), url) == 1, name
        assert store.cat_file(name) == content
    fetch(url, tmp_path / "copy")
    for path in sorted(path for path in (tmp_path / "copy").rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        fetch(url, tmp_path / "copy")
        assert path.read_bytes() == content, path


def test_a_fetch_writes_only_what_the_records_imply(workshop, url, tmp_path):
    """Other names on the store, some of which would leave the folder, are not looked at."""
    workshop.build(RECIPE)
    push(workshop.cache(), url)
    store = fsspec.filesystem("memory")
    for name in ("notes.txt", "../outside", "agents/../../outside", "samples/00099.parquet", "agents/new/agent.json"):
        store.store[f"/bucket/caches/one/{name}"] = fsspec.implementations.memory.MemoryFile(store, name, b"stranger's")
    fetch(url, tmp_path / "in" / "copy")
    assert contents(workshop, "in/copy") == contents(workshop, "cache")
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["copy"]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("cache.json", {"num_samples": 10**12}, "in chunks of"),
        ("cache.json", {"num_samples": 10**6}, "seal"),
        ("cache.json", {"num_samples": 10**15, "chunk_size": 1}, "chunks"),
        ("cache.json", {"chunk_size": 0}, "chunk_size"),
        ("cache.json", {"agents": ["model", "model", "cheap"]}, "one name"),
        ("cache.json", {"agents": ["model", 7, "cheap"]}, "agents.1"),
        ("cache.json", {"surprise": 1}, "surprise"),
        ("cache.json", {"inputs": {"features": {"kind": "dense", "width": 10**12}}}, "width"),
        ("samples.seal.json", {"parts": {"../../../outside.parquet": {}}}, "seal"),
        ("samples.seal.json", {"parts": []}, "seal"),
        ("agents/expert/agent.json", {"index": 10**9}, "index"),
        ("agents/expert/agent.json", {"fingerprint": {"frozen": "../../outside"}}, "frozen"),
        ("agents/expert/agent.json", {"role": "root"}, "role"),
    ],
)
def test_what_a_stranger_writes_is_refused_before_it_is_used(workshop, url, tmp_path, file, change, message):
    """With digests that are right: each field has a type and bounds, and the seals say how much there can be."""
    workshop.build(RECIPE)
    push(workshop.cache(), url)
    memory = fsspec.filesystem("memory")
    name = f"/bucket/caches/one/{file}"
    value = json.loads(memory.cat_file(name))
    value.pop(DIGEST_FIELD)
    value.update(change)
    value[DIGEST_FIELD] = json_digest(value)
    memory.pipe_file(name, json.dumps(value).encode())
    with pytest.raises(DataError, match=message):
        fetch(url, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_part_longer_than_its_seal_says_is_not_read(workshop, url, tmp_path):
    workshop.build(RECIPE)
    push(workshop.cache(), url)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/caches/one/samples/00001.parquet", bytes(50_000_000))
    with pytest.raises(CorruptPart, match="50,000,000 bytes, not the"):
        fetch(url, tmp_path / "copy")
    assert not (tmp_path / "copy/samples/00001.parquet").exists()


@pytest.mark.parametrize("address", ["{folder}", "file://{folder}"])
def test_a_folder_is_a_place_like_any_other(workshop, tmp_path, address):
    workshop.build(RECIPE)
    address = address.format(folder=tmp_path / "shared" / "caches")
    (tmp_path / "shared" / "caches").mkdir(parents=True)
    assert push(workshop.cache(), address) == len(workshop.files())
    (tmp_path / "shared" / "caches" / "croissant.json").unlink()  # for people: tests/data/test_description.py
    assert contents(workshop, "shared/caches") == contents(workshop, "cache")
    CostCache(tmp_path / "shared" / "caches").verify()
    fetch(address, tmp_path / "copy")
    assert contents(workshop, "copy") == contents(workshop, "cache")


@pytest.mark.parametrize("where", ["cache", "cache/inside", "."])
def test_a_cache_is_not_pushed_onto_or_into_itself(workshop, tmp_path, where):
    workshop.build(RECIPE)
    before = workshop.files()
    with pytest.raises(UsageError, match="onto itself"):
        push(workshop.cache(), str(tmp_path / where))
    with pytest.raises(UsageError, match="onto itself"):
        fetch(str(tmp_path / "cache"), tmp_path / where)
    assert workshop.files() == before


def test_a_damaged_record_of_another_cache_is_not_written_over(workshop, url, tmp_path):
    workshop.build(RECIPE)
    workshop.edit_data()
    workshop.build(RECIPE, "other")
    push(workshop.cache("other"), url)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/caches/one/cache.json", b"{not json")
    with pytest.raises(DataError, match="may be another cache"):
        push(workshop.cache(), url)
    assert push(workshop.cache("other"), url) == 1


def test_a_folder_with_something_else_in_it_is_left_alone(workshop, url, tmp_path):
    workshop.build(RECIPE)
    push(workshop.cache(), url)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="something else"):
        fetch(url, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_whatever_a_driver_raises_is_said_with_the_address(workshop, url, tmp_path, monkeypatch):
    workshop.build(RECIPE)

    class NoCredentialsError(Exception):
        pass

    def refuse(*_, **__):
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", refuse)
    for command in (lambda: push(workshop.cache(), url), lambda: fetch(url, tmp_path / "copy")):
        with pytest.raises(DataError, match="Unable to locate credentials") as caught:
            command()
        assert "AWS_SECRET_ACCESS_KEY" in caught.value.hint


def test_a_fetch_that_was_killed_goes_on_beside_what_it_left(workshop, url, tmp_path):
    """What a killed fetch leaves is a hidden file of a process that is gone; it is removed."""
    workshop.build(RECIPE)
    push(workshop.cache(), url)
    (tmp_path / "copy").mkdir()
    left = tmp_path / "copy" / f".cache.json.{socket.gethostname()}.999999999.{'ab' * 16}.tmp"
    left.write_bytes(b"{")
    fetch(url, tmp_path / "copy")
    assert contents(workshop, "copy") == contents(workshop, "cache")
