"""What a cache holds, a row for each agent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from l2d.data.cache import schema
from l2d.data.cache.columns import numbers, split_positions
from l2d.data.cache.reader import CostCache


def column_lines(cache: CostCache) -> list[str]:
    """What became of the source table's columns, and what was read in a special way."""
    sources = [cache.record.inputs.get("table", {}), cache.record.inputs.get("annotations", {})]
    return [line for facts in sources for line in (*facts.get("columns", []), *facts.get("notes", []))]


def status_rows(cache: CostCache) -> list[dict]:
    """For each agent: parts done, and mean raw cost of every task and split over the parts that are there."""
    chunks = range(cache.record.num_chunks)
    splits = {}
    for chunk in chunks:
        if cache.has(schema.samples_part(cache.path, chunk)):
            of_split = split_positions(cache.samples(chunk, ["split"])["split"])
            splits[chunk] = {split: of_split == place for place, split in enumerate(schema.SPLITS)}
    rows = []
    row: dict[str, Any]
    for agent in cache.all_agents:
        parts = [schema.costs_part(cache.path, agent.name, k, cache.record.cost_digest) for k in chunks]
        done = [k for k, part in zip(chunks, parts, strict=True) if cache.has(part) and k in splits]
        row = {
            "agent": agent.name,
            "role": "model" if agent.index == 0 and agent.price == 0 else agent.role,  # the model is free
            "price": agent.price,
            "samples": sum(len(cache.record.chunk_rows(k)) for k in done),
            "parts": f"{len(done)}/{cache.record.num_chunks}",
            "failed": 0,
            "unavailable": 0,
        }
        if any(other.lent or other.charged for other in cache.all_agents):
            row["not its own"] = ", ".join(
                [f"{task} of {name}" for task, name in agent.lent.items()]
                + [f"{task} costs {cost:g}" for task, cost in agent.charged.items()]
            )
        for name in ("gflops", "seconds", "paid"):
            if any(getattr(other, name) is not None for other in cache.all_agents):
                row[name] = getattr(agent, name)
        if "target_boxes" in cache.record.fingerprint:
            row |= _of_boxes([cache.predictions(agent.name, k, ["pred_boxes"])["pred_boxes"] for k in done])
        names = [schema.COST_COLUMNS[task] for task in cache.record.tasks]
        costs = {k: cache.costs(agent.name, k, names) for k in done}
        row["failed"] = sum(table[names[0]].null_count for table in costs.values())
        if agent.partial:
            reasons = (cache.predictions(agent.name, k, ["failure"])["failure"].to_pylist() for k in done)
            row["unavailable"] = sum(part.count(schema.NO_ANSWER) for part in reasons)
            row["failed"] -= row["unavailable"]
        for name in names:
            columns = {k: _with_gaps(costs[k][name]) for k in done}
            for split in schema.SPLITS:
                each = [columns[k][splits[k][split]] for k in done]
                values = np.concatenate(each) if each else np.empty(0)
                values = values[~np.isnan(values)]  # a recorded failure has no cost
                row[f"{name} {split}"] = float(values.mean(dtype=np.float64)) if len(values) else None
        rows.append(row)
    return rows


def _of_boxes(columns: list[pa.ChunkedArray]) -> dict[str, Any]:
    """Of a detector's answers: images on which it found nothing, and the lowest score that it gave."""
    import pyarrow.compute as pc  # here: a tenth of the time of a `status`

    counts = [pc.list_value_length(column) for column in columns]
    scores = [pc.min(pc.struct_field(pc.list_flatten(column), "score")).as_py() for column in columns]
    known = [score for score in scores if score is not None]
    return {
        "nothing found": sum(pc.sum(pc.equal(count, 0)).as_py() or 0 for count in counts),
        "lowest score": min(known) if known else None,
    }


def _with_gaps(column: pa.ChunkedArray) -> np.ndarray:
    """Costs, NaN where one is missing."""
    return numbers(column, missing=float("nan"))
