"""The store: whole or not at all, never overwritten unasked, and damage is noticed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conftest import part_table as table

from l2d.data.cache import schema, store, temporary
from l2d.data.cache.temporary import TEMPORARY_SUFFIX, sweep_orphans
from l2d.data.errors import DataError


class Interrupted(BaseException):
    """Stands for Ctrl-C or a bug of ours."""


def entries(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


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


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_the_sweep_removes_what_dead_processes_of_this_machine_left_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "samples").mkdir()
    here, dead = socket.gethostname(), dead_process()

    def leave(host, process, folder=False):
        path = tmp_path / "samples" / f".0.parquet.{host}.{process}.{'ab' * 16}{TEMPORARY_SUFFIX}"
        if folder:
            (path / "deep").mkdir(parents=True)
            (path / "deep" / f".1.{host}.{process}.{'ff' * 16}{TEMPORARY_SUFFIX}").write_bytes(b"x")
        else:
            path.write_bytes(b"x")
        return path

    gone = leave(here, dead)
    mine, elsewhere = leave(here, os.getpid()), leave("other-" + here, dead)
    init = leave(here, 1)
    parts = [tmp_path / "samples" / name for name in ("00000.parquet", "notes.tmp")]
    for part in parts:
        part.write_bytes(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(temporary, "_LIVE", {mine})
        assert sweep_orphans(tmp_path) == [gone]
    assert not gone.exists()
    assert all(path.exists() for path in (mine, elsewhere, init, *parts))
    folder = leave(here, dead, folder=True)
    sweep_orphans(tmp_path)
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
        corners |= {"width": 2.5, "height": 2.5}
        return {**corners, "score": 0.5, "label": k, "ignore": k == 2, "crowd": k == 3}

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
