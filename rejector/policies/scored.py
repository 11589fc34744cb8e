"""A split as a run scored it, and what the scores say of costs: what a policy starts from.

The run's files are read without torch, which takes over a second to import; the cache's rows are its tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from l2d.data.cache import store
from l2d.data.cache.columns import numbers, split_positions, truth_column
from l2d.data.cache.schema import SPLITS
from l2d.data.errors import DataError, UsageError
from l2d.rejector.methods import METHODS
from l2d.rejector.runs.files import ALLOCATIONS_FILE, BATCH_ROWS
from l2d.rejector.runs.run import Run, open_cache
from l2d.rejector.trained import Rejector


@dataclass(frozen=True)
class ScoredSplit:
    """A split as a run scored it.

    Attributes:
        scores: (n, agents).
        costs: total costs (``lambda`` and ``beta`` applied), (n, agents), infinite where an agent is unavailable.
        chosen: the agents that the rejector alone allocates to, (n,).
    """

    name: str
    ids: list[str]
    scores: np.ndarray
    costs: np.ndarray
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def available(self) -> np.ndarray:
        return np.isfinite(self.costs)

    def loss(self, allocation: np.ndarray) -> float:
        """Deferral loss of an allocation: its mean cost."""
        return float(self.costs[np.arange(len(self)), allocation].mean())


def read_scored(run: Run, split: str) -> ScoredSplit:
    """A split out of a run's ``allocations.parquet``, checksums verified.

    Where a guard holds the fallback, the file has the scores of that constant: then samples are scored again without
    it. So are those of a run at another setting than its files. Both take the run's cache.

    Raises:
        CorruptPart: the file is damaged.
        DataError: the run has no such split.
        UsageError: the cache is needed and not there.
    """
    free = run.rejector.unguarded()
    if run.moved or free is not run.rejector:
        return _scored_again(run, free, split)
    agents = range(len(run.agents))
    names = ["sample_id", "split", "agent_index", *(f"score_{j}" for j in agents), *(f"cost_{j}" for j in agents)]
    table = store.read_table(run.path / ALLOCATIONS_FILE, names)
    is_here = [name == split for name in SPLITS]
    table = table.filter(truth_column(np.take(is_here, split_positions(table["split"]))))
    if not len(table):
        raise DataError(f"the run has no {split} samples", where=run.path, hint="train it again")

    def matrix(name: str, missing: float) -> np.ndarray:
        return np.stack([numbers(table[f"{name}_{j}"], missing).astype(np.float64) for j in agents], axis=1)

    ids, chosen = table["sample_id"].to_pylist(), numbers(table["agent_index"]).astype(np.int64)
    return ScoredSplit(split, ids, matrix("score", -np.inf), matrix("cost", np.inf), chosen)


def _scored_again(run: Run, free: Rejector, split: str) -> ScoredSplit:
    """A split from the run's cache: scores without a guard, costs at the run's setting, and the run's own choices."""
    import torch

    from l2d.rejector.losses import allocate
    from l2d.rejector.rows.stream import open_streams

    cache = open_cache(run)
    if split not in SPLITS:
        raise DataError(f"the run has no {split} samples", where=run.path, hint=f"the splits are {', '.join(SPLITS)}")
    stream = open_streams(cache, (split,), column="features", failures=run.rejector.config.failures)[split]
    ids, scores, costs, chosen = [], [], [], []
    for names, (features, raw) in zip(stream.ids_in_order(BATCH_ROWS), stream.in_order(BATCH_ROWS), strict=True):
        here = run.point.total_costs(raw, cache.record.tasks)
        ids += list(names)
        scores.append(free.scores_of(split, names, features.numpy()))
        costs.append(here.numpy())
        own = torch.from_numpy(run.rejector.scores_of(split, names, features.numpy()))
        chosen.append(allocate(own, here.isfinite()).numpy())
    parts = (np.concatenate(values).astype(np.float64) for values in (scores, costs))
    return ScoredSplit(split, ids, *parts, np.concatenate(chosen).astype(np.int64))


def score_meaning(run: Run) -> tuple[str, float]:
    """What a run's scores say of costs, as :func:`l2d.rejector.policies.cost_prediction.implied_costs` takes it.

    Returns:
        Loss and ``nu``.

    Raises:
        UsageError: the scores order the agents and say nothing of costs.
    """
    method = METHODS[run.point.method]
    if method.scores == "loss":
        return run.rejector.config.loss, run.point.nu
    if method.scores == "order":
        raise UsageError(
            f"the scores of {run.point.method} say which agent is best, not what each would cost",
            where=run.path,
            hint="a policy weighs costs: take a run of another method, such as multi-task or cost_regression",
        )
    return {"costs": "regression", "chances": "chances", "surrogate": "surrogate"}[method.scores], 1.0
