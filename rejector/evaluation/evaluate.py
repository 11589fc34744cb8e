"""Evaluating runs: deferral loss, allocation, task metrics, and regret against baselines with intervals."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2d.data.cache.reader import CostCache
from l2d.data.errors import UsageError
from l2d.data.threads import one_thread
from l2d.rejector.best.reliability import reliability
from l2d.rejector.evaluation.baselines import Baselines, allocation_rates, random_same_shares
from l2d.rejector.evaluation.comparisons import compare
from l2d.rejector.evaluation.evaluation import Evaluation
from l2d.rejector.evaluation.groups import read_groups
from l2d.rejector.evaluation.guarded import guard_facts
from l2d.rejector.evaluation.measured import VALIDATION, Measured
from l2d.rejector.evaluation.router_metrics import metrics_of_run, metrics_of_sweep
from l2d.rejector.losses import allocate, deferral_loss
from l2d.rejector.rows.table import load_tables
from l2d.rejector.runs.run import Loaded, Opened, Run, load_run, open_cache
from l2d.rejector.settings import INPUT_OF
from l2d.rejector.thresholds import kept_by_model

#: Samples of a cache up to which threads would rather wait for each other than work.
FEW = 100_000


def evaluate_runs(
    paths: list[Path], split: str = "test", *, group: str | None = None, images: Path | None = None
) -> list[Evaluation]:
    """Evaluate runs, reading each cache once.

    Args:
        paths: folders of runs.
        split: to evaluate on; constant agent and thresholds are chosen on validation whatever it is.
        group: a kept column whose values belong together, for intervals; None: ``group`` where it is kept.
        images: the folder of the image files that runs look at, where it has moved.

    Raises:
        UsageError: no runs, or no such column.
        FingerprintMismatch: a cache is no longer what a run was trained on.
    """
    if not paths:
        raise UsageError("no runs to evaluate", hint="give a run, or a folder of runs")
    opened: Opened = {}
    loaded: Loaded = {}
    runs = [load_run(path, loaded, images) for path in paths]
    caches = [open_cache(run, opened) for run in runs]  # every run is checked against its cache
    few = all(cache.record.num_samples <= FEW for cache in caches)
    with one_thread() if few else nullcontext():
        return _evaluate_runs(runs, caches, split, group)


def _evaluate_runs(runs: list[Run], caches: list[CostCache], split: str, group: str | None) -> list[Evaluation]:
    tables: dict[tuple, Measured] = {}
    evaluations = []
    for run, cache in zip(runs, caches, strict=True):
        failures = run.rejector.config.failures
        column = INPUT_OF[run.rejector.config.network]
        pictures = (run.rejector.config.images, run.rejector.config.image_size)
        key = (run.cache_path, tuple(run.agents), failures, column, cache.priced, pictures)
        if key not in tables:
            splits = tuple(dict.fromkeys((split, VALIDATION)))
            loaded = load_tables(cache, splits, column=column, predictions=True, failures=failures)
            tables[key] = Measured(loaded, split, cache)
            tables[key].groups = read_groups(cache, loaded[split], group)
        measured, scores = tables[key], torch.from_numpy(run.rejector.scores_on(tables[key].table))
        if run.rejector.has_classifier:
            measured = measured.with_classifier(run.rejector)
        evaluations.append(_evaluate(run, cache, measured, scores))
    same_samples: dict[tuple, list[int]] = {}
    for position, evaluation in enumerate(evaluations):
        run = evaluation.run
        key = (run.cache_path, run.rejector.config.failures, len(evaluation.losses), run.point.paid is not None)
        same_samples.setdefault(key, []).append(position)
    for positions in same_samples.values():
        found = compare([evaluations[position] for position in positions])
        for position, more in zip(positions, found, strict=True):
            evaluations[position] = replace(evaluations[position], result=evaluations[position].result | more)
    for cache_path in dict.fromkeys(evaluation.run.cache_path for evaluation in evaluations):
        members = [evaluation for evaluation in evaluations if evaluation.run.cache_path == cache_path]
        found = metrics_of_sweep(members) if _comparable(members) else {}
        for member in members if found else ():
            member.result["router_metrics"]["sweep"] = found
    return evaluations


def _comparable(members: list[Evaluation]) -> bool:
    """Whether runs have the same agents and samples, so that one figure can be drawn of them."""
    return len({(tuple(member.run.agents), len(member.losses)) for member in members}) == 1


def _evaluate(run: Run, cache: CostCache, measured: Measured, scores: Tensor) -> Evaluation:
    table, names, baselines = measured.table, measured.names, measured.baselines(run.point)
    costs = baselines.costs
    scores = scores.masked_fill(costs.isinf(), -torch.inf)
    allocation = allocate(scores)
    losses = deferral_loss(allocation, costs).double().numpy() + run.rejector.decided
    rates = allocation_rates(allocation, len(names))
    against = {
        "oracle": baselines.losses["oracle"],
        "best_agent": baselines.alone[baselines.best_agent],
        "best_constant": baselines.alone[baselines.best_constant],
        "random_same_shares": random_same_shares(rates, costs).numpy(),
        "confidence": baselines.losses.get("confidence"),
        "confidence_same_coverage": baselines.same_coverage(float(rates[0])),
        "averaging": baselines.losses.get("averaging"),
    }
    against = {name: values for name, values in against.items() if values is not None}
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
        **measured.detection_facts(allocation.numpy()),
        **paid_result(measured, allocation.numpy(), run),
        "agents": _alone(cache, measured, baselines),
        "oracle": {
            "allocation": _shares(baselines.oracle_allocation, names),
            "metrics": measured.metrics(baselines.oracle_allocation, names),
        },
        "best_agent": baselines.best_agent,
        "best_constant": baselines.best_constant,
        **{f"{name}_loss": float(values.mean(dtype=np.float64)) for name, values in against.items()},
    }
    if "confidence" in against:
        expert, threshold = baselines.threshold
        kept = kept_by_model(baselines.confidence[0], costs.numpy(), expert, threshold)
        at = threshold if np.isfinite(threshold) else None
        result["confidence"] = {"expert": names[expert], "threshold": at, "coverage": float(kept.mean())}
    if measured.averages is not None:
        averaged = [r.name for r in cache.references if r.kind == "average" and set(r.queries) == set(names)]
        result["averaging"] = {"agents": names, "metrics": measured.average_metrics(), "same_as": averaged}
    if run.point.cost is not None:
        result["cost"] = run.point.cost
    guard = guard_facts(run.rejector, table, costs.double().numpy(), losses, measured.groups)
    if guard is not None:
        result["guard"] = {**guard, "fallback": names[guard["fallback"]]}
    if run.rejector.answering is not None:
        result["answering"] = run.rejector.answering
    predicted = run.rejector.predicted_costs(table)
    if predicted is not None:
        result["reliability"] = reliability(predicted, costs.double().numpy(), names, measured.groups)
    margin = (scores[:, 0] - scores[:, 1:].amax(dim=1)).numpy()
    router = result["paid"]["router"] if "paid" in result else 0.0
    result["router_metrics"] = metrics_of_run(measured, baselines, allocation.numpy(), margin, router=router)
    deferred = deferral_loss(1 + allocate(scores[:, 1:]), costs).numpy()
    return Evaluation(run, cache, result, losses, against, allocation.numpy(), margin, deferred, baselines, measured)


def paid_result(measured: Measured, allocation: np.ndarray, run: Run) -> dict[str, Any]:
    """``paid``: what answers of an allocation were paid in money, whatever a run charges for it; nothing if unknown."""
    if measured.prices is None:
        return {}
    chosen = measured.prices[np.arange(len(allocation)), allocation]
    known = chosen[~np.isnan(chosen)]
    found = {"unit": measured.cache.record.unit_paid, "mean": float(known.mean()) if len(known) else None}
    found |= {"total": float(known.sum()), "unknown": len(chosen) - len(known)}
    return {"paid": found | {"router": run.rejector.config.router_cost if run.rejector.decides else 0.0}}


def _shares(allocation: np.ndarray, names: list[str]) -> dict[str, float]:
    rates = allocation_rates(torch.from_numpy(allocation), len(names))
    return dict(zip(names, rates.tolist(), strict=True))


def _alone(cache: CostCache, measured: Measured, baselines: Baselines) -> dict[str, dict[str, Any]]:
    """Each agent, and each reference, when it is asked for everything. A reference pays for all the queries it makes.

    ``mean_cost`` is that of the constant policy, which asks another agent where this one has no answer; what it answers
    by itself are the metrics, ``answered`` and ``mean_cost_answered``; ``stand_in`` is the first of the others.
    """
    alone = {}
    for agent in cache.agents + cache.references:
        losses = baselines.alone[agent.name]
        found = {"role": agent.role, "mean_cost": float(losses.mean(dtype=np.float64))}
        if agent.name in baselines.gaps:
            own = losses[~baselines.gaps[agent.name]]
            found["mean_cost_answered"] = float(own.mean(dtype=np.float64)) if len(own) else None
            found["stand_in"] = next(name for name in baselines.order if name != agent.name)
        if measured.prices is not None and agent.name in measured.names:
            found["mean_paid"] = float(np.nanmean(measured.prices[:, measured.names.index(agent.name)]))
        if agent.name in measured.names:
            found |= measured.detection_facts(np.full(len(losses), measured.names.index(agent.name)))
        alone[agent.name] = found | measured.metrics_alone(agent.name)
    return alone
