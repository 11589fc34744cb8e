"""A budget in money where each answer has a price of its own: the price of a unit of money that keeps to it.

A limit on what is paid is one constraint more of the Lagrangian relaxation in :mod:`l2d.rejector.policies.dual_prices`:
given ``lambda`` units of loss for a unit of money, each input goes to ``argmin_j c_ij + lambda p_ij`` by itself, where
``p_ij`` is its predicted price. The smallest ``lambda`` is taken at which what was *really* paid on validation keeps to
the limit. A run of method ``best`` that predicts prices is then that run at another ``--beta paid=…``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from l2d.data.errors import UsageError
from l2d.rejector.policies.scored import ScoredSplit
from l2d.rejector.runs.files import BATCH_ROWS
from l2d.rejector.runs.run import Run, open_cache

STEPS = 60  # halvings of the range of prices
DOUBLINGS = 30  # until a price is found that keeps to the limit


@dataclass(frozen=True)
class MoneyBudget:
    """At most so much money for an input, on average.

    Attributes:
        limit: in ``unit``.
        unit: of the cache's prices; empty where nothing says it.
    """

    limit: float
    unit: str = ""

    def __post_init__(self):
        if not (math.isfinite(self.limit) and self.limit >= 0):
            raise UsageError(f"--budget {self.limit}", hint="a mean per input, a number >= 0")

    @property
    def asked(self) -> str:
        return f"<= {self.limit:g}{f' {self.unit}' if self.unit else ''}"

    def holds(self, paid: float) -> bool:
        return paid <= self.limit * (1 + 1e-9)


@dataclass(frozen=True)
class Prices:
    """Prices of a split's samples, (n, agents) each: predicted from the input, and as they were paid."""

    predicted: np.ndarray
    paid: np.ndarray

    def spent(self, allocation: np.ndarray) -> np.ndarray:
        """What each sample paid under an allocation, (n,)."""
        return self.paid[np.arange(len(allocation)), allocation]


def money_budget(run: Run, limit: float) -> MoneyBudget | None:
    """The budget of a run that pays prices per sample, in money; None for a run whose budget is in relative prices.

    Raises:
        UsageError: the run's method predicts no prices, or the limit is out of range.
    """
    if run.point.paid is None:
        return None
    if not run.rejector.predicts_prices:
        raise UsageError(
            f"--budget: runs of method {run.point.method!r} predict no prices",
            where=run.path,
            hint="take a run of method best, or one that was trained without --beta paid=…, with a mean `price`",
        )
    return MoneyBudget(float(limit), open_cache(run).record.unit_paid)


def prices_of_split(run: Run, split: ScoredSplit) -> Prices:
    """Predicted and paid prices of a split's samples, in its order, deciding with them; from the run's cache."""
    from l2d.rejector.rows.stream import open_streams  # which loads torch

    stream = open_streams(open_cache(run), (split.name,), column="features", failures=run.rejector.config.failures)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    rows = stream[split.name]
    for names, (features, raw) in zip(rows.ids_in_order(BATCH_ROWS), rows.in_order(BATCH_ROWS), strict=True):
        predicted = run.rejector.predicted_prices(split.name, names, features.numpy())
        assert predicted is not None  # of a run with prices
        found.update(zip(names, zip(predicted, raw[:, :, -1].double().numpy(), strict=True), strict=True))
    predicted, paid = (np.stack([found[name][part] for name in split.ids]) for part in (0, 1))
    return Prices(predicted, paid + run.rejector.config.router_cost)  # a policy looks at every input


def price_of_money(
    costs: np.ndarray, prices: Prices, budget: MoneyBudget, allocate: Callable[[np.ndarray], np.ndarray], *, where: str
) -> float:
    """Units of loss for a unit of money, the smallest found at which the budget is kept; 0 where it does not bind.

    Args:
        costs: predicted, (n, agents), infinite where an agent is unavailable.
        allocate: who gets each sample, from such costs with prices in them.
        where: names the samples.

    Raises:
        UsageError: even the cheapest answers cost more.
    """

    def spent(worth: float) -> float:
        return float(prices.spent(allocate(costs + worth * prices.predicted)).mean())

    if budget.holds(spent(0.0)):
        return 0.0
    finite = np.isfinite(costs)
    spread = float(costs[finite].max() - costs[finite].min()) or 1.0
    range_of_prices = float(np.ptp(prices.predicted[finite])) or 1.0
    low, high = 0.0, spread / range_of_prices
    for _ in range(DOUBLINGS):
        if budget.holds(spent(high)):
            break
        low, high = high, 2 * high
    else:
        raise UsageError(
            f"budget {budget.asked} cannot be met: the answers that are predicted to be cheapest were paid "
            f"{spent(high):.6g} for an input",
            where=where,
            hint="allow more",
        )
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if budget.holds(spent(middle)) else (middle, high)
    return high
