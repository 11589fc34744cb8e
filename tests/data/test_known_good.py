"""Files that are known to be sound: read once, and again as soon as anything about them has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import part_table

from l2d.data.cache import known_good, store
from l2d.data.cache.integrity import skeleton_digest
from l2d.data.cache.known_good import KnownGood, Wanted
from l2d.data.errors import CorruptPart

OLD = 1_600_000_000


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with two parts that have long been there, every size worth remembering; and what was read back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(known_good, "WORTH_REMEMBERING", 1)
    monkeypatch.setattr(known_good, "SETTLED", -60)  # files of this test are new, and times of change cannot be set
    read, whole = [], known_good.read_back

    def watched(path, *arguments, **options):
        read.append(path.name)
        return whole(path, *arguments, **options)

    monkeypatch.setattr(known_good, "read_back", watched)
    for name in ("a", "b"):
        store.commit_table(tmp_path / "cache" / f"{name}.parquet", part_table(), {"owner": name})
    return tmp_path / "cache", read


def wanted(folder: Path, *columns: str) -> list[Wanted]:
    names = columns or tuple(part_table().column_names)
    return [Wanted(file, skeleton_digest(file), names) for file in sorted(folder.iterdir())]


def damage(file: Path, *, position: int = 100) -> None:
    """A bit of a page turned over, and the time of the last change put back to what it was."""
    before, content = file.stat(), bytearray(file.read_bytes())
    content[position] ^= 1
    with open(file, "r+b") as opened:  # the same inode
        opened.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_is_read_once_by_a_process_and_by_the_next(world):
    folder, read = world
    known = KnownGood([folder])
    for _ in range(3):
        known.verify(wanted(folder))
    assert read == ["a.parquet", "b.parquet"]
    KnownGood([folder]).verify(wanted(folder))
    assert len(read) == 2
    KnownGood([folder.parent]).verify(wanted(folder))
    assert len(read) == 4, "other folders have a memory of their own"


def test_columns_that_have_not_been_looked_at_are_read(world):
    folder, read = world
    known = KnownGood([folder])
    first, second, *_ = part_table().column_names
    known.verify(wanted(folder, first))
    known.verify(wanted(folder, first, second))
    assert len(read) == 4
    known.verify(wanted(folder, second))
    assert len(read) == 4


@pytest.mark.parametrize("again", [False, True])
def test_a_changed_file_is_read_again_though_its_size_and_time_are_the_same(world, again):
    folder, read = world
    for file in folder.iterdir():
        os.utime(file, (OLD, OLD))
    known = KnownGood([folder])
    known.verify(wanted(folder))
    sound = wanted(folder)
    page = store.read_table(folder / "b.parquet")
    assert page.num_rows
    damage(folder / "b.parquet")
    with pytest.raises(CorruptPart) as caught:
        (KnownGood([folder]) if again else known).verify(sound)
    assert caught.value.where == folder / "b.parquet"
    assert read[2:] == ["b.parquet"]


def test_a_file_of_another_skeleton_is_refused(world):
    folder, _ = world
    known, sound = KnownGood([folder]), wanted(folder)
    known.verify(sound)
    (folder / "a.parquet").write_bytes((folder / "b.parquet").read_bytes())
    with pytest.raises(CorruptPart, match="not the file that was sealed"):
        known.verify(sound)


def test_what_has_just_changed_is_not_remembered(world, monkeypatch):
    folder, read = world
    monkeypatch.setattr(known_good, "SETTLED", 3.0)
    for _ in range(2):
        KnownGood([folder]).verify(wanted(folder))
    assert len(read) == 4


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": 1, "files": {}}'])
def test_a_memory_that_is_damaged_or_cannot_be_written_is_none(world, content):
    folder, read = world
    KnownGood([folder]).verify(wanted(folder))
    (memory,) = known_good.memory_folder().iterdir()
    memory.write_bytes(content)
    KnownGood([folder]).verify(wanted(folder))
    assert len(read) == 4
    memory.unlink()
    known_good.memory_folder().rmdir()
    known_good.memory_folder().write_text("in the way")
    for _ in range(2):
        KnownGood([folder]).verify(wanted(folder))
    assert len(read) == 8


def test_it_stops_where_nobody_waits(world):
    folder, read = world
    known = KnownGood([folder])
    known.verify(wanted(folder), stop=lambda: True)
    assert read == []
    known.verify(wanted(folder))
    assert len(read) == 2
