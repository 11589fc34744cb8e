"""A trained rejector at work: new inputs, without labels, allocated to agents batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from l2d.data.cache import store
from l2d.data.cache.integrity import sha256_of
from l2d.data.errors import UsageError
from l2d.data.results import Shown
from l2d.data.samples.features import FeatureEncoder
from l2d.rejector.best.trained import TrainedBest
from l2d.rejector.losses import allocate
from l2d.rejector.policies.price_rule import Policy, read_policy
from l2d.rejector.policies.scored import unguarded
from l2d.rejector.rows.foreign import Foreign
from l2d.rejector.rows.unlabelled import Inputs, open_inputs
from l2d.rejector.runs.elsewhere import Beta, at_setting, guard_in_words
from l2d.rejector.runs.run import WEIGHTS_FILE, Run, input_of, load_run, one_run
from l2d.rejector.training.rejector import ROWS_AT_ONCE

READ_AT_ONCE = 1 << 22  # numbers of a batch that is read: 16 MiB as features
ACTIVATIONS_AT_ONCE = 1 << 24  # of the layer of a network that has most, about


@dataclass(frozen=True)
class RouteReport(Shown):
    """How many inputs each agent gets, how many none can be asked about; in how many seconds; what their ids are.

    ``foreign``: in what the inputs are unlike training's, see :meth:`l2d.rejector.rows.foreign.Foreign.findings`.
    ``setting``: query costs and task weights where they are not the run's, and what the guard says there.
    """

    agents: list[str]
    counts: list[int]
    seconds: float
    ids: str
    nobody: int = 0
    foreign: list[dict[str, Any]] = field(default_factory=list)
    setting: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """``agents``: :meth:`rows`; and what else is known, ``unlike_training`` as in rows/foreign.py."""
        return {
            "samples": self.samples, "seconds": self.seconds, "ids": self.ids, "nobody": self.nobody,
            "agents": self.rows(), "unlike_training": self.foreign, "setting": self.setting,
        }  # fmt: skip

    @property
    def title(self) -> str:
        return f"{self.samples:,} inputs in {self.seconds:.1f} s, {self.samples / self.seconds:,.0f} a second"

    @property
    def samples(self) -> int:
        return sum(self.counts) + self.nobody

    def rows(self) -> list[dict]:
        """One row an agent: how many inputs, and their share (None without inputs)."""
        return [
            {"agent": agent, "samples": count, "share": count / self.samples if self.samples else None}
            for agent, count in zip(self.agents, self.counts, strict=True)
        ]


def route(
    run: Path,
    source: Path,
    out: Path,
    *,
    id_column: str | None = None,
    policy: Path | None = None,
    without: Collection[str] = (),
    beta: Beta | None = None,
    weights: dict[str, float] | None = None,
    overwrite: bool = False,
    progress: Callable[[int | None], Callable[[int], None]] | None = None,
) -> RouteReport:
    """Allocate inputs and write ``sample_id, agent_index, agent, score_J..`` in their order and in bounded memory.

    The features of an input are made as those of the training samples were, so rows of a training table get the
    allocations that ``allocations.parquet`` has for them, and samples of a cache too where agents are unavailable. An
    input for which nobody is available goes to nobody: ``agent_index`` and ``agent`` are null.

    Args:
        run: a run's folder; its cache need not be there any more.
        source: a Parquet or CSV file, or a cost cache, see :func:`l2d.rejector.rows.unlabelled.open_inputs`.
        out: a Parquet file, or a CSV file by its suffix. It appears whole or not at all.
        id_column: whose values are the sample ids.
        policy: a file that ``l2d policy`` saved; allocates by predicted cost plus price in place of the scores alone.
        without: agents that cannot be asked now; nothing goes to them.
        beta, weights: query costs and task weights in place of the run's, where its scores are costs, see
            :func:`l2d.rejector.runs.elsewhere.at_setting`. A policy has its own.
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
    if out.exists() and (not overwrite or out.is_dir() or (source.exists() and out.samefile(source))):
        raise UsageError("this is there already", where=out, hint="give another --out, or type --overwrite")
    if policy is not None and (beta is not None or weights is not None):
        raise UsageError(
            "--policy with --beta or --lambda: a policy has the query costs and weights that it was made for",
            where=policy,
            hint="make it at those: l2d policy RUN --beta … --save FILE",
        )
    opened, started = load_run(one_run(run)), time.perf_counter()
    opened.rejector.check_routable()
    opened = at_setting(opened, beta, weights)
    at_hand = _at_hand(opened.agents, without)
    rule = None if policy is None else read_policy(policy, weights=sha256_of(opened.path / WEIGHTS_FILE))
    if rule is not None and isinstance(opened.rejector, TrainedBest):
        free = opened.rejector.judged_at(rule.point_of(opened.point))
        opened = replace(opened, rejector=free, moved=True)
    width = len(opened.rejector.state["feature_mean"])
    failures = opened.rejector.config.failures
    inputs = open_inputs(
        source,
        input_of(opened),
        width,
        rows_at_once=max(1, min(ROWS_AT_ONCE, READ_AT_ONCE // width)),
        id_column=id_column,
        unseen=opened.rejector.state["feature_mean"].numpy() if failures == "worst" else None,
        agents=opened.agents,
        failures=failures,
    )
    looks_at = input_of(opened)
    encoder = looks_at.encoder if isinstance(looks_at.encoder, FeatureEncoder) else None
    names = encoder.names if encoder else looks_at.made.get("names") or [f"feature {place}" for place in range(width)]
    foreign = Foreign(opened.seen, encoder, names, opened.agents)
    counts = np.zeros(len(opened.agents) + 1, np.int64)  # the last: nobody
    advance = progress(inputs.samples) if progress else lambda done: None
    kind = allocation_schema(len(opened.agents), classes=opened.rejector.has_classifier)
    batches = _allocations(opened, inputs, at_hand, kind, counts, advance, rule, foreign)
    if not store.commit_batches(out, kind, batches, {"run_id": opened.point.run_id}, replace=overwrite):
        raise UsageError("this has appeared meanwhile", where=out, hint="give another --out, or type --overwrite")
    *of_agents, nobody = counts.tolist()
    same = not opened.moved and at_hand.all() and not nobody
    found = foreign.findings(of_agents if rule is None and same else None)
    seconds = time.perf_counter() - started
    return RouteReport(opened.agents, of_agents, seconds, inputs.ids, nobody, found, _moved(opened, rule))


def _moved(run: Run, rule: Policy | None) -> dict[str, Any] | None:
    """The setting of a run that is at another than its files, and what its guard says there."""
    if not run.moved or rule is not None:
        return None
    return {
        "query_costs": dict(zip(run.agents, run.point.query_costs, strict=True)),
        "lambda": dict(run.point.weights.by_task),
        "guard": guard_in_words(run),
    }


def _at_hand(agents: list[str], without: Collection[str]) -> np.ndarray:
    """Who can be asked now, bool (agents,)."""
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
    run: Run,
    inputs: Inputs,
    at_hand: np.ndarray,
    kind: pa.Schema,
    counts: np.ndarray,
    advance: Callable[[int], None],
    rule: Policy | None,
    foreign: Foreign,
) -> Iterator[pa.RecordBatch]:
    """Record batches of :func:`allocation_schema`; adds to ``counts`` (agents + 1,) on the way."""
    names = pa.array(run.agents)
    rejector = run.rejector if rule is None else unguarded(run.rejector)
    width, hidden = len(rejector.state["feature_mean"]), rejector.config.hidden
    rows_at_once = max(1, ACTIVATIONS_AT_ONCE // (width * hidden))
    if isinstance(rejector, TrainedBest):  # has no activations, and takes many rows in a fraction of the time
        rows_at_once = ROWS_AT_ONCE
    for ids, features, answering in inputs.batches:
        foreign.see(features)
        parts = torch.from_numpy(features).split(rows_at_once)
        scores = torch.cat([rejector.scores(part) for part in parts])
        available = np.tile(at_hand, (len(scores), 1)) if answering is None else answering & at_hand
        if rejector.has_classifier:  # which answers where the cached model does not
            available[:, 0] = at_hand[0]
        nobody = ~available.any(axis=1)
        available[nobody] = True  # what is chosen there does not count
        if rule is None:
            chosen = allocate(scores, torch.from_numpy(available)).numpy()
        else:
            chosen = rule.allocate(scores.numpy(), available)
        counts += np.bincount(np.where(nobody, len(names), chosen), minlength=len(counts))
        agents = pa.array(chosen, pa.int32(), mask=nobody)
        columns = [ids, agents, names.take(agents)]
        columns += [pa.array(scores[:, agent].numpy()) for agent in range(len(names))]
        if rejector.has_classifier:
            chances = torch.cat([rejector.probabilities(part) for part in parts])
            columns.append(pa.array(chances.numpy().argmax(axis=1), pa.int32()))
        yield pa.record_batch(columns, schema=kind)
        advance(len(ids))
