"""A mean budget: the least worth of money at which the rules of a class keep to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from l2d.rejector.decisions.rule import Rule
from l2d.rejector.decisions.search import Search
from l2d.rejector.decisions.walk import walk
from l2d.rejector.decisions.world import World


def best_worth(
    search: Search, make: Callable[[Search], Rule], budget: float, world: World, *, steps: int = 12
) -> tuple[Rule, float]:
    """The rule of a class that keeps a mean price, and what a unit of the price is then worth.

    Args:
        make: a function of a :class:`Search` that gives a rule.
        budget: mean of ``world.price`` along the paths, at most.
        world: on which it is kept, decided by models that have not seen it.

    Returns:
        The rule of the least worth found that keeps the budget; with None where even the dearest worth does not.

    Raises:
        ValueError: no worth of money keeps to the budget.
    """

    def spent(worth: float) -> tuple[Rule, float]:
        rule = make(search.at(worth))
        return rule, float(walk(rule, world, held_out=True).price.mean())

    rule, price = spent(0.0)
    if price <= budget * (1 + 1e-9):
        return rule, 0.0
    finite = np.isfinite(search.world.costs)
    scale = float(search.world.costs[finite].std()) or 1.0
    unit = float(search.world.price[finite].std()) or 1.0
    low, high, best = 0.0, scale / unit, None
    for _ in range(24):
        rule, price = spent(high)
        if price <= budget * (1 + 1e-9):
            best = (rule, high)
            break
        low, high = high, 3 * high
    if best is None:
        raise ValueError(f"the cheapest agents take {price:.6g} for an input")
    for _ in range(steps):
        middle = (low + high) / 2
        rule, price = spent(middle)
        if price <= budget * (1 + 1e-9):
            best, high = (rule, middle), middle
        else:
            low = middle
    return best
