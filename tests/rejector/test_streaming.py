"""Streams of a cache: the rows of load_tables, in order and shuffled, in bounded memory, from any place on."""

from __future__ import annotations

import itertools
import threading
import tracemalloc
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from l2d.data.cache import mapped, schema, store
from l2d.data.cache.columns import dense_array
from l2d.data.cache.integrity import sha256_of, skeleton_digest
from l2d.data.cache.reader import AgentRecord, CacheRecord, CostCache
from l2d.data.errors import CorruptPart, L2DError, UsageError
from l2d.data.samples.standardise import standardisation, standardisation_of_parts
from l2d.rejector.rows.shuffled import Shuffled, _generator
from l2d.rejector.rows.stream import ahead, open_streams
from l2d.rejector.rows.table import load_tables

AGENTS = ["model", "expert", "mean"]  # the last one is a reference
SPLITS = schema.SPLITS


@pytest.fixture(scope="module", autouse=True)
def _unsynced():
    """What is written here need not survive the machine: hundreds of files are not each waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_fsync", lambda path: None)
        yield


def write_cache(
    path: Path,
    rows: int = 230,
    chunk_size: int = 50,
    *,
    width: int = 5,
    shown_by: str | None = None,
    images: bool = False,
    change: dict | None = None,
) -> CostCache:
    """A sealed cache of random numbers, written part by part.

    Args:
        shown_by: agent in whose predictions the features stand.
        images: the input is small images instead of features.
        change: instead of what is drawn: ``split`` (rows,), ``features``, ``failed`` (rows, agents), ``costs`` (rows,
            agents, tasks); ``agents``, how many of them are written.
    """
    generator, change = np.random.default_rng(rows + width), change or {}
    names = AGENTS[: change.get("agents", len(AGENTS))]
    drawn = {
        "split": generator.choice(SPLITS, size=rows, p=[0.6, 0.2, 0.2]),
        "features": generator.normal(size=(rows, width)).astype(np.float32),
        "costs": generator.random((rows, len(names), 2)).astype(np.float32),
        "failed": np.zeros((rows, len(names)), dtype=bool),
    } | change
    column = "image" if images else "features"
    record = CacheRecord(
        name="random",
        num_samples=rows,
        chunk_size=chunk_size,
        tasks=["cla", "reg"],
        classes=["no", "yes"],
        unit_reg="",
        inputs={column: {"agent": shown_by} if shown_by else {}},
        keep=[],
        agents=names,
        costs={task: {"kind": "random"} for task in ("cla", "reg")},
        defaults={},
        fingerprint={},
    )
    store.commit_json(schema.cache_file(path), asdict(record))
    for index, name in enumerate(names):
        role = "reference" if name == "mean" else "agent"
        agent = AgentRecord(
            name=name, index=index, kind="column", role=role, price=float(index > 0), description="", queries=[name]
        )
        store.commit_json(schema.agent_file(path, name), asdict(agent))
    for chunk in range(record.num_chunks):
        write_chunk(path, record, chunk, column, shown_by, drawn)
    seal(path)
    return CostCache(path)


def write_chunk(path: Path, record: CacheRecord, chunk: int, column: str, shown_by: str | None, drawn: dict) -> None:
    here = record.chunk_rows(chunk)
    rows = slice(here.start, here.stop)
    ids = [f"s{row}" for row in here]
    failed = drawn["failed"][rows]
    samples = {"sample_id": pa.array(ids), "split": pa.array(drawn["split"][rows].tolist())}
    if column == "image":
        samples["image"] = pa.array([small_image(row) for row in here], schema.IMAGE)
    elif shown_by is None:
        samples["features"] = dense_array(drawn["features"][rows])
    facts = {"schema": "1", "chunk": str(chunk), "ids": schema.ids_digest(ids)}
    commit = partial(store.commit_table, facts={**facts, "owner": "samples"})
    commit(schema.samples_part(path, chunk), pa.table(samples))
    for index, name in enumerate(record.agents):
        commit = partial(store.commit_table, facts={**facts, "owner": name})
        mask = failed[:, index] if failed[:, index].any() else None
        predictions = {"sample_id": pa.array(ids), "failure": pa.nulls(len(ids), pa.string())}
        if name == shown_by and not failed[:, index].all():  # who fails on a whole chunk shows nothing
            predictions["features"] = dense_array(drawn["features"][rows], mask)
        commit(schema.predictions_part(path, name, chunk), pa.table(predictions))
        costs = {
            f"cost_{task}": pa.array(drawn["costs"][rows, index, t], pa.float32(), mask=mask)
            for t, task in enumerate(record.tasks)
        }
        part = schema.costs_part(path, name, chunk, record.cost_digest)
        commit(part, pa.table({"sample_id": pa.array(ids), **costs}))


def small_image(row: int) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    pixels = np.random.default_rng(row).integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def seal(path: Path) -> None:
    """Write the seal of every folder anew, whatever lies in it."""
    for folder in {part.parent for part in path.rglob("*.parquet")}:
        facts = {
            part.name: {
                "rows": pq.read_metadata(part).num_rows,
                "bytes": part.stat().st_size,
                "sha256": sha256_of(part),
                "skeleton": skeleton_digest(part),
            }
            for part in sorted(folder.iterdir())
        }
        store.commit_json(schema.seal_file(folder / "any"), {"parts": facts}, replace=True)


def whole(batches) -> tuple[torch.Tensor, torch.Tensor]:
    features, raw = zip(*batches, strict=True)
    return torch.cat(features), torch.cat(raw)


def assert_same_rows(stream, table, batch: int = 17) -> None:
    features, raw = whole(stream.in_order(batch))
    assert features.dtype == raw.dtype == torch.float32
    assert torch.equal(features, table.features)
    assert torch.equal(raw, table.raw)
    assert [sample for ids in stream.ids_in_order(batch) for sample in ids] == table.ids


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> CostCache:
    return write_cache(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def stream(cache):
    return open_streams(cache, ("train",))["train"]


@pytest.fixture(scope="module")
def train(cache):
    return load_tables(cache, ("train",))["train"]


# --- in order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 17, 50, 1000])
def test_rows_in_order_are_those_of_the_table(cache, batch):
    streams, tables = open_streams(cache, SPLITS), load_tables(cache, SPLITS)
    for split, table in tables.items():
        assert len(streams[split]) == len(table)
        assert_same_rows(streams[split], table, batch)
        sizes = [len(features) for features, _ in streams[split].in_order(batch)]
        assert sizes[:-1] == [batch] * (len(sizes) - 1)
        assert 0 < sizes[-1] <= batch
        assert [len(ids) for ids in streams[split].ids_in_order(batch)] == sizes


def test_a_cache_that_was_built_streams_as_it_loads(make_cache, tmp_path):
    cache = make_cache(tmp_path)
    for split, stream in open_streams(cache, SPLITS).items():
        assert_same_rows(stream, load_tables(cache, SPLITS)[split])


@pytest.mark.parametrize("rows", [50, 51, 2 * store.ROW_GROUP_ROWS + 3])
def test_one_split_alone_in_whole_chunks_and_several_row_groups(tmp_path, rows):
    cache = write_cache(tmp_path, rows, chunk_size=max(50, rows - 1), width=2, change={"split": np.full(rows, "train")})
    assert_same_rows(open_streams(cache, ("train",))["train"], load_tables(cache, ("train",))["train"], 50)


def test_whole_chunks_are_views_and_not_copies(tmp_path):
    cache = write_cache(tmp_path, 200, change={"split": np.full(200, "train")})
    stream = open_streams(cache, ("train",))["train"]
    first, again = ([features.data_ptr() for features, _ in stream.in_order(25)] for _ in range(2))
    assert first == again


@pytest.mark.parametrize("failed", [[], [3, 60, 61, 229]])
def test_features_of_the_models_own_pass(tmp_path, failed):
    failures = np.zeros((230, 3), dtype=bool)
    failures[failed, 0] = True
    failures[100:150, 0] = bool(failed)  # a whole chunk
    cache = write_cache(tmp_path, shown_by="model", change={"failed": failures})
    for treatment in ("drop", "worst") if failed else ("refuse",):
        streams = open_streams(cache, SPLITS, failures=treatment)
        for split, table in load_tables(cache, SPLITS, failures=treatment).items():
            assert_same_rows(streams[split], table)


def test_failures_are_treated_as_in_tables(tmp_path):
    generator = np.random.default_rng(0)
    costs = generator.random((230, 3, 2)).astype(np.float32) * [1, 7]
    cache = write_cache(tmp_path, change={"failed": generator.random((230, 3)) < 0.05, "costs": costs})
    lengths = {}
    for treatment in ("drop", "worst"):
        streams, tables = (read(cache, SPLITS, failures=treatment) for read in (open_streams, load_tables))
        for split, table in tables.items():
            assert_same_rows(streams[split], table)
        alone = open_streams(cache, ("test",), failures=treatment)["test"]  # worst costs are the training split's still
        assert_same_rows(alone, tables["test"])
        lengths[treatment] = sum(map(len, streams.values()))
    assert lengths["drop"] < lengths["worst"] == 230


def test_images(tmp_path):
    failures = np.zeros((120, 3), dtype=bool)
    failures[7, 1] = True
    cache = write_cache(tmp_path, 120, images=True, change={"failed": failures})
    table = load_tables(cache, ("train",), column="image", failures="worst")["train"]
    stream = open_streams(cache, ("train",), column="image", failures="worst")["train"]
    assert stream.width == 3 * 4 * 4
    assert_same_rows(stream, table)
    epoch = [batch for _, batch in Shuffled(stream, 16, [0], window_rows=50).epoch(0)]
    assert Counter(rows_of(epoch, 0)) == Counter(row_keys(table.features, table.raw))


def test_standardisation_is_that_of_the_table(stream, train):
    for found, expected in zip(stream.standardisation(), standardisation(train.features.numpy()), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e7])
def test_standardisation_in_parts_is_exact_where_sums_of_squares_are_not(offset):
    generator = np.random.default_rng(int(offset))
    features = (generator.normal(size=(5000, 6)) * [1e-3, 1, 3, 100, 1, 0] + offset).astype(np.float32)
    parts = np.split(features, [1, 2, 1000, 1003, 4000])
    for found, expected in zip(standardisation_of_parts(iter(parts)), standardisation(features), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert standardisation_of_parts([features])[1][5] == 1  # a constant
    with pytest.raises(ValueError, match="no part"):
        standardisation_of_parts([])


# --- shuffled ---------------------------------------------------------------------------------------------------------


def row_keys(features: torch.Tensor, raw: torch.Tensor) -> list[tuple]:
    """Each row's numbers, to be counted."""
    return [tuple(row) for row in torch.cat([features, raw.flatten(1)], dim=1).tolist()]


def rows_of(epoch: list, seed: int) -> list[tuple]:
    return [key for features, raw in epoch for key in row_keys(features[seed], raw[seed])]


def test_what_fits_is_shuffled_as_train_grid_shuffles_tables(stream, train):
    seeds, batch = [3, 1], 32
    shuffles = [torch.Generator().manual_seed(seed) for seed in seeds]
    expected = []
    for _ in range(4):
        orders = torch.stack([torch.randperm(len(train), generator=g) for g in shuffles])
        expected.append([(train.features[rows], train.raw[rows]) for rows in orders.split(batch, dim=1)])
    for memory in (None, 1 << 30):
        shuffled = Shuffled(stream, batch, seeds, memory=memory)
        assert shuffled.window_rows is None
        assert shuffled.steps == len(expected[0])
        for epoch in (0, 1, 3, 2, 2):  # forwards, skipping one, backwards, again
            found = list(shuffled.epoch(epoch))
            assert [step for step, _ in found] == list(range(shuffled.steps))
            for (_, batches), wanted in zip(found, expected[epoch], strict=True):
                assert all(torch.equal(a, b) for a, b in zip(batches, wanted, strict=True))


@pytest.mark.parametrize("window_rows", [40, 70, 100])
@pytest.mark.parametrize("batch_size", [1, 32, 90])
def test_an_epoch_has_every_row_once_for_each_seed(stream, train, window_rows, batch_size):
    shuffled = Shuffled(stream, batch_size, [0, 5], window_rows=window_rows)
    expected = Counter(row_keys(train.features, train.raw))
    orders = set()
    for epoch in range(2):
        found = list(shuffled.epoch(epoch))
        assert [step for step, _ in found] == list(range(shuffled.steps))
        batches = [batch for _, batch in found]
        assert {features.shape[1] for features, _ in batches[:-1]} <= {batch_size}
        assert batches[-1][0].shape[1] == len(train) - batch_size * (shuffled.steps - 1)
        for seed in (0, 1):
            rows = rows_of(batches, seed)
            assert Counter(rows) == expected
            orders.add(tuple(rows))
    assert len(orders) == 4  # another order for each seed and epoch


def test_a_seeds_rows_depend_neither_on_other_seeds_nor_on_the_batch_size(stream):
    alone = Shuffled(stream, 8, [5], window_rows=70)
    together = Shuffled(stream, 20, [2, 5, 9], window_rows=70)
    for epoch in (0, 3):
        one, three = ([batch for _, batch in found.epoch(epoch)] for found in (alone, together))
        assert rows_of(one, 0) == rows_of(three, 1) != rows_of(three, 0)


def test_windows_are_permuted_anew_for_each_seed_epoch_and_window():
    triples = list(itertools.product(range(3), repeat=3))
    found = {tuple(torch.randperm(30, generator=_generator(*triple)).tolist()) for triple in triples}
    assert len(found) == len(triples)


def test_all_seeds_share_windows_of_whole_chunks_in_an_order_drawn_anew(cache, stream, train):
    keys = row_keys(train.features, train.raw)
    chunk_of = {key: int(sample[1:]) // 50 for key, sample in zip(keys, train.ids, strict=True)}
    sizes = Counter(chunk_of.values())
    shuffled, sequences = Shuffled(stream, 1, [0, 1], window_rows=70), set()
    for epoch in range(6):
        batches = [batch for _, batch in shuffled.epoch(epoch)]
        chunks = [[chunk_of[key] for key in rows_of(batches, seed)] for seed in (0, 1)]
        start, windows = 0, []
        while start < len(train):  # the fewest rows from here on that are whole chunks, the same ones for both seeds
            stop = start + 1
            while not all(Counter(c[start:stop]) == {k: sizes[k] for k in set(c[start:stop])} for c in chunks):
                stop += 1
            assert set(chunks[0][start:stop]) == set(chunks[1][start:stop])
            assert stop - start <= 70
            windows.append(frozenset(chunks[0][start:stop]))
            start = stop
        sequences.add(tuple(windows))
        assert max(len(window) for window in windows) > 1  # windows mix chunks
    assert len(sequences) > 1


@pytest.mark.parametrize("window_rows", [None, 70])
def test_an_epoch_is_entered_at_any_step(stream, window_rows):
    shuffled = Shuffled(stream, 16, [4, 7], window_rows=window_rows)
    for epoch in (0, 2):
        expected = list(shuffled.epoch(epoch))
        for start in range(shuffled.steps + 1):
            again = Shuffled(stream, 16, [4, 7], window_rows=window_rows)  # as a new process would
            found = list(again.epoch(epoch, start))
            assert [step for step, _ in found] == list(range(start, shuffled.steps))
            for (_, batch), (_, wanted) in zip(found, expected[start:], strict=True):
                assert all(torch.equal(a, b) for a, b in zip(batch, wanted, strict=True))


def test_entering_late_reads_only_what_comes_after(stream, monkeypatch):
    shuffled = Shuffled(stream, 16, [4], window_rows=70)
    read, rows = [], stream.rows
    monkeypatch.setattr(stream, "rows", lambda chunk, prepare: read.append(chunk) or rows(chunk, prepare))
    counts = []
    for start in (0, shuffled.steps // 2, shuffled.steps - 1):
        read.clear()
        list(shuffled.epoch(1, start))
        counts.append(len(read))
    assert counts[0] == len(stream.counts)
    assert counts[0] > counts[1] > counts[2] >= 1
    at_a_window = Shuffled(stream, 1, [4], window_rows=70)
    first, *others = at_a_window._plan(1)
    read.clear()
    list(at_a_window.epoch(1, first.stop))
    assert read == [chunk for window in others for chunk in window.chunks]


def test_rows_are_prepared_as_they_are_read(stream, train):
    mean, std = (torch.from_numpy(values) for values in stream.standardisation())

    def prepare(features, raw):
        return (features - mean) / std, raw.sum(dim=2, keepdim=True)

    expected = (train.features - mean) / std, train.raw.sum(dim=2, keepdim=True)
    found = whole(stream.in_order(30, prepare=prepare))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for window_rows in (None, 70):
        batches = [batch for _, batch in Shuffled(stream, 30, [1], window_rows=window_rows, prepare=prepare).epoch(0)]
        assert batches[0][1].shape == (1, 30, 2, 1)
        assert Counter(rows_of(batches, 0)) == Counter(row_keys(*expected))


def test_memory_stays_in_its_bound_whatever_the_rows(tmp_path):
    """numpy's allocations, windows among them, are traced; torch's (batches, orders) are not, and are small here."""
    bound, peaks = 1 << 18, []
    for rows in (1_500, 4_500):
        cache = write_cache(tmp_path / str(rows), rows, 120, width=60)
        stream = open_streams(cache, ("train",))["train"]
        shuffled = Shuffled(stream, 16, [0], memory=bound)
        assert 0.3 * bound < 2 * shuffled.window_rows * (60 + 2 * 2) * 4 < bound
        assert Shuffled(stream, 1, [0, 1, 2], memory=bound).window_rows == shuffled.window_rows
        tracemalloc.start()
        assert sum(features.shape[1] for _, (features, _) in shuffled.epoch(0)) == len(stream)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < bound
    assert peaks[1] < 1.2 * peaks[0]
    with pytest.raises(UsageError, match="do not hold a window of one part") as caught:
        Shuffled(stream, 16, [0], memory=bound // 3)
    least = float(caught.value.hint.split()[2])
    assert least * 2**20 > bound // 3
    assert Shuffled(stream, 1, [0], memory=int(least * 2**20)).window_rows >= stream.counts.max()
    with pytest.raises(UsageError, match=r"9 seeds at once do not fit into 0\.2 MiB, 2 do"):
        Shuffled(stream, 16, list(range(9)), memory=bound)
    with pytest.raises(UsageError, match="smaller than a part"):
        Shuffled(stream, 16, [0], window_rows=60)


# --- bad input --------------------------------------------------------------------------------------------------------


def nan_feature(path):
    features = np.zeros((230, 5), np.float32)
    features[77, 2] = np.nan
    return write_cache(path, change={"features": features})


def bad_cost(path, value):
    costs = np.ones((230, 3, 2), np.float32)
    costs[201, 1, 1] = value
    return write_cache(path, change={"costs": costs})


def failing(path, rows):
    failed = np.zeros((230, 3), dtype=bool)
    failed[rows, 2] = True
    return write_cache(path, change={"failed": failed, "split": np.full(230, "train")})


def foreign(path):
    """A costs part of other samples, sealed with the rest."""
    cache = write_cache(path)
    part = schema.costs_part(path, "expert", 2, cache.record.cost_digest)
    table = store.read_table(part)
    store.commit_table(part, table, {**store.facts_of(table), "ids": schema.ids_digest(["x"])}, replace=True)
    seal(path)
    return CostCache(path)


def swapped(path):
    cache = write_cache(path)
    for name in ("expert", "model"):
        schema.costs_part(path, name, 1, cache.record.cost_digest).rename(path / name)
    for name, other in (("expert", "model"), ("model", "expert")):
        (path / name).rename(schema.costs_part(path, other, 1, cache.record.cost_digest))
    seal(path)
    return CostCache(path)


def missing(path):
    cache = write_cache(path)
    schema.costs_part(path, "model", 3, cache.record.cost_digest).unlink()
    return cache


def other_build(path):
    """A part of another build, in order in itself but not the one that was sealed."""
    cache, other = write_cache(path / "one"), write_cache(path / "other", change={"costs": np.ones((230, 3, 2))})
    parts = [schema.costs_part(c.path, "model", 1, c.record.cost_digest) for c in (cache, other)]
    parts[0].write_bytes(parts[1].read_bytes())
    return cache


BAD = {
    "a feature is not finite": (nan_feature, {}),
    "a cost is negative": (lambda path: bad_cost(path, -1), {}),
    "a cost is not finite": (lambda path: bad_cost(path, np.inf), {}),
    "a split without rows": (lambda path: write_cache(path, change={"split": np.full(230, "test")}), {}),
    "one agent": (lambda path: write_cache(path, change={"agents": 1}), {}),
    "no such input": (write_cache, {"column": "image"}),
    "no such treatment": (write_cache, {"failures": "ignore"}),
    "failures": (lambda path: failing(path, [9, 130]), {}),
    "nothing but failures": (lambda path: failing(path, slice(None)), {"failures": "drop"}),
    "a missing part": (missing, {}),
    "a part of other samples": (foreign, {}),
    "parts that were swapped": (swapped, {}),
    "a part of another build": (other_build, {}),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_as_by_tables(tmp_path, what):
    make, options = BAD[what]
    cache = make(tmp_path)
    errors = []
    for read in (load_tables, open_streams):
        with pytest.raises(L2DError) as caught:
            read(cache, ("train", "validation"), **options)
        errors.append(caught.value)
    assert type(errors[0]) is type(errors[1])
    assert str(errors[0]) == str(errors[1])
    assert errors[1].hint


@pytest.mark.parametrize("stray", [None, np.nan, np.inf])
def test_features_whose_sum_overflows_are_looked_at_one_by_one(tmp_path, stray):
    features = np.full((230, 5), 3e38, np.float32)
    if stray is None:
        assert len(open_streams(write_cache(tmp_path, change={"features": features}), ("train",))["train"])
        return
    features[77, 2], features[78, 2] = stray, -stray
    cache = write_cache(tmp_path, change={"features": features})
    with pytest.raises(L2DError, match="has a feature that is not finite") as caught:
        open_streams(cache, ("train",))
    assert cache.samples(1, ["sample_id"])["sample_id"][27].as_py() in str(caught.value)


def test_failures_elsewhere_do_not_refuse_a_split(tmp_path):
    failed = np.zeros((230, 3), dtype=bool)
    failed[200:, 1] = True
    split = np.where(np.arange(230) < 210, "train", "test")
    cache = write_cache(tmp_path, change={"failed": failed & (split == "test")[:, None], "split": split})
    assert_same_rows(open_streams(cache, ("train",))["train"], load_tables(cache, ("train",))["train"])


@pytest.mark.slow
def test_damage_is_refused_or_harmless(tmp_path):
    cache = write_cache(tmp_path, 90, 30, width=3)
    expected = whole(open_streams(cache, ("train",))["train"].in_order(20))
    parts = [part for part in cache.parts() if "predictions" not in str(part)]
    generator, refused = np.random.default_rng(0), 0
    for case in range(150):
        part = parts[generator.integers(len(parts))]
        content = part.read_bytes()
        bad = bytearray(content)
        bad[generator.integers(len(bad))] ^= 1 << int(generator.integers(8))
        part.write_bytes(bad[: generator.integers(len(bad))] if case % 10 == 0 else bad)
        caught = None
        try:
            found = whole(open_streams(CostCache(tmp_path), ("train",))["train"].in_order(20))
        except L2DError as error:
            caught = error
        part.write_bytes(content)
        if caught is None:
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), (case, part)
        else:
            assert str(part) in str(caught), case
            refused += 1
    assert refused > 90


def test_what_happens_in_the_background_is_raised_and_leaves_no_thread(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "MAPPINGS_KEPT", 0)
    cache = write_cache(tmp_path)
    stream = open_streams(cache, ("train",))["train"]
    shuffled = Shuffled(stream, 10, [0], window_rows=40)
    before = threading.active_count()
    epoch = shuffled.epoch(0)
    next(epoch)
    assert threading.active_count() == before + 1
    epoch.close()
    assert threading.active_count() == before
    for chunk in range(cache.record.num_chunks):
        part = schema.samples_part(cache.path, chunk)
        part.write_bytes(part.read_bytes())  # the same bytes, but who knows
    with pytest.raises(CorruptPart, match="replaced"):
        list(shuffled.epoch(0))
    assert threading.active_count() == before


def test_ahead_works_on_one_item_while_another_is_used():
    started, has_begun, may_end = [], threading.Event(), threading.Event()

    def work(item):
        started.append(item)
        if item == 1:
            has_begun.set()
            assert may_end.wait(10)
        return item * 10

    results = ahead(work, iter(range(4)))
    assert next(results) == 0
    assert has_begun.wait(10)  # 1 is under way although nobody has asked for it, and 0 was not kept back for it
    assert started == [0, 1]  # and no more than that
    may_end.set()
    assert list(results) == [10, 20, 30]
    assert list(ahead(work, [])) == []


def test_only_what_is_decoded_is_handed_from_thread_to_thread(stream, tmp_path):
    images = open_streams(write_cache(tmp_path, 120, images=True), ("train",), column="image")["train"]
    for source, threads in ((stream, 0), (images, 1)):
        before = threading.active_count()
        batches = source.in_order(10)
        next(batches)
        assert threading.active_count() - before == threads
        batches.close()
