"""Which bytes of a part have to be read for some of its columns."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow.parquet as pq

from l2d.data.cache.integrity import leaves_of
from l2d.data.cache.pieces import Piece
from l2d.data.cache.places import PUSH_AGAIN
from l2d.data.errors import CorruptPart

HEAD = 64  # bytes of a page's head that the footer has a digest of
WASTE = 0.05  # share of the wanted bytes that may be read along, for fewer requests


def pages_of(metadata: pq.FileMetaData, columns: Collection[str], piece: Piece, where: str) -> list[tuple[int, int]]:
    """Where the pages of some columns begin and end.

    Raises:
        CorruptPart: not within the part.
    """
    found = []
    for group in range(metadata.num_row_groups):
        for leaf in leaves_of(metadata, columns):
            chunk = metadata.row_group(group).column(leaf)
            starts = [chunk.data_page_offset, *([chunk.dictionary_page_offset] if chunk.has_dictionary_page else [])]
            found.append((min(starts), min(starts) + chunk.total_compressed_size))
    return checked(found, piece, where)


def checked(ranges: list[tuple[int, int]], piece: Piece, where: str) -> list[tuple[int, int]]:
    """The same ranges.

    Raises:
        CorruptPart: one is not within the part.
    """
    if any(not 0 <= start <= stop <= (piece.size or 0) for start, stop in ranges):
        raise CorruptPart("says of its columns what cannot be", where=where, hint=PUSH_AGAIN)
    return ranges


def merged(ranges: list[tuple[int, int]], *, stop: int | None = None) -> list[tuple[int, int]]:
    """Ranges in order without overlaps, near ones joined as long as little is read for nothing.

    Args:
        stop: what lies behind it is here already.
    """
    joined: list[list[int]] = []
    for start, end in sorted((start, end if stop is None else min(end, stop)) for start, end in ranges):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        elif end > start:
            joined.append([start, end])
    may_waste = WASTE * sum(end - start for start, end in joined)
    gaps = sorted((joined[k + 1][0] - joined[k][1], k) for k in range(len(joined) - 1))
    closed = set()
    for size, position in gaps:
        may_waste -= size
        if may_waste < 0:
            break
        closed.add(position)
    found: list[tuple[int, int]] = []
    for position, (start, end) in enumerate(joined):
        if position - 1 in closed:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def heads_of(metadata: pq.FileMetaData, piece: Piece, where: str) -> list[tuple[int, int]]:
    """Where the bytes begin and end that the digest of page heads is of, for all columns."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    starts = [group.column(leaf).data_page_offset for group in groups for leaf in range(metadata.num_columns)]
    return checked([(start, min(start + HEAD, piece.size or 0)) for start in starts], piece, where)
