"""What deferring does to the samples that are deferred, and to those at the margin: causal effects of a rejector.

Source: Palomba, Pugnana, Alvarez and Ruggieri, *A Causal Framework for Evaluating Deferring Systems*, AISTATS 2025
(arXiv 2405.18902), and its code (``andrepugni/PODS``, ``test.py``). There the outcome is whether the answer is right;
here it is the total cost, so that any task and query costs count. An effect is what deferring saves: positive is good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from l2d.rejector.evaluation.evaluation import Evaluation
from l2d.rejector.evaluation.intervals import paired_interval

FEWEST = 20  # samples within the bandwidth on each side of the margin
BANDWIDTHS, MOST_JUDGED = 10, 60  # tried by cross-validation; samples of a side that judge them


def deferral_effects(evaluation: Evaluation) -> dict[str, Any]:
    """Effects of deferring under a run, as plain values.

    - ``deferred``: the average effect on the deferred, ``E[c_model - c_expert | deferred]``, the expert being the one
      that the run chooses. Both costs are cached, so nothing has to be identified: the paper's first scenario.
    - ``at_margin``: what is saved at the margin, where the model's score equals the best expert's. From realised costs
      alone (a sample's cost is that of the agent it was allocated to), by a regression discontinuity design: the
      paper's second scenario, for logs in which the other answer is not known.
    - ``at_margin_both``: the same quantity from both cached costs, in the same window: what the design estimates.

    None where there are too few samples: fewer than 20 deferred, or within the window on one side.
    """
    margin = -evaluation.margin.astype(np.float64)  # the expert's score less the model's: deferred above 0
    kept, expert = evaluation.kept.astype(np.float64), evaluation.deferred.astype(np.float64)
    there = np.isfinite(margin) & np.isfinite(kept) & np.isfinite(expert)
    groups = None if evaluation.measured.groups is None else evaluation.measured.groups[there]
    deferred = (evaluation.allocation != 0)[there]
    margin, saved = margin[there], (kept - expert)[there]
    realised = np.where(deferred, expert[there], kept[there])
    found: dict[str, Any] = {"deferred_samples": int(deferred.sum()), "samples": len(deferred)}
    found["deferred"] = None
    if deferred.sum() >= FEWEST:
        interval = paired_interval(saved[deferred], None if groups is None else groups[deferred])
        found["deferred"] = {"saved": interval.value, "low": interval.low, "high": interval.high}
    found["at_margin"] = found["at_margin_both"] = None
    width = bandwidth(margin, realised)
    if width is not None:
        jump = discontinuity(margin, realised, width)
        both = at_cutoff(margin, saved, width)
        found["bandwidth"], found["in_window"] = width, int((np.abs(margin) < width).sum())
        found["at_margin"] = {"saved": -jump.value, "low": -jump.value - 1.96 * jump.error,
                              "high": -jump.value + 1.96 * jump.error}  # fmt: skip
        found["at_margin_both"] = {"saved": both.value, "low": both.value - 1.96 * both.error,
                                   "high": both.value + 1.96 * both.error}  # fmt: skip
    return found


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    error: float


def discontinuity(x: np.ndarray, y: np.ndarray, width: float, order: int = 2) -> Estimate:
    """``lim y(x -> 0 from above) - lim y(x -> 0 from below)``: a polynomial on each side, triangular weights.

    In a window chosen for lines, parabolas are the lines corrected for their bias at the cutoff, and their standard
    errors allow for that: the robust estimate of Calonico, Cattaneo and Titiunik (2014) with equal windows, which
    ``rdrobust(h=width, b=width)`` gives.

    Args:
        x: the running variable, the cutoff at 0, (n,). A sample at 0 lies below: a tie goes to the model.
        y: outcomes, (n,).
        width: samples farther than this from 0 do not count; a sample's weight falls linearly to 0 there.
        order: of the polynomials.

    Returns:
        With a standard error that allows for unequal variances (HC1 on each side).
    """
    above, below = (at_cutoff(x[side], y[side], width, order) for side in (x > 0, x <= 0))
    return Estimate(above.value - below.value, float(np.hypot(above.error, below.error)))


def at_cutoff(x: np.ndarray, y: np.ndarray, width: float, order: int = 2) -> Estimate:
    """``E[y | x = 0]`` by one polynomial through the samples, weighted as in :func:`discontinuity`."""
    inside = np.abs(x) < width
    x, y = x[inside], y[inside]
    weight, design, inverse = _weighted(x, width, order)
    found = inverse @ (design.T @ (weight * y))
    scored = (weight * (y - design @ found))[:, None] * design
    variance = inverse @ (scored.T @ scored) @ inverse * len(x) / max(1, len(x) - order - 1)
    return Estimate(float(found[0]), float(np.sqrt(max(0.0, variance[0, 0]))))


def bandwidth(x: np.ndarray, y: np.ndarray) -> float | None:
    """A window for lines: of least squared error when each sample is predicted as if it lay at the cutoff.

    That is from the samples of its side that lie farther from 0, within the window (Ludwig and Miller 2007; Imbens and
    Lemieux 2008, section 5.1); judged are those in the nearer half of each side. The paper's code calls rdrobust, whose
    window minimises an asymptotic mean squared error.

    Returns:
        None where one side has fewer than 20 different margins: scores of clusters or single trees are steps.
    """
    sides = [(np.abs(x[side]), y[side]) for side in (x > 0, x <= 0)]
    if min(len(np.unique(far)) for far, _ in sides) < FEWEST:
        return None  # steps: limits at the margin are not those of a curve
    least = max(np.sort(far)[FEWEST - 1] for far, _ in sides)
    most = max(far.max() for far, _ in sides)
    if not 0 < least < most:
        return None
    errors = []
    widths = np.geomspace(least, most, BANDWIDTHS) * (1 + 1e-9)
    for width in widths:
        squares = [_squared_errors(far, value, width) for far, value in sides]
        errors.append(float(np.concatenate(squares).mean()))
    return float(widths[int(np.argmin(errors))])


def _squared_errors(far: np.ndarray, y: np.ndarray, width: float) -> np.ndarray:
    """Errors of lines through the samples beyond each judged one; farther ones are left where too few lie beyond."""
    judged = np.flatnonzero(far <= np.median(far))
    judged = judged[:: max(1, len(judged) // MOST_JUDGED)]
    found = []
    for row in judged:
        beyond = (far > far[row]) & (far < far[row] + width)
        if beyond.sum() < 3:  # a line needs two; the mean of the side stands in
            found.append(y[row] - y.mean())
            continue
        distance = far[beyond] - far[row]
        weight, design, inverse = _weighted(distance, width, 1)
        found.append(y[row] - (inverse @ (design.T @ (weight * y[beyond])))[0])
    return np.square(found)


def _weighted(x: np.ndarray, width: float, order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, powers of x up to an order, and the inverse of their weighted square."""
    weight, design = np.clip(1 - np.abs(x) / width, 0, None), x[:, None] ** np.arange(order + 1)
    return weight, design, np.linalg.pinv(design.T @ (weight[:, None] * design))


def causal_table(evaluations: list[Evaluation]) -> list[dict[str, str]]:
    """A row a run: what deferring saves on the deferred and at the margin, with 95 % intervals."""
    rows = []
    for evaluation in evaluations:
        found = evaluation.result["causal"]
        rows.append(
            {
                "run": evaluation.result["run_id"],
                "deferred": f"{found['deferred_samples']} of {found['samples']}",
                "saves on them": _text(found["deferred"]),
                "saves at the margin": _text(found["at_margin_both"]),
                "by discontinuity": _text(found["at_margin"]),
                "window": "" if found["at_margin"] is None else f"{found['in_window']} samples",
            }
        )
    return rows


def _text(found: dict[str, float] | None) -> str:
    return "too few" if found is None else f"{found['saved']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
