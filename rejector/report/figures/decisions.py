"""Figures of the decision engine: one curve from single agents to cascades and promises; what agents are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from l2d.rejector.decisions.saved import SavedPolicy
from l2d.rejector.report.figures import charts
from l2d.rejector.report.figures.rejectors import Figure, panel

WHISKER = "95 % interval"


def worth_figure(result: dict[str, Any]) -> Figure:
    """What is lost without each agent, with its interval, the largest first."""
    rows = [
        {
            "agent": row["agent"],
            **{name: row["without"][name] for name in ("value", "low", "high")},
            "verdict": row["verdict"],
        }
        for row in sorted(result["agents"], key=lambda row: -row["without"]["value"])
    ]
    order = [row["agent"] for row in rows]
    chart = dots_with_whiskers(rows, "agent", order, "lost without it, in deferral loss")
    told = "; ".join(f"{r['agent']}: {r['value']:+.4f} [{r['low']:+.4f}, {r['high']:+.4f}]" for r in rows)
    return Figure(
        name="worth",
        title="What agents are worth",
        panels=[
            panel(
                "without", "What is lost without each agent", chart, f"What is lost without each agent. {told}.", rows
            )
        ],
        note=f"Whiskers: {WHISKER}s, paired by sample. Right of 0: routing is better with the agent.",
    )


def dots_with_whiskers(rows: list[dict[str, Any]], by: str, order: list[str], title: str) -> Any:
    """A dot and its interval for each row, around 0."""
    shown = charts.tooltip(
        (f"{by}:N", by, ""), ("value:Q", title, "+.4f"), ("low:Q", "low", "+.4f"), ("high:Q", "high", "+.4f")
    )
    base = alt.Chart(charts.values(rows)).encode(
        y=alt.Y(f"{by}:N", sort=order, title=None, axis=alt.Axis(labelLimit=260))
    )
    zero = alt.Chart(charts.values([{"at": 0}])).mark_rule(strokeDash=[2, 2]).encode(x="at:Q")
    whisker = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q", tooltip=shown)
    dot = base.mark_point(style="system-point", filled=True, size=70).encode(x="value:Q", tooltip=shown)
    return alt.layer(zero, whisker, dot).properties(height=28 * len(rows) + 30)


def beyond_one_agent(policies: Sequence[SavedPolicy]) -> list[Figure]:
    """One curve from single agents to committees, cascades and promises; nothing without policies."""
    if not policies:
        return []
    points, priced = ways_of(policies)
    x_title = (
        f"mean price of an input ({policies[0].facts['result']['unit']})" if priced else "agents asked for an input"
    )
    rows = sorted((row for row in points if row["loss"] is not None), key=lambda row: (row["x"], row["loss"]))
    names = ", ".join(policy.name for policy in policies)
    told = "; ".join(f"{row['way']}: {row['loss']:.4f} at {row['x']:.3g}" for row in rows)
    panels = [
        panel("curve", "Deferral loss for what is asked", curve_of(rows, x_title), f"Deferral loss of {told}.", rows)
    ]
    promised = [row for policy in policies for row in promise_rows(policy)]
    if promised:
        text = "; ".join(f"{r['policy']} at {r['answered']:.0%} answered: {r['value']:.4f}" for r in promised[::10])
        panels.append(panel("promise", "Risk for the share that is answered", promise_chart(promised), text, promised))
    return [
        Figure(
            name="beyond",
            title=f"Beyond one agent: {names}",
            panels=panels,
            note="Whiskers: 95 % intervals of the difference from the router, paired by sample, around its loss. The "
            "line joins what nothing cheaper beats. Points of a promise are calibration samples; filled ones can be "
            "promised.",
        )
    ]


def ways_of(policies: Sequence[SavedPolicy]) -> tuple[list[dict[str, Any]], bool]:
    """A point for each way to decide, those of several policies once; and whether all have a price."""
    found: dict[tuple, dict[str, Any]] = {}
    results = [policy.facts["result"] for policy in policies]
    priced = all(way["price"] is not None for result in results for way in result["ways"] if way["way"] != "hindsight")
    for policy, result in zip(policies, results, strict=True):
        router = next(way["loss"] for way in result["ways"] if way["way"] == "router")
        for way in result["ways"]:
            if way["way"] == "hindsight":
                continue
            own = way["way"].startswith("policy")
            gap = way["against_router"] or {"low": 0.0, "high": 0.0}
            row = {
                "way": policy.name if own else way["way"], "what": "policy" if own else "compared",
                "x": way["price"] if priced else way["asked"], "loss": way["loss"],
                "low": router + gap["low"], "high": router + gap["high"],
                "no answer %": round(100 * way["abstained"], 1),
            }  # fmt: skip
            found.setdefault((row["way"], row["x"], row["loss"]), row)
    return list(found.values()), priced


def curve_of(rows: list[dict[str, Any]], x_title: str) -> Any:
    """Loss against price, names at the points, a line through the frontier."""
    frontier, least = [], float("inf")
    for row in rows:
        if row["loss"] < least:
            frontier.append(row)
            least = row["loss"]
    across = alt.X("x:Q", title=x_title, scale=alt.Scale(zero=False, padding=40))
    up = alt.Y("loss:Q", title="deferral loss", scale=alt.Scale(zero=False, padding=14))
    shown = charts.tooltip(
        ("way:N", "decided by", ""), ("loss:Q", "deferral loss", ".4f"), ("low:Q", "low", ".4f"),
        ("high:Q", "high", ".4f"), ("x:Q", x_title, ".4g"), ("no answer %:Q", "no answer %", ""),
    )  # fmt: skip
    base = alt.Chart(charts.values(rows)).encode(x=across)
    line = (
        alt.Chart(charts.values(frontier)).mark_line(style="system-line", interpolate="linear").encode(x=across, y=up)
    )
    whisker = base.mark_rule().encode(y=alt.Y("low:Q", title="deferral loss"), y2="high:Q")
    dot = base.mark_point(style="system-point", filled=True, size=80).encode(y=up, tooltip=shown)
    text = base.mark_text(style="label", align="left", dx=8, dy=-8).encode(y=up, text="way:N")
    return alt.layer(line, whisker, dot, text).properties(height=300)


def promise_rows(policy: SavedPolicy) -> list[dict[str, Any]]:
    """A point for each threshold that was tried, and each risk."""
    promise = policy.facts["result"]["promise"]
    if promise is None:
        return []
    return [
        {"policy": f"{policy.name}: {risk}", "answered": row["answered"], "value": row[risk.split("<")[0]],
         "limit": float(risk.split("<=")[1]), "promised": "can be promised" if row["promised"] else "cannot"}
        for risk in promise["risks"] for row in promise["tried"] if row[risk.split("<")[0]] is not None
    ]  # fmt: skip


def promise_chart(rows: list[dict[str, Any]]) -> Any:
    """Risk against the share answered, with its limit."""
    across = alt.X("answered:Q", title="share of inputs that get an answer", axis=alt.Axis(format="%"))
    shown = charts.tooltip(
        ("policy:N", "promise", ""),
        ("answered:Q", "answered", ".1%"),
        ("value:Q", "risk", ".4f"),
        ("promised:N", "", ""),
    )
    base = alt.Chart(charts.values(rows)).encode(x=across, detail="policy:N")
    line = base.mark_line(style="system-line").encode(y=alt.Y("value:Q", title="risk on calibration samples"))
    limit = base.mark_line(style="bound").encode(y="limit:Q")
    filled = base.transform_filter("datum.promised == 'can be promised'")
    dots = filled.mark_point(style="system-point", filled=True, size=40).encode(y="value:Q", tooltip=shown)
    return alt.layer(limit, line, dots).properties(height=300)
