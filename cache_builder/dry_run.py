"""What a build would do and why, with time and bytes estimated from one measured batch of each agent."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa

from l2d.cache_builder.agents import Agent
from l2d.cache_builder.answers import failures_in
from l2d.cache_builder.asking import Asker
from l2d.cache_builder.plan import FUNDAMENTAL, changes_of_agents, changes_of_dataset
from l2d.cache_builder.prepare import prepare, wanted_of
from l2d.cache_builder.recipe import Recipe
from l2d.cache_builder.trial import try_agents
from l2d.data.cache import schema, store
from l2d.data.cache.reader import CacheRecord
from l2d.data.device import resolve_device
from l2d.data.errors import AgentFailure
from l2d.data.samples.dataset import Dataset


def dry_run(recipe: Recipe, out: Path, *, device: str = "auto", retry_failures: bool = False) -> list[dict]:
    """One row an agent: parts that are there, samples to ask, why, and the estimated seconds and bytes.

    Every agent with something to do is asked one batch, to measure it. Where that is not possible without building (an
    agent that is still to be fitted, an average of answers that are not there yet) the estimates are None.

    Raises:
        UsageError, DataError, AgentFailure: what the build itself would refuse before it starts.
    """
    out, device = Path(out), resolve_device(device)
    dataset, agents, fingerprints, record = prepare(recipe, out)
    exists = schema.cache_file(out).is_file()
    of_dataset = changes_of_dataset(record, out) if exists else {}
    changed = changes_of_agents(agents, fingerprints, out) if exists else {}
    everything = of_dataset if of_dataset.keys() & FUNDAMENTAL else {}
    try_agents(recipe, dataset, agents, out, device, num_chunks=record.num_chunks, again=bool(everything))
    rows = []
    if of_dataset:
        row = {"agent": "(samples)", "parts there": "", "to ask": 0}
        rows.append({**row, "why": f"refused without --overwrite: {_describe(of_dataset)}", "seconds": 0.0, "bytes": 0})
    for agent in agents:
        name = agent.config.name
        chunks = range(record.num_chunks)
        done = [k for k in chunks if schema.predictions_part(out, name, k).is_file()]
        costed = [k for k in chunks if schema.costs_part(out, name, k, record.cost_digest).is_file()]
        changes = everything or changed.get(name, {})
        todo = list(chunks) if changes else [k for k in chunks if k not in done]
        samples = sum(len(record.chunk_rows(k)) for k in todo)
        why = _why(changes, done, todo, costed, record)
        if retry_failures and not changes:
            parts = (store.read_table(schema.predictions_part(out, name, k), ["failure"]) for k in done)
            failed = sum(failures_in(part) for part in parts)
            samples, why = samples + failed, f"{failed} recorded failures; {why}" if failed else why
        seconds, size = 0.0, 0
        if samples:
            try:
                seconds, size = _measure(agent, dataset, record, recipe, out, device, samples)
            except AgentFailure as failure:
                seconds, size, why = None, None, f"{why}; it fails on its first batch: {failure.what}"
        rows.append(
            {
                "agent": name,
                "parts there": f"{len(done)}/{record.num_chunks}",
                "to ask": samples,
                "why": why,
                "seconds": seconds,
                "bytes": size,
            }
        )
    return rows


def _why(changes: dict, done: list[int], todo: list[int], costed: list[int], record: CacheRecord) -> str:
    if changes:
        return f"refused without --overwrite: {_describe(changes)}"
    if todo:
        return "new agent" if not done else f"{len(todo)} parts are missing"
    if len(costed) < record.num_chunks:
        return "costs alone: the cost table changed or parts of it are missing"
    return "complete"


def _describe(changes: dict[str, tuple[object, object]]) -> str:
    return "; ".join(f"{field} was {old!r}, now {new!r}" for field, (old, new) in changes.items())


def _measure(
    agent: Agent, dataset: Dataset, record: CacheRecord, recipe: Recipe, out: Path, device: str, samples: int
) -> tuple[float | None, int | None]:
    """Seconds and bytes for this number of samples, by asking the first batch once."""
    from safetensors.numpy import load_file

    frozen_file = schema.frozen_file(out, agent.config.name)
    to_fit = type(agent).freeze is not Agent.freeze and not frozen_file.is_file()
    if agent.needs or to_fit:
        return None, None
    agent.load(load_file(frozen_file) if frozen_file.is_file() else None, dataset, device)
    rows = range(min(recipe.build.batch_size, len(dataset)))
    asker = Asker(
        agent,
        dataset,
        wanted_of(agent, recipe),
        batch_size=recipe.build.batch_size,
        record_failures=False,
        advance=lambda done: None,
    )
    start = time.perf_counter()
    answers = asker.ask(rows, {})
    seconds = time.perf_counter() - start
    ids = pa.array(dataset.ids[rows.start : rows.stop], pa.string())
    costs = recipe.costs.compute(answers, dataset.batch(rows), len(dataset.classes), agent.charged)
    written = (answers.to_columns(), {name: pa.array(values) for name, values in costs.items()})
    size = sum(store.table_bytes(pa.table({"sample_id": ids, **columns})) for columns in written)
    share = samples / len(rows)
    return round(seconds * share, 3), round(size * share)
