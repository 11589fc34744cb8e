"""A policy at work: scores to predicted costs, plus the prices of agents; one input at a time, and as a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from l2d.data.cache import store
from l2d.data.errors import DataError, UsageError
from l2d.rejector.costs import CostWeights
from l2d.rejector.grid import GridPoint
from l2d.rejector.policies.cost_prediction import CostPredictor
from l2d.rejector.policies.dual_prices import cheapest


@dataclass(frozen=True)
class Policy:
    """``argmin_j`` of predicted cost plus ``agent_prices``, ties to the lowest index.

    Attributes:
        run_id: of the run whose scores it takes, with ``weights``, the digest of its parameters.
        query_costs, task_weights, paid: the setting that the scores were of. Runs of one fit share their parameters.
    """

    run_id: str
    weights: str
    query_costs: list[float]
    task_weights: dict[str, float]
    agents: list[str]
    predictor: CostPredictor
    agent_prices: np.ndarray
    paid: float | None = None

    def allocate(self, scores: np.ndarray, available: np.ndarray | None = None) -> np.ndarray:
        """Agents (n,) from a rejector's scores (n, agents), which are -inf where an agent is unavailable."""
        there = np.isfinite(scores) if available is None else available
        return self.of_costs(self.predictor.predict(scores, there))

    def point_of(self, point: GridPoint) -> GridPoint:
        """A run's point, at the setting that the prices were made for."""
        return replace(
            point,
            beta=tuple(zip(self.agents, self.query_costs, strict=True)),
            query_costs=tuple(self.query_costs),
            paid=self.paid,
            weights=CostWeights(tuple(self.task_weights.items())),
        )

    def of_costs(self, predicted: np.ndarray) -> np.ndarray:
        """Agents (n,) from predicted costs (n, agents)."""
        return cheapest(np.ascontiguousarray(predicted.T), self.agent_prices)[0]

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the policy as JSON.

        Raises:
            UsageError: the file is there already.
        """
        content = {**asdict(self), "agent_prices": self.agent_prices.tolist()}
        if not store.commit_json(path, content, replace=overwrite):
            raise UsageError("this is there already", where=path, hint="give another file, or type --overwrite")


def read_policy(path: Path, *, weights: str) -> Policy:
    """Read a policy back, for the run it was made from.

    Args:
        weights: digest of the run's parameters.

    Raises:
        UsageError: there is no such file, or it was made from another run.
        DataError: it is no policy, or damaged.
    """
    if not path.is_file():
        raise UsageError("there is no policy here", where=path, hint="make one: l2d policy RUN --budget … --save FILE")
    content = store.read_json(path)
    try:
        predictor = CostPredictor(**content.pop("predictor"))
        prices = np.array(content.pop("agent_prices"), np.float64)
        policy = Policy(predictor=predictor, agent_prices=prices, **content)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"is not a policy: {error}", where=path, hint="make it again: l2d policy … --save") from error
    if policy.weights != weights:
        raise UsageError(
            f"this policy is of run {policy.run_id}, or of an earlier training of it",
            where=path,
            hint="its prices mean nothing for other scores: make it again with l2d policy",
        )
    return policy
