"""What one split of a cache says of every agent, whatever the run: metrics, confidences, groups, baselines."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, cast

import numpy as np
import torch

from l2d.data.cache.reader import CostCache
from l2d.data.costs.pooled import ranks
from l2d.data.samples.boxes import Boxes
from l2d.rejector.evaluation.baselines import (
    Baselines,
    averaged_answers,
    averaged_costs,
    best_constant,
    constant,
    fallback,
    oracle,
    ranking,
)
from l2d.rejector.evaluation.map_intervals import ImageBootstrap
from l2d.rejector.evaluation.metrics import sample_metrics, task_metrics
from l2d.rejector.grid import GridPoint
from l2d.rejector.losses import oracle_allocation
from l2d.rejector.rows.table import CostTable
from l2d.rejector.thresholds import choose_threshold, detector_confidence, model_confidence, threshold_losses
from l2d.rejector.trained import Rejector

VALIDATION = "validation"


class Measured:
    """A table whose task metrics are worked out once per allocation: agents alone come back in every run.

    Attributes:
        table: the evaluated split.
        costs: the cache's cost table.
        choice_raw: raw costs of the validation split, float32 (m, agents, tasks).
        confidence: of the model on the evaluated split and on validation, float64 (n,) and (m,): its highest
            probability, or the highest score of what it detected; None where it gives neither.
        prices: what each agent's answer to each sample was paid, float64 (n, agents), in the unit that the cache says;
            NaN where one answer's is not known; None where an agent's never is, or no answer is paid anything.
        groups: of the samples, see :func:`l2d.rejector.evaluation.groups.read_groups`.
    """

    def __init__(self, tables: dict[str, CostTable], split: str, cache: CostCache):
        self.table, self.cache, self.costs = tables[split], cache, cache.record.costs
        self._tables, self._split = tables, split
        self.names = [agent.name for agent in cache.agents]
        self.choice_raw = tables[VALIDATION].raw
        self.confidence = None
        shown = [table.predictions[self.names[0]] for table in tables.values()]
        if any(all(name in answers for answers in shown) for name in ("pred_prob", "pred_boxes")):
            self.confidence = self._confidence(tables[split]), self._confidence(tables[VALIDATION])
        paid = self.table.paid
        known = paid is not None and bool((~np.isnan(paid)).any(axis=0).all() and np.nansum(paid) > 0)
        self.prices = paid if known else None
        self.groups: np.ndarray | None = None
        self._known: dict[tuple, dict[str, float]] = {}
        self._facts: dict[tuple, dict[str, Any]] = {}
        self._alone: dict[str, dict[str, float]] = {}
        self._baselines: dict[tuple, Baselines] = {}
        self.averages = averaged_answers(self.table, self.names, cache.record.tasks)

    def with_classifier(self, rejector: Rejector) -> Measured:
        """The same with the classifier of a run in agent 0's place: its answers, its cost, its confidence."""
        tasks = self.cache.record.tasks
        tables = {split: rejector.system_table(table, tasks) for split, table in self._tables.items()}
        found = Measured(tables, self._split, self.cache)
        found.groups = self.groups
        return found

    def metrics(self, chosen: np.ndarray, names: list[str]) -> dict[str, float]:
        """:func:`l2d.rejector.evaluation.metrics.task_metrics` of this table."""
        key = (tuple(names), blake2b(chosen, digest_size=16).digest())
        if key not in self._known:
            self._known[key] = task_metrics(self.table, chosen, names, self.costs)
        return dict(self._known[key])

    def metrics_alone(self, name: str) -> dict[str, float]:
        """Those of an agent or reference on the samples that it answers by itself."""
        if name not in self._alone:
            self._alone[name] = task_metrics(self.table, None, [name], self.costs)
        return dict(self._alone[name])

    def sample_metrics(self, chosen: np.ndarray | None, names: list[str]) -> dict[str, np.ndarray]:
        """:func:`l2d.rejector.evaluation.metrics.sample_metrics` of this table."""
        return sample_metrics(self.table, chosen, names, self.costs)

    def detection_facts(self, chosen: np.ndarray) -> dict[str, Any]:
        """``map_interval``: [low, high]; ``by_class``: class -> objects that have to be found, AP. Nothing where images
        have no boxes, or one of these agents recorded a failure."""
        key = ("map", blake2b(np.ascontiguousarray(chosen), digest_size=16).digest())
        if self._bootstrap is None:
            return {}
        if self.table.failed is not None and self.table.failed[np.arange(len(chosen)), chosen].any():
            return {}
        if key not in self._facts:
            classes, counts = self.cache.record.classes, self._bootstrap.objects.sum(axis=1).astype(int).tolist()
            objects = dict(zip(self._bootstrap.classes.tolist(), counts, strict=True))
            precision = self._bootstrap.by_class(chosen)
            by_class = {classes[label]: {"objects": objects[label], "ap": ap} for label, ap in precision.items()}
            self._facts[key] = {"map_interval": list(self._bootstrap.interval(chosen)), "by_class": by_class}
        return dict(self._facts[key])

    @cached_property
    def _bootstrap(self) -> ImageBootstrap | None:
        targets, answers = self.table.targets.get("target_boxes"), [self.table.predictions[n] for n in self.names]
        if not isinstance(targets, Boxes) or targets.ignore.all() or not all("pred_boxes" in one for one in answers):
            return None
        rank = ranks(self.table.ids)
        return ImageBootstrap(targets, [cast(Boxes, one["pred_boxes"]) for one in answers], self.groups, rank)

    def average_metrics(self) -> dict[str, float]:
        """Metrics of the averaged answers."""
        table = replace(self.table, predictions={"average": self.averages}, failed=None)
        return task_metrics(table, None, ["average"], self.costs)

    def baselines(self, point: GridPoint) -> Baselines:
        """Of a point; points with the same costs share them."""
        key = (point.weights, point.query_costs, point.cost, point.paid)
        if key not in self._baselines:
            self._baselines[key] = self._baselines_of(point)
        return self._baselines[key]

    def _baselines_of(self, point: GridPoint) -> Baselines:
        names, tasks = self.names, self.cache.record.tasks
        costs, choice_costs = (point.total_costs(raw, tasks) for raw in (self.table.raw, self.choice_raw))
        order = ranking(choice_costs)
        fallbacks = fallback(costs, order)
        instead = costs.gather(1, fallbacks[:, None])[:, 0]
        policies = constant(costs, instead)
        alone = dict(zip(names, policies.T.contiguous().numpy(), strict=True))
        gaps = {names[j]: costs[:, j].isinf().numpy() for j in costs.isinf().any(dim=0).nonzero()[:, 0].tolist()}
        charged = point.charged(self.table.raw).to(costs.dtype)
        queries = torch.where(costs.isfinite(), charged, 0.0)  # the unavailable are not asked
        references = point.total_costs(self.table.reference_raw, tasks, free=True)
        for position, reference in enumerate(self.cache.references):
            asked = [names.index(name) for name in reference.queries if name in names]
            paid = references[:, position] + queries[:, asked].sum(dim=1)
            alone[reference.name] = constant(paid[:, None], instead)[:, 0].numpy()
            if paid.isinf().any():
                gaps[reference.name] = paid.isinf().numpy()
        losses, threshold = {"oracle": oracle(costs).numpy()}, None
        if self.confidence is not None:
            sure, choice_sure = self.confidence
            threshold = choose_threshold(choice_sure, choice_costs.numpy())
            if threshold is not None:
                losses["confidence"] = threshold_losses(sure, costs.numpy(), *threshold)
        if self.averages is not None:
            raw = averaged_costs(self.averages, self.table.targets, tasks, self.costs)
            free = replace(point, query_costs=(0.0,), paid=None)
            cost = free.total_costs(torch.from_numpy(raw)[:, None], tasks)[:, 0]
            losses["averaging"] = (cost + queries.sum(dim=1)).double().numpy()
        choice_instead = choice_costs.gather(1, fallback(choice_costs, order)[:, None])[:, 0]
        return Baselines(
            costs=costs,
            choice_costs=choice_costs,
            order=[names[agent] for agent in order.tolist()],
            fallback=fallbacks.numpy(),
            alone=alone,
            gaps=gaps,
            best_agent=names[best_constant(policies, order)],
            best_constant=names[best_constant(constant(choice_costs, choice_instead), order)],
            oracle_allocation=oracle_allocation(costs).numpy(),
            confidence=self.confidence,
            threshold=threshold,
            losses={name: values for name, values in losses.items() if np.isfinite(values).all()},
        )

    def _confidence(self, table: CostTable) -> np.ndarray:
        model = self.names[0]
        answered = None if table.failed is None else ~table.failed[:, list(table.predictions).index(model)]
        answers = table.predictions[model]
        if "pred_boxes" in answers:
            return detector_confidence(answers["pred_boxes"], answered)
        return model_confidence(answers["pred_prob"], answered)
