"""The parts of a cache, opened and checked once, then read chunk by chunk at the speed of memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from l2d.data.cache import schema, store
from l2d.data.cache.columns import number_column, numbers, text_column
from l2d.data.cache.integrity import REBUILD_HINT
from l2d.data.cache.mapped import Readable
from l2d.data.cache.paid import PAID, prices_of
from l2d.data.cache.schema import SPLITS
from l2d.data.errors import CorruptPart
from l2d.rejector.rows.input import Missing, RejectorInput, Tally, check_finite, check_usable, read_costs

if TYPE_CHECKING:
    from l2d.data.cache.reader import CostCache

#: Chunks that are opened at once. Checksums and sums run outside Python's lock.
THREADS = min(4, os.cpu_count() or 1)
FETCHED_AT_ONCE = 8  # chunks of a cache in a store: it answers slowly, and many at once


@dataclass(frozen=True)
class _Opened:
    """What one chunk says of itself; found in a thread, so none of it depends on other chunks.

    Attributes:
        inputs, costs, paid: its parts; the last of a cache with prices.
        width: of its inputs.
        of_split: position in ``SPLITS`` of the split that each row is of, (n,).
        gaps: where agents and references have no answer, and where nothing says what theirs was paid, bool (n, agents +
            references) each; None: nowhere.
        worst: the highest cost of each task on training samples, (tasks,).
        seen: sum and number of training rows that the model has shown.
    """

    inputs: Readable
    costs: list[Readable]
    paid: list[Readable]
    width: int
    of_split: np.ndarray
    gaps: tuple[np.ndarray, np.ndarray] | None
    worst: np.ndarray
    seen: tuple[np.ndarray | float, int]


class CacheParts:
    """Rows of a cache's splits, read part by part. Opening reads everything once; nothing is then held but its layout.

    Args:
        cache: an opened cache.
        splits: to be read, out of ``train``, ``validation``, ``test``.
        column: the rejector's input, ``features``, ``tokens`` or ``image``.
        failures: what to do about recorded failures, see :data:`l2d.rejector.rows.input.FAILURES`.

    Attributes:
        counts: split -> rows of each chunk that are kept, int64 (chunks,).
        width: of a row's input.
        shape: of a row's raw costs: (agents, tasks), and one more column, what was paid, of a cache with prices.
        has_unavailable: whether an agent is unavailable on any of these rows.
        left_out: split -> rows that are not kept.
        is_mapped: whether inputs are views of mapped files, so that reading them again costs nothing.

    Raises:
        IncompleteCache: parts are missing.
        CorruptPart: a part is damaged or does not belong to its chunk.
        DataError: a feature or cost is not finite, a cost is negative, a split is empty, or a failure is refused.
        UsageError: fewer than two agents, or the cache has no such input.
    """

    def __init__(self, cache: CostCache, splits: tuple[str, ...], *, column: str, failures: str):
        check_usable(cache, column, failures)
        self.cache, self.failures = cache, failures
        self.looks_at = RejectorInput.of(cache, column)
        self._agents = cache.agents + cache.references
        self._missing = Missing(self._agents, failures)
        self._cost_columns = [schema.COST_COLUMNS[task] for task in cache.record.tasks]
        self._shown_by = self.looks_at.made.get("agent")  # features of the model's own forward pass
        self.shape = (len(cache.agents), len(self._cost_columns) + cache.priced)
        self.width = 0
        self.counts = {split: np.zeros(cache.record.num_chunks, np.int64) for split in splits}
        self._kept: dict[str, list[bytes | None]] = {split: [] for split in splits}  # a bit a row; None: all of them
        self._inputs: list[Readable] = []
        self._costs: list[list[Readable]] = []
        self._paid: list[list[Readable]] = []  # what answers were paid, of a cache with prices
        self._worst = np.zeros(self.shape[1], np.float64 if cache.priced else np.float32)
        self._seen: tuple[np.ndarray | float, int] = 0.0, 0  # sum and number of training rows that the model has shown
        tallies = {split: Tally(self._missing, len(self._agents)) for split in splits}
        threads = THREADS if cache.mirror is None else FETCHED_AT_ONCE
        with ThreadPoolExecutor(threads, thread_name_prefix="opening") as pool:
            for chunk, opened in enumerate(pool.map(self._opened, range(cache.record.num_chunks))):
                self._add(chunk, opened, tallies)
        for split, tally in tallies.items():
            tally.check(cache, split, self._agents, failures)
        self.is_mapped = all(part.is_mapped for part in self._inputs)
        self.has_unavailable = any(tally.unavailable for tally in tallies.values())
        self.left_out = {split: tally.rows - tally.kept for split, tally in tallies.items()}

    def read(self, split: str, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a split in one chunk.

        Returns:
            Inputs float32 (n, width), a read-only view of the mapped file where it can be; raw costs of the agents
            float32 (n, agents, tasks), NaN where an agent is unavailable; with prices float64 (n, agents, tasks + 1).

        Raises:
            CorruptPart: a part cannot be read, or has been replaced.
        """
        rows = self._rows(split, chunk)
        features, raw, missing = self._read(chunk, self._costs[chunk], rows)
        if self.cache.priced:
            raw[np.isnan(raw).any(axis=2)] = np.nan
        if missing.any():
            raw[missing] = self._worst
            agents = self._missing.of_agents(self.shape[0])
            raw[agents.unavailable(missing)] = np.nan
            if self._shown_by is not None:
                features = self._with_mean(features, self._unseen(missing))
        return features, raw

    def sample_ids(self, split: str, chunk: int) -> list[str]:
        """Ids of the rows that :meth:`read` gives."""
        ids, rows = self.cache.samples(chunk, ["sample_id"])["sample_id"], self._rows(split, chunk)
        return (ids if rows is None else ids.take(number_column(rows))).to_pylist()

    def _rows(self, split: str, chunk: int) -> np.ndarray | None:
        """Positions of a split's rows in a chunk; None where these are all."""
        kept, rows = self._kept[split][chunk], len(self.cache.record.chunk_rows(chunk))
        return None if kept is None else np.flatnonzero(np.unpackbits(np.frombuffer(kept, np.uint8), count=rows))

    def _opened(self, chunk: int) -> _Opened:
        """Open and check the parts of a chunk."""
        cache = self.cache
        cache.bring(self._wanted(chunk))
        samples = cache.samples(chunk, ["split"])
        ids = store.facts_of(samples)["ids"]
        owner = "samples" if self._shown_by is None else self._shown_by
        shown = schema.samples_part(cache.path, chunk)
        if self._shown_by is not None:
            shown = schema.predictions_part(cache.path, self._shown_by, chunk)
        inputs = self._map(shown, chunk, owner, self.looks_at.columns, ids)
        costs = []
        for agent in self._agents:
            part = schema.costs_part(cache.path, agent.name, chunk, cache.record.cost_digest)
            costs.append(self._map(part, chunk, agent.name, tuple(self._cost_columns), ids))
        paid = []
        if cache.priced:
            for agent in self._agents:
                part = schema.predictions_part(cache.path, agent.name, chunk)
                paid.append(self._map(part, chunk, agent.name, (PAID,), ids))
        features, raw, failed = self._values(inputs, costs, paid, look=self.looks_at.pictures is None)
        raw_costs = raw[:, :, : len(self._cost_columns)]
        looked_at = features[:, :0] if inputs.is_finite else features  # then it was seen beside its checksum
        check_finite(cache, lambda row: self._sample_id(chunk, row), looked_at, raw_costs, self._agents)
        of_split = _split_codes(samples["split"].combine_chunks())
        training = of_split == SPLITS.index("train")
        unpriced = np.zeros_like(failed)
        if cache.priced:
            unpriced = np.isnan(raw[:, :, -1])
        along = raw.transpose(1, 2, 0)  # as it lies in memory
        counts = training if not cache.priced else training & ~np.isnan(along)
        worst = np.where(counts, along, np.float32(0)).max(axis=(0, 2), initial=0)  # failures are zeros here
        seen: tuple[np.ndarray | float, int] = 0.0, 0
        if self._shown_by is not None and features.shape[1]:
            rows = features[training & ~self._unseen(failed)]
            seen = rows.sum(axis=0, dtype=np.float64), len(rows)
        gaps = (failed, unpriced) if failed.any() or unpriced.any() else None
        return _Opened(inputs, costs, paid, features.shape[1], of_split, gaps, worst, seen)

    def _wanted(self, chunk: int) -> list[tuple[Path, tuple[str, ...]]]:
        """The parts of a chunk, and the columns of them that are read."""
        path, digest = self.cache.path, self.cache.record.cost_digest
        own = self.looks_at.columns if self._shown_by is None else ()
        found = [(schema.samples_part(path, chunk), ("sample_id", "split", *own))]
        for agent in self._agents:
            found.append((schema.costs_part(path, agent.name, chunk, digest), tuple(self._cost_columns)))
            said = (*(self.looks_at.columns if agent.name == self._shown_by else ()), *([PAID] * self.cache.priced))
            if said:
                found.append((schema.predictions_part(path, agent.name, chunk), said))
        return found

    def _add(self, chunk: int, opened: _Opened, tallies: dict[str, Tally]) -> None:
        """Take in a chunk, in their order, and note which rows are of which split."""
        self._inputs.append(opened.inputs)
        self._costs.append(opened.costs[: self.shape[0]])
        self._paid.append(opened.paid[: self.shape[0]])
        self.width = max(self.width, opened.width)
        self._worst = np.maximum(self._worst, opened.worst)
        self._seen = self._seen[0] + opened.seen[0], self._seen[1] + opened.seen[1]
        for split, tally in tallies.items():
            kept = opened.of_split == SPLITS.index(split)
            if opened.gaps is None:
                tally.add_answered(int(kept.sum()))
            else:
                rows, (failed, unpriced) = np.flatnonzero(kept), opened.gaps
                tally.add(failed[rows], partial(self._id_among, chunk, rows), unpriced[rows])
                kept &= self._missing.kept(failed, unpriced)
            self.counts[split][chunk] = kept.sum()
            self._kept[split].append(None if kept.all() else np.packbits(kept).tobytes())

    def _map(self, part: Path, chunk: int, owner: str, columns: tuple[str, ...], ids: str) -> Readable:
        mapped, found = self.cache.map_part(part, chunk, owner, columns)
        if found != ids:
            raise CorruptPart(f"holds other samples than chunk {chunk}", where=part, hint=REBUILD_HINT)
        return mapped

    def _read(
        self, chunk: int, costs: list[Readable], rows: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of a chunk (all if None): inputs, raw costs of the agents whose parts are given, where these failed."""
        if rows is None:
            return self._values(self._inputs[chunk], costs, self._paid[chunk])
        values = self._inputs[chunk].read()
        raw, failed = read_costs([part.read() for part in costs], self._cost_columns)
        if self.cache.priced:
            raw = self._with_prices(raw, failed, self._paid[chunk])
        taken = {name: _take(column, rows) for name, column in values.items()}
        return self.looks_at.rows(taken, len(rows)), raw[rows], failed[rows]

    def _values(
        self, inputs: Readable, costs: list[Readable], paid: list[Readable], *, look: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All rows of some parts, as :meth:`_read`; without ``look`` no inputs, which are image files to be decoded."""
        raw, failed = read_costs([part.read() for part in costs], self._cost_columns)
        if self.cache.priced:
            raw = self._with_prices(raw, failed, paid)
        if not look and self.looks_at.pictures is not None:
            return np.zeros((0, self.looks_at.pictures.width), np.float32), raw, failed
        return self.looks_at.rows(inputs.read(), len(raw)), raw, failed

    def _with_prices(self, raw: np.ndarray, failed: np.ndarray, paid: list[Readable]) -> np.ndarray:
        """Raw costs with what was paid behind them, float64 (n, agents, tasks + 1)."""
        prices = prices_of(self._agents[: raw.shape[1]], [part.read() for part in paid], failed)
        return np.concatenate([raw, prices], axis=2)

    def _id_among(self, chunk: int, rows: np.ndarray, row: int) -> str:
        """Id of a sample by its position among some rows of a chunk."""
        return self._sample_id(chunk, int(rows[row]))

    def _unseen(self, failed: np.ndarray) -> np.ndarray:
        """Where there are no features because the agent that shows them failed, bool (n,)."""
        shows = [agent.name == self._shown_by for agent in self._agents]
        return failed[:, shows.index(True)]

    def _with_mean(self, features: np.ndarray, unseen: np.ndarray) -> np.ndarray:
        """Features with the training rows' mean where there are none."""
        total, rows = self._seen
        mean = total / rows if rows else np.zeros(self.width)
        shown = features if features.shape[1] else np.zeros((len(features), self.width))
        return np.where(unseen[:, None], mean, shown).astype(np.float32)

    def _sample_id(self, chunk: int, row: int) -> str:
        return self.cache.samples(chunk, ["sample_id"])["sample_id"][row].as_py()


def _take(values: np.ndarray | pa.ChunkedArray, rows: np.ndarray) -> np.ndarray | pa.ChunkedArray:
    """Rows of a column, which may be a float32 matrix."""
    if not isinstance(values, np.ndarray):
        return values.take(number_column(rows))
    whole_row = np.dtype((np.void, values.itemsize * values.shape[1]))  # numpy would copy all of an array that
    taken = np.take(values.view(whole_row)[:, 0], rows)  # is not aligned before it takes rows of it
    return taken.view(np.float32).reshape(len(rows), -1)


def _split_codes(of_split: pa.Array) -> np.ndarray:
    """Position in :data:`l2d.data.cache.schema.SPLITS` of each split named, (n,), -1 of a name that is not there."""
    names = text_column(list(SPLITS), np.arange(len(SPLITS)))  # pa.array would import pandas
    return numbers(pc.index_in(of_split, value_set=names), -1)
