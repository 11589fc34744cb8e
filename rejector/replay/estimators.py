"""The value of a policy from decisions that another one made, each with the probability that it had.

``w = pi(a | x) / p(a | x)`` weighs a logged decision by how much more often the policy would have made it.

* ``ips``: the mean of ``w c`` (Horvitz and Thompson 1952). Unbiased; wide where ``w`` is large.
* ``self-normalised``: the sum of ``w c`` over that of ``w`` (Swaminathan and Joachims, *The Self-Normalized Estimator
  for Counterfactual Learning*, NeurIPS 2015).
* ``doubly robust``: the mean of ``sum_a pi(a | x) q(x, a) + w (c - q(x, a))`` for predicted costs ``q`` (Dudik,
  Langford and Li, *Doubly Robust Policy Evaluation and Learning*, ICML 2011). Unbiased whatever ``q``; narrow where
  ``q`` is good.
* ``switch``: the same, whose correction is left out where ``w`` is above a threshold (Wang, Agarwal and Dudik, *Optimal
  and Adaptive Off-policy Evaluation in Contextual Bandits*, ICML 2017, section 3.3, where the threshold is that of the
  least estimated squared error).

Where an outcome has not come back, the weight of those that have is divided by the share of the agent's outcomes that
have: right where it does not depend on the cost whether one comes back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

THRESHOLDS = 20  # that are tried


@dataclass(frozen=True)
class Logged:
    """Decisions of a log.

    Attributes:
        agent: that was asked, int (n,).
        chances: probability with which each agent was to be asked, (n, agents).
        cost: total cost of its answer, NaN where the outcome is not known, (n,).
        predicted: total costs that a model predicts, (n, agents); None without one.
    """

    agent: np.ndarray
    chances: np.ndarray
    cost: np.ndarray
    predicted: np.ndarray | None = None

    @property
    def known(self) -> np.ndarray:
        """Whose outcome is known, bool (n,)."""
        return ~np.isnan(self.cost)

    @property
    def returned(self) -> np.ndarray:
        """Share of each decision's agent's outcomes that are known, (n,)."""
        count = np.bincount(self.agent, minlength=self.chances.shape[1])
        there = np.bincount(self.agent, self.known, minlength=self.chances.shape[1])
        return (there / np.maximum(count, 1))[self.agent]

    def weights(self, policy: np.ndarray) -> np.ndarray:
        """``w`` of a policy (n, agents), 0 where the outcome is not known."""
        rows = np.arange(len(self.agent))
        known = self.known
        chance = self.chances[rows, self.agent] * np.where(known, self.returned, 1.0)
        return np.where(known, policy[rows, self.agent] / chance, 0.0)


@dataclass(frozen=True)
class Estimate:
    """A policy's mean total cost.

    Attributes:
        value: the estimate.
        influence: what each decision adds to it, less the estimate: their mean is about 0, (n,).
        size: effective sample size of the weights.
    """

    name: str
    value: float
    influence: np.ndarray
    size: float

    @property
    def error(self) -> float:
        """Standard error."""
        n = len(self.influence)
        return float(self.influence.std(ddof=1) / np.sqrt(n)) if n > 1 else float("inf")

    def interval(self, level: float) -> tuple[float, float]:
        """Student's interval, with as many degrees of freedom as the weights are worth decisions."""
        half = float(student.ppf(0.5 + level / 2, max(1.0, self.size - 1))) * self.error
        return self.value - half, self.value + half

    def less(self, other: Estimate) -> Estimate:
        """The difference of two estimates from the same decisions, paired."""
        size = min(self.size, other.size)
        return Estimate(self.name, self.value - other.value, self.influence - other.influence, size)


def effective(weights: np.ndarray) -> float:
    """Effective sample size: ``(sum w)^2 / sum w^2`` (Kish 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum()) if weights.any() else 0.0


def estimates(logged: Logged, policy: np.ndarray) -> list[Estimate]:
    """All of them, those that need predictions where there are any.

    Args:
        policy: probability with which it asks each agent, (n, agents).
    """
    weights, cost = logged.weights(policy), np.where(logged.known, logged.cost, 0.0)
    total, size = weights.sum(), effective(weights)
    found = [_mean("ips", weights * cost, size)]
    if total > 0:
        value = float((weights * cost).sum() / total)
        pull = 1 - weights / total  # how far a decision draws the ratio to itself is given back, as for leverage
        influence = weights * (cost - value) / weights.mean() / np.where(pull > 0, pull, 1.0)
        found.append(Estimate("self-normalised", value, influence, size))
    if logged.predicted is None:
        return found
    direct = (policy * logged.predicted).sum(axis=1)
    residual = cost - logged.predicted[np.arange(len(cost)), logged.agent]
    found.append(_mean("doubly robust", direct + weights * residual, size))
    threshold = _threshold(logged, policy, weights, direct, residual)
    kept = np.where(weights <= threshold, weights, 0.0)
    found.append(_mean("switch", direct + kept * residual, size))
    return found


def _mean(name: str, terms: np.ndarray, size: float) -> Estimate:
    value = float(terms.mean())
    return Estimate(name, value, terms - value, size)


def _threshold(
    logged: Logged, policy: np.ndarray, weights: np.ndarray, direct: np.ndarray, residual: np.ndarray
) -> float:
    """Of the least estimated squared error: variance, and the square of the largest bias that there can be."""
    there = weights[weights > 0]
    if not len(there):
        return np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(policy > 0, policy / logged.chances, 0.0)
    largest = float(np.nanmax(np.abs(logged.cost), initial=0.0))
    best, least = np.inf, np.inf
    for threshold in np.unique(np.quantile(there, np.linspace(0, 1, THRESHOLDS)))[::-1]:
        terms = direct + np.where(weights <= threshold, weights, 0.0) * residual
        bias = largest * float((policy * (ratio > threshold)).sum(axis=1).mean())
        error = float(terms.var(ddof=1)) / len(terms) + bias**2 if len(terms) > 1 else np.inf
        if error < least:
            best, least = float(threshold), error
    return best
