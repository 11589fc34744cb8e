"""The theory's section of a report: why one run falls short, as charts in the page's theme and tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt

from l2d.rejector.report.cast import Cast
from l2d.rejector.report.figures import charts
from l2d.rejector.report.figures.costs import importance_panels, predictable_panel
from l2d.rejector.report.figures.rejectors import Figure, Panel, panel
from l2d.rejector.report.shown import Layout
from l2d.rejector.theory.of_costs import PREDICTABLE
from l2d.rejector.theory.parts.deferral import LOSS
from l2d.rejector.theory.section import shown_parts, theory_section

#: Terms of the learning bound: key -> what they are called.
TERMS = {"accuracy": "experts' class errors", "magnitude": "size of the other costs", "confidence": "chance"}


@dataclass(frozen=True, kw_only=True)
class TheoryPart:
    """What a page shows: a figure whose lead is the verdict, and every finding as tables, by title."""

    figure: Figure
    tables: dict[str, list[dict[str, Any]]]


def theory_part(layout: Layout, split: str) -> TheoryPart:
    """The theory of the first seed of the setting that the page looks at closely. Half a minute.

    Raises:
        UsageError: as :func:`l2d.rejector.theory.subject.examine`.
    """
    run = layout.focus[0].run
    looked_at = run.rejector.config.images
    section = theory_section(run.path, split, images=None if looked_at is None else Path(looked_at))
    tables = {title.rpartition("\n")[2]: rows for title, rows in shown_parts(section).items()}
    return TheoryPart(figure=theory_figure(section), tables=tables)


def theory_figure(section: dict[str, Any]) -> Figure:
    """The charts of a section of :func:`l2d.rejector.theory.section.theory_section`.

    Left what the run's deferral loss is made of, from the oracle's; right, where the network has one, the learning
    bound and its terms against the number of training samples; of a run that predicts costs, how far they can be
    predicted and what the columns of the input are worth.
    """
    panels = [_loss_panel(section)] + ([_bound_panel(section)] if section["bound_curve"] else [])
    if "importances" in section:
        if any(finding["value"] is not None for finding in section["parts"][PREDICTABLE].values()):
            panels.append(predictable_panel(section["parts"][PREDICTABLE]))
        panels += importance_panels(section["importances"]["columns"], Cast([], []))
    notes = [f"Run {section['run_id']}, {section['num_samples']:,} {section['split']} samples.", *section["notes"]]
    return Figure(
        name="theory",
        title="Why it falls short of the oracle",
        panels=panels,
        lead=section["verdict"],
        note=" ".join(notes),
    )


def _loss_panel(section: dict[str, Any]) -> Panel:
    found, rows, level = section["parts"][LOSS], [], 0.0
    run = found["run"]["value"]
    for key, finding in found.items():
        value = finding["value"]
        if value is None or not (key == "oracle" or finding["title"].startswith("+ ")):
            continue
        name = finding["title"].removeprefix("+ ")
        ends = {"from": level, "to": level + value, "right": max(level, level + value)}
        rows.append({"part": name, "value": value, "text": f"{value:.4f}", "says": finding["says"], **ends})
        level += value
    order = [row["part"] for row in rows]
    domain = min(0.0, *(row["to"] for row in rows)), 1.4 * max(row["right"] for row in rows)  # room for numbers
    scale = alt.Scale(domain=domain, nice=False)
    across = alt.X("from:Q", title="mean deferral loss", axis=alt.Axis(tickCount=5), scale=scale)
    part = alt.Y("part:N", sort=order, title=None, axis=alt.Axis(labelLimit=230))
    told = charts.tooltip(("part:N", "part", ""), ("value:Q", "loss", "+.4f"), ("says:N", "", ""))
    base = alt.Chart(charts.values(rows)).encode(y=part)
    rule = alt.Chart(charts.values([{"run": run}])).mark_rule(style="zero", strokeDash=[3, 3]).encode(x=alt.X("run:Q"))
    bars = base.mark_bar(style="other", height=16).encode(x=across, x2=alt.X2("to:Q"), tooltip=told)
    text = base.mark_text(style="strong-label", align="left", dx=5).encode(x=alt.X("right:Q"), text=alt.Text("text:N"))
    chart = alt.layer(rule, bars, text).properties(height=30 * len(rows) + 10)
    words = "; ".join(f"{row['part']}: {row['text']}" for row in rows)
    shown = [
        {"part": finding["title"], "value": finding["value"], "low": finding["low"], "high": finding["high"]}
        for finding in found.values()
    ]
    return panel("loss", "From the oracle to this rejector", chart, f"{words}; together {run:.4f}.", shown)


def _bound_panel(section: dict[str, Any]) -> Panel:
    curve, names = section["bound_curve"], {"bound": "bound", **TERMS}
    loss = section["parts"][LOSS]["run"]["value"]
    drawn = [key for key in names if any(point[key] > 0 for point in curve)]
    rows = [
        {"rows": point["rows"], "name": names[key], "value": point[key]}
        for key in drawn
        for point in curve
        if point[key] > 0  # the axis is logarithmic
    ]
    across = alt.Scale(type="log", nice=False, domain=[curve[0]["rows"], curve[-1]["rows"] * 200])  # room for names
    x = alt.X("rows:Q", title="training samples", scale=across, axis=alt.Axis(tickCount=5, format="~s"))
    y = alt.Y("value:Q", title="deferral loss", scale=alt.Scale(type="log"), axis=alt.Axis(tickCount=5, format="~g"))
    told = charts.tooltip(("name:N", "term", ""), ("rows:Q", "training samples", ",.0f"), ("value:Q", "value", ".4g"))
    layers = []
    for number, key in enumerate(drawn):
        style, dash = (
            ("system-line", [1, 0]) if key == "bound" else ("bound", [[7, 3], [2, 2], [7, 3, 2, 3]][number - 1])
        )
        some = [row for row in rows if row["name"] == names[key]]
        line = alt.Chart(charts.values(some)).encode(x=x, y=y)
        layers.append(line.mark_line(style=style, strokeDash=dash))
        layers.append(line.mark_point(style=style, opacity=0, size=120).encode(tooltip=told))
    ends = alt.Chart(charts.values(_apart(curve[-1], {key: names[key] for key in drawn}, rows)))
    layers.append(ends.mark_text(style="label", align="left", dx=6).encode(x=x, y=y, text=alt.Text("name:N")))
    level = alt.Chart(charts.values([{"value": loss, "rows": curve[-1]["rows"] * 200, "name": f"loss: {loss:.3f}"}]))
    layers.append(level.mark_rule(style="zero", strokeDash=[3, 3]).encode(y=y))
    layers.append(
        level.mark_text(style="strong-label", align="right", dx=-4, dy=-7).encode(x=x, y=y, text=alt.Text("name:N"))
    )
    fall = f"from {curve[0]['bound']:.4g} at {curve[0]['rows']:,.0f} samples to {curve[-1]['bound']:.4g} at"
    words = f"The learning bound falls {fall} {curve[-1]['rows']:,.0f}; the loss is {loss:.4f}."
    shown = [{"training samples": round(point["rows"]), **{names[key]: point[key] for key in names}} for point in curve]
    return panel("bound", "Learning bound", alt.layer(*layers).properties(height=280), words, shown)


def _apart(last: dict[str, float], names: dict[str, str], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Places for the names of curves at their ends, moved down where one would lie on another."""
    values = [row["value"] for row in rows]
    least = (max(values) / min(values)) ** 0.06  # a line of text, on a logarithmic axis
    found, above = [], None
    for key in sorted(names, key=lambda key: -last[key]):
        at = last[key] if above is None else min(last[key], above / least)
        if last[key] > 0:
            found.append({"rows": last["rows"], "value": at, "name": names[key]})
            above = at
    return found
