"""A trained rejector at work: new inputs, without labels, allocated to agents batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from l2d.data.cache import store
from l2d.data.cache.columns import number_column, text_column
from l2d.data.cache.reader import CostCache
from l2d.data.errors import UsageError
from l2d.data.results import Shown
from l2d.data.samples.features import FeatureEncoder
from l2d.rejector.rows.foreign import Foreign
from l2d.rejector.rows.photographs import Showing, open_photographs, other_images, photographs_at
from l2d.rejector.rows.unlabelled import Inputs, open_inputs
from l2d.rejector.runs.files import cache_of, images_of, one_run
from l2d.rejector.served import Served, open_served

if TYPE_CHECKING:
    from l2d.rejector.runs.elsewhere import Beta

ROWS_AT_ONCE = 65_536
READ_AT_ONCE = 1 << 21  # numbers of a batch that is read: 8 MiB as features, several times that as text


@dataclass(frozen=True)
class RouteReport(Shown):
    """How many inputs each agent gets, how many none can be asked about; in how many seconds; what their ids are.

    ``foreign``: in what the inputs are unlike training's, see :meth:`l2d.rejector.rows.foreign.Foreign.findings`.
    ``setting``: query costs and task weights where they are not the run's, and what the guard says there.
    ``calibration``: what the file that corrects the predicted costs says of itself.
    ``passed_over``: names of image files of formats that are not read.
    """

    agents: list[str]
    counts: list[int]
    seconds: float
    ids: str
    unrouted: int = 0
    foreign: list[dict[str, Any]] = field(default_factory=list)
    setting: dict[str, Any] | None = None
    calibration: str | None = None
    passed_over: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """``agents``: :meth:`rows`; and what else is known, ``unlike_training`` as in rows/foreign.py."""
        return {
            "samples": self.samples, "seconds": self.seconds, "ids": self.ids, "unrouted": self.unrouted,
            "agents": self.rows(), "unlike_training": self.foreign, "setting": self.setting,
            "calibration": self.calibration, "passed_over": self.passed_over,
        }  # fmt: skip

    @property
    def title(self) -> str:
        return f"{self.samples:,} inputs in {self.seconds:.1f} s, {self.samples / self.seconds:,.0f} a second"

    @property
    def samples(self) -> int:
        return sum(self.counts) + self.unrouted

    def rows(self) -> list[dict]:
        """One row an agent: how many inputs, and their share (None without inputs)."""
        return [
            {"agent": agent, "samples": count, "share": count / self.samples if self.samples else None}
            for agent, count in zip(self.agents, self.counts, strict=True)
        ]


def route(
    run: Path,
    source: Path | str | Sequence[Path | str],
    out: Path,
    *,
    id_column: str | None = None,
    policy: Path | None = None,
    without: Collection[str] = (),
    beta: Beta | None = None,
    weights: dict[str, float] | None = None,
    calibration: Path | None = None,
    showing: Showing | None = None,
    images: Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int | None], Callable[[int], None]] | None = None,
) -> RouteReport:
    """Allocate inputs and write ``sample_id, agent_index, agent, score_J..`` in their order and in bounded memory.

    The features of an input are made as those of the training samples were, so rows of a training table get the
    allocations that ``allocations.parquet`` has for them, and samples of a cache too where agents are unavailable. An
    input for which no agent is available goes to none: ``agent_index`` and ``agent`` are null.

    Args:
        run: a run's folder; its cache need not be there any more.
        source: a Parquet or CSV file, or a cost cache, see :func:`l2d.rejector.rows.unlabelled.open_inputs`; or
            photographs, see :func:`l2d.rejector.rows.photographs.open_photographs`; of these also several paths.
        out: a Parquet file, or a CSV file by its suffix. It appears whole or not at all.
        id_column: whose values are the sample ids.
        policy: a file that ``l2d policy`` saved; allocates by predicted cost plus price in place of the scores alone.
        without: agents that cannot be asked now; nothing goes to them.
        beta, weights: query costs and task weights in place of the run's, where its scores are costs, see
            :func:`l2d.rejector.runs.elsewhere.at_setting`. A policy has its own.
        calibration: a file that ``l2d recalibrate`` wrote: corrects the predicted costs.
        showing: how an agent is run on photographs, where the run looks at what it makes of them.
        images: the folder with a cache's image files, for a rejector on pixels; None: the run's, where it has learnt
            from files and the cache keeps no images of that size.
        overwrite: replace ``out`` if it is there.
        progress: called with the number of inputs (None where that is not known); returns a function to be told of
            inputs done.

    Raises:
        UsageError: there is no run or several, ``out`` is there already or has another suffix, the policy is another
            run's, ``without`` names an agent that the run has not, or all of them, or the run has no other setting.
        DataError: as :func:`l2d.rejector.rows.unlabelled.open_inputs`, also for values that cannot be used.
        CorruptPart: the run is damaged.
    """
    if out.suffix.lower() not in (".parquet", ".csv"):
        raise UsageError("allocations are written as .parquet or .csv", where=out, hint="give --out such a name")
    if out.exists() and (
        not overwrite or out.is_dir() or (isinstance(source, Path) and source.exists() and out.samefile(source))
    ):
        raise UsageError("this is there already", where=out, hint="give another --out, or type --overwrite")
    if policy is not None and (beta is not None or weights is not None):
        raise UsageError(
            "--policy with --beta or --lambda: a policy has the query costs and weights that it was made for",
            where=policy,
            hint="make it at those: l2d policy RUN --beta … --save FILE",
        )
    started = time.perf_counter()
    opened = open_served(one_run(run), policy=policy, beta=beta, weights=weights, calibration=calibration)
    at_hand = _at_hand(opened.agents, without)
    width, looks_at = len(opened.mean), opened.looks_at
    unseen = opened.mean if opened.failures == "worst" else None
    photographs = photographs_at(source)
    if photographs is not None:
        if id_column is not None:
            raise UsageError(f"--id {id_column}: photographs are called by their files' names", hint="leave it out")
        lies = cache_of(one_run(run), opened.facts)
        place = lies if isinstance(lies, Path) else None
        if images is not None:
            raise UsageError(f"--images {images}: the input has its images", hint="it is for a cache: leave it out")
        inputs = open_photographs(*photographs, looks_at, width, cache=place, unseen=unseen, showing=showing)
    else:
        assert isinstance(source, Path | str)
        inputs = open_inputs(
            source,
            looks_at,
            width,
            rows_at_once=max(1, min(ROWS_AT_ONCE, READ_AT_ONCE // width)),
            id_column=id_column,
            unseen=unseen,
            agents=opened.agents,
            failures=opened.failures,
            images=_images(one_run(run), opened, source, images),
        )
    encoder = looks_at.encoder if isinstance(looks_at.encoder, FeatureEncoder) else None
    names = encoder.names if encoder else looks_at.made.get("names") or [f"feature {place}" for place in range(width)]
    foreign = Foreign(opened.seen, encoder, names, opened.agents)
    counts = np.zeros(len(opened.agents) + 1, np.int64)  # the last: no agent
    advance = progress(inputs.samples) if progress else lambda done: None
    kind = allocation_schema(len(opened.agents), classes=opened.classes is not None)
    batches = _allocations(opened, inputs, at_hand, kind, counts, advance, foreign)
    if not store.commit_batches(out, kind, batches, {"run_id": opened.run_id}, replace=overwrite):
        raise UsageError("this has appeared meanwhile", where=out, hint="give another --out, or type --overwrite")
    *of_agents, unrouted = counts.tolist()
    found = foreign.findings(of_agents if opened.follows_scores and at_hand.all() and not unrouted else None)
    seconds = time.perf_counter() - started
    advice = None if opened.calibration is None else opened.calibration.advice
    passed = other_images(source) if photographs is not None else []
    return RouteReport(opened.agents, of_agents, seconds, inputs.ids, unrouted, found, opened.setting, advice, passed)


def _images(run: Path, opened: Served, source: Path | str, images: Path | None) -> Path | None:
    """Where the image files of a cache lie; None where they are not looked at."""
    is_cache = isinstance(source, str) or source.is_dir()
    if images is not None:
        if opened.looks_at.column != "image" or not is_cache:
            what = "tables name their images" if opened.looks_at.column == "image" else "this run looks at no images"
            raise UsageError(f"--images {images}: {what}", hint="it is for caches, and runs on pixels: leave it out")
        return images
    learnt_from = images_of(run, opened.facts) if opened.looks_at.column == "image" and is_cache else None
    if learnt_from is None:
        return None
    kept: Mapping[str, Any] = CostCache(source).record.inputs
    return None if kept.get("image", {}).get("size") == opened.looks_at.made["size"] else Path(learnt_from)


def _at_hand(agents: list[str], without: Collection[str]) -> np.ndarray:
    """Which agents can be asked now, bool (agents,)."""
    for name in without:
        if name not in agents:
            raise UsageError(f"--without {name}: the run has no such agent", hint=f"it has {', '.join(agents)}")
    at_hand = np.array([name not in without for name in agents])
    if not at_hand.any():
        raise UsageError("--without leaves no agent to ask", hint="leave one agent")
    return at_hand


def allocation_schema(num_agents: int, *, classes: bool = False) -> pa.Schema:
    """Columns of routed inputs: of a run's ``allocations.parquet``, those that need no costs.

    With ``classes`` that of the rejector's own classifier too, ``pred_cla``.
    """
    scores = [(f"score_{agent}", pa.float32()) for agent in range(num_agents)]
    scores += [("pred_cla", pa.int32())] if classes else []
    return pa.schema([("sample_id", pa.string()), ("agent_index", pa.int32()), ("agent", pa.string()), *scores])


def _allocations(
    run: Served,
    inputs: Inputs,
    at_hand: np.ndarray,
    kind: pa.Schema,
    counts: np.ndarray,
    advance: Callable[[int], None],
    foreign: Foreign,
) -> Iterator[pa.RecordBatch]:
    """Record batches of :func:`allocation_schema`; adds to ``counts`` (agents + 1,) on the way."""
    for ids, features, answering in inputs.batches:
        foreign.see(features)
        scores = run.scores(features)
        available = np.tile(at_hand, (len(scores), 1)) if answering is None else answering & at_hand
        if run.classes is not None:  # which answers where the cached model does not
            available[:, 0] = at_hand[0]
        unasked = np.asarray(~available.any(axis=1))
        available[unasked] = True  # what is chosen there does not count
        chosen = run.choose(scores, available)
        counts += np.bincount(np.where(unasked, len(run.agents), chosen), minlength=len(counts))
        columns = [ids, number_column(chosen.astype(np.int32), unasked), text_column(run.agents, chosen, unasked)]
        columns += [number_column(column) for column in scores.T]
        if run.classes is not None:
            columns.append(number_column(run.classes(features).astype(np.int32)))
        yield pa.record_batch(columns, schema=kind)
        advance(len(ids))
