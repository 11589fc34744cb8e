"""The figures of a report: what is drawn of a cache's evaluations, with the words that go with it.

Every number in a figure is one of :func:`l2d.rejector.evaluation.evaluate_runs`, or of the allocations of the runs.
How it looks is in rejector/report/figures/charts.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import altair as alt
import numpy as np

from l2d.rejector.evaluation.cost_quality import LOWER_IS_BETTER
from l2d.rejector.evaluation.evaluation import mean_std
from l2d.rejector.evaluation.settings import BASELINE_TITLES, baseline_title, shown_differences
from l2d.rejector.report.cast import MOST_COLOURED, Cast
from l2d.rejector.report.figures import charts
from l2d.rejector.report.figures.theme import text_on
from l2d.rejector.report.shown import METRIC_NAMES, Layout, labels_of, main_metrics, scaled, units_of

AVERAGE = BASELINE_TITLES["averaging"]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart.

    Attributes:
        spec: Vega-Lite, without a config, width or schema.
        alt: what it shows, in words.
        rows: its numbers, as a table beside the figure.
    """

    name: str
    title: str
    spec: dict[str, Any]
    alt: str
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Charts that belong together.

    Attributes:
        name: of a file.
        lead: what to see, under the title.
        note: what is drawn and where it comes from, below.
    """

    name: str
    title: str
    panels: list[Panel]
    lead: str = ""
    note: str = ""


def panel(name: str, title: str, chart: alt.LayerChart | alt.FacetChart, alt_text: str, rows: list[dict]) -> Panel:
    spec = chart.to_dict(validate=False)  # a tenth of a second a chart; the tests compile them all
    for key in ("config", "$schema"):
        spec.pop(key, None)
    return Panel(name=name, title=title, spec=spec, alt=alt_text, rows=rows)


def compare(layout: Layout) -> Figure:
    """Rejectors at one ``beta``, beside every baseline."""
    groups, focus = layout.compared, layout.focus
    names = labels_of(groups)
    result = focus[0].result
    beta = focus[0].run.point.beta_text
    panels = [_losses(layout, names), _differences(layout), _shares_by_setting(layout, names)]
    metrics = main_metrics(focus)
    if len(metrics) == 2:
        panels.append(_two_tasks(layout, names, metrics))
    seeds = result["over_seeds"]["seeds"]
    spread = f"Whiskers of losses and metrics: ± one standard deviation over {seeds} seeds. " if seeds > 1 else ""
    return Figure(
        name="rejectors",
        title=f"Rejectors and baselines at β = {beta}" if layout.swept or beta != "0" else "Rejectors and baselines",
        panels=panels,
        lead="Deferral loss sums task costs, weighted by λ, and the query cost of the agent that is asked.",
        note=f"{spread}Whiskers of differences: 95 % bootstrap intervals over {units_of(focus)}.",
    )


def _losses(layout: Layout, names: list[str]) -> Panel:
    result, agents = layout.focus[0].result, layout.cast
    rows = []
    for name, members in zip(names, layout.compared, strict=True):
        loss = members[0].result["over_seeds"]["deferral_loss"]
        kind = "system" if members is layout.focus else "other"
        rows.append(_dot(name, loss["mean"], loss["std"], kind))
    for baseline in ("random_same_shares", "confidence", "confidence_same_coverage", "averaging"):
        if f"{baseline}_loss" in result:
            found = mean_std([member.result[f"{baseline}_loss"] for member in layout.focus])
            rows.append(_dot(BASELINE_TITLES[baseline], found["mean"], found["std"], "bound"))
    for agent, alone in result["agents"].items():
        if finite(alone.get("mean_cost")):
            is_agent = alone["role"] == "agent"
            rows.append(
                _dot(f"{agent} alone" if is_agent else f"{agent} (reference)", alone["mean_cost"], 0.0,
                     "agent" if is_agent else "bound", agent)
            )  # fmt: skip
    rows.append(_dot("oracle", result["oracle_loss"], 0.0, "bound"))
    rows.sort(key=lambda row: row["value"])
    drawn = [row for row in charts.near(rows, "value") if row.get("agent") not in agents.others]
    order = [row["name"] for row in drawn]
    chart = charts.dots(
        drawn, by="name", order=order, x_title="mean deferral loss", agents=agents, interval="± std over seeds"
    )
    text = "Mean deferral loss, lowest first: " + "; ".join(f"{row['name']} {row['value']:.4f}" for row in rows) + "."
    shown = [{"who": r["name"], "mean deferral loss": r["value"], "std over seeds": r["std"]} for r in rows]
    return panel("loss", "Deferral loss, lower is better", chart, text, shown)


def _dot(name: str, value: float, std: float, kind: str, agent: str = "") -> dict[str, Any]:
    row = {"name": name, "value": value, "low": value - std, "high": value + std, "std": std, "kind": kind}
    return row | ({"agent": agent} if agent else {})


def finite(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))


def _differences(layout: Layout) -> Panel:
    result = layout.focus[0].result
    rows = []
    told = {baseline_title(baseline, result): interval for baseline, interval in shown_differences(result).items()}
    constants = (result["best_constant"], result["best_agent"])
    told |= {
        f"{agent} alone": interval
        for agent, interval in result["over_seeds"]["agents"].items()
        if agent not in constants and result["agents"][agent]["role"] == "agent"
    }
    for name, interval in told.items():
        ends = {end: interval[end] for end in ("value", "low", "high")}
        rows.append({"name": name.split(" (Mao")[0], **ends, "kind": "bound" if name == "oracle" else "system"})
    rows.sort(key=lambda row: row["value"])
    hidden = {f"{agent} alone" for agent in layout.cast.others}
    told_of = [{**row, "kind": "bound" if row["name"] == AVERAGE else "other"} for row in rows]
    far = {row["name"] for row in told_of} - {row["name"] for row in charts.near(told_of, "value")}
    drawn = [row for row in rows if row["name"] not in hidden | far]
    chart = charts.dots(
        drawn, by="name", order=[row["name"] for row in drawn], x_title="difference in deferral loss",
        agents=layout.cast, interval="95 % interval", zero=True,
    )  # fmt: skip
    name = labels_of(layout.compared)[layout.compared.index(layout.focus)] or "the rejector"
    text = f"Deferral loss of {name} less that of each baseline, with 95 % intervals: " + "; ".join(
        f"{row['name']} {row['value']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]" for row in rows
    )
    shown = [{"against": r["name"], "difference": r["value"], "low": r["low"], "high": r["high"]} for r in rows]
    return panel("difference", "Difference from each baseline: left of 0 is better", chart, text + ".", shown)


def _shares_by_setting(layout: Layout, names: list[str]) -> Panel:
    agents, rows, bars = layout.cast, [], []
    for name, members in zip(names, layout.compared, strict=True):
        bars.append(({"who": name}, members[0].result["over_seeds"]["allocation"]))
    oracle = layout.focus[0].result["oracle"]["allocation"]
    bars.append(({"who": "oracle"}, {a: {"mean": share} for a, share in oracle.items()}))
    for label, shares in bars:
        rows += stack({"name": label["who"]}, agents, shares)
    order = [*names, "oracle"]
    chart = charts.stacked_shares(
        rows, by="name", order=order, agents=agents, title=None, unit=units_of(layout.focus), across=False
    )
    return panel("shares", "Which agent answers", chart, shares_text(rows, "name"), shares_table(bars))


def stack(labels: dict[str, Any], agents: Cast, shares: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Segments of one bar, from the first agent up, the others together: shares in percent, and where they lie."""
    rows, start = [], 0.0
    for agent, mean in agents.summed({name: share["mean"] for name, share in shares.items()}).items():
        share = 100 * mean
        row = {**labels, "agent": agent, "share": share, "from": start, "to": start + share}
        if "std" in shares.get(agent, {}):
            row["std"] = 100 * shares[agent]["std"]
        rows.append(row | {"ink": text_on(agents.slot(agent))})
        start += share
    return rows


def shares_text(rows: list[dict[str, Any]], by: str) -> str:
    """Shares in a sentence a bar."""
    bars: dict[str, list[str]] = {}
    for row in rows:
        label = f"{row[by]} ({row['who']})" if "who" in row else str(row[by])
        bars.setdefault(label, []).append(f"{row['agent']} {row['share']:.0f} %")
    return "Shares of the agents: " + "; ".join(f"{bar}: {', '.join(parts)}" for bar, parts in bars.items()) + "."


def capital(text: str) -> str:
    """With a capital first letter; mAP stays what it is."""
    return text if text.startswith("mAP") else text[0].upper() + text[1:]


def shares_table(bars: list[tuple[dict[str, Any], dict[str, dict[str, float]]]]) -> list[dict[str, Any]]:
    """Shares of all agents: a row a bar and a column an agent, or, of many agents, a row an agent and a column a bar.

    Args:
        bars: what names a bar, and agent -> ``mean`` of its share.
    """
    if len(bars[0][1]) <= MOST_COLOURED:
        return [
            label | {f"{agent} %": 100 * share["mean"] for agent, share in shares.items()} for label, shares in bars
        ]
    titles = [", ".join(map(str, label.values())) + " %" for label, _ in bars]
    of_bars = [(title, shares) for title, (_, shares) in zip(titles, bars, strict=True)]
    return [
        {"agent": agent} | {title: 100 * shares[agent]["mean"] for title, shares in of_bars} for agent in bars[0][1]
    ]


def _two_tasks(layout: Layout, names: list[str], metrics: list[str]) -> Panel:
    result, agents = layout.focus[0].result, layout.cast
    points = []

    def add(name: str, kind: str, values: dict[str, Any], agent: str = "", label: str = "") -> None:
        if not all(metric in values for metric in metrics):
            return
        pair = [values[m] if isinstance(values[m], dict) else {"mean": values[m], "std": 0.0} for m in metrics]
        (x, dx), (y, dy) = ((scaled(m, v["mean"]), scaled(m, v["std"])) for m, v in zip(metrics, pair, strict=True))
        row = {"name": name, "kind": kind, "x": x, "y": y, "x_low": x - dx, "x_high": x + dx, "y_low": y - dy}
        row |= {
            "y_high": y + dy,
            "label": "" if agent in agents.others else label or name,
            "text": f"± {dx:.2g}, ± {dy:.2g} over seeds" if dx or dy else "",
        }
        points.append(row | ({"agent": agents.entry(agent)} if agent else {}))

    for name, members in zip(names, layout.compared, strict=True):
        kind = "system" if members is layout.focus else "other"
        add(name, kind, members[0].result["over_seeds"]["metrics"], label=name)
    for agent, alone in result["agents"].items():
        kind = "agent" if alone["role"] == "agent" else "bound"
        add(f"{agent} alone", kind, alone, agent if kind == "agent" else "", label=agent)
    add("oracle", "bound", result["oracle"]["metrics"])
    x_title, y_title = (METRIC_NAMES[name] for name in metrics)
    flipped = metrics[1] in LOWER_IS_BETTER
    left = metrics[0] in LOWER_IS_BETTER
    chart = charts.scatter(points, x_title=x_title, y_title=y_title, agents=agents, down=flipped)
    text = f"{x_title} and {y_title}: " + "; ".join(f"{p['name']} {p['x']:.4g} and {p['y']:.4g}" for p in points)
    shown = [{"who": p["name"], x_title: p["x"], y_title: p["y"]} for p in points]
    title = f"Both tasks, better is up and {'left' if left else 'right'}"
    return panel("two-tasks", title, chart, text + ".", shown)
