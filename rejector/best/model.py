"""The fitted models of one cache: from features to each agent's raw cost in each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from l2d.rejector.best.folds import FOLDS, contrasts, fold_of, tree_targets
from l2d.rejector.best.linear import PENALTIES as RIDGE_PENALTIES
from l2d.rejector.best.linear import Basis, Ridge, fit_ridge, in_blocks
from l2d.rejector.best.stacking import Stacking
from l2d.rejector.best.trees import PENALTIES as TREE_PENALTIES
from l2d.rejector.best.trees import Forest, Grown, grow

MORE = 1e-3
FEWEST = 2 * FOLDS  # samples; fewer are described by the agents' mean costs alone


@dataclass(frozen=True)
class CostModel:
    """Cross-fitted models of raw costs.

    Attributes:
        num_agents, num_tasks: what is predicted.
        mean: mean cost of each agent, float64 (agents, tasks).
        known: which agents answered at all, bool (agents,); another is predicted to cost its ``mean``, and more than
            all of these, so it is asked last, and not first for want of errors.
        basis: of the ridge regressions; None where the agents' means are all there is.
        forests, ridges: one a fold, fitted on the samples of the other folds.
        means: the same of the agents' means, float64 (folds, agents, tasks).
        stacking: how they are combined: trees, ridge, means.
    """

    num_agents: int
    num_tasks: int
    mean: np.ndarray
    known: np.ndarray
    basis: Basis | None
    forests: tuple[Forest, ...]
    ridges: tuple[Ridge, ...]
    means: np.ndarray
    stacking: Stacking | None

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Raw costs of new samples, the mean over folds: float32 (n, width) -> float64 (n, agents, tasks)."""
        if self.basis is None:
            return np.tile(self.mean, (len(x), 1, 1))
        return self._combined(x, range(len(self.forests)))

    def predict_unseen(self, x: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """The same of samples it was fitted on, each by the fold that has not seen it."""
        if self.basis is None:
            return np.tile(self.mean, (len(x), 1, 1))
        fold, found = fold_of(ids), np.empty((len(x), self.num_agents, self.num_tasks))
        for number in range(len(self.forests)):
            rows = fold == number
            found[rows] = self._combined(x[rows], [number])
        return found

    def _combined(self, x: np.ndarray, folds: Sequence[int]) -> np.ndarray:
        found = self.stacking(self._members(x, folds))
        if not self.known.all():
            dearest = found[:, self.known].max(axis=1, keepdims=True)
            found[:, ~self.known] = np.maximum(self.mean[~self.known], a_little_more(dearest))
        return found

    def _members(self, x: np.ndarray, folds: Sequence[int]) -> list[np.ndarray]:
        """Trees', ridge's and means' predictions, each the mean over some folds: (n, agents, tasks)."""
        shape = (len(x), self.num_agents, self.num_tasks)
        forest = sum(self.forests[fold].predict(x) for fold in folds) / len(folds)
        weights = sum(self.ridges[fold].weights for fold in folds) / len(folds)
        intercept = sum(self.ridges[fold].intercept for fold in folds) / len(folds)
        ridge = in_blocks(lambda rows: self.basis(rows) @ weights + intercept, x, len(intercept))
        means = np.broadcast_to(self.means[list(folds)].mean(axis=0), shape)
        return [forest.reshape(shape), ridge.reshape(shape), means]


def fit_costs(
    x: np.ndarray, raw: np.ndarray, ids: Sequence[str], *, seed: int = 0, threads: int | None = None
) -> CostModel:
    """Fit on training and validation samples.

    Penalties of trees and ridge are those whose held-out contrasts are best, each by itself; then they are stacked.

    Args:
        x: features, float32 (n, width).
        raw: raw costs, (n, agents, tasks), NaN where an agent has no answer.
        ids: of the samples; their folds are drawn from these.
        seed: of the trees and of the projections.
        threads: for growing trees; None: one.
    """
    answered = ~np.isnan(raw).any(axis=2)
    n, num_agents, num_tasks = raw.shape
    costs = np.where(answered[:, :, None], raw, 0.0).astype(np.float64)
    unknown = _unknown(costs)
    mean, known = agent_means(costs, answered, unknown), answered.any(axis=0)
    fold = fold_of(ids)
    seen = [fold != number for number in range(FOLDS)]
    varied = len(x) and x.shape[1] and bool((x != x[0]).any())
    told_apart = bool((np.abs(contrasts(costs, answered)[0]) > 0).any())
    enough = n >= FEWEST and all(rows.sum() >= 2 and (~rows).any() for rows in seen)
    if not (varied and told_apart and enough):
        return CostModel(num_agents, num_tasks, mean, known, None, (), (), np.zeros((0, num_agents, num_tasks)), None)
    shape = (n, num_agents, num_tasks)
    flat, there = costs.reshape(n, -1), np.repeat(answered, num_tasks, axis=1)
    targets, basis = tree_targets(costs, answered), Basis.of(x, seed)
    inputs = basis(x)
    grown: list[Grown] = []
    ridges: list[list[Ridge]] = []
    by_tree = np.empty((len(TREE_PENALTIES), n, flat.shape[1]))
    by_ridge = np.empty((len(RIDGE_PENALTIES), n, flat.shape[1]))
    means = np.empty((FOLDS, num_agents, num_tasks))
    for number, rows in enumerate(seen):
        trees = grow(x[rows], targets[rows], seed=seed * FOLDS + number, threads=threads)
        means[number] = agent_means(costs[rows], answered[rows], unknown)
        unseen = means[number].ravel()
        grown.append(Grown.of(trees, x[rows], flat[rows], there[rows], unseen))
        by_tree[:, ~rows] = grown[-1].predict(x[~rows])
        ridges.append(fit_ridge(inputs[rows], flat[rows], there[rows], unseen))
        for position, ridge in enumerate(ridges[-1]):
            by_ridge[position, ~rows] = inputs[~rows] @ ridge.weights + ridge.intercept
    best_tree = _best(by_tree.reshape(-1, *shape), costs, answered)
    best_ridge = _best(by_ridge.reshape(-1, *shape), costs, answered)
    members = [by_tree[best_tree].reshape(shape), by_ridge[best_ridge].reshape(shape), means[fold]]
    return CostModel(
        num_agents,
        num_tasks,
        mean,
        known,
        basis,
        tuple(one.with_penalty(best_tree) for one in grown),
        tuple(found[best_ridge] for found in ridges),
        means,
        Stacking.fit(members, costs, answered),
    )


def agent_means(costs: np.ndarray, answered: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Mean cost of each agent where it answered, (agents, tasks); ``unknown`` (tasks,) of an agent without answers."""
    number = answered.sum(axis=0)
    total = np.where(answered[:, :, None], costs, 0.0).sum(axis=0)
    return np.where((number > 0)[:, None], total / np.maximum(number, 1)[:, None], unknown)


def _unknown(costs: np.ndarray) -> np.ndarray:
    """What an agent is taken to cost that has answered nothing: a little more than the dearest answer, (tasks,)."""
    return a_little_more(costs.max(axis=(0, 1), initial=0.0))


def a_little_more(cost: np.ndarray) -> np.ndarray:
    """So that float32 scores tell it apart."""
    return cost + MORE * np.abs(cost) + MORE


def _best(predictions: np.ndarray, costs: np.ndarray, answered: np.ndarray) -> int:
    """Whose contrasts are nearest to the true ones, each task counting alike: (candidates, n, agents, tasks)."""
    wanted, _ = contrasts(costs, answered)
    scale = np.maximum((wanted**2).mean(axis=(0, 1)), 1e-30)
    errors = [
        float((((contrasts(one, answered)[0] - wanted) ** 2).mean(axis=(0, 1)) / scale).sum()) for one in predictions
    ]
    return int(np.argmin(errors))
