"""Builders on machines that share no folder finish one cache: each has a folder of its own, and they meet in a store.

What a builder has made it puts into the store under the name that it has in the cache, unless another builder was
first: then that one counts, and comes here. Stores that can refuse a write to a name that is taken (S3's
``If-None-Match``) decide who was first; on others two that write in the same moment may both believe it, and the last
push makes them agree. The builder that finds all answers in the store takes those that it lacks, builds what is made of
all of them, seals, and pushes. ``cache.json`` comes last, so until then the store holds no cache; the record that all
agree on is ``cache.building.json``. What an agent froze goes by its digest before ``agent.json`` names it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from l2d.cache_builder.engines.shards import Shard
from l2d.cache_builder.plan import LATE_FIELDS, differences
from l2d.data.cache import schema, store
from l2d.data.cache.integrity import REBUILD_HINT, sha256_of
from l2d.data.cache.mapped import read_back
from l2d.data.cache.pieces import MOST_RECORD
from l2d.data.cache.places import open_place
from l2d.data.cache.reader import CostCache
from l2d.data.cache.records import CacheRecord, checked
from l2d.data.cache.remote import push
from l2d.data.errors import CorruptPart, FingerprintMismatch

BUILDING = "cache.building.json"
AT_ONCE = 8  # files on their way at the same time
EVERY = 30.0  # seconds between two looks for parts to put into the store
_HERE = Path()


class SharedBuild:
    """One builder's part in a build that meets in a store.

    Args:
        url: where the cache is to lie.
        out: this builder's folder.
    """

    def __init__(self, url: str, out: Path):
        self.url, self.out, self.place = url.rstrip("/"), out, open_place(url)
        self._given: set[Path] = set()  # parts that the store has as they are here

    # --- what all agree on --------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Take the record and what agents froze, where others were here before and this folder is new."""
        content = self.place.read(BUILDING, MOST_RECORD) or self.place.read("cache.json", MOST_RECORD)
        if content is None or schema.cache_file(self.out).is_file():
            return
        record = checked(CacheRecord, store.parse_json(content, f"{self.url}/{BUILDING}"), f"{self.url}/{BUILDING}")
        self._take_text(record)
        for name in record.agents:
            self._take_agent(name)
        store.commit_bytes(schema.cache_file(self.out), content)

    def agree(self) -> None:
        """Put the record and what agents froze into the store, or take those of the builder that was first.

        Raises:
            FingerprintMismatch: that one builds something else.
        """
        file = schema.cache_file(self.out)
        record = self._record()
        text = schema.text_file(_HERE, record.inputs.get("features", {}))
        if text is not None:
            self.place.put_new(text.as_posix(), self.out / text)
        if not self.place.put_new(BUILDING, file):
            theirs = store.parse_json(self.place.read(BUILDING, MOST_RECORD) or b"", f"{self.url}/{BUILDING}")
            self._require_same("the cache", differences(theirs, store.read_json(file)))
        for name in record.agents:
            if schema.agent_file(self.out, name).is_file():
                self._agree_on(name)
            else:  # one that needs others' answers: there are none before the cache is finished
                self._take_agent(name)

    def _agree_on(self, name: str) -> None:
        file = schema.agent_file(self.out, name)
        ours = store.read_json(file)
        frozen = ours["fingerprint"].get("frozen")
        if frozen is not None:
            self.place.put_new(_frozen_name(name, frozen), schema.frozen_file(self.out, name))
        if self.place.put_new(file.relative_to(self.out).as_posix(), file):
            return
        theirs = self._read(file)
        late = dict.fromkeys(LATE_FIELDS)
        self._require_same(f"agent {name!r}", differences(theirs["fingerprint"] | late, ours["fingerprint"] | late))
        if theirs["fingerprint"].get("frozen") != frozen:  # both have fitted it; what is ours, and its answers, go
            store.remove(schema.agent_folder(self.out, name))
            self._take_agent(name)

    def _require_same(self, subject: str, changes: dict) -> None:
        if changes:
            raise FingerprintMismatch(
                f"{subject} that others build",
                changes,
                where=self.url,
                hint="use the same recipe and data, or another address",
            )

    def _take_agent(self, name: str) -> None:
        file = schema.agent_file(self.out, name)
        value = self._read(file)
        if not value:
            return
        frozen = value.get("fingerprint", {}).get("frozen")
        if frozen is not None:
            there = _frozen_name(name, frozen)
            if self.place.size(there) is None:  # of a cache that is finished
                there = schema.frozen_file(_HERE, name).as_posix()
            path = schema.frozen_file(self.out, name)
            self._take(there, path)
            if sha256_of(path)[:16] != frozen:
                raise CorruptPart("is not what the agent froze", where=f"{self.url}/{there}", hint=REBUILD_HINT)
        store.commit_json(file, value)

    def _take_text(self, record: CacheRecord) -> None:
        made = record.inputs.get("features", {})
        text = schema.text_file(_HERE, made)
        if text is not None:
            self._take(text.as_posix(), self.out / text)

    def _read(self, file: Path) -> dict:
        name = file.relative_to(self.out).as_posix()
        content = self.place.read(name, MOST_RECORD)
        return {} if content is None else store.parse_json(content, f"{self.url}/{name}")

    def _record(self) -> CacheRecord:
        file = schema.cache_file(self.out)
        return checked(CacheRecord, store.read_json(file), file)

    # --- parts --------------------------------------------------------------------------------------------------------

    def take_parts(self, shard: Shard) -> int:
        """Take the parts of a share that are in the store and not here. Returns how many."""
        return sum(self._each(self._take_part, [one for one in self._parts(shard) if not one[0].is_file()]))

    def give_parts(self, shard: Shard) -> None:
        """Put the parts of a share that are here into the store; of those that another builder has put there, take its
        own."""
        self._each(
            self._give_part, [one for one in self._parts(shard) if one[0].is_file() and one[0] not in self._given]
        )

    @contextmanager
    def giving(self, shard: Shard) -> Iterator[None]:
        """Put parts into the store as they are made, in the background; what is left of them at the end."""
        ended, wrong = threading.Event(), []

        def give() -> None:
            while not ended.wait(EVERY):
                try:
                    self.give_parts(shard)
                except Exception as error:  # told at the end; what is asked meanwhile stays here
                    wrong.append(error)
                    return

        thread = threading.Thread(target=give, name="giving", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        if wrong:
            raise wrong[0]
        self.give_parts(shard)

    def is_answered(self) -> bool:
        """Whether all answers are here or in the store, of agents that need no others."""
        record, missing = self._record(), []
        for name in record.agents:
            if schema.agent_file(self.out, name).is_file():
                parts = (schema.predictions_part(self.out, name, k) for k in range(record.num_chunks))
                missing += [part for part in parts if not part.is_file()]
        names = (part.relative_to(self.out).as_posix() for part in missing)
        return all(size is not None for size in self._each(self.place.size, list(names)))

    def finish(self) -> None:
        """Push the finished cache and remove what only builders needed."""
        push(CostCache(self.out), self.url)
        for name in self._record().agents:
            frozen = store.read_json(schema.agent_file(self.out, name))["fingerprint"].get("frozen")
            if frozen is not None:
                self.place.remove(_frozen_name(name, frozen))
        self.place.remove(BUILDING)

    def _parts(self, shard: Shard) -> list[tuple[Path, str, int]]:
        """Part, owner and chunk of everything in a share."""
        record, found = self._record(), []
        for chunk in filter(shard.has, range(record.num_chunks)):
            found.append((schema.samples_part(self.out, chunk), "samples", chunk))
            for name in filter(lambda one: schema.agent_file(self.out, one).is_file(), record.agents):
                found.append((schema.predictions_part(self.out, name, chunk), name, chunk))
                found.append((schema.costs_part(self.out, name, chunk, record.cost_digest), name, chunk))
        return found

    def _take_part(self, one: tuple[Path, str, int]) -> bool:
        part, owner, chunk = one
        name = part.relative_to(self.out).as_posix()
        if self.place.size(name) is None:
            return False

        def check(temporary: Path) -> None:
            facts = read_back(temporary).facts
            if (facts.get("owner"), facts.get("chunk")) != (owner, str(chunk)):
                raise CorruptPart("is another part than its name says", where=f"{self.url}/{name}", hint=REBUILD_HINT)

        self._take(name, part, check)
        self._given.add(part)
        return True

    def _give_part(self, one: tuple[Path, str, int]) -> None:
        part, name = one[0], one[0].relative_to(self.out).as_posix()
        if not self.place.put_new(name, part) and not self.place.holds(name, part, sha256_of(part), read_back=False):
            self._take_part(one)
        self._given.add(part)

    def _take(self, name: str, path: Path, check: Callable[[Path], None] | None = None) -> None:
        def write(temporary: Path) -> None:
            size = self.place.size(name)
            if size is None:
                raise CorruptPart("is missing", where=f"{self.url}/{name}", hint="run the builder again that made it")
            self.place.fetch(name, temporary, size)
            if check is not None:
                check(temporary)

        store.commit(path, write, replace=True)

    def _each(self, work: Callable, items: list) -> list:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(work, items))


def _frozen_name(agent: str, digest: str) -> str:
    """Where what an agent froze lies until the cache is finished."""
    return f"{schema.agent_folder(_HERE, agent).as_posix()}/frozen-{digest}.building"
