"""What SQL sees of caches and runs: the views, the files each is made of, and the macros.

A view is all files that belong to it, read as :mod:`l2d.rejector.sql.files` says. What a file does not say of itself
(whose agent's it is, which run's) is a constant of that file, so a condition on it skips other files unread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from l2d.data.cache import schema, store
from l2d.data.cache.known_good import KnownGood, Wanted
from l2d.data.cache.reader import CostCache
from l2d.data.cache.temporary import TEMPORARY_SUFFIX
from l2d.data.errors import CorruptPart, UsageError
from l2d.rejector.runs.files import (
    ALLOCATIONS_FILE,
    DECISIONS_FILE,
    POLICY_FILE,
    PRICES,
    RUN_FILE,
    WORTH_FILE,
    cache_fingerprint,
    cache_of,
    read_facts,
)
from l2d.rejector.sql.class_ap import NAME as CLASS_AP
from l2d.rejector.sql.class_ap import WITHOUT_ROWS, ClassAP
from l2d.rejector.sql.files import (
    Part,
    clashes,
    dataset,
    groups_of,
    held_rows,
    only,
    quoted,
    replacing,
    rows_as_sql,
    select,
    told_apart,
    without,
)
from l2d.rejector.sql.lent import LentParts
from l2d.rejector.sql.policies import POLICY_VIEWS, policy_of, worth_rows
from l2d.rejector.sql.views import MACRO_SQL, ROWS_OF, box_view, long_view, price_view, token_view

#: Text that is the same in a whole file is stored once.
CONSTANT = pa.dictionary(pa.int32(), pa.string())

#: View -> the columns it has even where there is nothing to show. Others come from the files.
VIEWS = {
    "samples": {"cache": CONSTANT, "sample_id": pa.string(), "split": pa.string()},
    "features": {"cache": CONSTANT, "sample_id": pa.string(), "features": pa.list_(pa.float32())},
    "images": {"cache": CONSTANT, "sample_id": pa.string(), "image": pa.binary()},
    "agents": {"cache": pa.string(), "agent_index": pa.int32(), "agent": pa.string(), "role": pa.string(),
               "kind": pa.string(), "price": pa.float64(), "paid": pa.float64(), "paid_each": pa.float64(),
               "unit_paid": pa.string(), "description": pa.string()},
    "costs": {"cache": CONSTANT, "agent": CONSTANT, "agent_index": pa.int32(), "sample_id": pa.string()},
    "predictions": {"cache": CONSTANT, "agent": CONSTANT, "agent_index": pa.int32(), "sample_id": pa.string()},
    "allocations": {"cache": CONSTANT, "run_id": CONSTANT, "sample_id": pa.string(), "split": pa.string(),
                    "agent_index": pa.int32(), "agent": pa.string()},
    "runs": {"cache": pa.string(), "run_id": pa.string(), "cache_state": pa.string(), "method": pa.string(),
             "beta": pa.float64(), "beta_paid": pa.float64(), "nu": pa.float64(),
             "seed": pa.int64(), "cost": pa.string(),
             "rejector": pa.string(), "best_epoch": pa.int64(), "validation_risk": pa.float64(), "path": pa.string()},
    "run_agents": {"cache": pa.string(), "run_id": pa.string(), "agent_index": pa.int32(), "agent": pa.string(),
                   "beta": pa.float64()},
    **POLICY_VIEWS,
    "classes": {"cache": pa.string(), "class_index": pa.int32(), "class": pa.string()},
    "vocabularies": {"cache": pa.string(), "field": pa.string(), "code_index": pa.int32(), "code": pa.string()},
}  # fmt: skip

#: Views that are SQL over others: those.
DERIVED = {
    "scores": ("allocations", "runs", "run_agents"),
    "tokens": ("samples", "vocabularies"),
    "boxes": ("samples", "predictions", "classes"),
    "prices": ("predictions", "agents"),
}
VIEW_NAMES = (*VIEWS, *DERIVED, CLASS_AP)

MACROS = {
    "allocate(scores)": "index of the highest score of a list, the first of equals: what a rejector does",
    "allocate(scores, costs)": "the same among agents with a finite cost: those that have an answer",
    "cheapest(costs)": "index of the lowest cost of a list, the first of equals",
    "argmin_agent(agent, cost, agent_index)": "aggregate: the cheapest agent of a group, ties to the lowest index",
    "total_cost(cost, …, lambda, …, beta)": "sum of lambda x cost, plus beta, of 1, 2 or 3 tasks; infinite where an "
    "agent has no answer",
}


@dataclass
class Sources:
    """What lies beneath the paths of a query."""

    caches: list[Path | str] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    policies: list[Path] = field(default_factory=list)
    worths: list[Path] = field(default_factory=list)


def find_sources(paths: Sequence[Path | str]) -> Sources:
    """Every cache and run at or beneath the paths, each once. An address in a store is that of a cache.

    Raises:
        UsageError: a path does not exist, or nothing is found.
    """
    sources = Sources()
    for path in paths:
        if isinstance(path, str):
            sources.caches.append(path)
            continue
        if not path.exists():
            raise UsageError("there is no such path", where=path, hint="give caches, runs, or a folder above them")
        for folder, folders, files in os.walk(path):
            if "cache.json" in files:
                folders[:] = [name for name in folders if name not in ("samples", "agents")]  # thousands of parts
            folders[:] = sorted(name for name in folders if not name.endswith(TEMPORARY_SUFFIX))
            kinds: dict[str, list[Any]] = {
                "cache.json": sources.caches,
                RUN_FILE: sources.runs,
                WORTH_FILE: sources.worths,
            }
            if DECISIONS_FILE in files:
                kinds[POLICY_FILE] = sources.policies
            for name, found in kinds.items():
                if name in files:
                    found.append(Path(folder).resolve())
    found_all: tuple[list[Any], ...] = (sources.caches, sources.runs, sources.policies, sources.worths)
    for each in found_all:
        each[:] = dict.fromkeys(each)
    if not (sources.caches or sources.runs or sources.policies or sources.worths):
        raise UsageError("no cache and no run here", where=", ".join(map(str, paths)), hint="see `l2d build --help`")
    return sources


class Catalogue:
    """The views over the caches and runs beneath some paths.

    Raises:
        UsageError: there is nothing at the paths.
        CorruptPart: a part, seal or record is damaged; the message names it.
    """

    def __init__(self, paths: Sequence[Path | str]):
        sources = find_sources(paths)
        self.parts: dict[str, list[Part]] = {name: [] for name in VIEWS}
        self.rows: dict[str, list[dict]] = {
            "agents": [],
            "runs": [],
            "run_agents": [],
            "vocabularies": [],
            "classes": [],
        }
        self.rows |= {"policies": [], "agent_values": []}
        self.unchecked: dict[str, list[Part]] = {name: [] for name in VIEWS}  # until a view reads them
        self.notes: list[str] = []  # what a user should know before joining
        kinds = zip(ROWS_OF, (sources.caches, sources.runs, sources.policies, sources.worths), strict=True)
        self.there = {kind for kind, found in kinds if found}
        caches = [CostCache(path) for path in sources.caches]
        self.known = KnownGood([*(cache.path for cache in caches), *sources.runs, *sources.policies])
        self.lent = LentParts()
        labels = told_apart([cache.record.name for cache in caches], [PurePath(cache.address) for cache in caches])
        for cache, label in zip(caches, labels, strict=True):
            self._add_cache(cache, label)
        self._add_runs(sources.runs, caches, labels)
        self.class_ap = ClassAP(dict(zip(labels, caches, strict=True)), self.parts["allocations"])
        names = told_apart([path.name for path in sources.policies], sources.policies)
        for name, policy in zip(names, sources.policies, strict=True):
            row, part = policy_of(policy, name)
            self.rows["policies"].append(row)
            self.parts["decisions"].append(part)
        self.rows["agent_values"] += [row for folder in sources.worths for row in worth_rows(folder)]

    def register(self, connection) -> None:
        """Make the views and macros in a DuckDB connection, by one text: it is sooner done than one after another."""
        made = []
        for name, columns in VIEWS.items():
            least = pa.schema(list(columns.items()))
            if name in self.rows:
                held = held_rows(connection, name, self.rows[name], least)
                made.append(f"CREATE TEMP VIEW {name} AS FROM {held}")
                continue
            groups, selects = groups_of(self.parts[name], least), []
            for number, group in enumerate(groups, 1):
                others = [other.columns for other in groups if other is not group]
                texts = [f"{quoted(c.name)}::VARCHAR AS {quoted(c.name)}" for c in clashes(group.columns, others)]
                source = f"{name}_{number}"
                if group.is_plain:
                    self.unchecked[name] += group.parts
                    found = f"({select(group, connection, f'{source}_files')})"
                else:
                    connection.register(source, dataset(group))
                    found = quoted(source)
                selects.append(f"SELECT *{replacing(texts)} FROM {found}")
            if not groups:
                made.append(f"CREATE TEMP VIEW {name} AS {rows_as_sql([], least)}")
                continue
            made.append(f"CREATE TEMP VIEW {name} AS {' UNION ALL BY NAME '.join(selects)}")
        width = 1 + max((row["agent_index"] for row in self.rows["run_agents"]), default=-1)
        made += [long_view(width), token_view(self._token_fields()), price_view(self._columns("predictions"))]
        made += [box_view(self._columns("samples"), self._columns("predictions")), WITHOUT_ROWS, *MACRO_SQL]
        connection.execute(";\n".join(made))

    def readable(self) -> list[str]:
        """The files that DuckDB itself may open, none other."""
        return [str(part.path) for parts in self.unchecked.values() for part in parts]

    def verify(self, names: Iterable[str], stop: Callable[[], bool]) -> None:
        """Compare the page checksums of the files of some views, as far as nothing else will; each once.

        Raises:
            CorruptPart: names the file that is damaged.
            FileNotFoundError: one is gone.
        """
        named = list(names)
        parts = [part for name in named for part in self.unchecked.get(name, [])]
        wanted = [Wanted(p.path, p.skeleton, tuple(p.columns.names)) for p in parts]
        for is_last in (False, True):
            self.lent.bring((part.path, part.columns.names) for name in named for part in self.parts.get(name, []))
            try:
                self.known.verify(wanted, stop=stop)
                return
            except CorruptPart as error:  # a copy is fetched once more
                told = self.lent.told(error)
                if told is error or is_last:
                    raise told from error

    def files(self, names: list[str]) -> list[Part]:
        """The files that some views are read from."""
        names = [*names, *(other for name in names for other in DERIVED.get(name, ()))]
        return [part for name in names for part in self.parts.get(name, [])]

    def close(self) -> None:
        """Let go of the copies of parts that lie in stores."""
        self.lent.close()

    def _columns(self, view: str) -> set[str]:
        """Columns that some file of a view has."""
        return {name for part in self.parts[view] for name in part.columns.names}

    def _token_fields(self) -> list[str]:
        """Fields of token lists that samples here have."""
        fields = dict.fromkeys(row["field"] for row in self.rows["vocabularies"])
        columns = [part.columns for part in self.parts["samples"]]
        there = {column.name for some in columns for column in some if pa.types.is_list(column.type)}
        others = {column.name for some in columns for column in some if not pa.types.is_list(column.type)}
        return [field_ for field_ in fields if schema.token_column(field_) in there - others]

    def _add(self, view: str, found: tuple[Path, str], columns: pa.Schema, constants: dict[str, str | int]) -> None:
        self.parts[view].append(Part(found[0], columns, constants, found[1]))

    def _add_cache(self, cache: CostCache, label: str) -> None:
        chunks = range(cache.record.num_chunks)
        for part in self._present(cache, [schema.samples_part(cache.path, k) for k in chunks]):
            columns = store.columns_of(part[0])
            inputs = [name for name in columns.names if name in schema.INPUT_COLUMNS]
            self._add("samples", part, without(columns, inputs), {"cache": label})
            for view, column in (("features", "features"), ("images", "image")):
                if column in inputs:
                    self._add(view, part, only(columns, ["sample_id", column]), {"cache": label})
        self.rows["classes"] += [
            {"cache": label, "class_index": index, "class": name} for index, name in enumerate(cache.record.classes)
        ]
        for name, made in cache.record.inputs.get("tokens", {}).get("fields", {}).items():
            self.rows["vocabularies"] += [
                {"cache": label, "field": name, "code_index": index, "code": code}
                for index, code in enumerate(made["vocabulary"])
            ]
        for agent in cache.all_agents:
            self.rows["agents"].append(
                {
                    "cache": label,
                    "agent_index": agent.index,
                    "agent": agent.name,
                    "role": agent.role,
                    "kind": agent.kind,
                    "price": agent.price,
                    "paid": agent.paid if agent.paid_each is None else agent.paid_each,
                    "paid_each": agent.paid_each,
                    "unit_paid": cache.record.unit_paid or None,
                    "description": agent.description,
                }
            )
            constants: dict[str, str | int] = {"cache": label, "agent": agent.name, "agent_index": agent.index}
            for part in self._present(cache, [schema.predictions_part(cache.path, agent.name, k) for k in chunks]):
                columns = store.columns_of(part[0])
                self._add("predictions", part, without(columns, ["features"]), constants)
                if "features" in columns.names:  # what the model showed of itself, the rejector's input
                    self._add("features", part, only(columns, ["sample_id", "features"]), {"cache": label})
            digest = cache.record.cost_digest
            for part in self._present(cache, [schema.costs_part(cache.path, agent.name, k, digest) for k in chunks]):
                self._add("costs", part, store.columns_of(part[0]), constants)

    def _present(self, cache: CostCache, parts: list[Path]) -> list[tuple[Path, str]]:
        """Those that are there, each compared with its seal, and their skeletons."""
        there = [part for part in parts if cache.has(part)]
        if cache.mirror is not None:
            self.lent.hold(cache.mirror, there)
        return [(part, cache.check_part(part)) for part in there]

    def _add_runs(self, folders: list[Path], caches: list[CostCache], labels: list[str]) -> None:
        facts = [read_facts(folder) for folder in folders]
        run_ids = told_apart([fact["run_id"] for fact in facts], folders)
        places = _Places(caches, labels)
        strangers: dict[str, int] = {"changed": 0, "absent": 0}
        for folder, fact, run_id in zip(folders, facts, run_ids, strict=True):
            label, state = places.label_of(folder, fact)
            if state in strangers:
                strangers[state] += 1
            self.rows["runs"].append(_run_row(folder, fact, {"cache": label, "run_id": run_id, "cache_state": state}))
            for index, (agent, beta) in enumerate(zip(fact["agents"], fact["point"]["query_costs"], strict=True)):
                row = {"cache": label, "run_id": run_id, "agent_index": index, "agent": agent, "beta": beta}
                self.rows["run_agents"].append(row)
            table = folder / ALLOCATIONS_FILE
            skeleton = fact["digests"][ALLOCATIONS_FILE]
            constants: dict[str, str | int] = {"cache": label, "run_id": run_id}
            self.parts["allocations"].append(
                Part(table, store.columns_of(table), constants, skeleton, tuple(fact["agents"]))
            )
        if strangers["changed"]:
            self.notes.append(
                f"{strangers['changed']} runs were trained on a cache that has been built again since: they share no "
                "`cache` with its rows (cache_state is 'changed'); train them again"
            )
        if strangers["absent"] and caches:
            self.notes.append(
                f"the caches of {strangers['absent']} runs are not beneath these paths (cache_state is 'absent'): "
                "give them too to join costs or samples"
            )


class _Places:
    """Which cache each run was trained on, wherever it lies now."""

    def __init__(self, caches: list[CostCache], labels: list[str]):
        self.caches = dict(zip(labels, caches, strict=True))
        self._fingerprints: dict[tuple[str, bool], dict[str, str]] = {}

    def label_of(self, folder: Path, facts: dict) -> tuple[str, str]:
        """The `cache` of a run's rows, and whether that cache is ``here``, ``changed`` or ``absent``."""
        name, trained_on = facts["cache"]["name"], facts["cache"]["fingerprint"]
        place = cache_of(folder, facts)
        place = place if isinstance(place, str) else place.resolve()

        def lies_there(label: str) -> bool:
            cache = self.caches[label]
            return place == (cache.path if cache.mirror is None else cache.address)

        near = sorted(self.caches, key=lambda label: not lies_there(label))
        near = [label for label in near if lies_there(label) or self.caches[label].record.name == name]
        for label in near:
            now = self._fingerprint(label, priced=any(name.startswith(PRICES) for name in trained_on))
            if all(now.get(subject) == digest for subject, digest in trained_on.items()):
                return label, "here"
        if near and lies_there(near[0]):
            return f"{near[0]} before it was built again", "changed"
        return (str(place) if name in self.caches else name), "absent"

    def _fingerprint(self, label: str, *, priced: bool) -> dict[str, str]:
        if (label, priced) not in self._fingerprints:
            try:
                self._fingerprints[label, priced] = cache_fingerprint(self.caches[label].with_prices(priced))
            except FileNotFoundError:  # it is being built
                self._fingerprints[label, priced] = {}
        return self._fingerprints[label, priced]


def _run_row(folder: Path, facts: dict, names: dict[str, str]) -> dict:
    point, training = facts["point"], facts["training"]
    row = {
        **names,
        "method": point["method"],
        "beta": point["beta"] if isinstance(point["beta"], int | float) else None,  # by name: see run_agents
        "nu": point["nu"],
        "seed": point["seed"],
        **{f"lambda_{task}": weight for task, weight in point["weights"].items()},
        **{f"beta_{index}": value for index, value in enumerate(point["query_costs"])},
        "beta_paid": point.get("paid"),
        "cost": point["cost"],
        "rejector": training["network"],
        "best_epoch": facts["best_epoch"],
        "validation_risk": facts["validation_risk"],
        "path": str(folder),
    }
    settings = {name: value for name, value in training.items() if isinstance(value, bool | int | float | str)}
    return row | {name: value for name, value in settings.items() if name not in row and name != "network"}
