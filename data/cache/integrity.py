"""Telling damage: digests of what Parquet's page checksums leave out, and errors that name the file."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from l2d.data.errors import CorruptPart

REBUILD_HINT = "delete this file and run the `l2d build` that made the cache again; only this part is redone"


@cache
def _checksum() -> Callable[[Any, int], int]:
    """Of Parquet's pages: by the processor's own carry-less product where it has one, 8 times as fast, the same bits.

    Imported by what verifies pages: a `status` reads so few that pyarrow's own will do.
    """
    try:
        from isal.isal_zlib import crc32
    except ImportError:
        from zlib import crc32
    return crc32


def crc32(content: Any, before: int = 0) -> int:
    """The checksum that a page of a Parquet file carries; of what comes behind content whose checksum is known."""
    return _checksum()(content, before)


@contextmanager
def corruption_named(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes the reader raise becomes a :class:`CorruptPart` with the file's name."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, ValueError, OverflowError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptPart(f"cannot be read back as written: {reason}", where=path, hint=REBUILD_HINT) from error


# Page checksums cover neither page headers nor the footer, where one flipped bit can make a cost a boolean or crash the
# reader. So every file carries in its own footer two digests: of its page headers, and of the footer itself. Each is
# blank while it is worked out.
_BLANK = "0" * 64
SKELETON_BLANK = f"skeleton:{_BLANK}:{_BLANK}"
_SKELETON_PATTERN = re.compile(rb"skeleton:([0-9a-f]{64}):([0-9a-f]{64})")


def skeleton_digest(path: Path) -> str:
    """SHA-256 of the footer of a Parquet file, checked against the one it carries; tells one part from any other.

    The footer holds the digest of the page headers, which is checked too. In our layout each column chunk is one page
    whose header fits in its first 64 bytes, so this reads a few kilobytes whatever the size of the file. With the page
    checksums it tells any flipped bit. The footer is not parsed before its bytes are known to be those written.

    Raises:
        CorruptPart: the file is not what was written.
        FileNotFoundError: there is no such file.
    """
    with corruption_named(path), open(path, "rb") as file:
        return skeleton_of(file, path)


def skeleton_of(file: BinaryIO, path: Path) -> str:
    """:func:`skeleton_digest` of an open file, or of one that is mapped; ``path`` names it in what is raised.

    Raises:
        CorruptPart: the file is not what was written.
        OSError, ValueError, pyarrow.ArrowException: it is no Parquet file of ours at all.
    """
    footer, start, mark = _footer(file)
    headers, digest = (mark.group(part).decode() for part in (1, 2))
    if _footer_digest(footer, start, mark) != digest or _headers_digest(file) != headers:
        raise CorruptPart("is not what was written: its digest differs", where=path, hint=REBUILD_HINT)
    return digest


def known_metadata(file: BinaryIO, skeleton: str, path: Path | str) -> pq.FileMetaData:
    """The footer of a Parquet file of which the rest need not be there, once it is known to be the one of a skeleton.

    Raises:
        CorruptPart: it is another footer.
        ValueError: it is no footer of ours at all.
    """
    footer, start, mark = _footer(file)
    if not mark.group(2).decode() == skeleton == _footer_digest(footer, start, mark):
        raise CorruptPart("is not the file that was sealed: its footer differs", where=path)
    return pq.read_metadata(file)


def leaves_of(metadata: pq.FileMetaData, columns: Collection[str] | None) -> list[int]:
    """Positions of Parquet's own columns that are, or are parts of, some columns of a table; all if None.

    A name may have dots, as the paths of parts have: what could be meant is taken.
    """
    paths = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
    if columns is None:
        return list(range(len(paths)))
    return [leaf for leaf, path in enumerate(paths) if any(path == c or path.startswith(f"{c}.") for c in columns)]


def write_skeleton(path: Path) -> None:
    with open(path, "r+b") as file:
        _, start, mark = _footer(file)
        headers = _headers_digest(file).encode()
        file.seek(start + mark.start(1))
        file.write(headers)
        footer, start, mark = _footer(file)
        file.seek(start + mark.start(2))
        file.write(_footer_digest(footer, start, mark).encode())


def _footer(file: BinaryIO) -> tuple[bytes, int, re.Match[bytes]]:
    """A file's last bytes from its footer on, their position, and where the digests stand in them."""
    size = file.seek(0, os.SEEK_END)
    if size < 12:
        raise ValueError(f"it has {size} bytes")
    file.seek(size - 8)
    start = size - 8 - int.from_bytes(file.read(4), "little")
    if start < 4:
        raise ValueError("its footer is longer than the file")
    file.seek(start)
    footer = file.read()
    marks = list(_SKELETON_PATTERN.finditer(footer))
    if len(marks) != 1:
        raise ValueError("it carries no digest of its own")
    return footer, start, marks[0]


def _footer_digest(footer: bytes, start: int, mark: re.Match[bytes]) -> str:
    first, last = mark.span(2)
    blank = footer[:first] + _BLANK.encode() + footer[last:]
    return hashlib.sha256(start.to_bytes(8, "little") + blank).hexdigest()


def _headers_digest(file: BinaryIO) -> str:
    state = hashlib.sha256()
    metadata = pq.read_metadata(file)
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            file.seek(metadata.row_group(group).column(column).data_page_offset)
            state.update(file.read(64))
    return state.hexdigest()


def json_digest(value: dict) -> str:
    """SHA-256 of a JSON object, independent of key order and spacing."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        CorruptPart: it cannot be read.
        FileNotFoundError: there is no such file.
    """
    with corruption_named(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
