"""Resamples of samples or groups, drawn a block at a time on several threads: what bootstrap intervals are made of.

How often each unit is drawn depends on how many units there are and on the seed alone. So the draws of small tables are
kept, and what is resampled next (the same samples, other differences) needs only the sums.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Lock

import numpy as np
from threadpoolctl import threadpool_limits

_RESAMPLES_AT_ONCE, _UNITS_AT_ONCE = 250, 1024  # counts of this size stay in a core's cache
_WIDE = 32  # columns from which a product costs less than to gather rows
_MOST_KEPT = 1 << 26  # bytes of draws


def bootstrap_errors(sums: np.ndarray, sizes: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of resamples, less the mean of the samples: ``sum_g w_g sums_g / sum_g w_g sizes_g``.

    How often each of G units is drawn, ``w``, is multinomial: G draws. Drawing one by one reads memory in random order;
    instead most draws come as independent Poisson counts with a mean just below 1, which given their total are
    multinomial, and the few that are left to G are drawn one by one. (Counts take 16 random bits each, so their
    distribution is right to ``2^-16``.) Resamples whose counts exceed G to begin with, one in 700, are left out.

    Args:
        sums: of each unit's distances from the overall mean, (G, K).
        sizes: samples in each unit, (G,).

    Returns:
        (resamples, K) float64.
    """
    units = len(sizes)
    values = np.concatenate([sums, sizes[:, None], np.ones((units, 1))], axis=1)
    known = _KEPT.get((units, resamples, seed))
    # One thread a block of resamples: products this small are slower on several.
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        if known is not None:
            return np.concatenate(list(pool.map(partial(_means, values), known)))
        means: list[np.ndarray] = []
        draws: list[_Draws] = []
        keep = resamples * (units + 4 * _left_over(units)) <= _MOST_KEPT
        blocks = np.random.SeedSequence(seed)
        while (left := resamples - sum(map(len, means))) > 0:
            counts = [min(_RESAMPLES_AT_ONCE, left - start) for start in range(0, left, _RESAMPLES_AT_ONCE)]
            for drawn, found in pool.map(partial(_drawn, values, keep), counts, blocks.spawn(len(counts))):
                means.append(found)
                draws += drawn
    if keep:
        _KEPT.put((units, resamples, seed), draws)
    return np.concatenate(means)


@dataclass(frozen=True)
class _Draws:
    """A block of resamples.

    Attributes:
        counts: how often each unit is drawn at first, uint8 (resamples, G).
        left: how often units are drawn besides, to make G draws; below 0 where it is too many already: (resamples,).
        further: these units, one resample's after another's.
    """

    counts: np.ndarray
    left: np.ndarray
    further: np.ndarray

    @property
    def num_bytes(self) -> int:
        return self.counts.nbytes + self.left.nbytes + self.further.nbytes


class _Kept:
    """Draws by what they depend on; those that have not been used for longest go first."""

    def __init__(self, most: int):
        self._most, self._draws = most, OrderedDict[tuple[int, int, int], list[_Draws]]()
        self._lock = Lock()

    def get(self, key: tuple[int, int, int]) -> list[_Draws] | None:
        with self._lock:
            if key in self._draws:
                self._draws.move_to_end(key)
            return self._draws.get(key)

    def put(self, key: tuple[int, int, int], draws: list[_Draws]) -> None:
        with self._lock:
            self._draws[key] = draws
            while sum(block.num_bytes for blocks in self._draws.values() for block in blocks) > self._most:
                self._draws.popitem(last=False)


_KEPT = _Kept(_MOST_KEPT)


def _drawn(
    values: np.ndarray, keep: bool, resamples: int, seed: np.random.SeedSequence
) -> tuple[list[_Draws], np.ndarray]:
    """A block of resamples, where it is to be kept, and their means."""
    draws = _draw(len(values), resamples, np.random.Generator(np.random.SFC64(seed)))
    return [draws] if keep else [], _means(values, draws)


def _draw(units: int, resamples: int, generator: np.random.Generator) -> _Draws:
    counts, left = np.empty((resamples, units), np.uint8), np.full(resamples, units, np.int64)
    for rows in _slices(units):
        counts[:, rows] = some = _poisson_counts(units, (resamples, rows.stop - rows.start), generator)
        left -= some.sum(axis=1, dtype=np.uint16)  # at most 63 a unit
    further = generator.integers(0, units, int(left[left > 0].sum()))
    return _Draws(counts, left, further.astype(np.int32) if units < 1 << 31 else further)


def _means(values: np.ndarray, draws: _Draws) -> np.ndarray:
    """Means of the resamples that have G draws; ``values`` (G, K + 2) are sums, sizes and ones."""
    totals = _totals_by_products(values, draws) if values.shape[1] >= _WIDE else _totals(values, draws)
    return totals[:, :-2] / totals[:, -2:-1]


def _totals(values: np.ndarray, draws: _Draws) -> np.ndarray:
    """Sums over resamples of the columns of ``values`` (G, K): (resamples, K); that of the ones is of the counts alone.

    A column after the other is gathered: it lies in the cache, where rows would be read from all over memory.
    """
    totals = np.zeros((len(draws.counts), values.shape[1]))
    for rows in _slices(len(values)):
        totals += draws.counts[:, rows].astype(np.float32) @ values[rows].astype(np.float32)
    totals, left = totals[draws.left >= 0], draws.left[draws.left >= 0]
    filled = np.flatnonzero(left)  # reduceat cannot sum nothing
    if len(filled):
        starts = (np.cumsum(left) - left)[filled]
        positions, gathered = draws.further.astype(np.intp), np.empty(len(draws.further))
        for number, column in enumerate(np.ascontiguousarray(values.T[:-1])):
            column.take(positions, out=gathered, mode="clip")  # with "raise" it would be copied once more
            totals[filled, number] += np.add.reduceat(gathered, starts)
    return totals


def _totals_by_products(values: np.ndarray, draws: _Draws) -> np.ndarray:
    """:func:`_totals` of many columns: the single draws are counted too, and all of it is one product."""
    drawn, left = draws.counts[draws.left >= 0], draws.left[draws.left >= 0]
    np.add.at(drawn, (np.repeat(np.arange(len(drawn)), left), draws.further), 1)
    totals = np.zeros((len(drawn), values.shape[1]))
    for rows in _slices(len(values)):
        totals += drawn[:, rows].astype(np.float32) @ values[rows].astype(np.float32)
    return totals


def _left_over(units: int) -> int:
    """Draws of a resample that are made one by one, about."""
    return min(units, math.ceil(3 * math.sqrt(units)))


def _poisson_counts(units: int, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """How often some of the units are drawn at first: uint8 (resamples, units of the block)."""
    size = shape[0] * shape[1]
    words = generator.integers(0, 1 << 32, -(-size // 2), dtype=np.uint32).astype("<u4", copy=False)
    numbers = words.view("<u2")[:size].reshape(shape)
    counts, reached = np.zeros(shape, np.uint8), np.empty(shape, np.bool_)
    for threshold in poisson_thresholds(max(0.0, 1 - 3 / math.sqrt(units))):
        counts += np.greater_equal(numbers, threshold, out=reached)
    return counts


def poisson_thresholds(mean: float) -> list[np.uint16]:
    """Numbers whose count at or below a uniform 16-bit number is Poisson: ``round(2^16 P(X <= k))``, k = 0, 1, ..."""
    thresholds, chance, below = [], math.exp(-mean), 0.0
    for k in range(1, 64):
        below += chance
        chance *= mean / k
        if round(2**16 * below) >= 2**16:
            break
        thresholds.append(np.uint16(round(2**16 * below)))
    return thresholds


def _slices(length: int) -> Iterator[slice]:
    return (slice(start, min(start + _UNITS_AT_ONCE, length)) for start in range(0, length, _UNITS_AT_ONCE))
