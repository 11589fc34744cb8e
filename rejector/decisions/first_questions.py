"""Which samples to ask a new agent about first: some that stand for all."""

from __future__ import annotations

import numpy as np

from l2d.rejector.decisions.world import World


def spread_out(world: World, count: int, seed: int = 0, among: np.ndarray | None = None) -> list[int]:
    """Samples that are spread over what is predicted of the agents, each as likely to be chosen as any other.

    The local pivotal method (Grafström, Lundström and Schelin, *Spatially Balanced Sampling through the Pivotal
    Method*, Biometrics 2012): two samples that are near each other compete for a place, so that neighbours are seldom
    both chosen, and every region has its share. A mean over them is unbiased, and varies less than that of a draw.

    Args:
        world: with A agents, by whose predicted costs samples are near or far.
        count: how many; all if there are not more.
        seed: of the draw.
        among: rows to choose from, rising; None: all.

    Returns:
        Rows of the world, in a random order, so that the first ones of them are a draw as well.
    """
    rows = np.arange(len(world)) if among is None else among
    generator = np.random.default_rng(seed)
    if count >= len(rows):
        return generator.permutation(rows).tolist()
    predicted = world.known.predicted[rows]
    scale = predicted.std(axis=0)
    x = (predicted - predicted.mean(axis=0)) / np.where(scale > 1e-9, scale, 1.0)
    chance = np.full(len(rows), count / len(rows))
    open_ = np.ones(len(rows), bool)  # not decided yet
    while open_.sum() > 1:
        left = np.flatnonzero(open_)
        one = int(generator.choice(left))
        distance = ((x[left] - x[one]) ** 2).sum(axis=1)
        distance[left == one] = np.inf
        other = int(left[distance.argmin()])
        both = chance[one] + chance[other]
        if both < 1:
            gets = generator.random() * both < chance[one]
            chance[one], chance[other] = (both, 0.0) if gets else (0.0, both)
        else:
            gets = generator.random() * (2 - both) < 1 - chance[other]
            chance[one], chance[other] = (1.0, both - 1) if gets else (both - 1, 1.0)
        for row in (one, other):
            if chance[row] < 1e-9 or chance[row] > 1 - 1e-9:
                open_[row] = False
    chosen = np.flatnonzero(chance > 0.5)
    return generator.permutation(rows[chosen]).tolist()
