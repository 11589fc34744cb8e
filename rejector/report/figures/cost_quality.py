"""The cost-quality figure: rejectors and every baseline by what their queries cost and how good they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from l2d.rejector.evaluation.cost_quality import OperatingPoint, cost_quality, mean_price, metrics_of, prices_of
from l2d.rejector.evaluation.intervals import paired_intervals
from l2d.rejector.evaluation.settings import BASELINE_TITLES, METHOD_OF_PAPER
from l2d.rejector.report.figures import charts
from l2d.rejector.report.figures.rejectors import Figure, Panel, capital, panel
from l2d.rejector.report.shown import METRIC_NAMES, Group, Layout, main_metrics, scaled

WIDE = 20.0  # range of prices from which on they are shown on a logarithmic axis
TASK_LOSS = "task_loss"  # the deferral loss without query costs


def quality_for_cost(layout: Layout) -> Figure | None:
    """Cost-quality curves, with Pareto set and hull. None where no agent has a price, or one's is not known."""
    evaluations = [evaluation for members in layout.groups for evaluation in members]
    prices = [agent.price for agent in evaluations[0].cache.agents]
    paid = evaluations[0].measured.prices is not None
    if not paid and (not any(prices) or None in prices):
        return None
    unit = evaluations[0].cache.record.unit_paid if paid else ""
    scale = f"in {unit or 'the unit that answers say'}" if paid else "in the unit of the recipe’s prices"
    metrics = [*(m for m in main_metrics(layout.focus) if m in metrics_of(evaluations)), TASK_LOSS]
    return Figure(
        name="cost-quality",
        title="Quality by cost",
        panels=[_panel(layout, metric) for metric in metrics[-3:]],
        lead="Each point is a way to answer everything. Better is up, cheaper is left.",
        note=f"Cost: mean price of the queries of one sample, {scale}. Strong points: the "
        "Pareto set, rejectors that no other beats in both; soft ones are beaten. Line: the non-decreasing hull, what "
        "a coin between two rejectors reaches; dashed: that of the agents alone. Squares: agents alone. Circles: the "
        "oracle at each β, and the other baselines. Whiskers: 95 % bootstrap intervals, or, for metrics that are not a "
        "mean over samples, ± one standard deviation over seeds.",
    )


def _panel(layout: Layout, metric: str) -> Panel:
    evaluations = [evaluation for members in layout.groups for evaluation in members]
    found = cost_quality(evaluations, metric)
    title = METRIC_NAMES.get(metric, metric)
    several = len({(point.name, point.setting) for point in found.points}) > 1
    points = []
    for position, point in enumerate(found.points):
        name = f"{point.name}, β {point.beta}" if several else f"β {point.beta}"
        points.append(_point(point, metric, name, "system" if position in found.pareto else "other"))
    for number in found.pareto[:1] + found.pareto[-1:]:
        point = found.points[number]
        points[number]["label"] = f"β {point.beta}" if point.name == METHOD_OF_PAPER else point.name
    for point in found.baselines:
        names = {"agent": f"{point.name} alone", "oracle": f"oracle, β {point.beta}"}
        row = _point(point, metric, names.get(point.kind, point.name), "agent" if point.kind == "agent" else "bound")
        row |= {"label": "" if point.kind == "oracle" or point.name in layout.cast.others else point.name}
        points.append(row | ({"agent": layout.cast.entry(point.name)} if point.kind == "agent" else {}))
    for point in _baselines(layout.focus, metric):
        points.append(_point(point, metric, f"{point.name}, β {point.beta}", "bound") | {"label": point.name})
    near = charts.near(points, "x")
    prices = [row["x"] for row in near]
    logarithmic = min(prices) > 0 and max(prices) > WIDE * min(prices)  # prices of models differ by powers of ten
    hulls = {"system-line": found.hull, "bound": found.agents_hull}
    lines = {
        style: [{"x": x, "y": scaled(metric, y)} for x, y in (_bent(hull) if logarithmic else hull.tolist())]
        for style, hull in hulls.items()
    }
    x_title = "mean price of the queries of a sample" + (f" ({found.unit})" if found.unit else "")
    chart = charts.scatter(
        near, x_title=x_title, y_title=title, agents=layout.cast,
        lines={style: line for style, line in lines.items() if len(line) > 1}, down=found.lower_is_better,
        logarithmic=logarithmic,
    )  # fmt: skip
    told = "; ".join(f"{row['name']}: {row['y']:.4g} at {row['x']:.4g}" for row in points)
    shown = [
        {"who": row["name"], "mean price": row["x"], title: row["y"], "low": row["y_low"], "high": row["y_high"]}
        | {"Pareto set": "yes" if number in found.pareto else ""}
        for number, row in enumerate(points)
    ]
    better = "lower is better, so the axis is upside down" if found.lower_is_better else "higher is better"
    name = capital(f"{title.removesuffix(' (%)')}, {better}")
    return panel(f"{metric}-for-cost", name, chart, f"{title} against mean price: {told}.", shown)


def _bent(hull: np.ndarray) -> list[tuple[float, float]]:
    """A hull with points between its vertices, since its straight edges are curves on a logarithmic axis."""
    if len(hull) < 2:
        return hull.tolist()
    steps = np.geomspace(hull[0, 0], hull[-1, 0], 60)
    x = np.unique(np.concatenate([hull[:, 0], steps.clip(hull[0, 0], hull[-1, 0])]))
    return list(zip(x.tolist(), np.interp(x, *hull.T).tolist(), strict=True))


def _point(point: OperatingPoint, metric: str, name: str, kind: str) -> dict[str, Any]:
    value, std = scaled(metric, point.quality), scaled(metric, point.std)
    low, high, text = value - std, value + std, f"± {std:.2g} over {point.seeds} seeds" if point.seeds > 1 else ""
    if point.interval is not None:
        low, high = (scaled(metric, end) for end in point.interval)
        text = f"95 %: {low:.4g} to {high:.4g}"
    place = {"x": point.cost, "x_low": point.cost, "x_high": point.cost, "y": value, "y_low": low, "y_high": high}
    return {"name": name, "kind": kind, **place, "label": "", "text": text}


def _baselines(focus: Group, metric: str) -> list[OperatingPoint]:
    """Random shares, the confidence threshold and the average of all agents, as far as they have the metric."""
    first = focus[0]
    prices, _ = prices_of(first)
    result, beta = first.result, first.run.point.beta_text
    known = _baseline_losses(focus)
    each = np.nanmean(prices, axis=0)
    costs = {"random_same_shares": float(np.mean([each[member.allocation].mean() for member in focus]))}
    if "confidence" in known:
        expert, threshold = first.baselines.threshold
        costs["confidence"] = mean_price(np.where(first.measured.confidence[0] < threshold, expert, 0), prices)
    if "averaging" in known:
        costs["averaging"] = float((np.isfinite(first.baselines.costs.numpy()) * np.nan_to_num(prices)).sum(1).mean())
    intervals = paired_intervals(known.values(), first.measured.groups)
    found = []
    for (name, losses), interval in zip(known.items(), intervals, strict=True):
        point = OperatingPoint(BASELINE_TITLES[name], "baseline", beta, costs[name], float(losses.mean()))
        if metric == TASK_LOSS:
            found.append(replace(point, interval=(interval.low, interval.high)))
        elif name == "averaging" and metric in result["averaging"]["metrics"]:
            found.append(replace(point, quality=result["averaging"]["metrics"][metric]))
    return found


def _baseline_losses(focus: Group) -> dict[str, np.ndarray]:
    """Loss of each sample without query costs, float64 (n,), by baseline; of those that everybody answers for."""
    first = focus[0]
    charged = first.charged
    finite = np.isfinite(first.baselines.costs.numpy())
    found = {}
    if finite.all():
        random = [
            member.against["random_same_shares"] - charged @ np.array(list(member.result["allocation"].values()))
            for member in focus
        ]
        found["random_same_shares"] = np.mean(random, axis=0)
        if "confidence" in first.against:
            expert, threshold = first.baselines.threshold
            asked = np.where(first.measured.confidence[0] < threshold, expert, 0)
            found["confidence"] = first.against["confidence"] - charged[np.arange(len(asked)), asked]
    if "averaging" in first.against:
        found["averaging"] = first.against["averaging"] - (finite * np.nan_to_num(charged)).sum(axis=1)
    return found
