"""What a run's agents are worth, and a new one: read, told, saved, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from l2d.data.cache import store
from l2d.data.errors import DataError, UsageError
from l2d.rejector.decisions.new_agent import NewAgent, judge_new_agent
from l2d.rejector.decisions.reading import Read, read_worlds
from l2d.rejector.decisions.worth import Worth, worth_of
from l2d.rejector.runs.files import WORTH_FILE
from l2d.rejector.runs.run import Run


def worth_of_run(
    run: Run,
    *,
    split: str = "test",
    group: str | None = None,
    new: Any = None,
    charge: float = 0.0,
    buy: int = 0,
    save: Path | None = None,
    overwrite: bool = False,
) -> Worth | NewAgent:
    """See :func:`l2d.rejector.at_work.worth`."""
    if save is not None and save.exists() and not overwrite:
        raise UsageError("this is there already", where=save, hint="give another name, or type --overwrite")
    read = read_worlds(run, (split,), group=group)
    world = read.worlds[split]
    if new is not None:
        return judge_new_agent(world, costs_of(new, read), charge=charge, buy=buy)
    if buy or charge:
        raise UsageError("--buy and --charge are about a new agent", hint="give its answers: --new FILE")
    facts = {
        "run_id": run.point.run_id, "cache": read.cache.record.name, "split": split,
        "unit": read.unit, "worth_of_money": run.point.paid or 0.0,
    }  # fmt: skip
    found = worth_of(world, facts)
    if save is not None:
        save_worth(found, save, overwrite=overwrite)
    return found


def save_worth(found: Worth, path: Path, *, overwrite: bool = False) -> None:
    """Keep it for SQL, as a folder."""

    def fill(folder: Path) -> None:
        store.commit_json(folder / WORTH_FILE, store.plain(found.result))

    store.commit_folder(path, fill, replace=overwrite)


def costs_of(new: Any, read: Read) -> dict[str, float]:
    """Sample id -> task cost of a new agent's answer, from ``sample_id`` and ``cost``, ``correct`` or ``answer``.

    Raises:
        DataError: it cannot be read, or its answers cannot be judged.
    """
    where = new if isinstance(new, str | Path) else None
    try:
        if where is not None:
            path = Path(where)
            frame = pl.read_parquet(path) if path.suffix.lower() == ".parquet" else pl.read_csv(path)
        else:
            frame = pl.DataFrame(new) if not isinstance(new, pl.DataFrame) else new
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=where, hint="give a .parquet or .csv file") from error
    kinds = [name for name in ("cost", "correct", "answer") if name in frame.columns]
    if "sample_id" not in frame.columns or not kinds:
        raise DataError(
            f"its columns are {', '.join(frame.columns)}",
            where=where,
            hint="it needs sample_id, and cost, correct or answer",
        )
    ids = frame["sample_id"].cast(pl.String).to_list()
    if kinds[0] != "answer":
        try:
            values = frame[kinds[0]].cast(pl.Float64).to_numpy()
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{kinds[0]} is not a number: {error}", where=where, hint="mend the table") from error
        scale = dict(read.run.point.weights.by_task).get("cla", 1.0) if kinds[0] == "correct" else 1.0
        costs = scale * (1 - values) if kinds[0] == "correct" else values
    else:
        costs = _judged(frame["answer"].to_list(), ids, read, where)
    if not np.isfinite(costs).all() or (costs < 0).any():
        raise DataError("a cost is missing or negative", where=where, hint="leave out samples without an answer")
    return dict(zip(ids, costs.tolist(), strict=True))


def _judged(answers: list[Any], ids: list[str], read: Read, where: Any) -> np.ndarray:
    """0-1 costs of classes, at the run's weight."""
    from l2d.rejector.decisions.online import class_index

    if not set(read.cache.record.tasks) == {"cla"} or read.cache.record.costs["cla"]["kind"] != "zero_one":
        raise DataError("answers can be judged where the cost is 0-1 alone", where=where, hint="give `cost`")
    truth: dict[str, int] = {}
    for world in read.worlds.values():
        if world.truth is not None:
            truth |= dict(zip(world.ids, world.truth.tolist(), strict=True))
    weight = dict(read.run.point.weights.by_task)["cla"]
    classes = read.cache.record.classes
    return np.array(
        [
            weight * (class_index(answer, classes) != truth.get(name, -1))
            for name, answer in zip(ids, answers, strict=True)
        ],
        float,
    )
