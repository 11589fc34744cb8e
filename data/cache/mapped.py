"""Numbers of a committed part as views of the mapped file: nothing is decoded, nothing is copied.

A column can be read so where its pages are in the layout that data/cache/store.py writes: one page per column and row
group, PLAIN, uncompressed, without nulls. The values of such a page are an array that begins right after its header
(Thrift's compact protocol) and its repetition and definition levels (four bytes of length, then that many bytes, each).
Whatever is laid out otherwise (recorded failures, text, lists of structs, other writers' files) is read by
store.read_table.

Nothing damaged is returned: a part is mapped once its skeleton is known to be what was written, and the checksum of
each page is compared when the part is opened. Who keeps the part reads it again without comparing, as long as the file
is the same one. Damage that a disk does after that, while a process runs, is not noticed by that process.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from l2d.data.cache import store
from l2d.data.cache.integrity import REBUILD_HINT, corruption_named, crc32, leaves_of, skeleton_of
from l2d.data.errors import CorruptPart

if TYPE_CHECKING:
    from l2d.data.cache.mirror import Mirror

#: Files that are kept mapped between reads, in all. Linux allows a process 65,530 mappings.
MAPPINGS_KEPT = 16_384

#: Parts are opened in several threads. Reentrant: a part may go while another is being counted.
_COUNTING = threading.RLock()

#: Arrow types whose pages are arrays.
NUMBERS = {pa.int32(): "<i4", pa.int64(): "<i8", pa.float32(): "<f4", pa.float64(): "<f8"}

#: Parquet's numbers for the encodings of values and of levels.
PLAIN, RLE = 0, 3


@dataclass(frozen=True)
class PartHeader:
    """What a part says of itself.

    Attributes:
        facts: as :func:`l2d.data.cache.store.facts_of`.
        rows: how many there are.
        skeleton: as :func:`l2d.data.cache.integrity.skeleton_digest`.
    """

    facts: dict[str, str]
    rows: int
    skeleton: str


class MappedPart:
    """A committed part, some columns of which are read again and again. Small: some 300 bytes, once it is verified.

    Args:
        path: of the part.
        columns: to read; what the part does not have is left out.
        keep: hold the file mapped, so that what it takes on the disk stays taken even where its name goes.

    Attributes:
        header: what the part says of itself; who has looked at it may set it to None.

    Raises:
        CorruptPart: the file is damaged or truncated; the message names it.
        FileNotFoundError: there is no such file.
    """

    __slots__ = ("_columns", "_groups", "_mapping", "_path", "_stamp", "_starts", "header")
    kept = 0  # mappings, by all parts of this process

    def __init__(self, path: Path, columns: tuple[str, ...], *, keep: bool = True):
        self._path = str(path)
        self._mapping: pa.Buffer | None = None  # while it is kept; no file stays open
        with corruption_named(path):
            self._stamp = _stamp(self._path)
            mapping = _map(self._path)
            source = pa.BufferReader(mapping)
            skeleton = skeleton_of(source, path)
            file = pq.ParquetFile(source)
            found = file.schema_arrow
            self.header: PartHeader | None = PartHeader(store.facts_of(found), file.metadata.num_rows, skeleton)
            self._columns = _shared(tuple((name, _kind(found, name)) for name in columns))
            self._groups = _shared(_group_rows(file.metadata))
            self._starts = self._verified(mapping, file, path)  # where the values of each page begin
        if keep and self._starts is not None and MappedPart.kept < MAPPINGS_KEPT:
            with _COUNTING:
                MappedPart.kept += 1
            self._mapping = mapping

    def __del__(self) -> None:
        if self._mapping is not None:
            with _COUNTING:
                MappedPart.kept -= 1

    @property
    def is_mapped(self) -> bool:
        """Whether all columns are read as views."""
        return self._starts is not None

    def read(self) -> dict[str, np.ndarray | pa.ChunkedArray]:
        """The columns by name, all rows.

        Returns:
            Read-only arrays, (rows,) or for fixed-width lists (rows, width), where every column can be mapped; else all
            of them as Arrow columns. An array is a view of the file (and need not be aligned), or of a copy where the
            part has several row groups. It stays valid however long it is held.

        Raises:
            CorruptPart: the file cannot be read, or is another one than when it was opened.
        """
        if self._starts is None:
            with corruption_named(Path(self._path)):
                table = store.read_table(Path(self._path), [name for name, _ in self._columns])
                self._require_same()
            return {name: table[name] for name in table.column_names}
        mapping = self._mapping
        if mapping is None:
            with corruption_named(Path(self._path)):
                mapping = _map(self._path)
                self._require_same()
        arrays, starts = {}, iter(self._starts)
        for name, (dtype, width) in self._columns:
            pages = [np.frombuffer(mapping, dtype, rows * (width or 1), next(starts)) for rows in self._groups]
            values = pages[0] if len(pages) == 1 else _concatenated(pages)
            arrays[name] = values.reshape(-1, width) if width else values
        return arrays

    def _require_same(self) -> None:
        if _stamp(self._path) != self._stamp:
            raise CorruptPart(
                "has been replaced while it was read", where=self._path, hint="run the same command again"
            )

    def _verified(self, mapping: pa.Buffer, file: pq.ParquetFile, path: Path) -> array | None:
        """Where the values of each column's pages begin, checksums compared; None if not every column can be mapped."""
        starts = array("q")
        if not self._groups or any(kind is None for _, kind in self._columns):
            return None
        for name, kind in self._columns:
            leaf = _leaf(file.metadata, name, is_list=kind[1] is not None)
            if leaf is None:
                return None
            for group, rows in enumerate(self._groups):
                page = _page(memoryview(mapping).cast("B"), file, group, leaf)
                if page is None:
                    return None
                if crc32(page.content) != page.checksum:
                    raise CorruptPart(
                        f"cannot be read back as written: the checksum of {name} differs",
                        where=path,
                        hint=REBUILD_HINT,
                    )
                start = _values_start(page, rows * (kind[1] or 1) * np.dtype(kind[0]).itemsize)
                if start is None:
                    return None
                starts.append(start)
        return starts


class LentPart:
    """A copy of a part of a cache in a store, with the face of :class:`MappedPart`: fetched again where it is gone.

    Args:
        mirror: what fetches it.
        columns: that are read.
        mapped: the copy as it is now; it does not hold the file.
        again: opens a copy that was fetched, its checksums compared.
    """

    __slots__ = ("_again", "_columns", "_mapped", "_mirror", "_part")

    def __init__(
        self, mirror: Mirror, part: Path, columns: tuple[str, ...], mapped: MappedPart, again: Callable[[], MappedPart]
    ):
        self._mirror, self._part, self._columns, self._mapped, self._again = mirror, part, columns, mapped, again

    @property
    def is_mapped(self) -> bool:
        """False: to read it again may mean to fetch it again, which is better done ahead."""
        return False

    def read(self) -> dict[str, np.ndarray | pa.ChunkedArray]:
        """See :meth:`MappedPart.read`."""

        def read() -> dict[str, np.ndarray | pa.ChunkedArray]:
            try:
                return self._mapped.read()
            except (CorruptPart, FileNotFoundError):  # the copy is another one, or columns were added to it
                self._mapped = self._again()
                return self._mapped.read()

        return self._mirror.through(self._part, self._columns, read)


class Readable(Protocol):
    """A part that is opened and checked, and read again and again."""

    @property
    def is_mapped(self) -> bool: ...

    def read(self) -> dict[str, np.ndarray | pa.ChunkedArray]: ...


def read_back(path: Path, columns: Collection[str] | None = None, *, skeleton: str | None = None) -> PartHeader:
    """Compare the checksums of a committed part with its bytes, decoding nothing where pages are as we write them.

    Args:
        columns: whose; all if None.
        skeleton: that the part has to have.

    Raises:
        CorruptPart: the file is damaged or truncated; the message names it.
        FileNotFoundError: there is no such file.
    """
    with corruption_named(path):
        mapping = _map(str(path))
        source = pa.BufferReader(mapping)
        found_skeleton = skeleton_of(source, path)
        if skeleton not in (None, found_skeleton):
            raise CorruptPart("is not the file that was sealed", where=path, hint=REBUILD_HINT)
        file = pq.ParquetFile(source)
        found = PartHeader(store.facts_of(file.schema_arrow), file.metadata.num_rows, found_skeleton)
        content = memoryview(mapping).cast("B")
        for group in range(file.metadata.num_row_groups):
            for leaf in leaves_of(file.metadata, columns):
                page = _page(content, file, group, leaf)
                if page is None:  # of another writer's layout
                    store.read_table(path, None if columns is None else list(columns))
                    return found
                if crc32(page.content) != page.checksum:
                    name = file.metadata.schema.column(leaf).path
                    raise CorruptPart(
                        f"cannot be read back as written: the checksum of {name} differs", where=path, hint=REBUILD_HINT
                    )
    return found


# --- the file ---------------------------------------------------------------------------------------------------------


def _map(path: str) -> pa.Buffer:
    """A file's bytes, mapped read-only. Arrow closes the file at once; Python's own mmap would hold it open."""
    with pa.memory_map(path) as file:
        return file.read_buffer()


def _stamp(path: str) -> tuple[int, int, int]:
    """Tells whether a name still stands for the same file: committed files are replaced, never changed."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=64)
def _shared(value: tuple) -> tuple:
    """One copy of what thousands of parts have in common."""
    return value


# --- what stands where ------------------------------------------------------------------------------------------------


def _kind(found: pa.Schema, name: str) -> tuple[str, int | None] | None:
    """Type of a number column, and its width where it is a fixed-width list; None for all others."""
    if found.get_field_index(name) < 0:
        return None
    kind = found.field(name).type
    if pa.types.is_fixed_size_list(kind):
        is_dense = kind.value_type == pa.float32() and kind.list_size > 0
        return (NUMBERS[pa.float32()], kind.list_size) if is_dense else None
    return (NUMBERS[kind], None) if kind in NUMBERS else None


def _group_rows(metadata: pq.FileMetaData) -> tuple[int, ...]:
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


def _leaf(metadata: pq.FileMetaData, name: str, *, is_list: bool) -> int | None:
    """Position of a column among Parquet's own; None if none or several could be meant."""
    names = {f"{name}.list.element", f"{name}.list.item"} if is_list else {name}
    leaves = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
    found = [leaf for leaf, path in enumerate(leaves) if path in names]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class _Page:
    content: memoryview  # levels and values
    start: int  # of the content in the file
    checksum: int
    levels: int  # how many kinds of levels stand before the values


def _page(content: memoryview, file: pq.ParquetFile, group: int, leaf: int) -> _Page | None:
    """The only page of a column chunk; None if it is not laid out as data/cache/store.py does.

    Of the header's fields 1 to 5, 2 and 3 are the page's size, decompressed and as it stands there, 4 is its checksum,
    and 5, which only pages of version 1 have, says how values (2) and levels (3, 4) are encoded.
    """
    chunk, column = file.metadata.row_group(group).column(leaf), file.metadata.schema.column(leaf)
    if chunk.compression != "UNCOMPRESSED":
        return None
    try:
        header, start = _struct(content, chunk.data_page_offset)
    except (ValueError, IndexError):
        return None
    end, about = chunk.data_page_offset + chunk.total_compressed_size, header.get(5)
    is_ours = (
        isinstance(about, dict)
        and header.get(2) == header.get(3) == end - start
        and end <= len(content)
        and about.get(2) == PLAIN
        and about.get(3) == about.get(4) == RLE
    )
    checksum = header.get(4)
    if not is_ours or not isinstance(checksum, int):
        return None
    levels = (column.max_repetition_level > 0) + (column.max_definition_level > 0)
    return _Page(content[start:end], start, checksum % (1 << 32), levels)


def _values_start(page: _Page, size: int) -> int | None:
    """Where the values begin in the file, being ``size`` bytes, up to the page's end (fewer where there are nulls)."""
    at = 0
    for _ in range(page.levels):
        at += 4 + int.from_bytes(page.content[at : at + 4], "little")
    return page.start + at if at + size == len(page.content) else None


# --- Thrift's compact protocol ----------------------------------------------------------------------------------------


def _struct(content: memoryview, at: int, depth: int = 0) -> tuple[dict[int, object], int]:
    """Read a struct: field number -> number, or dict for a struct in it. Returns it and where it ends.

    Raises:
        ValueError: it holds something that a page header does not.
        IndexError: it does not end before the file does.
    """
    fields: dict[int, object] = {}
    number = 0
    while content[at] != 0:
        step, kind = content[at] >> 4, content[at] & 0x0F
        at += 1
        if step == 0:
            raise ValueError("a field out of order")
        number += step
        if kind in (1, 2):  # true, false
            fields[number] = kind == 1
        elif kind in (4, 5, 6):  # integers of 16, 32 and 64 bits
            value, at = _varint(content, at)
            fields[number] = (value >> 1) ^ -(value & 1)
        elif kind == 8:  # bytes
            size, at = _varint(content, at)
            at += size
        elif kind == 12 and depth < 3:
            fields[number], at = _struct(content, at, depth + 1)
        else:
            raise ValueError(f"a field of kind {kind}")
    return fields, at + 1


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for position in range(10):
        value |= (content[at + position] & 0x7F) << 7 * position
        if content[at + position] < 0x80:
            return value, at + position + 1
    raise ValueError("a number of more than 64 bits")


def _concatenated(pages: list[np.ndarray]) -> np.ndarray:
    values = np.concatenate(pages)
    values.flags.writeable = False  # as views are, so that no caller relies on writing
    return values
