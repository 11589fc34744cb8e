"""Errors of a prediction that are both a cost of stage one and a metric of stage two."""

from __future__ import annotations

import numpy as np


def smooth_l1(error: np.ndarray, beta: float, clamp: float | None = None) -> np.ndarray:
    """Smooth L1 of each error as torch defines it, ``e^2 / (2 beta)`` below ``beta`` and ``|e| - beta / 2`` above."""
    size = np.abs(error)
    loss = np.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)
    return loss if clamp is None else np.minimum(loss, clamp)


def brier(probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Half the squared distance of probabilities (n, classes) from the classes (n,): (n,) in [0, 1]."""
    truth = np.zeros_like(probabilities)
    truth[np.arange(len(target)), target] = 1.0
    return 0.5 * ((probabilities - truth) ** 2).sum(axis=1)
