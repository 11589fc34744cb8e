"""Points of a sweep whose method is ``best``: one fit serves every query cost and task weight."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import replace

import numpy as np
import torch

from l2d.data.cache.audit_answers import ALONE
from l2d.data.cache.reader import CostCache
from l2d.data.cache.schema import SPLITS
from l2d.data.errors import UsageError, nearest
from l2d.data.options import as_typed
from l2d.data.samples.standardise import standardisation
from l2d.rejector.best.answering import answering_in_words
from l2d.rejector.best.folds import fold_of
from l2d.rejector.best.model import CostModel, fit_costs
from l2d.rejector.best.trained import FITTED_ON, PAID_MEAN, TrainedBest, state_of
from l2d.rejector.grid import GridPoint
from l2d.rejector.rows.stream import Stream, open_streams
from l2d.rejector.rows.subset import training_rows
from l2d.rejector.settings import TrainConfig
from l2d.rejector.trained import Job, Trained
from l2d.rejector.training.distributed import is_first

#: Samples that are fitted at most; of more, a part is drawn by their ids, and all are scored.
MOST = 100_000
USED = ("failures", "memory", "train_rows", "guard", "fallback", "router_cost")


def foreign_settings(config: TrainConfig) -> list[str]:
    """Flags of settings that are not the default and that this method does not have."""
    own = {name: getattr(TrainConfig(), name) for name in USED}
    return [word for word in as_typed(replace(config, **own)) if word.startswith("--")]


def check(points: list[GridPoint], cache: CostCache, config: TrainConfig) -> None:
    """Refuse settings of networks.

    Raises:
        UsageError: names them; or ``fallback`` is not an agent.
    """
    useless = foreign_settings(config)
    if useless:
        raise UsageError(
            f"{', '.join(useless)}: method 'best' has no such setting",
            hint="add --method multi-task (the paper's), or leave it out",
        )
    names = [agent.name for agent in cache.agents]
    if config.fallback is not None and config.fallback not in names:
        raise UsageError(f"--fallback {config.fallback!r} is not an agent", hint=nearest(config.fallback, names))


def train(job: Job) -> Generator[Trained]:
    """Fit once for each seed (and ``--cost``), for all points that have it."""
    if not is_first():
        return
    cache, config, tasks = job.cache, job.config, job.cache.record.tasks
    names = [agent.name for agent in cache.agents]
    streams = open_streams(cache, SPLITS, column="features", failures=config.failures)
    left_out = sum(stream.left_out for stream in streams.values())
    ids, x, raw, held = fitted_rows(streams, config, job.points[0].seed, job.narrate)
    for seed, cost in dict.fromkeys((point.seed, point.cost) for point in job.points):
        members = [(point, folder) for point, folder in job.todo if (point.seed, point.cost) == (seed, cost)]
        points, folders = [point for point, _ in members], [folder for _, folder in members]
        begun = time.perf_counter()
        seen = points[0].raw_costs(torch.from_numpy(raw), tasks).numpy()
        means = mean_prices(seen[:, :, -1]) if cache.priced else None
        if means is not None:
            seen = np.concatenate([seen[:, :, :-1], (seen[:, :, -1] / means)[:, :, None]], axis=2)
        model = fit_costs(x, seen, ids, held=held, seed=seed, threads=torch.get_num_threads())
        found = rejectors_of(model, points, ids, x, seen, names, config, held=held, paid_mean=means)
        seconds = time.perf_counter() - begun
        if job.narrate is not None:
            for line in answering_in_words(found[0].about.get("answering")):
                job.narrate(line)
            narrate_guard([rejector for rejector in found if rejector.guard["holds"]], names, job.narrate)
        yield Trained(rejectors=found, folders=folders, rows=streams, seconds=seconds, left_out=left_out)


def mean_prices(paid: np.ndarray) -> np.ndarray:
    """Mean price of each agent's answers, (agents,), 1 where that is 0 or not known.

    Prices of agents differ by orders of magnitude. Models share what they learn between agents, so each price is put to
    them as a share of its agent's mean: an error is then small beside that agent's own price.

    Args:
        paid: (n, agents), NaN where an answer is missing.
    """
    known = ~np.isnan(paid)
    means = np.where(known, paid, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(means > 0, means, 1.0)


def narrate_guard(held: list[TrainedBest], names: list[str], narrate: Callable[[str], None]) -> None:
    """Say of each run that it is the constant."""
    for rejector in held:
        guard = rejector.guard
        if not guard["compared"]:
            narrate(f"{rejector.point.run_id}: {ALONE}, and this run always asks {names[guard['fallback']]}")
            continue
        narrate(
            f"{rejector.point.run_id}: choosing agents does not pay here (gain {guard['gain']:+.4f} ± "
            f"{guard['standard_error']:.4f} over always {names[guard['fallback']]}), so this run always asks "
            f"{names[guard['fallback']]}"
        )


def fitted_rows(
    streams: dict[str, Stream], config: TrainConfig, seed: int, narrate: Callable[[str], None] | None
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Ids, features, raw costs, and which are of validation, of the samples that are fitted."""
    total = sum(len(streams[split]) for split in FITTED_ON)
    most = MOST
    if config.memory is not None:
        most = max(100, config.memory // (16 * max(1, streams["train"].width)))
    share = min(1.0, most / max(1, total))
    if share < 1 and narrate is not None:
        narrate(f"best: fitted on about {most:,} of {total:,} training and validation samples; all are scored")
    ids, parts = [], []
    for split in FITTED_ON:
        stream, position = streams[split], 0
        chosen = None
        if split == "train" and config.train_rows is not None:
            chosen = np.zeros(len(stream), bool)
            chosen[np.asarray(training_rows(len(stream), config.train_rows, seed))] = True
        for names, (features, raw) in zip(stream.ids_in_order(4096), stream.in_order(4096), strict=True):
            kept = np.ones(len(names), bool) if share == 1 else fold_of(names, 10_000) < share * 10_000
            if chosen is not None:
                kept &= chosen[position : position + len(names)]
            position += len(names)
            ids += [name for name, keep in zip(names, kept, strict=True) if keep]
            parts.append((features.numpy()[kept], raw.numpy()[kept], np.full(int(kept.sum()), split == "validation")))
    x, costs, held = (np.concatenate(values) for values in zip(*parts, strict=True))
    return ids, x, costs, held


def rejectors_of(
    model: CostModel,
    points: list[GridPoint],
    ids: list[str],
    x: np.ndarray,
    raw: np.ndarray,
    names: list[str],
    config: TrainConfig,
    *,
    held: np.ndarray | None = None,
    paid_mean: np.ndarray | None = None,
) -> list[TrainedBest]:
    """The rejector of each point, with its guard, from a fitted model and the samples it was fitted on.

    Args:
        raw: what was fitted, (n, agents, tasks).
        held: which samples are new to every agent; the others' costs are what they would be on new ones, as far as
            the model can tell.
        paid_mean: of each agent's prices, (agents,), where the last of these costs is a price in units of it.
    """
    state = state_of(model, *standardisation(x))
    if paid_mean is not None:
        state[PAID_MEAN] = paid_mean
    unseen = model.predict_unseen(x, ids).astype(np.float32)
    if held is not None:
        raw = np.where(held[:, None, None], raw, raw * model.factor)
    state |= {"held_out.predicted": unseen, "held_out.costs": raw.astype(np.float32)}
    fallback = None if config.fallback is None else names.index(config.fallback)
    about: dict[str, object] = {"samples": len(x)}
    if model.stacking is not None:
        about["weights"] = {
            member: model.stacking.difference[position].round(4).tolist()
            for position, member in enumerate(("trees", "ridge", "means"))
        }
    if model.answering is not None:
        about["answering"] = model.answering.facts(names)
    found = []
    for point in points:
        free = TrainedBest(
            point=point,
            config=config,
            state=state,
            best_epoch=0,
            validation_risk=0.0,
            history=[],
            guard={"holds": False},
        )
        guard, (predicted, costs) = free.guard_of(z=config.guard, fallback=fallback), free.held_out()
        chosen = np.where(np.isfinite(costs), predicted, np.inf).argmin(axis=1)
        loss = float(costs[np.arange(len(costs)), chosen].mean()) + free.decided
        risk = loss + guard.gain if guard.holds else loss
        found.append(replace(free, validation_risk=risk, history=[(risk, risk)], guard=guard.facts(), about=about))
    return found
