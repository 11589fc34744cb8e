"""Curves of a system: quality against cost over a sweep, and risk against coverage, the share that the model keeps.

The operating points of a sweep are put together in rejector/evaluation/cost_quality.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from l2d.rejector.evaluation.evaluation import Evaluation
from l2d.rejector.evaluation.metrics import area_under_precision, auroc

# --- quality against cost ---------------------------------------------------------------------------------------------


def pareto_set(costs: np.ndarray, qualities: np.ndarray) -> np.ndarray:
    """Points that no other point dominates: none is as cheap and as good, and cheaper or better.

    Args:
        costs: of m points, lower is better, finite.
        qualities: of the same, higher is better, finite.

    Returns:
        Their positions in order of cost, int64; points that are equal in both stay together.
    """
    costs, qualities = _finite(costs, qualities)
    order = np.lexsort((-qualities, costs))  # by cost, the best of a cost first
    kept: list[int] = []
    best = -np.inf
    for position in order:
        equal = kept and (costs[kept[-1]], qualities[kept[-1]]) == (costs[position], qualities[position])
        if qualities[position] > best or equal:
            kept.append(int(position))
            best = qualities[position]
    return np.array(kept, dtype=np.int64)


def convex_hull(costs: np.ndarray, qualities: np.ndarray) -> np.ndarray:
    """Non-decreasing convex hull (NDCH) of points of cost and quality (Hu et al., *RouterBench*, 2024, section 3.2).

    What a coin reaches: answering a share ``t`` of the samples at one operating point and the rest at another gives
    every point between the two. The hull is the best quality for each cost from the cheapest point on, concave and
    non-decreasing; beyond its last vertex it stays flat.

    Args:
        costs: of m points, finite.
        qualities: of the same, higher is better, finite.

    Returns:
        The vertices (k, 2), cost and quality, both strictly increasing; the last one has the highest quality.
    """
    costs, qualities = _finite(costs, qualities)
    hull: list[tuple[float, float]] = []
    for position in pareto_set(costs, qualities):
        point = (float(costs[position]), float(qualities[position]))
        if hull and hull[-1] == point:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return np.array(hull)


def quality_at(hull: np.ndarray, costs: np.ndarray | float) -> np.ndarray:
    """Quality of a hull at costs: NaN below the cheapest vertex, flat above the last one.

    Args:
        hull: vertices (k, 2) of :func:`convex_hull`.
        costs: any shape.
    """
    return np.interp(costs, hull[:, 0], hull[:, 1], left=np.nan)


def mean_quality(hull: np.ndarray, low: float, high: float) -> float:
    """AIQ of RouterBench: the hull's mean quality over the costs from ``low`` to ``high``, by its exact integral.

    Curves are comparable over the same range alone.

    Raises:
        ValueError: the range is empty, or begins below the cheapest vertex.
    """
    if not high > low or low < hull[0, 0]:
        raise ValueError(f"the hull begins at a cost of {hull[0, 0]:g}, so has no mean from {low:g} to {high:g}")
    inside = hull[(hull[:, 0] > low) & (hull[:, 0] < high), 0]
    grid = np.concatenate([[low], inside, [high]])
    return float(np.trapezoid(quality_at(hull, grid), grid) / (high - low))


def _slope(first: tuple[float, float], second: tuple[float, float]) -> float:
    return (second[1] - first[1]) / (second[0] - first[0])


def _finite(costs: np.ndarray, qualities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    costs, qualities = np.asarray(costs, dtype=np.float64), np.asarray(qualities, dtype=np.float64)
    if not len(costs) or not (np.isfinite(costs).all() and np.isfinite(qualities).all()):
        raise ValueError("points have finite costs and qualities, and there is at least one")
    return costs, qualities


# --- risk against coverage --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RiskCoverage:
    """A risk-coverage curve and the areas under it.

    Attributes:
        coverage: share of samples answered, (k,), rising to what can be answered at all.
        risk: expected loss at that coverage, (k,).
        aurc: mean risk over the coverages.
        excess_aurc: ``aurc`` less that of the best possible order; 0 is perfect, whatever the loss.
    """

    coverage: np.ndarray
    risk: np.ndarray
    aurc: float
    excess_aurc: float

    def thinned(self, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
        """Coverage and risk of at most ``points`` points, the first and the last among them, for drawing."""
        keep = np.unique(np.linspace(0, len(self.coverage) - 1, points).round().astype(np.int64))
        return self.coverage[keep], self.risk[keep]


def risk_coverage(confidence: np.ndarray, losses: np.ndarray) -> RiskCoverage:
    """Risk-coverage curve of an agent that answers the samples it is surest of (El-Yaniv and Wiener, JMLR 2010).

    The risk at ``k`` of ``n`` samples is the mean loss of the ``k`` surest; ``AURC = 1/n sum_k risk(k)``, and the
    excess AURC is what it has more than the best order of the same losses (Geifman, Uziel and El-Yaniv, ICLR 2019, who
    approximate the best order's area; this is it). Tied samples come in no order: risks within a group of ties are
    expectations over all orders of the group, so that no figure depends on how rows happen to lie.

    Args:
        confidence: (n,), higher is surer; no NaN.
        losses: (n,), finite.

    Returns:
        A curve of n points.

    Raises:
        ValueError: no samples, a confidence that is not a number or a loss that is not finite.
    """
    confidence, losses = np.asarray(confidence, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if not len(losses) or np.isnan(confidence).any() or not np.isfinite(losses).all():
        raise ValueError("confidences must be numbers and losses finite, of at least one sample")
    answered = np.arange(1, len(losses) + 1)
    risk = np.cumsum(expected_in_order(confidence, losses)) / answered
    best = np.cumsum(np.sort(losses)) / answered
    area = float(risk.mean())
    return RiskCoverage(answered / len(losses), risk, area, area - float(best.mean()))


def deferral_curve(margin: np.ndarray, kept: np.ndarray, deferred: np.ndarray) -> RiskCoverage:
    """Risk of a whole system against the share that its model keeps: the others go to the best-scored expert.

    Coverage is imposed on the system by shifting the model's score; the samples of the largest margin are kept first.
    Ties as in :func:`risk_coverage`. Coverages at which a sample would go to an agent that is unavailable there (an
    infinite cost) are left out; they are the ends of the curve, as such samples have infinite margins.

    Args:
        margin: the model's score less the best expert's, (n,), higher keeps the sample earlier; no NaN.
        kept: cost of each sample if the model answers, (n,).
        deferred: cost if the best-scored expert does, (n,).

    Returns:
        From coverage 0 to 1, in steps of ``1/n``; ``excess_aurc`` is over the order of ``deferred - kept``.

    Raises:
        ValueError: no samples, a margin that is not a number, or no coverage at which every agent has an answer.
    """
    margin, kept, deferred = (np.asarray(values, dtype=np.float64) for values in (margin, kept, deferred))
    if not len(margin) or np.isnan(margin).any():
        raise ValueError("margins must be numbers, of at least one sample")
    first, last = int(np.isinf(deferred).sum()), len(kept) - int(np.isinf(kept).sum())
    ends = (margin[np.isinf(deferred)] == np.inf).all() and (margin[np.isinf(kept)] == -np.inf).all()
    if (np.isinf(kept) & np.isinf(deferred)).any() or not ends:
        raise ValueError("an agent without an answer must have the lowest margin, and each sample an agent with one")

    must_keep, must_defer = np.isinf(deferred), np.isinf(kept)
    free = ~(must_keep | must_defer)
    fixed = kept[must_keep].sum() + deferred[must_defer].sum()
    change = kept[free] - deferred[free]  # what keeping a sample adds

    def risks(order_by: np.ndarray) -> np.ndarray:
        steps = np.cumsum(expected_in_order(order_by, change))
        return (fixed + deferred[free].sum() + np.concatenate([[0.0], steps])) / len(margin)

    risk = risks(margin[free])
    area = float(risk.mean())
    return RiskCoverage(np.arange(first, last + 1) / len(margin), risk, area, area - float(risks(-change).mean()))


def expected_in_order(key: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values from the highest key to the lowest, each group of equal keys replaced by its mean: (n,)."""
    _, group, counts = np.unique(-key, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=values) / counts
    return np.repeat(means, counts)


def model_curve(evaluation: Evaluation) -> RiskCoverage:
    """Risk of what the model keeps, the rejector's margin as its confidence; over the samples it has an answer for.

    Says how well the rejector knows where the model errs; the experts' part is :func:`system_curve`.

    Raises:
        ValueError: the model has no answer at all.
    """
    answered = np.isfinite(evaluation.kept)
    return risk_coverage(evaluation.margin[answered], evaluation.kept[answered])


def system_curve(evaluation: Evaluation) -> RiskCoverage:
    """Deferral loss of the whole system at every coverage, query costs included, by shifting the model's score.

    At the rejector's own coverage it is the evaluation's deferral loss, unless margins are tied there.

    Raises:
        ValueError: a sample that no agent answers.
    """
    return deferral_curve(evaluation.margin, evaluation.kept, evaluation.deferred)


# --- at one coverage --------------------------------------------------------------------------------------------------


def kept_at(margin: np.ndarray, coverage: float) -> np.ndarray:
    """Where the model answers, bool (n,): exactly ``round(coverage n)`` samples, those of the largest margin.

    Args:
        margin: the model's score less the expert's, (n,); of equal ones the earlier is kept.
        coverage: share, in [0, 1].
    """
    kept = np.zeros(len(margin), dtype=bool)
    kept[np.argsort(-margin, kind="stable")[: round(coverage * len(margin))]] = True
    return kept


def ranking_at_coverages(
    margin: np.ndarray, model: np.ndarray, expert: np.ndarray, target: np.ndarray, coverages: list[float]
) -> list[dict[str, float]]:
    """AU-ROC and AU-PR (average precision) of the system at each coverage (Mozannar and Sontag 2020, CheXpert).

    Args:
        margin: the model's score less the expert's, (n,).
        model: its probability of the positive class, (n,).
        expert: its answer, 0 or 1 (or a probability), (n,).
        target: 0 or 1, (n,), both present.
        coverages: shares that the model keeps.

    Returns:
        ``coverage`` as it came out, ``auroc``, ``average_precision`` and ``accuracy``, one row a coverage.
    """
    rows = []
    for coverage in coverages:
        kept = kept_at(margin, coverage)
        score = np.where(kept, model, expert).astype(np.float64)
        rows.append(
            {
                "coverage": float(kept.mean()),
                "auroc": auroc(target, score),
                "average_precision": area_under_precision(target, score),
                "accuracy": float(((score > 0.5) == (target == 1)).mean()),
            }
        )
    return rows
