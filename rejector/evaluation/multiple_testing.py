"""p-values of many comparisons at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
