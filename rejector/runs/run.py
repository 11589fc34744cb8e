"""A run: one trained rejector, where it came from, and what it allocates. One folder, complete or absent.

::

    RUN/run.json               the grid point, training settings, how inputs are made, cache and its fingerprint, curve
    RUN/rejector.safetensors   parameters, and mean and deviation of the training features
    RUN/text-DIGEST.safetensors  of text features: the cache's file of vocabulary, weights and directions
    RUN/allocations.parquet    per sample: agent, scores, counterfactual costs, deferral cost, oracle agent

A sweep is a folder of such folders.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from l2d.data.cache import schema, store
from l2d.data.cache.integrity import sha256_of, skeleton_digest
from l2d.data.cache.reader import CostCache
from l2d.data.errors import CorruptPart, FingerprintMismatch, UsageError
from l2d.data.samples.tokens import token_sizes
from l2d.rejector.best.trained import TrainedBest
from l2d.rejector.costs import CostWeights, Priced
from l2d.rejector.grid import GridPoint
from l2d.rejector.literature.trained import TrainedMethod
from l2d.rejector.losses import allocate, deferral_loss, oracle_allocation
from l2d.rejector.methods import LITERATURE
from l2d.rejector.networks import INPUT_OF
from l2d.rejector.rows.stream import Stream
from l2d.rejector.rows.table import CostTable, TableStream
from l2d.rejector.rows.unlabelled import InputRecord
from l2d.rejector.runs.files import (
    ALLOCATIONS_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    cache_fingerprint,
    cache_of,
    find_runs,
    one_run,
    read_facts,
)
from l2d.rejector.training.rejector import TrainConfig, TrainedNetwork, point_costs

__all__ = ["RUN_FILE", "Run", "find_runs", "load_run", "one_run", "open_cache", "save_runs"]

BATCH_ROWS = 32_768  # allocated and written at once


@dataclass(frozen=True)
class Run:
    """A run read back: its folder, the rejector, the cache it was trained on, and what it looks at.

    ``input`` is None for runs saved before they kept it: see :func:`input_of`. So is ``seen``, what
    :class:`l2d.rejector.rows.foreign.Foreign` compares inputs with. ``prices`` are the agents', in order, None where
    they are not known. A run that has ``moved`` is at another setting than its files: see
    :func:`l2d.rejector.runs.elsewhere.at_setting`.
    """

    path: Path
    rejector: TrainedNetwork
    cache_path: Path
    cache_fingerprint: dict[str, str]
    agents: list[str]
    input: InputRecord | None
    seen: dict | None = None
    prices: tuple[float | None, ...] = ()
    moved: bool = False

    @property
    def priced(self) -> list[Priced]:
        """The agents with their prices."""
        prices = self.prices or (None,) * len(self.agents)
        return [Priced(name, price) for name, price in zip(self.agents, prices, strict=True)]

    @property
    def point(self) -> GridPoint:
        return self.rejector.point


def save_runs(
    rejectors: list[TrainedNetwork],
    folders: list[Path],
    cache: CostCache,
    tables: dict[str, CostTable | Stream],
    *,
    seconds: float,
    overwrite: bool = False,
) -> None:
    """Write one folder per rejector, each atomically.

    Args:
        tables: the splits to write allocations for; read with predictions for :mod:`l2d.rejector.literature`.
        seconds: training took for the whole grid.

    Raises:
        DataError: a folder is there already and ``overwrite`` is False.
    """
    fingerprint = cache_fingerprint(cache)
    splits = {name: TableStream(rows) if isinstance(rows, CostTable) else rows for name, rows in tables.items()}
    of_features = _ranges(splits["train"]) if "train" in splits else {}
    written: dict[int, Path] = {}  # runs of one fit share the file of its arrays
    for rejector, folder in zip(rejectors, folders, strict=True):
        facts = {
            "run_id": rejector.point.run_id,
            "point": {**asdict(rejector.point), "weights": dict(rejector.point.weights.by_task)},
            "training": asdict(rejector.config),
            "best_epoch": rejector.best_epoch,
            "validation_risk": rejector.validation_risk,
            **({"guard": rejector.guard, "best": rejector.about} if isinstance(rejector, TrainedBest) else {}),
            "history": rejector.history,
            "agents": [agent.name for agent in cache.agents],
            "prices": [agent.price for agent in cache.agents],
            "input": (looks_at := InputRecord.of(cache, INPUT_OF[rejector.config.network])).to_json(),
            "cache": {
                "path": str(cache.path.resolve()),
                "relative_path": os.path.relpath(cache.path.resolve(), folder.resolve()),
                "name": cache.record.name,
                "fingerprint": fingerprint,
            },
            "grid_points": len(rejectors),
            "grid_seconds": round(seconds, 3),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
        }

        ranges = of_features if INPUT_OF[rejector.config.network] == "features" else {}

        def fill(temporary: Path, facts=facts, rejector=rejector, ranges=ranges, text=looks_at.text) -> None:
            from safetensors.torch import save

            weights, table = temporary / WEIGHTS_FILE, temporary / ALLOCATIONS_FILE
            if id(rejector.state) in written:
                store.commit_link(weights, written[id(rejector.state)])
            else:
                store.commit_bytes(weights, save(rejector.state))
            if isinstance(rejector, TrainedMethod):
                batches = method_allocation_batches(rejector, tables, cache)
            else:
                batches = allocation_batches(rejector, splits, cache)
            first = next(batches)
            store.commit_batches(table, first.schema, chain([first], batches), {"run_id": rejector.point.run_id})
            facts = {**facts, "seen": {**ranges, "validation": _shares(table, len(cache.agents))}}
            digests = {WEIGHTS_FILE: sha256_of(weights), ALLOCATIONS_FILE: skeleton_digest(table)}
            if text is not None:
                store.commit_link(temporary / text.name, text)
                digests[text.name] = looks_at.made["frozen"]
            store.commit_json(temporary / RUN_FILE, {**facts, "digests": digests})

        store.commit_folder(folder, fill, replace=overwrite and (folder / RUN_FILE).is_file())
        written.setdefault(id(rejector.state), folder / WEIGHTS_FILE)


def _ranges(train: Stream | TableStream) -> dict[str, Any]:
    """How many training rows, and the least and the largest value of each of their features."""
    rows, least, most = 0, None, None
    for features, _ in train.in_order(BATCH_ROWS):
        low, high = features.amin(dim=0), features.amax(dim=0)
        least, most = (low, high) if least is None else (torch.minimum(least, low), torch.maximum(most, high))
        rows += len(features)
    return {"rows": rows, "least": least.tolist(), "most": most.tolist()}


def _shares(allocations: Path, agents: int) -> list[int]:
    """How many validation samples each agent gets."""
    table = pq.read_table(allocations, columns=["agent_index"], filters=[("split", "=", "validation")])
    return np.bincount(table["agent_index"].to_numpy(), minlength=agents).tolist()


def allocation_batches(
    rejector: TrainedNetwork, splits: dict[str, Stream | TableStream], cache: CostCache
) -> Iterator[pa.RecordBatch]:
    """Every sample's allocation under a rejector, some rows at a time.

    Columns: ``sample_id, split, agent_index, agent, score_J.., cost_J.., deferral_cost, oracle_agent, oracle_cost``;
    costs are total (``lambda`` and ``beta`` applied), null where an agent is unavailable and so not chosen.
    """
    for split, stream in splits.items():
        batches = zip(stream.ids_in_order(BATCH_ROWS), stream.in_order(BATCH_ROWS), strict=True)
        for ids, (features, raw) in batches:
            costs = point_costs(raw, rejector.point, cache.record.tasks)
            yield pa.RecordBatch.from_pydict(
                _allocated(ids, split, rejector.scores_of(split, list(ids), features), costs, cache)
            )


def method_allocation_batches(
    rejector: TrainedMethod, tables: dict[str, CostTable], cache: CostCache
) -> Iterator[pa.RecordBatch]:
    """The same under one of :mod:`l2d.rejector.literature`, from tables that have been read with predictions.

    Where it has a classifier of its own, ``cost_0`` is that one's, and what it says are columns ``pred_cla`` and
    ``pred_prob``.
    """
    for split, table in tables.items():
        scores, system = rejector.scores_on(table), rejector.system_table(table, cache.record.tasks)
        costs = point_costs(system.raw, rejector.point, cache.record.tasks)
        own = system.predictions[cache.agents[0].name] if rejector.has_classifier else None
        for start in range(0, len(table), BATCH_ROWS):
            rows = slice(start, start + BATCH_ROWS)
            columns = _allocated(table.ids[rows], split, scores[rows], costs[rows], cache)
            if own is not None:
                columns["pred_cla"] = pa.array(own["pred_cla"][rows], pa.int32())
                columns["pred_prob"] = pa.array(list(own["pred_prob"][rows]), pa.list_(pa.float32()))
            yield pa.RecordBatch.from_pydict(columns)


def _allocated(ids: list[str], split: str, scores: Tensor, costs: Tensor, cache: CostCache) -> dict[str, pa.Array]:
    """Columns of some rows: see :func:`allocation_batches`."""
    names = pa.array([agent.name for agent in cache.agents])
    unavailable = costs.isinf()
    allocation, oracle = allocate(scores, ~unavailable), oracle_allocation(costs)
    return {
        "sample_id": pa.array(ids, pa.string()),
        "split": pa.array([split] * len(ids), pa.string()),
        "agent_index": pa.array(allocation.numpy(), pa.int32()),
        "agent": names.take(pa.array(allocation.numpy())),
        **{f"score_{j}": pa.array(scores[:, j].numpy()) for j in range(len(names))},
        **{f"cost_{j}": pa.array(costs[:, j].numpy(), mask=unavailable[:, j].numpy()) for j in range(len(names))},
        "deferral_cost": pa.array(deferral_loss(allocation, costs).numpy()),
        "oracle_agent": names.take(pa.array(oracle.numpy())),
        "oracle_cost": pa.array(deferral_loss(oracle, costs).numpy()),
    }


def load_run(path: Path) -> Run:
    """Read a run back.

    Raises:
        CorruptPart: a file of the run is missing, damaged, or from another version.
    """
    from safetensors.torch import load

    facts = read_facts(path)
    try:
        point = facts["point"]
        beta = point["beta"]
        looks_at = None
        if "input" in facts:
            looks_at = InputRecord(**facts["input"], text=schema.text_file(path, facts["input"]["made"]))
        kind, more = TrainedMethod if point["method"] in LITERATURE else TrainedNetwork, {}
        if point["method"] == "best":
            kind, more = TrainedBest, {"guard": facts["guard"], "about": facts["best"]}
        rejector = kind(
            point=GridPoint(
                **{
                    **point,
                    "weights": CostWeights(tuple(point["weights"].items())),
                    "beta": tuple(map(tuple, beta)) if isinstance(beta, list) else beta,
                    "query_costs": tuple(point["query_costs"]),
                }
            ),
            config=TrainConfig(**facts["training"]),
            state=load((path / WEIGHTS_FILE).read_bytes()),
            best_epoch=facts["best_epoch"],
            validation_risk=facts["validation_risk"],
            history=[tuple(row) for row in facts["history"]],
            sizes=token_sizes(looks_at.made) if looks_at is not None else (),
            **more,
        )
        rejector.check()
        return Run(
            path,
            rejector,
            cache_of(path, facts),
            facts["cache"]["fingerprint"],
            facts["agents"],
            looks_at,
            facts.get("seen"),
            tuple(facts.get("prices", ())),
        )
    except Exception as error:  # another version's fields, shapes or networks raise all kinds
        raise CorruptPart(
            f"was written by another version of l2d: {error!r}", where=path, hint="train it again"
        ) from error


def open_cache(run: Run) -> CostCache:
    """The cache a run was trained on, with the agents it was trained on (others may have been added since).

    Raises:
        FingerprintMismatch: samples or costs are others now; names whose.
        UsageError: the cache is not where it was.
    """
    if not schema.cache_file(run.cache_path).is_file():
        raise UsageError(
            f"run {run.point.run_id} was trained on a cache that is not there any more",
            where=run.cache_path,
            hint="move it back, or keep run and cache in the same places relative to each other",
        )
    cache = CostCache(run.cache_path).only(run.agents).with_prices(run.point.paid is not None)
    cache.require_complete()
    now = cache_fingerprint(cache)
    changes = {n: (run.cache_fingerprint.get(n), now.get(n)) for n in now if now[n] != run.cache_fingerprint.get(n)}
    if changes:
        raise FingerprintMismatch(
            f"the cache that run {run.point.run_id} was trained on",
            changes,
            where=run.cache_path,
            hint="the cache has been built again since: train the run again",
        )
    return cache


def input_of(run: Run) -> InputRecord:
    """What the rejector of a run looks at; of a run that does not say, its cache does.

    Raises:
        UsageError: neither does.
    """
    if run.input is not None:
        return run.input
    try:
        return InputRecord.of(open_cache(run), INPUT_OF[run.rejector.config.network])
    except UsageError as error:
        raise UsageError(
            f"run {run.point.run_id} was saved by an earlier version, which did not write down how inputs are made",
            where=run.path,
            hint=f"train it again, or put its cache back at {run.cache_path}",
        ) from error
