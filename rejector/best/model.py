"""The fitted models of one cache: from features to each agent's raw cost in each task."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from l2d.rejector.best import linear, trees
from l2d.rejector.best.answering import Answering
from l2d.rejector.best.flattery import flattery
from l2d.rejector.best.folds import FOLDS, ROWS_AT_ONCE, Judge, fold_of
from l2d.rejector.best.linear import Basis, Ridge, SteadyRidge
from l2d.rejector.best.stacking import Stacking
from l2d.rejector.best.trees import Forest

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
        factor: what predictions are multiplied by, since samples that an agent was fitted on flatter it, float64
            (agents, tasks); see :mod:`l2d.rejector.best.flattery`. ``mean`` has it already.
        answering: agents whose answering depends on the features; None where none does. Not kept in a run's arrays.
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
    factor: np.ndarray
    answering: Answering | None = None

    def predict(self, x: np.ndarray, *, threads: int = 1) -> np.ndarray:
        """Raw costs of new samples, the mean over folds: float32 (n, width) -> float64 (n, agents, tasks).

        Args:
            threads: of rows at once; a row's bits do not depend on them.
        """
        if self.basis is None:
            return np.tile(self.mean, (len(x), 1, 1))
        return self._combined(x, range(len(self.forests)), threads)

    def predict_unseen(self, x: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """The same of samples it was fitted on, each by the fold that has not seen it."""
        if self.basis is None:
            return np.tile(self.mean, (len(x), 1, 1))
        fold, found = fold_of(ids), np.empty((len(x), self.num_agents, self.num_tasks))
        for number in range(len(self.forests)):
            rows = fold == number
            found[rows] = self._combined(x[rows], [number])
        return found

    @cached_property
    def ridge(self) -> SteadyRidge:
        """The mean of all folds' regressions."""
        return self.ridge_of(range(len(self.ridges)))

    def ridge_of(self, folds: Sequence[int]) -> SteadyRidge:
        """The mean of some folds' regressions."""
        assert self.basis is not None
        weights = np.add.reduce([self.ridges[fold].weights for fold in folds]) / len(folds)
        intercept = np.add.reduce([self.ridges[fold].intercept for fold in folds]) / len(folds)
        return SteadyRidge(self.basis, Ridge(weights, intercept))

    def _combined(self, x: np.ndarray, folds: Sequence[int], threads: int = 1) -> np.ndarray:
        """Block by block, so that no more than the answer grows with the rows."""
        found = np.empty((len(x), self.num_agents, self.num_tasks))
        ridge = self.ridge_of(folds) if len(folds) < len(self.ridges) else self.ridge
        compiled = None if trees.mean_of_leaves else self.forests[0].worth_compiling(len(x))
        if compiled:
            for fold in folds:
                self.forests[fold].compiled  # noqa: B018 - made once, before threads ask for it

        def block(start: int) -> None:
            rows = slice(start, start + ROWS_AT_ONCE)
            found[rows] = self._block(x[rows], folds, ridge, compiled)

        starts = range(0, len(x), ROWS_AT_ONCE)
        if threads > 1 and len(starts) > 1:
            with one_thread_a_product(), ThreadPoolExecutor(threads) as pool:
                list(pool.map(block, starts))
        else:
            for start in starts:
                block(start)
        return found

    def _block(self, x: np.ndarray, folds: Sequence[int], ridge: SteadyRidge, compiled: bool | None) -> np.ndarray:
        shape = (len(x), self.num_agents, self.num_tasks)
        by_tree = sum(self.forests[fold].predict(x, compiled=compiled) for fold in folds) / len(folds)
        by_ridge = ridge(x)
        means = np.broadcast_to(self.means[list(folds)].mean(axis=0), shape)
        return self.combined([by_tree.reshape(shape), by_ridge.reshape(shape), means])

    def combined(self, members: Sequence[np.ndarray]) -> np.ndarray:
        """What trees, ridge and means predict, (n, agents, tasks) each -> one."""
        found = self.stacking(members) * self.factor
        if not self.known.all():
            dearest = found[:, self.known].max(axis=1, keepdims=True)
            found[:, ~self.known] = np.maximum(self.mean[~self.known], a_little_more(dearest))
        return found


def fit_costs(
    x: np.ndarray,
    raw: np.ndarray,
    ids: Sequence[str],
    *,
    held: np.ndarray | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> CostModel:
    """Fit on training and validation samples.

    Penalties of trees and ridge are those whose held-out contrasts are best, each by itself; then they are stacked.

    Args:
        x: features, float32 (n, width).
        raw: raw costs, (n, agents, tasks), NaN where an agent has no answer.
        ids: of the samples; their folds are drawn from these.
        held: which samples no agent can have been fitted on (validation), bool (n,); None: nothing is known of that.
        seed: of the trees and of the projections.
        threads: for growing trees; None: one.
    """
    answered = ~np.isnan(raw).any(axis=2)
    costs = np.where(answered[:, :, None], raw, 0).astype(np.float32)
    fold = fold_of(ids)
    fit = partial(fit_counted, x, costs, fold=fold, held=held, seed=seed, threads=threads)
    model, predicted = fit(answered)
    if predicted is None or answered.all():
        return model
    answering = Answering.of(x, answered, fold, seed=seed, threads=threads)
    if answering is None:
        return model
    weighted, instead = fit(answering.weights)
    assert instead is not None
    answering = answering.judged(predicted, instead, costs)
    return replace(weighted if answering.used else model, answering=answering)


def fit_counted(
    x: np.ndarray,
    costs: np.ndarray,
    counted: np.ndarray,
    *,
    fold: np.ndarray,
    held: np.ndarray | None,
    seed: int,
    threads: int | None,
) -> tuple[CostModel, np.ndarray | None]:
    """The model, and its held-out predictions (n, agents, tasks), None where it is the agents' means.

    ``counted``: which answers there are, bool (n, agents), or what each of them counts, 0 where there is none.
    """
    n, num_agents, num_tasks = costs.shape
    answered, unknown = counted > 0, _unknown(costs)
    mean, known = agent_means(costs, counted, unknown), answered.any(axis=0)
    seen = [fold != number for number in range(FOLDS)]
    varied = len(x) and x.shape[1] and bool((x != x[0]).any())
    enough = n >= FEWEST and all(rows.sum() >= 2 and (~rows).any() for rows in seen)
    if not (varied and enough and Judge(costs, counted).told_apart):
        factor = flattery(lambda rows: np.broadcast_to(mean, costs[rows].shape), costs, answered, held)
        none = np.zeros((0, num_agents, num_tasks))
        return CostModel(num_agents, num_tasks, mean * factor, known, None, (), (), none, None, factor), None
    means = np.stack([agent_means(costs[rows], counted[rows], unknown) for rows in seen])
    basis = Basis.of(x, seed)
    forests, by_tree = trees.cross_fit(x, costs, counted, fold, means, seed=seed, threads=threads)
    ridges, by_ridge = linear.cross_fit(x, basis, costs, counted, fold, means)
    members = [by_tree, by_ridge, means[fold].astype(np.float32)]
    stacking = Stacking.fit(members, costs, counted)
    factor = flattery(lambda rows: stacking([member[rows] for member in members]), costs, answered, held)
    model = CostModel(
        num_agents, num_tasks, mean * factor, known, basis, tuple(forests), tuple(ridges), means, stacking, factor
    )
    if answered.all():
        return model, None
    predicted = np.empty(costs.shape, np.float32)
    for start in range(0, n, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        predicted[rows] = stacking([member[rows] for member in members]) * factor
    return model, predicted


def agent_means(costs: np.ndarray, counted: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Mean cost of each agent's answers, (agents, tasks); ``unknown`` (tasks,) of an agent without answers.

    ``counted``: which answers there are, bool (n, agents), or what each of them counts, 0 where there is none.
    """
    number = counted.sum(axis=0)
    there = counted[:, :, None]
    total = np.where(there > 0, costs * there, 0.0).sum(axis=0)
    return np.where((number > 0)[:, None], total / np.where(number > 0, number, 1)[:, None], unknown)


def _unknown(costs: np.ndarray) -> np.ndarray:
    """What an agent is taken to cost that has answered nothing: a little more than the dearest answer, (tasks,)."""
    return a_little_more(costs.max(axis=(0, 1), initial=0.0))


def a_little_more(cost: np.ndarray) -> np.ndarray:
    """So that float32 scores tell it apart."""
    return cost + MORE * np.abs(cost) + MORE


def one_thread_a_product() -> AbstractContextManager:
    """Matrix products on one thread each, while rows are worked on by several."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")
