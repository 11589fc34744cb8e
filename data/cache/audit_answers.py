"""Audit of a cache's answers: whether agents can be compared at all, which takes samples that several have answered."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from l2d.data.cache import schema
from l2d.data.cache.reader import CostCache

#: What to say of a table in which every sample has the answer of one agent, or of none.
ALONE = "no sample has the answers of two agents, so nothing here shows which of them is better on an input"
FEW = 0.05  # share of the samples with two answers, below which that is worth knowing


def compared(cache: CostCache) -> int | None:
    """How many samples have the costs of two agents or more; None where agents lack no answers, or there is one agent.

    Raises:
        CorruptPart: a part is damaged.
    """
    if len(cache.agents) < 2 or not any(agent.partial for agent in cache.agents):
        return None
    columns = [schema.COST_COLUMNS[task] for task in cache.record.tasks]
    found = 0
    for chunk in range(cache.record.num_chunks):
        count = np.zeros(len(cache.record.chunk_rows(chunk)), np.int64)
        for agent in cache.agents:
            part = cache.costs(agent.name, chunk, columns)
            count += np.all([_known(part[column]) for column in columns], axis=0)
        found += int((count > 1).sum())
    return found


def _known(column: pa.ChunkedArray) -> np.ndarray:
    return column.is_valid().to_numpy() & np.isfinite(column.fill_null(0).to_numpy())
