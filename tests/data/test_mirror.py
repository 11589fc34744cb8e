"""A cache used where it lies in a store: the answers of a folder, few bytes, bounded room, nothing damaged."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from conftest import patients
from recipes import RECIPE

import l2d as package
from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache import kept, mirror, schema, store
from l2d.data.cache.integrity import leaves_of
from l2d.data.cache.ranges import merged
from l2d.data.cache.reader import CostCache
from l2d.data.errors import CorruptPart, DataError, UsageError
from l2d.rejector.rows.stream import open_streams
from l2d.rejector.runs.files import cache_fingerprint

URL = "memory://bucket/caches/one"
ROWS, CHUNK = 8_000, 2_000
SETTINGS = {"method": "multi-task", "network": "linear", "epochs": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """``cache``, built, with many kept columns that training does not look at; and ``run``, trained on it."""
    folder = tmp_path_factory.mktemp("mirrored")
    generator = np.random.default_rng(1)
    extra = {f"note_{k}": [f"{value:.12f}" for value in generator.random(ROWS)] for k in range(4)}
    patients(ROWS).with_columns(**{name: pl.Series(values) for name, values in extra.items()}).write_parquet(
        folder / "patients.parquet"
    )
    changes = {"build.chunk_size": CHUNK, "dataset.keep": ["ward", *extra]}
    (folder / "recipe.toml").write_text(RECIPE.but(changes), encoding="utf-8")
    build(load_recipe(str(folder / "recipe.toml")), folder / "cache", device="cpu")
    package.train(folder / "cache", folder / "run", **SETTINGS)
    return folder


@pytest.fixture
def read(folder, tmp_path, monkeypatch):
    """The cache pushed to a store in memory; counts the bytes that are read from there, by file."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    monkeypatch.setenv("L2D_PARTS_FOLDER", str(tmp_path / "parts"))
    mirror.forget_mirrors()
    package.push(folder / "cache", URL)
    counted: Counter[str] = Counter()
    whole = type(memory).cat_file

    def cat_file(self, path, start=None, end=None, **options):
        content = whole(self, path, start=start, end=end, **options)
        counted[path.removeprefix("/bucket/caches/one/")] += len(content)
        return content

    def cat_ranges(self, paths, starts, ends, **options):
        return [cat_file(self, *one) for one in zip(paths, starts, ends, strict=True)]

    opened = type(memory).open

    def open_(self, path, mode="rb", **options):
        if "r" not in mode:
            return opened(self, path, mode, **options)
        counted[self._strip_protocol(path).removeprefix("/bucket/caches/one/")] += self.info(path)["size"]
        return opened(self, path, mode, **options)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    monkeypatch.setattr(type(memory), "cat_ranges", cat_ranges)
    monkeypatch.setattr(type(memory), "open", open_)
    yield counted
    memory.store.clear()
    mirror.forget_mirrors()


def needed(cache: CostCache) -> int:
    """Bytes of the pages that training looks at: ids, splits, truths, features, costs."""
    total = 0
    wanted = ("sample_id", "split", "target_cla", "target_reg", "features")
    for chunk in range(cache.record.num_chunks):
        parts = [(schema.samples_part(cache.path, chunk), wanted)]
        for agent in cache.agents:
            part = schema.costs_part(cache.path, agent.name, chunk, cache.record.cost_digest)
            parts.append((part, ("cost_cla", "cost_reg")))
        for part, columns in parts:
            found = pq.read_metadata(part)
            for group in range(found.num_row_groups):
                leaves = leaves_of(found, columns)
                total += sum(found.row_group(group).column(leaf).total_compressed_size for leaf in leaves)
    return total


def same_run(one: Path, other: Path) -> None:
    for name in ("rejector.safetensors", "allocations.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_run_is_that_of_the_folder_and_reads_little_more_than_it_needs(folder, read, tmp_path):
    package.train(URL, tmp_path / "run", **SETTINGS)
    same_run(tmp_path / "run", folder / "run")
    parts = sum(count for name, count in read.items() if name.endswith(".parquet"))
    footers = sum(pq.read_metadata(part).serialized_size for part in CostCache(folder / "cache").parts())
    assert needed(CostCache(folder / "cache")) <= parts <= 1.1 * needed(CostCache(folder / "cache")) + footers
    assert parts < 0.6 * sum(part.stat().st_size for part in CostCache(folder / "cache").parts())
    assert not any("predictions/" in name for name in read if name.endswith(".parquet"))
    before = sum(read.values())
    mirror.forget_mirrors()  # as another process would begin
    package.train(URL, tmp_path / "again", **SETTINGS)
    same_run(tmp_path / "again", folder / "run")
    again = sum(count for name, count in read.items() if name.endswith(".parquet"))
    assert again == parts  # the copies are still there; records are asked for again
    assert sum(read.values()) - before < 100_000


def test_what_is_done_with_a_run_finds_its_cache_by_its_address(folder, read, tmp_path):
    package.train(URL, tmp_path / "run", **SETTINGS)
    ours, theirs = (package.evaluate(where).to_json()[0] for where in (tmp_path / "run", folder / "run"))
    assert ours == theirs
    sql = "SELECT costs.agent, count(*), round(avg(cost_reg), 6) FROM costs JOIN allocations USING (sample_id)"
    found = [
        package.query([cache, run], f"{sql} GROUP BY ALL ORDER BY 1").frame()
        for cache, run in ((URL, tmp_path / "run"), (folder / "cache", folder / "run"))
    ]
    assert found[0].equals(found[1])
    package.route(tmp_path / "run", URL, tmp_path / "routed.parquet")
    package.route(folder / "run", folder / "cache", tmp_path / "expected.parquet")
    assert pl.read_parquet(tmp_path / "routed.parquet").equals(pl.read_parquet(tmp_path / "expected.parquet"))
    page, *_ = package.report(tmp_path / "run", tmp_path / "report.html")
    assert URL in page.read_text()
    assert package.status(URL).rows() == package.status(folder / "cache").rows()
    assert cache_fingerprint(CostCache(URL)) == cache_fingerprint(CostCache(folder / "cache"))


def test_a_cache_of_more_than_may_be_kept_is_read_again_and_stays_within_the_limit(folder, read, tmp_path, monkeypatch):
    size = sum(part.stat().st_size for part in CostCache(folder / "cache").parts())
    monkeypatch.setenv("L2D_PARTS_LIMIT", str(size // 6))
    expected = open_streams(CostCache(folder / "cache"), ("train",))["train"]
    stream = open_streams(CostCache(URL), ("train",))["train"]
    for _ in range(3):
        for ours, theirs in zip(stream.in_order(512), expected.in_order(512), strict=True):
            assert (ours[0] == theirs[0]).all()
            assert (ours[1] == theirs[1]).all()
            most = max(part.stat().st_size for part in CostCache(folder / "cache").parts())
            assert kept.size_of(tmp_path / "parts") <= size // 6 + 16 * most
    assert sum(count for name, count in read.items() if name.startswith("samples/")) > 1.5 * size / 6


@pytest.mark.parametrize("what", ["byte", "length", "gone", "footer"])
def test_damage_in_the_store_is_named_by_its_address(folder, read, what):
    memory, name = fsspec.filesystem("memory"), "/bucket/caches/one/samples/00002.parquet"
    content = bytearray(memory.store[name].getvalue())
    where = content.find(b"PAR1", 4) if what == "length" else len(content) // 3
    content[len(content) - 300 if what == "footer" else where] ^= 8
    if what == "gone":
        memory.rm_file(name)
    else:
        memory.pipe_file(name, bytes(content[: len(content) // 2]) if what == "length" else bytes(content))
    wrong: list[str] = []
    for use in (
        lambda: [
            CostCache(URL).samples(2, [column])
            for column in pq.read_schema(folder / "cache/samples/00002.parquet").names
        ],
        lambda: CostCache(URL).samples(2),
        lambda: CostCache(URL).verify(),
        lambda: package.query(URL, "SELECT * FROM samples JOIN features USING (sample_id)"),
    ):
        with pytest.raises(CorruptPart) as caught:
            use()
        wrong.append(str(caught.value.where))
    assert set(wrong) == {f"{URL}/samples/00002.parquet"}


def test_a_copy_that_is_damaged_or_lacks_what_it_says_is_fetched_again(folder, read, tmp_path):
    expected = CostCache(folder / "cache").samples(1, ["features"])
    assert CostCache(URL).samples(1, ["features"]).equals(expected)
    (copy,) = (tmp_path / "parts").rglob("samples/00001.parquet")
    content = bytearray(copy.read_bytes())
    copy.write_bytes(bytes(len(content)))  # all of it a hole
    assert CostCache(URL).samples(1, ["features"]).equals(expected)
    copy.unlink()  # as another process does that needs room
    assert CostCache(URL).samples(1, ["features"]).equals(expected)
    about = copy.with_name(f".{copy.name}.held.json")
    value = json.loads(about.read_text())
    value["columns"].append("split")
    about.write_text(json.dumps(value))  # its digest is another one now
    mirror.forget_mirrors()
    assert CostCache(URL).samples(1, ["split"]).equals(CostCache(folder / "cache").samples(1, ["split"]))


def test_what_threads_note_of_copies_is_written_and_gone_through_under_the_lock(folder, read):
    cache = CostCache(URL)
    lock, seen = cache.mirror._lock, set()

    class Guarded(dict):
        def _held(self, what, *given):
            assert lock._is_owned(), what
            seen.add(what)
            return getattr(dict, what)(self, *given)

    for what in ("__setitem__", "__iter__", "pop"):
        setattr(Guarded, what, lambda self, *given, what=what: self._held(what, *given))
    cache.mirror._known = Guarded(cache.mirror._known)
    for _ in range(2):  # fetched, then found to be there
        cache.mirror.bring((part, None) for part in cache.parts() if "samples" in str(part))
    cache.mirror.drop(next(iter(cache.parts())))
    assert seen == {"__setitem__", "__iter__", "pop"}


def test_what_has_been_pushed_since_is_not_mixed_with_what_was_read_before(folder, read, tmp_path):
    assert CostCache(URL).verify() == 28
    shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns("cache", "run"))
    table = pl.read_parquet(folder / "patients.parquet").with_columns(pl.col("x1") + 1)
    table.write_parquet(tmp_path / "other" / "patients.parquet")
    build(load_recipe(str(tmp_path / "other" / "recipe.toml")), tmp_path / "other" / "cache", device="cpu")
    memory = fsspec.filesystem("memory")
    memory.rm("/bucket/caches/one", recursive=True)
    package.push(tmp_path / "other" / "cache", URL)
    mirror.forget_mirrors()
    assert CostCache(URL).samples(0).equals(CostCache(tmp_path / "other" / "cache").samples(0))


def test_what_cannot_be_done_in_a_store_is_refused(folder, read, tmp_path):
    for use in (lambda: package.push(URL, str(tmp_path / "x")), lambda: package.sign(URL, tmp_path / "key")):
        with pytest.raises(UsageError, match="lies in a store"):
            use()
    with pytest.raises(DataError, match="no cost cache"):
        package.status("memory://bucket/nothing")


def test_commands_take_addresses_and_say_what_they_have_read(folder, read, l2d, tmp_path):
    code, _, err = l2d("status", URL, "--parts-folder", tmp_path / "here", "--parts-limit", "5MB")
    assert code == 0
    assert f"{URL}: read " in err
    assert f"kept in {tmp_path / 'here'}, at most 5 MB" in err
    assert l2d("status", URL, "--parts-limit", "much")[0] == 2
    code, out, err = l2d("query", URL, "SELECT count(*) AS n FROM samples", "--format", "csv")
    assert (code, out.split()) == (0, ["n", str(ROWS)])
    assert err.count(": read ") == 1
    assert l2d("query", URL, "FROM features", "--parts-limit", "100KB")[0] == 2
    assert l2d("status", folder / "cache")[2].count(": read ") == 0


def test_a_copy_that_cannot_be_written_is_an_error_with_a_way_out():
    with pytest.raises(DataError, match="cannot write") as caught:
        store.fill(Path("/dev/full"), 10, [(0, bytes(10))])
    assert "--parts-folder" in caught.value.hint


def test_ranges_are_joined_where_little_is_read_for_nothing():
    assert merged([(0, 1000), (1010, 2000), (5000, 6000)]) == [(0, 2000), (5000, 6000)]
    assert merged([(10, 20), (0, 15)]) == [(0, 20)]
    assert merged([(0, 100), (90, 200)], stop=150) == [(0, 150)]
    assert merged([]) == []
