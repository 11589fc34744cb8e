"""Stage one: for each agent, ask -> costs -> commit, chunk by chunk. What is there already is never asked again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from data import schema, store
from data.cache import CacheRecord
from data.dataset import Dataset
from data.errors import AgentFailure, CorruptPart, DataError, UsageError
from data.integrity import REBUILD_HINT, sha256_of, skeleton_digest
from data.table import load_table

from .agents import Agent, make_agent
from .answers import Answers, dense_array
from .plan import agent_record, discard_agent, make_record, settle, write_record
from .recipe import Recipe


@dataclass
class BuildReport:
    """What a build did, by agent name: samples asked (0 where the cache had every answer) and parts written."""

    asked: dict[str, int] = field(default_factory=dict)
    predictions_written: dict[str, int] = field(default_factory=dict)
    costs_written: dict[str, int] = field(default_factory=dict)
    fitted: list[str] = field(default_factory=list)


Progress = Callable[[str, int], Callable[[int], None]]


def build(
    recipe: Recipe, out: Path, *, device: str = "auto", overwrite: bool = False, progress: Progress | None = None
) -> BuildReport:
    """Build what is missing of a recipe's cost cache. The same call resumes an interrupted one.

    Args:
        recipe: dataset, costs and agents.
        out: the cache's folder.
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda``, ``cuda:1`` …
        overwrite: discard what was built from something else, instead of refusing.
        progress: called with (agent, samples to ask); returns a function to be told of samples done.

    Raises:
        FingerprintMismatch: ``out`` was built from another dataset or agent; nothing is touched.
        AgentFailure: an agent raised or gave a wrong answer; finished chunks are kept.
        DataError: the dataset or the disk is at fault.
        UsageError: recipe, folder or device are not usable.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UsageError("this is a file", where=out, hint="give a folder as --out")
    device = resolve_device(device)
    dataset = load_table(recipe.dataset, recipe.name)
    agents = [make_agent(config) for config in recipe.agents]
    for agent in agents:
        agent.check(dataset, recipe.costs.tasks)  # a wrong recipe is refused before anything is written
    fingerprints = {agent.config.name: agent.fingerprint(dataset) for agent in agents}
    record = make_record(recipe, dataset)
    if out.exists():
        settle(record, agents, fingerprints, out, overwrite=overwrite)
        store.sweep_orphans(out)
    file = schema.cache_file(out)
    if not file.is_file():
        write_record(file, record)
    job = _Build(recipe, dataset, record, out, device, progress or (lambda name, samples: lambda done: None))
    job.write_samples()
    for index, agent in enumerate(agents):
        job.build_agent(agent, index, fingerprints[agent.config.name])
    write_record(file, record)  # a changed cost table takes effect once every agent has its costs
    return job.report


def resolve_device(device: str) -> str:
    """``auto`` becomes ``cuda`` if torch sees one, else ``cpu``.

    Raises:
        UsageError: the device is not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"cannot use device {device!r}: {reason}", hint="try --device cpu") from error
    return device


@dataclass
class _Build:
    """One build under way."""

    recipe: Recipe
    dataset: Dataset
    record: CacheRecord
    out: Path
    device: str
    progress: Progress
    report: BuildReport = field(default_factory=BuildReport)

    def write_samples(self) -> None:
        """The samples table: ids, splits, targets, kept columns and the rejector's inputs."""
        dataset = self.dataset
        parts = [schema.samples_part(self.out, k) for k in range(self.record.num_chunks)]
        for chunk in self._todo(parts):
            path = parts[chunk]
            rows = self.record.chunk_rows(chunk)
            part = slice(rows.start, rows.stop)
            columns: dict[str, pa.Array | pa.ChunkedArray] = {
                "sample_id": pa.array(dataset.ids[part], pa.string()),
                "split": pa.array(dataset.split[part].tolist(), pa.string()),
            }
            for name in ("target_cla", "target_reg"):
                values = getattr(dataset, name)
                if values is not None:
                    columns[name] = pa.array(values[part], schema.TARGET_TYPES[name])
            for name in dataset.keep:
                columns[name] = dataset.columns[name][part].to_arrow()
            columns["features"] = dense_array(dataset.features[part])
            store.commit_table(path, pa.table(columns), self._facts("samples", chunk, dataset.ids[part]))
        self._seal(parts)

    def build_agent(self, agent: Agent, index: int, fingerprint: dict) -> None:
        """Ask one agent what it has not answered yet, and work out the costs that are missing."""
        name = agent.config.name
        self.report.asked[name] = self.report.predictions_written[name] = self.report.costs_written[name] = 0
        if agent.needs:
            fingerprint = {**fingerprint, "asked": self._fingerprints_of(agent.needs)}
            file = schema.agent_file(self.out, name)
            if file.is_file() and store.read_json(file)["fingerprint"].get("asked") != fingerprint["asked"]:
                discard_agent(self.out, name)  # it is made of answers that have changed, and costs nothing to redo
        frozen = self._frozen_arrays(agent)
        if frozen is not None:
            fingerprint = {**fingerprint, "frozen": sha256_of(self._frozen_file(name))[:16]}
        write_record(schema.agent_file(self.out, name), agent_record(agent, index, fingerprint))

        chunks = range(self.record.num_chunks)
        predictions = [schema.predictions_part(self.out, name, k) for k in chunks]
        costs = [schema.costs_part(self.out, name, k, self.record.cost_digest) for k in chunks]
        todo = self._todo(predictions)
        if todo:
            agent.load(frozen, self.dataset, self.device)
            advance = self.progress(name, sum(len(self.record.chunk_rows(k)) for k in todo))
            for chunk in todo:
                self._write_predictions(name, chunk, self._ask(agent, chunk, advance))
        for chunk in self._todo(costs):
            self._write_costs(name, chunk)
        self._seal(predictions)
        self._seal(costs)

    def _todo(self, parts: list[Path]) -> list[int]:
        """Chunks whose part is missing. A folder with something to do is not sealed."""
        todo = [chunk for chunk, part in enumerate(parts) if not part.is_file()]
        if todo:
            schema.seal_file(parts[0]).unlink(missing_ok=True)
        return todo

    def _ask(self, agent: Agent, chunk: int, advance: Callable[[int], None]) -> Answers:
        """One chunk's answers, asked batch by batch and checked."""
        rows = self.record.chunk_rows(chunk)
        needed = {name: store.read_table(schema.predictions_part(self.out, name, chunk)) for name in agent.needs}
        parts = []
        for start in range(rows.start, rows.stop, self.recipe.build.batch_size):
            batch_rows = range(start, min(start + self.recipe.build.batch_size, rows.stop))
            answers = {name: table.slice(start - rows.start, len(batch_rows)) for name, table in needed.items()}
            batch = self.dataset.batch(batch_rows, answers)
            found = agent.ask(batch)
            self.report.asked[agent.config.name] += len(batch_rows)
            parts.append(found.checked(agent.config.name, batch.ids, self.record.tasks, len(self.dataset.classes)))
            advance(len(batch_rows))
        return Answers.concatenate(parts)

    def _write_predictions(self, name: str, chunk: int, answers: Answers) -> None:
        ids = self.dataset.batch(self.record.chunk_rows(chunk)).ids
        table = pa.table({"sample_id": pa.array(ids, pa.string()), **answers.to_columns()})
        path = schema.predictions_part(self.out, name, chunk)
        for stale in schema.agent_folder(self.out, name).glob(f"costs-*/{path.name}"):
            schema.seal_file(stale).unlink(missing_ok=True)
            stale.unlink()  # costs of answers that are gone
        store.commit_table(path, table, self._facts(name, chunk, ids))
        self.report.predictions_written[name] += 1

    def _write_costs(self, name: str, chunk: int) -> None:
        answers = Answers.from_table(store.read_table(schema.predictions_part(self.out, name, chunk)))
        batch = self.dataset.batch(self.record.chunk_rows(chunk))
        for task in self.record.tasks:
            if (answers.reg if task == "reg" else answers.cla) is None:
                raise AgentFailure(
                    f"agent {name!r} has no cached answer for the task {task!r}, which now has a cost",
                    where=schema.predictions_part(self.out, name, chunk),
                    hint=f"delete {schema.agent_folder(self.out, name)} to have it asked again",
                )
        costs = self.recipe.costs.compute(answers, batch.target_cla, batch.target_reg, len(self.dataset.classes))
        columns = {"sample_id": pa.array(batch.ids, pa.string())}
        for task, values in costs.items():
            good = np.isfinite(values) & (values >= 0)
            if not good.all():
                row = int(good.argmin())
                raise DataError(
                    f"agent {name!r}: cost_{task} is {values[row]}",
                    where=f"sample {batch.ids[row]!r}",
                    hint=f"give [costs.{task}] a clamp",
                )
            columns[schema.COST_COLUMNS[task]] = pa.array(values, pa.float32())
        path = schema.costs_part(self.out, name, chunk, self.record.cost_digest)
        store.commit_table(path, pa.table(columns), self._facts(name, chunk, batch.ids))
        self.report.costs_written[name] += 1

    def _seal(self, parts: list[Path]) -> None:
        """Record rows, bytes and digests of all parts of a folder, once they are there."""
        file = schema.seal_file(parts[0])
        if file.is_file():
            return
        facts = {}
        for chunk, part in enumerate(parts):
            table = store.read_table(part)  # what is sealed has been read back once, every checksum verified
            if store.facts_of(table).get("ids") != schema.ids_digest(
                self.dataset.batch(self.record.chunk_rows(chunk)).ids
            ):
                raise CorruptPart("holds other samples than its chunk", where=part, hint=REBUILD_HINT)
            facts[part.name] = {
                "rows": table.num_rows,
                "bytes": os.path.getsize(part),
                "sha256": sha256_of(part),
                "skeleton": skeleton_digest(part),
            }
        store.commit_json(file, {"parts": facts})

    def _frozen_file(self, name: str) -> Path:
        return schema.agent_folder(self.out, name) / "frozen.safetensors"

    def _frozen_arrays(self, agent: Agent) -> dict | None:
        """What the agent froze: read back if it is there, else fitted and committed."""
        from safetensors.numpy import load, save

        name = agent.config.name
        file = self._frozen_file(name)
        if not file.is_file():
            arrays = agent.freeze(self.dataset, self.device)
            if arrays is None:
                return None
            store.commit_bytes(file, save({key: np.ascontiguousarray(value) for key, value in arrays.items()}))
            self.report.fitted.append(name)
        record_file = schema.agent_file(self.out, name)
        if record_file.is_file():
            expected, found = store.read_json(record_file)["fingerprint"].get("frozen"), sha256_of(file)[:16]
            if expected not in (None, found):
                raise CorruptPart(
                    f"is not what was frozen (SHA-256 {found}, recorded {expected})",
                    where=file,
                    hint="restore this file, or delete the agent's folder and build again",
                )
        return load(file.read_bytes())

    def _fingerprints_of(self, names: tuple[str, ...]) -> str:
        """Of agents built earlier in this recipe."""
        return schema.digest([store.read_json(schema.agent_file(self.out, name))["fingerprint"] for name in names])

    def _facts(self, owner: str, chunk: int, ids: list[str]) -> dict[str, str]:
        return {
            "schema": str(self.record.schema_version),
            "owner": owner,
            "chunk": str(chunk),
            "ids": schema.ids_digest(ids),
        }
