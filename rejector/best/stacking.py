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

from l2d.rejector.best.folds import contrasts


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
    def fit(cls, predictions: Sequence[np.ndarray], costs: np.ndarray, answered: np.ndarray) -> Stacking:
        """From held-out predictions.

        Args:
            predictions: of each model, (n, agents, tasks).
            costs: (n, agents, tasks).
            answered: bool (n, agents).
        """
        from scipy.optimize import nnls

        tasks = costs.shape[2]
        wanted, mean = contrasts(costs, answered)
        parts = [contrasts(predicted, answered) for predicted in predictions]
        shape = (len(predictions), tasks)
        difference, common, centre = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        for task in range(tasks):
            columns = np.stack([part[answered][:, task] for part, _ in parts], axis=1)
            difference[:, task] = _weights(nnls, columns, wanted[answered][:, task])
            levels = np.stack([level[:, task] for _, level in parts], axis=1)
            centre[:, task] = levels.mean(axis=0)
            common[:, task] = _weights(nnls, levels - centre[:, task], mean[:, task] - mean[:, task].mean())
        # The common part is predicted of all agents, also where some have not answered.
        every = [contrasts(predicted, np.ones_like(answered))[1] for predicted in predictions]
        centre = np.stack([level.mean(axis=0) for level in every])
        offset = np.zeros(tasks)
        found = cls(difference, common, offset, centre)
        residual = np.where(answered[:, :, None], costs - found(predictions), 0.0)
        offset[:] = residual.sum(axis=(0, 1)) / max(1, answered.sum())
        return found

    def __call__(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """(n, agents, tasks) of each model -> one. A row's bits do not depend on other rows."""
        total = 0.0
        for model, predicted in enumerate(predictions):
            level = predicted.mean(axis=1, keepdims=True)
            total = total + (predicted - level) * self.difference[model]
            total = total + (level - self.centre[model]) * self.common[model]
        return total + self.mean


def _weights(nnls, columns: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Non-negative least squares through the normal equations: of as many rows as there are models."""
    gram = columns.T @ columns
    trace = float(np.trace(gram))
    if trace == 0:
        return np.zeros(columns.shape[1])
    factor = np.linalg.cholesky(gram + 1e-9 * trace * np.eye(len(gram)))
    return nnls(factor.T, np.linalg.solve(factor, columns.T @ wanted))[0]
