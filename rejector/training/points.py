"""Points of a sweep that are trained together as grids: in one, or in waves where memory does not hold all."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import asdict, replace
from pathlib import Path

import torch

from l2d.data.cache.reader import CostCache
from l2d.data.cache.schema import SPLITS, digest
from l2d.data.errors import UsageError
from l2d.rejector.grid import GridPoint
from l2d.rejector.methods import LITERATURE
from l2d.rejector.rows.pictures import settings_by_content
from l2d.rejector.rows.stream import Stream, open_streams
from l2d.rejector.rows.subset import training_rows
from l2d.rejector.rows.table import CostTable, load_tables
from l2d.rejector.runs.files import cache_fingerprint
from l2d.rejector.settings import INPUT_OF, TrainConfig
from l2d.rejector.trained import Job, Trained
from l2d.rejector.training.checkpoint import Checkpoint
from l2d.rejector.training.distributed import joined
from l2d.rejector.training.loop import train_grid
from l2d.rejector.training.waves import free_memory, waves


def check(points: list[GridPoint], cache: CostCache, config: TrainConfig) -> None:
    """Refuse a classifier beside the rejector.

    Raises:
        UsageError: that.
    """
    if config.classifier != "cached":
        raise UsageError(
            f"--classifier {config.classifier}: method {points[0].method!r} takes the agents as they are cached",
            hint=f"leave it out, or choose methods among {', '.join(LITERATURE)}",
        )


def train(job: Job) -> Generator[Trained]:
    """Train points together, those of one seed where each seed has training rows of its own."""
    cache, config, available = job.cache, job.config, job.available
    with joined(job.device) as (group, device):
        streams = open_streams(cache, SPLITS, column=INPUT_OF[config.network], failures=config.failures)
        looked, make, learnt, train_rows = None, None, config, streams["train"]
        if config.network == "image":
            from l2d.rejector.training.images import look

            looked = look(streams, config, len(cache.agents), device)
            streams, train_rows, learnt, make = looked.streams, looked.train, looked.config, looked.make
        left_out = sum(stream.left_out for stream in streams.values())
        available = group.least(free_memory(device) if available is None else available)
        grid: list[tuple[list[tuple[GridPoint, Path]], Stream | CostTable]] = []
        for members, rows in _by_rows(job.todo, cache, config, train_rows):
            points = [point for point, _ in members]
            found = waves(points, learnt, streams["train"], len(cache.agents), available=available, make=make)
            if len(found) > 1 and job.narrate is not None and group.rank == 0:
                sizes = ", ".join(str(len(wave)) for wave in found)
                job.narrate(
                    f"memory holds {len(found[0])} of {len(members)} rejectors at once: "
                    f"training {sizes} one after another"
                )
            grid += [([members[position] for position in wave], rows) for wave in found]
        for members, rows in grid:
            begun = time.perf_counter()
            body = () if looked is None else (looked.digest,)
            checkpoint = Checkpoint(checkpoint_file(members, config, cache, *body), job.checkpoint_every, group)
            if looked is not None and isinstance(rows, CostTable):
                rows = looked.table(rows)
            rejectors = train_grid(
                [point for point, _ in members],
                rows,
                streams["validation"],
                learnt,
                tasks=cache.record.tasks,
                device=device,
                group=group,
                checkpoint=checkpoint,
                progress=job.progress,
                make=make,
            )
            if group.rank == 0:
                yield Trained(
                    rejectors=rejectors if looked is None else looked.finished(rejectors),
                    folders=[folder for _, folder in members],
                    rows=streams,
                    seconds=time.perf_counter() - begun,
                    left_out=left_out,
                )
                checkpoint.remove()


def _by_rows(
    todo: list[tuple[GridPoint, Path]], cache: CostCache, config: TrainConfig, train: Stream
) -> list[tuple[list[tuple[GridPoint, Path]], Stream | CostTable]]:
    """Points that train on the same rows, and these rows."""
    if config.train_rows is None:
        return [(todo, train)]
    table = load_tables(cache, ("train",), column=INPUT_OF[config.network], failures=config.failures)["train"]
    found: list[tuple[list[tuple[GridPoint, Path]], Stream | CostTable]] = []
    for seed in sorted({point.seed for point, _ in todo}):
        rows = training_rows(len(table), config.train_rows, seed)
        part = replace(table, ids=[], features=table.features[rows], raw=table.raw[rows], reference_raw=None)
        part = replace(part, failed=None)
        found.append(([member for member in todo if member[0].seed == seed], part))
    return found


def checkpoint_file(todo: list[tuple[GridPoint, Path]], config: TrainConfig, cache: CostCache, *also: str) -> Path:
    """Where the training of these points on this cache is saved while it lasts: beside the first one's folder."""
    settings, cached = settings_by_content(config, cache), cache_fingerprint(cache)
    what = [[asdict(point) for point, _ in todo], settings, cached, torch.__version__, *also]
    return todo[0][1].parent / f".training-{digest(what)}.safetensors"
