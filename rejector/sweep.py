"""From a cache to a folder of runs: plan the grid, leave what is trained already, train the rest together, save."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from data import store
from data.cache import CostCache
from data.errors import DataError, UsageError
from data.schema import SPLITS

from .grid import GridPoint
from .networks import INPUT_OF
from .runs import RUN_FILE, cache_fingerprint, save_runs
from .table import load_tables
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
    progress: Callable[[int, int, float], None] | None = None,
) -> SweepReport:
    """Train the points whose folder is not there yet, all together, and write a folder for each.

    Args:
        folders: where each point's run goes.
        overwrite: train again what is there, instead of leaving or refusing it.

    Raises:
        DataError: a folder holds a run of other settings or of another cache, and ``overwrite`` is False.
        UsageError: a folder holds something else.
    """
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
    tables = load_tables(cache, SPLITS, column=INPUT_OF[config.network], failures=config.failures)
    started = time.perf_counter()
    rejectors = train_grid(
        [point for point, _ in todo],
        tables["train"],
        tables["validation"],
        config,
        tasks=cache.record.tasks,
        device=device,
        progress=progress,
    )
    seconds = time.perf_counter() - started
    targets = [folder for _, folder in todo]
    save_runs(rejectors, targets, cache, tables, seconds=seconds, overwrite=overwrite)
    return SweepReport(folders, len(todo), seconds)


def _require_same(folder: Path, point: GridPoint, config: TrainConfig, cache: CostCache) -> None:
    facts = store.read_json(folder / RUN_FILE)
    same = (
        facts.get("training") == asdict(config)
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
