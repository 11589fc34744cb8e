"""Several agents' answers as one: by vote, by mean, or weighted by how likely each agent is to be right.

Weights of a weighted vote are log-odds of being right, which is the best vote where agents err independently and wrong
answers spread evenly (Nitzan and Paroush, *Optimal Decision Rules in Uncertain Dichotomous Choice Situations*, 1982;
with K classes ``log((K - 1) p / (1 - p))``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from l2d.rejector.decisions.fusion import fuse, keep_best
from l2d.rejector.decisions.world import Known

RULES = ("vote", "mean", "weighted")
SURE = 0.02  # no agent is taken to be right or wrong more surely than by this


def log_odds(right: np.ndarray, num_classes: int) -> np.ndarray:
    """What a vote of an agent weighs that is right with this chance among K classes."""
    sure = np.clip(right, SURE, 1 - SURE)
    return np.log(sure / (1 - sure)) + np.log(max(1, num_classes - 1))


def support(votes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What speaks for each agent's answer: the weights of all agents that gave the same, (n, m) from (n, m)."""
    found = weights.copy()
    for one in range(votes.shape[1]):
        for other in range(one):
            same = votes[:, one] == votes[:, other]
            found[:, one] += same * weights[:, other]
            found[:, other] += same * weights[:, one]
    return found


def posterior(votes: np.ndarray, weights: np.ndarray, num_classes: int) -> np.ndarray:
    """Chance that each agent's answer is right if agents err independently, (n, m); see :func:`log_odds`."""
    speaks = np.exp(np.clip(support(votes, weights), -30, 30))
    first = np.ones(votes.shape, bool)  # an answer that several gave is one class
    for j in range(1, votes.shape[1]):
        first[:, j] = (votes[:, :j] != votes[:, j : j + 1]).all(axis=1)
    distinct = first.sum(axis=1)
    total = (speaks * first).sum(axis=1) + np.maximum(num_classes - distinct, 0)
    return speaks / total[:, None]


def combine(known: Known, members: Sequence[int], rule: str, num_classes: int) -> dict[str, Any]:
    """The committee's answer to each input.

    Args:
        known: inputs that all members have answered.
        members: positions of the agents.
        rule: out of :data:`RULES`. ``vote``: the class that most gave, a tie to the one that more speaks for, and the
            median number. ``mean``: mean probabilities (a class alone counts as sure) and mean number. ``weighted``:
            probabilities weighted by log-odds of being right, numbers by one over the predicted cost. Of boxes ``vote``
            keeps the best of those that overlap (non-maximum suppression), ``mean`` is weighted boxes fusion of equal
            detectors, and ``weighted`` weighs each by one over its predicted cost.

    Returns:
        ``pred_cla`` and ``pred_prob`` where there are classes, ``pred_reg`` where there are numbers, ``pred_boxes``
        (:class:`~l2d.data.samples.boxes.Boxes`) where there are boxes.
    """
    who, answers = list(members), known.answers
    n = len(known)
    found: dict[str, Any] = {}
    if answers.classes is not None:
        votes = answers.classes[:, who]
        right = np.full((n, len(who)), 0.7) if known.right is None else known.right[:, who]
        weights = np.maximum(log_odds(right, num_classes), 1e-3)
        if rule == "vote":
            speaks = support(votes, np.ones(votes.shape)) + 1e-6 * support(votes, weights)
            won = votes[np.arange(n), speaks.argmax(axis=1)]
            chances = _shares(votes, np.ones(votes.shape), num_classes)
        else:
            if rule == "mean":
                weights = np.ones(votes.shape)
            chances = _shares(votes, weights, num_classes)
            if answers.chances is not None:
                share = weights / weights.sum(axis=1, keepdims=True)
                chances = np.einsum("nm,nmk->nk", share, answers.chances[:, who].astype(np.float64))
            won = chances.argmax(axis=1)
        found |= {"pred_cla": won, "pred_prob": chances}
    if answers.numbers is not None:
        numbers = answers.numbers[:, who]
        if rule == "vote":
            found["pred_reg"] = np.median(numbers, axis=1)
        elif rule == "mean":
            found["pred_reg"] = numbers.mean(axis=1)
        else:
            weights = 1 / np.maximum(known.predicted[:, who], 1e-3)
            found["pred_reg"] = (weights * numbers).sum(axis=1) / weights.sum(axis=1)
    if answers.boxes is not None:
        some = [answers.boxes[agent] for agent in who]
        if rule == "vote":
            found["pred_boxes"] = keep_best(some)
        else:
            weights = np.ones((n, len(who))) if rule == "mean" else 1 / np.maximum(known.predicted[:, who], 1e-2)
            found["pred_boxes"] = fuse(some, weights)
    return found


def _shares(votes: np.ndarray, weights: np.ndarray, num_classes: int) -> np.ndarray:
    """Share of the weights that each class has, float64 (n, classes)."""
    n = len(votes)
    width = max(num_classes, int(votes.max(initial=0)) + 1)
    flat = (np.arange(n)[:, None] * width + np.maximum(votes, 0)).ravel()
    total = np.bincount(flat, weights=weights.ravel(), minlength=n * width).reshape(n, width)
    return total / total.sum(axis=1, keepdims=True)
