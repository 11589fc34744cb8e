"""A split as a run scored it, and what the scores say of costs: what a policy starts from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from l2d.data.cache import store
from l2d.data.errors import DataError, UsageError
from l2d.rejector.methods import METHODS
from l2d.rejector.rows.stream import open_streams
from l2d.rejector.runs.files import ALLOCATIONS_FILE, BATCH_ROWS
from l2d.rejector.runs.run import Run, open_cache
from l2d.rejector.trained import Rejector


@dataclass(frozen=True)
class ScoredSplit:
    """A split as a run scored it.

    Attributes:
        scores: (n, agents).
        costs: total costs (``lambda`` and ``beta`` applied), (n, agents), infinite where an agent is unavailable.
        chosen: whom the rejector alone allocates to, (n,).
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
    it, which takes the run's cache.

    Raises:
        CorruptPart: the file is damaged.
        DataError: the run has no such split.
        UsageError: the cache is needed and not there.
    """
    agents = range(len(run.agents))
    names = ["sample_id", "split", "agent_index", *(f"score_{j}" for j in agents), *(f"cost_{j}" for j in agents)]
    table = store.read_table(run.path / ALLOCATIONS_FILE, names)
    table = table.filter(pc.equal(table["split"], split))
    if not len(table):
        raise DataError(f"the run has no {split} samples", where=run.path, hint="train it again")

    def matrix(name: str, missing: float) -> np.ndarray:
        return np.stack([table[f"{name}_{j}"].fill_null(missing).to_numpy().astype(np.float64) for j in agents], axis=1)

    ids, free = table["sample_id"].to_pylist(), run.rejector.unguarded()
    scores = matrix("score", -np.inf) if free is run.rejector else _scored_again(run, free, split, ids)
    return ScoredSplit(split, ids, scores, matrix("cost", np.inf), table["agent_index"].to_numpy().astype(np.int64))


def _scored_again(run: Run, rejector: Rejector, split: str, ids: list[str]) -> np.ndarray:
    """Scores (n, agents) of a split's samples in the run's order, from its cache."""
    stream = open_streams(open_cache(run), (split,), column="features", failures=run.rejector.config.failures)[split]
    found: dict[str, np.ndarray] = {}
    for names, (features, _) in zip(stream.ids_in_order(BATCH_ROWS), stream.in_order(BATCH_ROWS), strict=True):
        found.update(zip(names, rejector.scores_of(split, names, features.numpy()), strict=True))
    return np.stack([found[name] for name in ids]).astype(np.float64)


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
