"""Mapped parts: what pyarrow reads, bit for bit, or a fallback to it; and nothing damaged is ever returned."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2d.data.cache import mapped, pages, schema, store
from l2d.data.cache.columns import dense_array
from l2d.data.cache.integrity import SKELETON_BLANK, skeleton_digest, write_skeleton
from l2d.data.cache.mapped import MappedPart
from l2d.data.errors import CorruptPart
from l2d.data.samples.boxes import Boxes

KINDS = {"i32": pa.int32(), "i64": pa.int64(), "f32": pa.float32(), "f64": pa.float64()}


def numbers(rows: int, kind: pa.DataType, generator: np.random.Generator) -> pa.Array:
    """Numbers of any bit pattern: denormal, infinite and not a number too."""
    raw = generator.integers(0, 256, size=rows * kind.bit_width // 8, dtype=np.uint8)
    return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(raw.tobytes())])


def random_table(rows: int, width: int, seed: int) -> pa.Table:
    """Text of odd lengths (so that pages begin anywhere) between numbers of every kind and a fixed-width list."""
    generator = np.random.default_rng(seed)
    columns: dict[str, pa.Array] = {}
    for name, kind in KINDS.items():
        columns[f"text before {name}"] = pa.array(["x" * int(n) for n in generator.integers(0, 9, size=rows)])
        columns[name] = numbers(rows, kind, generator)
    flat = numbers(rows * width, pa.float32(), generator)
    columns["dense"] = pa.FixedSizeListArray.from_arrays(flat, type=schema.dense(width))
    return pa.table(columns)


def in_groups(path: Path, table: pa.Table, rows: int, **layout) -> None:
    """A part as the store writes it, but for the rows of a row group and ``layout``."""
    table = table.replace_schema_metadata({"l2d.owner": "agent", "l2d.skeleton": SKELETON_BLANK})
    pq.write_table(table, path, **{**store.PARQUET_LAYOUT, "row_group_size": rows, **layout})
    write_skeleton(path)


def as_bytes(values: np.ndarray | pa.ChunkedArray) -> bytes:
    """The bits of a column without nulls, whoever read it."""
    if isinstance(values, np.ndarray):
        return values.tobytes()
    chunks = [chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) else chunk for chunk in values.chunks]
    return b"".join(np.asarray(chunk).tobytes() for chunk in chunks)


COLUMNS = (*KINDS, "dense")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 300),
    width=st.integers(1, 70),
    group=st.sampled_from([7, 50, 128, 1000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_views_hold_what_pyarrow_reads_bit_for_bit(tmp_path_factory, rows, width, group, seed):
    path = tmp_path_factory.mktemp("part") / "part.parquet"
    table = random_table(rows, width, seed)
    in_groups(path, table, group)
    part = MappedPart(path, COLUMNS)
    assert part.is_mapped
    assert (part.header.rows, part.header.facts) == (rows, {"owner": "agent"})
    assert part.header.skeleton == skeleton_digest(path)
    found, expected = part.read(), store.read_table(path)
    assert tuple(found) == COLUMNS
    assert found["dense"].shape == (rows, width)
    for name in COLUMNS:
        values = found[name]
        assert values.dtype == (np.float32 if name == "dense" else KINDS[name].to_pandas_dtype())
        assert as_bytes(values) == as_bytes(expected[name]) == as_bytes(table[name]), name
        assert not values.flags.writeable
    shutil.rmtree(path.parent)


def test_a_part_of_the_store_is_read_without_a_copy_and_leaves_no_file_open(tmp_path):
    table = random_table(500, 16, seed=3)
    store.commit_table(tmp_path / "part.parquet", table)
    open_files = len(os.listdir("/proc/self/fd"))
    part = MappedPart(tmp_path / "part.parquet", ("dense", "f32"))
    first, second = part.read(), part.read()
    for name in ("dense", "f32"):
        assert not first[name].flags.owndata
        assert first[name].__array_interface__["data"] == second[name].__array_interface__["data"]
    assert len(os.listdir("/proc/self/fd")) == open_files
    del part  # views outlive it
    assert as_bytes(first["dense"]) == as_bytes(table["dense"])


def with_nulls(column: pa.Array, rows: list[int]) -> pa.Array:
    values = column.to_pylist()
    for row in rows:
        values[row] = None
    return pa.array(values, column.type)


def other_layouts() -> dict[str, tuple[pa.Table, dict]]:
    """Tables and ways to write them that cannot be mapped."""
    table = random_table(90, 5, seed=1).drop_columns(["f64"])
    plain = table.select(["i32"]).append_column("f32", pa.array(np.arange(90, dtype=np.float32)))
    flat = np.arange(90 * 5, dtype=np.float32).reshape(90, 5)
    boxes = Boxes.from_images([{"boxes": [[0, 0, i + 1, 2]] * (i % 3), "labels": [0] * (i % 3)} for i in range(90)])
    return {
        "failures": (plain.set_column(1, "f32", with_nulls(plain["f32"].combine_chunks(), [0, 41, 89])), {}),
        "a failure in a later row group": (
            plain.set_column(1, "f32", with_nulls(plain["f32"].combine_chunks(), [75])),
            {"row_group_size": 30},
        ),
        "nothing but failures": (plain.set_column(1, "f32", pa.nulls(90, pa.float32())), {}),
        "failures of lists": (pa.table({"f32": dense_array(flat, np.arange(90) % 7 == 0)}), {}),
        "text": (pa.table({"f32": pa.array([f"{row}" for row in range(90)])}), {}),
        "boxes": (pa.table({"f32": boxes.to_arrow()}), {}),
        "ragged lists": (pa.table({"f32": pa.array([[1.0] * (row % 3) for row in range(90)])}), {}),
        "lists of one length": (pa.table({"f32": pa.array([[1.0, 2.0]] * 90, pa.list_(pa.float32()))}), {}),
        "wide lists of doubles": (pa.table({"f32": pa.array([[1.0, 2.0]] * 90, pa.list_(pa.float64(), 2))}), {}),
        "small integers": (pa.table({"f32": pa.array(np.arange(90), pa.int16())}), {}),
        "booleans": (pa.table({"f32": pa.array([True, False] * 45)}), {}),
        "dates": (pa.table({"f32": pa.array(np.arange(90, dtype=np.int32)).cast(pa.date32())}), {}),
        "no rows": (plain[:0], {}),
        "compressed": (plain, {"compression": "zstd"}),
        "a dictionary": (plain, {"use_dictionary": True}),
        "bytes split": (plain, {"column_encoding": {"f32": "BYTE_STREAM_SPLIT", "i32": "PLAIN"}}),
        "differences": (plain, {"column_encoding": {"f32": "PLAIN", "i32": "DELTA_BINARY_PACKED"}}),
        "pages of version 2": (plain, {"data_page_version": "2.0"}),
        "several pages": (plain, {"data_page_size": 64, "write_batch_size": 8}),
        "no checksums": (plain, {"write_page_checksum": False}),
    }


@pytest.mark.parametrize("name", other_layouts())
def test_what_is_laid_out_otherwise_is_read_by_arrow(tmp_path, name):
    table, layout = other_layouts()[name]
    path = tmp_path / "part.parquet"
    in_groups(path, table, **{"rows": 1000, **{k: v for k, v in layout.items() if k != "row_group_size"}})
    if "row_group_size" in layout:
        in_groups(path, table, layout["row_group_size"])
    part = MappedPart(path, tuple(table.column_names))
    assert not part.is_mapped
    found = part.read()
    assert list(found) == table.column_names
    for column, values in found.items():
        assert values.combine_chunks().equals(table[column].combine_chunks()), column


def test_a_missing_column_is_left_out(tmp_path):
    path = tmp_path / "part.parquet"
    table = random_table(5, 2, seed=0)
    store.commit_table(path, table)
    found = MappedPart(path, ("f32", "nothing")).read()
    assert list(found) == ["f32"]
    assert as_bytes(found["f32"]) == as_bytes(table["f32"])
    assert MappedPart(path, ("nothing",)).read() == {}


@pytest.mark.parametrize("order", [("a", "a.list.element"), ("a.list.element", "a")])
def test_names_with_dots_are_not_mixed_up(tmp_path, order):
    """Both columns have the same path in Parquet's own schema."""
    values = np.arange(10, dtype=np.float32)
    columns = {"a": dense_array(values.reshape(-1, 1)), "a.list.element": pa.array(values + 50)}
    store.commit_table(tmp_path / "part.parquet", pa.table({name: columns[name] for name in order}))
    for name, column in columns.items():
        found = MappedPart(tmp_path / "part.parquet", (name,)).read()
        assert as_bytes(found[name]) == as_bytes(pa.chunked_array([column]))


def test_a_compressed_page_that_is_as_long_as_its_values_is_not_taken_for_them(tmp_path):
    path, alike = tmp_path / "part.parquet", 0
    generator = np.random.default_rng(0)
    for repeated in range(120):
        raw = generator.integers(0, 256, size=1000, dtype=np.uint8)
        raw[:repeated] = 7
        required = pa.schema([pa.field("f32", pa.float32(), nullable=False)])  # no levels before the values
        in_groups(path, pa.table([raw.view(np.float32)], schema=required), 1000, compression="snappy")
        about = pq.read_metadata(path).row_group(0).column(0)
        alike += about.total_compressed_size == about.total_uncompressed_size
        found = MappedPart(path, ("f32",)).read()
        assert as_bytes(found["f32"]) == raw.tobytes()
    assert alike > 0


# --- damage -----------------------------------------------------------------------------------------------------------


def damaged(content: bytes, generator: np.random.Generator) -> bytes:
    """A flipped bit, many of them, zeros, a lost end, or a piece that stands where another should."""
    bad, size = bytearray(content), len(content)
    kind = generator.integers(5)
    if kind == 0:
        bad[generator.integers(size)] ^= 1 << int(generator.integers(8))
    elif kind == 1:
        for position in generator.integers(size, size=int(generator.integers(2, 40))):
            bad[position] ^= 1 << int(generator.integers(8))
    elif kind == 2:
        start = int(generator.integers(size))
        bad[start : start + 64] = bytes(len(bad[start : start + 64]))
    elif kind == 3:
        del bad[int(generator.integers(size)) :]
    else:
        start, other = generator.integers(0, size - 32, size=2)
        bad[start : start + 32] = content[other : other + 32]
    return bytes(bad)


def test_nothing_damaged_is_returned(tmp_path):
    path, table = tmp_path / "part.parquet", random_table(60, 3, seed=5)
    generator = np.random.default_rng(0)
    for group in (1000, 25):
        in_groups(path, table, group)
        content, refused = path.read_bytes(), 0
        expected = [as_bytes(table[name]) for name in COLUMNS]
        for case in range(400):
            path.write_bytes(damaged(content, generator))
            caught, found = None, {}
            try:
                found = MappedPart(path, COLUMNS).read()
            except CorruptPart as error:
                caught = error
            if caught is not None:
                assert caught.where == path, case
                assert caught.hint
                refused += 1
                continue
            assert [as_bytes(found[name]) for name in COLUMNS] == expected, case  # the damage was to other columns
        assert 300 < refused < 400


def test_every_bit_of_a_page_is_checked(tmp_path):
    """Where skeletons do not look: after the first 64 bytes of a page."""
    path, table = tmp_path / "part.parquet", pa.table({"f32": pa.array(np.arange(64, dtype=np.float32))})
    store.commit_table(path, table)
    content = path.read_bytes()
    start = content.index(np.arange(64, dtype=np.float32).tobytes())
    for position in range(start + 64, start + 256):
        bad = bytearray(content)
        bad[position] ^= 1 << position % 8
        path.write_bytes(bytes(bad))
        with pytest.raises(CorruptPart, match="checksum") as caught:
            MappedPart(path, ("f32",))
        assert caught.value.where == path


def test_a_file_without_an_end_is_corrupt_and_one_that_is_not_there_is_missing(tmp_path):
    path = tmp_path / "part.parquet"
    store.commit_table(path, random_table(30, 2, seed=0))
    content = path.read_bytes()
    for length in [0, 1, 4, 11, 12, len(content) // 2, len(content) - 8, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CorruptPart, match="cannot be read back"):
            MappedPart(path, ("f32",))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        MappedPart(path, ("f32",))


@pytest.mark.parametrize("nulls", [False, True])
def test_a_part_that_is_replaced_is_never_mixed_with_what_it_was(tmp_path, monkeypatch, nulls):
    path = tmp_path / "part.parquet"
    old = pa.array(np.arange(50, dtype=np.float32))
    old = with_nulls(old, [3]) if nulls else old
    new = pa.array(np.arange(50, dtype=np.float32) + 1)
    store.commit_table(path, pa.table({"f32": old}))
    kept = MappedPart(path, ("f32",))
    monkeypatch.setattr(mapped, "MAPPINGS_KEPT", 0)
    again = MappedPart(path, ("f32",))
    assert np.array_equal(np.asarray(again.read()["f32"]), np.asarray(kept.read()["f32"]), equal_nan=True)
    store.commit_table(path, pa.table({"f32": new}), replace=True)
    refusing = (again, kept) if nulls else (again,)
    for part in refusing:
        with pytest.raises(CorruptPart, match="replaced") as caught:
            part.read()
        assert str(caught.value.where) == str(path)
    if not nulls:
        assert as_bytes(kept.read()["f32"]) == as_bytes(pa.chunked_array([old]))  # still maps the old file


def test_mappings_are_kept_up_to_a_limit_and_given_back(tmp_path, monkeypatch):
    path = tmp_path / "part.parquet"
    store.commit_table(path, random_table(20, 2, seed=0))
    gc.collect()  # what other tests have left
    before = MappedPart.kept
    monkeypatch.setattr(mapped, "MAPPINGS_KEPT", before + 2)
    parts = [MappedPart(path, ("f32",)) for _ in range(4)]
    assert MappedPart.kept == before + 2
    assert len({as_bytes(part.read()["f32"]) for part in parts}) == 1
    del parts
    assert MappedPart.kept == before


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_struct_or_refused(content):
    try:
        _, end = pages.struct(memoryview(content), 0)
    except (ValueError, IndexError):
        return
    assert 0 < end <= len(content) + 1


@pytest.mark.parametrize(
    ("value", "finite"), [(0.5, True), (np.inf, False), (np.nan, False), (-np.inf, False), (3e38, False)]
)
def test_numbers_are_seen_to_be_finite_beside_their_checksum(tmp_path, value, finite):
    """Wherever one stands that is not. A sum that overflows says nothing, so its numbers are looked at again."""
    rows = 3 * pages.BLOCK // 4 + 5
    for place in (0, rows // 2, rows - 2):
        column = np.full(rows, 0.25, np.float32)
        column[place : place + 2] = value
        path = tmp_path / f"{place}.parquet"
        store.commit_table(path, pa.table({"f": column, "wide": dense_array(column.reshape(-1, 1)), "n": range(rows)}))
        for names in (("f",), ("wide",), ("f", "n")):
            part = MappedPart(path, names)
            assert part.is_finite == finite
            np.testing.assert_array_equal(part.read()[names[0]].ravel(), column)
        assert MappedPart(path, ("n",)).is_finite
