"""The record of one run on one split, and how records of one setting belong together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from l2d.data.cache.reader import CostCache
from l2d.rejector.evaluation.baselines import Baselines
from l2d.rejector.evaluation.measured import Measured
from l2d.rejector.runs.run import Run


@dataclass(frozen=True)
class Evaluation:
    """One run on one split: the JSON object users see, and the arrays behind it.

    Attributes:
        result: plain values; ``docs/evaluation.md`` defines each.
        losses: deferral loss of each sample, float64 (n,).
        against: baseline -> its loss on each sample (n,): ``oracle``, ``best_agent``, ``best_constant``,
            ``random_same_shares``, and those that apply of ``confidence``, ``confidence_same_coverage``, ``averaging``.
        allocation: agent index of each sample, int64 (n,).
        margin: the model's score less the best expert's, float32 (n,).
        deferred: cost of each sample if the best-scored expert answers, float32 (n,).
        baselines: shared by the runs that have the same costs.
        measured: the table, shared by the runs on one cache and split; a run's own classifier, where it has one,
            stands in agent 0's place.
    """

    run: Run
    cache: CostCache
    result: dict[str, Any]
    losses: np.ndarray
    against: dict[str, np.ndarray]
    allocation: np.ndarray
    margin: np.ndarray
    deferred: np.ndarray
    baselines: Baselines
    measured: Measured

    @cached_property
    def charged(self) -> np.ndarray:
        """What asking each agent about each sample takes, in units of loss: ``beta`` and price; float64 (n, agents)."""
        return self.run.point.charged(self.measured.table.raw).numpy()

    @property
    def router_paid(self) -> float:
        """What deciding took for each sample, in money."""
        return self.result.get("paid", {}).get("router", 0.0)

    @property
    def task_losses(self) -> np.ndarray:
        """Deferral loss of each sample without what deciding and asking took, float64 (n,)."""
        return self.losses - self.run.rejector.decided - self.charged[np.arange(len(self.losses)), self.allocation]

    @property
    def kept(self) -> np.ndarray:
        """Cost of each sample if the model answers, float32 (n,)."""
        return self.baselines.costs[:, 0].numpy()


def mean_losses(members: list[Evaluation]) -> np.ndarray:
    """Deferral loss of each sample, the mean over seeds: float64 (n,)."""
    return np.mean([member.losses for member in members], axis=0)


def setting_of(evaluation: Evaluation) -> tuple:
    """What repetitions share: method, then everything else but the seed (lambda, beta, nu, cost, training, cache)."""
    run = evaluation.run
    return (*run.point.setting, run.rejector.config, run.cache_path, tuple(run.agents))


def by_setting(evaluations: list[Evaluation]) -> dict[tuple, list[Evaluation]]:
    """Evaluations by setting; a seed that was trained twice counts once."""
    settings: dict[tuple, dict[int, Evaluation]] = {}
    for evaluation in evaluations:
        settings.setdefault(setting_of(evaluation), {}).setdefault(evaluation.run.point.seed, evaluation)
    return {key: list(members.values()) for key, members in settings.items()}


def mean_std(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
