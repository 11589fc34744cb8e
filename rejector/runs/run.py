"""A run: one trained rejector, where it came from, and what it allocates. One folder, complete or absent.

::

    RUN/run.json               the grid point, training settings, how inputs are made, cache and its fingerprint, curve
    RUN/rejector.safetensors   parameters, and mean and deviation of the training features
    RUN/text-DIGEST.safetensors  of text features: the cache's file of vocabulary, weights and directions
    RUN/body.safetensors       of a rejector on pixels: the frozen part of its body, one file for the runs of a grid
    RUN/allocations.parquet    per sample: agent, scores, counterfactual costs, deferral cost, oracle agent

A sweep is a folder of such folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from l2d.data.cache import schema
from l2d.data.cache.reader import CostCache
from l2d.data.errors import CorruptPart, FingerprintMismatch, UsageError
from l2d.data.samples.tokens import token_sizes
from l2d.rejector.costs import CostWeights, Priced
from l2d.rejector.grid import GridPoint
from l2d.rejector.methods import METHODS
from l2d.rejector.rows.pictures import seen
from l2d.rejector.rows.unlabelled import InputRecord
from l2d.rejector.runs.files import BODY_FILE, WEIGHTS_FILE, cache_fingerprint, cache_of, images_of, read_facts
from l2d.rejector.settings import INPUT_OF, TrainConfig
from l2d.rejector.trained import Rejector, rejector_class


@dataclass(frozen=True)
class Run:
    """A run read back: its folder, the rejector, the cache it was trained on, and what it looks at.

    ``input`` is None for runs saved before they kept it: see :func:`input_of`. So is ``seen``, what
    :class:`l2d.rejector.rows.foreign.Foreign` compares inputs with. ``prices`` are the agents', in order, None where
    they are not known. A run that has ``moved`` is at another setting than its files: see
    :func:`l2d.rejector.runs.elsewhere.at_setting`.
    """

    path: Path
    rejector: Rejector
    cache_path: Path | str
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


#: Arrays of runs that have been read, by the digest of their file.
Loaded = dict[str, Mapping[str, Any]]


def load_run(path: Path, loaded: Loaded | None = None, images: Path | None = None) -> Run:
    """Read a run back.

    Args:
        loaded: for several runs at once: those of one fit, which have one file of arrays, share what was read of it.
        images: the folder of its images, where that has moved. A run that looks at no image files does without.

    Raises:
        CorruptPart: a file of the run is missing, damaged, or from another version.
    """
    facts = read_facts(path)
    try:
        point = facts["point"]
        beta = point["beta"]
        looks_at = None
        if "input" in facts:
            looks_at = InputRecord(**facts["input"], text=schema.text_file(path, facts["input"]["made"]))
        kind = rejector_class(METHODS[point["method"]].trainer)
        training = {**facts["training"]}
        if training.get("images") is not None:
            training["images"] = images_of(path, facts) if images is None else str(images)
        state = _arrays(path, facts["digests"], kind.arrays, {} if loaded is None else loaded)
        rejector = kind.from_facts(
            facts,
            point=GridPoint(
                **{
                    **point,
                    "weights": CostWeights(tuple(point["weights"].items())),
                    "beta": tuple(map(tuple, beta)) if isinstance(beta, list) else beta,
                    "query_costs": tuple(point["query_costs"]),
                }
            ),
            config=TrainConfig(**training),
            state=state,
            best_epoch=facts["best_epoch"],
            validation_risk=facts["validation_risk"],
            history=[tuple(row) for row in facts["history"]],
            sizes=token_sizes(looks_at.made) if looks_at is not None else (),
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


def _arrays(path: Path, digests: dict[str, str], arrays: str, loaded: Loaded) -> Mapping[str, Any]:
    key = "+".join([digests[WEIGHTS_FILE], digests.get(BODY_FILE, "")])
    if key not in loaded:
        load = import_module(f"safetensors.{arrays}").load
        state = load((path / WEIGHTS_FILE).read_bytes())
        if BODY_FILE in digests:
            state |= load((path / BODY_FILE).read_bytes())
        loaded[key] = state
    return loaded[key]


#: Caches that have been opened, and their fingerprints, by what of them a run uses.
Opened = dict[tuple, tuple[CostCache, dict[str, str]]]


def open_cache(run: Run, opened: Opened | None = None) -> CostCache:
    """The cache a run was trained on, with the agents it was trained on (others may have been added since).

    Args:
        opened: for several runs at once: what has been opened for those before is taken as it was then.

    Raises:
        FingerprintMismatch: samples or costs are others now; names whose.
        UsageError: the cache is not where it was.
    """
    if isinstance(run.cache_path, Path) and not schema.cache_file(run.cache_path).is_file():
        raise UsageError(
            f"run {run.point.run_id} was trained on a cache that is not there any more",
            where=run.cache_path,
            hint="move it back, or keep run and cache in the same places relative to each other",
        )
    key = (run.cache_path, tuple(run.agents), run.point.paid is not None)
    opened = {} if opened is None else opened
    if key not in opened:
        cache = CostCache(run.cache_path).only(run.agents).with_prices(run.point.paid is not None)
        cache.require_complete()
        opened[key] = cache, cache_fingerprint(cache)
    cache, now = opened[key]
    before = run.cache_fingerprint
    changes: dict[str, tuple[object, object]] = {n: (before.get(n), now[n]) for n in now if now[n] != before.get(n)}
    if changes:
        raise FingerprintMismatch(
            f"the cache that run {run.point.run_id} was trained on",
            changes,
            where=run.cache_path,
            hint="the cache has been built again since: train the run again",
        )
    return seen(cache, run.rejector.config)


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
