"""Curves over coverage, the share of samples that the model keeps, from evaluations."""

from __future__ import annotations

import numpy as np

from l2d.rejector.evaluation.curves import RiskCoverage, deferral_curve, risk_coverage
from l2d.rejector.evaluation.evaluate import Evaluation


def model_curve(evaluation: Evaluation) -> RiskCoverage:
    """Risk of what the model keeps, the rejector's margin as its confidence; over the samples it has an answer for.

    Says how well the rejector knows where the model errs; the experts' part is :func:`system_curve`.

    Raises:
        ValueError: the model has no answer at all.
    """
    answered = np.isfinite(evaluation.kept)
    return risk_coverage(evaluation.margin[answered], evaluation.kept[answered])


def system_curve(evaluation: Evaluation) -> RiskCoverage:
    """Deferral loss of the whole system at every coverage, query costs included, by shifting the model's score.

    At the rejector's own coverage it is the evaluation's deferral loss, unless margins are tied there.

    Raises:
        ValueError: a sample nobody has an answer for.
    """
    return deferral_curve(evaluation.margin, evaluation.kept, evaluation.deferred)
