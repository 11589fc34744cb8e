"""The store: whole or not at all, never overwritten unasked, and damage is noticed."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from data import schema, store
from data.errors import CorruptPart, DataError


class Interrupted(BaseException):
    """Stands for Ctrl-C or a bug of ours."""


def entries(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def table(rows: int = 60) -> pa.Table:
    generator = np.random.default_rng(0)
    flat = pa.array(generator.random(2 * rows).astype(np.float32))
    return pa.table(
        {
            "sample_id": pa.array([f"p{row}" for row in range(rows)]),
            "cost_cla": pa.array(generator.random(rows).astype(np.float32)),
            "pred_cla": pa.array(generator.integers(5, size=rows), pa.int32()),
            "pred_prob": pa.FixedSizeListArray.from_arrays(flat, type=schema.dense(2)),
        }
    )


@pytest.mark.parametrize("error", [ValueError("no"), OSError(28, "No space left on device"), Interrupted()])
@pytest.mark.parametrize("replace", [False, True])
def test_a_writer_that_fails_leaves_nothing(tmp_path, error, replace):
    def write(path):
        path.write_bytes(b"half")
        raise error

    expected = DataError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        store.commit(tmp_path / "part", write, replace=replace)
    assert entries(tmp_path) == []
    (tmp_path / "part").write_bytes(b"old")
    with pytest.raises(expected):
        store.commit(tmp_path / "part", write, replace=replace)
    assert entries(tmp_path) == ["part"]
    assert (tmp_path / "part").read_bytes() == b"old"


def test_a_full_disk_is_a_data_error_that_names_the_file(tmp_path):
    def write(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="No space left") as caught:
        store.commit(tmp_path / "part", write)
    assert caught.value.where == tmp_path / "part"
    assert "free some space" in caught.value.hint


def test_the_second_commit_of_a_name_is_told_so_and_changes_nothing(tmp_path):
    path = tmp_path / "deep" / "part"
    assert store.commit_bytes(path, b"first") is True
    before = path.stat().st_mtime_ns
    assert store.commit_bytes(path, b"second") is False
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (b"first", before)
    assert store.commit_bytes(path, b"third", replace=True) is True
    assert path.read_bytes() == b"third"
    assert entries(tmp_path) == ["deep", "deep/part"]


def test_the_final_name_never_shows_a_half_written_file(tmp_path):
    seen = []

    def write(path):
        path.write_bytes(b"ha")
        seen.append((tmp_path / "part").exists())
        path.write_bytes(b"half and whole")

    store.commit(tmp_path / "part", write)
    assert seen == [False]
    assert (tmp_path / "part").read_bytes() == b"half and whole"


def flips(content: bytes, positions, count: int, seed: int):
    """``content`` with one bit turned over, ``count`` times."""
    generator = np.random.default_rng(seed)
    for position in generator.choice(positions, size=count, replace=count > len(positions)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(generator.integers(8))
        yield int(position), bytes(damaged)


def undamaged_or_refused(tmp_path, positions, count, seed=0):
    """How many flips were refused; fails on one that reads back as something else."""
    good, path = table(), tmp_path / "part.parquet"
    facts = {"owner": "agent", "chunk": "0", "schema": "1", "ids": schema.ids_digest(["a"])}
    store.commit_table(path, good, facts)
    content, refused, silent = path.read_bytes(), 0, []
    for position, damaged in flips(content, positions(content), count, seed):
        path.write_bytes(damaged)
        try:
            found = store.read_table(path)
        except CorruptPart as error:
            assert error.where == path
            refused += 1
            continue
        if not found.equals(good):
            changed = [name for name in good.column_names if name not in found.column_names]
            silent.append((position, changed or f"{found.num_rows} rows, {found.schema.types}"))
    assert not silent, f"{len(silent)} of {count} flips silently changed the table, such as {silent[:3]}"
    return refused


def footer_start(content: bytes) -> int:
    return len(content) - 8 - struct.unpack("<I", content[-8:-4])[0]


def test_a_bit_flipped_in_a_page_is_never_silent(tmp_path):
    refused = undamaged_or_refused(tmp_path, lambda content: range(4, footer_start(content)), 600)
    assert refused > 500


def test_a_bit_flipped_in_the_footer_is_never_silent(tmp_path):
    undamaged_or_refused(tmp_path, lambda content: range(footer_start(content), len(content)), 600)


def test_a_flip_in_the_footer_is_refused_and_no_cost_is_read_as_another(tmp_path):
    """The one bit that makes ``cost_cla`` a column of booleans: 0.3 becomes True."""
    good, path = table(), tmp_path / "part.parquet"
    store.commit_table(path, good, {"owner": "agent"})
    content = path.read_bytes()
    for position in range(footer_start(content), footer_start(content) + 120):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                found = store.read_table(path, ["cost_cla"])
            except CorruptPart:
                continue
            if found.column_names == ["cost_cla"]:
                assert found["cost_cla"].to_pylist() == good["cost_cla"].to_pylist(), (position, bit)


def test_a_truncated_part_is_corrupt_and_a_missing_one_is_missing(tmp_path):
    path = tmp_path / "part.parquet"
    store.commit_table(path, table())
    content = path.read_bytes()
    for length in [0, 1, 4, 12, len(content) // 2, len(content) - 8, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CorruptPart, match="cannot be read back") as caught:
            store.read_table(path)
        assert caught.value.where == path
        assert caught.value.hint
    path.unlink()
    with pytest.raises(FileNotFoundError):
        store.read_table(path)


def test_json_that_is_damaged_is_corrupt(tmp_path):
    store.commit_json(tmp_path / "a.json", {"ä": [1, 2.5, None]})
    assert store.read_json(tmp_path / "a.json") == {"ä": [1, 2.5, None]}
    for content in (b"", b'{"a": ', b"[1]", b"\xff\xfe"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(CorruptPart):
            store.read_json(tmp_path / "a.json")


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_the_sweep_removes_what_dead_processes_of_this_machine_left_and_nothing_else(tmp_path):
    (tmp_path / "samples").mkdir()
    here, dead = socket.gethostname(), dead_process()

    def leave(host, process, folder=False):
        path = tmp_path / "samples" / f".0.parquet.{host}.{process}.abcdef{store.TEMPORARY_SUFFIX}"
        if folder:
            (path / "deep").mkdir(parents=True)
            (path / "deep" / f".1.{host}.{process}.ffff{store.TEMPORARY_SUFFIX}").write_bytes(b"x")
        else:
            path.write_bytes(b"x")
        return path

    gone = leave(here, dead)
    mine, elsewhere = leave(here, os.getpid()), leave("other-" + here, dead)
    init = leave(here, 1)
    parts = [tmp_path / "samples" / name for name in ("00000.parquet", "notes.tmp")]
    for part in parts:
        part.write_bytes(b"x")
    assert store.sweep_orphans(tmp_path) == [gone]
    assert not gone.exists()
    assert all(path.exists() for path in (mine, elsewhere, init, *parts))
    folder = leave(here, dead, folder=True)
    store.sweep_orphans(tmp_path)
    assert not folder.exists()


def test_a_folder_is_committed_whole_or_not_at_all(tmp_path):
    run = tmp_path / "runs" / "one"

    def fill(folder):
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_bytes(b"1")
        assert not run.exists()

    def fail(folder):
        fill_partly = folder / "b"
        fill_partly.write_bytes(b"2")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.commit_folder(run, fail)
    assert entries(tmp_path) == ["runs"]
    store.commit_folder(run, fill)
    assert entries(run) == ["sub", "sub/a"]
    with pytest.raises(DataError, match="there already"):
        store.commit_folder(run, fill)
    with pytest.raises(ValueError, match="no"):
        store.commit_folder(run, fail, replace=True)
    assert entries(tmp_path / "runs") == ["one", "one/sub", "one/sub/a"]
    store.commit_folder(run, lambda folder: (folder / "c").write_bytes(b"3"), replace=True)
    assert entries(tmp_path / "runs") == ["one", "one/c"]


def test_boxes_tokens_and_dense_inputs_round_trip_and_duckdb_and_polars_read_them(tmp_path):
    def box(k):
        corners = dict.fromkeys(("x1", "y1"), float(k)) | dict.fromkeys(("x2", "y2"), k + 2.5)
        return {**corners, "score": 0.5, "label": k, "ignore": k == 2}

    boxes, tokens = [[box(1), box(2)], [], [box(3)]], [[5, 6, 7], [], [8]]
    flat = pa.array(np.arange(12, dtype=np.float32))
    part = pa.table(
        {
            "sample_id": ["a", "b", "c"],
            "pred_boxes": pa.array(boxes, schema.BOXES),
            "tokens": pa.array(tokens, schema.TOKENS),
            "features": pa.FixedSizeListArray.from_arrays(flat, type=schema.dense(4)),
            "image": pa.array([b"\xff\xd8", b"", b"\x89PNG"], schema.IMAGE),
        }
    )
    path = tmp_path / "part.parquet"
    store.commit_table(path, part, {"owner": "detector"})
    found = store.read_table(path)
    assert found.equals(part)
    assert found["pred_boxes"].type == schema.BOXES
    assert found["features"].type == schema.dense(4)
    assert store.facts_of(found) == {"owner": "detector"}
    assert store.read_table(path, ["tokens"]).column_names == ["tokens"]
    dense = np.arange(12).reshape(3, 4).tolist()
    frame = pl.read_parquet(path)
    assert frame["pred_boxes"].to_list() == boxes
    assert (frame["tokens"].to_list(), [list(row) for row in frame["features"].to_list()]) == (tokens, dense)
    with duckdb.connect() as connection:
        rows = connection.execute("SELECT pred_boxes, tokens, features FROM read_parquet(?)", [str(path)]).fetchall()
        count = connection.execute(
            "SELECT count(*) FROM (SELECT unnest(pred_boxes) AS box FROM read_parquet(?)) WHERE box.label >= 2",
            [str(path)],
        ).fetchone()
    assert [(row[0], row[1], list(row[2])) for row in rows] == list(zip(boxes, tokens, dense, strict=True))
    assert count == (2,)


def test_a_large_part_of_several_row_groups_round_trips(tmp_path):
    big = table(70_000)
    store.commit_table(tmp_path / "part.parquet", big)
    assert store.read_table(tmp_path / "part.parquet").equals(big)
