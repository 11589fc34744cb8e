"""What a run is measured against on one split: losses of every baseline, sample by sample.

Choices (the constant agent, the confidence threshold and whom it defers to) are made on the validation split.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from l2d.data.cache.reader import CostCache
from l2d.rejector.evaluation import baselines
from l2d.rejector.evaluation.averaging import averaged_answers, averaged_costs
from l2d.rejector.evaluation.metrics import sample_metrics, task_metrics
from l2d.rejector.grid import GridPoint
from l2d.rejector.losses import oracle_allocation
from l2d.rejector.rows.table import CostTable
from l2d.rejector.training.rejector import point_costs, reference_point_costs

if TYPE_CHECKING:
    from l2d.rejector.literature.trained import TrainedMethod

VALIDATION = "validation"


class Measured:
    """A table whose task metrics are worked out once per allocation: agents alone come back in every run.

    Attributes:
        table: the evaluated split.
        costs: the cache's cost table.
        choice_raw: raw costs of the validation split, float32 (m, agents, tasks).
        confidence: of the model on the evaluated split and on validation, float64 (n,) and (m,); None where it gives no
            probabilities.
        groups: of the samples, see :func:`l2d.rejector.evaluation.groups.read_groups`.
    """

    def __init__(self, tables: dict[str, CostTable], split: str, cache: CostCache):
        self.table, self.cache, self.costs = tables[split], cache, cache.record.costs
        self._tables, self._split = tables, split
        self.names = [agent.name for agent in cache.agents]
        self.choice_raw = tables[VALIDATION].raw
        self.confidence = None
        if all("pred_prob" in table.predictions[self.names[0]] for table in tables.values()):
            self.confidence = self._confidence(tables[split]), self._confidence(tables[VALIDATION])
        self.groups: np.ndarray | None = None
        self._known: dict[tuple, dict[str, float]] = {}
        self._opponents: dict[tuple, Opponents] = {}
        self.averages = averaged_answers(self.table, self.names, cache.record.tasks)

    def with_classifier(self, rejector: TrainedMethod) -> Measured:
        """The same with the classifier of a run in agent 0's place: its answers, its cost, its confidence."""
        tasks = self.cache.record.tasks
        tables = {split: rejector.system_table(table, tasks) for split, table in self._tables.items()}
        found = Measured(tables, self._split, self.cache)
        found.groups = self.groups
        return found

    def metrics(self, chosen: np.ndarray, names: list[str]) -> dict[str, float]:
        """:func:`l2d.rejector.evaluation.metrics.task_metrics` of this table."""
        key = (tuple(names), chosen.tobytes())
        if key not in self._known:
            self._known[key] = task_metrics(self.table, chosen, names, self.costs)
        return dict(self._known[key])

    def sample_metrics(self, chosen: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
        """:func:`l2d.rejector.evaluation.metrics.sample_metrics` of this table."""
        return sample_metrics(self.table, chosen, names, self.costs)

    def average_metrics(self) -> dict[str, float]:
        """Metrics of the averaged answers."""
        table = replace(self.table, predictions={"average": self.averages}, failed=None)
        return task_metrics(table, np.zeros(len(table), dtype=np.int64), ["average"], self.costs)

    def opponents(self, point: GridPoint) -> Opponents:
        """Of a point; points with the same costs share them."""
        key = (point.weights, point.query_costs, point.cost)
        if key not in self._opponents:
            self._opponents[key] = Opponents.of(self, point)
        return self._opponents[key]

    def _confidence(self, table: CostTable) -> np.ndarray:
        model = self.names[0]
        answered = None if table.failed is None else ~table.failed[:, list(table.predictions).index(model)]
        return baselines.model_confidence(table.predictions[model]["pred_prob"], answered)


@dataclass(frozen=True)
class Opponents:
    """Baselines under one total cost.

    Attributes:
        costs: total costs of the agents, float32 (n, agents), infinite where one is unavailable.
        choice_costs: the same on validation, (m, agents).
        alone: agent or reference -> its losses when it answers everything, float32 (n,); infinite where it cannot.
        best_agent: the agent of the lowest mean loss on the evaluated split: hindsight. None if each is unavailable
            somewhere.
        best_constant: that of the lowest mean loss on validation.
        oracle_allocation: the cheapest agent of each sample, int64 (n,).
        threshold: expert and confidence threshold of the lowest mean loss on validation.
        losses: ``oracle``, ``confidence`` (that threshold) and ``averaging`` (where all agents' answers can be
            averaged) -> losses, float64 (n,).
    """

    measured: Measured
    costs: Tensor
    choice_costs: Tensor
    alone: dict[str, np.ndarray]
    best_agent: str | None
    best_constant: str | None
    oracle_allocation: np.ndarray
    threshold: tuple[int, float] | None
    losses: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, measured: Measured, point: GridPoint) -> Opponents:
        cache, names, tasks = measured.cache, measured.names, measured.cache.record.tasks
        costs = available_costs(point_costs(measured.table.raw, point, tasks))
        choice_costs = available_costs(point_costs(measured.choice_raw, point, tasks))
        alone = {name: costs[:, j].numpy() for j, name in enumerate(names)}
        queries = costs.isfinite() * torch.tensor(point.query_costs)  # who is unavailable is not asked
        references = available_costs(reference_point_costs(measured.table, point, tasks))
        for position, reference in enumerate(cache.references):
            asked = [names.index(name) for name in reference.queries if name in names]
            alone[reference.name] = (references[:, position] + queries[:, asked].sum(dim=1)).numpy()
        losses, threshold = {"oracle": baselines.oracle(costs).numpy()}, None
        if measured.confidence is not None:
            confidence, choice_confidence = measured.confidence
            threshold = baselines.choose_threshold(choice_confidence, choice_costs.numpy())
        if threshold is not None:
            losses["confidence"] = baselines.threshold_losses(confidence, costs.numpy(), *threshold)
        if measured.averages is not None:
            raw = averaged_costs(measured.averages, measured.table.targets, tasks, measured.costs)
            free = replace(point, query_costs=(0.0,))
            cost = point_costs(torch.from_numpy(raw)[:, None], free, tasks)[:, 0]
            losses["averaging"] = (cost + queries.sum(dim=1)).double().numpy()
        best, chosen = baselines.best_constant(costs), baselines.best_constant(choice_costs)
        return cls(
            measured=measured,
            costs=costs,
            choice_costs=choice_costs,
            alone=alone,
            best_agent=None if best is None else names[best],
            best_constant=None if chosen is None else names[chosen],
            oracle_allocation=oracle_allocation(costs).numpy(),
            threshold=threshold,
            losses={name: values for name, values in losses.items() if np.isfinite(values).all()},
        )

    @property
    def constant_answers(self) -> bool:
        """Whether the agent chosen on validation answers every sample here."""
        return self.best_constant is not None and bool(np.isfinite(self.alone[self.best_constant]).all())

    def same_coverage(self, kept_share: float) -> np.ndarray | None:
        """Losses (n,) where the model keeps this share by its own confidence, the rest going to one expert."""
        if self.threshold is None:
            return None
        confidence, choice_confidence = self.measured.confidence
        expert = baselines.same_coverage_expert(choice_confidence, self.choice_costs.numpy(), kept_share)
        losses = baselines.same_coverage_losses(confidence, self.costs.numpy(), expert, kept_share)
        return losses if np.isfinite(losses).all() else None


def available_costs(costs: Tensor) -> Tensor:
    """Total costs with infinity where an agent is unavailable, which raw costs show as NaN."""
    return costs.masked_fill(costs.isnan(), torch.inf)
