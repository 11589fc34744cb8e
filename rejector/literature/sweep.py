"""Points of a sweep whose method is one of the literature's: trained one after another, on tables that are held."""

from __future__ import annotations

import time
from collections.abc import Generator

from l2d.data.cache.reader import CostCache
from l2d.data.cache.schema import SPLITS
from l2d.data.errors import UsageError
from l2d.rejector.grid import GridPoint
from l2d.rejector.literature.training import train_method
from l2d.rejector.methods import METHODS, check_method
from l2d.rejector.rows.table import load_tables
from l2d.rejector.settings import TrainConfig
from l2d.rejector.trained import Job, Trained
from l2d.rejector.training.distributed import is_first


def check(points: list[GridPoint], cache: CostCache, config: TrainConfig) -> None:
    """Refuse methods that the cache does not fit.

    Raises:
        UsageError: see :func:`l2d.rejector.methods.check_method`; or ``config.memory`` is given.
    """
    for point in points:
        check_method(point.method, cache, dict(point.weights.by_task), point.cost, config.classifier)
    if config.memory is not None:
        names = ", ".join(dict.fromkeys(point.method for point in points))
        raise UsageError(f"--memory: {names} train on tables that are held", hint="leave it out")


def train(job: Job) -> Generator[Trained]:
    """Train each point by itself, on the CPU.

    Raises:
        UsageError: what :func:`l2d.rejector.literature.training.train_method` refuses.
    """
    if not is_first():  # of the processes of torchrun, which train grids together
        return
    cache, said = job.cache, set[str]()
    tables = load_tables(cache, SPLITS, predictions=True, failures=job.config.failures)
    left_out = cache.record.num_samples - sum(len(table) for table in tables.values())
    for point, folder in job.todo:
        begun, method = time.perf_counter(), METHODS[point.method]
        if job.narrate is not None and point.method not in said and point.charges:
            said.add(point.method)
            charged = "and is charged for them when evaluated"
            if not method.pays_queries:
                job.narrate(f"{point.method} knows no query costs: it trains without, {charged}")
            elif point.paid and (method.classes_only or method.trains_classifier(job.config.classifier)):
                job.narrate(f"{point.method} knows no prices that differ by sample: it trains without, {charged}")
        trained = train_method(
            point,
            tables["train"],
            tables["validation"],
            job.config,
            tasks=cache.record.tasks,
            num_classes=len(cache.record.classes),
        )
        seconds = time.perf_counter() - begun
        yield Trained(rejectors=[trained], folders=[folder], rows=tables, seconds=seconds, left_out=left_out)
