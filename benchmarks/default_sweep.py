"""What the default sweep takes as a whole process, start and evaluation included, beside a script of scikit-learn.

- SUPPORT2: `l2d sweep` over 7 betas x 2 lambdas against one process that fits boosted trees for one beta (one model an
  agent on the same features and costs, read from a file). Goal: within 6 times.
- MMLU-Pro with 29 agents, where the folder of public tables is there: the same sweep. Goal: below 30 s on two cores.
- `l2d route` of a million rows: the default against the network (`--method multi-task`). Goal: at least half as fast.

    python benchmarks/default_sweep.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from league_tables import SUPPORT2, shared_data, tables

BETAS = "0,0.02,0.05,0.1,0.2,0.3,0.5"
LAMBDAS = ("cla=1,reg=0.2", "cla=1,reg=0.1")
SCRIPT = """
import sys
import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
data = np.load(sys.argv[1])
x, costs, test, test_costs = (data[name] for name in ("x", "costs", "test", "test_costs"))
models = [HistGradientBoostingRegressor(max_iter=200, learning_rate=0.05, max_leaf_nodes=15, early_stopping=True)
          .fit(x, cost) for cost in costs.T]
predicted = np.stack([model.predict(test) for model in models], 1) + np.array([0, 0.1, 0.1])
print((test_costs + np.array([0, 0.1, 0.1]))[np.arange(len(test)), predicted.argmin(1)].mean())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to route")
    parser.add_argument("--method", help="in place of the default")
    parser.add_argument("--data", type=Path, default=shared_data(), help="folder of the public tables")
    parser.add_argument("--only", choices=("support2", "mmlu-pro", "route"))
    args = parser.parse_args()
    method = ["--method", args.method] if args.method else []
    facts: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        l2d("build", "support2", "--out", folder / "support2.cache")
        if args.only in (None, "support2"):
            facts |= against_script(folder, method, args.rounds)
        if args.only in (None, "mmlu-pro") and args.data is not None:
            facts |= many_agents(folder, args.data, method, args.rounds)
        if args.only in (None, "route"):
            facts |= routing(folder, method, args.rows, args.rounds)
    print(json.dumps(facts))


def l2d(*arguments: object) -> float:
    """Seconds of a whole process of the command."""
    return process("-m", "l2d.cli", *arguments)


def process(*arguments: object) -> float:
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}\n{done.stderr[-2000:]}")
    return time.perf_counter() - begun


def against_script(folder: Path, method: list[str], rounds: int) -> dict[str, float]:
    """The grid of 14 settings against the script of one, in turn."""
    from l2d.data.cache.reader import CostCache
    from l2d.rejector.rows.table import load_tables

    parts = load_tables(CostCache(folder / "support2.cache"), ("train", "test"))
    costs = {part: rows.raw.numpy() @ np.array([1.0, 0.2]) for part, rows in parts.items()}
    x = {part: rows.features.numpy() for part, rows in parts.items()}
    np.savez(folder / "arrays.npz", x=x["train"], costs=costs["train"], test=x["test"], test_costs=costs["test"])
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    lambdas = [part for weights in LAMBDAS for part in ("--lambda", weights)]
    taken: dict[str, list[float]] = {"sweep": [], "script": []}
    for k in range(rounds):
        out = folder / f"runs-{k}"
        sweep = ["sweep", folder / "support2.cache", "--out", out, "--beta", BETAS, *lambdas, "--seeds", "1", *method]
        taken["sweep"].append(l2d(*sweep))
        taken["script"].append(process(folder / "script.py", folder / "arrays.npz"))
    ratio = statistics.median(a / b for a, b in zip(taken["sweep"], taken["script"], strict=True))
    both = {name: statistics.median(values) for name, values in taken.items()}
    print(
        f"SUPPORT2: sweep of 14 settings {both['sweep']:.1f} s, hgb script of one {both['script']:.1f} s: {ratio:.1f}"
    )
    return {"support2_sweep_s": both["sweep"], "support2_script_s": both["script"], "support2_ratio": ratio}


def many_agents(folder: Path, data: Path, method: list[str], rounds: int) -> dict[str, float]:
    (folder / "mmlu").mkdir()
    recipe = tables(data)["mmlu-pro"]().recipe(folder / "mmlu", 0)
    l2d("build", recipe, "--out", folder / "mmlu.cache")
    taken = []
    for k in range(rounds):
        out = folder / f"mmlu-runs-{k}"
        taken.append(l2d("sweep", folder / "mmlu.cache", "--out", out, "--beta", BETAS, "--seeds", "1", *method))
    print(f"MMLU-Pro, 29 agents, 7 betas: {statistics.median(taken):.1f} s")
    return {"mmlu_pro_s": statistics.median(taken)}


def routing(folder: Path, method: list[str], rows: int, rounds: int) -> dict[str, float]:
    """A million unlabelled patients: SUPPORT2's over and over, under other ids."""
    table = pl.read_parquet(SUPPORT2)
    copies = pl.concat([table] * -(-rows // len(table))).head(rows)
    copies.with_columns(pl.Series("sno", np.arange(rows))).write_parquet(folder / "patients.parquet")
    taken: dict[str, list[float]] = {"default": [], "network": []}
    for name, chosen in (("default", method), ("network", ["--method", "multi-task"])):
        l2d("train", folder / "support2.cache", "--out", folder / name, *chosen)
    for k in range(rounds):
        for name, seconds in taken.items():
            out = folder / f"{name}-{k}.parquet"
            seconds.append(l2d("route", folder / name, folder / "patients.parquet", "--out", out))
    ratio = statistics.median(b / a for a, b in zip(*taken.values(), strict=True))
    both = {name: statistics.median(values) for name, values in taken.items()}
    print(f"route {rows:,} rows: default {both['default']:.1f} s, network {both['network']:.1f} s: speed {ratio:.2f}")
    return {"route_default_s": both["default"], "route_network_s": both["network"], "route_speed": ratio}


if __name__ == "__main__":
    main()
