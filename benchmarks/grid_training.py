"""A grid of 28 rejectors (7 betas x 4 seeds) trained together against 28 plain PyTorch trainings one after another.

    python benchmarks/grid_training.py [--rows 20000] [--rounds 3]

The plain trainings are what a user would write: the same network, loss, optimiser and batch size, once with tensors
indexed by a permutation and once with TensorDataset and DataLoader. They train 4 (indexing) or 1 (DataLoader) of the 28
and are scaled. Ratios are taken within a round; the table shows their medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch.utils.data import DataLoader, TensorDataset

from rejector.costs import CostWeights
from rejector.grid import GridPoint
from rejector.networks import make_network
from rejector.table import CostTable
from rejector.training import TrainConfig, train_grid

BETAS = [0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5]
SEEDS = [0, 1, 2, 3]
WIDTH, AGENTS, HIDDEN = 64, 4, 128


def data(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, WIDTH, generator=generator), torch.rand(rows, AGENTS, generator=generator)


def grid(rows: int, batch: int) -> float:
    """Seconds for one epoch of all 28 together."""
    features, costs = data(rows)
    table = CostTable(split="train", ids=[], features=features, raw=costs[:, :, None])
    few = CostTable(split="validation", ids=[], features=features[:16], raw=costs[:16, :, None])
    points = [
        GridPoint(
            run_id=f"{beta}-{seed}",
            method="multi-task",
            weights=CostWeights((("cla", 1.0),)),
            beta=beta,
            query_costs=(0.0, *[beta] * (AGENTS - 1)),
            nu=1.0,
            seed=seed,
        )
        for beta in BETAS
        for seed in SEEDS
    ]
    config = TrainConfig(hidden=HIDDEN, epochs=1, batch_size=batch)
    start = time.perf_counter()
    train_grid(points, table, few, config, tasks=["cla"])
    return time.perf_counter() - start


def plain(rows: int, batch: int, *, loader: bool, models: int) -> float:
    """Seconds for one epoch of 28 models one after another, from training some of them."""
    features, costs = data(rows)
    start = time.perf_counter()
    for seed in range(models):
        torch.manual_seed(seed)
        network = make_network("mlp", WIDTH, AGENTS, HIDDEN)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        beta = torch.tensor([0.0, *[BETAS[seed]] * (AGENTS - 1)])
        if loader:
            batches = iter(DataLoader(TensorDataset(features, costs), batch_size=batch, shuffle=True))
        else:
            batches = ((features[i], costs[i]) for i in torch.randperm(rows).split(batch))
        for x, raw in batches:
            total = raw + beta
            weights = total.sum(1, keepdim=True) - total
            loss = -(weights * network(x).log_softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (time.perf_counter() - start) / models * len(BETAS) * len(SEEDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ratios: dict[str, float] = {}
    print("| batch | grid, s | 28 x tensor indexing, s | ratio | 28 x DataLoader, s | ratio |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for batch in (64, 1024):
        rounds = []
        for _ in range(options.rounds):
            ours = grid(options.rows, batch)
            indexing = plain(options.rows, batch, loader=False, models=4)
            loading = plain(options.rows, batch, loader=True, models=1)
            rounds.append((ours, indexing, loading))
        ours, indexing, loading = (statistics.median(column) for column in zip(*rounds, strict=True))
        by_indexing = statistics.median(i / o for o, i, _ in rounds)
        by_loading = statistics.median(x / o for o, _, x in rounds)
        print(f"| {batch} | {ours:.1f} | {indexing:.1f} | {by_indexing:.1f} | {loading:.1f} | {by_loading:.1f} |")
        ratios |= {f"indexing_batch_{batch}": round(by_indexing, 2), f"dataloader_batch_{batch}": round(by_loading, 2)}
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
