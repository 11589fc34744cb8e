"""Whether predicted costs are what is paid: bins of predictions, and the slope of the line through them."""

from __future__ import annotations

import numpy as np

BINS = 10


def reliability(predicted: np.ndarray, costs: np.ndarray, names: list[str]) -> dict[str, dict]:
    """By agent: held-out predictions in ten equal parts against true costs.

    Args:
        predicted: total costs (n, agents) of models that had not seen the samples.
        costs: the true ones, infinite where an agent is unavailable.

    Returns:
        Agent -> ``predicted`` and ``actual`` mean of each bin, ``samples`` in it, ``slope`` of the actual cost on the
        predicted one (1: calibrated; None where predictions do not differ), and ``error``, the mean absolute difference
        of bins.
    """
    found = {}
    for agent, name in enumerate(names):
        there = np.isfinite(costs[:, agent])
        said, paid = predicted[there, agent], costs[there, agent]
        order = np.argsort(said, kind="stable")
        bins = [rows for rows in np.array_split(order, min(BINS, max(1, len(order)))) if len(rows)]
        means = [(float(said[rows].mean()), float(paid[rows].mean()), len(rows)) for rows in bins]
        spread = float(said.var()) if len(said) else 0.0
        slope = float(np.cov(said, paid, bias=True)[0, 1] / spread) if spread > 1e-18 else None
        weight = max(1, len(said))
        found[name] = {
            "predicted": [one for one, _, _ in means],
            "actual": [one for _, one, _ in means],
            "samples": [one for _, _, one in means],
            "slope": slope,
            "error": sum(abs(one - other) * count for one, other, count in means) / weight,
        }
    return found
