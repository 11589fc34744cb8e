"""Adding an agent step by step: which samples to ask it about, what it is worth from its answers, which are left."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from l2d.data.cache import store
from l2d.data.cache.reader import CostCache
from l2d.data.errors import UsageError
from l2d.data.results import Shown
from l2d.rejector.decisions.first_questions import spread_out
from l2d.rejector.decisions.new_agent import FEWEST, NewAgent, judge_new_agent
from l2d.rejector.decisions.reading import read_worlds
from l2d.rejector.decisions.worth_of_run import costs_of
from l2d.rejector.runs.run import Run


@dataclass(frozen=True)
class AddedAgent(Shown):
    """A step of adding an agent.

    Attributes:
        asked: ids of the samples to ask it about now, the first ones first.
        of: how many samples they were chosen from.
        split: of those samples.
        judged: what it is worth by its answers so far; None without any.
        rest: how many samples of the cache it has not answered; None where they were not asked for.
    """

    asked: list[str]
    of: int
    split: str
    judged: NewAgent | None
    rest: int | None

    def rows(self) -> list[dict[str, Any]]:
        if self.judged is not None:
            return self.judged.rows()
        return [{"to ask": len(self.asked), "of": f"{self.of:,} {self.split} samples", "the first": self.asked[0]}]

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"asked": self.asked, "split": self.split, "rest": self.rest}
        return found if self.judged is None else {**self.judged.result, **found}


def add_to_run(
    run: Run,
    *,
    ask: int = 0,
    out: Path | None = None,
    answers: Any = None,
    charge: float = 0.0,
    rest: Path | None = None,
    split: str = "test",
    seed: int = 0,
    overwrite: bool = False,
) -> AddedAgent:
    """See :func:`l2d.rejector.at_work.add_agent`."""
    if answers is None and not ask:
        raise UsageError("neither samples to ask about nor answers", hint="--ask 100 --out FILE; then --answers FILE")
    if (out is None) != (not ask):
        raise UsageError("--ask and --out go together", hint="--ask 100 --out ask.csv")
    if answers is None and ask < FEWEST:
        raise UsageError(f"--ask {ask}", hint=f"{FEWEST} answers are the least that say something, 50 to 200 tell much")
    if answers is None and (charge or rest is not None):
        raise UsageError("--charge and --rest go with --answers", hint="first ask: --ask 100 --out FILE")
    for file in (out, rest):
        if file is not None and file.exists() and not overwrite:
            raise UsageError("this is there already", where=file, hint="give another name, or type --overwrite")
    read = read_worlds(run, (split,))
    world = read.worlds[split]
    judged, left = None, None
    if answers is None:
        asked = [world.ids[row] for row in spread_out(world, ask, seed)]
    else:
        costs = costs_of(answers, read)
        judged = judge_new_agent(world, costs, charge=charge, buy=ask, seed=seed)
        asked = judged.next
        if rest is not None:
            left = _write(rest, samples_of(read.cache, without=costs), overwrite)
    if out is not None:
        places = {one: place for place, one in enumerate(asked)}
        table = samples_of(read.cache, only=places)
        order = np.argsort([places[one] for one in table["sample_id"].to_list()])
        _write(out, table[order], overwrite)
    return AddedAgent(asked, len(world), split, judged, left)


def samples_of(cache: CostCache, *, only: Collection[str] = (), without: Collection[str] = ()) -> pl.DataFrame:
    """Some samples, as an agent is asked: ``sample_id`` and the kept columns; never the truth, nor what others said.

    Args:
        only: ids; all if there are none.
        without: ids that are left out.
    """
    parts = []
    for chunk in range(cache.record.num_chunks):
        frame = pl.DataFrame(pl.from_arrow(cache.samples(chunk)))
        shown = [
            column
            for column, kind in frame.schema.items()
            if column != "split" and not column.startswith("target_") and not kind.is_nested() and kind != pl.Binary
        ]
        is_in = [one not in without and (not only or one in only) for one in frame["sample_id"].to_list()]
        parts.append(frame.select(shown).filter(pl.Series(is_in, dtype=pl.Boolean)))
    return pl.concat(parts)


def _write(path: Path, table: pl.DataFrame, overwrite: bool) -> int:
    if not store.commit_bytes(path, table.write_csv().encode(), replace=overwrite):
        raise UsageError("this has appeared meanwhile", where=path, hint="give another name, or type --overwrite")
    return len(table)
