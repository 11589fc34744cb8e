"""The cost-quality figure: rejectors and every baseline by what their queries cost and how good they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import charts
from .comparisons import mean_losses
from .cost_quality import OperatingPoint, cost_quality, metrics_of
from .evaluation import Evaluation
from .figures import Figure, Panel, capital, panel
from .intervals import paired_intervals
from .layout import METRIC_NAMES, Group, Layout, agents_of, main_metrics, scaled
from .settings import METHOD_OF_PAPER, RIVAL_TITLES

TASK_LOSS = "task_loss"  # the deferral loss without query costs


def quality_for_cost(layout: Layout) -> Figure | None:
    """Cost-quality curves, with Pareto set and hull. None where no agent has a price."""
    evaluations = [evaluation for members in layout.groups for evaluation in members]
    if not any(agent.price for agent in evaluations[0].cache.agents):
        return None
    metrics = [*(m for m in main_metrics(layout.focus) if m in metrics_of(evaluations)), TASK_LOSS]
    return Figure(
        name="cost-quality",
        title="Quality for cost",
        panels=[_panel(layout, metric) for metric in metrics[-3:]],
        lead="Each point is a way to answer everything. Better is up, cheaper is left.",
        note="Cost: mean price of the queries of one sample, in the unit of the recipe’s prices. Strong points: the "
        "Pareto set, rejectors that no other beats in both; soft ones are beaten. Line: the non-decreasing hull, what "
        "a coin between two rejectors reaches; dashed: that of the agents alone. Squares: agents alone. Circles: the "
        "oracle at each β, and the other baselines. Whiskers: of the loss 95 % bootstrap intervals, of other metrics "
        "± one standard deviation over seeds.",
    )


def _panel(layout: Layout, metric: str) -> Panel:
    evaluations = [evaluation for members in layout.groups for evaluation in members]
    found = cost_quality(evaluations, metric)
    title = METRIC_NAMES.get(metric, metric)
    several = len({(point.name, point.setting) for point in found.points}) > 1
    points, keys = [], []
    for position, point in enumerate(found.points):
        name = f"{point.name}, β {point.beta}" if several else f"β {point.beta}"
        points.append(_point(point, metric, name, "system" if position in found.pareto else "other"))
        keys.append(_key(point))
    for number in found.pareto[:1] + found.pareto[-1:]:
        point = found.points[number]
        points[number]["label"] = f"β {point.beta}" if point.name == METHOD_OF_PAPER else point.name
    for point in found.baselines:
        names = {"agent": f"{point.name} alone", "oracle": f"oracle, β {point.beta}"}
        row = _point(point, metric, names.get(point.kind, point.name), "agent" if point.kind == "agent" else "bound")
        row |= {"label": point.name if point.kind != "oracle" else ""}
        points.append(row | ({"agent": point.name} if point.kind == "agent" else {}))
        keys.append(_key(point))
    for point in _baselines(layout.focus, metric):
        points.append(_point(point, metric, f"{point.name}, β {point.beta}", "bound") | {"label": point.name})
        keys.append(_key(point))
    if metric == TASK_LOSS:
        _add_intervals(points, keys, layout)
    lines = {
        "system-line": [{"x": x, "y": scaled(metric, y)} for x, y in found.hull.tolist()],
        "bound": [{"x": x, "y": scaled(metric, y)} for x, y in found.agents_hull.tolist()],
    }
    chart = charts.scatter(
        points, x_title="mean price of the queries of a sample", y_title=title, agents=agents_of(layout.focus),
        lines={style: line for style, line in lines.items() if len(line) > 1}, down=found.lower_is_better,
    )  # fmt: skip
    told = "; ".join(f"{row['name']}: {row['y']:.4g} at {row['x']:.4g}" for row in points)
    shown = [
        {"who": row["name"], "mean price": row["x"], title: row["y"], "low": row["y_low"], "high": row["y_high"]}
        | {"Pareto set": "yes" if number in found.pareto else ""}
        for number, row in enumerate(points)
    ]
    better = "less is better: the axis is turned" if found.lower_is_better else "more is better"
    name = capital(f"{title.removesuffix(' (%)')}, {better}")
    return panel(f"{metric}-for-cost", name, chart, f"{title} against mean price: {told}.", shown)


def _point(point: OperatingPoint, metric: str, name: str, kind: str) -> dict[str, Any]:
    value, std = scaled(metric, point.quality), scaled(metric, point.std)
    text = f"± {std:.2g} over {point.seeds} seeds" if point.seeds > 1 else ""
    place = {"x": point.cost, "x_low": point.cost, "x_high": point.cost, "y": value, "y_low": value - std}
    return {"name": name, "kind": kind, **place, "y_high": value + std, "label": "", "text": text}


def _key(point: OperatingPoint) -> tuple[str, str, str]:
    return point.name, point.beta, point.setting if point.kind == "rejector" else ""


def _baselines(focus: Group, metric: str) -> list[OperatingPoint]:
    """Random shares, the confidence threshold and the average of all agents, as far as they have the metric."""
    first = focus[0]
    prices = np.array([agent.price for agent in first.cache.agents])
    result, beta = first.result, first.run.point.beta_text
    known = _baseline_losses(focus)
    costs = {"random_same_shares": float(np.mean([prices[member.allocation].mean() for member in focus]))}
    if "confidence" in known:
        expert = first.measured.names.index(result["confidence"]["expert"])
        costs["confidence"] = (1 - result["confidence"]["coverage"]) * float(prices[expert])
    if "averaging" in known:
        costs["averaging"] = float((np.isfinite(first.opponents.costs.numpy()) @ prices).mean())
    found = []
    for name, losses in known.items():
        value = float(losses.mean()) if metric == TASK_LOSS else None
        if name == "averaging" and metric != TASK_LOSS:
            value = result["averaging"]["metrics"].get(metric)
        if value is not None:
            found.append(OperatingPoint(RIVAL_TITLES[name], "baseline", beta, costs[name], value))
    return found


def _baseline_losses(focus: Group) -> dict[str, np.ndarray]:
    """Loss of each sample without query costs, float64 (n,), by baseline; of those that everybody answers for."""
    first = focus[0]
    query_costs = np.array(first.run.point.query_costs)
    finite = np.isfinite(first.opponents.costs.numpy())
    found = {}
    if finite.all():
        paid = [query_costs[member.allocation].mean() for member in focus]
        random = [member.rivals["random_same_shares"] - cost for member, cost in zip(focus, paid, strict=True)]
        found["random_same_shares"] = np.mean(random, axis=0)
        if "confidence" in first.rivals:
            expert, threshold = first.opponents.threshold
            deferred = first.measured.confidence[0] < threshold
            found["confidence"] = first.rivals["confidence"] - query_costs[expert] * deferred
    if "averaging" in first.rivals:
        found["averaging"] = first.rivals["averaging"] - finite @ query_costs
    return found


def _task_losses(members: Group) -> np.ndarray:
    """Loss of each sample without query costs, the mean over seeds: float64 (n,)."""
    query_costs = np.array(members[0].run.point.query_costs)
    return mean_losses(members) - np.mean([query_costs[member.allocation] for member in members], axis=0)


def _alone(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """The same for each agent and reference that answers every sample."""
    query_costs = dict(zip(evaluation.measured.names, evaluation.run.point.query_costs, strict=True))
    queries = {agent.name: agent.queries for agent in evaluation.cache.references}
    paid = {
        name: sum(query_costs.get(asked, 0.0) for asked in queries.get(name, [name]))
        for name in evaluation.opponents.alone
    }
    return {
        name: losses.astype(np.float64) - paid[name]
        for name, losses in evaluation.opponents.alone.items()
        if np.isfinite(losses).all()
    }


def _add_intervals(points: list[dict[str, Any]], keys: list[tuple], layout: Layout) -> None:
    """95 % intervals of the losses, in place of deviations over seeds; not where settings share a key."""
    first = layout.focus[0]
    losses: dict[tuple, np.ndarray] = {(name, "", ""): values for name, values in _alone(first).items()}
    for name, values in _baseline_losses(layout.focus).items():
        losses[RIVAL_TITLES[name], first.run.point.beta_text, ""] = values
    for members in layout.groups:
        point, opponents = members[0].run.point, members[0].opponents
        losses[point.method, point.beta_text, f"{point.cost or point.weights}, nu={point.nu:g}"] = _task_losses(members)
        paid = np.array(point.query_costs)[opponents.oracle_allocation]
        losses.setdefault(("oracle", point.beta_text, ""), opponents.losses["oracle"] - paid)
    same = {key: values for key, values in losses.items() if len(values) == len(first.losses) and keys.count(key) == 1}
    found = dict(zip(same, paired_intervals(same.values(), first.measured.groups), strict=True))
    for row, key in zip(points, keys, strict=True):
        if key in found:
            low, high = found[key].low, found[key].high
            row |= {"y_low": low, "y_high": high, "text": f"95 %: {low:.4f} to {high:.4f}"}
