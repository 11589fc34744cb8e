"""Figures of the decision engine: one curve from single agents to cascades and promises; what agents are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pyarrow.compute as pc

from l2d.rejector.decisions.promises import QUANTITIES
from l2d.rejector.decisions.saved import SavedPolicy
from l2d.rejector.evaluation.intervals import paired_interval
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
    zero = alt.Chart(charts.values([{"at": 0}])).mark_rule(style="zero").encode(x=alt.X("at:Q"))
    whisker = base.mark_rule(style="whisker").encode(x=alt.X("low:Q", title=title), x2=alt.X2("high:Q"), tooltip=shown)
    dot = base.mark_point(style="system-point", filled=True, size=70).encode(x=alt.X("value:Q"), tooltip=shown)
    return alt.layer(zero, whisker, dot).properties(height=28 * len(rows) + 30)


def beyond_one_agent(policies: Sequence[SavedPolicy]) -> list[Figure]:
    """One curve from single agents to committees, cascades and promises; nothing without policies."""
    if not policies:
        return []
    points, priced = ways_of(policies)
    x_title = (
        f"mean price of an input ({policies[0].facts['result']['unit']})" if priced else "agents asked for an input"
    )
    rows = sorted(points, key=lambda row: (row["x"], row["y"]))
    names = ", ".join(policy.name for policy in policies)
    told = "; ".join(f"{row['name']}: {row['y']:.4f} at {row['x']:.3g}" for row in rows)
    chart = charts.scatter(
        rows, x_title=x_title, y_title="deferral loss", lines={"system-line": frontier_of(rows)}, down=True
    )
    table = [
        {"decided by": r["name"], x_title: r["x"], "deferral loss": r["y"], "low": r["y_low"], "high": r["y_high"],
         "no answer %": r["no answer %"]}
        for r in rows
    ]  # fmt: skip
    panels = [panel("curve", "Deferral loss for what is asked", chart, f"Deferral loss of {told}.", table)]
    promised = [row for policy in policies for row in promise_rows(policy)]
    if promised:
        text = "; ".join(f"{r['policy']} at {r['answered']:.0%} answered: {r['value']:.4f}" for r in promised[::10])
        panels.append(panel("promise", "Risk for the share that is answered", promise_chart(promised), text, promised))
    return [
        Figure(
            name="beyond",
            title=f"Beyond one agent: {names}",
            panels=panels,
            note="Lower is better, so the axis of the loss is upside down. Strong points: the policies; hollow ones "
            "give no answer to some inputs, and their loss is that of the others. The rest is what the first policy "
            "was compared with. Whiskers: 95 % intervals of the difference from the router, paired by sample, around "
            "its loss; of hollow points those of the mean. The line joins what nothing cheaper beats. A promise's "
            "band: exact 95 % intervals on calibration samples; what has a point can be promised.",
        )
    ]


def ways_of(policies: Sequence[SavedPolicy]) -> tuple[list[dict[str, Any]], bool]:
    """A point for each policy, and for what the first of them was compared with; and whether all have a price."""
    results = [policy.facts["result"] for policy in policies]
    priced = all(way["price"] is not None for result in results for way in result["ways"] if way["way"] != "hindsight")
    found: list[dict[str, Any]] = []
    for policy, result in zip(policies, results, strict=True):
        router = next(way["loss"] for way in result["ways"] if way["way"] == "router")
        for way in result["ways"]:
            own = way["way"].startswith("policy")
            if way["way"] == "hindsight" or way["loss"] is None or (not own and policy is not policies[0]):
                continue
            x, whole = way["price"] if priced else way["asked"], way["abstained"] == 0
            gap = way["against_router"]
            low, high = (router + gap["low"], router + gap["high"]) if gap else (way["loss"], way["loss"])
            if own and gap is None:
                low, high = _of_answers(policy, result["split"])
            row = {
                "name": policy.name if own else way["way"], "kind": "system" if own and whole else
                "bound" if own else "other", "x": x, "y": way["loss"], "x_low": x, "x_high": x, "y_low": low,
                "y_high": high, "label": policy.name if own else way["way"], "whole": whole,
                "text": f"[{low:.4f}, {high:.4f}]", "no answer %": round(100 * way["abstained"], 1),
            }  # fmt: skip
            if own and not whole:
                row["label"] = f"{policy.name} (answers {1 - way['abstained']:.0%})"
            here = [each for each in found if (each["x"], each["y"]) == (row["x"], row["y"])]
            if own and here and here[0]["kind"] != "other":  # another policy that decides the same
                here[0] |= {key: f"{here[0][key]}, {row[key]}" for key in ("name", "label")}
            elif own or not here:
                found = [each for each in found if each not in here] + [row]
    return found, priced


def _of_answers(policy: SavedPolicy, split: str) -> tuple[float, float]:
    """95 % interval of the mean loss of the inputs that get an answer."""
    table = policy.decisions()
    losses = table.filter(pc.equal(table["split"], split))["loss"].drop_null().to_numpy()
    if len(losses) < 2:
        return (float(losses.mean()), float(losses.mean())) if len(losses) else (0.0, 0.0)
    found = paired_interval(losses)
    return found.low, found.high


def frontier_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What nothing cheaper beats, of those that answer every input; rows by rising x."""
    found, least = [], float("inf")
    for row in rows:
        if row["whole"] and row["y"] < least:
            found.append({"x": row["x"], "y": row["y"]})
            least = row["y"]
    return found


def promise_rows(policy: SavedPolicy) -> list[dict[str, Any]]:
    """A point for each threshold that was tried, and each risk; with an exact 95 % interval of shares."""
    promise = policy.facts["result"]["promise"]
    if promise is None:
        return []
    found = []
    for risk in promise["risks"]:
        name = risk.split("<")[0]
        for row in promise["tried"]:
            if row[name] is None:
                continue
            over = promise["samples"] * (row["answered"] if QUANTITIES[name][1] else 1.0)
            low, high = (
                (None, None) if name.startswith("cost") else exact_interval(round(row[name] * over), round(over))
            )
            found.append(
                {"policy": f"{policy.name}: {risk}", "answered": row["answered"], "value": row[name], "low": low,
                 "high": high, "limit": float(risk.split("<=")[1]),
                 "promised": "can be promised" if row["promised"] else "cannot"}
            )  # fmt: skip
    return found


def exact_interval(count: int, n: int) -> tuple[float, float]:
    """Of a share, 95 %: Clopper and Pearson's."""
    from scipy.stats import beta  # here: it takes long to import, and most pages are of runs alone

    low = 0.0 if count == 0 else float(beta.ppf(0.025, count, n - count + 1))
    return low, 1.0 if count == n else float(beta.ppf(0.975, count + 1, n - count))


def promise_chart(rows: list[dict[str, Any]]) -> Any:
    """Risk against the share answered, with its limit and interval."""
    across = alt.X("answered:Q", title="share of inputs that get an answer", axis=alt.Axis(format="%", tickCount=5))
    most = 1.6 * max(max(row["value"] for row in rows), max(row["limit"] for row in rows))
    up = alt.Y("value:Q", title="risk on calibration samples", scale=alt.Scale(domain=[0, most], clamp=True))
    shown = charts.tooltip(
        ("policy:N", "promise", ""), ("answered:Q", "answered", ".1%"), ("value:Q", "risk", ".4f"),
        ("low:Q", "low", ".4f"), ("high:Q", "high", ".4f"), ("promised:N", "", ""),
    )  # fmt: skip
    base = alt.Chart(charts.values(rows)).encode(x=across, detail=alt.Detail("policy:N"))
    layers = [
        base.mark_line(style="bound").encode(y=alt.Y("limit:Q")),
        base.mark_line(style="system-line").encode(y=up),
    ]
    ranged = [row for row in rows if row["low"] is not None]
    if ranged:
        band = alt.Chart(charts.values(ranged)).mark_area(style="system-band", clip=True)
        low = alt.Y("low:Q", scale=alt.Scale(domain=[0, most]))
        layers.insert(0, band.encode(x=across, detail=alt.Detail("policy:N"), y=low, y2=alt.Y2("high:Q")))
    filled = [row for row in rows if row["promised"] == "can be promised"]
    dots = alt.Chart(charts.values(filled)).mark_point(style="system-point", filled=True, size=40)
    layers.append(dots.encode(x=across, y=alt.Y("value:Q"), tooltip=shown))
    return alt.layer(*layers).properties(height=300)
