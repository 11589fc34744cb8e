"""What a run of the default method scores inputs with, in numpy alone: where nothing is trained torch is not loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from l2d.rejector.best.linear import Basis, Ridge
from l2d.rejector.best.model import CostModel
from l2d.rejector.best.stacking import Stacking
from l2d.rejector.best.trees import Forest

#: Mean price of each agent's answers, (agents,), in a state: they are predicted in units of it.
PAID_MEAN = "paid_mean"


@dataclass(frozen=True)
class Scorer:
    """Negated predicted total costs; behind the guard, those of the agents' means.

    Attributes:
        weights: what a unit of each predicted cost weighs, float64 (agents, tasks), see :func:`weights_of`.
        query_costs: float64 (agents,).
        guard: what :meth:`l2d.rejector.best.guard.Guard.facts` says.
    """

    model: CostModel
    weights: np.ndarray
    query_costs: np.ndarray
    guard: Mapping

    def __call__(self, x: np.ndarray, *, threads: int = 1) -> np.ndarray:
        """New samples' features, float32 (n, width) -> scores float32 (n, agents). A row's bits are its own."""
        if self.guard["holds"]:
            return np.tile(self._of_means(), (len(x), 1))
        return self.scored(self.model.predict(x, threads=threads))

    def scored(self, raw: np.ndarray) -> np.ndarray:
        """Scores of predicted raw costs (n, agents, tasks)."""
        if self.guard["holds"]:
            return np.tile(self._of_means(), (len(raw), 1))
        return -self.total(raw).astype(np.float32)

    def total(self, raw: np.ndarray) -> np.ndarray:
        """Total costs (n, agents) of raw ones (n, agents, tasks)."""
        return (raw * self.weights).sum(axis=2) + self.query_costs

    def _of_means(self) -> np.ndarray:
        mean, fallback = self.total(self.model.mean[None])[0], self.guard["fallback"]
        others = np.delete(mean, fallback)
        mean[fallback] = min(mean[fallback], np.nextafter(np.float32(others.min()), np.float32(-np.inf)))
        return (-mean).astype(np.float32)

    def check(self, width: int) -> None:
        """Refuse arrays that do not belong together.

        Args:
            width: of a row of features.

        Raises:
            ValueError: they do not.
        """
        agents = len(self.query_costs)
        if self.model.num_agents != agents:
            raise ValueError(f"{self.model.num_agents} agents are predicted, {agents} have query costs")
        for forest in self.model.forests:
            forest.check(width)
        self(np.zeros((1, width), np.float32))


def weights_of(cost_weights: np.ndarray, agents: int, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a unit of each predicted cost weighs, (agents, tasks): prices are predicted as shares of their means.

    Args:
        cost_weights: of each column of raw costs, see :meth:`l2d.rejector.grid.GridPoint.cost_weights`.
        arrays: of a run's state.
    """
    weights = np.tile(cost_weights, (agents, 1))
    if PAID_MEAN in arrays:
        weights[:, -1] *= arrays[PAID_MEAN]
    return weights


def model_of(arrays: Mapping[str, np.ndarray]) -> CostModel:
    """The cost model of a run's state, see :func:`l2d.rejector.best.trained.state_of`."""

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

    mean, known = arrays["mean"], arrays["known"]
    num_agents, num_tasks = mean.shape
    if "ridge.weights" not in arrays:
        return CostModel(num_agents, num_tasks, mean, known, None, (), (), arrays["means"], None, arrays["factor"])
    ridges = zip(arrays["ridge.weights"], arrays["ridge.intercept"], strict=True)
    return CostModel(
        num_agents,
        num_tasks,
        mean,
        known,
        Basis(**group("basis.")),
        tuple(Forest(**group(f"trees.{fold}.")) for fold in range(len(arrays["ridge.weights"]))),
        tuple(Ridge(*ridge) for ridge in ridges),
        arrays["means"],
        Stacking(**group("stacking.")),
        arrays["factor"],
    )
