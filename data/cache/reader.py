"""Reading a cost cache: what it holds, and its chunks with every page checksum verified."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from l2d.data.cache import schema, store
from l2d.data.cache.integrity import REBUILD_HINT, sha256_of, skeleton_digest
from l2d.data.cache.mapped import MappedPart
from l2d.data.cache.records import AgentRecord, CacheRecord, checked, checked_seal
from l2d.data.errors import CorruptPart, FingerprintMismatch, IncompleteCache, UsageError


class CostCache:
    """A cost cache opened for reading.

    Args:
        path: the cache's folder.

    Attributes:
        priced: whether rows that are read from it have a last column of raw costs, what each answer was paid.

    Raises:
        UsageError: there is no cache at ``path``.
        FingerprintMismatch: it was written with another schema version.
        CorruptPart: ``cache.json`` or an ``agent.json`` is damaged.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.priced = False
        self.record = read_cache_record(self.path)
        self._seals: dict[Path, dict[str, dict] | None] = {}
        self.all_agents: list[AgentRecord] = []
        self._unrecorded: list[Path] = []  # agents of the recipe that no build has begun to ask
        for position, name in enumerate(self.record.agents):
            file = schema.agent_file(self.path, name)
            if not file.is_file():
                self._unrecorded.append(file)
                continue
            record = checked(AgentRecord, store.read_json(file), file)
            if (record.name, record.index) != (name, position):
                raise CorruptPart(
                    f"is the record of agent {record.index}, {record.name!r}", where=file, hint=REBUILD_HINT
                )
            self.all_agents.append(record)

    def only(self, names: list[str]) -> CostCache:
        """This cache with these agents alone, in this order, and the references that ask no other agent.

        Raises:
            UsageError: one of them is not in the cache.
        """
        view = copy.copy(self)
        chosen = [self.agent(name) for name in names]
        known = {*names, *(reference.name for reference in self.references)}
        view.all_agents = chosen + [reference for reference in self.references if known >= set(reference.queries)]
        view._unrecorded = []
        return view

    def with_prices(self, priced: bool = True) -> CostCache:
        """This cache, with what each answer was paid as the last column of raw costs; see data/cache/paid.py."""
        view = copy.copy(self)
        view.priced = priced
        return view

    @property
    def agents(self) -> list[AgentRecord]:
        """The agents a rejector may allocate to; position is the agent's index ``j``, 0 is the model."""
        return [agent for agent in self.all_agents if agent.role == "agent"]

    @property
    def references(self) -> list[AgentRecord]:
        return [agent for agent in self.all_agents if agent.role == "reference"]

    def agent(self, name: str) -> AgentRecord:
        """The agent or reference of that name."""
        for record in self.all_agents:
            if record.name == name:
                return record
        raise UsageError(f"no agent {name!r}; there are {[a.name for a in self.all_agents]}", where=self.path)

    # --- chunks -----------------------------------------------------------------------------------------------------

    def samples(self, chunk: int, columns: list[str] | None = None) -> pa.Table:
        """Chunk of the samples table: ``sample_id``, ``split``, targets, kept columns, inputs."""
        return self._read(schema.samples_part(self.path, chunk), chunk, columns, "samples")

    def predictions(self, agent: str, chunk: int, columns: list[str] | None = None) -> pa.Table:
        """Chunk of an agent's raw predictions."""
        return self._read(schema.predictions_part(self.path, agent, chunk), chunk, columns, agent)

    def costs(self, agent: str, chunk: int, columns: list[str] | None = None) -> pa.Table:
        """Chunk of an agent's raw costs (without ``beta`` and ``lambda``)."""
        part = schema.costs_part(self.path, agent, chunk, self.record.cost_digest)
        return self._read(part, chunk, columns, agent)

    def chunks(self, agents: list[str] | None = None) -> Iterator[tuple[pa.Table, list[pa.Table], list[pa.Table]]]:
        """Chunks in order, as (samples, predictions per agent, costs per agent), rows aligned.

        Raises:
            IncompleteCache: a part is missing.
            CorruptPart: a part is damaged, or holds other samples than the chunk's.
        """
        names = [agent.name for agent in self.agents] if agents is None else agents
        for chunk in range(self.record.num_chunks):
            samples = self.samples(chunk)
            ids = store.facts_of(samples)["ids"]
            predictions = [self.predictions(name, chunk) for name in names]
            costs = [self.costs(name, chunk) for name in names]
            for name, predicted, cost in zip(names, predictions, costs, strict=True):
                for table, part in (
                    (predicted, schema.predictions_part(self.path, name, chunk)),
                    (cost, schema.costs_part(self.path, name, chunk, self.record.cost_digest)),
                ):
                    if store.facts_of(table)["ids"] != ids:
                        raise CorruptPart(f"holds other samples than chunk {chunk}", where=part, hint=REBUILD_HINT)
            yield samples, predictions, costs

    def parts(self) -> list[Path]:
        """Every part the cache must have: samples, then each agent's predictions and costs, in chunk order."""
        chunks, digest = range(self.record.num_chunks), self.record.cost_digest
        plan = [schema.samples_part(self.path, k) for k in chunks]
        for agent in self.all_agents:
            plan += [schema.predictions_part(self.path, agent.name, k) for k in chunks]
            plan += [schema.costs_part(self.path, agent.name, k, digest) for k in chunks]
        return plan

    @property
    def text_files(self) -> list[Path]:
        """The file of what text features were fitted to, if there are any."""
        file = schema.text_file(self.path, self.record.inputs.get("features", {}))
        return [] if file is None else [file]

    def missing(self) -> list[Path]:
        """Agents' records, parts, and seals of parts that are still to be made."""
        parts = self.parts()
        seals = dict.fromkeys(schema.seal_file(part) for part in parts)
        return self._unrecorded + [path for path in [*self.text_files, *parts, *seals] if not path.is_file()]

    def require_complete(self) -> None:
        """Raises :class:`IncompleteCache` unless every agent has answered every sample and all is sealed."""
        missing = self.missing()
        if not self.agents or missing:
            what = f"{len(missing)} files are missing, the first is {missing[0]}" if missing else "it has no agents"
            raise IncompleteCache(
                f"the cache is not complete: {what}",
                where=self.path,
                hint="run the `l2d build` that made it again: what is there is kept",
            )

    def verify(self) -> int:
        """Read every part back, compare it with its seal byte by byte, and check what its rows hold.

        Returns the number of parts. What rows must satisfy is in :mod:`l2d.data.cache.contents`.

        Raises:
            IncompleteCache: parts or seals are missing.
            CorruptPart: names the first file that is not what was written.
        """
        from l2d.data.cache.contents import Contents  # pyarrow's functions, which take a while to import

        parts, contents = self.verify_files(), Contents(self.record)
        names = [agent.name for agent in self.all_agents]
        for chunk, (samples, predictions, costs) in enumerate(self.chunks(names)):
            contents.check_samples(samples, schema.samples_part(self.path, chunk))
            for name, predicted, cost in zip(names, predictions, costs, strict=True):
                contents.check_predictions(predicted, schema.predictions_part(self.path, name, chunk))
                contents.check_costs(cost, schema.costs_part(self.path, name, chunk, self.record.cost_digest))
        contents.check_ids(schema.samples_part(self.path, 0).parent)
        for agent in self.all_agents:
            frozen, file = agent.fingerprint.get("frozen"), schema.frozen_file(self.path, agent.name)
            if frozen is not None and (not file.is_file() or sha256_of(file)[:16] != frozen):
                raise CorruptPart("is not what the agent froze", where=file, hint="restore it from a copy")
        return len(parts)

    def verify_files(self) -> list[Path]:
        """Compare every part with its seal byte by byte, without decoding any. Returns the parts.

        Raises:
            IncompleteCache: parts or seals are missing.
            CorruptPart: names the first part that is not what was written.
        """
        self.require_complete()
        for file in self.text_files:
            if sha256_of(file) != self.record.inputs["features"]["frozen"]:
                raise CorruptPart("is not what was fitted", where=file, hint="restore it, or build again: that fits it")
        parts = self.parts()
        for part in parts:
            sealed = self._sealed(part)
            if sealed is None or sha256_of(part) != sealed["sha256"]:
                raise CorruptPart("is not the file that was sealed", where=part, hint=REBUILD_HINT)
        return parts

    def check_part(self, part: Path) -> str:
        """Compare a part's skeleton with its seal, before another reader opens it. Returns the skeleton.

        Raises:
            CorruptPart: it is not the part that was sealed.
        """
        sealed, found = self._sealed(part), skeleton_digest(part)
        if sealed is not None and found != sealed["skeleton"]:
            raise CorruptPart("is not the file that was sealed", where=part, hint=REBUILD_HINT)
        return found

    def columns_of(self, part: Path) -> pa.Schema:
        """The columns of a part, compared with its seal.

        Raises:
            CorruptPart: it is not the part that was sealed.
            FileNotFoundError: there is no such part.
        """
        self.check_part(part)
        return store.columns_of(part)

    def _sealed(self, part: Path) -> dict | None:
        """What the seal says of a part: rows, bytes, sha256, skeleton. None while its folder is not sealed."""
        file = schema.seal_file(part)
        if file not in self._seals:
            self._seals[file] = read_seal(file, self.record) if file.is_file() else None
        parts = self._seals[file]
        return None if parts is None else parts[part.name]

    def map_part(self, part: Path, chunk: int, owner: str, columns: tuple[str, ...]) -> tuple[MappedPart, str]:
        """A part whose columns can be read again and again without being decoded, checked as a read one is.

        Args:
            owner: ``samples``, or the agent's name.

        Returns:
            The part, and the digest of its samples' ids.

        Raises:
            IncompleteCache: it is missing.
            CorruptPart: it is damaged or another part.
        """
        with self._missing_named(part):
            mapped = MappedPart(part, columns)
            header = mapped.header
            assert header is not None  # until it is dropped below
            self._check(part, chunk, owner, header.facts, header.rows, header.skeleton)
        ids = header.facts["ids"]
        mapped.header = None
        return mapped, ids

    def _read(self, path: Path, chunk: int, columns: list[str] | None, owner: str) -> pa.Table:
        with self._missing_named(path):
            table = store.read_table(path, columns)
            skeleton = None if self._sealed(path) is None else skeleton_digest(path)
            self._check(path, chunk, owner, store.facts_of(table), table.num_rows, skeleton)
        return table

    def _check(
        self, path: Path, chunk: int, owner: str, facts: dict[str, str], found_rows: int, skeleton: str | None
    ) -> None:
        """Refuse a part that is not the sealed one, or not the one of its name."""
        sealed = self._sealed(path)
        if sealed is not None and skeleton != sealed["skeleton"]:
            raise CorruptPart("is not the file that was sealed", where=path, hint=REBUILD_HINT)
        expected = {"chunk": str(chunk), "owner": owner, "schema": str(self.record.schema_version)}
        wrong = {name: facts.get(name) for name, value in expected.items() if facts.get(name) != value}
        if "ids" not in facts:
            wrong["ids"] = None
        rows = len(self.record.chunk_rows(chunk))
        if wrong or found_rows != rows:
            found = wrong or f"{found_rows} rows, not {rows}"
            raise CorruptPart(f"is another part than its name says: {found}", where=path, hint=REBUILD_HINT)

    @contextmanager
    def _missing_named(self, path: Path) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise IncompleteCache(
                "this part is missing", where=path, hint="run the `l2d build` that made the cache again"
            ) from None


def read_cache_record(path: Path) -> CacheRecord:
    """Read ``cache.json``.

    Raises:
        UsageError: there is no cache at ``path``.
        FingerprintMismatch: another schema version.
    """
    file = schema.cache_file(path)
    if not file.is_file():
        raise UsageError("there is no cost cache here", where=path, hint=f"make one: l2d build RECIPE --out {path}")
    value = store.read_json(file)
    if value.get("schema_version") != schema.SCHEMA_VERSION:
        raise FingerprintMismatch(
            "the schema",
            {"schema_version": (value.get("schema_version"), schema.SCHEMA_VERSION)},
            where=file,
            hint="build the cache again with this version of l2d, in another folder",
        )
    return checked(CacheRecord, value, file)


def read_seal(file: Path, record: CacheRecord) -> dict[str, dict]:
    """What a seal says of each part: rows, bytes, sha256, skeleton.

    Raises:
        CorruptPart: it is damaged, or not about the parts of this cache.
    """
    return checked_seal(store.read_json(file).get("parts"), record, file)
