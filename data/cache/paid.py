"""What answers were paid, sample by sample: for every agent, the model included, in the one unit of the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from l2d.data.cache.columns import gaps, numbers

if TYPE_CHECKING:
    from l2d.data.cache.reader import AgentRecord, CostCache

PAID = "paid"


def paid_by(agent: AgentRecord, part: Mapping[str, np.ndarray | pa.ChunkedArray] | pa.Table, rows: int) -> np.ndarray:
    """What each answer of an agent in one chunk was paid, float64 (rows,); NaN where that is not known, which is not 0.

    An agent that the recipe calls free (price 0) is paid nothing. A reference is paid nothing itself: it is the agents
    that it asks who are.

    Args:
        part: its predictions; they have a column ``paid`` where its answers say it.
    """
    if agent.price == 0 or agent.role == "reference":
        return np.zeros(rows)
    names = part.column_names if isinstance(part, pa.Table) else part
    if PAID in names:
        values = part[PAID]
        return values if isinstance(values, np.ndarray) else numbers(values, float("nan"))
    return np.full(rows, np.nan if agent.paid_each is None else agent.paid_each)


def prices_of(agents: Sequence[AgentRecord], parts: Sequence[Mapping | pa.Table], failed: np.ndarray) -> np.ndarray:
    """Prices of one chunk as a column of raw costs, float64 (n, agents, 1); 0 where there is no answer to be paid.

    Args:
        parts: predictions of each agent.
        failed: where an agent has no answer, bool (n, agents).
    """
    paid = np.stack([paid_by(agent, part, len(failed)) for agent, part in zip(agents, parts, strict=True)], axis=1)
    return np.where(failed, 0.0, paid)[:, :, None]


def unpriced(cache: CostCache) -> list[str]:
    """Agents of whose answers nothing says what one was paid."""
    return [a.name for a in cache.agents if a.price != 0 and a.paid is None and a.paid_each is None]


def missing_prices(cache: CostCache) -> dict[str, int]:
    """Agent -> on how many of its answers it is not known what was paid; agents of which all are known are left out."""
    found = {}
    for agent in cache.agents:
        count = 0
        for chunk in range(cache.record.num_chunks):
            part = cache.predictions(agent.name, chunk, ["failure", PAID])
            answered = gaps(part["failure"])
            count += int(np.isnan(paid_by(agent, part, len(part))[answered]).sum())
        if count:
            found[agent.name] = count
    return found
