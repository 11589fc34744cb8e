"""Baselines: what a rejector is measured against, all from the same cost table. Choices are made on validation.

A cost of infinity says that the agent is unavailable on that sample: nothing here ever allocates to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2d.data.measures import brier, smooth_l1
from l2d.rejector import thresholds
from l2d.rejector.rows.table import CostTable


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Every baseline under one total cost.

    Attributes:
        costs: total costs of the agents, float32 (n, agents), infinite where one is unavailable.
        choice_costs: the same on validation, (m, agents).
        order: agents from the best to the worst on validation, see :func:`ranking`.
        fallback: position of the agent that answers where a constant agent has no answer, int64 (n,); see
            :func:`fallback`.
        alone: agent or reference -> its losses as a constant policy, float32 (n,), all finite: see :func:`constant`.
        gaps: agent or reference -> where it has no answer, bool (n,); of those that lack some.
        best_agent: the constant policy of the lowest mean loss on the evaluated split: hindsight.
        best_constant: that of the lowest mean loss on validation.
        oracle_allocation: the cheapest agent of each sample, int64 (n,).
        confidence: of the model on the evaluated split and on validation, float64 (n,) and (m,); None where it gives no
            probabilities.
        threshold: expert and confidence threshold of the lowest mean loss on validation.
        losses: ``oracle``, ``confidence`` (that threshold) and ``averaging`` (where all agents' answers can be
            averaged) -> losses, float64 (n,).
    """

    costs: Tensor
    choice_costs: Tensor
    order: list[str]
    fallback: np.ndarray
    alone: dict[str, np.ndarray]
    gaps: dict[str, np.ndarray]
    best_agent: str
    best_constant: str
    oracle_allocation: np.ndarray
    confidence: tuple[np.ndarray, np.ndarray] | None = None
    threshold: tuple[int, float] | None = None
    losses: dict[str, np.ndarray] = field(default_factory=dict)

    def same_coverage(self, kept_share: float) -> np.ndarray | None:
        """Losses (n,) where the model keeps this share by its own confidence, the rest going to one expert."""
        if self.threshold is None:
            return None
        sure, choice_sure = self.confidence
        expert = thresholds.same_coverage_expert(choice_sure, self.choice_costs.numpy(), kept_share)
        losses = thresholds.same_coverage_losses(sure, self.costs.numpy(), expert, kept_share)
        return losses if np.isfinite(losses).all() else None


def allocation_rates(allocation: Tensor, num_agents: int) -> Tensor:
    """Share of samples that each agent gets: float64 (agents,), from agent indices (n,)."""
    return torch.bincount(allocation, minlength=num_agents).double() / len(allocation)


def random_same_shares(rates: Tensor, costs: Tensor) -> Tensor:
    """Expected deferral loss of each sample if agents are drawn at random at these shares.

    The expectation itself, not a draw: ``sum_j rate_j c_j``, over the agents available on the sample, shares rescaled.
    Where no agent with a share is available, over all that are, alike.

    Args:
        rates: (agents,), summing to 1.
        costs: (n, agents).

    Returns:
        (n,) float64.
    """
    available = costs.isfinite()
    if available.all():
        return costs.double() @ rates.double()
    weights = rates.double() * available
    weights = torch.where(weights.sum(dim=1, keepdim=True) > 0, weights, available.double())
    known = costs.double().masked_fill(~available, 0.0)
    return (weights * known).sum(dim=1) / weights.sum(dim=1)


def oracle(costs: Tensor) -> Tensor:
    """Cost of the cheapest agent of each sample (n,): the lower bound of any rejector (Lemma 4.2)."""
    return costs.double().amin(dim=1)


# --- constant policies ------------------------------------------------------------------------------------------------


def ranking(costs: Tensor) -> Tensor:
    """Agents from the best to the worst, int64 (agents,): by mean cost over the samples that each of them answers.

    Ties to the lowest index; agents without an answer come last.

    Args:
        costs: total costs on the validation split, (m, agents), infinite where an agent is unavailable.
    """
    available = costs.isfinite()
    sums = costs.masked_fill(~available, 0.0).sum(dim=0, dtype=torch.float64)
    counts = available.sum(dim=0)
    return torch.where(counts > 0, sums / counts.clamp(min=1), torch.inf).argsort(stable=True)


def fallback(costs: Tensor, order: Tensor) -> Tensor:
    """The first agent in this order that is available, int64 (n,): the stand-in where a constant agent has no answer.

    Args:
        costs: (n, agents), on each sample at least one is finite.
        order: of :func:`ranking`, on validation.
    """
    if bool(costs[:, order[0]].isfinite().all()):
        return order[:1].expand(len(costs))
    return order[costs[:, order].isfinite().to(torch.uint8).argmax(dim=1)]


def constant(costs: Tensor, instead: Tensor) -> Tensor:
    """Costs of constant policies, (n, k): "ask j; where j has no answer, ask the best of the others".

    Args:
        costs: of k agents or references, (n, k), infinite where one has no answer.
        instead: cost of the agent of :func:`fallback`, (n,).
    """
    missing = costs.isinf()
    return torch.where(missing, instead[:, None], costs) if bool(missing.any()) else costs


def best_constant(costs: Tensor, order: Tensor | None = None) -> int:
    """The constant policy of the lowest mean cost; among equals, as where no two agents answered one sample, the first.

    On the validation split this is the constant agent that one would have chosen; on the evaluated split itself it is
    chosen in hindsight, the hardest one to beat.

    Args:
        costs: of :func:`constant`, (n, agents), finite.
        order: of :func:`ranking`, which of equals is first; None: in the order of the agents.
    """
    order = torch.arange(costs.shape[1]) if order is None else order
    return int(order[costs.sum(dim=0, dtype=torch.float64)[order].argmin()])


# --- the average of all answers ---------------------------------------------------------------------------------------


def averaged_answers(table: CostTable, names: list[str], tasks: list[str]) -> dict[str, np.ndarray] | None:
    """Mean probabilities and mean values of the agents that have an answer, sample by sample.

    An answer without probabilities counts as sure of its class, as in stage one; so averaging classes is voting.

    Args:
        table: with targets and predictions.
        names: of the agents.
        tasks: of the cache.

    Returns:
        Prediction column -> averages (n,) or (n, classes); ``pred_cla`` is the most probable class, ties to the lowest.
        None where answers are boxes, an agent has no answer to a task, or no agent answers a sample.
    """
    if not set(tasks) <= {"cla", "reg"}:
        return None
    answered = np.ones((len(table), len(names)), dtype=bool)
    if table.failed is not None:
        order = list(table.predictions)
        answered = ~table.failed[:, [order.index(name) for name in names]]
    weights = answered / np.maximum(answered.sum(axis=1, keepdims=True), 1)
    answers, averages = [table.predictions[name] for name in names], {}
    if not answered.any(axis=1).all():
        return None
    if "cla" in tasks:
        if not all("pred_cla" in answer for answer in answers):
            return None
        votes = [_probabilities(answer, here, table) for answer, here in zip(answers, answered.T, strict=True)]
        averages["pred_prob"] = sum(weight[:, None] * vote for weight, vote in zip(weights.T, votes, strict=True))
        averages["pred_cla"] = averages["pred_prob"].argmax(axis=1)
    if "reg" in tasks:
        if not all("pred_reg" in answer for answer in answers):
            return None
        values = [np.where(here, answer["pred_reg"], 0.0) for answer, here in zip(answers, answered.T, strict=True)]
        averages["pred_reg"] = sum(weight * value for weight, value in zip(weights.T, values, strict=True))
    return averages


def _probabilities(answer: dict[str, np.ndarray], answered: np.ndarray, table: CostTable) -> np.ndarray:
    """Of one agent, float64 (n, classes); zeros where it has no answer."""
    if "pred_prob" in answer:
        return np.where(answered[:, None], answer["pred_prob"].astype(np.float64), 0.0)
    given = [a["pred_prob"].shape[1] for a in table.predictions.values() if "pred_prob" in a]
    seen = [np.nanmax(values) for values in (table.targets["target_cla"], *_classes(table))]
    classes = given[0] if given else int(max(seen)) + 1
    return np.eye(classes)[np.where(answered, answer["pred_cla"], 0).astype(np.int64)] * answered[:, None]


def _classes(table: CostTable) -> list[np.ndarray]:
    return [answer["pred_cla"] for answer in table.predictions.values() if "pred_cla" in answer]


def averaged_costs(
    answers: dict[str, np.ndarray], targets: dict[str, np.ndarray], tasks: list[str], costs: dict[str, Any]
) -> np.ndarray:
    """Raw costs of averaged answers, as the cache's cost table has them for agents.

    Args:
        answers: of :func:`averaged_answers`.
        targets: target column -> (n,).
        tasks: in order.
        costs: the cost table of the cache, ``[costs]`` of its recipe.

    Returns:
        float32 (n, tasks).
    """
    columns = []
    for task in tasks:
        setting = costs[task]
        if task == "cla":
            truth, chances = targets["target_cla"], answers["pred_prob"]
            if setting["kind"] == "zero_one":
                cost = answers["pred_cla"] != truth
            elif setting["kind"] == "brier":
                cost = brier(chances, truth)
            else:
                cost = 1 - chances[np.arange(len(truth)), truth]
        else:
            error = np.abs(answers["pred_reg"] - targets["target_reg"].astype(np.float64))
            if setting["kind"] == "smooth_l1":
                cost = smooth_l1(error, setting["beta"])
            else:
                cost = error if setting["kind"] == "absolute" else error**2
            cost = np.minimum(cost, setting.get("clamp") or np.inf)
        columns.append(cost)
    return np.stack(columns, axis=1).astype(np.float32)
