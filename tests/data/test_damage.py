"""Damaged files: a flipped bit or a missing end is noticed, and never read as another value."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from conftest import part_table as table

from l2d.data.cache import integrity, schema, store
from l2d.data.errors import CorruptPart


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
        except CorruptPart:
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


def test_page_checksums_are_those_of_zlib():
    """Whichever library computes them; pyarrow, which writes them, has its own."""
    generator = np.random.default_rng(0)
    for size in (0, 1, 7, 64, 1000, 100_003):
        content = generator.bytes(size + 5)
        for start in (0, 1, 5):  # whatever the alignment
            assert integrity.crc32(memoryview(content)[start:]) == zlib.crc32(content[start:])
