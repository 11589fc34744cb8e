"""What a sweep offers at what price: quality against mean query cost, for rejectors and everything beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from l2d.data.errors import UsageError, nearest
from l2d.rejector.evaluation.curves import convex_hull, mean_quality, pareto_set
from l2d.rejector.evaluation.evaluation import Evaluation, by_setting
from l2d.rejector.evaluation.intervals import paired_intervals

#: Metrics of which less is better; of all others more is.
LOWER_IS_BETTER = ("task_loss", "brier", "smooth_l1", "mean_absolute_error")


@dataclass(frozen=True)
class OperatingPoint:
    """A system at one price.

    Attributes:
        name: a method, an agent, a reference, or ``oracle``.
        kind: ``rejector``, ``agent``, ``reference`` or ``oracle``.
        beta: the query cost it was trained for, as the user gave it; empty for agents and references.
        cost: mean price of the queries a sample takes, in the unit of :class:`CostQuality`.
        quality: the metric.
        std: of the quality over seeds; 0 for one seed.
        seeds: how many.
        setting: what else tells settings apart (``lambda``, ``nu``), for labels.
        interval: 95 % interval of the quality over samples, low and high; None if it is not a mean of samples.
    """

    name: str
    kind: str
    beta: str
    cost: float
    quality: float
    std: float = 0.0
    seeds: int = 1
    setting: str = ""
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class CostQuality:
    """Operating points of a sweep in one metric.

    Attributes:
        metric: its name in the results; ``task_loss`` is the deferral loss without query costs.
        lower_is_better: of the metric.
        unit: of costs: of what answers were paid, such as USD; empty where nothing says it, or where costs are in the
            recipe's relative ``price``.
        points: the rejectors', in order of cost.
        baselines: each agent, each reference, and the oracle at each ``beta``.
        pareto: positions in ``points`` that no other of them dominates.
        hull: non-decreasing convex hull of ``points``, vertices (k, 2) of cost and metric.
        agents_hull: that of the agents alone, what a coin between constants reaches (RouterBench's zero router).
        mean_quality: RouterBench's AIQ of ``hull`` and of ``agents_hull`` over the costs that both have; None where
            these are a single one.
    """

    metric: str
    lower_is_better: bool
    unit: str
    points: list[OperatingPoint]
    baselines: list[OperatingPoint]
    pareto: list[int]
    hull: np.ndarray
    agents_hull: np.ndarray
    mean_quality: tuple[float, float] | None


def metrics_of(evaluations: list[Evaluation]) -> list[str]:
    """Metrics that a cost-quality curve can be drawn in: ``task_loss`` and what every rejector has."""
    common = [set(evaluation.result["metrics"]) for evaluation in evaluations]
    return ["task_loss", *(name for name in evaluations[0].result["metrics"] if all(name in has for has in common))]


def cost_quality(evaluations: list[Evaluation], metric: str = "task_loss") -> CostQuality:
    """Cost-quality curve of evaluations of one cache and split: a point a setting, the mean of its seeds.

    Args:
        evaluations: of :func:`l2d.rejector.evaluation.evaluate.evaluate_runs`, on the same cache.
        metric: see :func:`metrics_of`.

    Raises:
        UsageError: not every rejector has that metric, the evaluations are of several caches, or a price is not known.
    """
    if metric not in metrics_of(evaluations):
        raise UsageError(f"no metric {metric!r} here", hint=nearest(metric, metrics_of(evaluations)))
    if len({evaluation.run.cache_path for evaluation in evaluations}) > 1:
        raise UsageError("these runs are of several caches", hint="draw one curve a cache")
    prices, unit = prices_of(evaluations[0])
    points: list[tuple[OperatingPoint, np.ndarray | None]] = []
    baselines = _constants(evaluations[0], metric, prices)
    oracles: set[tuple] = set()
    for members in by_setting(evaluations).values():
        first, point = members[0], members[0].run.point
        setting = f"{point.cost or point.weights}, nu={point.nu:g}"
        decided = [e.losses - e.run.rejector.decided for e in members]
        values = [
            _quality(e, e.allocation, losses, e.result, metric) for e, losses in zip(members, decided, strict=True)
        ]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        cost = float(np.mean([mean_price(e.allocation, prices) + e.router_paid for e in members]))
        by_sample = [_by_sample(e, e.allocation, losses, metric) for e, losses in zip(members, decided, strict=True)]
        found = OperatingPoint(
            point.method, "rejector", point.beta_text, cost, float(np.mean(values)), spread, len(values), setting
        )
        points.append((found, None if by_sample[0] is None else np.mean(by_sample, axis=0)))
        oracle, same = first.result["oracle"], (point.beta_text, str(point.cost or point.weights))
        allocation, losses = first.baselines.oracle_allocation, first.baselines.losses["oracle"]
        bound = _quality(first, allocation, losses, oracle, metric)
        if bound is not None and same not in oracles:
            oracles.add(same)
            cost = mean_price(allocation, prices)
            found = OperatingPoint("oracle", "oracle", point.beta_text, cost, bound, setting=setting)
            baselines.append((found, _by_sample(first, allocation, losses, metric)))
    points.sort(key=lambda pair: pair[0].cost)
    groups = evaluations[0].measured.groups
    points, baselines = _with_intervals(points, groups), _with_intervals(baselines, groups)
    lower = metric in LOWER_IS_BETTER
    sign = -1.0 if lower else 1.0
    flipped = np.array([1.0, sign])

    def curve(members: list[OperatingPoint]) -> np.ndarray:
        return convex_hull(np.array([m.cost for m in members]), sign * np.array([m.quality for m in members]))

    agents = [point for point in baselines if point.kind == "agent"]
    hull, agents_hull = curve(points), curve(agents) if agents else np.empty((0, 2))
    means = None
    if len(agents_hull):
        low, high = max(hull[0, 0], agents_hull[0, 0]), max(point.cost for point in agents)
        if high > low:
            means = (sign * mean_quality(hull, low, high), sign * mean_quality(agents_hull, low, high))
    pareto = pareto_set(np.array([p.cost for p in points]), sign * np.array([p.quality for p in points])).tolist()
    return CostQuality(metric, lower, unit, points, baselines, pareto, hull * flipped, agents_hull * flipped, means)


def prices_of(evaluation: Evaluation) -> tuple[np.ndarray, str]:
    """What asking each agent about each sample costs (n, agents), NaN where it is not known, and its unit.

    What answers were paid, where that is known of every agent; else the recipe's ``price``.

    Raises:
        UsageError: neither is known of an agent.
    """
    measured = evaluation.measured
    if measured.prices is not None:
        return measured.prices, evaluation.cache.record.unit_paid
    unknown = [agent.name for agent in evaluation.cache.agents if agent.price is None]
    if unknown:
        raise UsageError(f"the price of {', '.join(unknown)} is not known", hint="give the `price` in the recipe")
    prices = np.array([agent.price for agent in evaluation.cache.agents], np.float64)
    return np.broadcast_to(prices, (len(evaluation.losses), len(prices))), ""


def mean_price(allocation: np.ndarray, prices: np.ndarray) -> float:
    """Mean price of an allocation (n,), over the answers whose price is known."""
    return float(np.nanmean(prices[np.arange(len(allocation)), allocation]))


def _constants(
    evaluation: Evaluation, metric: str, prices: np.ndarray
) -> list[tuple[OperatingPoint, np.ndarray | None]]:
    """Each agent and reference that has the metric, as a constant policy: what it costs includes its stand-in.

    A metric is of its own answers, as in ``agents`` of the results.
    """
    found, baselines = [], evaluation.baselines
    names = evaluation.measured.names
    by_agent, rows = (prices, evaluation.charged), np.arange(len(prices))
    for agent in evaluation.cache.agents + evaluation.cache.references:
        alone = evaluation.result["agents"][agent.name]
        if metric != "task_loss" and metric not in alone:
            continue
        queried = [name for name in agent.queries if name in names] if agent.role == "reference" else [agent.name]
        own = baselines.gaps.get(agent.name)
        paid = []  # price and query cost of each sample
        for each in by_agent:
            gaps = [baselines.gaps.get(name, np.False_) for name in queried]
            asked = sum(
                (np.where(gap, 0.0, each[:, names.index(name)]) for name, gap in zip(queried, gaps, strict=True)),
                start=np.zeros(len(rows)),
            )
            paid.append(asked if own is None else np.where(own, each[rows, baselines.fallback], asked))
        if metric == "task_loss":
            samples = baselines.alone[agent.name].astype(np.float64) - paid[1]
            value = float(samples.mean())
        else:
            value, samples = alone[metric], evaluation.measured.sample_metrics(None, [agent.name]).get(metric)
        found.append((OperatingPoint(agent.name, agent.role, "", float(np.nanmean(paid[0])), value), samples))
    return found


def _quality(
    evaluation: Evaluation, allocation: np.ndarray, losses: np.ndarray, result: dict, metric: str
) -> float | None:
    """Metric of an allocation: from its losses, or among its metrics."""
    if metric == "task_loss":
        return float(_task_losses(evaluation, allocation, losses).mean())
    return result["metrics"].get(metric)


def _by_sample(evaluation: Evaluation, allocation: np.ndarray, losses: np.ndarray, metric: str) -> np.ndarray | None:
    """Metric of each sample (n,), None where it is not a mean over samples."""
    if metric == "task_loss":
        return _task_losses(evaluation, allocation, losses)
    return evaluation.measured.sample_metrics(allocation, evaluation.measured.names).get(metric)


def _task_losses(evaluation: Evaluation, allocation: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Losses (n,) without what asking took."""
    return losses - evaluation.charged[np.arange(len(allocation)), allocation]


def _with_intervals(
    pairs: list[tuple[OperatingPoint, np.ndarray | None]], groups: np.ndarray | None
) -> list[OperatingPoint]:
    intervals = iter(paired_intervals((samples for _, samples in pairs if samples is not None), groups))
    found = []
    for point, samples in pairs:
        if samples is not None:
            interval = next(intervals)
            point = replace(point, interval=(interval.low, interval.high))
        found.append(point)
    return found
