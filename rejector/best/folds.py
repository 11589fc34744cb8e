"""Which fold a sample belongs to, and costs as the models are fitted on them.

A fold is drawn from the sample's id, so that a run can tell later, from the id alone, which of its models has not seen
a sample: training and validation samples are always judged by that one (cross-fitting).
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Sequence

import numpy as np

FOLDS = 5
ROWS_AT_ONCE = 4096
#: Columns that trees are grown on at most.
MOST_TARGETS = 40


def fold_of(ids: Sequence[str], folds: int = FOLDS) -> np.ndarray:
    """Fold of each sample, int64 (n,), the same for an id wherever it appears."""
    digests = np.fromiter((zlib.crc32(name.encode()) for name in ids), np.uint64, len(ids))
    mixed = digests * np.uint64(0x9E3779B97F4A7C15)  # CRC-32 keeps neighbours near; this spreads them
    return ((mixed >> np.uint64(33)) % np.uint64(folds)).astype(np.int64)


def contrasts(costs: np.ndarray, answered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Costs less their mean over the agents that answered a sample.

    Args:
        costs: (n, agents, tasks); what stands where an agent has not answered does not matter.
        answered: bool (n, agents).

    Returns:
        Contrasts (n, agents, tasks), 0 where not answered; and the means (n, tasks).
    """
    there = answered[:, :, None]
    finite = np.where(there, costs, 0.0)
    mean = finite.sum(axis=1) / np.maximum(answered.sum(axis=1), 1)[:, None]
    return np.where(there, finite - mean[:, None, :], 0.0), mean


class Judge:
    """How far predicted contrasts are from the true ones, each task counting alike.

    Args:
        costs: (n, agents, tasks).
        counted: which answers there are, bool (n, agents), or what each of them counts, 0 where there is none.
    """

    def __init__(self, costs: np.ndarray, counted: np.ndarray):
        self._costs, self._counted, self._answered = costs, counted, counted > 0
        total = np.zeros(costs.shape[2])
        for start in range(0, len(costs), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            found = contrasts(costs[rows], self._answered[rows])[0] ** 2
            total += (found * counted[rows][:, :, None]).sum(axis=(0, 1))
        self._scale = np.where(total > 0, total, np.inf)
        self.told_apart = bool((total > 0).any())

    def __call__(self, predicted: np.ndarray, rows: slice | np.ndarray) -> float:
        """Squared errors of some rows, (n of them, agents, tasks), as a share of what is to be explained of all."""
        there = self._answered[rows]
        missed = contrasts(predicted, there)[0] - contrasts(self._costs[rows], there)[0]
        return float(((missed**2 * self._counted[rows][:, :, None]).sum(axis=(0, 1)) / self._scale).sum())


def tree_targets(costs: np.ndarray, answered: np.ndarray, share_of_mean: float = 0.3) -> np.ndarray:
    """What trees are grown on: contrasts between agents, and a little of what all agents' costs share.

    An allocation depends on contrasts alone, so splits are chosen by them; leaves hold costs. Each task counts alike.

    Returns:
        float32 (n, (agents + 1) * tasks), or (n, MOST_TARGETS) where these are more.
    """
    n, agents, tasks = costs.shape
    found = np.empty((n, agents + 1, tasks), np.float32)
    for start in range(0, n, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        found[rows, :agents], found[rows, agents] = contrasts(costs[rows], answered[rows])
    scale = np.sqrt(np.square(found[:, :agents], dtype=np.float64).mean(axis=(0, 1)))
    scale = np.where(scale > 0, scale, 1.0)
    found[:, :agents] /= scale.astype(np.float32)
    common = share_of_mean * np.sqrt(agents) / scale
    found[:, agents] = (found[:, agents] - found[:, agents].mean(axis=0, dtype=np.float64)) * common
    return _fewer(found.reshape(n, -1))


def _fewer(targets: np.ndarray) -> np.ndarray:
    """Of more than :data:`MOST_TARGETS` columns random sums.

    Splits chosen by sums with random weights are about those chosen by all columns (Joly, Geurts and Wehenkel, *Random
    Forests with Random Projections of the Output Space*, ECML 2014).
    """
    count = targets.shape[1]
    if count <= MOST_TARGETS:
        return targets
    weights = np.random.default_rng(count).standard_normal((count, MOST_TARGETS)) / np.sqrt(MOST_TARGETS)
    return targets @ weights.astype(np.float32)


def give_back() -> None:
    """Return freed memory to the system, where the C library keeps it (glibc): between folds that is twice the rows.

    Large blocks that have been freed once come from the heap from then on, where what lies behind them holds them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
