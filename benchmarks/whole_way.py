"""The way around the kernels: first answers of a process, opening a cache, routing a file; with peers in the same run.

    python benchmarks/whole_way.py                       # 2,000,000 rows x 64 features, 4 agents
    python benchmarks/whole_way.py --rows 500000 --rounds 1

A run of the default method is trained on 20,000 rows. `first`: whole processes on small tables, and `--help` beside
them. `open`: every checksum and value of a cache verified, against adding up the same numbers from the mapped files
unverified. `route`: a CSV and a Parquet file to a Parquet file, against polars' reading of the same file plus the
scoring of its rows in memory. Each measurement in a process of its own, round after round; processor seconds include
system time, peaks are a process's own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from importing import measured, write_tables
from targets import as_installed, print_targets

COMMAND = "from l2d import cli\nimport sys\nsys.argv = ['l2d', *{arguments!r}]\ncli.main()\n"
OPEN = """
import time
from l2d.data.cache.reader import CostCache
from l2d.rejector.rows.stream import open_streams
cache = CostCache("cache")
splits = ("train", "validation", "test")
open_streams(cache, splits)  # the files are in memory from here on
began = time.perf_counter()
streams = open_streams(cache, splits)
verified = time.perf_counter()
total = sum(float(stream.rows(chunk)[0].sum()) for stream in streams.values() for chunk in stream.chunks)
print(verified - began, time.perf_counter() - verified, sum(len(stream) for stream in streams.values()))
"""
READ = "import polars as pl\npl.read_{form}('features.{form}')\n"
SCORE = """
import time
import numpy as np
import polars as pl
from pathlib import Path
from l2d.rejector.served import open_served
run = open_served(Path("run"))
names = run.looks_at.encoder.names
x = np.ascontiguousarray(pl.read_parquet("features.parquet", columns=names).to_numpy().astype(np.float32))
began = time.perf_counter(), time.process_time()
for start in range(0, len(x), 32768):
    run.scores(x[start : start + 32768])
print(time.perf_counter() - began[0], time.process_time() - began[1])
"""


def run(*arguments: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "l2d.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=as_installed(),
    )
    if done.returncode:
        raise SystemExit(done.stderr)


def told(program: str, folder: Path) -> list[float]:
    """The numbers that a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, stdout=subprocess.PIPE, text=True, check=True, env=as_installed()
    )
    return [float(word) for word in done.stdout.split()]


def make(folder: Path, rows: int) -> None:
    """Tables, a cache of all rows, a run on 20,000, and what small commands are given."""
    import polars as pl

    write_tables(folder, rows, 64, 4)
    for name in ("features", "answers"):
        pl.read_parquet(folder / f"{name}.parquet").head(20_000).write_parquet(folder / f"{name}_few.parquet")
    pl.read_parquet(folder / "features.parquet").head(200).write_csv(folder / "new.csv")
    some = ["--id", "id", "--target", "y", "--model", "agent_0", "--out"]
    run("import", "predictions", "features.parquet", "answers.parquet", *some, "cache", folder=folder)
    run("import", "predictions", "features_few.parquet", "answers_few.parquet", *some, "few", folder=folder)
    run("train", "few", "--out", "run", folder=folder)


def first_answers() -> dict[str, str]:
    commands = {
        "--help": ["--help"],
        "status": ["status", "few"],
        "query": ["query", "few", "SELECT agent, avg(cost_cla) FROM costs GROUP BY ALL"],
        "route, 200 rows": ["route", "run", "new.csv", "--out", "few.parquet", "--overwrite"],
    }
    return {name: COMMAND.format(arguments=arguments) for name, arguments in commands.items()}


def routing() -> dict[str, str]:
    found = {}
    for form in ("csv", "parquet"):
        arguments = ["route", "run", f"features.{form}", "--out", "routed.parquet", "--overwrite"]
        found[f"polars reads {form}"] = READ.format(form=form)
        found[f"route {form}"] = COMMAND.format(arguments=arguments)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    middle: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, options.rows)
        programs = {**first_answers(), **routing()}
        found: dict[str, list] = {program: [] for program in [*programs, "open", "scoring"]}
        for program in first_answers().values():
            measured(program, folder, clean=False)  # modules are compiled from here on
        for _ in range(options.rounds):
            for label, program in programs.items():
                found[label].append(measured(program, folder, clean=False))
            found["open"].append(told(OPEN, folder))
            found["scoring"].append(told(SCORE, folder))
    middle = {label: [statistics.median(column) for column in zip(*rows, strict=True)] for label, rows in found.items()}
    print(f"{options.rows:,} rows x 64; medians of {options.rounds} rounds\n")
    print("| program | wall, s | processor, s | peak, MiB |\n| --- | ---: | ---: | ---: |")
    for label in programs:
        wall, processor, peak = middle[label]
        print(f"| {label} | {wall:.2f} | {processor:.2f} | {peak:,.0f} |")
    verified, unverified, rows = middle["open"]
    print(f"\nopening: {rows / verified / 1e6:.2f} M rows/s, every checksum and value verified")
    print(f"adding up the same numbers, unverified: {rows / unverified / 1e6:.2f} M rows/s")
    scoring = middle["scoring"]
    print(f"scoring alone: {scoring[0]:.2f} s, {scoring[1]:.2f} s of processor")
    of_processor = {
        form: middle[f"route {form}"][1] / (middle[f"polars reads {form}"][1] + scoring[1])
        for form in ("csv", "parquet")
    }
    times_routing = {
        form: middle[f"route {form}"][0] / (middle[f"polars reads {form}"][0] + scoring[0])
        for form in ("csv", "parquet")
    }
    print_targets(
        [
            ("first answer: status", "wall, s", middle["status"][0], "<=", 0.35),
            ("first answer: query", "wall, s", middle["query"][0], "<=", 0.45),
            ("first answer: route of 200 rows", "wall, s", middle["route, 200 rows"][0], "<=", 0.6),
            ("opening a cache, all verified", "M rows/s", rows / verified / 1e6, ">=", 8),
            *((f"route {form}", "wall / reading and scoring", one, "<=", 1.5) for form, one in times_routing.items()),
            *(
                (f"route {form}", "processor / reading and scoring", one, "<=", 1.5)
                for form, one in of_processor.items()
            ),
            *((f"route {form}", "MiB", middle[f"route {form}"][2], "<=", 600) for form in ("csv", "parquet")),
        ]
    )
    ratios = {f"route {form}": one for form, one in of_processor.items()}
    print(json.dumps({"benchmark": "whole_way", "rows": options.rows, "ratios": ratios}))


if __name__ == "__main__":
    main()
