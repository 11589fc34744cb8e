"""Figures of the decision engine: one curve from single agents to cascades and promises; what agents are worth."""

from __future__ import annotations

from typing import Any

import altair as alt

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
