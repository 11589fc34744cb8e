"""Writing runs: rejectors, where they came from, and what they allocate. See :mod:`l2d.rejector.runs.run`."""

from __future__ import annotations

import math
import os
import platform
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from l2d.data.cache import store
from l2d.data.cache.integrity import sha256_of, skeleton_digest
from l2d.data.cache.reader import CostCache
from l2d.data.errors import AlreadyThere
from l2d.data.threads import one_thread
from l2d.rejector.losses import allocate, deferral_loss, oracle_allocation
from l2d.rejector.rows.stream import Stream
from l2d.rejector.rows.table import CostTable, HeldStream
from l2d.rejector.rows.unlabelled import InputRecord
from l2d.rejector.runs.files import ALLOCATIONS_FILE, BATCH_ROWS, BODY_FILE, RUN_FILE, WEIGHTS_FILE, cache_fingerprint
from l2d.rejector.settings import INPUT_OF
from l2d.rejector.trained import Rejector

#: Rows that are read once for all runs of a grid, in bytes; of more each run reads them again.
HELD_BYTES = 1 << 26
#: Runs that are written at once where rows are held.
AT_ONCE = min(4, os.cpu_count() or 1)


def save_runs(
    rejectors: Sequence[Rejector],
    folders: list[Path],
    cache: CostCache,
    tables: Mapping[str, CostTable | Stream],
    *,
    seconds: float,
    overwrite: bool = False,
    already: Callable[[Rejector, Path], None] | None = None,
) -> None:
    """Write one folder per rejector, each atomically.

    Args:
        tables: the splits to write allocations for; tables read with predictions for :mod:`l2d.rejector.literature`.
        seconds: training took for the whole grid.
        already: called where another process has made the folder meanwhile; raises if that run is another one.

    Raises:
        AlreadyThere: a folder is there already, ``overwrite`` is False, and ``already`` is None.
    """
    fingerprint = cache_fingerprint(cache)
    splits: Mapping[str, Rows] = {n: HeldStream(r) if isinstance(r, CostTable) else r for n, r in tables.items()}
    if len(rejectors) > 1:
        splits = _read_once(splits)
    of_features = _ranges(splits["train"]) if "train" in splits else {}
    written: dict[int, Path] = {}  # runs of one fit share the file of its arrays, those of a grid a frozen body

    def save(rejector: Rejector, folder: Path) -> None:
        looks_at = InputRecord.of(cache, INPUT_OF[rejector.config.network])
        facts = {
            "run_id": rejector.point.run_id,
            "point": {**asdict(rejector.point), "weights": dict(rejector.point.weights.by_task)},
            "training": asdict(rejector.config),
            "best_epoch": rejector.best_epoch,
            "validation_risk": rejector.validation_risk,
            **rejector.facts(),
            "history": rejector.history,
            "agents": [agent.name for agent in cache.agents],
            "prices": [agent.price for agent in cache.agents],
            "input": looks_at.to_json(),
            "cache": {
                **_place(cache, folder),
                "name": cache.record.name,
                "fingerprint": fingerprint,
            },
            **_images(cache, folder),
            "grid_points": len(rejectors),
            "grid_seconds": round(seconds, 3),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
        }

        ranges = of_features if INPUT_OF[rejector.config.network] == "features" else {}

        def fill(temporary: Path, facts=facts) -> None:
            dump = import_module(f"safetensors.{rejector.arrays}").save
            weights, table = temporary / WEIGHTS_FILE, temporary / ALLOCATIONS_FILE
            if id(rejector.state) in written:
                store.commit_link(weights, written[id(rejector.state)])
            else:
                own = {name: values for name, values in rejector.state.items() if name not in rejector.shared}
                store.commit_bytes(weights, dump(own))
            if rejector.shared:
                body, key = temporary / BODY_FILE, id(rejector.state[rejector.shared[0]])
                if key in written:
                    store.commit_link(body, written[key])
                else:
                    store.commit_bytes(body, dump({name: rejector.state[name] for name in rejector.shared}))
            shares = np.zeros(len(cache.agents), np.int64)
            batches = _counted(allocation_batches(rejector, splits, cache), shares)
            first = next(batches)
            store.commit_batches(table, first.schema, chain([first], batches), {"run_id": rejector.point.run_id})
            facts = {**facts, "seen": {**ranges, "validation": shares.tolist()}}
            digests = {WEIGHTS_FILE: sha256_of(weights), ALLOCATIONS_FILE: skeleton_digest(table)}
            if rejector.shared:
                digests[BODY_FILE] = sha256_of(temporary / BODY_FILE)
            if looks_at.text is not None:
                store.commit_link(temporary / looks_at.text.name, looks_at.text)
                digests[looks_at.text.name] = looks_at.made["frozen"]
            store.commit_json(temporary / RUN_FILE, {**facts, "digests": digests})

        try:
            store.commit_folder(folder, fill, replace=overwrite and (folder / RUN_FILE).is_file())
        except AlreadyThere:
            if already is None or not (folder / RUN_FILE).is_file():
                raise
            already(rejector, folder)
        written.setdefault(id(rejector.state), folder / WEIGHTS_FILE)
        if rejector.shared:
            written.setdefault(id(rejector.state[rejector.shared[0]]), folder / BODY_FILE)

    members = list(zip(rejectors, folders, strict=True))
    if not all(isinstance(rows, _Held) for rows in splits.values()):
        for member in members:
            save(*member)
        return
    seen: set[int] = set()
    first: list[tuple] = []  # what others link to is written before them
    others: list[tuple] = []
    for rejector, folder in members:
        keys = {id(rejector.state), *(id(rejector.state[name]) for name in rejector.shared[:1])}
        (others if keys <= seen else first).append((rejector, folder))
        seen |= keys
    with one_thread(), ThreadPoolExecutor(AT_ONCE, "saving", torch.set_num_threads, (1,)) as pool:
        try:
            for part in (first, others):
                deque(pool.map(lambda member: save(*member), part), maxlen=0)  # which raises what one of them raised
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _place(cache: CostCache, folder: Path) -> dict[str, str]:
    """Where a run's cache lies, see :func:`l2d.rejector.runs.files.cache_of`."""
    if cache.mirror is not None:
        return {"path": cache.address, "relative_path": ""}
    path = cache.path.resolve()
    return {"path": str(path), "relative_path": os.path.relpath(path, folder.resolve())}


def _images(cache: CostCache, folder: Path) -> dict[str, Any]:
    """Where the image files lie that a rejector looks at, as :func:`_place` says it of a cache."""
    if cache.pictures is None:
        return {}
    place = {"relative_path": os.path.relpath(cache.pictures.folder.resolve(), folder.resolve())}
    known = not cache.pictures.found.unchecked
    return {"images": {**place, "digest": cache.record.fingerprint["images"] if known else None}}


def _ranges(train: Rows) -> dict[str, Any]:
    """How many training rows, and the least and the largest value of each of their features."""
    rows = 0
    least, most = torch.full((train.width,), torch.inf), torch.full((train.width,), -torch.inf)
    for features, _ in train.in_order(BATCH_ROWS):
        least, most = torch.minimum(least, features.amin(dim=0)), torch.maximum(most, features.amax(dim=0))
        rows += len(features)
    return {"rows": rows, "least": least.tolist(), "most": most.tolist()}


class _Held:
    """A stream whose rows have been read, for several runs. Like :class:`Stream` as far as runs are written."""

    def __init__(self, stream: Stream):
        self.width = stream.width
        self._ids = list(stream.ids_in_order(BATCH_ROWS))
        self._rows = list(stream.in_order(BATCH_ROWS))

    def ids_in_order(self, batch: int) -> Iterator[list[str]]:
        return iter(self._ids)

    def in_order(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._rows)


Rows = Stream | HeldStream | _Held


def _read_once(splits: Mapping[str, Rows]) -> Mapping[str, Rows]:
    """The splits, their rows held if they are streams and few."""
    streams = {name: rows for name, rows in splits.items() if isinstance(rows, Stream)}
    size = sum(4 * len(rows) * (rows.width + math.prod(rows.shape)) for rows in streams.values())
    return splits if size > HELD_BYTES or len(streams) < len(splits) else {n: _Held(r) for n, r in streams.items()}


def _counted(batches: Iterator[pa.RecordBatch], shares: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The batches; adds to ``shares`` how many validation samples each agent gets."""
    for batch in batches:
        if batch["split"][0].as_py() == "validation":
            shares += np.bincount(batch["agent_index"].to_numpy(), minlength=len(shares))
        yield batch


def allocation_batches(rejector: Rejector, splits: Mapping[str, Rows], cache: CostCache) -> Iterator[pa.RecordBatch]:
    """Every sample's allocation under a rejector, some rows at a time.

    Columns: ``sample_id, split, agent_index, agent, score_J.., cost_J.., deferral_cost, oracle_agent, oracle_cost``;
    costs are total (``lambda`` and ``beta`` applied), null where an agent is unavailable and so not chosen. Where the
    rejector has a classifier of its own, ``cost_0`` is that one's, and what it says are columns ``pred_cla`` and
    ``pred_prob``.
    """
    for split, rows in splits.items():
        if isinstance(rows, HeldStream):
            yield from _held(rejector, split, rows.table, cache)
        else:
            yield from _streamed(rejector, split, rows, cache)


def _streamed(rejector: Rejector, split: str, stream: Stream | _Held, cache: CostCache) -> Iterator[pa.RecordBatch]:
    batches = zip(stream.ids_in_order(BATCH_ROWS), stream.in_order(BATCH_ROWS), strict=True)
    for ids, (features, raw) in batches:
        costs = rejector.point.total_costs(raw, cache.record.tasks)
        scores = torch.from_numpy(rejector.scores_of(split, ids, features.numpy()))
        yield pa.RecordBatch.from_pydict(_allocated(ids, split, scores, costs, cache))


def _held(rejector: Rejector, split: str, table: CostTable, cache: CostCache) -> Iterator[pa.RecordBatch]:
    scores, system = torch.from_numpy(rejector.scores_on(table)), rejector.system_table(table, cache.record.tasks)
    costs = rejector.point.total_costs(system.raw, cache.record.tasks)
    own = system.predictions[cache.agents[0].name] if rejector.has_classifier else None
    for start in range(0, len(table), BATCH_ROWS):
        rows = slice(start, start + BATCH_ROWS)
        columns = _allocated(table.ids[rows], split, scores[rows], costs[rows], cache)
        if own is not None:
            columns["pred_cla"] = pa.array(own["pred_cla"][rows], pa.int32())
            columns["pred_prob"] = pa.array(list(np.asarray(own["pred_prob"])[rows]), pa.list_(pa.float32()))
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
