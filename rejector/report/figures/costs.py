"""Figures of runs that predict costs: predicted against paid costs, and what each column of the input is worth."""

from __future__ import annotations

from typing import Any, cast

import altair as alt

from l2d.rejector.evaluation.findings import predicted_in_words
from l2d.rejector.evaluation.guarded import guard_in_words
from l2d.rejector.report.cast import Cast
from l2d.rejector.report.figures import charts
from l2d.rejector.report.figures.rejectors import Figure, Panel, panel
from l2d.rejector.report.shown import Layout
from l2d.rejector.theory.of_costs import SHOWN, Judged

MOST_PANELS = 6  # agents
PREDICTIONS = 50_000  # for importances: a few seconds


def reliability(layout: Layout) -> Figure | None:
    """Paid against predicted costs of the agents with a name, first seed. None where the run predicts no costs."""
    result = layout.focus[0].result
    agents = result.get("reliability")
    if not agents:
        return None
    named = [name for name in layout.cast.named if agents[name]["samples"]]
    named.sort(key=lambda name: -result["allocation"][name])
    guard = result["guard"]
    words = predicted_in_words(result) or ""
    if guard["holds"]:
        words = f"The guard holds: {guard_in_words(guard, result['num_samples'])} {words}"
    note = (
        "Each point is a tenth of the samples, in order of the predicted cost (ten samples where they are fewer than a "
        "hundred); whiskers are 95 % intervals of what was paid. On the dashed line predictions are right."
    )
    if len(named) > MOST_PANELS:
        note += f" Shown are the {MOST_PANELS} agents with the largest shares; l2d evaluate --format json has all."
    return Figure(
        name="reliability",
        title="Are predicted costs what is paid?",
        panels=[_of_agent(name, agents[name], layout.cast, number) for number, name in enumerate(named[:MOST_PANELS])],
        lead=words,
        note=note,
    )


def _of_agent(name: str, about: dict[str, Any], agents: Cast, number: int) -> Panel:
    columns = ("predicted", "actual", "low", "high", "samples")
    rows = [dict(zip(columns, bin, strict=True)) for bin in zip(*(about[column] for column in columns), strict=True)]
    least = min(min(row["predicted"], row["low"]) for row in rows)
    most = max(max(row["predicted"], row["high"]) for row in rows)
    scale = alt.Scale(domain=[least, most if most > least else least + 1e-3], nice=True, zero=False)
    x = alt.X("predicted:Q", title="predicted cost", scale=scale, axis=alt.Axis(tickCount=4))
    y = alt.Y("actual:Q", title="paid cost", scale=scale, axis=alt.Axis(tickCount=4))
    told = charts.tooltip(
        ("predicted:Q", "predicted cost", ".4f"), ("actual:Q", "paid cost", ".4f"),
        ("low:Q", "95 % interval, from", ".4f"), ("high:Q", "to", ".4f"), ("samples:Q", "samples", ",d"),
    )  # fmt: skip
    ends = [{"predicted": end, "actual": end} for end in (least, most)]
    base = alt.Chart(charts.values([{**row, "agent": name} for row in rows])).encode(x=x)
    layers = [
        alt.Chart(charts.values(ends)).mark_line(style="bound", strokeDash=[6, 3]).encode(x=x, y=y),
        base.mark_rule(style="whisker").encode(y=alt.Y("low:Q", title="paid cost", scale=scale), y2=alt.Y2("high:Q")),
        base.mark_point(style="agent-point", filled=True, size=75).encode(
            y=y, color=charts.agent_colour(agents), tooltip=told
        ),
    ]
    chart = cast(alt.LayerChart, alt.layer(*layers).properties(height=240))
    slope = "predictions hardly vary"
    if about["slope"] is not None:
        slope = f"slope {about['slope']:.2f} [{about['slope_low']:.2f}, {about['slope_high']:.2f}]"
    text = f"{name}, {slope}: " + "; ".join(
        f"predicted {row['predicted']:.4f}, paid {row['actual']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
        for row in rows
    )
    shown = [
        {"predicted cost": row["predicted"], "paid cost": row["actual"]} | {key: row[key] for key in columns[2:]}
        for row in rows
    ]
    return panel(f"agent-{number}", f"{name}: {slope}", chart, f"{text}.", shown)


def importance(layout: Layout, split: str) -> Figure | None:
    """What the columns of the input are worth to the first seed of the focus. None where it predicts no costs."""
    first = layout.focus[0]
    if "reliability" not in first.result:
        return None
    worth = Judged.of(first.run, split).importances(PREDICTIONS)
    some = (
        f"the {SHOWN} of {len(worth.columns)} columns that matter most" if len(worth.columns) > SHOWN else "all columns"
    )
    return Figure(
        name="importance",
        title="What the columns of the input are worth",
        panels=importance_panels(worth.to_json()["columns"], layout.cast),
        lead="A column is permuted among the samples, so that it says nothing any more, and the rejector decides anew.",
        note=f"Shown: {some}. {worth.samples:,} samples, {worth.repeats} permutations each, the guard off; whiskers "
        "are 95 % intervals, paired by sample, for these models. Two columns that say the same may each be worth "
        "little. l2d theory takes more samples.",
    )


def importance_panels(columns: list[dict[str, Any]], cast: Cast) -> list[Panel]:
    """Rise of the deferral loss, and fall of the explained share, of the first columns.

    Args:
        columns: of :meth:`l2d.rejector.theory.importance.Importances.to_json`.
    """
    panels = []
    measures = {
        "loss": ("Rise of the deferral loss", "rise of the deferral loss"),
        "explained": ("Fall of the explained share of differences between agents", "fall of the explained share"),
    }
    for measure, (title, axis) in measures.items():
        rows = [{"column": row["column"], "kind": "system", **row[measure]} for row in columns[:SHOWN]]
        chart = charts.dots(
            rows, by="column", order=[row["column"] for row in rows], x_title=axis, agents=cast,
            interval="95 % interval", zero=True,
        )  # fmt: skip
        text = f"{title} where a column is permuted: " + "; ".join(
            f"{row['column']} {row['value']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]" for row in rows
        )
        shown = [{"column": row["column"], **row[measure]} for row in columns]
        panels.append(panel(f"worth-{measure}", title, chart, f"{text}.", shown))
    return panels


def predictable_panel(findings: dict[str, dict[str, Any]]) -> Panel:
    """Explained shares, of a section's part on how far costs can be predicted."""
    rows = [
        {"what": finding["title"], "kind": "system"} | {end: finding[end] for end in ("value", "low", "high")}
        for finding in list(findings.values())[:SHOWN]
        if finding["value"] is not None
    ]
    chart = charts.dots(
        rows, by="what", order=[row["what"] for row in rows], x_title="share of the variance explained",
        agents=Cast([], []), interval="95 % interval", zero=True, format=".3f",
    )  # fmt: skip
    text = "Share of the variance of costs that predictions explain: " + "; ".join(
        f"{row['what']} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in rows
    )
    shown = [
        {"what": finding["title"]} | {end: finding[end] for end in ("value", "low", "high")}
        for finding in findings.values()
    ]
    return panel("predictable", "How far costs can be predicted", chart, f"{text}.", shown)
