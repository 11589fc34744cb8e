"""Whether predicted costs are what is paid: bins of predictions, and the slope of the line through them."""

from __future__ import annotations

import numpy as np

BINS, IN_A_BIN = 10, 10  # at most, and samples in one at least
NORMAL = 1.96
#: A slope is given where its interval reaches at most this far: then a calibrated one, 1, is told from 0.
WIDEST = 1.0


def reliability(
    predicted: np.ndarray, costs: np.ndarray, names: list[str], groups: np.ndarray | None = None
) -> dict[str, dict]:
    """By agent: held-out predictions in ten equal parts against true costs.

    Args:
        predicted: total costs (n, agents) of models that had not seen the samples.
        costs: the true ones, infinite where an agent is unavailable.
        groups: samples of one value are not independent, int (n,); None: all are.

    Returns:
        Agent -> ``predicted`` and ``actual`` mean of each bin, with its 95 % interval ``low`` and ``high`` (normal) and
        ``samples`` in it; ``slope`` of the actual cost on the predicted one (1: calibrated) with ``slope_low`` and
        ``slope_high``, None where predictions vary too little to tell a calibrated slope from 0; ``error``, the mean
        absolute difference of bins, and ``error_by_chance``, what calibrated predictions would show on average.
    """
    found = {}
    for agent, name in enumerate(names):
        there = np.isfinite(costs[:, agent])
        said, paid = predicted[there, agent], costs[there, agent]
        members = None if groups is None else groups[there]
        found[name] = {**_bins(said, paid), **_slope(said, paid, members)}
    return found


def _bins(said: np.ndarray, paid: np.ndarray) -> dict[str, list[float] | list[int] | float]:
    order = np.argsort(said, kind="stable")
    count = min(BINS, max(1, len(order) // IN_A_BIN))
    bins = [rows for rows in np.array_split(order, count) if len(rows)]
    means = [(float(said[rows].mean()), float(paid[rows].mean())) for rows in bins]
    errors = [float((paid[rows] - said[rows]).std() / np.sqrt(len(rows))) for rows in bins]
    weights = [len(rows) / max(1, len(order)) for rows in bins]
    return {
        "predicted": [one for one, _ in means],
        "actual": [one for _, one in means],
        "low": [one - NORMAL * error for (_, one), error in zip(means, errors, strict=True)],
        "high": [one + NORMAL * error for (_, one), error in zip(means, errors, strict=True)],
        "samples": [len(rows) for rows in bins],
        "error": sum(abs(one - other) * weight for (one, other), weight in zip(means, weights, strict=True)),
        # The mean of |N(0, s)| is s sqrt(2 / pi).
        "error_by_chance": float(np.sqrt(2 / np.pi)) * sum(e * w for e, w in zip(errors, weights, strict=True)),
    }


def _slope(said: np.ndarray, paid: np.ndarray, groups: np.ndarray | None) -> dict[str, float | None]:
    """Least squares, with a standard error that is robust to unequal variances and to groups (White 1980)."""
    nothing: dict[str, float | None] = {"slope": None, "slope_low": None, "slope_high": None}
    if len(said) < 3:
        return nothing
    x = said - said.mean()
    spread = float(x @ x)
    if spread <= 1e-18 * len(x) or spread <= 1e-14 * float(said @ said):
        return nothing
    slope = float(x @ paid) / spread
    scores = x * (paid - paid.mean() - slope * x)
    if groups is not None:
        scores = np.bincount(np.unique(groups, return_inverse=True)[1], scores)
    units = len(scores)
    if units < 3:
        return nothing
    half = NORMAL * float(np.sqrt(units / (units - 2) * (scores @ scores))) / spread
    if half > WIDEST:
        return nothing
    return {"slope": slope, "slope_low": slope - half, "slope_high": slope + half}
