"""The average of all agents' answers: asks everybody, so pays everybody."""

from __future__ import annotations

from typing import Any

import numpy as np

from l2d.data.measures import brier, smooth_l1
from l2d.rejector.rows.table import CostTable


def averaged_answers(table: CostTable, names: list[str], tasks: list[str]) -> dict[str, np.ndarray] | None:
    """Mean probabilities and mean values of the agents that have an answer, sample by sample.

    An answer without probabilities counts as sure of its class, as in stage one; so averaging classes is voting.

    Args:
        table: with targets and predictions.
        names: of the agents.
        tasks: of the cache.

    Returns:
        Prediction column -> averages (n,) or (n, classes); ``pred_cla`` is the most probable class, ties to the lowest.
        None where answers are boxes, an agent has no answer to a task, or nobody answers a sample.
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
