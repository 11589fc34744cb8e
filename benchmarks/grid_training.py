"""A grid of 28 rejectors (7 betas x 4 seeds) trained together against 28 plain PyTorch trainings one after another.

    python benchmarks/grid_training.py [--rows 100000] [--rounds 3] [--only mlp,transformer,growth] [--device cuda]
    OMP_NUM_THREADS=1 python benchmarks/grid_training.py --only limit

The plain trainings are what a user would write: the same network, loss, optimizer and batch size, once with tensors
indexed by a permutation and once with TensorDataset and DataLoader. They train 4 (indexing) or 1 (DataLoader) of the 28
and are scaled. Ratios are taken within a round; tables show their medians. Growth is the exponent of a power law fitted
to the seconds of one epoch, the least of the rounds: 1 is linear, 0 is free.

``--only limit`` compares processor seconds of the grid on one thread with those of its products of matrices alone: the
same shapes, as many at once as fit the cache, into memory that is there. No arrangement of the rest can beat that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from l2d.rejector.costs import CostWeights
from l2d.rejector.grid import GridPoint
from l2d.rejector.networks import make_network
from l2d.rejector.rows.table import CostTable
from l2d.rejector.settings import TrainConfig
from l2d.rejector.training.loop import train_grid
from l2d.rejector.training.stack_mlp import AT_ONCE, BLOCKS

BETAS = [0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5]
SEEDS = 4


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained: the shape of the table, of the network, of the grid."""

    rows: int
    batch: int
    width: int = 64
    agents: int = 4
    hidden: int = 128
    layers: int = 1
    network: str = "mlp"
    betas: int = len(BETAS)
    seeds: int = SEEDS
    device: str = "cpu"

    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(self.rows, self.width, generator=generator)
        return features, torch.rand(self.rows, self.agents, generator=generator)

    @property
    def points(self) -> int:
        return self.betas * self.seeds

    def query_costs(self, position: int) -> tuple[float, ...]:
        return (0.0, *[BETAS[position % len(BETAS)]] * (self.agents - 1))


def grid(task: Task) -> float:
    """Seconds for one epoch of the grid, together."""
    features, costs = task.data()
    table = CostTable(split="train", ids=[], features=features, raw=costs[:, :, None])
    few = CostTable(split="validation", ids=[], features=features[:16], raw=costs[:16, :, None])
    points = [
        GridPoint(
            run_id=f"{position}-{seed}",
            method="multi-task",
            weights=CostWeights((("cla", 1.0),)),
            beta=max(task.query_costs(position)),
            query_costs=task.query_costs(position),
            nu=1.0,
            seed=seed,
        )
        for position in range(task.betas)
        for seed in range(task.seeds)
    ]
    layers = task.layers if task.network == "mlp" else 2
    config = TrainConfig(network=task.network, hidden=task.hidden, layers=layers, epochs=1, batch_size=task.batch)
    start = time.perf_counter()
    train_grid(points, table, few, config, tasks=["cla"], device=task.device)
    _finish(task.device)
    return time.perf_counter() - start


def plain(task: Task, *, loader: bool, models: int) -> float:
    """Seconds for one epoch of as many models one after another, from training some of them."""
    features, costs = task.data()
    start = time.perf_counter()
    if not loader:
        features, costs = features.to(task.device), costs.to(task.device)
    for seed in range(models):
        torch.manual_seed(seed)
        network = make_network(task.network, task.width, task.agents, task.hidden, task.layers).to(task.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        beta = torch.tensor(task.query_costs(seed), device=task.device)
        if loader:
            batches = iter(DataLoader(TensorDataset(features, costs), batch_size=task.batch, shuffle=True))
        else:
            batches = ((features[i], costs[i]) for i in torch.randperm(task.rows, device=task.device).split(task.batch))
        for x, raw in batches:
            x, raw = x.to(task.device), raw.to(task.device)
            total = raw + beta
            weights = total.sum(1, keepdim=True) - total
            loss = -(weights * network(x).log_softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    _finish(task.device)
    return (time.perf_counter() - start) / models * task.points


def _finish(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def against_plain(tasks: list[tuple[str, Task]], rounds: int) -> dict[str, float]:
    """Print a table of grids and plain trainings; return the ratios."""
    print("\n| rejectors | batch | grid, s | x tensor indexing, s | ratio (range) | x DataLoader, s | ratio (range) |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    ratios = {}
    for name, task in tasks:
        grid(replace(task, rows=task.batch))  # torch's first calls are slow
        times = [
            (grid(task), plain(task, loader=False, models=min(4, task.points)), plain(task, loader=True, models=1))
            for _ in range(rounds)
        ]
        ours, indexing, loading = (statistics.median(column) for column in zip(*times, strict=True))
        cells = []
        for kind, seconds, place in (("indexing", indexing, 1), ("dataloader", loading, 2)):
            found = sorted(row[place] / row[0] for row in times)
            ratios[f"{name}, batch {task.batch}, {kind}"] = round(statistics.median(found), 2)
            cells.append(f"{seconds:.1f} | {statistics.median(found):.1f} ({found[0]:.1f} to {found[-1]:.1f})")
        print(f"| {task.points} {name} | {task.batch} | {ours:.2f} | {' | '.join(cells)} |", flush=True)
    return ratios


def growth(base: Task, rounds: int) -> dict[str, float]:
    """Print seconds of one epoch as one thing grows and all else stays; return fitted exponents."""
    print("\n| one epoch against | values | seconds | exponent |\n| --- | --- | --- | ---: |")
    exponents = {}
    for name, values in {
        "rows": [base.rows // 4, base.rows // 2, base.rows, 2 * base.rows],
        "points": [4, 8, 16, 28, 56, 112],
        "agents": [2, 4, 8, 16, 32],
        "width": [16, 32, 64, 128, 256],
        "hidden": [32, 64, 128, 256, 512],
    }.items():
        grown = [{"betas": value // base.seeds} if name == "points" else {name: value} for value in values]
        seconds = [min(grid(replace(base, **change)) for _ in range(rounds)) for change in grown]
        exponents[name] = round(float(np.polyfit(np.log(values), np.log(seconds), 1)[0]), 2)
        cells = (", ".join(f"{value:,}" for value in values), ", ".join(f"{s:.2f}" for s in seconds))
        print(f"| {name} | {cells[0]} | {cells[1]} | {exponents[name]} |", flush=True)
    return exponents


def products(task: Task) -> float:
    """Processor seconds of one epoch's products of matrices alone, on this thread; scaled from some steps."""
    units = [task.width, *[task.hidden] * task.layers, task.agents]
    points = min(task.points, max(1, BLOCKS * AT_ONCE // max(units) // task.batch))
    rows = [torch.randn(points, task.batch, count) for count in units]
    weights = [torch.randn(points, before, after) for before, after in pairwise(units)]
    gradients = [torch.empty_like(weight) for weight in weights]
    steps = max(1, 2_000_000 // (points * task.batch))
    start = time.process_time()
    for _ in range(steps):
        for depth, weight in enumerate(weights):
            torch.bmm(rows[depth], weight, out=rows[depth + 1])
        for depth in reversed(range(len(weights))):
            torch.bmm(rows[depth].mT, rows[depth + 1], out=gradients[depth])
            if depth:
                torch.bmm(rows[depth + 1], weights[depth].mT, out=rows[depth])
        for values in (*rows, *weights):  # what is multiplied by itself again and again overflows
            values.fill_(0.5)
    return (time.process_time() - start) / steps * (task.rows / task.batch) * (task.points / points)


def limit(tasks: list[tuple[str, Task]], rounds: int) -> dict[str, float]:
    """Print what share of the grid's processor time its products of matrices need."""
    print("\n| rejectors | batch | grid, s | plain, s | products alone, s | GFLOP/s | share | ratio at most |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    shares, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for name, task in tasks:
        found = []
        for _ in range(rounds):
            times = []
            for run in (grid, lambda task: plain(task, loader=False, models=1), products):
                start = time.process_time()
                scaled = run(task)
                times.append(scaled if run is products else time.process_time() - start)
            found.append(times)
        ours, one, least = (statistics.median(column) for column in zip(*found, strict=True))
        units = [task.width, *[task.hidden] * task.layers, task.agents]
        sizes = [before * after for before, after in pairwise(units)]
        work = 2 * (3 * sum(sizes) - sizes[0]) * task.rows * task.points  # the first layer has no gradient by its input
        share = statistics.median(row[2] / row[0] for row in found)
        most = statistics.median(row[1] * task.points / row[2] for row in found)
        shares[f"{name}, batch {task.batch}, share"] = round(share, 2)
        cells = (
            f"{ours:.2f} | {one * task.points:.2f} | {least:.2f} | {work / least / 1e9:.0f} | {share:.0%} | {most:.1f}"
        )
        print(f"| {task.points} {name} | {task.batch} | {cells} |", flush=True)
    torch.set_num_threads(threads)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="mlp,transformer,growth", help="some of these, by commas")
    parser.add_argument("--device", default="cpu", help="such as cuda, where tensors lie and both train")
    options = parser.parse_args()
    only, rows = options.only.split(","), options.rows
    result = {}
    if "mlp" in only:
        shapes = (("mlp, one hidden layer", 1), ("mlp, two hidden layers", 2))
        tasks = [
            (n, Task(rows=rows, batch=batch, layers=layers, device=options.device))
            for n, layers in shapes
            for batch in (64, 1024)
        ]
        result |= against_plain(tasks, options.rounds)
    if "limit" in only:
        tasks = [
            (f"mlp, {layers} hidden", Task(rows=rows, batch=batch, layers=layers))
            for layers in (1, 2)
            for batch in (64, 1024)
        ]
        result |= limit(tasks, options.rounds)
    if "transformer" in only:
        small = {"network": "transformer", "width": 16, "hidden": 32, "device": options.device}
        tasks = [("transformer", Task(rows=rows // n, batch=batch, **small)) for batch, n in ((64, 20), (1024, 10))]
        result |= against_plain(tasks, options.rounds)
    if "growth" in only:
        result["exponents"] = growth(Task(rows=rows // 2, batch=64, device=options.device), options.rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
