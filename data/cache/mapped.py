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
from l2d.data.cache.pages import checksum_and_finite, page_of, values_start
from l2d.data.errors import CorruptPart

if TYPE_CHECKING:
    from l2d.data.cache.mirror import Mirror

#: Files that are kept mapped between reads, in all. Linux allows a process 65,530 mappings.
MAPPINGS_KEPT = 16_384

#: Parts are opened in several threads. Reentrant: a part may go while another is being counted.
_COUNTING = threading.RLock()

#: Arrow types whose pages are arrays.
NUMBERS = {pa.int32(): "<i4", pa.int64(): "<i8", pa.float32(): "<f4", pa.float64(): "<f8"}


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
        is_finite: whether all its numbers are known to be finite. False where that is not known.

    Raises:
        CorruptPart: the file is damaged or truncated; the message names it.
        FileNotFoundError: there is no such file.
    """

    __slots__ = ("_columns", "_groups", "_mapping", "_path", "_stamp", "_starts", "header", "is_finite")
    kept = 0  # mappings, by all parts of this process

    def __init__(self, path: Path, columns: tuple[str, ...], *, keep: bool = True):
        self._path = str(path)
        self._mapping: pa.Buffer | None = None  # while it is kept; no file stays open
        self.is_finite = True  # until a page is not, or is of another layout
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
            self.is_finite &= self._starts is not None
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
                page = page_of(memoryview(mapping).cast("B"), file, group, leaf)
                if page is None:
                    return None
                start = values_start(page, rows * (kind[1] or 1) * np.dtype(kind[0]).itemsize)
                checksum, finite = checksum_and_finite(page, start, kind[0])
                if checksum != page.checksum:
                    raise CorruptPart(
                        f"cannot be read back as written: the checksum of {name} differs",
                        where=path,
                        hint=REBUILD_HINT,
                    )
                self.is_finite &= finite
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
    def is_finite(self) -> bool:
        """See :class:`MappedPart`."""
        return self._mapped.is_finite

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
    def is_finite(self) -> bool: ...

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
                page = page_of(content, file, group, leaf)
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


def _concatenated(pages: list[np.ndarray]) -> np.ndarray:
    values = np.concatenate(pages)
    values.flags.writeable = False  # as views are, so that no caller relies on writing
    return values
