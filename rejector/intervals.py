"""Confidence intervals for mean differences of per-sample losses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_NORMAL_FROM = 100_000  # samples; the bootstrap and the normal interval of a mean agree to three digits long before
_COUNTS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A mean difference with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def paired_interval(differences: np.ndarray, *, seed: int = 0) -> Interval:
    """95 % percentile bootstrap interval of the mean of paired differences (2,000 resamples of the samples).

    From 100,000 samples on, the normal interval ``mean +- 1.96 s / sqrt(n)``.

    Args:
        differences: one per sample, (n,).
        seed: of the resampling.
    """
    differences = np.asarray(differences, dtype=np.float64)
    count, mean = len(differences), float(differences.mean())
    if count >= _NORMAL_FROM:
        half = 1.959964 * float(differences.std(ddof=1)) / count**0.5
        return Interval(mean, mean - half, mean + half)
    generator = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    block = max(1, _COUNTS_AT_ONCE // count)
    for start in range(0, RESAMPLES, block):
        rows = generator.integers(0, count, size=(min(block, RESAMPLES - start), count))
        means.append(differences[rows].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(mean, float(low), float(high))
