"""Points of a sweep whose method is one of these: trained one after another, on tables that are held, and saved."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from l2d.data.cache.reader import CostCache
from l2d.data.cache.schema import SPLITS
from l2d.data.errors import UsageError
from l2d.rejector.grid import GridPoint
from l2d.rejector.literature.training import train_method
from l2d.rejector.methods import METHODS
from l2d.rejector.rows.table import load_tables
from l2d.rejector.runs.run import save_runs
from l2d.rejector.settings import TrainConfig
from l2d.rejector.training.distributed import is_first


def train_methods(
    todo: list[tuple[GridPoint, Path]],
    cache: CostCache,
    config: TrainConfig,
    *,
    overwrite: bool = False,
    narrate: Callable[[str], None] | None = None,
) -> tuple[float, int]:
    """Train points and write a folder for each as it is done, on the CPU.

    Returns:
        Seconds of training, and how many samples were left out for want of answers.

    Raises:
        UsageError: ``config.memory`` is given, or what :func:`l2d.rejector.literature.training.train_method` refuses.
    """
    if config.memory is not None:
        names = ", ".join(dict.fromkeys(point.method for point, _ in todo))
        raise UsageError(f"--memory: {names} train on tables that are held", hint="leave it out")
    if not is_first():  # of the processes of torchrun, which train grids together
        return 0.0, 0
    tables = load_tables(cache, SPLITS, predictions=True, failures=config.failures)
    seconds, said = 0.0, set()
    for point, folder in todo:
        begun, method = time.perf_counter(), METHODS[point.method]
        if narrate is not None and point.method not in said and point.charges:
            said.add(point.method)
            charged = "and is charged for them when evaluated"
            if not method.pays_queries:
                narrate(f"{point.method} knows no query costs: it trains without, {charged}")
            elif point.paid and (method.classes_only or method.trains_classifier(config.classifier)):
                narrate(f"{point.method} knows no prices that differ by sample: it trains without, {charged}")
        trained = train_method(
            point,
            tables["train"],
            tables["validation"],
            config,
            tasks=cache.record.tasks,
            num_classes=len(cache.record.classes),
        )
        took = time.perf_counter() - begun
        save_runs([trained], [folder], cache, tables, seconds=took, overwrite=overwrite)
        seconds += took
    return seconds, cache.record.num_samples - sum(len(table) for table in tables.values())
