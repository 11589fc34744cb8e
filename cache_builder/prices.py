"""What an answer costs, where the recipe leaves it to what is measured: it has to be known, and is never taken as 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from l2d.cache_builder.agents import Agent
from l2d.cache_builder.answers import NOTES
from l2d.cache_builder.plan import agent_record, measured_in, write_record
from l2d.data.cache import schema, store
from l2d.data.errors import UsageError
from l2d.data.samples.dataset import Dataset

HINTS = {
    "gflops": "give a number",
    "seconds": "give a number; a `table` may name the column, seconds = …, a `python` agent return 'seconds'",
    "paid": "give a number; a `table` may name the column, paid = …, a `python` agent return 'paid'",
}


def require_price(agent: Agent, out: Path, num_chunks: int) -> None:
    """See that a price that is to be measured can be known, before any agent is asked.

    Args:
        out: the cache, whose answers may say it already.
        num_chunks: of which its answers are looked at.

    Raises:
        UsageError: it never can, or every answer is there and none says it.
    """
    price, name = agent.config.price, agent.config.name
    if price not in HINTS:  # a number, or said to be unknown
        return
    can = {
        "gflops": type(agent).gflops is not Agent.gflops,
        "seconds": agent.timed or getattr(agent.config, "seconds", None) is not None,
        "paid": agent.config.kind == "python" or agent.config.paid is not None,
    }
    file = schema.agent_file(out, name)
    if file.is_file() and price in measured_in(store.read_json(file)):
        return
    if price == "paid" and isinstance(agent.config.paid, int | float):
        return
    if not can[price]:
        raise _unknown(agent, f"price = {price!r}, which agents of kind {agent.config.kind!r} do not know")
    parts = [schema.predictions_part(out, name, chunk) for chunk in range(num_chunks)]
    if price in NOTES and parts and all(part.is_file() for part in parts) and mean_note(parts, price) is None:
        raise _unknown(agent, f"price = {price!r}, but the answers that are there do not say it")


def known_gflops(agent: Agent, dataset: Dataset) -> float | None:
    """10^9 multiply-adds of an answer of a loaded agent.

    Raises:
        UsageError: they are its price and cannot be told.
    """
    gflops = agent.gflops(dataset)
    if gflops is None and agent.config.price == "gflops":
        raise _unknown(agent, 'price = "gflops", which cannot be measured of it')
    return gflops


def record_gflops(agent: Agent, dataset: Dataset, out: Path) -> None:
    """Put what an answer of a loaded agent costs to compute into ``agent.json``, once."""
    file = schema.agent_file(out, agent.config.name)
    record = store.read_json(file)
    if record.get("gflops") is None:
        measured = {**measured_in(record), "gflops": known_gflops(agent, dataset)}
        write_record(file, agent_record(agent, record["index"], record["fingerprint"], measured))


def record_notes(agent: Agent, out: Path, predictions: list[Path], timed: dict[str, float]) -> None:
    """Put what answers cost in seconds and money into ``agent.json``: the mean of what they say, or as measured.

    Raises:
        UsageError: one of them is the price, every answer is there and none says it.
    """
    file = schema.agent_file(out, agent.config.name)
    written = store.read_json(file)
    measured: dict[str, float | None] = {**timed, **measured_in(written)}  # the first measurement stays
    there = [part for part in predictions if part.is_file()]  # other shards write the others
    for note in NOTES:
        said = mean_note(there, note)
        if said is not None:
            measured[note] = said
        stated = note == "paid" and isinstance(agent.config.paid, int | float)
        if agent.config.price == note and measured.get(note) is None and len(there) == len(predictions) and not stated:
            raise _unknown(agent, f"price = {note!r}, but its answers do not say it")
    write_record(file, agent_record(agent, written["index"], written["fingerprint"], measured))


def mean_note(parts: list[Path], note: str) -> float | None:
    """Mean of what the answers of some parts say of a note, None where they say nothing."""
    noted = [part for part in parts if note in store.column_names(part)]
    known = np.concatenate([np.empty(0), *(store.read_table(part, [note])[note].to_numpy() for part in noted)])
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else None


def _unknown(agent: Agent, what: str) -> UsageError:
    return UsageError(what, where=f"agent {agent.config.name!r}", hint=HINTS[str(agent.config.price)])
