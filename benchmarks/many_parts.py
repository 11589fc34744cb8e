"""A cache of many parts: building, opening, verifying, streaming it; how time and memory grow with their number.

    python benchmarks/many_parts.py                       # up to 10^5 parts: a few minutes, 2 GB of small files
    python benchmarks/many_parts.py --parts 1000 10000

Two agents that answer at once, 20 samples a chunk: five parts a chunk (samples, predictions and costs of each agent).
Every step runs in a process of its own, which reports its seconds and its peak memory beyond that of the imports.
"bare" reads the same files with open().read(), in the order of their names.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CHUNK = 20
RECIPE = """
[dataset]
kind = "table"
path = "table.parquet"
id = "id"
target_cla = "y"
features = ["a", "b"]

[costs.cla]

[build]
chunk_size = {chunk}

[[agents]]
name = "model"
kind = "column"
cla = "y"

[[agents]]
name = "expert"
kind = "column"
cla = "1"
"""
STEPS = {
    "build": """
from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
start()
build(load_recipe(str(folder / "recipe.toml")), folder / "cache", device="cpu")
""",
    "open": """
from l2d.data.cache.reader import CostCache
start()
CostCache(folder / "cache").require_complete()
""",
    "status": """
from l2d.data.cache.reader import CostCache
from l2d.data.cache.status import status_rows
start()
status_rows(CostCache(folder / "cache"))
""",
    "verify": """
from l2d.data.cache.reader import CostCache
start()
CostCache(folder / "cache").verify()
""",
    "stream": """
from l2d.data.cache.reader import CostCache
from l2d.rejector.rows.stream import open_streams
start()
for _ in open_streams(CostCache(folder / "cache"), ("train",))["train"].in_order(1024): pass
""",
    "query": """
from pathlib import Path
from l2d.rejector.sql.query import query
start()
query([folder / "cache"], "SELECT agent, avg(cost_cla) FROM costs GROUP BY agent")
""",
    "bare": """
start()
for file in sorted((folder / "cache").rglob("*.parquet")): open(file, "rb").read()
""",
}
MEASURE = """
import json, resource, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def start():
    global began, before
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
exec(sys.argv[2])
seconds = time.perf_counter() - began
print(json.dumps([seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))
"""


def measure(folder: Path, step: str) -> tuple[float, float]:
    """Seconds, and MiB of peak memory beyond what imports took."""
    command = [sys.executable, "-c", MEASURE, str(folder), STEPS[step]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def write(folder: Path, parts: int) -> None:
    """A table of as many samples as give its cache about this number of parts."""
    import polars as pl

    rows, generator = parts // 5 * CHUNK, np.random.default_rng(0)
    columns = {"a": generator.random(rows), "b": generator.random(rows), "y": generator.integers(2, size=rows)}
    table = pl.DataFrame({"id": [f"s{row}" for row in range(rows)], **columns})
    table.write_parquet(folder / "table.parquet")
    (folder / "recipe.toml").write_text(RECIPE.format(chunk=CHUNK))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {step: [] for step in STEPS}
    for parts in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), parts)
            for step, rounds in found.items():
                rounds.append(measure(Path(folder), step))
                print(f"{parts:,} parts: {step} {rounds[-1][0]:.2f} s, {rounds[-1][1]:.0f} MiB", file=sys.stderr)
    print("| step | " + " | ".join(f"{parts:,} parts" for parts in arguments.parts) + " | grows as parts^ |")
    print("| --- |" + " ---: |" * (len(arguments.parts) + 1))
    ratios = {}
    for step, rounds in found.items():
        exponent = float("nan")
        if len(rounds) > 1:
            exponent = float(np.polyfit(np.log(arguments.parts), np.log([seconds for seconds, _ in rounds]), 1)[0])
        cells = " | ".join(f"{seconds:.2f} s, {memory:.0f} MiB" for seconds, memory in rounds)
        print(f"| {step} | {cells} | {exponent:.2f} |")
        ratios[f"{step}_growth"] = round(exponent, 2)
        ratios[f"{step}_over_bare"] = round(rounds[-1][0] / found["bare"][-1][0], 2)
    print("\n" + json.dumps(ratios))


if __name__ == "__main__":
    main()
