"""Figures of which agent should answer what: risk against coverage, and where each agent wins."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np

from l2d.rejector.evaluation.curves import RiskCoverage, deferral_curve
from l2d.rejector.report.allocations import Decisions
from l2d.rejector.report.cast import Cast
from l2d.rejector.report.figures import charts
from l2d.rejector.report.figures.rejectors import Figure, Panel, panel, shares_table, shares_text, stack
from l2d.rejector.report.groups import Bins, group_rows
from l2d.rejector.report.shown import Layout, units_of

DRAWN = 120  # points of a curve
SCORES, BEST, RANDOM = "rejector’s scores", "best order", "random order"


# --- risk against coverage --------------------------------------------------------------------------------------------


def risk_for_coverage(layout: Layout, decisions: Decisions) -> Figure | None:
    """Risk of the system against the share that its model keeps. None where an agent has no answer."""
    focus = layout.focus
    if not all(np.isfinite(member.kept).all() and np.isfinite(member.deferred).all() for member in focus):
        return None
    curves = [deferral_curve(member.margin, member.kept, member.deferred) for member in focus]
    first = focus[0]
    best = deferral_curve(first.deferred - first.kept, first.kept, first.deferred)
    rows = []
    for seed, curve in enumerate(curves):
        rows += _thin(curve, SCORES, seed)
    rows += _thin(best, BEST, 0)
    ends = [float(np.mean([c.risk[0] for c in curves])), float(np.mean([c.risk[-1] for c in curves]))]
    rows += [{"order": RANDOM, "seed": 0, "coverage": 100.0 * end, "risk": ends[end]} for end in (0, 1)]
    model = decisions.agents[0]
    share = 100 * float((decisions.chosen == 0).mean())
    mark = {"coverage": share, "risk": float(decisions.losses.mean()), "label": "as trained"}
    chart = _coverage_chart(rows, mark, model)
    excess = float(np.mean([curve.excess_aurc for curve in curves]))
    area = float(np.mean([curve.aurc for curve in curves]))
    text = (
        f"Deferral loss against the share of {units_of(layout.focus)} that {model} keeps: from {ends[0]:.4f} where it "
        f"keeps none to {ends[1]:.4f} where it keeps all; as trained it keeps {share:.0f} % at {mark['risk']:.4f}."
    )
    grid = np.linspace(0, 1, 11)
    mean = np.mean([np.interp(grid, curve.coverage, curve.risk) for curve in curves], axis=0)
    ideal = np.interp(grid, best.coverage, best.risk)
    shown = [
        {"coverage %": 100 * float(c), "risk, rejector’s order": float(r), "best order": float(b)}
        for c, r, b in zip(grid, mean, ideal, strict=True)
    ]
    name = "a line a seed" if len(curves) > 1 else "one seed"
    return Figure(
        name="risk-coverage",
        title="Risk by coverage",
        panels=[panel("risk-coverage", f"Share kept by {model}, and what the system then costs", chart, text, shown)],
        lead=f"The first agent, {model}, can be made to keep any share: it keeps the {units_of(layout.focus)} with the "
        "highest margin of its score over the experts’, the others go to the best-scored expert.",
        note=f"Area under the curve (AURC) {area:.4f}, of which {excess:.4f} in excess of the best order; {name}.",
    )


def _thin(curve: RiskCoverage, order: str, seed: int) -> list[dict[str, Any]]:
    coverage, risk = curve.thinned(DRAWN)
    return [
        {"order": order, "seed": seed, "coverage": round(100 * c, 3), "risk": round(r, 6)}
        for c, r in zip(coverage.tolist(), risk.tolist(), strict=True)
    ]


def _coverage_chart(rows: list[dict], mark: dict[str, Any], model: str) -> alt.LayerChart | alt.FacetChart:
    x = alt.X(
        "coverage:Q", title=f"share kept by {model} (%)", scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(tickCount=5)
    )
    y = alt.Y("risk:Q", title="mean deferral loss", scale=alt.Scale(zero=False, padding=12))
    told = charts.tooltip(("order:N", "order", ""), ("coverage:Q", "kept, %", ".1f"), ("risk:Q", "loss", ".4f"))
    layers = []
    looks = {SCORES: ("system-line", [1, 0], 0), BEST: ("bound", [6, 3], 14), RANDOM: ("bound", [2, 2], -9)}
    for name, (style, dash, dy) in looks.items():
        some = [row for row in rows if row["order"] == name]
        base = alt.Chart(charts.values(some)).encode(x=x, y=y, detail=alt.Detail("seed:N"))
        layers.append(base.mark_line(style=style, strokeDash=dash).encode())
        layers.append(base.mark_point(style=style, opacity=0, size=120).encode(tooltip=told))
        if name != SCORES:
            at, height = ([row[key] for row in some if row["seed"] == 0] for key in ("coverage", "risk"))
            label = {"coverage": 50.0, "risk": float(np.interp(50.0, at, height)), "label": name}
            text = alt.Chart(charts.values([label])).mark_text(
                style="label", dy=dy, align="left" if dy > 0 else "right"
            )
            layers.append(text.encode(x=x, y=y, text=alt.Text("label:N")))
    point = alt.Chart(charts.values([mark])).encode(x=x, y=y)
    layers.append(point.mark_point(style="system-point", filled=True, size=90).encode(tooltip=told[1:]))
    layers.append(point.mark_text(style="strong-label", dy=-13).encode(text=alt.Text("label:N")))
    return alt.layer(*layers).properties(height=280)


# --- where each agent wins --------------------------------------------------------------------------------------------


def by_group(layout: Layout, decisions: Decisions, bins: Bins, number: int) -> Figure:
    """Which agent answers in each bin, which is cheapest there, regret against best constant agent and oracle."""
    agents, best = layout.cast, decisions.best_constant
    rows = group_rows(decisions, bins)
    order = [f"{row['bin']} ({row['samples']:,})" for row in rows]
    shares, bars = [], []
    for label, row in zip(order, rows, strict=True):
        for who, kind in (("rejector", "shares"), ("cheapest agent", "cheapest_shares")):
            of_bin = {agent: {"mean": share} for agent, share in row[kind].items()}
            shares += stack({"bin": label, "who": who, "samples": row["samples"]}, agents, of_bin)
            bars.append(({bins.title: label, "decided by": who}, of_bin))
    unit = units_of(layout.focus)
    stacked = charts.stacked_shares(
        shares, by="bin", order=order, agents=agents, title=None, unit=unit, across=False,
        pair=("rejector", "cheapest agent"),
    )  # fmt: skip
    panels = [
        panel("shares", "Which agent answers; paler, below it: which is cheapest", stacked, shares_text(shares, "bin"),
              shares_table(bars)),
    ]  # fmt: skip
    panels.append(_regret_panel("best", f"Regret against {best} alone: left of 0 is better", rows, order, agents, bins))
    panels.append(_regret_panel("oracle", "Regret against the oracle: what is left to gain", rows, order, agents, bins))
    return Figure(
        name=f"where-{number}",
        title=f"Where each agent wins: by {bins.title}",
        panels=panels,
        note=f"In brackets: {unit}. Agents that tie for the cheapest share a sample. Whiskers: 95 % bootstrap "
        "intervals of mean differences in deferral loss in the group, seeds averaged; with many groups, one interval "
        "in twenty misses by chance.",
    )


def _regret_panel(name: str, title: str, rows: list[dict], order: list[str], agents: Cast, bins: Bins) -> Panel:
    kind = "system" if name == "best" else "bound"
    points = [
        {"bin": label, "samples": row["samples"], "kind": kind, **row[f"against_{name}"]}
        for label, row in zip(order, rows, strict=True)
    ]
    chart = charts.dots(
        points, by="bin", order=order, x_title="difference in deferral loss", agents=agents, interval="95 % interval",
        zero=True,
    )  # fmt: skip
    told = "; ".join(f"{p['bin']}: {p['value']:+.4f} [{p['low']:+.4f}, {p['high']:+.4f}]" for p in points)
    shown = [
        {
            bins.title: row["bin"],
            "samples": row["samples"],
            "difference": p["value"],
            "low": p["low"],
            "high": p["high"],
        }
        for row, p in zip(rows, points, strict=True)
    ]
    return panel(f"regret-{name}", title, chart, f"{title}. {told}.", shown)
