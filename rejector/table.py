"""The cost table of one split as tensors: what a rejector is trained and evaluated on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from data import schema
from data.cache import AgentRecord, CostCache
from data.columns import dense_matrix, numbers
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
        failed: where an agent or reference (in this order) has no answer, bool (n, agents + references).
    """

    split: str
    ids: list[str]
    features: Tensor
    raw: Tensor
    targets: dict[str, np.ndarray] = field(default_factory=dict)
    predictions: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    reference_raw: Tensor | None = None
    failed: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.features)


def load_tables(
    cache: CostCache, splits: tuple[str, ...], *, predictions: bool = False, failures: str = "refuse"
) -> dict[str, CostTable]:
    """Read splits of a cache, every page checksum verified.

    Args:
        cache: an opened cache.
        splits: out of ``train``, ``validation``, ``test``.
        predictions: read predictions, targets and references too (for task metrics).
        failures: what to do about recorded failures: ``refuse``; ``drop`` the samples on which an agent failed; or
            charge a failure the ``worst`` cost of its task that any agent has on the training split.

    Raises:
        IncompleteCache: parts are missing.
        CorruptPart: a part is damaged or does not belong to its chunk.
        DataError: a feature or cost is not finite, a cost is negative, a split is empty, or a failure is refused.
        UsageError: fewer than two agents.
    """
    if failures not in FAILURES:
        raise UsageError(f"failures = {failures!r}", hint=f"choose from {', '.join(FAILURES)}")
    cache.require_complete()
    if len(cache.agents) < 2:
        raise UsageError(
            f"there is one agent, {cache.agents[0].name!r}: nothing to defer to",
            where=cache.path,
            hint="add an expert to the recipe and build again; agents that are there are not asked again",
        )
    agents = cache.agents + cache.references
    chunks = _Chunks(cache, agents, predictions)
    worst = chunks.worst_costs()
    tables = {}
    for split in splits:
        if not chunks.ids[split]:
            raise DataError(f"the {split} split has no samples", where=cache.path, hint="choose another split")
        raw, failed = chunks.join(chunks.raw, split), chunks.join(chunks.failed, split)
        if failed.any() and failures == "refuse":
            row, agent = np.argwhere(failed)[0]
            raise DataError(
                f"agent {agents[agent].name!r} has no answer on {failed[:, agent].sum()} samples of the {split} split",
                where=f"sample {chunks.ids[split][row]!r} in {cache.path}",
                hint="ask again with `l2d build --retry-failures`, or say --failures drop or --failures worst",
            )
        keep = ~failed.any(axis=1) if failures == "drop" else np.ones(len(raw), dtype=bool)
        if not keep.any():
            raise DataError(
                f"no sample of the {split} split has every answer", where=cache.path, hint="--failures worst"
            )
        raw = np.where(failed[:, :, None], worst, raw).astype(np.float32)[keep]
        tables[split] = CostTable(
            split=split,
            ids=[sample for sample, kept in zip(chunks.ids[split], keep, strict=True) if kept],
            features=torch.from_numpy(chunks.join(chunks.features, split)[keep]),
            raw=torch.from_numpy(raw[:, : len(cache.agents)].copy()),
            reference_raw=torch.from_numpy(raw[:, len(cache.agents) :].copy()),
            failed=failed[keep],
            targets={name: chunks.join(values, split)[keep] for name, values in chunks.targets.items()},
            predictions={
                agent.name: {
                    name: chunks.join(parts, split)[keep]
                    for name, parts in chunks.predictions[agent.name].items()
                    if len(parts[split]) == cache.record.num_chunks  # in every chunk
                }
                for agent in agents
            },
        )
    return tables


FAILURES = ("refuse", "drop", "worst")
PREDICTIONS = ("pred_cla", "pred_prob", "pred_reg")


class _Chunks:
    """A cache's columns as lists of arrays, one array a chunk, by split."""

    def __init__(self, cache: CostCache, agents: list[AgentRecord], predictions: bool):
        self.ids: dict[str, list[str]] = {split: [] for split in schema.SPLITS}
        self.features, self.raw, self.failed = _by_split(), _by_split(), _by_split()
        self.targets: dict[str, dict[str, list]] = {}
        self.predictions: dict[str, dict[str, dict[str, list]]] = {agent.name: {} for agent in agents}
        columns = [schema.COST_COLUMNS[task] for task in cache.record.tasks]
        for samples, predicted, costs in cache.chunks([agent.name for agent in agents]):
            features = dense_matrix(samples["features"])
            raw = np.stack([np.stack([numbers(part[c]) for c in columns], axis=1) for part in costs], axis=1)
            failed = np.stack([part[columns[0]].is_null().to_numpy() for part in costs], axis=1)
            _check_finite(cache, samples, features, raw, agents)
            of_split = np.array(samples["split"].to_pylist())
            for split in schema.SPLITS:
                rows = np.flatnonzero(of_split == split)
                self.ids[split] += samples["sample_id"].take(rows).to_pylist()
                for parts, values in ((self.features, features), (self.raw, raw), (self.failed, failed)):
                    parts[split].append(values[rows])
                if predictions:
                    self._add_predictions(samples, predicted, agents, split, rows)

    def _add_predictions(
        self, samples: pa.Table, predicted: list[pa.Table], agents: list[AgentRecord], split: str, rows: np.ndarray
    ) -> None:
        for name in ("target_cla", "target_reg"):
            if name in samples.column_names:
                self.targets.setdefault(name, _by_split())[split].append(numbers(samples[name])[rows])
        for agent, part in zip(agents, predicted, strict=True):
            for name in PREDICTIONS:
                if name in part.column_names:
                    values = dense_matrix(part[name]) if name == "pred_prob" else numbers(part[name])
                    self.predictions[agent.name].setdefault(name, _by_split())[split].append(values[rows])

    def join(self, parts: dict[str, list], split: str) -> np.ndarray:
        return np.concatenate(parts[split])

    def worst_costs(self) -> np.ndarray:
        """Highest raw cost of each task that any agent's answer has on the training split, (tasks,)."""
        return self.join(self.raw, "train").max(axis=(0, 1), initial=0)  # failures are zeros here


def _by_split() -> dict[str, list]:
    return {split: [] for split in schema.SPLITS}


def _check_finite(
    cache: CostCache, samples: pa.Table, features: np.ndarray, raw: np.ndarray, agents: list[AgentRecord]
) -> None:
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        sample = samples["sample_id"][int(bad.argmax())].as_py()
        raise DataError(f"sample {sample!r} has a feature that is not finite", where=cache.path, hint="build it again")
    bad_costs = ~(np.isfinite(raw) & (raw >= 0))
    if bad_costs.any():
        row, agent, task = np.argwhere(bad_costs)[0]
        raise DataError(
            f"agent {agents[agent].name!r}: {schema.COST_COLUMNS[cache.record.tasks[task]]} is {raw[row, agent, task]}",
            where=f"sample {samples['sample_id'][int(row)].as_py()!r} in {cache.path}",
            hint="costs are finite and not negative: build the agent again",
        )
