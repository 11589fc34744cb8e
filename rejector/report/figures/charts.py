"""The forms that figures have: curves, stacked shares, dots with intervals, scatter.

Charts are Vega-Lite specifications made with Altair. They carry no colours of their own: agents take theirs from the
range ``category`` in the agents' order, everything else is drawn in a named style; both are in theme.py beside, light
or dark. So one specification serves the page by day and by night, and files.

Channels are given as objects: to make one of a text Altair looks through its whole schema, 6 ms each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import altair as alt

from l2d.rejector.report.cast import Cast
from l2d.rejector.report.figures import theme
from l2d.rejector.report.figures.labels import apart, place_labels, shortened

Rows = Sequence[dict[str, Any]]


def agent_colour(agents: Cast) -> alt.Color:
    """Colour by agent: the n-th agent has the palette's n-th colour, wherever it occurs; others are grey."""
    scale = alt.Scale(domain=agents.entries, range=theme.ranges(agents))
    return alt.Color("agent:N", scale=scale, sort=agents.entries, legend=alt.Legend(orient="bottom", columns=4))


class _Values(alt.InlineData):
    """Data that charts share: Altair copies a chart with all that it has at every step of its making."""

    def __deepcopy__(self, memo: Any) -> _Values:
        return self


def values(rows: Rows) -> alt.InlineData:
    """Rows as the data of a chart; they are not changed afterwards."""
    return _Values(values=list(rows))


def tooltip(*fields: tuple[str, str, str]) -> list[alt.Tooltip]:
    """What is shown under the pointer: (column and its type, title, number format)."""
    return [
        alt.Tooltip(name, title=title, format=format) if format else alt.Tooltip(name, title=title)
        for name, title, format in fields
    ]


def curve(
    rows: Rows,
    *,
    x: str,
    order: Sequence[str],
    x_title: str,
    y_title: str,
    agents: Cast,
    alone: Rows = (),
    bounds: Rows = (),
    format: str = ".3f",
) -> alt.LayerChart:
    """A quantity along a sweep: mean and deviation of each series, agents alone as levels, bounds as dashed curves.

    Args:
        rows: ``x``, ``series``, ``value``, ``low``, ``high``, ``seeds``; the first row's series is the one discussed.
        x: column of the sweep, as text, in ``order``; a number ``at`` beside it is where it stands on the axis.
        alone: ``agent``, ``value``.
        bounds: ``x``, ``bound``, ``value``.
        format: of the numbers under the pointer.
    """
    main = rows[0]["series"]
    across = _along_sweep(rows, x, order, x_title)
    up = alt.Y("value:Q", title=y_title, scale=alt.Scale(zero=False, padding=14))
    layers = []
    if alone:
        shown = tooltip(("agent:N", "alone", ""), ("value:Q", y_title, format))
        base = alt.Chart(values(alone)).encode(y=up, color=agent_colour(agents), tooltip=shown)
        layers.append(base.mark_rule(strokeDash=[6, 3], strokeWidth=1.6))
        heights = [row[end] for row in rows for end in ("low", "high")] + [row["value"] for row in (*alone, *bounds)]
        named = alt.Chart(values(apart(alone, 0.05 * (max(heights) - min(heights)))))
        named = named.transform_calculate(label="datum.agent + ' alone'")
        layers.append(
            named.mark_text(align="left", dy=-6, dx=2, style="label").encode(
                y=up, x=alt.XValue(0), text=alt.Text("label:N")
            )
        )
    if bounds:
        shown = tooltip(("bound:N", "baseline", ""), (f"{x}:N", x_title, ""), ("value:Q", y_title, format))
        named = list(dict.fromkeys(row["bound"] for row in bounds))
        scale = alt.Scale(domain=named, range=[[2, 2], [7, 3], [7, 3, 2, 3], [1, 4]])
        dash = alt.StrokeDash("bound:N", scale=scale, legend=None)
        base = alt.Chart(values(bounds)).encode(x=across, y=up, detail=alt.Detail("bound:N"))
        layers.append(base.mark_line(style="bound").encode(strokeDash=dash))
        ours = {row[x]: row["value"] for row in rows if row["series"] == main}
        for (align, dy), some in _beside_curves(bounds, ours, x, [row["value"] for row in alone]).items():
            labels = alt.Chart(values(some)).mark_text(
                style="label", align=align, dx={"left": 6, "right": -6}[align], dy=dy
            )
            layers.append(labels.encode(x=across, y=alt.Y("label_at:Q", title=y_title), text=alt.Text("bound:N")))
        layers.append(base.mark_point(style="bound", opacity=0, size=200).encode(tooltip=shown))
    shown = tooltip(
        ("series:N", "rejector", ""), (f"{x}:N", x_title, ""), ("value:Q", f"{y_title}, mean", format),
        ("std:Q", "std over seeds", format), ("seeds:Q", "seeds", ""),
    )  # fmt: skip
    for series in dict.fromkeys(row["series"] for row in rows):
        line = alt.Chart(values([row for row in rows if row["series"] == series])).encode(x=across)
        style = "system" if series == main else "other"
        if series == main:
            layers.append(
                line.mark_area(style="system-band").encode(y=alt.Y("low:Q", title=y_title), y2=alt.Y2("high:Q"))
            )
        layers.append(line.mark_line(style=f"{style}-line").encode(y=up))
        points = line.mark_point(style=f"{style}-point" if series == main else "hollow", filled=series == main)
        layers.append(points.encode(y=up, tooltip=shown))
    return alt.layer(*layers).properties(height=260)


def _along_sweep(rows: Rows, x: str, order: Sequence[str], title: str | None) -> alt.X:
    """The axis of a sweep: spaced by value where the values are numbers, near 0 by ratio if they span far."""
    if "at" not in rows[0]:
        return alt.X(f"{x}:N", sort=list(order), title=title, axis=alt.Axis(labelAngle=0, labelOverlap=True))
    places = sorted({row["at"] for row in rows})
    least = min((place for place in places if place > 0), default=1.0)
    kind = {"type": "symlog", "constant": least} if places[-1] > 20 * least else {}
    axis = alt.Axis(values=places, labelAngle=0, labelOverlap="greedy", format="~g")
    return alt.X("at:Q", title=title, scale=alt.Scale(nice=False, zero=False, padding=10, **kind), axis=axis)


def _beside_curves(
    bounds: Rows, ours: dict[str, float], x: str, levels: Sequence[float]
) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Where the names of bounds go: by alignment and offset, rows with ``label_at``.

    All at one ``x``, where the curves lie farthest apart; on the side that the slope leaves free, above our curve or
    below it, and far enough from each other.
    """
    at = {place: [value] for place, value in ours.items()}
    for row in bounds:
        at.setdefault(row[x], []).append(row["value"])
    everything = [value for several in at.values() for value in several] + list(levels)
    gap = 0.075 * (max(everything) - min(everything))

    def room(place: str) -> float:
        heights = sorted([*at[place], *levels])
        return min((high - low for low, high in pairwise(heights)), default=0.0)

    place = max([name for name in ours if name in at][1:-1] or list(ours), key=room)
    first, *_, last = [*ours.values(), *ours.values()]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for side, align, dy in ((1, "right", -8), (-1, "left", 10)):
        align = align if last >= first else {"right": "left", "left": "right"}[align]
        align = {0: "left", len(ours) - 1: "right"}.get(list(ours).index(place), align)  # no name leaves the plot
        if (along := _share_of_way(bounds, ours, x, place)) is not None:
            align = "left" if along < 0.4 else "right" if along > 0.6 else align
        some = [row for row in bounds if row[x] == place and (row["value"] >= ours[place]) == (side > 0)]
        before = None
        for row in sorted(some, key=lambda row: side * row["value"]):
            height = side * row["value"] if before is None else max(side * row["value"], before + gap)
            found.setdefault((align, dy), []).append({**row, "label_at": side * height})
            before = height
    return found


def _share_of_way(bounds: Rows, ours: dict[str, float], x: str, place: str) -> float | None:
    """How far along the axis a place lies, from 0 to 1; None where places are no numbers."""
    at = {row[x]: row["at"] for row in bounds if "at" in row and row[x] in ours}
    if place not in at or len(set(at.values())) < 2:
        return None
    return (at[place] - min(at.values())) / (max(at.values()) - min(at.values()))


def near(rows: Rows, key: str) -> list[dict[str, Any]]:
    """Rows without baselines that lie far beyond all others, so would squeeze these together; a table has them.

    Asking every one of many agents costs many times what any of them does.
    """
    fixed = [row[key] for row in rows if row["kind"] != "bound"] or [row[key] for row in rows]
    low, high = min(fixed), max(fixed)
    reach = 3 * max(high - low, abs(high), abs(low))
    return [row for row in rows if row["kind"] != "bound" or low - reach <= row[key] <= high + reach]


def stacked_shares(
    rows: Rows,
    *,
    by: str,
    order: Sequence[str],
    agents: Cast,
    title: str | None,
    unit: str,
    across: bool,
    pair: Sequence[str] = (),
) -> alt.LayerChart:
    """Which agent answers, stacked to 100 %: bars side by side (``across``), or one below the other for long names.

    Args:
        rows: ``by``, ``agent``, ``share`` in percent, ``std``, ``ink``, ``from`` and ``to`` (ends of the segment).
        by: column that names the bar, in ``order``.
        title: of that column.
        unit: what is shared out.
        pair: values of the column ``who``, a bar each beside one another; the first is drawn in full, others paler.
    """
    scale = alt.Scale(domain=[0, 100], nice=False)
    shown = [(f"{by}:N", title or "bar", ""), ("agent:N", "agent", ""), ("share:Q", f"share of {unit}, %", ".1f")]
    shown += [("std:Q", "std over seeds", ".1f")] if "std" in rows[0] else []
    shown += [("samples:Q", unit, ",d")] if "samples" in rows[0] else []
    base = alt.Chart(values(rows))
    if across:
        axis = alt.Axis(labelAngle=0, labelOverlap=True)
        place: dict[str, Any] = {"x": alt.X(f"{by}:N", sort=list(order), title=title, axis=axis)}
        ends = {"y": alt.Y("from:Q", scale=scale, title=f"share of {unit} (%)"), "y2": alt.Y2("to:Q")}
        middle: dict[str, Any] = {"y": alt.Y("middle:Q", scale=scale)}
        size: dict[str, Any] = {"width": alt.RelativeBandSize(0.8)}
    else:
        place = {"y": alt.Y(f"{by}:N", sort=list(order), title=title)}
        few = alt.Axis(tickCount=5)
        ends = {"x": alt.X("from:Q", scale=scale, axis=few, title=f"share of {unit} (%)"), "x2": alt.X2("to:Q")}
        middle = {"x": alt.X("middle:Q", scale=scale)}
        size = {"height": alt.RelativeBandSize(0.9 if pair else 0.72)}
    if pair:
        place["yOffset"] = alt.YOffset("who:N", sort=list(pair))
        pale = alt.Scale(domain=list(pair), range=[1.0] + [0.45] * (len(pair) - 1))
        place["opacity"] = alt.Opacity("who:O", scale=pale, sort=list(pair), legend=None)
        shown.insert(0, ("who:N", "who decides", ""))
    told = tooltip(*shown)
    if across and "at" in rows[0]:
        x = _along_sweep(rows, by, order, title)
        filled = base.mark_area(line=False).encode(
            x=x, **ends, color=agent_colour(agents), detail=alt.Detail("agent:N")
        )
        points = base.mark_rule(strokeWidth=9, opacity=0).encode(
            x=x, **ends, detail=alt.Detail("agent:N"), tooltip=told
        )
        lines = base.mark_rule(style="zero", strokeDash=[2, 3]).encode(x=x)
        return alt.layer(filled, lines, points).properties(height=260)
    drawn = base.mark_bar(**size).encode(**place, **ends, color=agent_colour(agents), tooltip=told)
    place.pop("opacity", None)
    some = base.transform_filter("datum.share >= 8" + (f" && datum.who === '{pair[0]}'" if pair else ""))
    text = (
        some.transform_calculate(middle="(datum.from + datum.to) / 2")
        .mark_text(fontSize=10.5)
        .encode(**place, **middle, text=alt.Text("share:Q", format=".0f"), color=alt.Color("ink:N", scale=None))
    )
    return alt.layer(drawn, text).properties(height=260 if across else (34 if pair else 30) * len(order))


def dots(
    rows: Rows,
    *,
    by: str,
    order: Sequence[str],
    x_title: str,
    agents: Cast,
    interval: str,
    zero: bool = False,
    title: str | None = None,
    format: str = ".4f",
) -> alt.LayerChart:
    """A value of each of a few things, one below the other, with its interval.

    Args:
        rows: ``by``, ``value``, ``low``, ``high``, ``kind``: ``system``, ``other``, ``agent`` (then ``agent`` names it)
            or ``bound``.
        by: column that names the row, in ``order``.
        interval: what ``low`` and ``high`` are.
        zero: draw a line at zero.
    """
    names = alt.Y(f"{by}:N", sort=list(order), title=title, axis=alt.Axis(grid=True))
    along = alt.X("value:Q", title=x_title, scale=alt.Scale(zero=False, padding=10), axis=alt.Axis(tickCount=5))
    shown = [(f"{by}:N", title or "which", ""), ("value:Q", x_title, format)]
    shown += [("low:Q", f"{interval}, from", format), ("high:Q", "to", format)]
    shown += [("samples:Q", "samples", ",d")] if "samples" in rows[0] else []
    told = tooltip(*shown)
    layers = [alt.Chart(values([{"zero": 0}])).mark_rule(style="zero").encode(x=alt.X("zero:Q"))] if zero else []
    ranged = [row for row in rows if row["high"] > row["low"]]
    if ranged:
        layers.append(
            alt.Chart(values(ranged)).mark_rule(style="whisker").encode(y=names, x=alt.X("low:Q"), x2=alt.X2("high:Q"))
        )
    styles = {"system": "system-point", "other": "other", "bound": "hollow", "agent": "agent-point"}
    for kind, style in styles.items():
        some = [row for row in rows if row["kind"] == kind]
        if some:
            base = alt.Chart(values(some)).mark_point(style=style, filled=kind != "bound", size=75)
            colour = {"color": agent_colour(agents)} if kind == "agent" else {}
            layers.append(base.encode(y=names, x=along, tooltip=told, **colour))
    return alt.layer(*layers).properties(height=max(26 * len(order), 60))


def scatter(
    points: Rows,
    *,
    x_title: str,
    y_title: str,
    agents: Cast | None = None,
    lines: dict[str, Rows] | None = None,
    down: bool,
    logarithmic: bool = False,
) -> alt.LayerChart:
    """Two quantities against each other.

    Args:
        points: ``x``, ``y``, ``x_low``, ``x_high``, ``y_low``, ``y_high``, ``name``, ``kind`` as in :func:`dots`,
            ``label`` (written beside the point; may be empty), ``text``: what the interval is.
        agents: whose colours points of kind ``agent`` have.
        lines: style -> vertices ``x``, ``y``, in order.
        down: whether less of ``y`` is better: the axis is then turned around, so that better is always up.
        logarithmic: whether the axis of ``x`` is.
    """
    scale = alt.Scale(type="log", nice=False, padding=18) if logarithmic else alt.Scale(zero=False, padding=18)
    axis = alt.Axis(tickCount=6, format="~g") if logarithmic else alt.Axis(tickCount=6)
    x = alt.X("x:Q", title=x_title, scale=scale, axis=axis)
    y = alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=False, padding=18, reverse=down), axis=alt.Axis(tickCount=6))
    layers = []
    for style, vertices in (lines or {}).items():
        base = alt.Chart(values([{**row, "order": n} for n, row in enumerate(vertices)]))
        dash = {"strokeDash": [6, 3]} if style == "bound" else {}
        layers.append(base.mark_line(style=style, **dash).encode(x=x, y=y, order=alt.Order("order:Q")))
    told = tooltip(
        ("name:N", "which", ""), ("x:Q", x_title, ".4~g"), ("y:Q", y_title, ".4~g"), ("text:N", "interval", "")
    )
    for ends in (("x_low", "x_high"), ("y_low", "y_high")):
        some = [row for row in points if row[ends[1]] > row[ends[0]]]
        if some:
            place = {"y": y, "x": alt.X("x_low:Q"), "x2": alt.X2("x_high:Q")} if ends[0] == "x_low" else {
                "x": x, "y": alt.Y("y_low:Q", title=y_title), "y2": alt.Y2("y_high:Q")}  # fmt: skip
            layers.append(alt.Chart(values(some)).mark_rule(style="whisker").encode(**place))
    styles = {"bound": "hollow", "other": "other", "agent": "agent-point", "system": "system-point"}
    for kind, style in styles.items():
        some = [row for row in points if row["kind"] == kind]
        if some:
            shape = {"shape": "square", "size": 90} if kind == "agent" else {}
            base = alt.Chart(values(some)).mark_point(style=style, filled=kind != "bound", **shape)
            colour = {"color": agent_colour(agents)} if kind == "agent" else {}
            layers.append(base.encode(x=x, y=y, tooltip=told, **colour))
    labels: dict[tuple, list[dict[str, Any]]] = {}
    where = math.log10 if logarithmic else float
    placed = [row | {name: where(row[name]) for name in ("x", "x_low", "x_high")} | {"at": row["x"]} for row in points]
    for row, place in place_labels(placed, down=down):
        labels.setdefault(place, []).append({**row, "x": row["at"], "label": shortened(row["label"])})
    for (style, align, dx, dy), some in labels.items():
        base = alt.Chart(values(some)).mark_text(style=style, align=align, dx=dx, dy=dy)
        layers.append(base.encode(x=x, y=y, text=alt.Text("label:N")))
    return alt.layer(*layers).properties(height=300)
