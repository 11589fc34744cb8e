"""Task metrics of a system that answers each sample with one agent's prediction."""

from __future__ import annotations

import numpy as np

from data.measures import brier, smooth_l1

from .detection_metrics import mixed_detections, system_map
from .table import CostTable


def task_metrics(table: CostTable, chosen: np.ndarray, names: list[str], costs: dict) -> dict[str, float]:
    """Metrics that apply to the cache's tasks.

    Args:
        table: with targets and predictions.
        chosen: position in ``names`` of who answers each sample, (n,).
        names: agents or references.
        costs: the cache's cost table: ``smooth_l1`` is the cached cost where that is the regression cost.

    Returns:
        ``accuracy`` in [0, 1]; ``brier`` and, with two classes, ``auroc`` where every one of them gives probabilities;
        ``smooth_l1`` as configured in ``[costs.reg]``, clamp included;
        ``mean_absolute_error`` in the target's unit; ``map`` and ``map_50`` of the detections on all images together.
        Where failures are recorded: ``answered``, the share of samples
        that got an answer, and the others over these alone.
    """
    metrics: dict[str, float] = {}
    rows = np.arange(len(table))
    if table.failed is not None and table.failed.any():
        columns = [list(table.predictions).index(name) for name in names]
        answered = ~table.failed[:, columns][rows, chosen]
        metrics["answered"] = float(answered.mean())
        rows, chosen = rows[answered], chosen[answered]
        if not len(rows):
            return metrics
    answers = [table.predictions[name] for name in names]

    def of_chosen(column: str) -> np.ndarray:
        return np.stack([answer[column] for answer in answers], axis=1)[rows, chosen]

    if "target_cla" in table.targets and all("pred_cla" in answer for answer in answers):
        target = table.targets["target_cla"][rows]
        metrics["accuracy"] = float((of_chosen("pred_cla") == target).mean())
        if all("pred_prob" in answer for answer in answers):
            probabilities = of_chosen("pred_prob").astype(np.float64)
            metrics["brier"] = float(brier(probabilities, target).mean())
            if probabilities.shape[1] == 2 and 0 < target.mean() < 1:
                metrics["auroc"] = auroc(target, probabilities[:, 1])
    if "target_reg" in table.targets and all("pred_reg" in answer for answer in answers):
        value, truth = of_chosen("pred_reg").astype(np.float64), table.targets["target_reg"][rows].astype(np.float64)
        setting = costs.get("reg", {})
        if setting.get("kind") == "smooth_l1":
            metrics["smooth_l1"] = float(smooth_l1(value - truth, setting["beta"], setting.get("clamp")).mean())
        metrics["mean_absolute_error"] = float(np.abs(value - truth).mean())
    if "target_boxes" in table.targets and all("pred_boxes" in answer for answer in answers):
        detections = mixed_detections([answer["pred_boxes"][rows] for answer in answers], chosen)
        metrics |= system_map(table.targets["target_boxes"][rows], detections)
    return metrics


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
