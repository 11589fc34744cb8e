"""From a cache to a folder of runs: plan the grid, leave what is trained already, train the rest together, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from l2d.data.cache import store
from l2d.data.cache.reader import CostCache
from l2d.data.errors import DataError, UsageError
from l2d.rejector.best.training import foreign_settings
from l2d.rejector.grid import GridPoint
from l2d.rejector.methods import METHODS
from l2d.rejector.rows.pictures import checked, seen, settings_by_content
from l2d.rejector.runs.files import RUN_FILE, cache_fingerprint
from l2d.rejector.runs.saving import save_runs
from l2d.rejector.settings import TrainConfig
from l2d.rejector.trained import Job, Rejector, TrainerModule, load_trainer
from l2d.rejector.training.checkpoint import EVERY
from l2d.rejector.training.distributed import is_first


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
        progress: see :func:`l2d.rejector.training.loop.train_grid`; a second wave counts epochs from 0 again.
        narrate: told in a sentence that there are waves.

    Raises:
        DataError: a folder holds a run of other settings or of another cache, and ``overwrite`` is False.
        UsageError: a folder holds something else; or memory does not hold the rows, or not even one point.
    """
    config = config.on(cache.record.inputs)
    cache = seen(cache, config)
    checked(cache, narrate)  # before anything is trained
    if config.router_cost and any(point.paid is None for point in points):
        raise UsageError(
            f"--router-cost {config.router_cost:g} is in money, and these runs charge none",
            hint="say what money is worth: --beta paid=…",
        )
    if is_first() and cache.mirror is None:  # of a cache in a store each part is verified when it is first read
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
    job = Job(
        todo=todo,
        cache=cache,
        config=config,
        device=device,
        checkpoint_every=checkpoint_every,
        available=available,
        progress=progress,
        narrate=narrate,
    )
    jobs = _jobs(job)
    for trainer, part in jobs:
        trainer.check(part.points, part.cache, config)

    def take(rejector: Rejector, folder: Path) -> None:
        """Another sweep has trained the same point meanwhile: its run stays."""
        _require_same(folder, rejector.point, config, cache)
        if narrate is not None:
            narrate(f"{folder.name} has been trained by another sweep meanwhile: taken as it is")

    seconds, left_out = 0.0, 0
    for trainer, part in jobs:
        with closing(trainer.train(part)) as batches:
            begun = time.perf_counter()
            for done in batches:
                seconds, left_out = seconds + time.perf_counter() - begun, max(left_out, done.left_out)
                save_runs(
                    done.rejectors,
                    done.folders,
                    part.cache,
                    done.rows,
                    seconds=done.seconds,
                    overwrite=overwrite,
                    already=take,
                )
                begun = time.perf_counter()
            seconds += time.perf_counter() - begun
    return SweepReport(folders, len(todo), seconds, left_out)


def _jobs(job: Job) -> list[tuple[TrainerModule, Job]]:
    """The job in parts by what trains them. Prices are a further cost that is learnt: those points train apart."""
    jobs = []
    for priced in (False, True):
        members = [(point, folder) for point, folder in job.todo if (point.paid is not None) == priced]
        for trainer in dict.fromkeys(METHODS[point.method].trainer for point, _ in members):
            todo = [(point, folder) for point, folder in members if METHODS[point.method].trainer == trainer]
            jobs.append((load_trainer(trainer), replace(job, todo=todo, cache=job.cache.with_prices(priced))))
    return jobs


def default_method(cache: CostCache, config: TrainConfig, *, nus: Sequence[float] = (1.0,)) -> str:
    """What is trained where no method is named: ``best``, or the paper's ``multi-task`` where settings ask for it.

    A cache without features, a setting of a network (``--rejector``, ``--epochs`` …) or a ``nu`` mean ``multi-task``.
    """
    asks = set(nus) != {1.0} or bool(foreign_settings(config))
    return "multi-task" if asks or "features" not in cache.record.inputs else "best"


def _require_same(folder: Path, point: GridPoint, config: TrainConfig, cache: CostCache) -> None:
    facts = store.read_json(folder / RUN_FILE)
    # settings that are younger than the run had their defaults
    training, settings = {**asdict(TrainConfig()), **facts.get("training", {})}, settings_by_content(config, cache)
    if training["images"] is not None and facts.get("images", {}).get("digest") is not None:
        training["images"] = facts["images"]["digest"]
    same = (
        training == settings
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
