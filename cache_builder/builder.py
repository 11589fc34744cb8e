"""Stage one: for each agent, ask -> costs -> commit, chunk by chunk. What is there already is never asked again."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from l2d.cache_builder.agents import Agent
from l2d.cache_builder.answers import NOTES, Answers, failures_in
from l2d.cache_builder.asking import Asker
from l2d.cache_builder.committing import THREADS, committing
from l2d.cache_builder.engines.shards import WHOLE, Shard
from l2d.cache_builder.frozen import frozen_arrays, write_text
from l2d.cache_builder.lending import with_lent_anew
from l2d.cache_builder.plan import measured_in, settle, write_record
from l2d.cache_builder.prepare import prepare, wanted_of
from l2d.cache_builder.prices import record_gflops, record_notes
from l2d.cache_builder.recipe import Recipe
from l2d.cache_builder.samples import sample_columns
from l2d.cache_builder.sealing import answers_digest, seal_parts
from l2d.cache_builder.trial import try_agents
from l2d.data.cache import schema, store
from l2d.data.cache.columns import number_column
from l2d.data.cache.integrity import skeleton_digest
from l2d.data.cache.reader import CacheRecord
from l2d.data.cache.temporary import sweep_orphans
from l2d.data.device import resolve_device
from l2d.data.errors import AgentFailure, DataError, UsageError
from l2d.data.samples.dataset import Dataset


@dataclass
class BuildReport:
    """What a build did, by agent name: samples asked (0 where the cache had every answer; each once, also where a batch
    was asked again), failures recorded, samples on which a partial agent has no answer, parts written."""

    asked: Counter[str] = field(default_factory=Counter)
    predictions_written: Counter[str] = field(default_factory=Counter)
    costs_written: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    unavailable: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)  # of asking
    fitted: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # what was read in a special way, a line each
    unfinished: list[str] = field(default_factory=list)  # agents, or samples, of which other shards have parts to write


Progress = Callable[[str, int], Callable[[int], None]]
#: Asks an agent, with what it froze, about some chunks and commits the parts: what
#: :mod:`l2d.cache_builder.engines.ray` does on a cluster. The chunks in the second list have recorded
#: failures to ask about again.
Engine = Callable[["Build", Agent, "dict | None", list[int], list[int]], None]


def build(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    on_failure: str = "stop",
    retry_failures: bool = False,
    keep_answers: Iterable[str] = (),
    shard: Shard = WHOLE,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Build what is missing of a recipe's cost cache. The same call resumes an interrupted one.

    Args:
        recipe: dataset, costs and agents.
        out: the cache's folder.
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda``, ``cuda:1`` …
        overwrite: discard what was built from something else, instead of refusing.
        on_failure: ``stop`` at the first sample an agent fails on, or ``record`` the failure as a missing answer. A
            failed batch is halved until the samples that fail are known.
        retry_failures: ask again about samples whose failure is recorded.
        keep_answers: agents that have changed (a bug fix, say) and whose answers are kept nevertheless.
        shard: the chunks to do. The cache is whole once all shards are done, in whatever order.
        engine: what asks; this process if None.
        progress: called with (agent, samples to ask), or with (what is being fitted, 0); returns a function to be told
            of samples done.

    Raises:
        FingerprintMismatch: ``out`` was built from another dataset or agent; nothing is touched.
        AgentFailure: an agent raised or gave a wrong answer; finished chunks are kept.
        DataError: the dataset or the disk is at fault.
        UsageError: recipe, folder or device are not usable.
    """
    out, device = Path(out), device if device == "auto" else resolve_device(device)
    dataset, agents, fingerprints, record = prepare(recipe, out)
    if device == "auto":  # where nothing is computed torch is not needed to find out
        device = "cpu" if all(agent.repeatable for agent in agents) else resolve_device(device)
    if on_failure not in ("stop", "record"):
        raise UsageError(f"on_failure = {on_failure!r}", hint="choose stop or record")
    if overwrite and not shard.is_whole:
        raise UsageError(f"--overwrite with --shard {shard}", hint="other shards may be at work; overwrite without one")
    if not overwrite:
        _settle(record, agents, fingerprints, out, keep_answers)
    try_agents(recipe, dataset, agents, out, device, num_chunks=record.num_chunks, again=overwrite)
    if overwrite:  # what is to be discarded stays until the agents that come in its place have been tried
        _settle(record, agents, fingerprints, out, keep_answers, overwrite=True)
    write_record(schema.cache_file(out), record)
    write_text(out, record, dataset)
    job = Build(
        recipe,
        dataset,
        record,
        out,
        device,
        progress or (lambda name, samples: lambda done: None),
        record_failures=on_failure == "record",
        retry_failures=retry_failures,
        shard=shard,
        engine=engine or ask_here,
    )
    for line in dict.fromkeys(line for agent in agents for line in agent.remarks):
        names = [agent.config.name for agent in agents if line in agent.remarks]
        job.report.remarks.append(f"{', '.join(names[:4])}{f' … ({len(names)})' if len(names) > 4 else ''}: {line}")
    job.write_samples()
    for index, agent in enumerate(agents):
        job.build_agent(agent, index, fingerprints[agent.config.name])
    return job.report


def _settle(
    record: CacheRecord,
    agents: list[Agent],
    fingerprints: dict,
    out: Path,
    keep: Iterable[str],
    overwrite: bool = False,
) -> None:
    if out.exists():
        settle(record, agents, fingerprints, out, overwrite=overwrite, keep_answers=frozenset(keep))
        sweep_orphans(out)


@dataclass
class Build:
    """One build under way."""

    recipe: Recipe
    dataset: Dataset
    record: CacheRecord
    out: Path
    device: str
    progress: Progress
    record_failures: bool
    retry_failures: bool
    shard: Shard = WHOLE
    engine: Engine | None = None
    report: BuildReport = field(default_factory=BuildReport)
    ids_digests: dict[int, str] = field(default_factory=dict)
    counting: threading.Lock = field(default_factory=threading.Lock)  # parts are written in threads

    def write_samples(self) -> None:
        """The samples table: ids, splits, targets, kept columns and the rejector's inputs."""
        dataset = self.dataset
        parts = [schema.samples_part(self.out, k) for k in range(self.record.num_chunks)]
        with committing(THREADS) as commit:
            for chunk in filter(self.shard.has, self._todo(parts)):
                columns = sample_columns(dataset, self.record.chunk_rows(chunk))
                commit(store.commit_table, parts[chunk], pa.table(columns), self._facts("samples", chunk))
        self._seal(parts)

    def build_agent(self, agent: Agent, index: int, fingerprint: dict) -> None:
        """Ask one agent what it has not answered yet, and work out the costs that are missing."""
        name = agent.config.name
        self.report.asked[name] = self.report.predictions_written[name] = self.report.costs_written[name] = 0
        if agent.needs:
            if not self._are_answered(agent.needs):
                self.report.unfinished.append(name)
                return
            fingerprint = {**fingerprint, "asked": answers_digest(self.out, range(self.record.num_chunks), agent.needs)}
        file = schema.agent_file(self.out, name)
        before = store.read_json(file) if file.is_file() else None
        of_others = before is not None and before["fingerprint"].get("asked") != fingerprint.get("asked")
        if of_others and agent.repeatable:
            store.remove(schema.agent_folder(self.out, name))  # made of answers that have changed: free to redo
        if before is not None and before.get("charged", {}) != agent.charged:
            for seal in schema.agent_folder(self.out, name).glob("costs-*.seal.json"):
                store.remove(seal)  # of other costs
        if of_others and not agent.repeatable:  # until what was lent is replaced it is what it was
            was = {**fingerprint, "asked": before["fingerprint"].get("asked")}
            frozen, _ = frozen_arrays(self, agent, index, was)
            self._lend_anew(agent, frozen)
        frozen, fingerprint = frozen_arrays(self, agent, index, fingerprint)

        chunks = range(self.record.num_chunks)
        predictions = [schema.predictions_part(self.out, name, k) for k in chunks]
        costs = [schema.costs_part(self.out, name, k, self.record.cost_digest) for k in chunks]
        # The shard that finds all answers there makes all that is made of them: the others have passed by.
        mine = {chunk for chunk in chunks if agent.needs or self.shard.has(chunk)}
        todo = [chunk for chunk in self._todo(predictions) if chunk in mine]
        retry = self._with_failures(predictions) if self.retry_failures else []
        retry = [chunk for chunk in retry if chunk in mine]
        if todo or retry:
            self.engine(self, agent, frozen, todo, retry)
            seconds, asked = self.report.seconds[name], self.report.asked[name]
            timed = {"seconds": seconds / asked} if agent.timed and asked else {}
            record_notes(agent, self.out, predictions, timed)
        elif agent.config.price in NOTES:  # it may have been another when the agent was asked
            record_notes(agent, self.out, predictions, {})
        elif agent.config.price == "gflops" and "gflops" not in measured_in(
            store.read_json(schema.agent_file(self.out, name))
        ):
            agent.load(frozen, self.dataset, self.device)
            record_gflops(agent, self.dataset, self.out)
        if not schema.seal_file(costs[0]).is_file() or self._todo(costs):
            with committing(THREADS) as commit:
                for chunk in sorted(mine):
                    commit(self.write_costs, agent, chunk)
        self._seal(predictions)
        self._seal(costs)

    def _lend_anew(self, agent: Agent, frozen: dict | None) -> None:
        """Replace what other agents have lent an agent, which keeps its own answers; asked again where it has none."""
        name = agent.config.name
        parts = [schema.predictions_part(self.out, name, k) for k in range(self.record.num_chunks)]
        olds = {k: Answers.from_table(store.read_table(part)) for k, part in enumerate(parts) if part.is_file()}
        silent = sum(int(old.is_failure.sum()) for old in olds.values())
        asker = self.begin(agent, frozen, silent) if silent else None
        for chunk, old in olds.items():
            answers = with_lent_anew(agent, old, self._needed(agent, chunk))
            if old.is_failure.any():
                answers = self._asked_where(asker, chunk, answers, old.is_failure)
            self.write_predictions(name, chunk, answers, replace=True)
        if asker is not None:
            self.report.asked[name] += asker.asked

    def begin(self, agent: Agent, frozen: dict | None, samples: int) -> Asker:
        """An agent ready to be asked about this number of samples."""
        agent.load(frozen, self.dataset, self.device)
        record_gflops(agent, self.dataset, self.out)
        return Asker(
            agent,
            self.dataset,
            wanted_of(agent, self.recipe),
            batch_size=self.recipe.build.batch_size,
            record_failures=self.record_failures,
            advance=self.progress(agent.config.name, samples),
        )

    def answers(self, asker: Asker, chunk: int, *, again: bool) -> Answers:
        """One chunk's answers; ``again``: those that are there, with recorded failures asked anew."""
        return self._ask_again(asker, chunk) if again else self._ask(asker, chunk)

    @contextmanager
    def writer(self, agent: Agent) -> Iterator[Callable[[int, Answers], None]]:
        """A function that commits a chunk's answers; for images in the background, so that the device is not idle.

        A kill then costs the chunk that is being asked and the one being written. Answers that cost nothing to have
        again, as they lie in a file, may wait in several threads.
        """
        free = THREADS if agent.repeatable else 0
        with committing(1 if self.dataset.images is not None else free) as commit:
            yield lambda chunk, answers: commit(self.write_predictions, agent.config.name, chunk, answers)

    def _are_answered(self, names: tuple[str, ...]) -> bool:
        """Whether every part of these agents' predictions is there."""
        chunks = range(self.record.num_chunks)
        return all(schema.predictions_part(self.out, name, k).is_file() for name in names for k in chunks)

    def _todo(self, parts: list[Path]) -> list[int]:
        """Chunks whose part is missing. A folder with something to do is not sealed."""
        todo = [chunk for chunk, part in enumerate(parts) if not part.is_file()]
        if todo:
            store.remove(schema.seal_file(parts[0]))
        return todo

    def _with_failures(self, parts: list[Path]) -> list[int]:
        """Chunks in which a failure is recorded. A partial agent's missing answer is none."""
        tables = [store.read_table(part, ["failure"]) if part.is_file() else None for part in parts]
        return [k for k, table in enumerate(tables) if table is not None and failures_in(table)]

    def _ask(self, asker: Asker, chunk: int) -> Answers:
        return asker.ask(self.record.chunk_rows(chunk), self._needed(asker.agent, chunk))

    def _ask_again(self, asker: Asker, chunk: int) -> Answers:
        """A chunk's answers with its recorded failures asked anew, and nothing else."""
        old = Answers.from_table(store.read_table(schema.predictions_part(self.out, asker.agent.config.name, chunk)))
        return self._asked_where(asker, chunk, old, old.is_failure & ~old.is_unavailable)

    def _asked_where(self, asker: Asker, chunk: int, old: Answers, again: np.ndarray) -> Answers:
        """A chunk's answers, the agent asked anew where ``again`` (bool (n,)) says so."""
        needed, first = self._needed(asker.agent, chunk), self.record.chunk_rows(chunk).start
        parts, start = [], 0
        for asked, group in itertools.groupby(again.tolist()):
            stop = start + len(list(group))
            if asked:
                tables = {name: table.slice(start, stop - start) for name, table in needed.items()}
                parts.append(asker.ask(range(first + start, first + stop), tables))
            else:
                parts.append(old.rows(slice(start, stop)))
            start = stop
        return Answers.concatenate(parts)

    def _needed(self, agent: Agent, chunk: int) -> dict[str, pa.Table]:
        return {name: store.read_table(schema.predictions_part(self.out, name, chunk)) for name in agent.needs}

    def write_predictions(self, name: str, chunk: int, answers: Answers, *, replace: bool = False) -> None:
        table = pa.table({"sample_id": self._ids(chunk), **answers.to_columns()})
        path = schema.predictions_part(self.out, name, chunk)
        store.remove(schema.seal_file(path))
        for seal in schema.agent_folder(self.out, name).glob("costs-*.seal.json"):
            store.remove(seal)  # of costs whose predictions change now; the parts say themselves what they are of
        store.commit_table(path, table, self._facts(name, chunk), replace=replace or self.retry_failures)
        with self.counting:
            self.report.predictions_written[name] += 1

    def write_costs(self, agent: Agent, chunk: int) -> None:
        """Costs of one chunk, unless they are there and of these very predictions."""
        name = agent.config.name
        path = schema.costs_part(self.out, name, chunk, self.record.cost_digest)
        made_of = skeleton_digest(schema.predictions_part(self.out, name, chunk))
        if agent.charged:
            made_of += " " + schema.digest(agent.charged)
        there = path.is_file()
        if there and store.facts_of(store.read_table(path, ["sample_id"])).get("predictions") == made_of:
            return
        answers = Answers.from_table(store.read_table(schema.predictions_part(self.out, name, chunk)))
        batch = self.dataset.batch(self.record.chunk_rows(chunk))
        for wanted in self.recipe.costs.wanted:
            if wanted not in agent.charged and getattr(answers, wanted) is None:
                raise AgentFailure(
                    f"agent {name!r} has no cached answer for the task {wanted!r}, which now has a cost",
                    where=schema.predictions_part(self.out, name, chunk),
                    hint=f"delete {schema.agent_folder(self.out, name)} to have it asked again",
                )
        costs = self.recipe.costs.compute(answers, batch, len(self.dataset.classes), agent.charged)
        columns = {"sample_id": self._ids(chunk)}
        failed = answers.is_failure
        for task, values in costs.items():
            good = failed | (np.isfinite(values) & (values >= 0))
            if not good.all():
                row = int(good.argmin())
                raise DataError(
                    f"agent {name!r}: cost_{task} is {values[row]}",
                    where=f"sample {batch.ids[row]!r}",
                    hint=f"give [costs.{task}] a clamp",
                )
            mask = failed if failed.any() else None
            columns[schema.COST_COLUMNS[task]] = number_column(values.astype(np.float32, copy=False), mask)
        facts = {**self._facts(name, chunk), "predictions": made_of}
        store.commit_table(path, pa.table(columns), facts, replace=there)
        with self.counting:
            self.report.costs_written[name] += 1

    def _seal(self, parts: list[Path]) -> None:
        """Seal a folder once all its parts are there."""
        if not self.shard.is_whole and not all(part.is_file() for part in parts):
            if not schema.seal_file(parts[0]).is_file():
                self.report.unfinished.append(str(parts[0].parent.relative_to(self.out)))
            return
        seal_parts(parts, self._ids_digest)

    def _ids(self, chunk: int) -> pa.Array:
        """Sample ids of a chunk, text."""
        rows = self.record.chunk_rows(chunk)
        return self.dataset.id_column(slice(rows.start, rows.stop))

    def _ids_digest(self, chunk: int) -> str:
        """Digest of a chunk's sample ids, worked out once for all agents."""
        if chunk not in self.ids_digests:
            self.ids_digests[chunk] = schema.ids_digest(self._ids(chunk))
        return self.ids_digests[chunk]

    def _facts(self, owner: str, chunk: int) -> dict[str, str]:
        return {
            "schema": str(self.record.schema_version),
            "owner": owner,
            "chunk": str(chunk),
            "ids": self._ids_digest(chunk),
        }


def ask_here(job: Build, agent: Agent, frozen: dict | None, todo: list[int], retry: list[int]) -> None:
    """The engine of one process: chunk after chunk."""
    name = agent.config.name
    asker = job.begin(agent, frozen, sum(len(job.record.chunk_rows(k)) for k in [*todo, *retry]))
    with job.writer(agent) as write:
        for chunk in [*todo, *retry]:
            write(chunk, job.answers(asker, chunk, again=chunk in retry))
            job.report.asked[name], job.report.failed[name] = asker.asked, asker.failed
            job.report.unavailable[name], job.report.seconds[name] = asker.unavailable, asker.seconds
