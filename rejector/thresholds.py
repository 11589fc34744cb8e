"""Confidence thresholds, Chow's rule: the model answers where it is sure, one expert where it is not.

An agent with a cost of infinity is unavailable: model and expert stand in for each other.
"""

from __future__ import annotations

import numpy as np

from l2d.data.samples.boxes import Boxes


def detector_confidence(boxes: Boxes, answered: np.ndarray | None = None) -> np.ndarray:
    """How sure a detector is of each image, float64 (n,): the highest score on it, 0 where it found nothing.

    Args:
        boxes: what it found on n images.
        answered: bool (n,), where it has answered; minus infinity elsewhere. None: everywhere.
    """
    highest = np.zeros(len(boxes))
    np.maximum.at(highest, boxes.image, boxes.score)
    return highest if answered is None else np.where(answered, highest, -np.inf)


def choose_threshold(confidence: np.ndarray, costs: np.ndarray) -> tuple[int, float] | None:
    """Chow's rule on validation: which expert to defer to where the model's confidence is below which threshold.

    Of all experts and thresholds the pair with the lowest mean cost; ties to the lowest index, then to the higher
    threshold. An expert that is unavailable leaves the sample to the model, and the other way round.

    Args:
        confidence: of the model, (n,); minus infinity where it has no answer.
        costs: total costs (n, agents), the model first.

    Returns:
        Index of the expert, and the threshold, infinity if everything is deferred; None if no expert can stand in
        wherever the model is unavailable.
    """
    order = np.argsort(confidence, kind="stable")
    ordered = confidence[order]
    last = np.concatenate([[True], ordered[1:] != ordered[:-1], [True]])  # thresholds that split no group of ties
    best: tuple[float, int, float] | None = None
    for expert in range(1, costs.shape[1]):
        kept, deferred = stand_in(costs[order, 0], costs[order, expert])
        if not np.isfinite(kept).all():
            continue
        totals = kept.sum() + np.concatenate([[0.0], np.cumsum(deferred - kept)])
        totals[~last] = np.inf
        count = len(totals) - 1 - int(totals[::-1].argmin())  # deferred at the lowest total, the most at a tie
        if best is None or totals[count] < best[0]:
            best = (float(totals[count]), expert, float(ordered[count]) if count < len(ordered) else np.inf)
    return None if best is None else best[1:]


def stand_in(kept: np.ndarray, deferred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Costs of the model and of an expert (n,), each answering for the other where that one is unavailable."""
    kept, deferred = np.asarray(kept, dtype=np.float64), np.asarray(deferred, dtype=np.float64)
    return np.where(np.isfinite(kept), kept, deferred), np.where(np.isfinite(deferred), deferred, kept)


def threshold_losses(confidence: np.ndarray, costs: np.ndarray, expert: int, threshold: float) -> np.ndarray:
    """Loss of each sample (n,) where an expert answers below a threshold and the model from it on."""
    kept, deferred = stand_in(costs[:, 0], costs[:, expert])
    return np.where(confidence < threshold, deferred, kept)


def kept_by_model(confidence: np.ndarray, costs: np.ndarray, expert: int, threshold: float) -> np.ndarray:
    """Where the model answers, bool (n,): from the threshold on, and below it where the expert is unavailable."""
    model, other = np.isfinite(costs[:, 0]), np.isfinite(costs[:, expert])
    return model & ((confidence >= threshold) | ~other)


def same_coverage_losses(confidence: np.ndarray, costs: np.ndarray, expert: int, kept_share: float) -> np.ndarray:
    """Loss of each sample (n,) where the model keeps a given share, the samples it is surest of.

    Where the share ends within a group of tied confidences, the expectation over which of them are kept.
    """
    kept, deferred = stand_in(costs[:, 0], costs[:, expert])
    _, group, counts = np.unique(-confidence, return_inverse=True, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    share = np.clip((kept_share * len(confidence) - before) / counts, 0.0, 1.0)[group]
    return share * kept + (1 - share) * deferred


def same_coverage_expert(confidence: np.ndarray, costs: np.ndarray, kept_share: float) -> int:
    """The expert to defer to where the model keeps a share: the one of the lowest mean cost on validation."""
    means = [same_coverage_losses(confidence, costs, expert, kept_share).mean() for expert in range(1, costs.shape[1])]
    return 1 + int(np.argmin(means))


def model_confidence(probabilities: np.ndarray, answered: np.ndarray | None = None) -> np.ndarray:
    """The model's highest class probability (n,), from (n, classes); minus infinity where it has no answer."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    return confidence if answered is None else np.where(answered, confidence, -np.inf)
