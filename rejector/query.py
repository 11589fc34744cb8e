"""SQL over caches and runs.

Views: ``samples``, ``features``, ``images``, ``agents``, ``costs``, ``predictions``, ``allocations``, ``runs``; macro
``allocate(list of scores)``, the tie-safe argmax. Files are read by pyarrow with page checksums on and registered by
name; file access, extensions and settings are then switched off. That is a guard against accidents and injected text,
not a security boundary.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from data import schema, store
from data.cache import CostCache
from data.errors import CorruptPart, UsageError

from .runs import ALLOCATIONS_FILE, RUN_FILE, cache_of, read_facts

EMPTY_VIEWS = {
    "samples": {"cache": pa.string(), "sample_id": pa.string(), "split": pa.string()},
    "features": {"cache": pa.string(), "sample_id": pa.string(), "features": pa.list_(pa.float32())},
    "images": {"cache": pa.string(), "sample_id": pa.string(), "image": pa.binary()},
    "agents": {"cache": pa.string(), "agent_index": pa.int32(), "agent": pa.string()},
    "costs": {"cache": pa.string(), "sample_id": pa.string(), "agent": pa.string()},
    "predictions": {"cache": pa.string(), "sample_id": pa.string(), "agent": pa.string()},
    "allocations": {"cache": pa.string(), "run_id": pa.string(), "sample_id": pa.string(), "agent": pa.string()},
    "runs": {"cache": pa.string(), "run_id": pa.string()},
}


def _interruptible(connection, sql: str) -> pa.Table:
    """Run a statement in a thread, so that a signal is heard meanwhile and ends it."""

    def run() -> pa.Table:
        result = connection.sql(sql)
        return pa.table({}) if result is None else result.to_arrow_table()

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(run)
        try:
            while not answer.done():
                wait([answer], timeout=0.2)
            return answer.result()
        except BaseException:
            connection.interrupt()
            raise


@dataclass
class Sources:
    """What lies beneath the paths of a query."""

    caches: list[Path] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)


def find_sources(paths: list[Path]) -> Sources:
    """Every cache and run at or beneath the paths, each once.

    Raises:
        UsageError: a path does not exist, or nothing is found.
    """
    sources = Sources()
    for path in paths:
        if not path.exists():
            raise UsageError("there is no such path", where=path, hint="give caches, runs, or a folder above them")
        found = {"cache.json": sources.caches, RUN_FILE: sources.runs}
        for name, into in found.items():
            for file in sorted(path.rglob(name)):
                folder = file.parent.resolve()
                if folder not in into and not folder.name.endswith(store.TEMPORARY_SUFFIX):
                    into.append(folder)
    if not sources.caches and not sources.runs:
        raise UsageError("no cache and no run here", where=", ".join(map(str, paths)), hint="see `l2d build --help`")
    return sources


def query(paths: list[Path], sql: str) -> pa.Table:
    """Run one SQL statement over everything beneath the paths.

    Raises:
        UsageError: nothing found, or the SQL is wrong or not allowed.
        CorruptPart: a part that the statement reads is damaged.
    """
    import duckdb

    sources = find_sources(paths)
    connection = duckdb.connect(config={"python_enable_replacements": False})
    try:
        views: dict[str, list[str]] = {name: [] for name in EMPTY_VIEWS}
        catalogue = _Catalogue(connection, views)
        labels = _labels([CostCache(path).record.name for path in sources.caches], sources.caches)
        for path, label in zip(sources.caches, labels, strict=True):
            catalogue.add_cache(CostCache(path), label)
        _add_runs(catalogue, sources, dict(zip(sources.caches, labels, strict=True)))
        for name, selects in views.items():
            if not selects:
                catalogue.register(f"{name}_empty", pa.schema(list(EMPTY_VIEWS[name].items())).empty_table())
                selects.append(f'SELECT * FROM "{name}_empty"')
            connection.execute(f'CREATE TEMP VIEW "{name}" AS {" UNION ALL BY NAME ".join(selects)}')
        connection.execute("CREATE TEMP MACRO allocate(scores) AS list_position(scores, list_max(scores)) - 1")
        connection.execute("SET enable_external_access = false; SET lock_configuration = true")
        return _interruptible(connection, sql)
    except duckdb.Error as error:
        text = str(error)
        if "crc" in text.lower() or "checksum" in text.lower() or "deserialize" in text.lower():
            raise CorruptPart(text.splitlines()[0], where=paths[0], hint="l2d verify CACHE names the file") from error
        raise UsageError(
            text.strip(), hint=f"views: {', '.join(EMPTY_VIEWS)}; `DESCRIBE costs` lists a view's columns"
        ) from error
    except OSError as error:
        raise CorruptPart(str(error).splitlines()[0], where=paths[0], hint="l2d verify CACHE names the file") from error
    finally:
        connection.close()


class _Catalogue:
    """Registers tables under names of its own and collects the SELECTs each view is a union of."""

    def __init__(self, connection, views: dict[str, list[str]]):
        self.connection, self.views, self.count = connection, views, 0

    def register(self, name: str, table: pa.Table | pads.Dataset) -> str:
        self.connection.register(name, table)
        return f'"{name}"'

    def add_parts(self, view: str, parts: list[Path], constants: dict[str, object], columns: str = "*") -> None:
        """Add Parquet parts to a view, with constant columns in front."""
        if not parts:
            return
        self.count += 1
        source = self.register(f"parts_{self.count}", _verified_dataset(parts))
        front = "".join(f"{_literal(value)} AS {name}, " for name, value in constants.items())
        self.views[view].append(f"SELECT {front}{columns} FROM {source}")

    def add_rows(self, view: str, rows: list[dict]) -> None:
        self.count += 1
        source = self.register(f"rows_{self.count}", pa.Table.from_pylist(rows))
        self.views[view].append(f"SELECT * FROM {source}")

    def add_cache(self, cache: CostCache, label: str) -> None:
        chunks = range(cache.record.num_chunks)
        samples = _present(cache, [schema.samples_part(cache.path, k) for k in chunks])
        if samples:
            names = _verified_dataset(samples).schema.names
            inputs = [name for name in names if name in schema.INPUT_COLUMNS]
            exclude = f"* EXCLUDE ({', '.join(inputs)})" if inputs else "*"
            self.add_parts("samples", samples, {"cache": label}, exclude)
            for view, column in (("features", "features"), ("images", "image")):
                if column in inputs:
                    self.add_parts(view, samples, {"cache": label}, f"sample_id, {column}")
        if not cache.all_agents:
            return
        facts = ("index", "name", "role", "kind", "price", "description")
        rows = [{"cache": label, **{name: getattr(agent, name) for name in facts}} for agent in cache.all_agents]
        for row in rows:
            row["agent_index"], row["agent"] = row.pop("index"), row.pop("name")
        self.add_rows("agents", rows)
        for agent in cache.all_agents:
            constants = {"cache": label, "agent": agent.name, "agent_index": agent.index}
            folder = {
                "predictions": [schema.predictions_part(cache.path, agent.name, k) for k in chunks],
                "costs": [schema.costs_part(cache.path, agent.name, k, cache.record.cost_digest) for k in chunks],
            }
            for view, parts in folder.items():
                present, columns = _present(cache, parts), "*"
                if present and view == "predictions" and "features" in _verified_dataset(present).schema.names:
                    columns = "* EXCLUDE (features)"  # what the model showed of itself, the rejector's input
                    self.add_parts("features", present, {"cache": label}, "sample_id, features")
                self.add_parts(view, present, constants, columns)


def _add_runs(catalogue: _Catalogue, sources: Sources, cache_labels: dict[Path, str]) -> None:
    facts = [read_facts(path) for path in sources.runs]
    run_ids = _labels([fact["run_id"] for fact in facts], sources.runs)
    rows = []
    for path, fact, run_id in zip(sources.runs, facts, run_ids, strict=True):
        label = cache_labels.get(cache_of(path, fact), fact["cache"]["name"])
        point = fact["point"]
        beta = point["beta"]
        rows.append(
            {
                "cache": label,
                "run_id": run_id,
                "method": point["method"],
                "beta": beta if isinstance(beta, float) else None,
                "nu": point["nu"],
                "seed": point["seed"],
                **{f"lambda_{task}": weight for task, weight in point["weights"].items()},
                **{f"beta_{index}": value for index, value in enumerate(point["query_costs"])},
                "cost": point["cost"],
                "rejector": fact["training"]["network"],
                "best_epoch": fact["best_epoch"],
                "validation_risk": fact["validation_risk"],
                "path": str(path),
            }
        )
        catalogue.add_parts("allocations", [path / ALLOCATIONS_FILE], {"cache": label, "run_id": run_id})
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        catalogue.add_rows("runs", [{name: row.get(name) for name in columns} for row in rows])


def _present(cache: CostCache, parts: list[Path]) -> list[Path]:
    """Those that are there, each compared with its seal."""
    present = [part for part in parts if part.is_file()]
    for part in present:
        cache.check_part(part)
    return present


def _verified_dataset(parts: list[Path]) -> pads.Dataset:
    scan = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
    columns = pa.unify_schemas([pq.read_schema(part).remove_metadata() for part in parts])  # failures add columns
    format = pads.ParquetFileFormat(default_fragment_scan_options=scan)
    return pads.dataset([str(part) for part in parts], schema=columns, format=format)


def _labels(names: list[str], paths: list[Path]) -> list[str]:
    """Names where they are unique; twins are called by their folder, with as many parents as tell them apart."""
    labels = []
    for name, path in zip(names, paths, strict=True):
        twins = [other for n, other in zip(names, paths, strict=True) if n == name and other != path]
        depth = 1
        while any(other.parts[-depth:] == path.parts[-depth:] for other in twins):
            depth += 1
        labels.append("/".join(path.parts[-depth:]) if twins else name)
    return labels


def _literal(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    return "'" + str(value).replace("'", "''") + "'"
