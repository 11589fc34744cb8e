"""Pages of a Parquet file as they lie in it: where the values stand, their checksum, and whether they are finite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from l2d.data.cache.integrity import crc32

BLOCK = 1 << 19  # bytes that a core's own memory holds while they are looked at twice

#: Parquet's numbers for the encodings of values and of levels.
PLAIN, RLE = 0, 3


@dataclass(frozen=True)
class Page:
    content: memoryview  # levels and values
    start: int  # of the content in the file
    checksum: int
    levels: int  # how many kinds of levels stand before the values


def page_of(content: memoryview, file: pq.ParquetFile, group: int, leaf: int) -> Page | None:
    """The only page of a column chunk; None if it is not laid out as data/cache/store.py does.

    Of the header's fields 1 to 5, 2 and 3 are the page's size, decompressed and as it stands there, 4 is its checksum,
    and 5, which only pages of version 1 have, says how values (2) and levels (3, 4) are encoded.
    """
    chunk, column = file.metadata.row_group(group).column(leaf), file.metadata.schema.column(leaf)
    if chunk.compression != "UNCOMPRESSED":
        return None
    try:
        header, start = struct(content, chunk.data_page_offset)
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
    return Page(content[start:end], start, checksum % (1 << 32), levels)


def values_start(page: Page, size: int) -> int | None:
    """Where the values begin in the file, being ``size`` bytes, up to the page's end (fewer where there are nulls)."""
    at = 0
    for _ in range(page.levels):
        at += 4 + int.from_bytes(page.content[at : at + 4], "little")
    return page.start + at if at + size == len(page.content) else None


def checksum_and_finite(page: Page, start: int | None, dtype: str) -> tuple[int, bool]:
    """Checksum of a page, and whether the numbers in it from ``start`` on are all finite, in one pass over memory.

    A sum is finite only if every term is. That of large numbers may overflow: then it is as if one were not.
    """
    if start is None or np.dtype(dtype).kind != "f":
        return crc32(page.content), start is not None
    at, finite = start - page.start, True
    found = crc32(page.content[:at])
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(at, len(page.content), BLOCK):
            block = page.content[begin : begin + BLOCK]
            found = crc32(block, found)
            finite &= bool(np.isfinite(np.frombuffer(block, dtype).sum()))
    return found, finite


# --- Thrift's compact protocol ----------------------------------------------------------------------------------------


def struct(content: memoryview, at: int, depth: int = 0) -> tuple[dict[int, object], int]:
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
            value, at = varint(content, at)
            fields[number] = (value >> 1) ^ -(value & 1)
        elif kind == 8:  # bytes
            size, at = varint(content, at)
            at += size
        elif kind == 12 and depth < 3:
            fields[number], at = struct(content, at, depth + 1)
        else:
            raise ValueError(f"a field of kind {kind}")
    return fields, at + 1


def varint(content: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for position in range(10):
        value |= (content[at + position] & 0x7F) << 7 * position
        if content[at + position] < 0x80:
            return value, at + position + 1
    raise ValueError("a number of more than 64 bits")
