"""What a build has to do: the recipe compared with what the cache already holds. Nothing here asks an agent."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from data import schema, store
from data.cache import AgentRecord, CacheRecord
from data.dataset import Dataset
from data.errors import FingerprintMismatch, UsageError

from .agents import Agent
from .recipe import Recipe

OVERWRITE_HINT = "build into another folder, or type --overwrite to discard what changed and build it again"

#: Fields an agent's fingerprint gains while it is built: weights it froze, and agents it averages.
LATE_FIELDS = ("frozen", "asked")


def make_record(recipe: Recipe, dataset: Dataset) -> CacheRecord:
    """``cache.json`` as this recipe would write it."""
    return CacheRecord(
        name=recipe.name,
        num_samples=len(dataset),
        chunk_size=recipe.build.chunk_size,
        tasks=recipe.costs.tasks,
        classes=list(dataset.classes),
        unit_reg=dataset.unit_reg,
        inputs=dataset.inputs,
        keep=list(dataset.keep),
        costs=recipe.costs.describe(),
        defaults=recipe.defaults.model_dump(by_alias=True),
        fingerprint=dataset.fingerprint(),
    )


def agent_record(agent: Agent, index: int, fingerprint: dict) -> AgentRecord:
    """``agent.json`` as this recipe would write it."""
    config = agent.config
    return AgentRecord(
        name=config.name,
        index=index,
        kind=config.kind,
        role=config.role,
        price=0.0 if index == 0 else config.price,
        description=config.description,
        queries=list(agent.needs) or [config.name],
        fingerprint=fingerprint,
    )


def changes_of_dataset(record: CacheRecord, out: Path) -> dict[str, tuple[object, object]]:
    """Fields in which the cache at ``out`` was built from another dataset: name -> (cached, now)."""
    old = store.read_json(schema.cache_file(out))
    changes = differences(old.get("fingerprint", {}), record.fingerprint)
    for name in ("schema_version", "chunk_size", "keep"):
        if old.get(name) != getattr(record, name):
            changes[name] = (old.get(name), getattr(record, name))
    return changes


def changes_of_agents(
    agents: list[Agent], fingerprints: dict[str, dict], out: Path
) -> dict[str, dict[str, tuple[object, object]]]:
    """Agents that the cache at ``out`` holds from something else: name -> field -> (cached, now)."""
    known = {record.name: record for record in recorded_agents(out)}
    found: dict[str, dict[str, tuple[object, object]]] = {}
    for index, agent in enumerate(agents):
        name = agent.config.name
        old = known.pop(name, None)
        if old is None:
            continue
        changes = differences(old.fingerprint, fingerprints[name])
        for field in LATE_FIELDS:
            changes.pop(field, None)
        if old.index != index:
            changes["position in the recipe"] = (old.index, index)
        if changes:
            found[name] = changes
    gone = {name: {"in the recipe": (True, False)} for name in known}
    return {**gone, **found}  # what left the recipe first: it explains why others moved


def settle(
    record: CacheRecord, agents: list[Agent], fingerprints: dict[str, dict], out: Path, *, overwrite: bool
) -> None:
    """Refuse to go on in a cache built from something else; with ``overwrite`` discard what differs.

    Raises:
        FingerprintMismatch: something differs and ``overwrite`` is False. Nothing is touched.
        UsageError: the folder holds something that is no cache.
    """
    if not schema.cache_file(out).is_file():
        strangers = [entry.name for entry in out.iterdir() if not entry.name.endswith(store.TEMPORARY_SUFFIX)]
        leftovers = overwrite and set(strangers) <= {"samples", "agents"}  # of an --overwrite that was killed
        if strangers and not leftovers:
            raise UsageError(
                f"this folder holds {strangers[0]!r}, so it is no cost cache", where=out, hint="give an empty folder"
            )
        discard_cache(out)
        return
    changes = changes_of_dataset(record, out)
    if changes:
        if not overwrite:
            raise FingerprintMismatch("the dataset", changes, where=out, hint=OVERWRITE_HINT)
        discard_cache(out)
        return
    for name, changes in changes_of_agents(agents, fingerprints, out).items():
        if not overwrite:
            raise FingerprintMismatch(f"agent {name!r}", changes, where=out, hint=OVERWRITE_HINT)
        discard_agent(out, name)


def recorded_agents(out: Path) -> list[AgentRecord]:
    """Agents the cache holds, complete or not."""
    return [AgentRecord(**store.read_json(file)) for file in sorted((out / "agents").glob("*/agent.json"))]


def write_record(file: Path, record: CacheRecord | AgentRecord) -> None:
    """Write a record if it is new or has changed; a build that changes nothing writes nothing."""
    value = store.plain(asdict(record))
    if not file.is_file():
        store.commit_json(file, value)
    elif store.read_json(file) != value:
        store.commit_json(file, value, replace=True)


def discard_cache(out: Path) -> None:
    """Remove a cache's own files, and nothing else, so that it can be built afresh."""
    schema.cache_file(out).unlink(missing_ok=True)  # first: without it, what is left is no cache
    for folder in ("samples", "agents"):
        shutil.rmtree(out / folder, ignore_errors=True)


def discard_agent(out: Path, name: str) -> None:
    """Remove one agent's folder, its record first."""
    schema.agent_file(out, name).unlink(missing_ok=True)
    shutil.rmtree(schema.agent_folder(out, name), ignore_errors=True)


def differences(old: dict, new: dict) -> dict[str, tuple[object, object]]:
    """Fields that differ: name -> (old, new), with ``new`` as JSON stores it."""
    new = store.plain(new)
    return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}
