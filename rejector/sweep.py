"""From a cache to a folder of runs: plan the grid, leave what is trained already, train the rest together, save."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from data import store
from data.cache import CostCache
from data.errors import DataError, UsageError
from data.schema import SPLITS, digest

from .checkpoint import EVERY, Checkpoint
from .distributed import joined
from .grid import GridPoint
from .networks import INPUT_OF
from .runs import RUN_FILE, cache_fingerprint, save_runs
from .streaming import open_streams
from .training import TrainConfig, train_grid


@dataclass(frozen=True)
class SweepReport:
    """Folders of all points in grid order, and how many of them this call trained, in how long."""

    folders: list[Path]
    trained: int
    seconds: float


def sweep(
    cache: CostCache,
    points: list[GridPoint],
    folders: list[Path],
    config: TrainConfig,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    checkpoint_every: float = EVERY,
    progress: Callable[[int, int, float], None] | None = None,
) -> SweepReport:
    """Train the points whose folder is not there yet, all together, and write a folder for each.

    What is trained is saved now and then, so that the same call goes on after a kill, to the same weights.

    Args:
        folders: where each point's run goes.
        overwrite: train again what is there, instead of leaving or refusing it.
        config: settings; what a ``transformer`` is depends on the cache, see :func:`rejector.networks.network_for`.
        checkpoint_every: seconds between two saves.

    Raises:
        DataError: a folder holds a run of other settings or of another cache, and ``overwrite`` is False.
        UsageError: a folder holds something else.
    """
    config = config.on(cache.record.inputs)
    todo = []
    for point, folder in zip(points, folders, strict=True):
        if not folder.exists():
            todo.append((point, folder))
        elif not (folder / RUN_FILE).is_file():
            raise UsageError("this folder is there already and holds no run", where=folder, hint="give another --out")
        elif overwrite:
            todo.append((point, folder))
        else:
            _require_same(folder, point, config, cache)
    if not todo:
        return SweepReport(folders, 0, 0.0)
    with joined(device) as (group, device):
        streams = open_streams(cache, SPLITS, column=INPUT_OF[config.network], failures=config.failures)
        started = time.perf_counter()
        checkpoint = Checkpoint(checkpoint_file(todo, config, cache), checkpoint_every, group)
        rejectors = train_grid(
            [point for point, _ in todo],
            streams["train"],
            streams["validation"],
            config,
            tasks=cache.record.tasks,
            device=device,
            group=group,
            checkpoint=checkpoint,
            progress=progress,
        )
        seconds = time.perf_counter() - started
        if group.rank == 0:
            targets = [folder for _, folder in todo]
            save_runs(rejectors, targets, cache, streams, seconds=seconds, overwrite=overwrite)
            checkpoint.remove()
    return SweepReport(folders, len(todo), seconds)


def checkpoint_file(todo: list[tuple[GridPoint, Path]], config: TrainConfig, cache: CostCache) -> Path:
    """Where the training of these points on this cache is saved while it lasts: beside the first one's folder."""
    what = [[asdict(point) for point, _ in todo], asdict(config), cache_fingerprint(cache), torch.__version__]
    return todo[0][1].parent / f".training-{digest(what)}.safetensors"


def _require_same(folder: Path, point: GridPoint, config: TrainConfig, cache: CostCache) -> None:
    facts = store.read_json(folder / RUN_FILE)
    same = (
        # settings that are younger than the run had their defaults
        {**asdict(TrainConfig()), **facts.get("training", {})} == asdict(config)
        and facts.get("point", {}).get("run_id") == point.run_id
        and facts["point"].get("weights") == dict(point.weights.by_task)
        and facts["point"].get("query_costs") == list(point.query_costs)
        and facts["point"].get("cost") == point.cost
        and facts.get("cache", {}).get("fingerprint") == cache_fingerprint(cache)
    )
    if not same:
        raise DataError(
            "this run was trained with other settings or on another cache",
            where=folder,
            hint="give another --out, or type --overwrite to train it again",
        )
