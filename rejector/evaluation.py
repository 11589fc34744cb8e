"""Evaluating runs: deferral loss, allocation, task metrics, and regret against baselines with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.cache import CostCache
from data.errors import UsageError

from . import baselines
from .intervals import paired_interval
from .losses import allocate, deferral_loss, oracle_allocation
from .metrics import task_metrics
from .networks import INPUT_OF
from .runs import Run, load_run, open_cache
from .table import CostTable, load_tables
from .training import point_costs, reference_point_costs


@dataclass(frozen=True)
class Evaluation:
    """One run on one split: the JSON object users see, and the per-sample losses behind it."""

    run: Run
    cache: CostCache
    result: dict[str, Any]
    losses: np.ndarray  # deferral loss of each sample, float64 (n,)
    rivals: dict[str, np.ndarray]  # oracle, best_agent, random_same_shares: loss of each sample, float64 (n,)
    margin: np.ndarray  # the model's score less the best expert's, float32 (n,)
    kept: np.ndarray  # cost of each sample if the model answers, float32 (n,)
    deferred: np.ndarray  # cost of each sample if the best-scored expert answers, float32 (n,)


def evaluate_runs(paths: list[Path], split: str = "test") -> list[Evaluation]:
    """Evaluate runs, reading each cache once.

    Raises:
        UsageError: no runs.
        FingerprintMismatch: a cache is no longer what a run was trained on.
    """
    if not paths:
        raise UsageError("no runs to evaluate", hint="give a run, or a folder of runs")
    tables: dict[tuple, tuple[CostCache, Measured]] = {}
    evaluations = []
    for path in paths:
        run = load_run(path)
        cache, failures = open_cache(run), run.rejector.config.failures  # every run is checked against its cache
        column = INPUT_OF[run.rejector.config.network]
        key = (run.cache_path, failures, column)
        if key not in tables:
            table = load_tables(cache, (split,), column=column, predictions=True, failures=failures)[split]
            tables[key] = (cache, Measured(table, cache.record.costs))
        evaluations.append(_evaluate(run, *tables[key]))
    _compare_settings(evaluations)
    return evaluations


class Measured:
    """A table whose task metrics are worked out once per allocation: agents alone come back in every run."""

    def __init__(self, table: CostTable, costs: dict):
        self.table, self.costs = table, costs
        self._known: dict[tuple, dict[str, float]] = {}

    def metrics(self, chosen: np.ndarray, names: list[str]) -> dict[str, float]:
        """:func:`rejector.metrics.task_metrics` of this table."""
        key = (tuple(names), chosen.tobytes())
        if key not in self._known:
            self._known[key] = task_metrics(self.table, chosen, names, self.costs)
        return dict(self._known[key])


def _evaluate(run: Run, cache: CostCache, measured: Measured) -> Evaluation:
    table = measured.table
    names = [agent.name for agent in cache.agents]
    costs = point_costs(table.raw, run.point, cache.record.tasks)
    scores = run.rejector.scores(table.features)
    allocation = allocate(scores)
    losses = deferral_loss(allocation, costs).double().numpy()
    rates = baselines.allocation_rates(allocation, len(names))
    best = baselines.best_constant(costs)
    rivals = {
        "oracle": baselines.oracle(costs).numpy(),
        "best_agent": costs[:, best].double().numpy(),
        "random_same_shares": baselines.random_same_shares(rates, costs).numpy(),
    }
    result = {
        "run_id": run.point.run_id,
        "method": run.point.method,
        "beta": dict(run.point.beta) if isinstance(run.point.beta, tuple) else run.point.beta,
        "nu": run.point.nu,
        "lambda": dict(run.point.weights.by_task),
        "seed": run.point.seed,
        "split": table.split,
        "num_samples": len(table),
        "deferral_loss": float(losses.mean()),
        "allocation": dict(zip(names, rates.tolist(), strict=True)),
        "metrics": measured.metrics(allocation.numpy(), names),
        "agents": _alone(cache, measured, run, costs),
        "oracle": _oracle(measured, costs, names),
        "oracle_loss": float(rivals["oracle"].mean()),
        "best_agent": names[best],
        "best_agent_loss": float(rivals["best_agent"].mean()),
        "random_same_shares_loss": float(rivals["random_same_shares"].mean()),
        "regret": {name: paired_interval(losses - rival).to_json() for name, rival in rivals.items()},
    }
    if run.point.cost is not None:
        result["cost"] = run.point.cost
    margin = (scores[:, 0] - scores[:, 1:].amax(dim=1)).numpy()
    deferred = deferral_loss(1 + allocate(scores[:, 1:]), costs).numpy()
    return Evaluation(run, cache, result, losses, rivals, margin, costs[:, 0].numpy(), deferred)


def _oracle(measured: Measured, costs: torch.Tensor, names: list[str]) -> dict[str, Any]:
    """Allocation and metrics of the Bayes rejector with known costs."""
    allocation = oracle_allocation(costs)
    rates = baselines.allocation_rates(allocation, len(names)).tolist()
    return {
        "allocation": dict(zip(names, rates, strict=True)),
        "metrics": measured.metrics(allocation.numpy(), names),
    }


def _alone(cache: CostCache, measured: Measured, run: Run, costs: torch.Tensor) -> dict[str, dict[str, float]]:
    """Each agent, and each reference, when it answers everything. A reference pays for all the queries it makes."""
    alone = {}
    table = measured.table
    names = [agent.name for agent in cache.agents]
    everyone = np.zeros(len(table), dtype=np.int64)
    reference_costs = reference_point_costs(table, run.point, cache.record.tasks)
    for agent in cache.agents + cache.references:
        if agent.role == "agent":
            cost = costs[:, names.index(agent.name)]
        else:
            queries = sum(run.point.query_costs[names.index(name)] for name in agent.queries if name in names)
            cost = reference_costs[:, cache.references.index(agent)] + queries
        alone[agent.name] = {
            "role": agent.role,
            "mean_cost": float(cost.double().mean()),
            **measured.metrics(everyone, [agent.name]),
        }
    return alone


def _compare_settings(evaluations: list[Evaluation]) -> None:
    """Add ``over_seeds`` to each result: means and deviations over the seeds of its setting, with intervals.

    Intervals resample samples and average the seeds, so they speak of new samples for these trained rejectors.
    """
    settings = by_setting(evaluations)
    mean_losses = {key: np.mean([e.losses for e in members], axis=0) for key, members in settings.items()}
    for key, members in settings.items():
        losses = mean_losses[key]
        summary: dict[str, Any] = {
            "seeds": len(members),
            "deferral_loss": mean_std([e.result["deferral_loss"] for e in members]),
            "allocation": {
                name: mean_std([e.result["allocation"][name] for e in members])
                for name in members[0].result["allocation"]
            },
            "metrics": {
                name: mean_std([e.result["metrics"][name] for e in members])
                for name in members[0].result["metrics"]
                if all(name in e.result["metrics"] for e in members)
            },
            "random_same_shares_loss": mean_std([e.result["random_same_shares_loss"] for e in members]),
            "regret": {
                rival: paired_interval(losses - np.mean([e.rivals[rival] for e in members], axis=0)).to_json()
                for rival in members[0].rivals
            },
        }
        method, *rest = key
        for (other, *other_rest), other_losses in mean_losses.items():
            if other != method and other_rest == rest:
                summary["regret"][other] = paired_interval(losses - other_losses).to_json()
        for evaluation in evaluations:
            if setting_of(evaluation) == key:
                evaluation.result["over_seeds"] = summary


def setting_of(evaluation: Evaluation) -> tuple:
    """What repetitions share: method, then everything else but the seed (lambda, beta, nu, cost, training, cache)."""
    run = evaluation.run
    return (*run.point.setting, run.rejector.config, run.cache_path)


def by_setting(evaluations: list[Evaluation]) -> dict[tuple, list[Evaluation]]:
    """Evaluations by setting; a seed that was trained twice counts once."""
    settings: dict[tuple, dict[int, Evaluation]] = {}
    for evaluation in evaluations:
        settings.setdefault(setting_of(evaluation), {}).setdefault(evaluation.run.point.seed, evaluation)
    return {key: list(members.values()) for key, members in settings.items()}


def mean_std(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
