"""What runs decided on each sample, and what each agent would have cost there: their ``allocations.parquet``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data import schema, store

from .evaluation import Evaluation
from .runs import ALLOCATIONS_FILE


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """Decisions of the runs of one setting, a row a seed.

    Attributes:
        ids: sample ids, n of them.
        agents: names, A of them.
        chosen: index of the agent, int64 (seeds, n).
        scores: of the rejector, float64 (seeds, n, A).
        costs: total cost of each agent on each sample, float64 (n, A); infinite where an agent has no answer.
    """

    ids: list[str]
    agents: list[str]
    chosen: np.ndarray
    scores: np.ndarray
    costs: np.ndarray

    @property
    def losses(self) -> np.ndarray:
        """Cost of whom each sample was sent to, the mean of the seeds: float64 (n,)."""
        return np.mean([self.costs[np.arange(len(self.ids)), of_seed] for of_seed in self.chosen], axis=0)

    @property
    def oracle(self) -> np.ndarray:
        """Cost of the cheapest agent, float64 (n,)."""
        return self.costs.min(axis=1)

    def shares(self, rows: np.ndarray) -> np.ndarray:
        """Share of some samples (positions, or bool (n,)) that each agent gets, the mean of the seeds: (A,)."""
        chosen = self.chosen[:, rows]
        return np.bincount(chosen.ravel(), minlength=len(self.agents)) / max(1, chosen.size)

    def cheapest_shares(self, rows: np.ndarray) -> np.ndarray:
        """Share of some samples on which each agent is the cheapest: (A,). Agents that tie share the sample."""
        cheapest = self.costs[rows] == self.costs[rows].min(axis=1, keepdims=True)
        return (cheapest / cheapest.sum(axis=1, keepdims=True)).mean(axis=0)


def decisions_of(members: list[Evaluation]) -> Decisions:
    """The decisions of the runs of one setting on the split that was evaluated.

    Args:
        members: evaluations that differ in their seed alone.

    Raises:
        CorruptPart: a file of allocations is damaged.
    """
    split = members[0].result["split"]
    agents = [agent.name for agent in members[0].cache.agents]
    cost_columns = [f"cost_{index}" for index in range(len(agents))]
    score_columns = [f"score_{index}" for index in range(len(agents))]
    chosen, scores = [], []
    for number, member in enumerate(members):
        columns = ["sample_id", "split", "agent_index", *score_columns, *(cost_columns if number == 0 else [])]
        table = store.read_table(member.run.path / ALLOCATIONS_FILE, columns=columns)
        table = table.filter(pc.equal(table["split"], split))
        chosen.append(table["agent_index"].to_numpy().astype(np.int64))
        scores.append(_matrix(table, score_columns))
        if number == 0:
            ids, costs = table["sample_id"].to_pylist(), _matrix(table, cost_columns)
    return Decisions(ids=ids, agents=agents, chosen=np.stack(chosen), scores=np.stack(scores), costs=costs)


def _matrix(table: pa.Table, names: list[str]) -> np.ndarray:
    return np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float64)


def sample_columns(members: list[Evaluation], ids: list[str]) -> pa.Table:
    """What the cache knows of samples: targets, kept columns, and single features by name where no column has it.

    Args:
        ids: of the samples, in the order of the rows that come back.
    """
    cache = members[0].cache
    parts = []
    for chunk in range(cache.record.num_chunks):
        there = pq.read_schema(schema.samples_part(cache.path, chunk)).names
        table = cache.samples(chunk, [name for name in there if name not in ("split", "image", "tokens")])
        parts.append(table.filter(pc.is_in(table["sample_id"], value_set=pa.array(ids, table["sample_id"].type))))
    table = pa.concat_tables(parts, promote_options="default")
    position = {sample: row for row, sample in enumerate(table["sample_id"].to_pylist())}
    table = table.take(pa.array([position[sample] for sample in ids]))
    if "features" not in table.column_names:
        return table
    column = table["features"].combine_chunks()
    features = column.flatten().to_numpy().reshape(len(column), -1)
    table = table.drop_columns(["features"])
    for index, name in enumerate(cache.record.inputs["features"].get("names", [])):
        if name not in table.column_names:
            table = table.append_column(name, pa.array(features[:, index]))
    return table
