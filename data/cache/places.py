"""Places a cache can be copied to and from: a folder of this machine, or a store that fsspec has a driver for.

Both do the same five things under names relative to the cache. A file appears whole or not at all: a folder uses the
store's commit protocol; object stores show an object once it has arrived; other file systems get a rename.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from l2d.data.cache import store
from l2d.data.cache.integrity import sha256_of
from l2d.data.cache.temporary import TEMPORARY_SUFFIX
from l2d.data.errors import CorruptPart, DataError, L2DError, UsageError

BLOCK = 8 << 20  # bytes read at once from a store
#: Protocols under which an object is there once it has arrived whole.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "cos", "obs", "tos", "hf", "memory"}
PUSH_AGAIN = (
    "run the l2d push that put it there once more: it repairs what is damaged there; then the same command again"
)
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


class Place(Protocol):
    """Where the files of a cache are or will be. Names are relative, with ``/``."""

    def read(self, name: str, most: int) -> bytes | None:
        """A file of at most ``most`` bytes; None if there is none."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""

    def holds(self, name: str, file: Path, sha256: str, *, read_back: bool) -> bool:
        """Whether what is there under a name is this local file, whose SHA-256 is known.

        Args:
            read_back: read what is there, even where the place knows a checksum of it.
        """

    def put(self, name: str, file: Path) -> None:
        """Copy a local file here, in place of what may be there."""

    def put_new(self, name: str, file: Path) -> bool:
        """Copy a local file here unless there is one of that name; returns whether it was copied.

        One of several that do so at once succeeds, where the place can tell (folders; S3 and others by conditional
        writes).
        """

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""

    def put_bytes(self, name: str, content: bytes) -> None:
        """Write a file here, in place of what may be there."""

    def fetch(self, name: str, to: Path, most: int) -> str:
        """Copy a file of at most ``most`` bytes to a local name; returns the SHA-256 of what has arrived."""


def open_place(address: str) -> Place:
    """The place at an address: ``s3://bucket/x``, ``file:///mnt/x``, or a path.

    Raises:
        UsageError: no driver is installed for such an address.
    """
    import fsspec

    with told(address):
        try:
            system, root = fsspec.core.url_to_fs(address)
        except (ValueError, ImportError) as error:  # an unknown protocol; a driver that is not installed
            raise UsageError(str(error).splitlines()[0], where=address, hint="pip install s3fs, gcsfs, adlfs …") from (
                error
            )
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    if protocols & {"file", "local"}:
        return Folder(Path(root))
    return Store(system, root.rstrip("/"), address.rstrip("/"), is_atomic=bool(protocols & OBJECT_STORES))


@contextmanager
def told(address: str) -> Iterator[None]:
    """Whatever a driver raises becomes a :class:`DataError` that says what to look at. Drivers share no base class."""
    try:
        yield
    except L2DError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        what = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
        raise DataError(f"cannot be read or written: {what}", where=address, hint=_hint(error, text)) from error


def _hint(error: Exception, text: str) -> str:
    known = f"{type(error).__name__} {text}".lower()
    if "credential" in known or "signature" in known or "invalidaccesskey" in known or "token" in known:
        return "give the store's credentials, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, both of them"
    if isinstance(error, PermissionError) or "forbidden" in known or "denied" in known:
        return "ask for the right to read and write there; the same command goes on"
    if "connect" in known or "timeout" in known or "timed out" in known:
        return "check the address and that the store can be reached; the same command goes on from here"
    if "bucket" in known:
        return "check the bucket's name, and that it is there"
    return "check the address; the same command goes on from here"


@dataclass(frozen=True)
class Folder:
    """A folder of this machine, written as caches are."""

    root: Path

    def read(self, name: str, most: int) -> bytes | None:
        path = self.root / name
        try:
            with told(str(path)), open(path, "rb") as file:
                return _bounded(file.read(most + 1), most, path)
        except DataError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def size(self, name: str) -> int | None:
        path = self.root / name
        return path.stat().st_size if path.is_file() else None

    def holds(self, name: str, file: Path, sha256: str, *, read_back: bool) -> bool:
        path = self.root / name
        return self.size(name) == file.stat().st_size and sha256_of(path) == sha256

    def put(self, name: str, file: Path) -> None:
        store.commit(self.root / name, lambda temporary: shutil.copyfile(file, temporary), replace=True)

    def put_new(self, name: str, file: Path) -> bool:
        return store.commit(self.root / name, lambda temporary: shutil.copyfile(file, temporary))

    def remove(self, name: str) -> None:
        store.remove(self.root / name)

    def put_bytes(self, name: str, content: bytes) -> None:
        store.commit_bytes(self.root / name, content, replace=True)

    def fetch(self, name: str, to: Path, most: int) -> str:
        with told(str(self.root / name)), open(self.root / name, "rb") as source:
            return _copy(source, to, most, self.root / name)


@dataclass(frozen=True)
class Store:
    """What is at an fsspec address. ``is_atomic``: an object appears whole."""

    system: Any
    root: str
    address: str
    is_atomic: bool

    def read(self, name: str, most: int) -> bytes | None:
        where = self._where(name)
        with told(where):
            size = self.size(name)
            if size is None:
                return None
            if size > most:
                raise _too_large(size, most, where)
            return _bounded(self.system.cat_file(self._path(name), start=0, end=most + 1), most, where)

    def size(self, name: str) -> int | None:
        about = self._about(name)
        return None if about is None else about.get("size")

    def holds(self, name: str, file: Path, sha256: str, *, read_back: bool) -> bool:
        about, size = self._about(name), file.stat().st_size
        if about is None or about.get("size") != size:
            return False
        # Stores that know the MD5 of an object need not send it: S3 as its ETag, if it was put in one piece and without
        # a key of one's own. Another ETag says nothing, so what is there is read.
        known = _MD5.fullmatch(str(about.get("ETag", about.get("etag", ""))))
        if known and not read_back:
            with open(file, "rb") as source:
                digest = hashlib.file_digest(source, lambda: hashlib.md5(usedforsecurity=False))
            if digest.hexdigest() == known[1]:
                return True
        with told(self._where(name)), self.system.open(self._path(name), "rb", block_size=BLOCK) as there:
            return _digest(there, size) == sha256

    def put(self, name: str, file: Path) -> None:
        self._commit(name, lambda path: self.system.put_file(str(file), path))

    def _commit(self, name: str, write: Callable[[str], object]) -> None:
        """Write a file here so that it appears whole or not at all."""
        path = self._path(name)
        with told(self._where(name)):
            if self.is_atomic:
                write(path)
                return
            folder, _, last = path.rpartition("/")
            temporary = f"{folder}/.{last}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
            self.system.makedirs(folder, exist_ok=True)
            try:
                write(temporary)
                self.system.mv(temporary, path)
            except BaseException:
                with suppress(Exception):
                    self.system.rm_file(temporary)
                raise

    def put_new(self, name: str, file: Path) -> bool:
        if self.size(name) is not None:  # nearly always the answer, and it costs no upload
            return False
        try:
            self._commit(name, lambda path: self.system.put_file(str(file), path, mode="create"))
        except DataError as error:
            if not _is_taken(error.__cause__):
                raise
            return False
        return True

    def remove(self, name: str) -> None:
        with told(self._where(name)), suppress(FileNotFoundError):
            self.system.rm_file(self._path(name))

    def put_bytes(self, name: str, content: bytes) -> None:
        self._commit(name, lambda path: self.system.pipe_file(path, content))

    def ranges(self, name: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Bytes of a file from each start to each end, several at once where the store's driver can.

        Raises:
            CorruptPart: the file is shorter, or is not there.
        """
        where, path = self._where(name), self._path(name)
        starts, ends = (list(bounds) for bounds in zip(*ranges, strict=True))
        with told(where):
            try:
                found = self.system.cat_ranges([path] * len(ranges), starts, ends, on_error="raise")
            except FileNotFoundError:
                raise CorruptPart("is missing", where=where, hint=PUSH_AGAIN) from None
        for content, (start, end) in zip(found, ranges, strict=True):
            if len(content) != end - start:
                raise CorruptPart("is shorter than its seal says", where=where, hint=PUSH_AGAIN)
        return found

    def fetch(self, name: str, to: Path, most: int) -> str:
        where = self._where(name)
        options = {"block_size": BLOCK, "cache_type": "none"} if self.is_atomic else {}
        with told(where), self.system.open(self._path(name), "rb", **options) as source:
            return _copy(source, to, most, where)

    def _about(self, name: str) -> dict | None:
        with told(self._where(name)):
            try:
                return self.system.info(self._path(name), refresh=True) if self.is_s3 else self._info(name)
            except FileNotFoundError:
                return None

    def _info(self, name: str) -> dict:
        self.system.invalidate_cache()  # of listings: what is there may have changed since
        return self.system.info(self._path(name))

    @property
    def is_s3(self) -> bool:
        return "s3" in self.system.protocol

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _where(self, name: str) -> str:
        return f"{self.address}/{name}"


def _is_taken(error: BaseException | None) -> bool:
    """Whether a store has refused to write to a name that is taken. S3's drivers say so by an error of their own."""
    known = f"{error} {getattr(error, '__cause__', '')}".lower()
    return isinstance(error, FileExistsError) or "precondition" in known or "conditionalrequestconflict" in known


def _copy(source: Any, to: Path, most: int, where: object) -> str:
    """Copy an open file, stopping where it is longer than it may be. Returns its SHA-256."""
    digest, copied = hashlib.sha256(), 0
    with open(to, "wb") as target:
        while block := source.read(min(BLOCK, most + 1 - copied)):
            copied += len(block)
            if copied > most:
                raise _too_large(copied, most, where)
            digest.update(block)
            target.write(block)
    return digest.hexdigest()


def _digest(source: Any, size: int) -> str:
    digest, left = hashlib.sha256(), size
    while left and (block := source.read(min(BLOCK, left))):
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


def _bounded(content: bytes, most: int, where: object) -> bytes:
    if len(content) > most:
        raise _too_large(len(content), most, where)
    return content


def _too_large(size: int, most: int, where: object) -> CorruptPart:
    return CorruptPart(
        f"is longer than it may be: at least {size:,} bytes, not {most:,}",
        where=where,
        hint="this is not what was pushed: push the cache there again from where it is whole",
    )
