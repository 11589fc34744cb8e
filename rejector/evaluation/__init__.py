"""What a rejector is worth: losses and metrics of whom it chose, opponents, intervals, curves, findings in words."""

from .evaluate import Evaluation, evaluate_runs

__all__ = ["Evaluation", "evaluate_runs"]
