"""From a cache to a folder of runs: plan the grid, leave what is trained already, train the rest together, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from l2d.data.cache import store
from l2d.data.cache.reader import CostCache
from l2d.data.cache.schema import SPLITS, digest
from l2d.data.errors import DataError, UsageError
from l2d.rejector.best.training import check_config as check_best
from l2d.rejector.best.training import foreign_settings, train_best
from l2d.rejector.grid import GridPoint
from l2d.rejector.literature.sweep import train_methods
from l2d.rejector.methods import LITERATURE, METHODS, check_method
from l2d.rejector.networks import INPUT_OF
from l2d.rejector.rows.stream import Stream, open_streams
from l2d.rejector.rows.subset import training_rows
from l2d.rejector.rows.table import CostTable, load_tables
from l2d.rejector.runs.run import RUN_FILE, cache_fingerprint, save_runs
from l2d.rejector.training.checkpoint import EVERY, Checkpoint
from l2d.rejector.training.distributed import is_first, joined
from l2d.rejector.training.rejector import TrainConfig, train_grid
from l2d.rejector.training.waves import free_memory, waves


@dataclass(frozen=True)
class SweepReport:
    """Folders of all points in grid order, how many of them this call trained, in how long, and on how much.

    ``left_out`` counts samples of all splits that were not learnt from: no agent answers them or, if failures are
    dropped, an agent failed.
    """

    folders: list[Path]
    trained: int
    seconds: float
    left_out: int = 0


def sweep(
    cache: CostCache,
    points: list[GridPoint],
    folders: list[Path],
    config: TrainConfig,
    *,
    device: str = "cpu",
    overwrite: bool = False,
    checkpoint_every: float = EVERY,
    available: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    narrate: Callable[[str], None] | None = None,
) -> SweepReport:
    """Train the points whose folder is not there yet, all together, and write a folder for each.

    What is trained is saved now and then, so that the same call goes on after a kill, to the same weights. A grid that
    memory does not hold is trained in waves, the runs of each being written before the next begins.

    Args:
        folders: where each point's run goes.
        overwrite: train again what is there, instead of leaving or refusing it.
        config: settings; what a ``transformer`` is depends on the cache, see :func:`l2d.rejector.settings.network_for`.
        checkpoint_every: seconds between two saves.
        available: memory in bytes; what is free if None.
        progress: see :func:`l2d.rejector.training.rejector.train_grid`; a second wave counts epochs from 0 again.
        narrate: told in a sentence that there are waves.

    Raises:
        DataError: a folder holds a run of other settings or of another cache, and ``overwrite`` is False.
        UsageError: a folder holds something else; or memory does not hold the rows, or not even one point.
    """
    config = config.on(cache.record.inputs)
    if config.router_cost and any(point.paid is None for point in points):
        raise UsageError(
            f"--router-cost {config.router_cost:g} is in money, and these runs charge none",
            hint="say what money is worth: --beta paid=…",
        )
    if is_first():
        cache.verify_files()  # also what only evaluation reads: damage is found before anything is trained or written
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
    seconds, left_out = 0.0, 0
    for priced in (False, True):  # prices are a further cost that is learnt: those points have models of their own
        members = [(point, folder) for point, folder in todo if (point.paid is not None) == priced]
        if members:
            more, without = _train(
                members,
                cache.with_prices(priced),
                config,
                device=device,
                overwrite=overwrite,
                checkpoint_every=checkpoint_every,
                available=available,
                progress=progress,
                narrate=narrate,
            )
            seconds, left_out = seconds + more, max(left_out, without)
    return SweepReport(folders, len(todo), seconds, left_out)


def _train(
    todo: list[tuple[GridPoint, Path]],
    cache: CostCache,
    config: TrainConfig,
    *,
    device: str,
    overwrite: bool,
    checkpoint_every: float,
    available: int | None,
    progress: Callable[[int, int, float], None] | None,
    narrate: Callable[[str], None] | None,
) -> tuple[float, int]:
    """Train points by their methods' trainers.

    Returns:
        Seconds of training, and how many samples were left out.
    """
    best = [(point, folder) for point, folder in todo if METHODS[point.method].trainer == "best"]
    others = [(point, folder) for point, folder in todo if METHODS[point.method].trainer == "literature"]
    if best:
        check_best(config)
    for point, _ in others:
        check_method(point.method, cache, dict(point.weights.by_task), point.cost, config.classifier)
    ours = [(point, folder) for point, folder in todo if METHODS[point.method].trainer == "grid"]
    if ours and config.classifier != "cached":
        raise UsageError(
            f"--classifier {config.classifier}: method {ours[0][0].method!r} takes the agents as they are cached",
            hint=f"leave it out, or choose methods among {', '.join(LITERATURE)}",
        )
    seconds, left_out = 0.0, 0
    if ours:
        seconds, left_out = _train_grid(
            ours,
            cache,
            config,
            device=device,
            overwrite=overwrite,
            checkpoint_every=checkpoint_every,
            available=available,
            progress=progress,
            narrate=narrate,
        )
    if best:
        more, left_out = train_best(best, cache, config, overwrite=overwrite, narrate=narrate)
        seconds += more
    if others:
        more, left_out = train_methods(others, cache, config, overwrite=overwrite, narrate=narrate)
        seconds += more
    return seconds, left_out


def default_method(cache: CostCache, config: TrainConfig, *, nus: Sequence[float] = (1.0,)) -> str:
    """What is trained where no method is named: ``best``, or the paper's ``multi-task`` where settings ask for it.

    A cache without features, a setting of a network (``--rejector``, ``--epochs`` …) or a ``nu`` mean ``multi-task``.
    """
    asks = set(nus) != {1.0} or bool(foreign_settings(config))
    return "multi-task" if asks or "features" not in cache.record.inputs else "best"


def _train_grid(
    todo: list[tuple[GridPoint, Path]],
    cache: CostCache,
    config: TrainConfig,
    *,
    device: str,
    overwrite: bool,
    checkpoint_every: float,
    available: int | None,
    progress: Callable[[int, int, float], None] | None,
    narrate: Callable[[str], None] | None,
) -> tuple[float, int]:
    """Train points together, those of one seed where each seed has training rows of its own.

    Returns:
        Seconds of training, and how many samples were left out.
    """
    with joined(device) as (group, device):
        streams = open_streams(cache, SPLITS, column=INPUT_OF[config.network], failures=config.failures)
        started, written = time.perf_counter(), 0.0
        available = group.least(free_memory(device) if available is None else available)
        grid: list[tuple[list[tuple[GridPoint, Path]], Stream | CostTable]] = []
        for members, rows in _by_rows(todo, cache, config, streams["train"]):
            points = [point for point, _ in members]
            found = waves(points, config, streams["train"], len(cache.agents), available=available)
            if len(found) > 1 and narrate is not None and group.rank == 0:
                sizes = ", ".join(str(len(wave)) for wave in found)
                narrate(
                    f"memory holds {len(found[0])} of {len(members)} rejectors at once: "
                    f"training {sizes} one after another"
                )
            grid += [([members[position] for position in wave], rows) for wave in found]
        for members, rows in grid:
            begun = time.perf_counter()
            checkpoint = Checkpoint(checkpoint_file(members, config, cache), checkpoint_every, group)
            rejectors = train_grid(
                [point for point, _ in members],
                rows,
                streams["validation"],
                config,
                tasks=cache.record.tasks,
                device=device,
                group=group,
                checkpoint=checkpoint,
                progress=progress,
            )
            trained = time.perf_counter()
            if group.rank == 0:
                targets = [folder for _, folder in members]
                save_runs(rejectors, targets, cache, streams, seconds=trained - begun, overwrite=overwrite)
                checkpoint.remove()
            written += time.perf_counter() - trained
        seconds = time.perf_counter() - started - written
    return seconds, sum(stream.left_out for stream in streams.values())


def _by_rows(
    todo: list[tuple[GridPoint, Path]], cache: CostCache, config: TrainConfig, train: Stream
) -> list[tuple[list[tuple[GridPoint, Path]], Stream | CostTable]]:
    """Points that train on the same rows, and these rows."""
    if config.train_rows is None:
        return [(todo, train)]
    table = load_tables(cache, ("train",), column=INPUT_OF[config.network], failures=config.failures)["train"]
    found = []
    for seed in sorted({point.seed for point, _ in todo}):
        rows = training_rows(len(table), config.train_rows, seed)
        part = replace(table, ids=[], features=table.features[rows], raw=table.raw[rows], reference_raw=None)
        part = replace(part, failed=None)
        found.append(([member for member in todo if member[0].seed == seed], part))
    return found


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
        and facts["point"].get("paid") == point.paid
        and facts["point"].get("cost") == point.cost
        and facts.get("cache", {}).get("fingerprint") == cache_fingerprint(cache.with_prices(point.paid is not None))
    )
    if not same:
        raise DataError(
            "this run was trained with other settings or on another cache",
            where=folder,
            hint="give another --out, or type --overwrite to train it again",
        )
