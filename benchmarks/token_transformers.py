"""A grid of 28 transformers over token lists (7 betas x 4 seeds) trained together against PyTorch's own, one by one.

    python benchmarks/token_transformers.py [--rows 4000] [--rounds 3] [--hidden 64] [--layers 2]

Lists are like those of a hospital stay: two fields, of 2,000 and 500 codes by Zipf's law, lengths log-normal with means
of about 12 and 2, at most 40 and 12. The plain trainings are what a user would write: ``nn.Embedding`` and
``nn.TransformerEncoder`` with a key padding mask over rows padded to the longest list there may be, once indexed by a
permutation and once from a DataLoader; one of the 28 is trained and scaled. "Padded" is our own network, one by one,
without cutting padding off. Ratios are taken within a round; the table shows their medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from l2d.data.networks.tokens import TokenNetwork
from l2d.data.samples.tokens import SPECIAL, Tokens, token_rows
from l2d.rejector.costs import CostWeights
from l2d.rejector.grid import GridPoint
from l2d.rejector.rows.table import CostTable
from l2d.rejector.settings import TrainConfig
from l2d.rejector.training.loop import train_grid

BETAS = [0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5]
SEEDS, AGENTS = 4, 3
FIELDS = ((2000, 2.2, 40), (500, 0.4, 12))  # codes, mean of the logarithm of the length, longest list
SIZES = tuple((codes + 2, length) for codes, _, length in FIELDS)


def lists(rows: int, codes: int, mean: float, generator: np.random.Generator) -> Tokens:
    counts = generator.lognormal(mean, 0.7, size=rows).astype(np.int64)
    weights = 1 / np.arange(1, codes + 1)
    values = 2 + generator.choice(codes, size=counts.sum(), p=weights / weights.sum()).astype(np.int32)
    vocabulary = (*SPECIAL, *(f"c{code}" for code in range(codes)))
    return Tokens(values, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), vocabulary)


def made_up(rows: int) -> tuple[Tensor, Tensor]:
    """Rows and raw costs."""
    generator = np.random.default_rng(0)
    fields = [lists(rows, codes, mean, generator) for codes, mean, _ in FIELDS]
    features = torch.from_numpy(token_rows(fields, [length for _, _, length in FIELDS]))
    return features, torch.from_numpy(generator.random((rows, AGENTS), dtype=np.float32))


class Plain(nn.Module):
    """What a user would write."""

    def __init__(self, hidden: int, layers: int):
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(codes, hidden, padding_idx=0) for codes, _ in SIZES)
        self.summaries = nn.ParameterList(torch.randn(1, 1, hidden) * hidden**-0.5 for _ in SIZES)
        self.encoders = nn.ModuleList()
        for _ in SIZES:
            layer = nn.TransformerEncoderLayer(hidden, 4, 4 * hidden, 0.0, "gelu", batch_first=True, norm_first=True)
            self.encoders.append(nn.TransformerEncoder(layer, layers, nn.LayerNorm(hidden), enable_nested_tensor=False))
        self.head = nn.Sequential(nn.Linear(len(SIZES) * hidden, hidden), nn.ReLU(), nn.Linear(hidden, AGENTS))

    def forward(self, rows: Tensor) -> Tensor:
        seen = []
        fields = zip(self.embeddings, self.summaries, self.encoders, rows.split([n for _, n in SIZES], 1), strict=True)
        for embedding, summary, encoder, codes in fields:
            tokens = torch.cat([summary.expand(len(codes), 1, -1), embedding(codes)], dim=1)
            padding = torch.cat([codes.new_zeros(len(codes), 1, dtype=torch.bool), codes == 0], dim=1)
            seen.append(encoder(tokens, src_key_padding_mask=padding)[:, 0])
        return self.head(torch.cat(seen, dim=1))


def grid(features: Tensor, costs: Tensor, batch: int, hidden: int, layers: int, *, device: str = "cpu") -> float:
    """Seconds for one epoch of the grid, together."""
    tables = [
        CostTable(split=split, ids=[], features=x, raw=raw[:, :, None], sizes=SIZES)
        for split, x, raw in (("train", features, costs), ("validation", features[:16], costs[:16]))
    ]
    weights = CostWeights((("cla", 1.0),))
    points = [
        GridPoint(
            run_id=f"{beta}-{seed}", method="multi-task", weights=weights, beta=beta, nu=1.0, seed=seed,
            query_costs=(0.0, *[beta] * (AGENTS - 1)),
        )
        for beta in BETAS
        for seed in range(SEEDS)
    ]  # fmt: skip
    config = TrainConfig(network="token_transformer", hidden=hidden, layers=layers, epochs=1, batch_size=batch)
    start = time.perf_counter()
    train_grid(points, *tables, config, tasks=["cla"], device=device)
    _finish(device)
    return time.perf_counter() - start


def one_by_one(
    make: Callable[[], nn.Module], features: Tensor, costs: Tensor, batch: int, *, loader: bool, device: str = "cpu"
) -> float:
    """Seconds for one epoch of as many networks one after another, from training one."""
    rows, start = features.long(), time.perf_counter()
    if not loader:
        rows, costs = rows.to(device), costs.to(device)
    network = make().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    if loader:
        batches = iter(DataLoader(TensorDataset(rows, costs), batch_size=batch, shuffle=True))
    else:
        batches = ((rows[i], costs[i]) for i in torch.randperm(len(rows), device=device).split(batch))
    for x, total in batches:
        x, total = x.to(device), total.to(device)
        tau = total.sum(1, keepdim=True) - total
        loss = -(tau * network(x).log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _finish(device)
    return (time.perf_counter() - start) * len(BETAS) * SEEDS


def _finish(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    shape, ratios = (options.hidden, options.layers), {}
    features, costs = made_up(options.rows)
    print(
        "| 28 rejectors, batch | grid, s | x indexing (range) | x DataLoader (range) | x our network, padded (range) |"
    )
    print("| ---: | ---: | ---: | ---: | ---: |")
    for batch in (64, 1024):
        grid(features[:batch], costs[:batch], batch, *shape)  # torch's first calls are slow
        peers = {
            "indexing": lambda b=batch: one_by_one(lambda: Plain(*shape), features, costs, b, loader=False),
            "dataloader": lambda b=batch: one_by_one(lambda: Plain(*shape), features, costs, b, loader=True),
            "padded": lambda b=batch: one_by_one(
                lambda: TokenNetwork(SIZES, AGENTS, *shape), features, costs, b, loader=False
            ),
        }
        times = [
            (grid(features, costs, batch, *shape), {name: run() for name, run in peers.items()})
            for _ in range(options.rounds)
        ]
        cells = []
        for name in peers:
            found = sorted(theirs[name] / ours for ours, theirs in times)
            ratios[f"batch {batch}, {name}"] = round(statistics.median(found), 2)
            cells.append(f"{statistics.median(found):.1f} ({found[0]:.1f} to {found[-1]:.1f})")
        ours = statistics.median(ours for ours, _ in times)
        print(f"| {batch} | {ours:.1f} | {' | '.join(cells)} |", flush=True)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
