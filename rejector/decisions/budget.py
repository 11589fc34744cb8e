"""A mean budget and capacities: what money, or asking a scarce agent, has to be worth for a rule to keep to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

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


def within_capacities(
    search: Search, make: Callable[[], tuple[Rule, float]], world: World, *, steps: int = 4
) -> tuple[Rule, float]:
    """The rule that costs least on average once agents are full: with or without a toll on scarce agents.

    A toll is what asking an agent takes besides, just enough that on average no more inputs ask it than it can answer.
    Without one a rule sends too many to it, and those that lose least are turned away.

    Args:
        make: gives a rule at the tolls of the search, and the worth of money with it.
        world: on which rules are compared, each sample decided by models that have not seen it.
    """
    limited = {each.agent: each.of(search.batch or len(world)) / (search.batch or len(world)) for each in
               search.capacities}  # fmt: skip
    finite = np.isfinite(search.world.costs)
    most = 2 * float(search.world.costs[finite].max() - search.world.costs[finite].min()) or 1.0
    tolls = np.zeros(search.world.num_agents)

    def at(values: np.ndarray) -> tuple[Rule, float]:
        search.tolls = values.copy()
        return make()

    def share(rule: Rule, agent: int) -> float:
        return float((walk(replace(rule, capacities=()), world, held_out=True).path == agent).any(axis=1).mean())

    tried = [at(tolls)]
    for _ in range(2 if len(limited) > 1 else 1):
        for agent, limit in limited.items():
            tolls[agent] = 0.0
            found = at(tolls) if tolls.any() else tried[0]
            if share(found[0], agent) <= limit:
                continue
            low, high = 0.0, most
            for _ in range(steps):
                tolls[agent] = (low + high) / 2
                found = at(tolls)
                low, high = (low, tolls[agent]) if share(found[0], agent) <= limit else (tolls[agent], high)
            tolls[agent] = high
        if tolls.any():
            tried.append(at(tolls))
        else:
            break
    search.tolls = None
    return min(tried, key=lambda each: _mean_loss(each[0], world))


def _mean_loss(rule: Rule, world: World) -> float:
    loss = walk(rule, world, held_out=True).loss
    return float(np.where(np.isfinite(loss), loss, np.inf).mean())
