"""How each command's time grows with rows, agents and runs: an exponent, 1 where twice as much takes twice as long.

    python benchmarks/growth.py [--axes rows,agents,runs] [--rounds 2]

Each command is a process of its own, on one thread; what counts is its processor time (least of the rounds). Fitted is
a constant, the start of the process, plus a power of the size. Where the largest size takes less than 0.2 s more than
the smallest, nothing can be fitted and the table says so. Parts of a cache are an axis of `many_parts.py`, rows and
points of training one epoch of `grid_training.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from importing import write_tables
from targets import as_installed

LEAST = 0.2  # seconds more than the smallest takes; less cannot be told from noise
BETAS = [f"{beta:.4f}" for beta in np.linspace(0, 0.5, 64)]
SIZES = {"rows": (200, 25_000, 50_000, 100_000, 200_000), "agents": (3, 16, 64, 256), "runs": (1, 4, 16, 64)}
SHARE = "SELECT agent, count(*), avg(cost_cla) FROM costs GROUP BY ALL"
ASKED = "SELECT run_id, agent, count(*) FROM allocations GROUP BY ALL"


def seconds(folder: Path, arguments: list[str], rounds: int) -> float:
    """Processor seconds of a command on one thread, the least of the rounds."""
    environment = as_installed() | dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "MKL_NUM_THREADS"), "1")
    taken = []
    for _ in range(rounds):
        if arguments[0] == "sweep":  # what is there already would not be trained again
            shutil.rmtree(folder / "runs", ignore_errors=True)
        before = used()
        done = subprocess.run(
            [sys.executable, "-m", "l2d.cli", *arguments, *again(arguments)],
            cwd=folder, capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"l2d {' '.join(arguments)}\n{done.stderr}")
        taken.append(used() - before)
    return min(taken)


def used() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def again(arguments: list[str]) -> list[str]:
    """What lets a command write where the last round has written."""
    return ["--overwrite"] if "--out" in arguments and arguments[0] not in ("sweep", "report") else []


def commands(axis: str, size: int) -> Iterable[tuple[str, list[str]]]:
    """In the order in which they need each other's results."""
    imported = ["--id", "id", "--target", "y", "--model", "agent_0", "--out"]
    if axis == "rows":
        yield "import, CSV", ["import", "predictions", "features.csv", "answers.csv", *imported, "cache"]
    yield "import, Parquet", ["import", "predictions", "features.parquet", "answers.parquet", *imported, "cache"]
    betas = BETAS[:: len(BETAS) // size] if axis == "runs" else ["0.1"]
    yield ("sweep", ["sweep", "cache", "--out", "runs", "--beta", ",".join(betas)])
    yield "evaluate", ["evaluate", "runs"]
    yield "report", ["report", "runs", "--out", "report.html"]
    yield "status", ["status", "cache"]
    yield "query, costs", ["query", "cache", SHARE]
    yield "query, allocations", ["query", "runs", ASKED]
    if axis != "runs":
        yield "route", ["route", "runs", "features.parquet", "--out", "routed.parquet"]
        yield "policy", ["policy", "runs", "--budget", "0.05", "--out", "allocated.parquet"]


def exponent(sizes: tuple[int, ...], taken: list[float]) -> float | None:
    """Of ``a + b n^e``, ``a`` the start, by least squares of ratios; None where too little is added."""
    n, t = np.array(sizes, float), np.array(taken)
    if t[-1] - t.min() < LEAST:
        return None
    best = (np.inf, 0.0)
    for power in np.arange(0.05, 2.5, 0.01):
        columns = np.stack([np.ones_like(n), n**power], axis=1) / t[:, None]
        (start, slope), *_ = np.linalg.lstsq(columns, np.ones_like(t), rcond=None)
        error = float(((columns @ [start, slope] - 1) ** 2).sum())
        if start >= 0 and slope >= 0:
            best = min(best, (error, float(power)))
    return best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", default="rows,agents,runs")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    fitted = {}
    for axis in options.axes.split(","):
        sizes = SIZES[axis]
        taken: dict[str, list[float]] = {}
        for size in sizes:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                rows = {"rows": size, "agents": 3000, "runs": 3000}[axis]
                write_tables(folder, rows, 16 if axis == "rows" else 8, size if axis == "agents" else 3)
                for command, arguments in commands(axis, size):
                    taken.setdefault(command, []).append(seconds(folder, arguments, options.rounds))
        print(f"\nGrowth with {axis}, load {os.getloadavg()[0]:.1f}:\n")
        print("| command |", " | ".join(f"{size:,} {axis}" for size in sizes), "| exponent |")
        print("| --- |" + " ---: |" * (len(sizes) + 1))
        for command, seen in taken.items():
            found = exponent(sizes, seen)
            fitted[f"{command}, {axis}"] = found
            said = f"start alone (< {LEAST} s)" if found is None else f"{found:.2f}"
            print(f"| `{command}` |", " | ".join(f"{one:.2f}" for one in seen), f"| {said} |", flush=True)
    print(json.dumps(fitted))


if __name__ == "__main__":
    main()
