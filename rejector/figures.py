"""The figures of a report, drawn from evaluations."""

from __future__ import annotations

import io

import numpy as np

from .evaluation import Evaluation
from .summary import settings_of

# Okabe and Ito's palette: told apart with any colour vision, and in grey.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
SHORT = {
    "multi-task": "multi-task",
    "classification-only": "classification\nonly",
    "regression-only": "regression\nonly",
}


def draw(evaluations: list[Evaluation]) -> bytes:
    """One picture of all evaluations, as PNG.

    Left, where methods differ: the task metrics against each other, with every agent alone. Middle: who gets how many
    samples. Right, where ``beta`` differs: deferral loss and shares against it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = settings_of(evaluations)
    swept, methods = _split_groups(groups)
    panels = []
    if methods:
        if _two_metrics(methods[0][0]):
            panels.append(lambda axes: _draw_tradeoff(axes, methods))
        panels += [lambda axes: _draw_loss(axes, methods), lambda axes: _draw_shares(axes, methods)]
    if swept and "map" in swept[0][0].result["metrics"]:  # the paper's Figure 1
        panels += [lambda axes: _draw_sweep_map(axes, swept), lambda axes: _draw_sweep_stack(axes, swept)]
        panels.append(lambda axes: _draw_sweep_loss(axes, swept))
    elif swept:
        panels += [lambda axes: _draw_sweep_loss(axes, swept), lambda axes: _draw_sweep_shares(axes, swept)]
    rows = [panels[:3], panels[3:]] if len(panels) > 3 else [panels]
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}):
        figure = plt.figure(figsize=(4.5 * len(rows[0]), 3.7 * len(rows)), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        for row, subfigure in zip(rows, np.atleast_1d(figure.subfigures(len(rows))), strict=True):
            for panel, axes in zip(row, np.atleast_1d(subfigure.subplots(1, len(row))), strict=True):
                panel(axes)
        sink = io.BytesIO()
        figure.savefig(sink, format="png", dpi=130, metadata={"Software": None})
        plt.close(figure)
    return sink.getvalue()


def _split_groups(groups: list[list[Evaluation]]) -> tuple[list, list]:
    """Settings that form a sweep over beta (multi-task, three or more), and settings to compare at one beta."""
    betas: dict[str, list] = {}
    for members in groups:
        betas.setdefault(members[0].run.point.method, []).append(members)
    swept = [m for m in betas.get("multi-task", []) if not isinstance(m[0].run.point.beta, tuple)]
    first = swept[0][0].run.point if swept else None
    swept = [m for m in swept if (m[0].run.point.nu, m[0].run.point.weights) == (first.nu, first.weights)]
    if len({m[0].run.point.beta for m in swept}) < 3:
        swept = []
    smallest = min(sum(members[0].run.point.query_costs) for members in groups)
    methods = [m for m in groups if sum(m[0].run.point.query_costs) == smallest]
    return swept, [] if swept and len(methods) == 1 else methods


def _two_metrics(evaluation: Evaluation) -> bool:
    return {"accuracy", "smooth_l1"} <= set(evaluation.result["metrics"])


def _draw_tradeoff(axes, groups: list[list[Evaluation]]) -> None:
    first = groups[0][0].result
    for index, (name, alone) in enumerate(first["agents"].items()):
        axes.scatter(100 * alone["accuracy"], alone["smooth_l1"], marker="s", s=42, color=COLOURS[index % 8])
        axes.annotate(f"{name} alone", (100 * alone["accuracy"], alone["smooth_l1"]), xytext=(0, 7), **_LABEL)
    for members in groups:
        metrics = members[0].result["over_seeds"]["metrics"]
        x, y = 100 * metrics["accuracy"]["mean"], metrics["smooth_l1"]["mean"]
        ours = members[0].run.point.method == "multi-task"
        axes.errorbar(
            x,
            y,
            xerr=100 * metrics["accuracy"]["std"],
            yerr=metrics["smooth_l1"]["std"],
            fmt="o",
            color="#D55E00" if ours else "#555555",
            markersize=8 if ours else 6,
        )
        axes.annotate(members[0].run.point.method, (x, y), xytext=(-9, -4), **{**_LABEL, "ha": "right"})
    oracle = first["oracle"]["metrics"]
    axes.scatter(100 * oracle["accuracy"], oracle["smooth_l1"], marker="*", s=90, color="#000000")
    axes.annotate("oracle", (100 * oracle["accuracy"], oracle["smooth_l1"]), xytext=(0, -15), **_LABEL)
    axes.set(xlabel="accuracy (%)", ylabel="smooth L1", title="Both tasks (better: right and down)")
    axes.margins(0.18)


_LABEL = {"textcoords": "offset points", "ha": "center", "fontsize": 8}


def _draw_loss(axes, groups: list[list[Evaluation]]) -> None:
    first = groups[0][0].result
    names = [SHORT.get(m[0].run.point.method, m[0].run.point.method) for m in groups]
    losses = [m[0].result["over_seeds"]["deferral_loss"] for m in groups]
    colours = ["#D55E00" if m[0].run.point.method == "multi-task" else "#999999" for m in groups]
    axes.bar(names, [v["mean"] for v in losses], yerr=[v["std"] for v in losses], color=colours, width=0.6, capsize=3)
    for name, alone in first["agents"].items():
        if alone["role"] == "reference":
            axes.axhline(alone["mean_cost"], color="#009E73", lw=1, ls="-.", label=f"{name}: {alone['mean_cost']:.3f}")
    best = first["best_agent_loss"]
    axes.axhline(best, color="#0072B2", lw=1, ls="--", label=f"best constant ({first['best_agent']}): {best:.3f}")
    axes.axhline(first["oracle_loss"], color="black", lw=1, ls=":", label=f"oracle: {first['oracle_loss']:.3f}")
    axes.set(ylabel="mean deferral loss", title="Deferral loss (lower is better)")
    axes.legend(frameon=False, fontsize=7.5, loc="upper right")
    axes.set_ylim(0, 1.35 * max([best, *(v["mean"] + v["std"] for v in losses)]))


def _draw_shares(axes, groups: list[list[Evaluation]]) -> None:
    names = [SHORT.get(m[0].run.point.method, m[0].run.point.method) for m in groups] + ["oracle"]
    agents = list(groups[0][0].result["allocation"])
    bottom = np.zeros(len(names))
    for index, agent in enumerate(agents):
        shares = [100 * m[0].result["over_seeds"]["allocation"][agent]["mean"] for m in groups]
        shares.append(100 * groups[0][0].result["oracle"]["allocation"][agent])
        bars = axes.bar(names, shares, bottom=bottom, width=0.6, color=COLOURS[index % 8], label=agent)
        texts = [f"{share:.0f}" if share >= 6 else "" for share in shares]
        axes.bar_label(bars, texts, label_type="center", fontsize=8, color="white")
        bottom += np.array(shares)
    axes.set(ylabel="share of samples (%)", title="Who answers", ylim=(0, 100))
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)


def _sweep_axis(groups: list[list[Evaluation]]) -> list[float]:
    return [float(m[0].run.point.beta) for m in groups]


def _draw_sweep_loss(axes, groups: list[list[Evaluation]]) -> None:
    betas = _sweep_axis(groups)
    loss = [m[0].result["over_seeds"]["deferral_loss"] for m in groups]
    mean, std = np.array([v["mean"] for v in loss]), np.array([v["std"] for v in loss])
    axes.plot(betas, mean, "o-", color="#D55E00", ms=4, label="multi-task rejector")
    axes.fill_between(betas, mean - std, mean + std, color="#D55E00", alpha=0.25, lw=0)
    for key, label, style in (
        ("best_agent_loss", "best constant agent", "--"),
        ("random_same_shares_loss", "random, same shares", "-."),
        ("oracle_loss", "oracle", ":"),
    ):
        axes.plot(
            betas, [np.mean([e.result[key] for e in m]) for m in groups], style, color="#444444", lw=1.2, label=label
        )
    axes.set(xlabel=r"query cost $\beta$", ylabel="mean deferral loss", title="What a query may cost")
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)


def _draw_sweep_shares(axes, groups: list[list[Evaluation]]) -> None:
    betas = _sweep_axis(groups)
    for index, agent in enumerate(groups[0][0].result["allocation"]):
        share = [m[0].result["over_seeds"]["allocation"][agent] for m in groups]
        mean = 100 * np.array([v["mean"] for v in share])
        std = 100 * np.array([v["std"] for v in share])
        axes.plot(betas, mean, "o-", color=COLOURS[index % 8], ms=4, label=agent)
        axes.fill_between(betas, mean - std, mean + std, color=COLOURS[index % 8], alpha=0.25, lw=0)
    axes.set(xlabel=r"query cost $\beta$", ylabel="share of samples (%)", title="Who answers", ylim=(-2, 102))
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _draw_sweep_map(axes, groups: list[list[Evaluation]]) -> None:
    """mAP of the system against ``beta``, evenly spaced; every agent alone and the oracle beside it."""
    betas = [f"{beta:g}" for beta in _sweep_axis(groups)]
    values = [m[0].result["over_seeds"]["metrics"]["map"] for m in groups]
    mean, std = (100 * np.array([v[key] for v in values]) for key in ("mean", "std"))
    for index, (name, alone) in enumerate(groups[0][0].result["agents"].items()):
        if "map" in alone:
            colour, value = COLOURS[index % 8], 100 * alone["map"]
            axes.axhline(value, color=colour, lw=1.2, ls="--", zorder=1)
            at = {"xy": (0.01, value), "xycoords": ("axes fraction", "data"), "xytext": (0, 2), "fontsize": 8}
            axes.annotate(f"{name} alone: {value:.1f}", **at, textcoords="offset points", color=colour)
    oracle = [100 * m[0].result["oracle"]["metrics"]["map"] for m in groups]
    axes.plot(betas, oracle, ":", color="#444444", lw=1.2, label="oracle (cheapest agent)")
    axes.errorbar(betas, mean, yerr=std, fmt="o-", color="#D55E00", ms=5, capsize=3, label="rejector")
    axes.set(xlabel=r"query cost $\beta$ of the dearest expert", ylabel="mAP (%)", title="mAP of the system")
    axes.margins(y=0.12)
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def _draw_sweep_stack(axes, groups: list[list[Evaluation]]) -> None:
    """Who answers at each ``beta``, stacked to 100 %."""
    betas = [f"{beta:g}" for beta in _sweep_axis(groups)]
    bottom = np.zeros(len(betas))
    for index, agent in enumerate(groups[0][0].result["allocation"]):
        share = np.array([100 * m[0].result["over_seeds"]["allocation"][agent]["mean"] for m in groups])
        bars = axes.bar(betas, share, bottom=bottom, width=0.75, color=COLOURS[index % 8], label=agent)
        texts = [f"{value:.0f}" if value >= 6 else "" for value in share]
        axes.bar_label(bars, texts, label_type="center", fontsize=8, color="white")
        bottom += share
    axes.set(xlabel=r"query cost $\beta$ of the dearest expert", ylabel="share of images (%)", title="Who answers")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
