"""The figure of the theory's section: where the loss goes, and the learning bound against sample size."""

from __future__ import annotations

import io
from typing import Any

from .findings import LOSS

COLOURS = {
    "oracle": "#999999",
    "not_in_features": "#56B4E9",
    "objective": "#CC79A7",
    "class": "#009E73",
    "data": "#E69F00",
    "optimisation": "#D55E00",
}
#: Terms of the learning bound: key -> what they are called.
TERMS = {"accuracy": "experts' class errors", "magnitude": "size of the other costs", "confidence": "chance"}


def draw_theory(section: dict[str, Any]) -> bytes:
    """One picture of a section of :func:`rejector.theory.diagnosis.theory_section`, as PNG.

    Left: the run's deferral loss as the oracle's and what each shortcoming adds. Right, where the network has one: the
    learning bound and its terms against the number of training samples, with the loss itself.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curve = section["bound_curve"]
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}):
        figure, axes = plt.subplots(1, 2 if curve else 1, figsize=(9.5 if curve else 5, 3.6), layout="constrained")
        left = axes[0] if curve else axes
        _draw_loss(left, section)
        if curve:
            _draw_bound(axes[1], section)
        sink = io.BytesIO()
        figure.savefig(sink, format="png", dpi=130, metadata={"Software": None})
        plt.close(figure)
    return sink.getvalue()


def _draw_loss(axes, section: dict[str, Any]) -> None:
    found = section["parts"][LOSS]
    level, titles = 0.0, []
    causes = [key for key in COLOURS if key in found and found[key]["value"] is not None]
    for position, key in enumerate(causes):
        value = found[key]["value"]
        axes.barh(position, value, left=level, color=COLOURS[key], height=0.6)
        at = max(level, level + value)
        axes.annotate(f"{value:.4f}", (at, position), xytext=(4, -3), textcoords="offset points", fontsize=8)
        level += value
        titles.append(found[key]["title"].removeprefix("+ "))
    axes.axvline(found["run"]["value"], color="black", lw=1, ls=":")
    axes.set_yticks(range(len(titles)), titles)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="deferral loss", title="From the oracle to this rejector")


def _draw_bound(axes, section: dict[str, Any]) -> None:
    curve = section["bound_curve"]
    rows = [point["rows"] for point in curve]
    axes.plot(rows, [point["bound"] for point in curve], "o-", ms=3, color="#000000", label="bound")
    for (key, label), colour in zip(TERMS.items(), ("#0072B2", "#E69F00", "#009E73"), strict=True):
        if any(point[key] for point in curve):
            axes.plot(rows, [point[key] for point in curve], "--", lw=1.2, color=colour, label=label)
    loss = section["parts"][LOSS]["run"]["value"]
    axes.axhline(loss, color="#D55E00", lw=1.2, ls=":", label=f"loss on {section['split']}: {loss:.3f}")
    axes.set(xscale="log", yscale="log", xlabel="training samples", ylabel="deferral loss", title="Learning bound")
    axes.legend(frameon=False, fontsize=8)
