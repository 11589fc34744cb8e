"""Evaluating runs: deferral loss, allocation, task metrics, and regret against baselines with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2d.data.cache.reader import CostCache
from l2d.data.errors import UsageError
from l2d.rejector.evaluation import baselines
from l2d.rejector.evaluation.comparisons import by_setting, compare, mean_std, setting_of
from l2d.rejector.evaluation.groups import read_groups
from l2d.rejector.evaluation.opponents import VALIDATION, Measured, Opponents
from l2d.rejector.losses import allocate, deferral_loss
from l2d.rejector.networks import INPUT_OF
from l2d.rejector.rows.table import load_tables
from l2d.rejector.runs.run import Run, load_run, open_cache

__all__ = ["Evaluation", "by_setting", "evaluate_runs", "mean_std", "setting_of"]


@dataclass(frozen=True)
class Evaluation:
    """One run on one split: the JSON object users see, and the arrays behind it.

    Attributes:
        result: plain values; ``docs/evaluation.md`` defines each.
        losses: deferral loss of each sample, float64 (n,).
        rivals: baseline -> its loss on each sample (n,): ``oracle``, ``random_same_shares`` and those that apply of
            ``best_agent``, ``best_constant``, ``confidence``, ``confidence_same_coverage``, ``averaging``.
        allocation: agent index of each sample, int64 (n,).
        margin: the model's score less the best expert's, float32 (n,).
        deferred: cost of each sample if the best-scored expert answers, float32 (n,).
        opponents: agents alone and baselines, shared by the runs that have the same costs.
        measured: the table, shared by the runs on one cache and split; a run's own classifier, where it has one,
            stands in agent 0's place.
    """

    run: Run
    cache: CostCache
    result: dict[str, Any]
    losses: np.ndarray
    rivals: dict[str, np.ndarray]
    allocation: np.ndarray
    margin: np.ndarray
    deferred: np.ndarray
    opponents: Opponents
    measured: Measured

    @property
    def kept(self) -> np.ndarray:
        """Cost of each sample if the model answers, float32 (n,)."""
        return self.opponents.costs[:, 0].numpy()


def evaluate_runs(paths: list[Path], split: str = "test", *, group: str | None = None) -> list[Evaluation]:
    """Evaluate runs, reading each cache once.

    Args:
        paths: folders of runs.
        split: to evaluate on; constant agent and thresholds are chosen on validation whatever it is.
        group: a kept column whose values belong together, for intervals; None: ``group`` where it is kept.

    Raises:
        UsageError: no runs, or no such column.
        FingerprintMismatch: a cache is no longer what a run was trained on.
    """
    if not paths:
        raise UsageError("no runs to evaluate", hint="give a run, or a folder of runs")
    tables: dict[tuple, Measured] = {}
    evaluations = []
    for path in paths:
        run = load_run(path)
        cache, failures = open_cache(run), run.rejector.config.failures  # every run is checked against its cache
        column = INPUT_OF[run.rejector.config.network]
        key = (run.cache_path, tuple(run.agents), failures, column)
        if key not in tables:
            splits = tuple(dict.fromkeys((split, VALIDATION)))
            loaded = load_tables(cache, splits, column=column, predictions=True, failures=failures)
            tables[key] = Measured(loaded, split, cache)
            tables[key].groups = read_groups(cache, loaded[split], group)
        measured, scores = tables[key], run.rejector.scores_on(tables[key].table)
        if run.rejector.has_classifier:
            measured = measured.with_classifier(run.rejector)
        evaluations.append(_evaluate(run, cache, measured, scores))
    same_samples: dict[tuple, list[Evaluation]] = {}
    for evaluation in evaluations:
        key = (evaluation.run.cache_path, evaluation.run.rejector.config.failures, len(evaluation.losses))
        same_samples.setdefault(key, []).append(evaluation)
    for members in same_samples.values():
        compare(members)
    return evaluations


def _evaluate(run: Run, cache: CostCache, measured: Measured, scores: Tensor) -> Evaluation:
    table, names, opponents = measured.table, measured.names, measured.opponents(run.point)
    costs = opponents.costs
    scores = scores.masked_fill(costs.isinf(), -torch.inf)
    allocation = allocate(scores)
    losses = deferral_loss(allocation, costs).double().numpy()
    rates = baselines.allocation_rates(allocation, len(names))
    same_coverage = opponents.same_coverage(float(rates[0]))
    rivals = {
        "oracle": opponents.losses["oracle"],
        "best_agent": opponents.alone.get(opponents.best_agent),
        "best_constant": opponents.alone[opponents.best_constant] if opponents.constant_answers else None,
        "random_same_shares": baselines.random_same_shares(rates, costs).numpy(),
        "confidence": opponents.losses.get("confidence"),
        "confidence_same_coverage": same_coverage,
        "averaging": opponents.losses.get("averaging"),
    }
    rivals = {name: values for name, values in rivals.items() if values is not None}
    result = {
        "run_id": run.point.run_id,
        "method": run.point.method,
        "beta": dict(run.point.beta) if isinstance(run.point.beta, tuple) else run.point.beta,
        "nu": run.point.nu,
        "lambda": dict(run.point.weights.by_task),
        "seed": run.point.seed,
        "classifier": "own" if run.rejector.has_classifier else "cached",
        "split": table.split,
        "num_samples": len(table),
        "num_groups": None if measured.groups is None else len(np.unique(measured.groups)),
        "deferral_loss": float(losses.mean()),
        "allocation": dict(zip(names, rates.tolist(), strict=True)),
        "coverage": float(rates[0]),
        "metrics": measured.metrics(allocation.numpy(), names),
        "agents": _alone(cache, measured, opponents),
        "oracle": {
            "allocation": _shares(opponents.oracle_allocation, names),
            "metrics": measured.metrics(opponents.oracle_allocation, names),
        },
        "best_agent": opponents.best_agent,
        "best_constant": opponents.best_constant,
        **dict.fromkeys(("best_agent_loss", "best_constant_loss")),  # None where no agent answers every sample
        **{f"{name}_loss": float(values.astype(np.float64).mean()) for name, values in rivals.items()},
    }
    if "confidence" in rivals:
        expert, threshold = opponents.threshold
        kept = baselines.kept_by_model(measured.confidence[0], costs.numpy(), expert, threshold)
        at = threshold if np.isfinite(threshold) else None
        result["confidence"] = {"expert": names[expert], "threshold": at, "coverage": float(kept.mean())}
    if measured.averages is not None:
        averaged = [r.name for r in cache.references if r.kind == "average" and set(r.queries) == set(names)]
        result["averaging"] = {"agents": names, "metrics": measured.average_metrics(), "same_as": averaged}
    if run.point.cost is not None:
        result["cost"] = run.point.cost
    margin = (scores[:, 0] - scores[:, 1:].amax(dim=1)).numpy()
    deferred = deferral_loss(1 + allocate(scores[:, 1:]), costs).numpy()
    return Evaluation(run, cache, result, losses, rivals, allocation.numpy(), margin, deferred, opponents, measured)


def _shares(allocation: np.ndarray, names: list[str]) -> dict[str, float]:
    rates = baselines.allocation_rates(torch.from_numpy(allocation), len(names))
    return dict(zip(names, rates.tolist(), strict=True))


def _alone(cache: CostCache, measured: Measured, opponents: Opponents) -> dict[str, dict[str, Any]]:
    """Each agent, and each reference, when it answers everything. A reference pays for all the queries it makes.

    ``mean_cost`` is None where one is unavailable on a sample.
    """
    alone = {}
    everyone = np.zeros(len(measured.table), dtype=np.int64)
    for agent in cache.agents + cache.references:
        mean = float(opponents.alone[agent.name].astype(np.float64).mean())
        alone[agent.name] = {
            "role": agent.role,
            "mean_cost": mean if np.isfinite(mean) else None,
            **measured.metrics(everyone, [agent.name]),
        }
    return alone
