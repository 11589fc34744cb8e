"""Prices of constraints: the multipliers of the Lagrangian relaxation of an assignment problem.

Every sample goes to one agent, at least cost, subject to ``sum_i use_k[a_i] <= b_k`` for a few constraints ``k``. Given
a price ``lambda_k`` per unit, samples no longer depend on each other: each goes to ``argmin_j c_ij + lambda . use_j``.
What that costs, less ``lambda . b``, is a bound on every allocation that meets the constraints (weak duality; Fisher,
*The Lagrangian Relaxation Method for Solving Integer Programming Problems*, Management Science 1981), and concave
and piecewise linear in ``lambda``. It is maximised by cutting planes within a box that follows the best point (Marsten,
Hogan and Blankenship, *The Boxstep Method for Large-Scale Optimization*, Operations Research 1975).

Shapes: n samples, A agents, K constraints. Costs are agent by agent, (A, n): a column of the problem is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEPS = 400
SAMPLE = 10_000  # rows that find where the prices are, before all rows find what they are
MOST = 1e9  # a price, in units of the costs' range per unit of the largest use


@dataclass(frozen=True)
class DualPrices:
    """Prices of the constraints (K,), and the bound they prove, per sample: no allowed allocation costs less."""

    prices: np.ndarray
    bound: float


def cheapest(columns: np.ndarray, agent_prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``argmin_j c_ij + price_j``, ties to the lowest index.

    Args:
        columns: costs (A, n), infinite where an agent is unavailable.
        agent_prices: (A,).

    Returns:
        Agents, int64 (n,), and what they cost with their price, (n,).
    """
    best = columns[0] + agent_prices[0]
    chosen = np.zeros(columns.shape[1], np.int64)
    for agent in range(1, len(columns)):
        cost = columns[agent] + agent_prices[agent]
        chosen[cost < best] = agent
        np.minimum(best, cost, out=best)
    return chosen, best


def fit_prices(
    columns: np.ndarray, use: np.ndarray, limits: np.ndarray, exact: np.ndarray, *, tolerance: float = 1e-9
) -> DualPrices:
    """Prices that maximise the bound. The constraints must be feasible.

    Args:
        columns: costs (A, n), infinite where an agent is unavailable.
        use: of an answer, (K, A).
        limits: per sample, (K,).
        exact: whose price may be negative, bool (K,).
        tolerance: of the bound, relative to the range of the costs.
    """
    finite = columns[np.isfinite(columns)]
    spread = float(finite.max() - finite.min()) or 1.0
    scale = np.where(use.any(axis=1), np.abs(use).max(axis=1), 1.0)
    scaled = _Dual(columns, use / scale[:, None], limits / scale, exact, spread)
    start, radius = np.zeros(len(use)), 0.25 * spread
    if columns.shape[1] > 2 * SAMPLE:
        rows = np.random.default_rng(0).choice(columns.shape[1], SAMPLE, replace=False)
        small = _Dual(np.ascontiguousarray(columns[:, rows]), scaled.use, scaled.limits, exact, spread)
        start, _ = small.maximise(start, radius, 1e-6, most=1e3)  # it may be infeasible on a few rows: not for ever
        radius = 0.02 * spread
    prices, bound = scaled.maximise(start, radius, tolerance, most=MOST)
    # What rounding may have added: of each sample's cost and price, and of the mean, which is summed in pairs.
    largest = np.abs(finite).max() + np.abs(prices) @ (np.abs(scaled.use).max(axis=1) + np.abs(scaled.limits))
    rounding = np.finfo(float).eps * (4 + len(use) + np.log2(columns.shape[1])) * largest
    return DualPrices(prices / scale, bound - rounding)


class _Dual:
    """The dual function of a batch, per sample."""

    def __init__(self, columns: np.ndarray, use: np.ndarray, limits: np.ndarray, exact: np.ndarray, spread: float):
        self.columns, self.use, self.limits, self.spread = columns, use, limits, spread
        self.least = np.where(exact, -np.inf, 0.0)

    def value(self, prices: np.ndarray) -> tuple[float, np.ndarray]:
        """Value at some prices, and a supergradient (K,)."""
        chosen, costs = cheapest(self.columns, prices @ self.use)
        shares = np.bincount(chosen, minlength=len(self.columns)) / len(chosen)
        return float(costs.mean() - prices @ self.limits), self.use @ shares - self.limits

    def maximise(self, start: np.ndarray, radius: float, tolerance: float, *, most: float) -> tuple[np.ndarray, float]:
        """Prices (K,) and the value there."""
        most *= self.spread
        lowest = np.maximum(self.least, -most)
        centre = np.clip(start, lowest, most)
        value, slope = self.value(centre)
        at, values, slopes = [centre], [value], [slope]
        for _ in range(STEPS):
            step, predicted = self._step(centre, value, radius, lowest, most, at, values, slopes)
            if predicted <= tolerance * self.spread:
                break
            trial = centre + step
            found, slope = self.value(trial)
            at.append(trial)
            values.append(found)
            slopes.append(slope)
            gain = found - value
            if gain > 0.1 * predicted and np.abs(step).max() > 0.99 * radius:
                radius *= 4
            elif gain < 0:
                radius *= 0.5
            if gain > 0:
                centre, value = trial, found
        return centre, value

    def _step(self, centre, value, radius, lowest, most, at, values, slopes) -> tuple[np.ndarray, float]:
        """Where the cuts' upper model is highest in the box, from its centre, and by how much.

        In units of the radius, so that the solver's absolute tolerance shrinks with the box.
        """
        from scipy.optimize import linprog  # here: 0.3 s, which a policy at work has no use for

        slope = np.array(slopes)
        height = np.array(values) - value + ((centre - np.array(at)) * slope).sum(axis=1)
        box = [
            (max(-1.0, (low - here) / radius), min(1.0, (most - here) / radius))
            for low, here in zip(lowest, centre, strict=True)
        ]
        rows = np.hstack([np.ones((len(slope), 1)), -slope])
        goal = np.r_[-1.0, np.zeros(len(centre))]
        model = linprog(goal, A_ub=rows, b_ub=height / radius, bounds=[(None, None), *box], method="highs")
        if model.x is None:  # the box has shrunk below what floats can tell apart
            return np.zeros(len(centre)), 0.0
        return model.x[1:] * radius, float(model.x[0]) * radius
