"""The cost table of one split as tensors: what a rejector is trained and evaluated on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from l2d.data.cache import schema
from l2d.data.cache.columns import dense_matrix, number_column, numbers, text_values
from l2d.data.cache.paid import PAID, prices_of
from l2d.data.samples.boxes import Boxes
from l2d.data.samples.standardise import standardisation
from l2d.rejector.rows.input import Missing, RejectorInput, Tally, check_finite, check_usable, read_costs

if TYPE_CHECKING:
    from l2d.data.cache.reader import AgentRecord, CostCache


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Samples of a split, agents in order.

    Attributes:
        features: the rejector's input, float32 (n, width): dense, small images as 3 x side x side in [0, 1], or padded
            token lists side by side.
        raw: raw costs, float32 (n, agents, tasks); NaN where an agent is unavailable. Of a cache with prices float64
            (n, agents, tasks + 1): what each answer was paid is last.
        targets: target column -> array (n,), or Boxes of n images.
        predictions: agent or reference name -> prediction column -> the same.
        reference_raw: raw costs of the references, float32 (n, references, tasks), NaN as above.
        failed: where an agent or reference (in this order) has no answer, bool (n, agents + references).
        paid: what each agent's answer was paid, float64 (n, agents), NaN where that is not known; with predictions.
        sizes: of the fields of token lists that a row of features is, see
            :func:`l2d.data.samples.tokens.token_sizes`; else none.
    """

    split: str
    ids: list[str]
    features: Tensor
    raw: Tensor
    targets: dict[str, np.ndarray | Boxes] = field(default_factory=dict)
    predictions: dict[str, dict[str, np.ndarray | Boxes]] = field(default_factory=dict)
    reference_raw: Tensor | None = None
    failed: np.ndarray | None = None
    paid: np.ndarray | None = None
    sizes: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.features)


def load_tables(
    cache: CostCache,
    splits: tuple[str, ...],
    *,
    column: str = "features",
    predictions: bool = False,
    failures: str = "refuse",
) -> dict[str, CostTable]:
    """Read splits of a cache, every page checksum verified.

    Args:
        cache: an opened cache.
        splits: out of ``train``, ``validation``, ``test``.
        column: the rejector's input, ``features``, ``tokens`` or ``image``.
        predictions: read predictions, targets and references too (for task metrics).
        failures: what to do about recorded failures: ``refuse``; ``drop`` the samples on which an agent failed;
            charge a failure the ``worst`` cost of its task that any agent has on the training split; or ``mask``: the
            agent is unavailable on that sample. Agents that answer only some samples are masked in any case, and a
            sample on which no agent is available is left out.

    Raises:
        IncompleteCache: parts are missing.
        CorruptPart: a part is damaged or does not belong to its chunk.
        DataError: a feature or cost is not finite, a cost is negative, a split is empty, or a failure is refused.
        UsageError: fewer than two agents, or the cache has no such input.
    """
    check_usable(cache, column, failures)
    agents = cache.agents + cache.references
    chunks = _Chunks(cache, agents, predictions, column, splits)
    tables = {}
    for split in splits:
        missing = Missing(agents, failures)
        tally = Tally(missing, len(agents))
        if chunks.ids[split]:
            raw, failed = chunks.join(chunks.raw, split), chunks.join(chunks.failed, split)
            unpriced = np.isnan(raw[:, :, -1])  # what its answer was paid is not known: it cannot be asked there
            tally.add(failed, chunks.ids[split].__getitem__, unpriced)
        tally.check(cache, split, agents, failures)
        keep = missing.kept(failed, unpriced)
        if failed.any():
            instead = np.where(missing.unavailable(failed)[:, :, None], np.nan, chunks.worst)
            raw = np.where(failed[:, :, None], instead, raw)
        raw[unpriced] = np.nan
        raw = raw.astype(np.float64 if cache.priced else np.float32, copy=False)[keep]
        tables[split] = CostTable(
            split=split,
            ids=[sample for sample, kept in zip(chunks.ids[split], keep, strict=True) if kept],
            features=torch.from_numpy(chunks.features_of(split)[keep]),
            raw=torch.from_numpy(raw[:, : len(cache.agents)].copy()),
            reference_raw=torch.from_numpy(raw[:, len(cache.agents) :].copy()),
            failed=failed[keep],
            paid=chunks.join(chunks.paid, split)[keep] if predictions else None,
            sizes=chunks.looks_at.sizes,
            targets={name: join(values[split])[keep] for name, values in chunks.targets.items()},
            predictions={
                agent.name: {
                    name: join(parts[split])[keep]
                    for name, parts in chunks.predictions[agent.name].items()
                    if len(parts[split]) == cache.record.num_chunks  # in every chunk
                }
                for agent in agents
            },
        )
    return tables


#: column -> how it is read
_READ = {"cla": numbers, "reg": numbers, "boxes": Boxes.from_arrow, "text": text_values}
TARGETS = {f"target_{what}": read for what, read in _READ.items()}
PREDICTIONS = {f"pred_{what}": read for what, read in {**_READ, "prob": dense_matrix}.items()}


def _inputs(looks_at: RejectorInput, are_here: bool) -> tuple[str, ...]:
    return looks_at.columns if are_here else ()


def _said(
    names: list[str], looks_at: RejectorInput, shown_by: str | None, *, predictions: bool, priced: bool
) -> dict[str, list[str]]:
    """Agent -> columns of its predictions that are read; agents of which none is are left out."""
    found = {}
    for name in names:
        columns = [*_inputs(looks_at, name == shown_by), *(PREDICTIONS if predictions else ())]
        columns += [PAID] if predictions or priced else []
        if columns:
            found[name] = columns
    return found


def join(parts: list[np.ndarray] | list[Boxes]) -> np.ndarray | Boxes:
    """Chunks one after another."""
    return Boxes.concatenate(parts) if isinstance(parts[0], Boxes) else np.concatenate(parts)


class _Chunks:
    """Columns of some splits of a cache as lists of arrays, one array a chunk, by split.

    Attributes:
        worst: highest raw cost of each task that any agent's answer has on the training split, (tasks,).
    """

    def __init__(
        self, cache: CostCache, agents: list[AgentRecord], predictions: bool, column: str, splits: tuple[str, ...]
    ):
        self.ids: dict[str, list[str]] = {split: [] for split in schema.SPLITS}
        self.features, self.unseen, self.raw, self.failed, self.paid = (_by_split() for _ in range(5))
        self.targets: dict[str, dict[str, list]] = {}
        self.predictions: dict[str, dict[str, dict[str, list]]] = {agent.name: {} for agent in agents}
        names = [agent.name for agent in agents]
        self.looks_at = RejectorInput.of(cache, column)
        shown_by = self.looks_at.made.get("agent")  # features of the model's own forward pass
        columns = [schema.COST_COLUMNS[task] for task in cache.record.tasks]
        self.worst = np.zeros(len(columns) + cache.priced)
        held = {*splits, *(["train"] if shown_by is not None else [])}  # their mean stands in for what is not shown
        for samples, predicted, costs in cache.chunks(
            names,
            samples=list(
                dict.fromkeys(
                    (
                        "sample_id",
                        "split",
                        *_inputs(self.looks_at, shown_by is None),
                        *(TARGETS if predictions else ()),
                    )
                )
            ),
            predictions=_said(names, self.looks_at, shown_by, predictions=predictions, priced=cache.priced),
            costs=columns,
        ):
            own = None if shown_by is None else predicted[names.index(shown_by)]
            shown = samples if own is None else own
            of_split = np.array(samples["split"].to_pylist())
            wanted = None if self.looks_at.pictures is None else np.isin(of_split, list(held))
            features = self.looks_at.rows({name: shown[name] for name in shown.column_names}, len(shown), wanted)
            raw, failed = read_costs(costs, columns)
            check_finite(cache, partial(_id_at, samples["sample_id"]), features, raw, agents)
            if cache.priced:
                raw = np.concatenate([raw, prices_of(agents, predicted, failed)], axis=2)
            unseen = failed[:, names.index(shown_by)] if shown_by is not None else np.zeros(len(raw), dtype=bool)
            training = np.nan_to_num(raw[of_split == "train"])
            self.worst = np.maximum(self.worst, training.max(axis=(0, 1), initial=0))  # failures are 0
            rows_of = {split: np.flatnonzero(of_split == split) for split in schema.SPLITS if split in held}
            for split, rows in rows_of.items():
                self.ids[split] += samples["sample_id"].take(number_column(rows)).to_pylist()
                groups = ((self.features, features), (self.unseen, unseen), (self.raw, raw), (self.failed, failed))
                for parts, values in groups:
                    parts[split].append(values[rows])
            if predictions:
                self._add_predictions(samples, predicted, agents, rows_of)
                count = len(cache.agents)
                paid = prices_of(agents[:count], predicted[:count], failed[:, :count])[:, :, 0]
                for split, rows in rows_of.items():
                    self.paid[split].append(paid[rows])

    def _add_predictions(
        self,
        samples: pa.Table,
        predicted: list[pa.Table],
        agents: list[AgentRecord],
        rows_of: dict[str, np.ndarray],
    ) -> None:
        tables: list[tuple[dict[str, dict[str, list]], dict, pa.Table]] = [(self.targets, TARGETS, samples)]
        for agent, part in zip(agents, predicted, strict=True):
            tables.append((self.predictions[agent.name], PREDICTIONS, part))
        for found, readers, part in tables:
            for name, read in readers.items():
                if name in part.column_names:
                    values = read(part[name])
                    parts = found.setdefault(name, _by_split())
                    for split, rows in rows_of.items():
                        parts[split].append(values[rows])

    def join(self, parts: dict[str, list], split: str) -> np.ndarray:
        return np.concatenate(parts[split])

    def features_of(self, split: str) -> np.ndarray:
        """Inputs of a split; where the model failed and showed nothing, the training split's mean."""
        width = max(part.shape[1] for parts in self.features.values() for part in parts)
        whole = {}
        for name in {split, "train"} if self.features["train"] else {split}:
            padded = [
                part if part.shape[1] else np.zeros((len(part), width), np.float32) for part in self.features[name]
            ]
            whole[name] = np.concatenate(padded)
        unseen = self.join(self.unseen, split)
        if not unseen.any():
            return whole[split]
        seen = whole["train"][~self.join(self.unseen, "train")]
        mean = seen.mean(axis=0, dtype=np.float64) if len(seen) else np.zeros(width, np.float32)
        return np.where(unseen[:, None], mean, whole[split]).astype(np.float32)


def _by_split() -> dict[str, list]:
    return {split: [] for split in schema.SPLITS}


class HeldStream:
    """A table with the face of :class:`l2d.rejector.rows.stream.Stream`: one part, held already."""

    chunks = (0,)

    def __init__(self, table: CostTable):
        self.table = table
        self.width, self.shape = table.features.shape[1], tuple(table.raw.shape[1:])
        self.counts, self.cache_path, self.sizes = np.array([len(table)]), None, table.sizes
        self.has_unavailable, self.left_out = bool(table.raw.isnan().any()), 0

    def __len__(self) -> int:
        return len(self.table)

    def begin(self, epoch: int) -> bool:
        """As a stream: these rows stay as they are."""
        return False

    def standardisation(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each feature."""
        return standardisation(self.table.features.numpy())

    def rows(self, chunk: int, prepare: Callable | None = None) -> tuple[Tensor, Tensor]:
        """All rows: features (n, W) and raw costs (n, A, T)."""
        rows = self.table.features, self.table.raw
        return prepare(*rows) if prepare else rows

    def in_order(self, batch: int, *, prepare: Callable | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Every row once, ``batch`` at a time."""
        yield from zip(*(values.split(batch) for values in self.rows(0, prepare)), strict=True)

    def ids_in_order(self, batch: int) -> Iterator[list[str]]:
        """The sample ids of the batches of :meth:`in_order`."""
        for start in range(0, len(self), batch):
            yield self.table.ids[start : start + batch]


def _id_at(ids: pa.ChunkedArray, row: int) -> str:
    return ids[row].as_py()
