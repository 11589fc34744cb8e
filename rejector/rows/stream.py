"""A split of a cache as a stream of batches, read part by part: in order here, shuffled in shuffled.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from l2d.data.samples.standardise import standardisation_of_parts
from l2d.rejector.rows.parts import CacheParts

if TYPE_CHECKING:
    from l2d.data.cache.reader import CostCache

#: What is done to rows once they are read: (features (n, W), raw (n, A, T)) -> the same rows, of any width and shape,
#: float32 on the CPU. Row by row, whatever rows stand beside one; and without writing to what is given.
Prepare = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Rows = tuple[Tensor, Tensor]
Item = TypeVar("Item")
Result = TypeVar("Result")


def open_streams(
    cache: CostCache, splits: tuple[str, ...], *, column: str = "features", failures: str = "refuse"
) -> dict[str, Stream]:
    """Streams of some splits of a cache. Everything is read once, every checksum and every value checked.

    Args:
        cache: an opened cache.
        splits: out of ``train``, ``validation``, ``test``.
        column: the rejector's input, ``features``, ``tokens`` or ``image``.
        failures: as :func:`l2d.rejector.rows.table.load_tables`; all agents and references count.

    Raises:
        IncompleteCache: parts are missing.
        CorruptPart: a part is damaged or does not belong to its chunk.
        DataError: a feature or cost is not finite, a cost is negative, a split is empty, or a failure is refused.
        UsageError: fewer than two agents, or the cache has no such input.
    """
    parts = CacheParts(cache, splits, column=column, failures=failures)
    return {split: Stream(parts, split) for split in splits}


class Stream:
    """The rows of one split, in the cache's order: those of ``load_tables`` with the same column and failures.

    Attributes:
        width: of a row's features.
        shape: of a row's raw costs: (agents, tasks).
        sizes: of the fields of token lists that a row is, see :func:`l2d.data.samples.tokens.token_sizes`; else none.
        counts: rows in each chunk, int64 (all chunks,).
        chunks: those that have rows.
        has_unavailable: whether an agent may be unavailable on some row: its raw costs are NaN there.
        left_out: rows of the split that cannot be learnt from, and are none of the stream's.
    """

    def __init__(self, parts: CacheParts, split: str):
        self._parts, self.split = parts, split
        self.width, self.shape, self.sizes = parts.width, parts.shape, parts.looks_at.sizes
        self.counts, self.cache_path = parts.counts[split], parts.cache.path
        self.chunks = np.flatnonzero(self.counts).tolist()
        self.has_unavailable, self.left_out = parts.has_unavailable, parts.left_out[split]

    def __len__(self) -> int:
        return int(self.counts.sum())

    def begin(self, epoch: int) -> bool:
        """Told of the epoch that comes; whether its rows are other ones than before, as those of augmented images."""
        return False

    def in_order(self, batch: int, *, prepare: Prepare | None = None) -> Iterator[Rows]:
        """Every row once, ``batch`` at a time; the last batch may be smaller.

        Yields:
            Features float32 (batch, W) and raw costs float32 (batch, A, T), prepared if that is asked for. Without
            ``prepare`` these may be views of the mapped files: read them, do not write to them (the system ends a
            process that does).
        """
        read = (lambda chunk: self.rows(chunk, prepare)) if prepare else self.rows
        # What is mapped needs no decoding: handing it from thread to thread would cost more than reading it.
        parts = map(read, self.chunks) if self._parts.is_mapped else ahead(read, self.chunks)
        yield from batches_of(parts, batch)

    def ids_in_order(self, batch: int) -> Iterator[list[str]]:
        """The sample ids of the batches of :meth:`in_order`."""
        waiting: list[str] = []
        for chunk in self.chunks:
            waiting += self._parts.sample_ids(self.split, chunk)
            while len(waiting) >= batch:
                yield waiting[:batch]
                del waiting[:batch]
        if waiting:
            yield waiting

    def standardisation(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each feature, as :func:`l2d.data.samples.features.standardisation`, in one pass."""
        return standardisation_of_parts(self._parts.read(self.split, chunk)[0] for chunk in self.chunks)

    def rows(self, chunk: int, prepare: Prepare | None = None) -> Rows:
        """The split's rows in one chunk; see :meth:`in_order` for what may be done with them."""
        features, raw = (torch.from_dlpack(values) for values in self._parts.read(self.split, chunk))
        return prepare(features, raw) if prepare else (features, raw)


def ahead(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``map(work, items)``, the next result being made in a background thread while one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        under_way: Future | None = None
        for item in items:
            following = thread.submit(work, item)
            if under_way is not None:
                yield under_way.result()
            under_way = following
        if under_way is not None:
            yield under_way.result()


def batches_of(parts: Iterable[Rows], batch: int) -> Iterator[Rows]:
    """Cut rows that come in parts into batches; the last may be smaller."""
    pieces: list[Rows] = []
    waiting = 0
    for part in parts:
        size, start = len(part[0]), 0
        while start < size:
            stop = min(start + batch - waiting, size)
            features, raw = part
            pieces.append((features[start:stop], raw[start:stop]))
            waiting, start = waiting + stop - start, stop
            if waiting == batch:
                yield _joined(pieces)
                pieces, waiting = [], 0
    if pieces:
        yield _joined(pieces)


def _joined(pieces: list[Rows]) -> Rows:
    if len(pieces) == 1:
        return pieces[0]
    features, raw = (torch.cat(part) for part in zip(*pieces, strict=True))
    return features, raw
