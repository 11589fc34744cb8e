"""Allocating a batch of samples at least cost under constraints: by dual prices, and exactly by HiGHS.

Prices leave few samples undecided: a basic solution of the linear program divides at most one sample per constraint.
So an allocation by prices is repaired on a *core* (Balas and Zemel, *An Algorithm for Large Zero-One Knapsack
Problems*, Operations Research 1980): the samples that lose least by going elsewhere are allocated again, by a small
integer program in which samples of equal costs are one group; all others stay. Constraints then hold exactly, and the
prices' bound says how far from the best allocation the result can be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from l2d.data.errors import DataError
from l2d.rejector.policies.constraints import Constraint, check_feasible, integer_program
from l2d.rejector.policies.dual_prices import cheapest, fit_prices

CORE = 40  # samples of the first core, per pair of agents
SMALL = 500  # samples; up to here the core is solved to the end
CLOSE = 0.05  # above, it may cost so much more in all than the best, as a share of the range of one sample's cost


@dataclass(frozen=True)
class Assignment:
    """Who gets each sample of a batch.

    Attributes:
        allocation: agents, int64 (n,).
        value: mean cost.
        bound: no allocation that meets the constraints has a lower mean cost.
        prices: of the constraints, per unit of their use, (K,); None if exact.
    """

    allocation: np.ndarray
    value: float
    bound: float
    prices: np.ndarray | None = None

    @property
    def gap(self) -> float:
        """How much lower, per sample, the best allocation could be at most."""
        return max(0.0, self.value - self.bound)


def assign(costs: np.ndarray, constraints: list[Constraint], *, where: str = "the batch") -> Assignment:
    """Allocate a batch by dual prices, then repair it so that every constraint holds.

    Args:
        costs: (n, agents), infinite where an agent is unavailable.
        where: names the batch in messages.

    Raises:
        UsageError: constraints cannot be met; names which.
        DataError: a sample has no agent, or a cost is NaN.
    """
    columns = _columns(costs, where)
    samples = columns.shape[1]
    if not constraints:
        allocation, cheapest_costs = cheapest(columns, np.zeros(len(columns)))
        value = float(cheapest_costs.mean())
        return Assignment(allocation, value, value, np.zeros(0))
    check_feasible(np.isfinite(columns).T, constraints, where)
    use = np.array([constraint.use for constraint in constraints])
    limits = np.array([constraint.total(samples) for constraint in constraints]) / samples
    dual = fit_prices(columns, use, limits, np.array([constraint.exact for constraint in constraints]))
    allocation = _repaired(columns, dual.prices @ use, constraints)
    return Assignment(allocation, _mean_cost(columns, allocation), dual.bound, dual.prices)


def assign_exactly(
    costs: np.ndarray, constraints: list[Constraint], *, where: str = "the batch", seconds: float = 300.0
) -> Assignment:
    """Allocate a batch by HiGHS's branch and bound over all samples: the reference, slow from some 10,000 samples on.

    Args:
        costs: (n, agents), infinite where an agent is unavailable.
        where: names the batch in messages.
        seconds: after which the best allocation found is taken; its ``bound`` is then HiGHS's.

    Raises:
        UsageError: constraints cannot be met; names which.
        DataError: a sample has no agent, a cost is NaN, or no allocation was found in time.
    """
    columns = _columns(costs, where)
    samples = columns.shape[1]
    check_feasible(np.isfinite(columns).T, constraints, where)
    found = integer_program(columns.T, np.ones(samples), constraints, samples, seconds=seconds)
    if found is None:
        raise DataError(
            f"HiGHS found no allocation in {seconds:g} s", where=where, hint="solve it by prices: --mode batch"
        )
    numbers, value, bound = found
    return Assignment(numbers.argmax(axis=1), value / samples, bound / samples)


def assign_in_batches(
    costs: np.ndarray, constraints: list[Constraint], batch: int, *, exactly: bool = False, where: str = "the split"
) -> Assignment:
    """:func:`assign` (or :func:`assign_exactly`) to each ``batch`` rows in turn; the last batch may be smaller.

    ``prices`` are means over the batches.
    """
    parts = []
    for start in range(0, len(costs), batch):
        rows = costs[start : start + batch]
        named = where if batch >= len(costs) else f"{where}, samples {start} to {start + len(rows) - 1}"
        parts.append((assign_exactly if exactly else assign)(rows, constraints, where=named))
    weights = [len(part.allocation) / len(costs) for part in parts]
    value, bound = (
        sum(w * getattr(p, name) for w, p in zip(weights, parts, strict=True)) for name in ("value", "bound")
    )
    prices = None if exactly else sum(w * p.prices for w, p in zip(weights, parts, strict=True))
    return Assignment(np.concatenate([part.allocation for part in parts]), value, bound, prices)


def _repaired(columns: np.ndarray, agent_prices: np.ndarray, constraints: list[Constraint]) -> np.ndarray:
    """The allocation by prices, with as much of it done again as it takes to meet the constraints; (n,)."""
    agents, samples = columns.shape
    chosen, cost = cheapest(columns, agent_prices)
    regret = columns + agent_prices[:, None] - cost
    regret[chosen, np.arange(samples)] = np.inf  # staying is no move
    finite = columns[np.isfinite(columns)]
    tolerance = CLOSE * float(finite.max() - finite.min()) if samples > SMALL else 0.0
    movable, size = int(np.isfinite(regret).any(axis=0).sum()), CORE + 4 * len(constraints)
    while True:
        core = np.zeros(samples, bool)
        for home in range(agents):
            members = np.flatnonzero(chosen == home)
            for other in range(agents):
                if other != home and len(members):
                    core[members[_smallest(regret[other, members], size)]] = True
        rows = np.flatnonzero(core)
        fixed = np.bincount(chosen[~core], minlength=agents)
        groups, inverse, counts = np.unique(columns[:, rows].T, axis=0, return_inverse=True, return_counts=True)
        seconds = 60.0 if len(rows) == movable else 3.0
        found = integer_program(groups, counts, constraints, samples, fixed=fixed, tolerance=tolerance, seconds=seconds)
        if found is not None:
            allocation = chosen.copy()
            allocation[rows] = _dealt(inverse.reshape(-1), found[0].astype(np.int64))
            return allocation
        if len(rows) == movable:  # feasible, so only time can have run out
            raise DataError("no allocation was found in time", hint="drop a constraint, or use a smaller --batch-size")
        size *= 8


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Positions of the ``count`` smallest finite values, and of all that equal the last of them."""
    finite = np.isfinite(values)
    if finite.sum() > count:
        finite &= values <= np.partition(values, count - 1)[count - 1] + 1e-12
    return np.flatnonzero(finite)


def _dealt(group: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Agents (rows,) such that ``numbers[g, j]`` of group g's rows have agent j, the first rows the lowest agents."""
    dealt = np.empty(len(group), np.int64)
    dealt[np.argsort(group, kind="stable")] = np.concatenate(
        [np.repeat(np.arange(numbers.shape[1]), row) for row in numbers] or [np.zeros(0, np.int64)]
    )
    return dealt


def _columns(costs: np.ndarray, where: str) -> np.ndarray:
    """Costs agent by agent, float64 (A, n), checked."""
    columns = np.ascontiguousarray(np.asarray(costs, np.float64).T)
    if np.isnan(columns).any() or not np.isfinite(columns).any(axis=0).all() or (columns == -np.inf).any():
        raise DataError(
            "a cost is not a number, or a sample has no agent",
            where=where,
            hint="costs are numbers, or +inf: unavailable",
        )
    return columns


def _mean_cost(columns: np.ndarray, allocation: np.ndarray) -> float:
    return float(columns[allocation, np.arange(len(allocation))].mean())
