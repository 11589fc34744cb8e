"""What the runs of a setting decided on each sample, and what is known of the samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from l2d.data.cache import schema
from l2d.rejector.evaluation.evaluation import Evaluation, mean_losses


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """Decisions of the runs of one setting, a row a seed.

    Attributes:
        ids: sample ids, n of them.
        agents: names, A of them.
        chosen: index of the agent, int64 (seeds, n).
        costs: total cost of each agent on each sample, float64 (n, A); infinite where an agent has no answer.
        losses: cost of the agent each sample was sent to, the mean of the seeds, float64 (n,).
        best_constant: the best constant agent, by validation.
        constant_losses: its losses, float64 (n,).
        groups: of samples that belong together, int64 (n,), for intervals; None where each stands alone.
    """

    ids: list[str]
    agents: list[str]
    chosen: np.ndarray
    costs: np.ndarray
    losses: np.ndarray
    best_constant: str
    constant_losses: np.ndarray
    groups: np.ndarray | None = None

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
    """
    first = members[0]
    return Decisions(
        ids=first.measured.table.ids,
        agents=first.measured.names,
        chosen=np.stack([member.allocation for member in members]),
        costs=first.baselines.costs.double().numpy(),
        losses=mean_losses(members),
        best_constant=first.baselines.best_constant,
        constant_losses=first.against["best_constant"].astype(np.float64),
        groups=first.measured.groups,
    )


def sample_columns(members: list[Evaluation], ids: list[str]) -> pa.Table:
    """What the cache knows of samples: targets, kept columns, and single features by name where no column has it.

    Args:
        ids: of the samples, in the order of the rows that come back.
    """
    cache, split = members[0].cache, members[0].measured.table.split
    parts = []
    for chunk in range(cache.record.num_chunks):
        there = cache.columns_of(schema.samples_part(cache.path, chunk)).names
        table = cache.samples(chunk, [name for name in there if name not in ("image", "tokens")])
        parts.append(table.filter(pc.equal(table["split"], split)).drop_columns(["split"]))
    table = pa.concat_tables(parts, promote_options="default").combine_chunks()
    if not table["sample_id"].equals(pa.chunked_array([pa.array(ids, table["sample_id"].type)])):
        table = table.take(pc.index_in(pa.array(ids, table["sample_id"].type), value_set=table["sample_id"]))
    if "features" not in table.column_names:
        return table
    column = table["features"].combine_chunks()
    features = column.flatten().to_numpy().reshape(len(column), -1)
    table = table.drop_columns(["features"])
    names = cache.record.inputs["features"].get("names") or []
    for index, name in enumerate(names):
        if name not in table.column_names:
            table = table.append_column(name, pa.array(features[:, index]))
    for category, values in _categories(names).items():
        if category not in table.column_names:
            chosen = features[:, [index for index, _ in values]] > 0.5
            labels = pa.array([value for _, value in values] + [None])
            position = np.where(chosen.any(axis=1), chosen.argmax(axis=1), len(values))
            table = table.append_column(category, labels.take(pa.array(position)))
    return table


def _categories(names: list[str]) -> dict[str, list[tuple[int, str]]]:
    """Text columns behind features such as ``ward = a``: name -> positions and values of their classes."""
    found: dict[str, list[tuple[int, str]]] = {}
    for index, name in enumerate(names):
        column, equals, value = name.partition(" = ")
        if equals:
            found.setdefault(column, []).append((index, value))
    return found
