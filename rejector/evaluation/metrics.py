"""Task metrics of a system that answers each sample with one agent's prediction."""

from __future__ import annotations

import numpy as np

from l2d.data.measures import brier, smooth_l1
from l2d.data.text_answers import agreements
from l2d.rejector.evaluation.detection_metrics import mixed_detections, system_map
from l2d.rejector.rows.table import CostTable


def task_metrics(table: CostTable, chosen: np.ndarray | None, names: list[str], costs: dict) -> dict[str, float]:
    """Metrics that apply to the cache's tasks.

    Args:
        table: with targets and predictions.
        chosen: position in ``names`` of the agent that answers each sample, (n,); None: the only one of them.
        names: agents or references.
        costs: the cache's cost table: ``smooth_l1`` is the cached cost where that is the regression cost.

    Returns:
        ``accuracy`` and ``balanced_accuracy`` in [0, 1]; where every one of them gives probabilities ``brier``,
        ``auroc`` (of more than two classes the mean of each against the rest) and, with two, ``average_precision``;
        ``smooth_l1`` as configured in ``[costs.reg]``, clamp included;
        ``mean_absolute_error`` in the target's unit, or, of imported scores, whose target is always 1, the mean
        ``score``; ``exact_match`` and ``f1`` of texts, in [0, 1]; ``map`` and ``map_50`` of the detections on all
        images together.
        Where failures are recorded: ``answered``, the share of samples
        that got an answer, and the others over these alone.
    """
    metrics: dict[str, float] = {}
    rows = np.arange(len(table))
    if chosen is None:
        chosen = np.zeros(len(table), dtype=np.int64)
    if table.failed is not None and table.failed.any():
        columns = [list(table.predictions).index(name) for name in names]
        answered = ~table.failed[:, columns][rows, chosen]
        metrics["answered"] = float(answered.mean())
        rows, chosen = rows[answered], chosen[answered]
        if not len(rows):
            return metrics
    metrics |= {name: float(values.mean()) for name, values in _of_samples(table, rows, chosen, names, costs).items()}
    if "accuracy" in metrics:
        target = table.targets["target_cla"][rows]
        metrics["balanced_accuracy"] = balanced_accuracy(target, _of_chosen("pred_cla", table, rows, chosen, names))
        present = np.unique(target)
        if "brier" in metrics and len(present) > 1:
            probabilities = _of_chosen("pred_prob", table, rows, chosen, names).astype(np.float64)
            binary = probabilities.shape[1] == 2
            scored = [1] if binary else present
            metrics["auroc"] = float(np.mean([auroc(target == label, probabilities[:, label]) for label in scored]))
            if binary:
                metrics["average_precision"] = area_under_precision(target, probabilities[:, 1])
    answers = [table.predictions[name] for name in names]
    if "target_boxes" in table.targets and all("pred_boxes" in answer for answer in answers):
        detections = mixed_detections([answer["pred_boxes"][rows] for answer in answers], chosen)
        ids = [table.ids[row] for row in np.arange(len(table.ids))[rows]]
        metrics |= system_map(table.targets["target_boxes"][rows], detections, ids)
    return metrics


def _of_chosen(column: str, table: CostTable, rows: np.ndarray, chosen: np.ndarray, names: list[str]) -> np.ndarray:
    """What the agent said that is asked about each row. The others, which may be many, are not looked at."""
    asked = np.unique(chosen)
    said = {agent: table.predictions[names[agent]][column] for agent in asked.tolist()}
    if len(said) == 1:
        return next(iter(said.values()))[rows]
    first = next(iter(said.values()))
    found = np.empty((len(chosen), *first.shape[1:]), np.result_type(*{values.dtype for values in said.values()}))
    for agent, values in said.items():
        here = chosen == agent
        found[here] = values[rows[here]]
    return found


def _of_samples(
    table: CostTable, rows: np.ndarray, chosen: np.ndarray, names: list[str], costs: dict
) -> dict[str, np.ndarray]:
    """Figures of each of some samples, which all have an answer."""
    found: dict[str, np.ndarray] = {}
    answers = [table.predictions[name] for name in names]
    if "target_cla" in table.targets and all("pred_cla" in answer for answer in answers):
        target = table.targets["target_cla"][rows]
        found["accuracy"] = (_of_chosen("pred_cla", table, rows, chosen, names) == target).astype(np.float64)
        if all("pred_prob" in answer for answer in answers):
            found["brier"] = brier(_of_chosen("pred_prob", table, rows, chosen, names).astype(np.float64), target)
    if "target_reg" in table.targets and all("pred_reg" in answer for answer in answers):
        value = _of_chosen("pred_reg", table, rows, chosen, names).astype(np.float64)
        error = value - table.targets["target_reg"][rows].astype(np.float64)
        setting = costs.get("reg", {})
        if setting.get("kind") == "smooth_l1":
            found["smooth_l1"] = smooth_l1(error, setting["beta"], setting.get("clamp"))
        if setting.get("kind") == "absolute" and (table.targets["target_reg"] == 1).all():
            found["score"] = value  # imported scores: the cost of one is its distance from the best, 1
        else:
            found["mean_absolute_error"] = np.abs(error)
    if "target_text" in table.targets and all("pred_text" in answer for answer in answers):
        said = _of_chosen("pred_text", table, rows, chosen, names)
        found |= agreements(said.tolist(), table.targets["target_text"][rows].tolist())
    return found


def sample_metrics(table: CostTable, chosen: np.ndarray | None, names: list[str], costs: dict) -> dict[str, np.ndarray]:
    """Those of :func:`task_metrics` that are means over samples, before the mean: float64 (n,) each.

    Nothing where a sample has no answer.
    """
    rows = np.arange(len(table))
    if chosen is None:
        chosen = np.zeros(len(table), dtype=np.int64)
    if table.failed is not None:
        places = {name: place for place, name in enumerate(table.predictions)}
        if table.failed[rows, np.array([places[name] for name in names])[chosen]].any():
            return {}
    return _of_samples(table, rows, chosen, names, costs)


def balanced_accuracy(target: np.ndarray, answer: np.ndarray) -> float:
    """Mean over the classes that occur of the share of a class that is told right.

    Args:
        target: class index, (n,).
        answer: class index, (n,).
    """
    _, labels, counts = np.unique(target, return_inverse=True, return_counts=True)
    return float((np.bincount(labels, weights=answer == target) / counts).mean())


def area_under_precision(target: np.ndarray, score: np.ndarray) -> float:
    """Area under the precision-recall curve as a step function: ``sum_t (R_t - R_{t-1}) P_t`` over distinct scores.

    Args:
        target: 0 or 1, (n,), at least one 1.
        score: (n,).
    """
    _, group, counts = np.unique(-score, return_inverse=True, return_counts=True)
    positives = np.bincount(group, weights=target == 1)
    precision = np.cumsum(positives) / np.cumsum(counts)
    return float((positives * precision).sum() / positives.sum())


def auroc(target: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: the Mann-Whitney statistic, ties counting a half.

    Args:
        target: 0 or 1, (n,), both present.
        score: (n,).
    """
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each distinct score
    positives = int((target == 1).sum())
    rank_sum = ranks[inverse][target == 1].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * (len(target) - positives)))
