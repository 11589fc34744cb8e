"""Which fold a sample belongs to, and costs as the models are fitted on them.

A fold is drawn from the sample's id, so that a run can tell later, from the id alone, which of its models has not seen
a sample: training and validation samples are always judged by that one (cross-fitting).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

FOLDS = 5


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


def tree_targets(costs: np.ndarray, answered: np.ndarray, share_of_mean: float = 0.3) -> np.ndarray:
    """What trees are grown on: contrasts between agents, and a little of what all agents' costs share.

    An allocation depends on contrasts alone, so splits are chosen by them; leaves hold costs. Each task counts alike.

    Returns:
        (n, (agents + 1) * tasks).
    """
    difference, mean = contrasts(costs, answered)
    scale = np.sqrt(np.mean(difference**2, axis=(0, 1)))
    scale = np.where(scale > 0, scale, 1.0)
    common = share_of_mean * np.sqrt(costs.shape[1]) * (mean - mean.mean(axis=0)) / scale
    return np.concatenate([(difference / scale).reshape(len(costs), -1), common], axis=1)
