"""A system of model and expert held to an exact coverage, and how well its scores rank a binary target then."""

from __future__ import annotations

import numpy as np

from l2d.rejector.evaluation.metrics import auroc, average_precision


def kept_at(margin: np.ndarray, coverage: float) -> np.ndarray:
    """Where the model answers, bool (n,): exactly ``round(coverage n)`` samples, those of the largest margin.

    Args:
        margin: the model's score less the expert's, (n,); of equal ones the earlier is kept.
        coverage: share, in [0, 1].
    """
    kept = np.zeros(len(margin), dtype=bool)
    kept[np.argsort(-margin, kind="stable")[: round(coverage * len(margin))]] = True
    return kept


def ranking_at_coverages(
    margin: np.ndarray, model: np.ndarray, expert: np.ndarray, target: np.ndarray, coverages: list[float]
) -> list[dict[str, float]]:
    """AU-ROC and AU-PR (average precision) of the system at each coverage (Mozannar and Sontag 2020, CheXpert).

    Args:
        margin: the model's score less the expert's, (n,).
        model: its probability of the positive class, (n,).
        expert: its answer, 0 or 1 (or a probability), (n,).
        target: 0 or 1, (n,), both present.
        coverages: shares that the model keeps.

    Returns:
        ``coverage`` as it came out, ``auroc``, ``average_precision`` and ``accuracy``, one row a coverage.
    """
    rows = []
    for coverage in coverages:
        kept = kept_at(margin, coverage)
        score = np.where(kept, model, expert).astype(np.float64)
        rows.append(
            {
                "coverage": float(kept.mean()),
                "auroc": auroc(target, score),
                "average_precision": average_precision(target, score),
                "accuracy": float(((score > 0.5) == (target == 1)).mean()),
            }
        )
    return rows
