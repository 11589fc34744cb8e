"""How much of agents' costs predictions explain, on samples that they were not fitted on."""

from __future__ import annotations

import numpy as np

from l2d.rejector.best.folds import contrasts
from l2d.rejector.evaluation.intervals import Interval, paired_intervals

NORMAL_FROM = 200  # samples: with 500 agents a bootstrap of each would take a minute


def explained_shares(
    errors: list[np.ndarray], spreads: list[np.ndarray], groups: list[np.ndarray | None]
) -> list[Interval | None]:
    """``1 - mean(error) / mean(spread)`` of several quantities, with 95 % intervals; None where nothing varies.

    The interval is that of the mean of the influence function, ``-(error - ratio * spread) / mean(spread)``.

    Args:
        errors: squared errors of predictions, (n,) each, of samples that may differ from one to the next.
        spreads: those of the mean that is compared with.
        groups: of the same samples; of one value are not independent. None: all are.
    """
    found: list[Interval | None] = []
    for error, spread, members in zip(errors, spreads, groups, strict=True):
        if len(error) < 2 or not spread.mean() > 0:
            found.append(None)
            continue
        ratio = error.mean() / spread.mean()
        influence = 1 - ratio - (error - ratio * spread) / spread.mean()
        units = None if members is None else np.unique(members, return_inverse=True)[1]
        found += paired_intervals([influence], units, normal_from=NORMAL_FROM)
    return found


def of_agents(
    predicted: np.ndarray, raw: np.ndarray, means: np.ndarray, groups: np.ndarray | None = None
) -> list[list[Interval | None]]:
    """Explained share of each agent's cost in each task: agents x tasks.

    Args:
        predicted: (n, agents, tasks).
        raw: likewise, NaN where an agent has no answer.
        means: what is compared with, the agents' means on the fitted samples, (agents, tasks).
        groups: of the samples, (n,).
    """
    found = []
    for agent in range(raw.shape[1]):
        there = ~np.isnan(raw[:, agent]).any(axis=1)
        tasks = range(raw.shape[2])
        true = raw[there, agent].astype(np.float64)
        error, spread = (true - predicted[there, agent]) ** 2, (true - means[agent]) ** 2
        members = None if groups is None else groups[there]
        found.append(
            explained_shares(
                [error[:, task] for task in tasks], [spread[:, task] for task in tasks], [members for _ in tasks]
            )
        )
    return found


def of_differences(
    predicted: np.ndarray, raw: np.ndarray, means: np.ndarray, groups: np.ndarray | None = None
) -> list[Interval | None]:
    """The same of the differences between agents' costs in each task, over the agents that answered a sample."""
    answered = ~np.isnan(raw).any(axis=2)
    several = answered.sum(axis=1) > 1
    there = answered[several]
    true = contrasts(raw[several].astype(np.float64), there)[0]
    ours = contrasts(predicted[several], there)[0]
    constant = contrasts(np.broadcast_to(means, predicted[several].shape), there)[0]
    members = None if groups is None else groups[several]
    tasks = range(raw.shape[2])
    error, spread = ((true - ours) ** 2).sum(axis=1), ((true - constant) ** 2).sum(axis=1)
    return explained_shares(
        [error[:, task] for task in tasks], [spread[:, task] for task in tasks], [members for _ in tasks]
    )
