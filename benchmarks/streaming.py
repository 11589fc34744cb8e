"""A cost cache of 2 million rows and 64 features into batches of 4096, in order and shuffled, against other readers.

    python benchmarks/streaming.py [--rows 2000000] [--rounds 3] [--chunk 4096] [--memory 256]
    python benchmarks/streaming.py --growth 100000,1000000,10000000
    python benchmarks/streaming.py --chunks 1024,4096,32768

Each candidate runs in a process of its own and sums every value, so that all is really read; the sums have to agree.
The files are read once beforehand. The others get the same numbers in one Parquet file in our layout (plain,
uncompressed), which is their fastest. A process reads all once, which opens files and, for ours, verifies every
checksum; then again until two seconds have gone by, and the fastest of these passes counts. Slow ones read a part of
the rows. Ratios are taken within a round; the table shows medians. Private memory is the peak of anonymous and shared
pages of the process, without mapped files, which the system can drop.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH, WIDTH, AGENTS = 4096, 64, ["model", "expert", "api"]
TASKS = ["cla", "reg", "map"]
COSTS = [f"cost_{agent}_{task}" for agent in AGENTS for task in TASKS]
FEW = 262_144  # rows that the slow ones read


# --- the table --------------------------------------------------------------------------------------------------------


def make_cache(path: Path, rows: int, chunk_size: int, train: float = 1.0, kept: int = 0) -> None:
    """A sealed cache of random numbers, ``train`` of its rows in the training split, the others in both others.

    Args:
        kept: columns of the source that are kept, a text of 16 letters each.
    """
    from l2d.data.cache import schema, store
    from l2d.data.cache.columns import dense_array
    from l2d.data.cache.integrity import sha256_of, skeleton_digest
    from l2d.data.cache.reader import AgentRecord, CacheRecord

    record = CacheRecord(
        name="random",
        num_samples=rows,
        chunk_size=chunk_size,
        tasks=TASKS,
        classes=["no", "yes"],
        unit_reg="",
        inputs={"features": {"width": WIDTH}},
        keep=[f"kept_{k}" for k in range(kept)],
        agents=AGENTS,
        costs={task: {} for task in TASKS},
        defaults={},
        fingerprint={},
    )
    store.commit_json(schema.cache_file(path), asdict(record))
    for index, name in enumerate(AGENTS):
        agent = AgentRecord(
            name=name, index=index, kind="column", role="agent", price=float(index > 0), description="", queries=[name]
        )
        store.commit_json(schema.agent_file(path, name), asdict(agent))
    generator, parts = np.random.default_rng(0), []
    for chunk in range(record.num_chunks):
        here = record.chunk_rows(chunk)
        names = [f"s{row:09d}" for row in here]
        facts = {"schema": str(schema.SCHEMA_VERSION), "chunk": str(chunk), "ids": schema.ids_digest(names)}
        ids = {"sample_id": pa.array(names)}
        draw = generator.random(len(here))
        others = np.where(draw < (1 + train) / 2, "validation", "test")
        split = pa.array(np.where(draw < train, "train", others).tolist())
        features = dense_array(generator.standard_normal((len(here), WIDTH), dtype=np.float32))
        texts = {name: pa.array([f"{x:016.12f}" for x in generator.random(len(here))]) for name in record.keep}
        columns = {**ids, "split": split, **texts, "features": features}
        parts.append((schema.samples_part(path, chunk), "samples", columns))
        for name in AGENTS:
            costs = {f"cost_{task}": pa.array(generator.random(len(here), dtype=np.float32)) for task in TASKS}
            parts.append((schema.predictions_part(path, name, chunk), name, ids))
            parts.append((schema.costs_part(path, name, chunk, record.cost_digest), name, {**ids, **costs}))
        for part, owner, columns in parts[-7:]:
            store.commit_table(part, pa.table(columns), {**facts, "owner": owner})
        parts[-7:] = [(part, len(here), None) for part, _, _ in parts[-7:]]
    seals: dict[Path, dict] = {}
    for part, count, _ in parts:
        facts = {"rows": count, "bytes": os.path.getsize(part)}
        facts |= {"sha256": sha256_of(part), "skeleton": skeleton_digest(part)}
        seals.setdefault(schema.seal_file(part), {})[part.name] = facts
    for seal, facts in seals.items():
        store.commit_json(seal, {"parts": facts})


def make_files(cache: Path, folder: Path) -> None:
    """The same numbers in one Parquet file for the others: ``table`` in our layout, ``usual`` as pyarrow would."""
    from l2d.data.cache.reader import CostCache
    from l2d.data.cache.store import PARQUET_LAYOUT, ROW_GROUP_ROWS

    layout = {name: value for name, value in PARQUET_LAYOUT.items() if name != "row_group_size"}
    waiting: dict[str, list[pa.Table]] = {"table": [], "usual": []}
    sizes = {"table": ROW_GROUP_ROWS, "usual": 1 << 20}
    writers: dict[str, pq.ParquetWriter] = {}

    def flush(name: str) -> None:
        table, waiting[name] = pa.concat_tables(waiting[name]), []
        if name not in writers:
            options = layout if name == "table" else {}
            writers[name] = pq.ParquetWriter(folder / f"{name}.parquet", table.schema, **options)
        writers[name].write_table(table, row_group_size=sizes[name])

    for samples, _, costs in CostCache(cache).chunks():
        columns = {"features": samples["features"]}
        for agent, part in zip(AGENTS, costs, strict=True):
            columns |= {f"cost_{agent}_{task}": part[f"cost_{task}"] for task in TASKS}
        for name, tables in waiting.items():
            tables.append(pa.table(columns))
            if sum(map(len, tables)) >= sizes[name]:
                flush(name)
    for name, tables in waiting.items():
        if tables:
            flush(name)
        writers[name].close()


# --- candidates: each is given the folder and the memory bound, and returns a pass that yields (features, costs) ------

Pass = Callable[[], Iterator[tuple]]


def tensors(folder: Path):
    """Features (n, W) and costs (n, 9) in memory, read without ever holding more."""
    import torch

    file = pq.ParquetFile(folder / "table.parquet")
    features = torch.empty(file.metadata.num_rows, WIDTH)
    costs, start = torch.empty(file.metadata.num_rows, len(COSTS)), 0
    for group in range(file.metadata.num_row_groups):
        table = file.read_row_group(group)
        stop = start + len(table)
        features[start:stop], costs[start:stop] = columns_of(table)
        start = stop
    return features, costs


def columns_of(table: pa.Table | pa.RecordBatch):
    """Tensors of an Arrow table or batch; where the table is cut in pieces, copies."""
    import torch

    column = table["features"]
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    features = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, WIDTH)
    costs = np.stack([table[name].to_numpy(zero_copy_only=False) for name in COSTS], axis=1)
    return torch.from_dlpack(features), torch.from_numpy(costs)


def ours(folder: Path, memory: int) -> Pass:
    from l2d.data.cache.reader import CostCache
    from l2d.rejector.rows.stream import open_streams

    stream = open_streams(CostCache(folder / "cache"), ("train",))["train"]
    return lambda: stream.in_order(BATCH)


def ours_shuffled(folder: Path, memory: int, seeds: int = 1) -> Pass:
    from l2d.data.cache.reader import CostCache
    from l2d.rejector.rows.shuffled import Shuffled
    from l2d.rejector.rows.stream import open_streams

    stream = open_streams(CostCache(folder / "cache"), ("train",))["train"]
    shuffled, epochs = Shuffled(stream, BATCH, list(range(seeds)), memory=memory), iter(range(100))
    return lambda: (batch for _, batch in shuffled.epoch(next(epochs)))


def ours_four_seeds(folder: Path, memory: int) -> Pass:
    return ours_shuffled(folder, memory, seeds=4)


def ours_first_pass(folder: Path, memory: int) -> Pass:
    """Opening a cache: every checksum, every value; nothing is yielded but the numbers of rows."""
    from l2d.data.cache.reader import CostCache
    from l2d.rejector.rows.stream import open_streams

    def opening() -> Iterator[tuple]:
        yield len(open_streams(CostCache(folder / "cache"), ("train",))["train"]), None

    return opening


def imports(folder: Path, memory: int) -> Pass:
    """Reads nothing: the memory of a process that has imported what the others need."""
    import l2d.rejector.rows.shuffled  # noqa: F401

    return lambda: iter([(0, None)])


def in_memory(folder: Path, memory: int) -> Pass:
    features, costs = tensors(folder)
    return lambda: zip(features.split(BATCH), costs.split(BATCH), strict=True)


def in_memory_gather(folder: Path, memory: int) -> Pass:
    import torch

    features, costs = tensors(folder)

    def gather() -> Iterator[tuple]:
        for rows in torch.randperm(len(features)).split(BATCH):
            yield features.index_select(0, rows), costs.index_select(0, rows)

    return gather


def loader(folder: Path, *, shuffle: bool) -> Pass:
    from torch.utils.data import DataLoader, TensorDataset

    features, costs = tensors(folder)
    return lambda: iter(DataLoader(TensorDataset(features[:FEW], costs[:FEW]), batch_size=BATCH, shuffle=shuffle))


def data_loader(folder: Path, memory: int) -> Pass:
    return loader(folder, shuffle=False)


def data_loader_shuffled(folder: Path, memory: int) -> Pass:
    return loader(folder, shuffle=True)


def data_loader_by_batch(folder: Path, memory: int) -> Pass:
    """The trick: a batch sampler as the sampler, so that rows are indexed a batch at a time."""
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

    dataset = TensorDataset(*tensors(folder))
    return lambda: iter(
        DataLoader(dataset, sampler=BatchSampler(RandomSampler(dataset), BATCH, False), batch_size=None)
    )


def pyarrow_batches(folder: Path, memory: int, file: str = "table.parquet") -> Pass:
    import pyarrow.dataset as pads

    return lambda: map(columns_of, pads.dataset(folder / file).to_batches(batch_size=BATCH))


def pyarrow_batches_usual(folder: Path, memory: int) -> Pass:
    return pyarrow_batches(folder, memory, "usual.parquet")


def pyarrow_groups(folder: Path, memory: int) -> Pass:
    """Row group by row group, then slices: the cheapest ordinary way."""

    def groups() -> Iterator[tuple]:
        file = pq.ParquetFile(folder / "table.parquet")
        for group in range(file.metadata.num_row_groups):
            features, costs = columns_of(file.read_row_group(group))
            yield from zip(features.split(BATCH), costs.split(BATCH), strict=True)

    return groups


def polars_batches(folder: Path, memory: int) -> Pass:
    import polars as pl

    def batches() -> Iterator[tuple]:
        for frame in pl.scan_parquet(folder / "table.parquet").collect_batches(chunk_size=65_536):
            features, costs = columns_of(frame.to_arrow().cast(pq.read_schema(folder / "table.parquet")))
            yield from zip(features.split(BATCH), costs.split(BATCH), strict=True)

    return batches


def polars_shuffled(folder: Path, memory: int) -> Pass:
    import polars as pl

    def batches() -> Iterator[tuple]:
        frame = pl.read_parquet(folder / "table.parquet").sample(fraction=1.0, shuffle=True)
        for part in frame.iter_slices(BATCH):
            yield columns_of(part.to_arrow())

    return batches


def duckdb_batches(folder: Path, memory: int, order: str = "") -> Pass:
    import duckdb

    def batches() -> Iterator[tuple]:
        found = duckdb.sql(f"FROM '{folder / 'table.parquet'}' {order}").to_arrow_reader(65_536)
        for batch in found:
            features, costs = columns_of(batch)
            yield from zip(features.split(BATCH), costs.split(BATCH), strict=True)

    return batches


def duckdb_shuffled(folder: Path, memory: int) -> Pass:
    return duckdb_batches(folder, memory, order="ORDER BY random()")


def hf_streaming(folder: Path, memory: int, shuffle: bool = False) -> Pass:
    """HF datasets, streaming from the file, Arrow tables turned into tensors as above."""
    from datasets import load_dataset

    def batches() -> Iterator[tuple]:
        found = load_dataset("parquet", data_files=str(folder / "table.parquet"), split="train", streaming=True)
        if shuffle:
            found = found.shuffle(seed=0, buffer_size=10_000).take(20_000)
        for batch in found.with_format("arrow").iter(BATCH):
            yield columns_of(batch)

    return batches


def hf_streaming_shuffled(folder: Path, memory: int) -> Pass:
    return hf_streaming(folder, memory, shuffle=True)


def hf_mapped(folder: Path, memory: int) -> Pass:
    """HF datasets, converted once into its mapped cache (outside the measured time, on disk a second time)."""
    from datasets import load_dataset

    place = str(folder / "hf")
    found = load_dataset("parquet", data_files=str(folder / "table.parquet"), split="train", cache_dir=place)
    return lambda: (columns_of(batch) for batch in found.with_format("arrow").iter(BATCH))


def ray_batches(folder: Path, memory: int, shuffle: bool = False) -> Pass:
    import ray

    ray.init(log_to_driver=False, include_dashboard=False, num_cpus=2)
    found = ray.data.read_parquet(str(folder / "table.parquet"))
    buffer = 4 * BATCH if shuffle else None

    def batches() -> Iterator[tuple]:
        options = {"batch_size": BATCH, "batch_format": "pyarrow", "local_shuffle_buffer_size": buffer}
        for batch in found.iter_batches(**options):
            yield columns_of(batch)

    return batches


def ray_shuffled(folder: Path, memory: int) -> Pass:
    return ray_batches(folder, memory, shuffle=True)


IN_ORDER = {
    "tensors in memory, slices": in_memory,
    "**l2d stream**": ours,
    "pyarrow row groups, then slices": pyarrow_groups,
    "pyarrow `to_batches`": pyarrow_batches,
    "pyarrow `to_batches`, file of `pq.write_table`'s defaults": pyarrow_batches_usual,
    "polars `collect_batches`": polars_batches,
    "DuckDB `to_arrow_reader`": duckdb_batches,
    "HF datasets, mapped cache, Arrow": hf_mapped,
    "HF datasets, streaming, Arrow": hf_streaming,
    "Ray Data, Arrow": ray_batches,
    "`DataLoader(TensorDataset)`": data_loader,
}
SHUFFLED = {
    "tensors in memory, `index_select`": in_memory_gather,
    "**l2d stream, shuffled**": ours_shuffled,
    "l2d stream, shuffled, 4 seeds at once": ours_four_seeds,
    "`DataLoader`, BatchSampler as sampler": data_loader_by_batch,
    "polars `sample(shuffle=True)`": polars_shuffled,
    "DuckDB `ORDER BY random()`": duckdb_shuffled,
    "Ray Data, local shuffle buffer of 4 batches": ray_shuffled,
    "`DataLoader(TensorDataset, shuffle=True)`": data_loader_shuffled,
    "HF datasets, streaming, shuffle buffer of 10,000": hf_streaming_shuffled,
}
CANDIDATES = {**IN_ORDER, **SHUFFLED, "l2d stream, opening": ours_first_pass, "imports alone": imports}
NEEDS = {"HF": "datasets", "Ray": "ray"}


# --- measuring --------------------------------------------------------------------------------------------------------


def child(name: str, folder: Path, memory: int, threads: int) -> None:
    """Run one candidate and print what its fastest pass took."""
    import torch

    torch.set_num_threads(threads)
    run = CANDIDATES[name](folder, memory)
    once = name == "l2d stream, opening"
    taken: list[float] = []
    while len(taken) < 2 - once or (sum(taken[1:]) < 2 and len(taken) < 20 and not once):
        rows, sums, started = 0, [0.0, 0.0], time.perf_counter()
        for features, costs in run():
            if costs is None:
                rows += features
                continue
            rows += features.shape[0] * (features.shape[1] if features.dim() == 3 else 1)
            sums[0] += float(features.sum())
            sums[1] += float(costs.sum())
        taken.append(time.perf_counter() - started)
    print(json.dumps({"rows": rows, "seconds": min(taken[1 - once :]), "sums": sums}), flush=True)
    os._exit(0)  # some frameworks hang when they end


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict | None:
    """Rows a second and peak private MiB of a candidate in its own process; None where it is not installed."""
    needed = next((module for word, module in NEEDS.items() if name.startswith(word)), None)
    if needed and importlib.util.find_spec(needed) is None:
        return None
    command = [sys.executable, __file__, "--child", name, "--folder", str(folder)]
    command += ["--memory", str(options.memory), "--threads", str(options.threads)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        peak = 0
        while process.poll() is None:
            peak = max(peak, private_bytes(process.pid))
            time.sleep(0.02)
        lines = process.stdout.read().splitlines()
        if process.returncode or not lines:
            errors.seek(0)
            raise SystemExit(f"{name} failed:\n{errors.read()[-3000:]}")
    found = json.loads(lines[-1])
    return {"rate": found["rows"] / found["seconds"], "memory": peak / 2**20, **found}


def private_bytes(process: int) -> int:
    """Anonymous and shared memory of a process and its children."""
    total = 0
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        total = sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
        for task in Path(f"/proc/{process}/task").iterdir():
            total += sum(private_bytes(int(below)) for below in (task / "children").read_text().split())
    except (OSError, KeyError):  # it has just ended
        pass
    return total


def warm(folder: Path) -> None:
    """Read every file once."""
    for path in sorted(folder.rglob("*.parquet")):
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass


def peers(options: argparse.Namespace, folder: Path) -> dict:
    """Everything against everything, in rounds."""
    print(f"# {options.rows:,} rows, chunks of {options.chunk}", file=sys.stderr)
    make_cache(folder / "cache", options.rows, options.chunk)
    make_files(folder / "cache", folder)
    warm(folder)
    rounds: dict[str, list[dict]] = {name: [] for name in CANDIDATES}
    for _ in range(options.rounds):
        for name in CANDIDATES:
            found = measure(name, folder, options)
            if found is not None:
                rounds[name].append(found)
                print(f"# {name}: {found['rate'] / 1e6:.2f} M rows/s", file=sys.stderr)
    whole = [found for tries in rounds.values() for found in tries if found["rows"] == options.rows]
    expected = next(found["sums"] for found in whole if any(found["sums"]))
    for found in whole:
        assert not any(found["sums"]) or np.allclose(found["sums"], expected, rtol=1e-4, atol=50), found
    ratios = {}
    for title, table in (("in order", IN_ORDER), ("shuffled", SHUFFLED)):
        print(f"| {title} | rows/s | l2d is … times as fast | private MiB |\n| --- | ---: | ---: | ---: |")
        first = rounds[list(table)[1]]
        for name in table:
            tries = rounds[name]
            if not tries:
                print(f"| {name} | not installed | | |")
                continue
            rate = statistics.median(found["rate"] for found in tries)
            ratio = statistics.median(f["rate"] / found["rate"] for f, found in zip(first, tries, strict=True))
            memory = statistics.median(found["memory"] for found in tries)
            print(f"| {name} | {rate / 1e6:.3g} M | {ratio:.3g} | {memory:.0f} |")
            ratios[name.replace("*", "").replace("`", "")] = round(ratio, 2)
        print()
    opening = statistics.median(found["rate"] for found in rounds["l2d stream, opening"]) / 1e6
    alone = statistics.median(found["memory"] for found in rounds["imports alone"])
    print(f"Opening the cache, every checksum and value: {opening:.3g} M rows/s. Imports alone: {alone:.0f} MiB.")
    return ratios


def growth(options: argparse.Namespace, folder: Path) -> dict:
    """Ours at several numbers of rows, or of rows a chunk."""
    found = {}
    print("| rows | chunk | opening, s | in order, rows/s | shuffled, rows/s | private MiB, in order / shuffled |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    sizes = [(int(rows), options.chunk) for rows in options.growth.split(",") if rows]
    sizes += [(options.rows, int(chunk)) for chunk in options.chunks.split(",") if chunk]
    for rows, chunk in sizes:
        make_cache(folder / "cache", rows, chunk, options.train)
        warm(folder)
        names = ("l2d stream, opening", "**l2d stream**", "**l2d stream, shuffled**")
        tries = [[measure(name, folder, options) for name in names] for _ in range(options.rounds)]
        opening = statistics.median(t[0]["seconds"] for t in tries)
        rates = [statistics.median(t[k]["rate"] for t in tries) for k in (1, 2)]
        memory = [statistics.median(t[k]["memory"] for t in tries) for k in (1, 2)]
        print(
            f"| {rows:,} | {chunk:,} | {opening:.1f} | {rates[0] / 1e6:.3g} M | {rates[1] / 1e6:.3g} M "
            f"| {memory[0]:.0f} / {memory[1]:.0f} |",
            flush=True,
        )
        found[f"{rows} rows, chunks of {chunk}"] = {
            "rates": [round(r) for r in rates],
            "MiB": [round(m) for m in memory],
        }
        shutil.rmtree(folder / "cache")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--chunk", type=int, default=4096, help="rows of a part")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=256, help="MiB that the shuffled stream may hold")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for every candidate")
    parser.add_argument("--train", type=float, default=1.0, help="share of the rows in the split that is read")
    parser.add_argument("--growth", default="", help="numbers of rows, comma-separated: only our streams, at each")
    parser.add_argument("--chunks", default="", help="rows of a part, comma-separated: only our streams, at each")
    parser.add_argument("--folder", type=Path, help="where the table is made (and removed afterwards)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder, options.memory << 20, options.threads)
    folder = Path(tempfile.mkdtemp(prefix="l2d-streaming-", dir=options.folder))
    try:
        print(json.dumps((growth if options.growth or options.chunks else peers)(options, folder)))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
