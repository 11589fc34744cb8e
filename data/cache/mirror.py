"""A cache in a store, used where it lies: what is read of it is copied to a bounded folder first, and checked there.

Of a part comes what is asked for. Whole, it is compared with the SHA-256 of its seal as it arrives. Where only some
columns are wanted, these come as ranges: the footer, known by the seal's digest of it; the heads of all pages, known by
a digest in the footer; and the pages of the columns, whose checksums every reader compares. The local file has the
part's size, with holes where nothing was fetched, so every reader of parts reads it as it is. A range is thus as safe
from damage as a local read. From a forger only whole parts are: a page's checksum is a CRC-32.

Copies are kept within a limit (:mod:`l2d.data.cache.kept`). One that another process has removed is fetched again; one
that lacks what it should have fails its checksum, and is fetched again too.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from l2d.data.cache import schema, store
from l2d.data.cache.integrity import corruption_named, known_metadata
from l2d.data.cache.kept import Columns, Room, columns_of_copy, parts_folder, parts_limit, remove, size_of, write_down
from l2d.data.cache.pieces import Piece, read_pieces
from l2d.data.cache.places import PUSH_AGAIN, Store, open_place
from l2d.data.cache.ranges import WASTE, heads_of, merged, pages_of
from l2d.data.errors import CorruptPart, DataError, UsageError

AT_ONCE = 16  # files on their way at the same time: a store answers slowly, and many at once
BLOCK = 8 << 20  # bytes of one range
HELD_AT_ONCE = 8 << 20  # bytes of ranges of a part in memory
MOST_FOOTER = 64 << 20  # bytes
TAIL = 16 << 10  # bytes in which a footer is looked for first
FRESH = 60.0  # seconds for which records are not asked for again
TRIES = 3

Read = TypeVar("Read")


@dataclass
class Traffic:
    """What was read from a store: bytes, and how many requests for them."""

    bytes: int = 0
    requests: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, count: int, requests: int = 1) -> None:
        """Count bytes that have come."""
        with self._lock:
            self.bytes += count
            self.requests += requests


class Mirror:
    """What is here of a cache in a store.

    Args:
        address: of the cache.
        folder: of the files that are here.
        limit: bytes of parts that are kept, in all folders beside this one too; those being read come on top.

    Attributes:
        traffic: what was read from the store.

    Raises:
        DataError: there is no cache, or the store cannot be read.
        IncompleteCache, CorruptPart, FingerprintMismatch: as :func:`l2d.data.cache.pieces.read_pieces`.
        UsageError: no driver is installed for such addresses.
    """

    def __init__(self, address: str, folder: Path, limit: int):
        place = open_place(address)
        if not isinstance(place, Store):
            raise UsageError("this is a folder", where=address, hint="give its path")
        self.address, self.folder, self.limit, self.place = address.rstrip("/"), folder, limit, place
        self.traffic, self.told = Traffic(), 0
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.RLock()
        self._pins: Counter[str] = Counter()
        self._known: dict[str, tuple[tuple[int, int], frozenset[str] | None]] = {}  # file -> its stamp, its columns
        self._tails: dict[str, int] = {}  # folder -> bytes of its parts' footers
        self._room = _ROOMS.setdefault(folder.parent, Room(folder.parent))
        self.read_records()

    def read_records(self) -> None:
        """Read ``cache.json``, agents' records and seals; parts that are here and have changed there are left."""
        if self.place.size("cache.json") is None:
            raise DataError("there is no cost cache", where=self.address, hint="l2d push CACHE URL puts one there")
        found = read_pieces(self.place.read, self.address)
        self.pieces = {piece.name: piece for piece in found.parts}
        self._records = {piece.name: piece.content or b"" for piece in found.records}
        self.traffic.add(sum(map(len, self._records.values())), len(self._records) + 1)
        self.read_at = time.monotonic()

    def json(self, file: Path) -> dict | None:
        """A record or seal; None if there is none."""
        name = self._name(file)
        content = self._records.get(name)
        return None if content is None else store.parse_json(content, f"{self.address}/{name}")

    def has(self, part: Path) -> bool:
        """Whether the cache has this file, here or there."""
        return self._name(part) in self.pieces

    def where(self, part: Path) -> str:
        """The address of a file."""
        return f"{self.address}/{self._name(part)}"

    def file(self, path: Path) -> Path:
        """A file that is no part, such as what an agent froze: fetched, and kept."""
        self._bring(self._name(path), None)
        return path

    def through(self, part: Path, columns: Collection[str] | None, read: Callable[[], Read]) -> Read:
        """Read a part, with these columns here. A copy that is damaged or gone is fetched again.

        Args:
            columns: all if None; what the part does not have is left out.
            read: reads the local file, and compares its checksums.

        Raises:
            CorruptPart: what is in the store is damaged or missing; names it.
        """
        for attempt in range(TRIES):
            with self.held(part, columns):
                try:
                    return read()
                except (CorruptPart, FileNotFoundError) as error:
                    if attempt == TRIES - 1:
                        what = error.what if isinstance(error, CorruptPart) else "cannot be kept here"
                        raise CorruptPart(what, where=self.where(part), hint=PUSH_AGAIN) from error
            self.drop(part)
        raise AssertionError("a try ends the loop")

    @contextmanager
    def held(self, part: Path, columns: Collection[str] | None) -> Iterator[None]:
        """Have these columns of a part here, and keep this process from removing them meanwhile."""
        self.pin(part)
        try:
            self._bring(self._name(part), columns)
            yield
        finally:
            self.unpin(part)

    def bring(self, wanted: Iterable[tuple[Path, Collection[str] | None]]) -> None:
        """Have columns of several parts here, fetched at the same time; they may be gone again when they are read."""
        todo = [(self._name(part), columns) for part, columns in wanted]
        todo = [(name, columns) for name, columns in todo if not self._is_here(name, columns)]
        if len(todo) > 1:
            with ThreadPoolExecutor(min(AT_ONCE, len(todo)), thread_name_prefix="fetching") as pool:
                list(pool.map(lambda one: self._bring(*one), todo))

    def pin(self, part: Path) -> None:
        """Keep this process from removing a part, until :meth:`unpin` has been called as often."""
        with self._lock:
            self._pins[self._name(part)] += 1

    def unpin(self, part: Path) -> None:
        """See :meth:`pin`."""
        name = self._name(part)
        with self._lock:
            self._pins[name] -= 1
            if not self._pins[name]:
                del self._pins[name]

    def drop(self, part: Path) -> None:
        """Remove the local copy of a part."""
        self._forget(self._name(part))
        remove(part)

    def kept(self) -> int:
        """Bytes on the disk of all parts that are kept in the folder."""
        return size_of(self.folder.parent)

    # --- fetching -----------------------------------------------------------------------------------------------------

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _is_here(self, name: str, columns: Collection[str] | None) -> bool:
        here = self._columns_here(name)
        if here is None or columns is None:
            return here is None
        return isinstance(here, frozenset) and here >= set(columns)

    def _columns_here(self, name: str) -> Columns | bool:
        """See :func:`l2d.data.cache.kept.columns_of_copy`; asked again only of another file than before."""
        try:
            found = os.stat(self.folder / name)
        except FileNotFoundError:
            return False
        stamp, known = (found.st_ino, found.st_size), self._known.get(name)
        if known is None or known[0] != stamp:
            columns = columns_of_copy(self.folder / name, self.pieces[name].sha256)
            if isinstance(columns, bool):
                return False
            known = stamp, columns
            with self._lock:  # which _bring holds while it goes through them
                self._known[name] = known
        return known[1]

    def _forget(self, name: str) -> None:
        with self._lock:
            self._known.pop(name, None)

    def _bring(self, name: str, columns: Collection[str] | None) -> None:
        piece = self.pieces.get(name)
        if piece is None:
            raise FileNotFoundError(f"{self.address}/{name}")
        if self._is_here(name, columns):
            return
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if self._is_here(name, columns):
                return
            before, here = self.traffic.bytes, self._columns_here(name)
            if columns is None:
                self._fetch_whole(piece)
            else:
                self._fetch_columns(piece, here if isinstance(here, frozenset) else None, frozenset(columns))
        with self._lock:
            pinned, used = ({self.folder / one for one in some} for some in (self._pins, self._known))
        size = max(0, self.traffic.bytes - before)
        for path in self._room.add(size, self.limit, used=used, pinned=pinned):
            if path.is_relative_to(self.folder):
                self._forget(self._name(path))

    def _fetch_whole(self, piece: Piece) -> None:
        where, path = f"{self.address}/{piece.name}", self.folder / piece.name
        size = self.place.size(piece.name)
        if size is None:
            raise CorruptPart("is missing", where=where, hint=PUSH_AGAIN)
        if piece.size not in (None, size):
            raise CorruptPart(f"has {size:,} bytes, not the {piece.size:,} of its seal", where=where, hint=PUSH_AGAIN)

        def write(temporary: Path) -> None:
            if not self.place.fetch(piece.name, temporary, size).startswith(piece.sha256):
                raise CorruptPart("is not what was sealed: its SHA-256 differs", where=where, hint=PUSH_AGAIN)

        store.commit(path, write, replace=True, durable=False)
        self.traffic.add(size, 2)
        self._note(piece, None)

    def _note(self, piece: Piece, columns: Columns) -> None:
        write_down(self.folder / piece.name, piece.sha256, columns)
        self._forget(piece.name)

    def _fetch_columns(self, piece: Piece, before: frozenset[str] | None, columns: frozenset[str]) -> None:
        """Fetch ranges of a part; all of it if that is hardly more.

        Args:
            before: columns that are here already; None where nothing is.
        """
        path, size = self.folder / piece.name, piece.size or 0
        if size <= TAIL:
            self._fetch_whole(piece)
        elif before is not None:
            with corruption_named(path), open(path, "rb") as file:
                metadata = known_metadata(file, piece.skeleton or "", path)
            ranges = merged(pages_of(metadata, columns - before, piece, self.where(path)))
            store.fill(path, size, self._blocks(piece, ranges))
            self._note(piece, before | columns)
        elif self._fetch_new(piece, columns):
            self._note(piece, columns)
        else:
            self._fetch_whole(piece)

    def _fetch_new(self, piece: Piece, columns: frozenset[str]) -> bool:
        """Fetch a part's footer, the heads of its pages, and some columns; False if nearly all of it would be."""
        path, size, all_columns = self.folder / piece.name, piece.size or 0, False
        where = self.where(path)

        def write(temporary: Path) -> None:
            nonlocal all_columns
            start, tail = self._tail(piece)
            store.fill(temporary, size, [(start, tail)])
            try:
                with open(temporary, "rb") as file:
                    metadata = known_metadata(file, piece.skeleton or "", where)
            except (ValueError, OSError) as error:
                raise CorruptPart(f"has no footer of ours: {error}", where=where, hint=PUSH_AGAIN) from error
            wanted = pages_of(metadata, columns, piece, where) + heads_of(metadata, piece, where)
            ranges = merged(wanted, stop=start)
            all_columns = sum(end - begin for begin, end in ranges) > (1 - WASTE) * start
            if not all_columns:
                store.fill(temporary, size, self._blocks(piece, ranges))

        store.commit(path, write, replace=True, durable=False)
        return not all_columns

    def _tail(self, piece: Piece) -> tuple[int, bytes]:
        """A part's footer with what follows it, and where it begins."""
        folder, size = piece.name.rpartition("/")[0], piece.size or 0
        first = max(0, size - self._tails.get(folder, TAIL))
        (tail,) = self._ranges(piece, [(first, size)])
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > min(size, MOST_FOOTER):
            raise CorruptPart("has no footer of ours", where=f"{self.address}/{piece.name}", hint=PUSH_AGAIN)
        self._tails[folder] = length + 64  # of the next part; it is nearly the same
        if size - length < first:
            (more,) = self._ranges(piece, [(size - length, first)])
            return size - length, more + tail
        return first, tail

    def _blocks(self, piece: Piece, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """The bytes of some ranges, not too many of them held at once."""
        blocks = [(at, min(at + BLOCK, stop)) for start, stop in ranges for at in range(start, stop, BLOCK)]
        while blocks:
            count, size = 0, 0
            while count < len(blocks) and (not count or size < HELD_AT_ONCE):
                size += blocks[count][1] - blocks[count][0]
                count += 1
            now, blocks = blocks[:count], blocks[count:]
            for (start, _), content in zip(now, self._ranges(piece, now), strict=True):
                yield start, content

    def _ranges(self, piece: Piece, ranges: list[tuple[int, int]]) -> list[bytes]:
        found = self.place.ranges(piece.name, ranges)
        self.traffic.add(sum(map(len, found)), len(found))
        return found


# --- those that this process has opened -------------------------------------------------------------------------------

_OPENED: dict[tuple[str, Path], Mirror] = {}
_ROOMS: dict[Path, Room] = {}


def mirror_at(address: str) -> Mirror:
    """The mirror of the cache at an address; one for each address in a process.

    Records that were read a minute ago or later are not asked for again.

    Raises:
        DataError, IncompleteCache, CorruptPart, FingerprintMismatch, UsageError: as :class:`Mirror`.
    """
    address, folder = address.rstrip("/"), parts_folder().absolute()
    found = _OPENED.get((address, folder))
    if found is None:
        found = Mirror(address, folder / schema.digest(address), parts_limit())
        _OPENED[address, folder] = found
    elif time.monotonic() - found.read_at > FRESH:
        found.read_records()
    found.limit = parts_limit()
    return found


def forget_mirrors() -> None:
    """Open the next ones anew."""
    _OPENED.clear()
    _ROOMS.clear()


def traffic_lines() -> list[str]:
    """What was read from each store so far, a sentence each; of those that were read since this was last asked."""
    lines = []
    for mirror in _OPENED.values():
        if mirror.traffic.bytes == mirror.told:
            continue
        mirror.told = mirror.traffic.bytes
        kept, limit = mirror.kept() / 1e6, mirror.limit / 1e6
        lines.append(
            f"{mirror.address}: read {mirror.traffic.bytes / 1e6:,.1f} MB in {mirror.traffic.requests:,} requests; "
            f"{kept:,.1f} MB of parts are kept in {mirror.folder.parent}, at most {limit:,.0f} MB"
        )
    return lines
