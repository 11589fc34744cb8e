"""The sweep figure: metrics, shares and losses against ``beta``, the paper's Figure 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from l2d.rejector.evaluation.cost_quality import LOWER_IS_BETTER
from l2d.rejector.report.figures import charts
from l2d.rejector.report.figures.rejectors import (
    Figure,
    Panel,
    capital,
    finite,
    panel,
    shares_table,
    shares_text,
    stack,
)
from l2d.rejector.report.shown import METRIC_NAMES, Group, Layout, labels_of, main_metrics, scaled, units_of

BETA_TITLE = "query cost β of the dearest expert"


def sweep(layout: Layout) -> Figure | None:
    """Metrics, shares and losses against ``beta``: the paper's Figure 1. None where fewer than three were trained."""
    if not layout.swept:
        return None
    names = labels_of([series[0] for series in layout.swept])
    main = layout.swept[0]
    agents = layout.cast
    betas = list(dict.fromkeys(m[0].run.point.beta_text for series in layout.swept for m in series))
    panels = [_metric_against_beta(layout, names, betas, metric) for metric in main_metrics(main[0])]
    rows, bars = [], []
    for members in main:
        bars.append(({"β": members[0].run.point.beta_text}, members[0].result["over_seeds"]["allocation"]))
        rows += stack(_place(members), agents, bars[-1][1])
    chart = charts.stacked_shares(
        rows, by="beta", order=betas, agents=agents, title=BETA_TITLE, unit=units_of(main[0]), across=True
    )
    panels.append(panel("shares", "Which agent answers", chart, shares_text(rows, "beta"), shares_table(bars)))
    panels.append(_loss_against_beta(layout, names, betas))
    seeds = main[0][0].result["over_seeds"]["seeds"]
    spread = f"Bands: ± one standard deviation over {seeds} seeds. " if seeds > 1 else ""
    return Figure(
        name="sweep",
        title="What a query may cost",
        panels=panels,
        lead="The higher the query cost β, the less an expert’s answer is worth asking for.",
        note=f"{spread}{_how_trained(layout)}",
    )


def _how_trained(layout: Layout) -> str:
    """Whether a rejector belongs to its β, or one fit serves them all."""
    methods = {members[0].run.point.method for series in layout.swept for members in series}
    if methods == {"best"}:
        return "One fit of predicted costs serves every β."
    return "Each β has rejectors of its own, trained on the same cached answers."


def _place(members: Group) -> dict[str, Any]:
    """A setting's ``beta`` as text, and as the number ``at`` which it stands on an axis, where it is one."""
    point = members[0].run.point
    return {"beta": point.beta_text} | ({} if isinstance(point.beta, tuple) else {"at": float(point.beta)})


def _metric_against_beta(layout: Layout, names: list[str], betas: list[str], metric: str) -> Panel:
    swept, cast = layout.swept, layout.cast
    first = swept[0][0][0].result
    rows = []
    for name, series in zip(names, swept, strict=True):
        for members in series:
            found = members[0].result["over_seeds"]["metrics"].get(metric)
            if found is not None:
                rows.append(_curve_point(members, name, scaled(metric, found["mean"]), scaled(metric, found["std"])))
    alone = [
        {"agent": agent, "value": scaled(metric, values[metric])}
        for agent, values in first["agents"].items()
        if values["role"] == "agent" and metric in values
    ]
    drawn = [row for row in alone if row["agent"] in cast.named]
    bounds = [
        {**_place(m), "bound": "oracle (lowest cost)",
         "value": scaled(metric, m[0].result["oracle"]["metrics"][metric])}
        for m in swept[0] if metric in m[0].result["oracle"]["metrics"]
    ]  # fmt: skip
    title = METRIC_NAMES.get(metric, metric)
    better = "lower" if metric in LOWER_IS_BETTER else "higher"
    chart = charts.curve(
        rows, x="beta", order=betas, x_title=BETA_TITLE, y_title=title, agents=cast, alone=drawn,
        bounds=bounds,
    )  # fmt: skip
    text = f"{title} against β: " + "; ".join(f"β {r['beta']}: {r['value']:.4g}" for r in rows)
    text += ". Alone: " + ", ".join(f"{row['agent']} {row['value']:.4g}" for row in alone) + "."
    name = capital(f"{title.removesuffix(' (%)')} of the system, {better} is better")
    return panel(metric, name, chart, text, _curve_table(rows, title))


def _loss_against_beta(layout: Layout, names: list[str], betas: list[str]) -> Panel:
    swept, rows, bounds = layout.swept, [], []
    for name, series in zip(names, swept, strict=True):
        for members in series:
            loss = members[0].result["over_seeds"]["deferral_loss"]
            rows.append(_curve_point(members, name, loss["mean"], loss["std"]))
    for key, title in (
        ("best_constant_loss", "best constant agent"),
        ("random_same_shares_loss", "random, same shares"),
        ("oracle_loss", "oracle"),
    ):
        for members in swept[0]:
            values = [evaluation.result[key] for evaluation in members]
            if all(map(finite, values)):
                bounds.append({**_place(members), "bound": title, "value": float(np.mean(values))})
    title = "mean deferral loss"
    chart = charts.curve(
        rows, x="beta", order=betas, x_title=BETA_TITLE, y_title=title, agents=layout.cast, bounds=bounds,
        format=".4f",
    )  # fmt: skip
    text = "Deferral loss against β: " + "; ".join(f"β {row['beta']}: {row['value']:.4f}" for row in rows) + "."
    return panel("loss", "Deferral loss, lower is better", chart, text, _curve_table(rows, title, bounds))


def _curve_point(members: Group, series: str, mean: float, std: float) -> dict[str, Any]:
    row = {**_place(members), "series": series, "value": mean, "std": std}
    return row | {"low": mean - std, "high": mean + std, "seeds": members[0].result["over_seeds"]["seeds"]}


def _curve_table(rows: list[dict], title: str, bounds: Sequence[dict] = ()) -> list[dict[str, Any]]:
    several = len({row["series"] for row in rows}) > 1
    table = []
    for row in rows:
        shown = {"β": row["beta"]} | ({"rejector": row["series"]} if several else {})
        shown |= {title: row["value"], "std over seeds": row["std"]}
        table.append(shown | {b["bound"]: b["value"] for b in bounds if b["beta"] == row["beta"]})
    return table
