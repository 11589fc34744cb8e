"""What a build has to do: the recipe compared with what the cache already holds. Nothing here asks an agent."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from l2d.cache_builder.agents import Agent
from l2d.cache_builder.recipe import Recipe
from l2d.data.cache import schema, store
from l2d.data.cache.reader import AgentRecord, CacheRecord
from l2d.data.cache.temporary import TEMPORARY_SUFFIX
from l2d.data.errors import CorruptPart, FingerprintMismatch, UsageError
from l2d.data.samples.dataset import Dataset

OVERWRITE_HINT = "build into another folder, or type --overwrite to discard what changed and build it again"
KEEP_HINT = ", or --keep-answers {} to keep what it has answered"

#: Fields of an agent's record that stand in ``agent.json`` only where they say something.
WHERE_SET = ("seconds", "paid", "paid_each", "partial", "lent", "charged", "unit_paid", "license")

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
        unit_paid=recipe.unit_paid,
        license=recipe.license,
        inputs=dataset.inputs | rejector_inputs(recipe, dataset),
        keep=list(dataset.keep),
        agents=[agent.name for agent in recipe.agents],
        costs=recipe.costs.describe(),
        defaults=recipe.defaults.model_dump(by_alias=True),
        fingerprint=dataset.fingerprint(),
    )


def rejector_inputs(recipe: Recipe, dataset: Dataset) -> dict[str, dict]:
    """Inputs of the rejector that the samples' source does not hold: what the model shows of itself, small images."""
    inputs: dict[str, dict] = {}
    model = recipe.agents[0]
    if model.features:
        inputs["features"] = {"kind": "dense", "agent": model.name, "of": list(model.features)}
    if dataset.image_size is not None:
        inputs["image"] = {"kind": "image", "size": dataset.image_size, **dataset.inputs.get("image", {})}
    return inputs


#: What is measured of an agent, by names that ``price`` may have.
MEASURES = ("gflops", "seconds", "paid")


def measured_in(record: dict) -> dict[str, float]:
    """What an ``agent.json`` says was measured: name -> value, of :data:`MEASURES`."""
    return {name: record[name] for name in MEASURES if record.get(name) is not None}


def agent_record(agent: Agent, index: int, fingerprint: dict, measured: dict[str, float | None]) -> AgentRecord:
    """``agent.json`` as this recipe would write it.

    Asking the model is free, unless the recipe says what it is paid, or ``free = false``.

    A price that is not known, or not yet, is None and never 0.

    Args:
        measured: those of :data:`MEASURES` that are known by now.
    """
    config = agent.config
    each = config.paid if isinstance(config.paid, int | float) else None
    known = measured if each is None else {**measured, "paid": float(each)}
    price = known.get(config.price) if isinstance(config.price, str) else config.price
    free = index == 0 and config.paid is None if config.free is None else config.free
    return AgentRecord(
        name=config.name,
        index=index,
        kind=config.kind,
        role=config.role,
        price=0.0 if free else price,
        description=config.description,
        queries=_queries(agent),
        fingerprint=fingerprint,
        partial=agent.partial,
        lent=dict(agent.lenders),
        charged=dict(agent.charged),
        paid_each=None if each is None or "paid" in measured else float(each),
        **{name: measured.get(name) for name in MEASURES},
    )


def _queries(agent: Agent) -> list[str]:
    """Agents whose query costs an answer takes: those it averages, or itself, and those that answer for it."""
    averaged = list(getattr(agent.config, "of", [])) or [agent.config.name]
    return averaged + [name for name in agent.needs if name not in averaged]


def changes_of_dataset(record: CacheRecord, out: Path) -> dict[str, tuple[object, object]]:
    """Fields in which the cache at ``out`` was built from another dataset: name -> (then, now)."""
    old = store.read_json(schema.cache_file(out))
    changes = differences(old.get("fingerprint", {}), record.fingerprint)
    for name in ("schema_version", "chunk_size", "keep"):
        if old.get(name) != getattr(record, name):
            changes[name] = (old.get(name), getattr(record, name))
    return changes


#: Changes after which no answer belongs to its sample any more. After any other, only what an agent reads counts.
FUNDAMENTAL = {"samples", "ids_and_order", "schema_version", "chunk_size"}


def is_asked(out: Path, agent: str) -> bool:
    """Whether a cache holds any answer of an agent. Without one there is nothing to lose."""
    folder = schema.predictions_part(out, agent, 0).parent
    return folder.is_dir() and any(folder.glob("*.parquet"))


def changes_of_agents(
    agents: list[Agent], fingerprints: dict[str, dict], out: Path
) -> dict[str, dict[str, tuple[object, object]]]:
    """Agents that the cache at ``out`` holds from something else: name -> field -> (then, now).

    An agent's place in the recipe is not part of it: agents may be added, reordered, left out and taken in again. An
    agent that has not answered anything yet cannot have changed: it is asked as it is now.
    """
    found: dict[str, dict[str, tuple[object, object]]] = {}
    for agent in agents:
        name = agent.config.name
        file = schema.agent_file(out, name)
        if not file.is_file():
            folder = schema.agent_folder(out, name)
            if folder.is_dir() and any(folder.rglob("*.parquet")):
                raise CorruptPart(
                    "holds parts but does not say of what",
                    where=folder,
                    hint="restore agent.json, or delete the folder",
                )
            continue
        if not is_asked(out, name):
            continue
        changes = differences(store.read_json(file)["fingerprint"], fingerprints[name])
        for field, (old, _) in list(changes.items()):
            if field in LATE_FIELDS or (field.startswith("column ") and old is None):  # that column was not there
                del changes[field]
        if changes:
            found[name] = changes
    return found


def settle(
    record: CacheRecord,
    agents: list[Agent],
    fingerprints: dict[str, dict],
    out: Path,
    *,
    overwrite: bool,
    keep_answers: frozenset[str],
) -> None:
    """Refuse to go on in a cache built from something else; with ``overwrite`` discard what differs, and no more.

    What is discarded disappears before ``cache.json`` says otherwise, so a kill on the way leaves the cache incomplete.

    Args:
        keep_answers: agents whose answers are kept although they have changed.

    Raises:
        FingerprintMismatch: something differs and ``overwrite`` is False. Nothing is touched.
        UsageError: the folder holds something that is no cache, or ``keep_answers`` names no agent.
    """
    for name in keep_answers:
        if name not in fingerprints:
            raise UsageError(f"there is no agent {name!r} to keep", hint=f"the agents are {', '.join(fingerprints)}")
    if not schema.cache_file(out).is_file():
        strangers = [entry.name for entry in out.iterdir() if not entry.name.endswith(TEMPORARY_SUFFIX)]
        if strangers and not schema.cache_file(out).is_file():  # another builder may have begun meanwhile
            raise UsageError(
                f"this folder holds {strangers[0]!r}, so it is not a cost cache", where=out, hint="give an empty folder"
            )
        if not schema.cache_file(out).is_file():
            return
    changes = changes_of_dataset(record, out)
    agents_changes = changes_of_agents(agents, fingerprints, out)
    overwrite |= not _answered(out)
    kept = {name: agents_changes.pop(name) for name in keep_answers & set(agents_changes)}
    if not overwrite:
        if changes:
            raise FingerprintMismatch("the dataset", changes, where=out, hint=OVERWRITE_HINT)
        for name, fields in agents_changes.items():
            raise FingerprintMismatch(
                f"agent {name!r}", fields, where=out, hint=OVERWRITE_HINT + KEEP_HINT.format(name)
            )
    if changes.keys() & FUNDAMENTAL:
        store.remove(out / "agents")
    if changes:
        store.remove(schema.seal_file(schema.samples_part(out, 0)))
        store.remove(out / "samples")
    for name, fingerprint in fingerprints.items():
        _forget_unasked(out, name, fingerprint)
    for name in agents_changes:
        store.remove(schema.agent_folder(out, name))
    for name in kept:
        file = schema.agent_file(out, name)
        old = store.read_json(file)
        late = {field: old["fingerprint"][field] for field in LATE_FIELDS if field in old["fingerprint"]}
        store.commit_json(file, {**old, "fingerprint": {**fingerprints[name], **late}}, replace=True)


def _answered(out: Path) -> bool:
    """Whether a cache holds any answer at all."""
    return any((out / "agents").glob("*/predictions/*.parquet"))


def _forget_unasked(out: Path, name: str, fingerprint: dict) -> None:
    """Discard what was begun for an agent that has not answered anything and is another by now: weights, a record."""
    file = schema.agent_file(out, name)
    if not file.is_file() or is_asked(out, name):
        return
    changed = differences(store.read_json(file)["fingerprint"], fingerprint)
    if changed.keys() - set(LATE_FIELDS):
        store.remove(schema.agent_folder(out, name))


def write_record(file: Path, record: CacheRecord | AgentRecord) -> None:
    """Write a record if it is new or has changed; a build that changes nothing writes nothing."""
    value = store.plain(asdict(record))
    value = {name: found for name, found in value.items() if found or name not in WHERE_SET}
    if not file.is_file():
        store.commit_json(file, value)
    elif store.read_json(file) != value:
        store.commit_json(file, value, replace=True)


def differences(old: dict, new: dict) -> dict[str, tuple[object, object]]:
    """Fields that differ: name -> (old, new), with ``new`` as JSON stores it."""
    new = store.plain(new)
    return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}
