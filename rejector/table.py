"""The cost table of one split as tensors: what a rejector is trained and evaluated on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from data import schema
from data.cache import CostCache
from data.errors import DataError, UsageError


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Samples of a split, agents in order.

    Attributes:
        features: float32 (n, width).
        raw: raw costs, float32 (n, agents, tasks).
        targets: target column -> array (n,).
        predictions: agent or reference name -> prediction column -> array.
        reference_raw: raw costs of the references, float32 (n, references, tasks).
    """

    split: str
    ids: list[str]
    features: Tensor
    raw: Tensor
    targets: dict[str, np.ndarray] = field(default_factory=dict)
    predictions: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    reference_raw: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)


def load_tables(cache: CostCache, splits: tuple[str, ...], *, predictions: bool = False) -> dict[str, CostTable]:
    """Read splits of a cache, every page checksum verified.

    Args:
        cache: an opened cache.
        splits: out of ``train``, ``validation``, ``test``.
        predictions: read predictions, targets and references too (for task metrics).

    Raises:
        IncompleteCache: parts are missing.
        CorruptPart: a part is damaged or does not belong to its chunk.
        DataError: a feature or cost is not finite, a cost is negative, or a split is empty.
        UsageError: fewer than two agents.
    """
    cache.require_complete()
    if len(cache.agents) < 2:
        raise UsageError(
            f"there is one agent, {cache.agents[0].name!r}: nothing to defer to",
            where=cache.path,
            hint="add an expert to the recipe and build again; agents that are there are not asked again",
        )
    agents, references = cache.agents, cache.references
    columns = [schema.COST_COLUMNS[task] for task in cache.record.tasks]
    gathered: dict[str, list] = {split: [] for split in splits}
    for samples, predicted, costs in cache.chunks([agent.name for agent in agents + references]):
        features = _matrix(samples["features"])
        raw = np.stack([np.stack([part[c].to_numpy() for c in columns], axis=1) for part in costs], axis=1)
        _check_finite(cache, samples, features, raw, [agent.name for agent in agents + references])
        of_split = np.array(samples["split"].to_pylist())
        for split in splits:
            rows = np.flatnonzero(of_split == split)
            gathered[split].append((samples, predicted, features[rows], raw[rows], rows))

    tables = {}
    for split, parts in gathered.items():
        ids = [i for samples, *_, rows in parts for i in samples["sample_id"].take(rows).to_pylist()]
        if not ids:
            raise DataError(f"the {split} split has no samples", where=cache.path, hint="choose another split")
        raw = torch.from_numpy(np.concatenate([part[3] for part in parts]))
        targets, answered = {}, {}
        if predictions:
            for name in ("target_cla", "target_reg"):
                if name in parts[0][0].column_names:
                    targets[name] = np.concatenate([p[0][name].to_numpy()[p[4]] for p in parts])
            for position, agent in enumerate(agents + references):
                answered[agent.name] = {
                    name: np.concatenate([_values(p[1][position][name])[p[4]] for p in parts])
                    for name in parts[0][1][position].column_names
                    if name in ("pred_cla", "pred_prob", "pred_reg")
                }
        tables[split] = CostTable(
            split=split,
            ids=ids,
            features=torch.from_numpy(np.concatenate([part[2] for part in parts])),
            raw=raw[:, : len(agents)].contiguous(),
            reference_raw=raw[:, len(agents) :].contiguous(),
            targets=targets,
            predictions=answered,
        )
    return tables


def _values(column: pa.ChunkedArray) -> np.ndarray:
    return _matrix(column) if pa.types.is_fixed_size_list(column.type) else column.to_numpy()


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    return array.flatten().to_numpy().reshape(len(array), -1)


def _check_finite(cache: CostCache, samples: pa.Table, features: np.ndarray, raw: np.ndarray, names: list[str]) -> None:
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        sample = samples["sample_id"][int(bad.argmax())].as_py()
        raise DataError(f"sample {sample!r} has a feature that is not finite", where=cache.path, hint="build it again")
    bad_costs = ~(np.isfinite(raw) & (raw >= 0))
    if bad_costs.any():
        row, agent, task = np.argwhere(bad_costs)[0]
        raise DataError(
            f"agent {names[agent]!r} has {schema.COST_COLUMNS[cache.record.tasks[task]]} = {raw[row, agent, task]}",
            where=f"sample {samples['sample_id'][int(row)].as_py()!r} in {cache.path}",
            hint="costs are finite and not negative: build the agent again",
        )
