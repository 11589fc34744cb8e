"""Features brought to mean 0 and deviation 1: what is taken off and divided by is worked out in 64 bits."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

LOST = 1e-4  # of a feature's deviation: what rounding to 32 bits may cost it
CONSTANT = 1e-7  # deviation of a column that is rounding of one number, as a share of that number


def lost_in_32_bits(values: np.ndarray) -> np.ndarray:
    """Whether a 32-bit float cannot tell a feature's values apart, bool (width,): unix seconds of one day, say.

    So it is where rounding moves values by more than :data:`LOST` of their deviation, or they are out of range.

    Args:
        values: float64 (n, width), finite.
    """
    limits = np.finfo(np.float32)
    with np.errstate(over="ignore"):
        deviation = values.std(axis=0)
        largest = np.abs(values).max(axis=0)
        # rounding moves a number by at most half of its last place: mostly that settles it, and nothing is rounded
        near = (largest > limits.max) | (deviation < limits.tiny) | ~(largest * limits.eps < LOST * deviation)
        if not near.any():
            return near
        lost = np.abs(values.astype(np.float32) - values).max(axis=0) > LOST * deviation
    return (largest > limits.max) | ((deviation > 0) & (lost | (deviation < limits.tiny)))


def standardisation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column (constant columns get 1), float32, shape (width,)."""
    return _as_stored(features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64))


def standardisation_of_parts(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """:func:`standardisation` of a matrix that comes in parts (n, width), read once.

    Each part's mean and squared deviations are merged in float64 (Chan, Golub and LeVeque 1979, "Updating formulae and
    a pairwise algorithm for computing sample variances"): no difference of large sums, so as exact as two passes.

    Raises:
        ValueError: there is no part.
    """
    count, mean, squares = 0, None, None
    for part in parts:
        exact = part.astype(np.float64)
        part_mean = exact.mean(axis=0)
        exact -= part_mean
        part_squares = np.einsum("ij,ij->j", exact, exact)
        if mean is None:
            count, mean, squares = len(part), part_mean, part_squares
            continue
        step, total = part_mean - mean, count + len(part)
        mean += step * (len(part) / total)
        squares += part_squares + step**2 * (count * len(part) / total)
        count = total
    if mean is None or squares is None:
        raise ValueError("no part")
    return _as_stored(mean, np.sqrt(squares / count))


def _as_stored(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    constant = (std <= CONSTANT * np.abs(mean)) | (std < np.finfo(np.float32).tiny)
    return mean.astype(np.float32), np.where(constant, 1.0, std).astype(np.float32)
