"""A run's splits as the engine sees them: predictions that have not seen the sample, and every agent's answer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from l2d.data.cache.reader import CostCache
from l2d.data.costs.detection import DETECTION_COSTS
from l2d.data.errors import UsageError
from l2d.data.samples.boxes import Boxes
from l2d.rejector.best.folds import fold_of
from l2d.rejector.best.trained import TrainedBest
from l2d.rejector.decisions.search import FOLDS
from l2d.rejector.decisions.states import sure_of_boxes
from l2d.rejector.decisions.world import Answers, CostOf, Known, World
from l2d.rejector.evaluation.baselines import averaged_costs
from l2d.rejector.evaluation.groups import read_groups
from l2d.rejector.policies.cost_prediction import CostPredictor, choose_predictor
from l2d.rejector.policies.scored import score_meaning
from l2d.rejector.rows.table import CostTable, load_tables
from l2d.rejector.runs.run import Run, open_cache
from l2d.rejector.settings import INPUT_OF

VALIDATION = "validation"
FLATTERED = 3.0  # standard errors by which an agent may be better on training than on validation


@dataclass(frozen=True)
class Read:
    """A run's splits.

    Attributes:
        worlds: split -> samples. ``known.fold`` is set on what the run was fitted on.
        fit: samples that rules are fitted on; the last ``len(worlds["validation"])`` of them are validation's.
        fitted_on: their splits.
        unit: what ``price`` is counted in: of money the cache's unit, else ``price`` of the recipe.
        money: whether that is money, sample by sample.
        seconds, gflops: of each agent's answer, None where not known.
        names: of the groups.
        predictor: of runs whose scores are not predicted costs: from scores to costs.
    """

    run: Run
    cache: CostCache
    worlds: dict[str, World]
    fit: World
    fitted_on: tuple[str, ...]
    unit: str
    money: bool
    seconds: list[float | None]
    gflops: list[float | None]
    names: list[str]
    predictor: CostPredictor | None = None


def read_worlds(run: Run, splits: Iterable[str] = ("test",), *, group: str | None = None) -> Read:
    """Read what rules are fitted on, and splits to judge them on.

    Rules are fitted on validation, and of method ``best``, whose predictions are held out there too, on training as
    well; not where an agent is better on training than on validation beyond chance: it has seen those samples.

    Args:
        run: at the setting wanted.
        splits: besides validation.
        group: a kept column whose values promises are kept for; None: no groups.

    Raises:
        UsageError: the run's scores say nothing of costs, or there is no such column.
    """
    cache = open_cache(run)
    if run.rejector.has_classifier:
        raise UsageError(
            f"method {run.point.method} answers with a classifier of its own, whose answers are not in the cache",
            where=run.path,
            hint="take a run of another method, such as best",
        )
    best = isinstance(run.rejector, TrainedBest)
    wanted = tuple(dict.fromkeys((*(("train",) if best else ()), VALIDATION, *splits)))
    tables = load_tables(
        cache, wanted, column=INPUT_OF[run.rejector.config.network], predictions=True,
        failures=run.rejector.config.failures,
    )  # fmt: skip
    predictor = None if best else _predictor(run, tables[VALIDATION])
    known_prices = all(
        table.paid is not None and bool((~np.isnan(table.paid)).any(axis=0).all()) for table in tables.values()
    ) and any(np.nansum(table.paid) > 0 for table in tables.values() if table.paid is not None)
    worlds: dict[str, World] = {}
    codes: dict[Any, int] = {}
    for split, table in tables.items():
        world = _world(run, cache, table, predictor, money=known_prices)
        if group is not None:
            world, codes = _grouped(world, cache, table, group, codes)
        worlds[split] = world
    fitted_on: tuple[str, ...] = (VALIDATION,)
    if best and not _flattered(worlds["train"], worlds[VALIDATION]):
        fitted_on = ("train", VALIDATION)
    fit = joined([worlds[split] for split in fitted_on])
    return Read(
        run=run, cache=cache, worlds=worlds, fit=fit, fitted_on=fitted_on,
        unit=(cache.record.unit_paid or "paid") if known_prices else "price", money=known_prices,
        seconds=[agent.seconds for agent in cache.agents], gflops=[agent.gflops for agent in cache.agents],
        names=list(map(str, codes)), predictor=predictor,
    )  # fmt: skip


def _predictor(run: Run, table: CostTable) -> CostPredictor:
    loss, nu = score_meaning(run)
    costs = run.point.total_costs(table.raw, [task for task, _ in run.point.weights.by_task]).numpy()
    return choose_predictor(_scores(run, table), costs.astype(np.float64), loss, nu)[0]


def _scores(run: Run, table: CostTable) -> np.ndarray:
    return np.asarray(run.rejector.scores_on(table), np.float64)


def _world(run: Run, cache: CostCache, table: CostTable, predictor: CostPredictor | None, *, money: bool) -> World:
    point, tasks, n = run.point, cache.record.tasks, len(table)
    names = [agent.name for agent in cache.agents]
    costs = point.total_costs(table.raw, tasks).double().numpy()
    charges = np.nan_to_num(point.charged(table.raw).numpy(), nan=0.0)
    available = np.isfinite(costs)
    answers = answers_of(table, names, available, money=money)
    if predictor is None:
        assert isinstance(run.rejector, TrainedBest)
        raw = run.rejector.predictor(table.split, table.ids, table.features.numpy())
        predicted, right = task_predictions(run, raw, tasks, classes=answers.classes is not None)
    else:
        total = predictor.predict(_scores(run, table), np.ones_like(available))
        predicted, right = total - charges.mean(axis=0), None
        if answers.classes is not None and tasks == ["cla"]:
            right = 1 - predicted / max(dict(point.weights.by_task)["cla"], 1e-9)
    if money and table.paid is not None:
        price = np.nan_to_num(table.paid, nan=0.0)
    else:
        price = np.tile([math.nan if agent.price is None else agent.price for agent in cache.agents], (n, 1))
    num_classes = 0
    if answers.classes is not None:
        num_classes = max(len(cache.record.classes), int(answers.classes.max()) + 1, 2)
    truth = table.targets.get("target_cla")
    return World(
        ids=table.ids,
        agents=names,
        known=Known(
            predicted=predicted, right=right, available=available, answers=answers, fold=fold_of(table.ids, FOLDS)
        ),
        costs=np.where(available, costs - np.where(available, charges, 0.0), np.inf),
        charges=charges,
        price=price,
        cost_of=_cost_of(run, cache, table),
        num_classes=num_classes,
        truth=None if answers.classes is None or truth is None else np.asarray(truth).astype(np.int64),
    )


def task_predictions(
    run: Run, raw: np.ndarray, tasks: list[str], *, classes: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Expected task costs (n, agents) without what asking takes, and chances of a right class where that is known.

    Args:
        raw: predicted raw costs of method ``best``, (n, agents, tasks); prices behind them.
    """
    point = run.point
    count = 1 if point.cost is not None else len(tasks)
    weights = np.array([1.0] if point.cost is not None else [weight for _, weight in point.weights.by_task])
    right = None
    if classes and point.cost is None and "cla" in tasks:
        right = 1 - raw[:, :, tasks.index("cla")]
    return (raw[:, :, :count] * weights).sum(axis=2), right


def answers_of(table: CostTable, names: list[str], available: np.ndarray, *, money: bool) -> Answers:
    """What agents answered to the samples of a table."""
    each = [table.predictions[name] for name in names]
    shape = available.shape
    classes = chances = numbers = sure = boxes = None
    if all("pred_cla" in answer or "pred_prob" in answer for answer in each):
        classes, sure = np.full(shape, -1), np.full(shape, np.nan)
        widths = {np.asarray(answer["pred_prob"]).shape[1] for answer in each if "pred_prob" in answer}
        if len(widths) == 1 and all("pred_prob" in answer for answer in each):
            chances = np.zeros((*shape, widths.pop()), np.float32)
        for j, answer in enumerate(each):
            if "pred_prob" in answer:
                told = np.nan_to_num(np.asarray(answer["pred_prob"], np.float32))
                classes[:, j], sure[:, j] = told.argmax(axis=1), told.max(axis=1)
                if chances is not None:
                    chances[:, j] = told
            if "pred_cla" in answer:
                classes[:, j] = np.nan_to_num(np.asarray(answer["pred_cla"], np.float64), nan=-1).astype(np.int64)
        classes[~available], sure[~available] = -1, np.nan
    if all("pred_reg" in answer for answer in each):
        numbers = np.stack([np.asarray(answer["pred_reg"], np.float64) for answer in each], axis=1)
        numbers[~available] = np.nan
    if all("pred_boxes" in answer for answer in each):
        boxes = tuple(some for answer in each if isinstance(some := answer["pred_boxes"], Boxes))
        sure = np.stack([sure_of_boxes(some) for some in boxes], axis=1)
        sure[~available] = np.nan
    paid = None
    if money and table.paid is not None and bool((np.nanstd(table.paid, axis=0) > 0).any()):
        paid = np.where(available, table.paid, np.nan)
    return Answers(classes=classes, chances=chances, numbers=numbers, sure=sure, paid=paid, boxes=boxes)


def _cost_of(run: Run, cache: CostCache, table: CostTable) -> CostOf | None:
    """What combined answers cost; None where the cache does not say how to judge them."""
    tasks, costs = cache.record.tasks, cache.record.costs
    free = replace(run.point, query_costs=(0.0,), paid=None)
    truth = table.targets.get("target_boxes")
    if isinstance(truth, Boxes):
        judges = [DETECTION_COSTS[task](**costs[task]) for task in tasks]

        def cost_of_boxes(found: dict[str, Any], rows: np.ndarray) -> np.ndarray:
            some = truth.take(rows)
            raw = np.stack([judge.compute(found["pred_boxes"], some) for judge in judges], axis=1)
            return free.total_costs(torch.from_numpy(raw)[:, None], tasks, free=True)[:, 0].double().numpy()

        return cost_of_boxes
    if not set(tasks) <= {"cla", "reg"} or not set(tasks) <= set(costs):
        return None
    targets = {name: np.asarray(values) for name, values in table.targets.items()}

    def cost_of(found: dict[str, Any], rows: np.ndarray) -> np.ndarray:
        raw = averaged_costs(found, {name: values[rows] for name, values in targets.items()}, tasks, costs)
        return free.total_costs(torch.from_numpy(raw)[:, None], tasks, free=True)[:, 0].double().numpy()

    return cost_of


def _grouped(world: World, cache: CostCache, table: CostTable, column: str, codes: dict) -> tuple[World, dict]:
    """The samples with their groups; ``codes`` are shared by the splits."""
    own = read_groups(cache, table, column)
    assert own is not None
    values: dict[str, Any] = {}
    for chunk in range(cache.record.num_chunks):
        part = cache.samples(chunk, ["sample_id", column])
        values.update(zip(part["sample_id"].to_pylist(), part[column].to_pylist(), strict=True))
    code = np.array([codes.setdefault(values[name], len(codes)) for name in table.ids], np.int64)
    return replace(world, group=code), codes


def _flattered(train: World, validation: World) -> bool:
    """Whether an agent is better on training samples than on validation beyond chance."""
    for agent in range(train.num_agents):
        one, other = (world.costs[:, agent] for world in (train, validation))
        one, other = one[np.isfinite(one)], other[np.isfinite(other)]
        if len(one) < 2 or len(other) < 2:
            continue
        error = math.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
        if other.mean() - one.mean() > FLATTERED * error:
            return True
    return False


def joined(worlds: list[World]) -> World:
    """Samples of several splits one after another."""
    if len(worlds) == 1:
        return worlds[0]

    def all_of(values: list[np.ndarray | None]) -> np.ndarray | None:
        return None if any(value is None for value in values) else np.concatenate(values)  # type: ignore[arg-type]

    first, edges = worlds[0], np.cumsum([0, *map(len, worlds)])

    def cost_of(found: dict[str, Any], rows: np.ndarray) -> np.ndarray:
        result = np.empty(len(rows))
        for world, start, stop in zip(worlds, edges[:-1], edges[1:], strict=True):
            some = np.flatnonzero((rows >= start) & (rows < stop))
            if len(some):
                assert world.cost_of is not None
                result[some] = world.cost_of({name: v[some] for name, v in found.items()}, rows[some] - start)
        return result

    names = ("classes", "chances", "numbers", "sure", "paid")
    answers: dict[str, Any] = {name: all_of([getattr(w.known.answers, name) for w in worlds]) for name in names}
    given = [w.known.answers.boxes for w in worlds]
    if all(boxes is not None for boxes in given):
        answers["boxes"] = tuple(Boxes.concatenate(list(some)) for some in zip(*given, strict=True))  # type: ignore[arg-type]
    return World(
        ids=[name for world in worlds for name in world.ids],
        agents=first.agents,
        known=Known(
            predicted=np.concatenate([w.known.predicted for w in worlds]),
            right=all_of([w.known.right for w in worlds]),
            available=np.concatenate([w.known.available for w in worlds]),
            answers=Answers(**answers),
            fold=all_of([w.known.fold for w in worlds]),
        ),
        costs=np.concatenate([w.costs for w in worlds]),
        charges=np.concatenate([w.charges for w in worlds]),
        price=np.concatenate([w.price for w in worlds]),
        cost_of=None if first.cost_of is None else cost_of,
        num_classes=max(w.num_classes for w in worlds),
        truth=all_of([w.truth for w in worlds]),
        group=all_of([w.group for w in worlds]),
    )
