"""A grid of rejectors: methods x lambda x beta x nu x seeds over the same cached costs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from l2d.data.cache.schema import digest
from l2d.data.errors import UsageError, nearest
from l2d.rejector.costs import (
    CostWeights,
    expression_costs,
    query_costs,
    require_prices,
    total_costs,
    worth_of_money,
)
from l2d.rejector.methods import METHODS

if TYPE_CHECKING:
    from torch import Tensor

    from l2d.data.cache.reader import CostCache

LONGEST_NAME = 120


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """One rejector to train.

    ``weights`` is what it is evaluated on; :meth:`CostWeights.trained_on` says what its ``method`` trains on.
    ``beta`` is as the user gave it; ``query_costs`` is what that means for each agent, beside what its answers are
    paid: ``paid`` says how many units of loss a unit of money is worth, and None that prices per sample do not count.
    """

    run_id: str
    method: str
    weights: CostWeights
    beta: float | tuple[tuple[str, float], ...]
    query_costs: tuple[float, ...]
    nu: float
    seed: int
    cost: str | None = None  # SQL expression in place of the weighted sum
    paid: float | None = None

    def cost_weights(self, *, train: bool = False) -> np.ndarray:
        """Weights of the columns of raw costs, float64: of tasks (or the one cost of ``--cost``), and of what is paid.

        Args:
            train: those that its method trains on.
        """
        weights = self.weights.trained_on(self.method) if train else self.weights
        values = [1.0] if self.cost is not None else [weight for _, weight in weights.by_task]
        return np.array(values + ([] if self.paid is None else [self.paid]), dtype=np.float64)

    def charged(self, raw: Tensor) -> Tensor:
        """What it takes to ask each agent, in units of loss: ``beta`` and what the answer is paid, (n, agents).

        Args:
            raw: raw costs, (n, agents, columns).
        """
        charged = raw.double().new_tensor(self.query_costs).expand(raw.shape[:2])
        return charged if self.paid is None else charged + self.paid * raw[:, :, -1].double()

    @property
    def charges(self) -> bool:
        """Whether asking costs anything."""
        return any(self.query_costs) or bool(self.paid)

    @property
    def charge_order(self) -> tuple[float, float]:
        """How dear asking is, to put settings in order."""
        return self.paid or 0.0, sum(self.query_costs)

    @property
    def setting(self) -> tuple:
        """Everything but the seed: points of one setting are repetitions."""
        return (self.method, self.weights, self.beta, self.nu, self.cost)

    @property
    def beta_text(self) -> str:
        if isinstance(self.beta, tuple):
            return ",".join(f"{name}={value:g}" for name, value in self.beta)
        return f"{self.beta:g}"

    def raw_costs(self, raw: Tensor, tasks: list[str]) -> Tensor:
        """Raw costs by task (n, A, T); with ``--cost`` the one cost in their place (n, A, 1). Prices come behind."""
        if self.cost is None:
            return raw
        import torch

        found = torch.from_numpy(expression_costs(raw[:, :, : len(tasks)].float().numpy(), tasks, self.cost))
        return found if self.paid is None else torch.cat([found.to(raw.dtype), raw[:, :, len(tasks) :]], dim=2)

    def total_costs(self, raw: Tensor, tasks: list[str], *, free: bool = False) -> Tensor:
        """Total costs (n, A) that it is evaluated on, from raw ones (n, A, T): ``lambda`` or ``--cost``, ``beta``.

        In the bits of ``raw``: with prices it has one more column, what was paid, and is float64. Infinite where an
        agent is unavailable. ``free``: without query costs, for any number of agents.
        """
        beta = raw.new_zeros(raw.shape[1]) if free else raw.new_tensor(self.query_costs)
        costs = total_costs(self.raw_costs(raw, tasks), raw.new_tensor(self.cost_weights().tolist()), beta)
        return costs.masked_fill(costs.isnan(), math.inf)


def chosen_agents(cache: CostCache, names: list[str]) -> CostCache:
    """A cache with some of its agents, in its own order, the model among them.

    Agent 0 may be left out where it is one of several: where asking it is not free, and it shows the rejector nothing.

    Raises:
        UsageError: an unknown agent, or the model is not named.
    """
    agents = [agent.name for agent in cache.agents]
    shows = any(made.get("agent") == agents[0] for made in cache.record.inputs.values() if isinstance(made, dict))
    for name in names:
        if name not in agents:
            raise UsageError(f"--only names agent {name!r}", hint=nearest(name, agents, "the agents are"))
    if agents[0] not in names and (cache.agents[0].price == 0 or shows):
        raise UsageError(f"--only leaves out the model, {agents[0]!r}", hint=f"--only {','.join([agents[0], *names])}")
    return cache.only([name for name in agents if name in names])


def make_grid(
    cache: CostCache,
    *,
    methods: list[str],
    weights: list[dict[str, float]],
    betas: list[float | dict[str, float]],
    nus: list[float],
    seeds: list[int],
    cost: str | None = None,
) -> list[GridPoint]:
    """All combinations, checked against a cache. Empty ``weights`` or ``betas`` mean the recipe's defaults.

    Raises:
        UsageError: an unknown method, task or agent, or a value out of range.
    """
    defaults = cache.record.defaults
    tasks = cache.record.tasks
    given_weights = bool(weights)
    weights = weights or [defaults.get("lambda", {})]
    betas = betas or [defaults.get("beta", 0.0)]
    for method in methods:
        if method not in METHODS:
            known = nearest(method, METHODS, "the methods are")
            raise UsageError(f"there is no method {method!r}", hint=known)
    for nu in nus:
        if not 0 <= nu < float("inf"):
            raise UsageError(f"nu = {nu}", hint="nu is a number >= 0: 0 sum-exponential, 1 log-softmax, 2 MAE")
    for name, values in (("method", methods), ("nu", nus), ("seed", seeds)):
        if not values:
            raise UsageError(f"no {name} is given", hint=f"give at least one {name}")
    if cost is not None and (list(methods) not in (["multi-task"], ["best"]) or given_weights):
        raise UsageError("--cost replaces the weighted sum, so it goes with one method and no lambda", hint="drop them")
    parsed_weights = [CostWeights.parse(values, tasks) for values in weights]
    points = []
    for method, weight, beta, nu, seed in itertools.product(methods, parsed_weights, betas, nus, seeds):
        if not METHODS[method].has_nu:
            if nu != nus[0]:
                continue  # they have no nu: one point, whatever nus the others get
            nu = 1.0
        weight.trained_on(method)  # refuses methods whose task is not there
        frozen = tuple(sorted(beta.items())) if isinstance(beta, dict) else float(beta)
        paid, rest = worth_of_money(beta, [agent.name for agent in cache.agents])
        if paid is not None:
            require_prices(cache)
        costs = tuple(query_costs(rest, cache.agents).tolist())
        point = GridPoint(
            run_id="",
            method=method,
            weights=weight,
            beta=frozen,
            query_costs=costs,
            nu=float(nu),
            seed=int(seed),
            cost=cost,
            paid=paid,
        )
        parts = [method, f"beta={point.beta_text}", *([f"nu={nu:g}"] if METHODS[method].has_nu else [])]
        if len(parsed_weights) > 1:
            parts.append(f"lambda={weight}")
        run_id = "_".join([*parts, f"seed={seed}"]).replace("/", "%2F")
        if len(run_id) > LONGEST_NAME:  # it is a folder's name: what does not fit is told apart by a digest
            run_id = f"{run_id[: LONGEST_NAME - 40]}_{digest(run_id)}_seed={seed}"
        points.append(replace(point, run_id=run_id))
    if len({point.run_id for point in points}) != len(points):
        raise UsageError("a value of the grid is given twice", hint="give each beta, nu, lambda and seed once")
    return points
