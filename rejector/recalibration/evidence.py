"""Corrections fitted on earlier outcomes, and what later ones say of them.

An agent's correction is a line, ``intercept + slope * predicted``: least squares as if :data:`PRIOR` more outcomes had
been as predicted, so that few outcomes correct little. What was drawn to explore counts more, so that a line is not of
those inputs alone that the agent was chosen for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from l2d.rejector.calibration import Correction
from l2d.rejector.recalibration.outcomes import Outcomes
from l2d.rejector.replay.estimators import Estimate, Logged, effective

PRIOR = 20.0  # outcomes that agree with the prediction, which are added
SLOPES = (0.2, 3.0)  # beyond which a line says nothing of the inputs any more
TRIED = 5  # outcomes of the new choices, below which nothing is said of what they cost


def fitted(agent: str, outcomes: Outcomes, place: int) -> Correction:
    """The correction of one agent.

    Args:
        outcomes: of that agent, all known.
        place: of the agent in the run.
    """
    weights = outcomes.weights * outcomes.size / outcomes.weights.sum()
    predicted = -outcomes.scores[:, place].astype(np.float64)
    gap = outcomes.cost - predicted
    total = weights.sum()
    centre, mean = (weights * predicted).sum() / total, (weights * gap).sum() / total
    around = predicted - centre
    spread = (weights * around**2).sum()
    slope = 1.0
    if spread > 1e-12 * total:
        slope += (weights * around * (gap - mean)).sum() / (spread * (1 + PRIOR / total))
    slope = float(np.clip(slope, *SLOPES))
    shift = mean * total / (total + PRIOR)
    slope = _short(slope)
    return Correction(agent, _short(centre + shift - slope * centre), slope)


def _short(value: float) -> float:
    """As the file has it, so that what is judged is what is written."""
    return float(f"{value:.6g}")


@dataclass(frozen=True)
class Judged:
    """What later outcomes say of one agent's correction, or of all.

    Attributes:
        outcomes: how many.
        predicted, paid, corrected: means.
        before, after: mean squared error of the predictions in force, and of the corrected ones.
        difference: of the two, paired: less than 0 is better.
    """

    outcomes: int
    predicted: float
    paid: float
    corrected: float
    before: float
    after: float
    difference: Estimate

    def says(self, level: float) -> str:
        """better, worse, or not shown."""
        low, high = self.difference.interval(level)
        return "better" if high < 0 else "worse" if low > 0 else "not shown"


def judged(outcomes: Outcomes, corrected: np.ndarray) -> Judged:
    """What known outcomes say.

    Args:
        corrected: total costs of all agents, (n, agents).
    """
    rows = np.arange(len(outcomes))
    before, after = outcomes.in_force[rows, outcomes.agent], corrected[rows, outcomes.agent]
    weights, paid = outcomes.weights, outcomes.cost
    errors = (before - paid) ** 2, (after - paid) ** 2

    def mean(values: np.ndarray) -> float:
        return float((weights * values).sum() / weights.sum())

    gap = errors[1] - errors[0]
    value = mean(gap)
    pull = 1 - weights / weights.sum()
    influence = weights * (gap - value) / weights.mean() / np.where(pull > 0, pull, 1.0)
    difference = Estimate("squared error", value, influence, effective(weights))
    return Judged(len(rows), mean(before), mean(paid), mean(after), mean(errors[0]), mean(errors[1]), difference)


def residual(outcomes: Outcomes, corrected: np.ndarray, place: int) -> tuple[int, float, float] | None:
    """Number, mean and standard error of what was paid less what is predicted now, where the agent was the best."""
    own = outcomes.greedy == place
    values = (outcomes.cost - corrected[:, place])[own]
    if len(values) < 2:
        return None
    return len(values), _short(values.mean()), _short(values.std(ddof=1) / np.sqrt(len(values)))


@dataclass(frozen=True)
class Difference:
    """Of two mean costs, with its standard error; ``size``: of the outcomes that it hangs on."""

    value: float
    error: float
    size: float

    def interval(self, level: float) -> tuple[float, float]:
        """Student's."""
        half = float(student.ppf(0.5 + level / 2, max(1.0, self.size - 1))) * self.error
        return self.value - half, self.value + half


@dataclass(frozen=True)
class Deciding:
    """What deciding by corrected costs would have cost, against the decisions in force without exploring.

    Attributes:
        decisions: that were looked at.
        changed: for how many another agent would have been chosen.
        difference: of the mean total costs, paired; None where it is not known.
        unknown: why not.
    """

    decisions: int
    changed: int
    difference: Difference | None
    unknown: str | None = None

    def says(self, level: float) -> str:
        """cheaper, dearer, not shown, the same, or not known."""
        if not self.changed:
            return "the same"
        if self.difference is None:
            return "not known"
        low, high = self.difference.interval(level)
        return "cheaper" if high < 0 else "dearer" if low > 0 else "not shown"


def deciding(outcomes: Outcomes, corrected: np.ndarray) -> Deciding:
    """What the decisions that change would have cost: doubly robust, with normalised weights.

    The corrected costs, fitted on earlier outcomes, say what new and old choice cost; what outcomes of either differ
    from that by on the decisions that change, weighted by one over their probability, corrects it. Few new choices have
    been tried, so the variance of their outcomes is at least that of all outcomes of these agents.
    """
    n = len(outcomes)
    rows, old = np.arange(n), outcomes.greedy
    new = np.where(outcomes.there, corrected, np.inf).argmin(axis=1)
    changed = new != old
    count = int(changed.sum())
    if not count:
        return Deciding(n, 0, None)
    if (outcomes.chances[rows, new] <= 0).any():
        return Deciding(n, count, None, "the new choices could not have been drawn: log with --explore")
    logged = Logged(outcomes.agent, outcomes.chances, outcomes.cost, corrected)
    sides = []
    for choice in (new, old):
        weights = np.where(changed & (outcomes.agent == choice) & outcomes.known, 1.0, 0.0)
        weights[weights > 0] *= 1 / (outcomes.chances[rows, choice] * logged.returned)[weights > 0]
        sides.append((choice, weights))
    tried, kept = (effective(weights) for _, weights in sides)
    if min(tried, kept) < TRIED:
        why = f"{count:,} choices change, and the new ones were tried only {tried:.0f} times: explore more"
        return Deciding(n, count, None, why if tried < TRIED else "too few outcomes of the old choices are known")
    gaps = np.nan_to_num(outcomes.cost) - corrected[rows, outcomes.agent]
    spread = np.array([_variance(gaps[outcomes.known & (outcomes.agent == a)]) for a in range(corrected.shape[1])])
    means, variances = [], []
    for choice, weights in sides:
        share = weights / weights.sum()
        mean = float((share * gaps).sum())
        seen = float((share * (gaps - mean) ** 2).sum())
        means.append(mean)
        variances.append(max(seen, float((share * spread[choice]).sum())))
    terms = np.where(changed, corrected[rows, new] - corrected[rows, old] + means[0] - means[1], 0.0)
    of_outcomes = (count / n) ** 2 * (variances[0] / tried + variances[1] / kept)
    return Deciding(n, count, Difference(float(terms.mean()), math.sqrt(terms.var() / n + of_outcomes), tried))


def _variance(values: np.ndarray) -> float:
    return float(values.var()) if len(values) else 0.0
