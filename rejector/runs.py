"""A run: one trained rejector, where it came from, and what it allocates. One folder, complete or absent.

::

    RUN/run.json               the grid point, training settings, how inputs are made, cache and its fingerprint, curve
    RUN/rejector.safetensors   parameters, and mean and deviation of the training features
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

import pyarrow as pa
import torch

from data import schema, store
from data.cache import CostCache
from data.errors import CorruptPart, FingerprintMismatch, UsageError
from data.integrity import sha256_of, skeleton_digest
from data.tokens import token_sizes

from .costs import CostWeights
from .grid import GridPoint
from .inputs import InputRecord
from .losses import allocate, deferral_loss, oracle_allocation
from .networks import INPUT_OF
from .streaming import Stream
from .table import CostTable, TableStream
from .training import TrainConfig, TrainedRejector, point_costs

RUN_FILE = "run.json"
WEIGHTS_FILE = "rejector.safetensors"
ALLOCATIONS_FILE = "allocations.parquet"
BATCH_ROWS = 32_768  # allocated and written at once


@dataclass(frozen=True)
class Run:
    """A run read back: its folder, the rejector, the cache it was trained on, and what it looks at.

    ``input`` is None for runs saved before they kept it: see :func:`input_of`.
    """

    path: Path
    rejector: TrainedRejector
    cache_path: Path
    cache_fingerprint: dict[str, str]
    agents: list[str]
    input: InputRecord | None

    @property
    def point(self) -> GridPoint:
        return self.rejector.point


def cache_fingerprint(cache: CostCache) -> dict[str, str]:
    """Tells whether a cache still holds what a run was trained on: digests of its samples and of each agent's costs."""
    record = cache.record
    chunks = range(record.num_chunks)
    found = {"samples": [schema.samples_part(cache.path, k) for k in chunks]}
    for agent in cache.agents:
        costs = [schema.costs_part(cache.path, agent.name, k, record.cost_digest) for k in chunks]
        found[f"costs of {agent.name}"] = costs
    return {name: schema.digest([skeleton_digest(part) for part in parts]) for name, parts in found.items()}


def save_runs(
    rejectors: list[TrainedRejector],
    folders: list[Path],
    cache: CostCache,
    tables: dict[str, CostTable | Stream],
    *,
    seconds: float,
    overwrite: bool = False,
) -> None:
    """Write one folder per rejector, each atomically.

    Args:
        tables: the splits to write allocations for.
        seconds: training took for the whole grid.

    Raises:
        DataError: a folder is there already and ``overwrite`` is False.
    """
    fingerprint = cache_fingerprint(cache)
    splits = {name: TableStream(rows) if isinstance(rows, CostTable) else rows for name, rows in tables.items()}
    for rejector, folder in zip(rejectors, folders, strict=True):
        facts = {
            "run_id": rejector.point.run_id,
            "point": {**asdict(rejector.point), "weights": dict(rejector.point.weights.by_task)},
            "training": asdict(rejector.config),
            "best_epoch": rejector.best_epoch,
            "validation_risk": rejector.validation_risk,
            "history": rejector.history,
            "agents": [agent.name for agent in cache.agents],
            "input": asdict(InputRecord.of(cache, INPUT_OF[rejector.config.network])),
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

        def fill(temporary: Path, facts=facts, rejector=rejector) -> None:
            from safetensors.torch import save

            weights, table = temporary / WEIGHTS_FILE, temporary / ALLOCATIONS_FILE
            store.commit_bytes(weights, save(rejector.state))
            batches = allocation_batches(rejector, splits, cache)
            first = next(batches)
            store.commit_batches(table, first.schema, chain([first], batches), {"run_id": rejector.point.run_id})
            digests = {WEIGHTS_FILE: sha256_of(weights), ALLOCATIONS_FILE: skeleton_digest(table)}
            store.commit_json(temporary / RUN_FILE, {**facts, "digests": digests})

        store.commit_folder(folder, fill, replace=overwrite and (folder / RUN_FILE).is_file())


def allocation_batches(
    rejector: TrainedRejector, splits: dict[str, Stream | TableStream], cache: CostCache
) -> Iterator[pa.RecordBatch]:
    """Every sample's allocation under a rejector, some rows at a time.

    Columns: ``sample_id, split, agent_index, agent, score_J.., cost_J.., deferral_cost, oracle_agent, oracle_cost``;
    costs are total (``lambda`` and ``beta`` applied).
    """
    names = pa.array([agent.name for agent in cache.agents])
    for split, stream in splits.items():
        batches = zip(stream.ids_in_order(BATCH_ROWS), stream.in_order(BATCH_ROWS), strict=True)
        for ids, (features, raw) in batches:
            scores = rejector.scores(features)
            costs = point_costs(raw, rejector.point, cache.record.tasks)
            allocation, oracle = allocate(scores), oracle_allocation(costs)
            columns = {
                "sample_id": pa.array(ids, pa.string()),
                "split": pa.array([split] * len(ids), pa.string()),
                "agent_index": pa.array(allocation.numpy(), pa.int32()),
                "agent": names.take(pa.array(allocation.numpy())),
                **{f"score_{j}": pa.array(scores[:, j].numpy()) for j in range(len(names))},
                **{f"cost_{j}": pa.array(costs[:, j].numpy()) for j in range(len(names))},
                "deferral_cost": pa.array(deferral_loss(allocation, costs).numpy()),
                "oracle_agent": names.take(pa.array(oracle.numpy())),
                "oracle_cost": pa.array(deferral_loss(oracle, costs).numpy()),
            }
            yield pa.RecordBatch.from_pydict(columns)


def find_runs(path: Path) -> list[Path]:
    """Run folders at or beneath a path, in name order.

    Raises:
        UsageError: there is none.
    """
    found = [path] if (path / RUN_FILE).is_file() else sorted(file.parent for file in path.rglob(RUN_FILE))
    found = [folder for folder in found if not folder.name.endswith(store.TEMPORARY_SUFFIX)]
    if not found:
        raise UsageError("there is no run here", where=path, hint="train one: l2d train CACHE --out RUN")
    return found


def one_run(path: Path) -> Path:
    """The run folder at or beneath a path.

    Raises:
        UsageError: there is none, or more than one.
    """
    found = find_runs(path)
    if len(found) > 1:
        raise UsageError(f"there are {len(found)} runs here", where=path, hint=f"choose one, such as {found[0]}")
    return found[0]


def read_facts(path: Path) -> dict:
    """``run.json``, once the files beside it are known to be those that were written with it.

    Raises:
        CorruptPart: a file of the run is missing or damaged.
    """
    try:
        facts = store.read_json(path / RUN_FILE)
        digests = facts["digests"]
        found = {
            WEIGHTS_FILE: sha256_of(path / WEIGHTS_FILE),
            ALLOCATIONS_FILE: skeleton_digest(path / ALLOCATIONS_FILE),
        }
    except (KeyError, FileNotFoundError) as error:
        raise CorruptPart(f"is not a whole run: {error}", where=path, hint="train it again") from error
    for name, digest in found.items():
        if digest != digests.get(name):
            raise CorruptPart("is not the file that was written", where=path / name, hint="train it again")
    return facts


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
        looks_at = InputRecord(**facts["input"]) if "input" in facts else None
        rejector = TrainedRejector(
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
        )
        rejector.scores(torch.zeros(1, len(rejector.state["feature_mean"])))  # the parameters fit the network
        return Run(path, rejector, cache_of(path, facts), facts["cache"]["fingerprint"], facts["agents"], looks_at)
    except Exception as error:  # another version's fields, shapes or networks raise all kinds
        raise CorruptPart(f"is no run of this version: {error!r}", where=path, hint="train it again") from error


def cache_of(path: Path, facts: dict) -> Path:
    """Where the cache of a run lies: where it lay relative to the run if it is there, else where it lay absolutely.

    A pair that moved together is thus found even if another cache stands in its old place.
    """
    place = facts["cache"]
    relative = (path / place["relative_path"]).resolve()
    return relative if schema.cache_file(relative).is_file() else Path(place["path"])


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
    cache = CostCache(run.cache_path).only(run.agents)
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
