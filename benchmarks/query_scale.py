"""100 million allocation rows on disk: shares and mean costs, and a join with costs, against DuckDB and polars alone.

    python benchmarks/query_scale.py [--rows 100000000] [--runs 100] [--rounds 3] [--folder /tmp]

A cache of `rows / runs` samples and three agents, and that many runs on it, their allocations as `l2d sweep` writes
them but for the oracle's columns. Ours is the connection of `l2d query`: it compares seals when it opens, and page
checksums before the first query on a view; the rounds then measure what is known to be good. DuckDB reads the same
Parquet files by itself, polars scans them lazily; neither checks anything.
Each query runs in a process of its own, the files having been read once before; the answers have to agree. Seconds are
the query's, without imports; opening is ours alone: finding the files, every seal, every footer. Memory is the peak
resident set of the process, imports included (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from targets import print_targets

AGENTS = ["model", "expert", "cheap"]
CHUNK = 65_536
QUERIES = ["share", "join"]
CANDIDATES = ["l2d query", "DuckDB", "polars"]

SQL = {
    "share": """SELECT agent, count(*) AS n, avg(deferral_cost) AS cost
                FROM {allocations} GROUP BY agent ORDER BY agent""",
    "join": """SELECT a.agent, count(*) AS n, avg(c.cost_cla) AS cost
               FROM {allocations} a JOIN {costs} c ON a.sample_id = c.sample_id AND a.agent = c.agent
               WHERE a.split = 'test' GROUP BY a.agent ORDER BY a.agent""",
}


def make_world(folder: Path, samples: int, runs: int) -> None:
    """A sealed cache and runs on it, of random numbers."""
    from l2d.data.cache import schema, store
    from l2d.data.cache.integrity import sha256_of, skeleton_digest
    from l2d.data.cache.reader import AgentRecord, CacheRecord, CostCache
    from l2d.rejector.runs.files import ALLOCATIONS_FILE, RUN_FILE, WEIGHTS_FILE, cache_fingerprint

    generator, cache = np.random.default_rng(0), folder / "cache"
    record = CacheRecord(
        name="random", num_samples=samples, chunk_size=CHUNK, tasks=["cla"], classes=["no", "yes"], unit_reg="",
        inputs={}, keep=[], agents=AGENTS, costs={"cla": {"kind": "zero_one"}}, defaults={}, fingerprint={},
    )  # fmt: skip
    store.commit_json(schema.cache_file(cache), asdict(record))
    ids = pa.array([f"s{row:07d}" for row in range(samples)])
    split = pa.array(["train", "validation", "test"]).take(pa.array(generator.integers(0, 3, samples)))
    parts = []
    for index, name in enumerate(AGENTS):
        agent = AgentRecord(
            name=name, index=index, kind="column", role="agent", price=float(index > 0), description="", queries=[name]
        )
        store.commit_json(schema.agent_file(cache, name), asdict(agent))
    for chunk in range(record.num_chunks):
        here = record.chunk_rows(chunk)
        rows = pa.table({"sample_id": ids, "split": split}).slice(here.start, len(here))
        facts = {"schema": str(schema.SCHEMA_VERSION), "chunk": str(chunk), "ids": str(chunk)}
        parts.append(schema.samples_part(cache, chunk))
        store.commit_table(parts[-1], rows, {**facts, "owner": "samples"})
        for name in AGENTS:
            costs = pa.array(generator.random(len(here), dtype=np.float32))
            parts.append(schema.costs_part(cache, name, chunk, record.cost_digest))
            store.commit_table(
                parts[-1], pa.table({"sample_id": rows["sample_id"], "cost_cla": costs}), {**facts, "owner": name}
            )
    seals: dict[Path, dict] = {}
    for part in parts:
        rows = pq.read_metadata(part).num_rows
        facts = {
            "rows": rows,
            "bytes": part.stat().st_size,
            "sha256": sha256_of(part),
            "skeleton": skeleton_digest(part),
        }
        seals.setdefault(schema.seal_file(part), {})[part.name] = facts
    for seal, facts in seals.items():
        store.commit_json(seal, {"parts": facts})
    fingerprint = cache_fingerprint(CostCache(cache))

    def random() -> pa.Array:
        return pa.array(generator.random(samples, dtype=np.float32))

    for run in range(runs):
        where = folder / "runs" / f"run_{run:03d}"
        agent = pa.array(generator.integers(0, len(AGENTS), samples, dtype=np.int32))
        table = pa.table(
            {
                "sample_id": ids, "split": split, "agent_index": agent, "agent": pa.array(AGENTS).take(agent),
                **{f"{name}_{j}": random() for name in ("score", "cost") for j in range(len(AGENTS))},
                "deferral_cost": random(),
            }
        )  # fmt: skip
        store.commit_batches(where / ALLOCATIONS_FILE, table.schema, table.to_batches(max_chunksize=32_768), {})
        store.commit_bytes(where / WEIGHTS_FILE, b"none")
        point = {"method": "multi-task", "beta": 0.1, "nu": 1.0, "seed": run, "weights": {"cla": 1.0},
                 "query_costs": [0.0, 0.1, 0.1], "cost": None}  # fmt: skip
        digests = {
            WEIGHTS_FILE: sha256_of(where / WEIGHTS_FILE),
            ALLOCATIONS_FILE: skeleton_digest(where / ALLOCATIONS_FILE),
        }
        facts = {
            "run_id": where.name, "point": point, "training": {"network": "mlp"}, "history": [], "best_epoch": 0,
            "validation_risk": 0.0, "agents": AGENTS, "digests": digests,
            "cache": {"path": str(cache), "relative_path": "../../cache", "name": "random", "fingerprint": fingerprint},
        }  # fmt: skip
        store.commit_json(where / RUN_FILE, facts)


def ours(folder: Path, query: str) -> tuple[list, float, float]:
    """Rows, seconds to open, seconds to answer."""
    from l2d.rejector.sql.query import QuerySession

    start = time.perf_counter()
    with QuerySession([folder]) as session:
        opened = time.perf_counter()
        rows = session.run(SQL[query].format(allocations="allocations", costs="costs")).table()
        return [tuple(row.values()) for row in rows.to_pylist()], opened - start, time.perf_counter() - opened


def plain_duckdb(folder: Path, query: str) -> tuple[list, float, float]:
    import duckdb

    costs = " UNION ALL ".join(
        f"SELECT '{name}' AS agent, * FROM read_parquet('{folder}/cache/agents/{name}/costs-*/*.parquet')"
        for name in AGENTS
    )
    allocations = f"read_parquet('{folder}/runs/*/allocations.parquet')"
    start = time.perf_counter()
    rows = duckdb.sql(SQL[query].format(allocations=allocations, costs=f"({costs})")).fetchall()
    return rows, 0.0, time.perf_counter() - start


def lazy_polars(folder: Path, query: str) -> tuple[list, float, float]:
    import polars as pl

    start = time.perf_counter()
    frame = pl.scan_parquet(folder / "runs" / "*" / "allocations.parquet")
    if query == "join":
        costs = pl.concat(
            pl.scan_parquet(folder / "cache" / "agents" / name / "costs-*" / "*.parquet").with_columns(
                agent=pl.lit(name)
            )
            for name in AGENTS
        )
        frame = frame.filter(split="test").join(costs, on=["sample_id", "agent"])
    column = "deferral_cost" if query == "share" else "cost_cla"
    frame = frame.group_by("agent").agg(n=pl.len(), cost=pl.col(column).cast(pl.Float64).mean()).sort("agent")
    return frame.collect(engine="streaming").rows(), 0.0, time.perf_counter() - start


RUNNERS = dict(zip(CANDIDATES, (ours, plain_duckdb, lazy_polars), strict=True))


def peak_mib() -> float:
    """Peak resident set of this process; what getrusage says begins with that of the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(folder: Path, candidate: str, query: str) -> dict:
    """One query in a process of its own."""
    command = [sys.executable, __file__, "--measure", candidate, query, "--folder", str(folder)]
    memory = {**os.environ, "XDG_CACHE_HOME": str(folder / "known_good")}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=memory)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the tables are put")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        candidate, query = given.measure
        rows, opened, seconds = RUNNERS[candidate](given.folder, query)
        print(json.dumps({"rows": rows, "open": opened, "seconds": seconds, "mib": peak_mib()}))
        return
    need = given.rows * 72
    if shutil.disk_usage(given.folder).free < 2 * need:
        sys.exit(f"{given.folder}: the tables take {need / 1e9:.1f} GB, and twice as much should be free")
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="query_scale_") as name:
        folder = Path(name)
        start = time.perf_counter()
        make_world(folder, given.rows // given.runs, given.runs)
        size = sum(file.stat().st_size for file in folder.rglob("*.parquet")) / 1e9
        print(
            f"{given.rows:,} allocations, {given.runs} runs, {size:.1f} GB, made in {time.perf_counter() - start:.0f} s"
        )
        measure(folder, "DuckDB", "join")  # the files are in the page cache from here on
        for query in QUERIES:  # what was sound is remembered from here on
            first = measure(folder, "l2d query", query)["seconds"]
            print(f"{query}, the first time, page checksums compared: {first:.2f} s")
        found: dict[tuple[str, str], list[dict]] = {}
        for _ in range(given.rounds):
            for query in QUERIES:
                for candidate in CANDIDATES:
                    found.setdefault((query, candidate), []).append(measure(folder, candidate, query))
    report(found)


def report(found: dict[tuple[str, str], list[dict]]) -> None:
    print("\n| query | | seconds | l2d is … times as slow | peak MiB |\n| --- | --- | ---: | ---: | ---: |")
    ratios = {}
    for query in QUERIES:
        us = found[query, CANDIDATES[0]]
        for candidate in CANDIDATES:
            them = found[query, candidate]
            for one, other in zip(us, them, strict=True):
                assert [row[:2] for row in one["rows"]] == [row[:2] for row in other["rows"]]
                assert np.allclose([row[2] for row in one["rows"]], [row[2] for row in other["rows"]], rtol=1e-5)
            seconds = statistics.median(m["seconds"] for m in them)
            ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(us, them, strict=True))
            mib = statistics.median(m["mib"] for m in them)
            if candidate != CANDIDATES[0]:
                ratios[f"{query}: l2d query / {candidate}"] = round(ratio, 3)
            print(f"| {query} | {candidate} | {seconds:.2f} | {ratio:.2f} | {mib:,.0f} |")
    opening = statistics.median(m["open"] for (_, c), members in found.items() if c == CANDIDATES[0] for m in members)
    print(f"\nopening, ours: {opening:.2f} s")
    lines = []
    for query in QUERIES:
        memory = {c: statistics.median(one["mib"] for one in found[query, c]) for c in CANDIDATES}
        for peer, most in (("DuckDB", 1.0), ("polars", 1.3)):
            lines.append((f"query, {query}", f"seconds / {peer}", ratios[f"{query}: l2d query / {peer}"], "<=", most))
        lines.append((f"query, {query}", "memory / DuckDB", memory[CANDIDATES[0]] / memory["DuckDB"], "<=", 1.5))
    print_targets(lines)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
