"""`l2d import predictions` against polars' reading of the same files: seconds of wall and processor, and memory.

    python benchmarks/importing.py                     # 500,000 rows x 64 features, 4 agents, CSV and Parquet
    python benchmarks/importing.py --rows 2000000 --rounds 1

Both sides run in processes of their own, one after the other, round after round; the import ends with a cache that is
sealed, so every part has been written, read back and hashed. Processor seconds include system time. The ratio of the
processor seconds less that of an import of 100 rows (start-up) is given too, which is what grows with the table.
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
from pathlib import Path

from targets import as_installed, print_targets

# A process's own peak; what the system reports of a child is never below that of its parent.
PEAK = "import atexit\natexit.register(lambda: print('\\n' + open('/proc/self/status').read(), file=sys.stderr))\n"
READ = "import polars as pl\nfor name in ('features', 'answers'): pl.read_{form}(name + '.{form}')\n"
IMPORT = """
import sys
from l2d import cli
sys.argv = ["l2d", "import", "predictions", "features.{form}", "answers.{form}", "--id", "id", "--target", "y",
            "--model", "agent_0", "--out", "cache"]
cli.main()
"""


def write_tables(folder: Path, rows: int, width: int, agents: int) -> None:
    """Features of five digits, a class, and agents that are right with different chances."""
    import numpy as np
    import polars as pl

    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, width)).round(4)
    y = (x[:, 0] + generator.normal(size=rows) > 0).astype(np.int64)
    ids = pl.Series("id", [f"s{row:08d}" for row in range(rows)])
    features = pl.DataFrame([ids, *(pl.Series(f"x{k}", x[:, k]) for k in range(width)), pl.Series("y", y)])
    right = [generator.random(rows) < 0.6 + 0.3 * k / agents for k in range(agents)]
    answers = pl.DataFrame([ids, *(pl.Series(f"agent_{k}", np.where(r, y, 1 - y)) for k, r in enumerate(right))])
    for name, table in (("features", features), ("answers", answers)):
        table.write_csv(folder / f"{name}.csv")
        table.write_parquet(folder / f"{name}.parquet")


def measured(program: str, folder: Path, *, clean: bool = True) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak MiB of a Python program run in a folder, old caches removed before."""
    for old in folder.glob("cache*") if clean else ():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys\n" + PEAK + program],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=as_installed(),
    )
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(told.decode())
    return (
        time.perf_counter() - start,
        usage.ru_utime + usage.ru_stime,
        int(told.decode().rpartition("VmHWM:")[2].split()[0]) / 1024,
    )


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        write_tables(Path(sys.argv[2]), *map(int, sys.argv[3:]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ratios = {}
    print(f"{options.rows:,} rows x {options.width}, {options.agents} agents; medians of {options.rounds} rounds\n")
    print("| form | program | wall, s | processor, s | peak, MiB |\n| --- | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name, "small"), Path(name, "large")
        for folder, rows in ((small, 100), (large, options.rows)):
            folder.mkdir()
            write_tables(folder, rows, options.width, options.agents)
        for form in ("csv", "parquet"):
            runs = {}
            for label, folder in (("", large), (", 100 rows", small)):
                runs[f"polars{label}"] = READ.format(form=form), folder
                runs[f"import{label}"] = IMPORT.format(form=form), folder
            found: dict[str, list] = {program: [] for program in runs}
            measured(*runs["import, 100 rows"])  # modules are compiled from here on
            for _ in range(options.rounds):
                for program, (text, folder) in runs.items():
                    found[program].append(measured(text, folder))
            middle = {p: [statistics.median(column) for column in zip(*rows, strict=True)] for p, rows in found.items()}
            for program, (wall, processor, peak) in middle.items():
                print(f"| {form} | {program} | {wall:.2f} | {processor:.2f} | {peak:,.0f} |")
            ours, theirs = middle["import"], middle["polars"]
            grown = [middle[p][1] - middle[f"{p}, 100 rows"][1] for p in ("import", "polars")]
            ratios[form] = {
                "wall": ours[0] / theirs[0],
                "processor": ours[1] / theirs[1],
                "processor_without_start": grown[0] / grown[1] if grown[1] > 0 else float("nan"),
                "memory": ours[2] / theirs[2],
            }
    print()
    for form, ratio in ratios.items():
        print(f"{form}: " + ", ".join(f"{name.replace('_', ' ')} {value:.1f}x" for name, value in ratio.items()))
    print_targets(
        [
            (f"import predictions, {form}, {options.rows:,} x {options.width}", what, ratios[form][name], "<=", target)
            for form in ratios
            for what, name, target in (
                ("wall / polars reads", "wall", 3),
                ("processor / polars reads", "processor", 3),
                ("memory / polars reads", "memory", 1.5),
            )
        ]
    )
    print(json.dumps({"benchmark": "importing", "rows": options.rows, "ratios": ratios}))


if __name__ == "__main__":
    main()
