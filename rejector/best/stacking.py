"""Several predictions of costs as one: weights by non-negative least squares on held-out samples.

An allocation depends on differences between agents, so one weight a model is fitted to the *contrasts* of a task (costs
less the sample's mean, :func:`l2d.rejector.best.folds.contrasts`), shared by all agents: few parameters, and no query
cost or task weight in them. Weights need not add up to one (Breiman, *Stacked regressions*, Machine Learning 1996):
where models know little, differences shrink to those of the agents' means, which are a model too. What all agents'
costs share is fitted alike. That is also the calibration: a predicted difference is as large as it turned out to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from l2d.rejector.best.folds import ROWS_AT_ONCE, contrasts


@dataclass(frozen=True)
class Stacking:
    """Weights of M models.

    Attributes:
        difference: of contrasts, float64 (models, tasks).
        common: of the sample's mean cost less that of all samples, float64 (models, tasks).
        mean: cost that the common part is counted from, float64 (tasks,).
        centre: each model's mean common part, float64 (models, tasks).
    """

    difference: np.ndarray
    common: np.ndarray
    mean: np.ndarray
    centre: np.ndarray

    @classmethod
    def fit(cls, predictions: Sequence[np.ndarray], costs: np.ndarray, counted: np.ndarray) -> Stacking:
        """From held-out predictions.

        Args:
            predictions: of each model, (n, agents, tasks).
            costs: (n, agents, tasks).
            counted: which answers there are, bool (n, agents), or what each of them counts, 0 where there is none.
        """
        answered, weighted = counted > 0, counted.dtype != bool
        models, tasks, n = len(predictions), costs.shape[2], len(costs)
        products = np.zeros((tasks, models + 1, models + 1))  # of contrasts, over all answers; the true ones last
        levels = np.zeros((tasks, models + 1, models + 1))  # of the samples' mean costs
        level_sums, every = np.zeros((tasks, models + 1)), np.zeros((models, tasks))
        blocks = [slice(start, start + ROWS_AT_ONCE) for start in range(0, n, ROWS_AT_ONCE)]
        for rows in blocks:
            members = [predicted[rows].astype(np.float64) for predicted in predictions]
            parts = [contrasts(one, answered[rows]) for one in [*members, costs[rows].astype(np.float64)]]
            for task in range(tasks):
                columns = np.stack([part[:, :, task].ravel() for part, _ in parts], axis=1)
                level = np.stack([mean[:, task] for _, mean in parts], axis=1)
                if weighted:
                    columns *= np.sqrt(counted[rows]).ravel()[:, None]
                products[task] += columns.T @ columns
                levels[task] += level.T @ level
                level_sums[task] += level.sum(axis=0)
            # The common part is predicted of all agents, also where some have not answered.
            every += np.stack([one.mean(axis=1).sum(axis=0) for one in members])
        levels -= level_sums[:, :, None] * level_sums[:, None, :] / n
        difference, common = (np.stack([_weights(gram) for gram in grams], axis=1) for grams in (products, levels))
        offset = np.zeros(tasks)
        found = cls(difference, common, offset, every / n)
        missed = np.zeros(tasks)
        for rows in blocks:
            residual = costs[rows] - found([predicted[rows] for predicted in predictions])
            missed += np.where(answered[rows][:, :, None], residual * counted[rows][:, :, None], 0.0).sum(axis=(0, 1))
        offset[:] = missed / max(1, counted.sum())
        return found

    def __call__(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """(n, agents, tasks) of each model -> one. A row's bits do not depend on other rows."""
        total = 0.0
        for model, predicted in enumerate(predictions):
            level = np.add.reduce(predicted, axis=1, keepdims=True) / predicted.shape[1]  # a mean, sooner for one row
            total = total + (predicted - level) * self.difference[model]
            total = total + (level - self.centre[model]) * self.common[model]
        return total + self.mean


def _weights(gram: np.ndarray) -> np.ndarray:
    """Non-negative least squares of the last column on the others, from the sums of their products."""
    from scipy.optimize import nnls

    columns, wanted = gram[:-1, :-1], gram[:-1, -1]
    trace = float(np.trace(columns))
    if trace <= 0:
        return np.zeros(len(columns))
    factor = np.linalg.cholesky(columns + 1e-9 * trace * np.eye(len(columns)))
    return nnls(factor.T, np.linalg.solve(factor, wanted))[0]
