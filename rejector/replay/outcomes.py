"""What every agent cost on samples of a cache, under a logged run's query costs and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from l2d.data.cache.schema import COST_COLUMNS
from l2d.data.errors import UsageError
from l2d.data.library import opened
from l2d.rejector.rows.input import read_costs


def true_costs(cache: Any, facts: dict[str, Any], ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Total costs of each agent, (agents,), NaN where there is no answer, of the samples that a cache has.

    Args:
        cache: a cache, or its folder.
        facts: of the run, see :meth:`l2d.rejector.serving.router.Router`.
        ids: of samples.

    Raises:
        UsageError: the cache has not the run's agents; or the run pays prices per sample, or another cost than the
            weighted sum, which a log does not keep.
    """
    found = opened(cache)
    names = [agent.name for agent in found.agents]
    missing = [name for name in facts["agents"] if name not in names]
    if missing:
        raise UsageError(f"the cache has no agent {missing[0]!r}", where=found.path, hint=f"it has {', '.join(names)}")
    if facts.get("paid") is not None or facts.get("cost") is not None:
        what = "pays prices per sample" if facts.get("paid") is not None else f"has the cost {facts['cost']!r}"
        raise UsageError(f"this run {what}", where=found.path, hint="replay its log without a cache")
    tasks = found.record.tasks
    weights = np.array([facts["weights"].get(task, 0.0) for task in tasks])
    columns = [COST_COLUMNS[task] for task in tasks]
    wanted = set(ids)
    totals: dict[str, np.ndarray] = {}
    for chunk in range(found.record.num_chunks):
        samples = found.samples(chunk, ["sample_id"])["sample_id"].to_pylist()
        rows = [row for row, name in enumerate(samples) if name in wanted]
        if not rows:
            continue
        raw, failed = read_costs([found.costs(name, chunk) for name in facts["agents"]], columns)
        total = (raw[rows] * weights).sum(axis=2) + np.array(facts["query_costs"])
        total = np.where(failed[rows], np.nan, total)
        totals |= {samples[row]: total[position] for position, row in enumerate(rows)}
    return totals
