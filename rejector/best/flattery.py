"""Agents that training samples flatter: what they cost there is less than what they cost on samples new to them.

An agent may have been fitted on the very samples that the rejector learns from: the model of a two-stage cache often
was, on the training split. Its costs there are too low, by a sixth on SUPPORT2, and a rejector that believes them asks
it too often. Validation samples are new to every agent. So each agent's paid cost by predicted cost is compared
between the splits, and predictions are multiplied by what the ratio on validation says, as far as it can be believed:
by empirical Bayes, with one variance of the logarithm of the ratios of all agents and tasks (Efron and Morris, *Stein's
estimation rule and its competitors*, JASA 1973). Where all ratios differ as much as chance lets them, nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from l2d.rejector.best.folds import ROWS_AT_ONCE

FEWEST = 20  # answers in each split, below which nothing is said of an agent
MOST = 3.0  # what a prediction is multiplied or divided by at most


def flattery(
    predicted: Callable[[slice], np.ndarray], costs: np.ndarray, answered: np.ndarray, held: np.ndarray | None
) -> np.ndarray:
    """What to multiply predicted costs by, (agents, tasks); 1 where nothing is known of splits.

    Args:
        predicted: held-out predictions of some rows, (rows, agents, tasks).
        costs: (n, agents, tasks).
        answered: bool (n, agents).
        held: which samples are new to every agent, bool (n,).
    """
    shape = costs.shape[1:]
    if held is None or held.all() or not held.any():
        return np.ones(shape)
    # In each split: answers, paid, predicted, squared residuals.
    sums = np.zeros((2, 4, *shape))
    for start in range(0, len(costs), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        said, paid = predicted(rows).astype(np.float64), costs[rows].astype(np.float64)
        for split in (0, 1):
            there = (answered[rows] & (held[rows] == bool(split))[:, None])[:, :, None]
            values = (np.broadcast_to(there, paid.shape), paid, said, (paid - said) ** 2)
            sums[split] += np.stack([np.where(there, value, 0.0).sum(axis=0) for value in values])
    number, paid, said, squares = np.moveaxis(sums, 1, 0)
    usable = (number >= FEWEST).all(axis=0) & (paid > 0).all(axis=0) & (said > 0).all(axis=0)
    if not usable.any():
        return np.ones(shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = paid / said
        mean = said / number
        # The deviation of a ratio of sums, by residuals about their mean.
        errors = np.maximum(squares / number - ((paid - said) / number) ** 2, 0) / number / mean**2
        apart, error = np.log(ratio[1] / ratio[0])[usable], errors.sum(axis=0)[usable]
    spread = max(0.0, float((apart**2 - error).mean()))
    believed = spread / np.maximum(spread + error, 1e-300) if spread > 0 else 0.0
    found = np.ones(shape)
    found[usable] = 1 + believed * (np.clip(ratio[1][usable], 1 / MOST, MOST) - 1)
    return found
