"""Reading a cost cache: what it holds, and its chunks with every page checksum verified."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from l2d.data.cache import schema, store
from l2d.data.cache.addresses import is_address, local_path
from l2d.data.cache.integrity import REBUILD_HINT, skeleton_digest
from l2d.data.cache.mapped import LentPart, MappedPart, Readable
from l2d.data.cache.records import AgentRecord, CacheRecord, checked, checked_seal
from l2d.data.errors import CorruptPart, FingerprintMismatch, IncompleteCache, UsageError

if TYPE_CHECKING:
    from l2d.data.cache.mirror import Mirror

Found = TypeVar("Found")


class CostCache:
    """A cost cache opened for reading, in a folder or where it lies in a store.

    Args:
        path: the cache's folder, or its address in a store, such as ``s3://bucket/caches/support2``. Of such a cache
            parts are copied as they are read, see :mod:`l2d.data.cache.mirror`.

    Attributes:
        path: its folder; of a cache in a store, that of the copies.
        address: where it lies, for people.
        mirror: of a cache in a store, what is here of it.
        priced: whether rows that are read from it have a last column of raw costs, what each answer was paid.
        pictures: image files that a rejector looks at in place of the small images, see rejector/rows/pictures.py.

    Raises:
        UsageError: there is no cache at ``path``.
        FingerprintMismatch: it was written with another schema version.
        CorruptPart: ``cache.json`` or an ``agent.json`` is damaged.
        DataError: the store cannot be read, or has no cache there.
    """

    def __init__(self, path: Path | str):
        self.mirror: Mirror | None = None
        if is_address(path):
            from l2d.data.cache.mirror import mirror_at

            self.mirror = mirror_at(str(path))
            self.path, self.address = self.mirror.folder, self.mirror.address
        else:
            self.path, self.address = local_path(path), str(local_path(path))
        self.priced = False
        self.pictures: Any = None
        self.record = self._read_record()
        self._seals: dict[Path, dict[str, dict] | None] = {}
        self.all_agents: list[AgentRecord] = []
        self._unrecorded: list[Path] = []  # agents of the recipe that no build has begun to ask
        for position, name in enumerate(self.record.agents):
            file = schema.agent_file(self.path, name)
            value = self._json(file)
            if value is None:
                self._unrecorded.append(file)
                continue
            record = checked(AgentRecord, value, file)
            if (record.name, record.index) != (name, position):
                raise CorruptPart(
                    f"is the record of agent {record.index}, {record.name!r}", where=file, hint=REBUILD_HINT
                )
            self.all_agents.append(record)

    def _json(self, file: Path) -> dict | None:
        """A record or seal; None if there is none."""
        if self.mirror is not None:
            return self.mirror.json(file)
        return store.read_json(file) if file.is_file() else None

    def _read_record(self) -> CacheRecord:
        if self.mirror is None:
            return read_cache_record(self.path)
        return checked(CacheRecord, self.mirror.json(schema.cache_file(self.path)) or {}, self.address)

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
        raise UsageError(f"no agent {name!r}; there are {[a.name for a in self.all_agents]}", where=self.address)

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

    def chunks(
        self,
        agents: list[str] | None = None,
        *,
        samples: list[str] | None = None,
        predictions: Mapping[str, list[str]] | None = None,
        costs: list[str] | None = None,
    ) -> Iterator[tuple[pa.Table, list[pa.Table | None], list[pa.Table]]]:
        """Chunks in order, as (samples, predictions per agent, costs per agent), rows aligned.

        Args:
            samples, costs: the columns to read; all if None.
            predictions: agent -> the columns to read; an agent that is not named has None in place of its predictions.
                All of all agents if None.

        Raises:
            IncompleteCache: a part is missing.
            CorruptPart: a part is damaged, or holds other samples than the chunk's.
        """
        names = [agent.name for agent in self.agents] if agents is None else agents
        shown = dict.fromkeys(names) if predictions is None else predictions
        for chunk in range(self.record.num_chunks):
            self.bring(
                [
                    (schema.samples_part(self.path, chunk), samples),
                    *((schema.predictions_part(self.path, name, chunk), columns) for name, columns in shown.items()),
                    *((schema.costs_part(self.path, name, chunk, self.record.cost_digest), costs) for name in names),
                ]
            )
            rows = self.samples(chunk, samples)
            ids = store.facts_of(rows)["ids"]
            predicted = [self.predictions(name, chunk, shown[name]) if name in shown else None for name in names]
            charged = [self.costs(name, chunk, costs) for name in names]
            for name, said, cost in zip(names, predicted, charged, strict=True):
                for table, part in (
                    (said, schema.predictions_part(self.path, name, chunk)),
                    (cost, schema.costs_part(self.path, name, chunk, self.record.cost_digest)),
                ):
                    if table is not None and store.facts_of(table)["ids"] != ids:
                        raise CorruptPart(f"holds other samples than chunk {chunk}", where=part, hint=REBUILD_HINT)
            yield rows, predicted, charged

    def bring(self, wanted: Iterable[tuple[Path, Collection[str] | None]]) -> None:
        """Of a cache in a store: fetch columns (all if None) of several parts at once, which are read next."""
        if self.mirror is not None:
            self.mirror.bring(wanted)

    def has(self, part: Path) -> bool:
        """Whether a part is there."""
        return part.is_file() if self.mirror is None else self.mirror.has(part)

    def skeleton(self, part: Path) -> str:
        """What tells a part from any other; of a cache in a store what its seal says, the part being unread.

        Raises:
            CorruptPart: the part is damaged.
        """
        sealed = None if self.mirror is None else self.sealed(part)
        return skeleton_digest(part) if sealed is None else sealed["skeleton"]

    def file(self, path: Path) -> Path:
        """A file of the cache that is no part, such as what an agent froze, which may not be there."""
        return path if self.mirror is None or not self.mirror.has(path) else self.mirror.file(path)

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
        return [] if file is None else [self.file(file)]

    def missing(self) -> list[Path]:
        """Agents' records, parts, and seals of parts that are still to be made."""
        parts = self.parts()
        seals = dict.fromkeys(schema.seal_file(part) for part in parts)
        if self.mirror is not None:  # its seals are there, and tell all parts
            return self._unrecorded
        return self._unrecorded + [path for path in [*self.text_files, *parts, *seals] if not path.is_file()]

    def require_local(self) -> None:
        """Raises :class:`UsageError` if the cache lies in a store."""
        if self.mirror is not None:
            raise UsageError("this cache lies in a store", where=self.address, hint="l2d fetch it, and do it with that")

    def require_complete(self) -> None:
        """Raises :class:`IncompleteCache` unless every agent has answered every sample and all is sealed."""
        missing = self.missing()
        if not self.agents or missing:
            what = f"{len(missing)} files are missing, the first is {missing[0]}" if missing else "it has no agents"
            raise IncompleteCache(
                f"the cache is not complete: {what}",
                where=self.address,
                hint="run the `l2d build` that made it again: what is there is kept",
            )

    def verify(self) -> int:
        """See :func:`l2d.data.cache.verifying.verify`."""
        from l2d.data.cache.verifying import verify  # pyarrow's functions, which take a while to import

        return verify(self)

    def verify_files(self) -> list[Path]:
        """See :func:`l2d.data.cache.verifying.verify_files`."""
        from l2d.data.cache.verifying import verify_files

        return verify_files(self)

    def check_part(self, part: Path) -> str:
        """Compare a part's skeleton with its seal, before another reader opens it. Returns the skeleton.

        Raises:
            CorruptPart: it is not the part that was sealed.
        """
        if self.mirror is not None:
            self.mirror.through(part, (), lambda: skeleton_digest(part))
            return self.skeleton(part)
        sealed, found = self.sealed(part), skeleton_digest(part)
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
        return self._through(part, (), lambda: store.columns_of(part))

    def sealed(self, part: Path) -> dict | None:
        """What the seal says of a part: rows, bytes, sha256, skeleton. None while its folder is not sealed."""
        file = schema.seal_file(part)
        if file not in self._seals:
            value = self._json(file)
            self._seals[file] = None if value is None else checked_seal(value.get("parts"), self.record, file)
        parts = self._seals[file]
        return None if parts is None else parts[part.name]

    def map_part(self, part: Path, chunk: int, owner: str, columns: tuple[str, ...]) -> tuple[Readable, str]:
        """A part whose columns can be read again and again without being decoded, checked as a read one is.

        Args:
            owner: ``samples``, or the agent's name.

        Returns:
            The part, and the digest of its samples' ids.

        Raises:
            IncompleteCache: it is missing.
            CorruptPart: it is damaged or another part.
        """

        def open_part() -> tuple[MappedPart, str]:
            mapped = MappedPart(part, columns, keep=self.mirror is None)
            header = mapped.header
            assert header is not None  # until it is dropped below
            self._check(part, chunk, owner, header.facts, header.rows, header.skeleton)
            ids = header.facts["ids"]
            mapped.header = None
            return mapped, ids

        mapped, ids = self._through(part, columns, open_part)
        if self.mirror is None:
            return mapped, ids
        return LentPart(self.mirror, part, columns, mapped, lambda: open_part()[0]), ids

    def _through(self, part: Path, columns: Collection[str] | None, read: Callable[[], Found]) -> Found:
        """Read a local part, or the copy of one that lies in a store, where it has these columns."""
        with self._missing_named(part):
            return read() if self.mirror is None else self.mirror.through(part, columns, read)

    def _read(self, path: Path, chunk: int, columns: list[str] | None, owner: str) -> pa.Table:
        def read() -> pa.Table:
            table, skeleton = store.read_known(path, columns)
            self._check(path, chunk, owner, store.facts_of(table), table.num_rows, skeleton)
            return table

        return self._through(path, columns, read)

    def _check(
        self, path: Path, chunk: int, owner: str, facts: dict[str, str], found_rows: int, skeleton: str | None
    ) -> None:
        """Refuse a part that is not the sealed one, or not the one of its name."""
        sealed = self.sealed(path)
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
