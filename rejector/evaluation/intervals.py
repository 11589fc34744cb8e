"""Bootstrap intervals and p-values for mean differences of per-sample losses, and Holm's correction of many.

The bootstrap resamples samples, or whole groups of them, and all differences alike: it is paired, and differences of
one table are resampled together (resampling.py beside).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from l2d.rejector.evaluation.resampling import bootstrap_errors

RESAMPLES = 10_000
NORMAL_FROM = 200_000  # samples or groups; bootstrap and normal interval of a mean agree to three digits long before
_COLUMNS_AT_ONCE, _NUMBERS_AT_ONCE = 64, 1 << 22  # differences that share their resamples: this number, or 32 MiB


@dataclass(frozen=True)
class Interval:
    """A mean difference with its 95 % interval, and the p-value of the hypothesis that it is 0."""

    value: float
    low: float
    high: float
    p: float

    def to_json(self, *, test: bool = True) -> dict[str, float]:
        """Plain values; without the p-value where there is nothing to test, as against a bound."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        return {**values, "p": self.p} if test else values


def paired_interval(differences: np.ndarray, groups: np.ndarray | None = None, *, seed: int = 0) -> Interval:
    """:func:`paired_intervals` of a single difference (n,)."""
    return paired_intervals([differences], groups, seed=seed)[0]


def paired_intervals(
    differences: Iterable[np.ndarray],
    groups: np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    normal_from: int = NORMAL_FROM,
) -> list[Interval]:
    """95 % bootstrap intervals of means of paired differences, and two-sided p-values.

    Percentile intervals of ``resamples`` resamples, expanded to the width that Student's t needs: at ``G`` samples (or
    groups) the levels are ``Phi(+- sqrt(G / (G - 1)) t_{0.975, G-1})``, since a plain percentile interval is too narrow
    for few (Hesterberg, *What Teachers Should Know About the Bootstrap*, 2015, section 5.2). The p-value is the level
    at which the interval would touch 0; beyond what ``resamples`` can tell, the normal tail at the bootstrap's standard
    error. From ``normal_from`` samples or groups on, the normal interval.

    Args:
        differences: K of them, each (n,), finite.
        groups: a code >= 0 a sample, int (n,): whole groups are resampled (the cluster bootstrap), and the mean is that
            of all samples drawn. None: each sample by itself.
        resamples: at least 1.
        seed: of the resampling.
        normal_from: samples or groups, 200,000 unless said otherwise.

    Returns:
        K intervals. With one sample or group there is nothing to resample: no width, and a p-value of 1.
    """
    found: list[Interval] = []
    remaining = iter(differences)
    while columns := list(islice(remaining, 1)):  # every block of them by the same resamples
        columns += islice(remaining, max(_COLUMNS_AT_ONCE, _NUMBERS_AT_ONCE // len(columns[0])) - 1)
        found += _intervals(columns, groups, resamples, seed, normal_from)
    return found


def _intervals(
    differences: list[np.ndarray], groups: np.ndarray | None, resamples: int, seed: int, normal_from: int
) -> list[Interval]:
    sizes = _sizes(len(differences[0]), groups)
    if len(sizes) >= normal_from:
        return [_normal(*_by_unit(values, groups), sizes) for values in differences]
    means, sums = zip(*(_by_unit(values, groups) for values in differences), strict=True)
    if len(sizes) == 1:
        return [Interval(mean, mean, mean, 1.0) for mean in means]
    errors = bootstrap_errors(np.stack(sums, axis=1), sizes, resamples, seed)
    widening, freedom = math.sqrt(len(sizes) / (len(sizes) - 1)), len(sizes) - 1
    tail = float(ndtr(widening * stdtrit(freedom, 0.025)))
    lows, highs = np.quantile(errors, [tail, 1 - tail], axis=0)
    found = []
    for mean, low, high, error in zip(means, lows, highs, errors.T, strict=True):
        deviation = float(error.std())
        rounding = 1e-5 * deviation  # a resample whose mean is 0, as many are where runs mostly agree, is on both sides
        side = int(min((error <= rounding - mean).sum(), (error >= -rounding - mean).sum()))
        share = (side + 1) / (resamples + 1)
        if side == 0:
            share = min(share, float(ndtr(-abs(mean) / deviation)) if deviation > 0 else 0.0)
        p = 2 * float(stdtr(freedom, ndtri(share) / widening)) if share < 0.5 else 1.0
        found.append(Interval(mean, mean + float(low), mean + float(high), p))
    return found


def _sizes(samples: int, groups: np.ndarray | None) -> np.ndarray:
    """Samples in each unit that is resampled: (G,) float64."""
    if groups is None:
        return np.ones(samples)
    sizes = np.bincount(groups).astype(np.float64)
    return sizes[sizes > 0]


def _by_unit(values: np.ndarray, groups: np.ndarray | None) -> tuple[float, np.ndarray]:
    """Mean of the samples, and sums of each unit's distances from it: (G,) float64."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if groups is None:
        return mean, values - mean
    return mean, np.bincount(groups, weights=values - mean)[np.bincount(groups) > 0]


def _normal(mean: float, sums: np.ndarray, sizes: np.ndarray) -> Interval:
    units = len(sizes)
    error = math.sqrt(units / (units - 1) * float((sums**2).sum())) / float(sizes.sum())
    p = 2 * float(ndtr(-abs(mean) / error)) if error > 0 else float(mean == 0)
    return Interval(mean, mean - 1.959964 * error, mean + 1.959964 * error, p)


# --- many comparisons -------------------------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm, *A Simple Sequentially Rejective Multiple Test Procedure*, 1979).

    Calling a difference shown where its adjusted p-value is below 5 % is wrong in any of the comparisons, however they
    depend on each other, with at most 5 %.

    Args:
        p_values: of m comparisons.

    Returns:
        Adjusted p-values in the same order: of the i-th smallest, the largest ``min(1, (m - k + 1) p_(k))`` of all
        ``k <= i``.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, values[order] * np.arange(len(values), 0, -1)))
    return adjusted.tolist()
