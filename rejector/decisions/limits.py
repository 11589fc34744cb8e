"""The search for rules within limits: budgets, caps for every input, capacities of batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np

from l2d.data.errors import UsageError
from l2d.rejector.decisions.budget import best_worth, within_capacities
from l2d.rejector.decisions.capacity import parse_capacities
from l2d.rejector.decisions.reading import Read
from l2d.rejector.decisions.rule import Cap, Rule
from l2d.rejector.decisions.search import Search
from l2d.rejector.decisions.walk import walk
from l2d.rejector.decisions.wanted import Wanted
from l2d.rejector.decisions.world import World

MOST_STATES = 400  # sets of agents that are looked at

#: Class of rules, out of :data:`l2d.rejector.decisions.wanted.KINDS` -> its best rule.
MAKERS: dict[str, Callable[[Search], Rule]] = {
    "router": lambda search: search.ranked(1),
    "topk": lambda search: search.ranked(search.depth, chosen=True),
    "committee": lambda search: search.committee(),
    "cascade": lambda search: search.cascade(),
    "adaptive": lambda search: search.adaptive(),
}


def search_of(read: Read, wanted: Wanted) -> Search:
    """The search for what is wanted; ``only`` names the agents that are looked at, where there are too many.

    Raises:
        UsageError: an option is wrong, or a limit cannot be met.
    """
    wanted.check()
    if wanted.budget is not None or "price" in wanted.caps:
        _check_prices(read)
    search = Search(
        read.fit, depth=min(wanted.depth, read.fit.num_agents), combining=wanted.combining, abstain=wanted.abstain,
        caps=_caps(read, wanted), batch=wanted.batch, wait=wanted.wait,
        capacities=() if wanted.capacity is None else parse_capacities(
            wanted.capacity, read.fit.agents, every=wanted.every
        ),
    )  # fmt: skip
    search.only = fewer_agents(search)
    return search


def rule_of(search: Search, kind: str, wanted: Wanted, validation: World) -> tuple[Rule, float]:
    """The best rule of a class within budget and capacities, and what a unit of the price is worth then.

    Raises:
        UsageError: the budget cannot be met.
    """
    maker = MAKERS[kind]
    if not search.capacities:
        return _at_budget(search, maker, wanted, validation, kind)
    return within_capacities(search, lambda: _at_budget(search, maker, wanted, validation, kind), validation)


def _at_budget(
    search: Search, maker: Callable[[Search], Rule], wanted: Wanted, validation: World, kind: str
) -> tuple[Rule, float]:
    if wanted.budget is None:
        return maker(search.at(0.0)), 0.0
    orders: dict[tuple[int, ...], None] = {}

    def remembering(some: Search) -> Rule:
        rule = maker(some)
        orders[getattr(rule, "order", ())] = None
        return rule

    try:
        found = best_worth(search, remembering, wanted.budget, validation, steps=8)
        tried = [found]
        for order in list(orders)[-4:] if kind == "cascade" else ():  # the best order jumps as money's worth changes
            with suppress(ValueError):
                tried.append(
                    best_worth(search, partial(Search.cascade, order=order), wanted.budget, validation, steps=8)
                )
        return min(tried, key=lambda each: float(walk(each[0], validation, held_out=True).loss.mean()))
    except ValueError as error:
        raise UsageError(
            f"budget <= {wanted.budget:g} cannot be met by a {kind}: {error}", hint="allow more, or give --abstain"
        ) from error


def _check_prices(read: Read) -> None:
    unknown = [name for j, name in enumerate(read.fit.agents) if np.isnan(read.fit.price[:, j]).any()]
    if unknown:
        raise UsageError(
            f"the price of {', '.join(unknown)} is not known", where=read.cache.path, hint="give it in the recipe"
        )


def _caps(read: Read, wanted: Wanted) -> tuple[Cap, ...]:
    found = []
    for name, limit in wanted.caps.items():
        if name == "price":
            there = np.where(read.fit.known.available, read.fit.price, 0.0)
            uses = there.max(axis=0)  # what an answer took at most: all that is known before it is asked for
            found.append(Cap(name, limit, tuple(uses.tolist()), paid=read.money))
            continue
        each = read.seconds if name == "seconds" else read.gflops
        unknown = [agent for agent, value in zip(read.fit.agents, each, strict=True) if value is None]
        if unknown:
            raise UsageError(f"--cap {name}: the {name} of {', '.join(unknown)} are not known", where=read.cache.path,
                             hint="give them in the recipe, or cap the price")  # fmt: skip
        found.append(Cap(name, limit, tuple(float(value) for value in each if value is not None)))
    for cap in found:
        if min(cap.uses) > cap.limit:
            raise UsageError(
                f"--cap {cap.name}={cap.limit:g}: every agent takes more", hint=f"the least is {min(cap.uses):g}"
            )
    return tuple(found)


def fewer_agents(search: Search) -> list[int]:
    """The agents to look at, where all sets of them are too many: those that gain most for a router, one by one."""
    count, depth = search.world.num_agents, search.depth
    most = count
    while most > 2 and sum(math.comb(most, size) for size in range(depth + 1)) > MOST_STATES:
        most -= 1
    if most == count:
        return list(range(count))
    world = search.world
    total = world.known.predicted + search.asking.mean(axis=0)
    real = np.where(np.isfinite(world.costs), world.costs + search.asking, np.inf)
    chosen: list[int] = []
    while len(chosen) < most:
        means = {}
        for agent in set(range(count)) - set(chosen):
            some = [*chosen, agent]
            best = np.where(np.isfinite(real[:, some]), total[:, some], np.inf).argmin(axis=1)
            cost = real[np.arange(len(real)), np.array(some)[best]]
            means[agent] = float(
                np.where(np.isfinite(cost), cost, np.nanmax(cost[np.isfinite(cost)], initial=1.0)).mean()
            )
        chosen.append(min(means, key=means.__getitem__))
    return sorted(chosen)
