"""The paper's Algorithm 1, which asks every agent in every batch of every epoch, against asking once.

    python benchmarks/algorithm_1.py                          # fits the three digits detectors first (minutes)
    python benchmarks/algorithm_1.py --batches 12 --out KEPT  # keeps the cache, and uses it again

Table 3 in its shape on the digits detectors: 7 query costs x 4 seeds x 200 epochs, batch 64. Algorithm 1 is run as a
user would write it, for `--batches` batches: ask the three detectors about the batch, cost their detections, one step
of the rejector (on the model's pooled features, as here); and ask about the validation scenes at the end of an epoch.
Its time for the whole table is that of these batches times their number: it is the same work each time. Ours is
measured whole: asking, costs and writing (`l2d build` but for fitting, which both need), and all 28 rejectors.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from l2d.cache_builder.agents import make_agent
from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.cache.schema import frozen_file
from l2d.data.sources import load_dataset
from l2d.data.sources.digits import write_digits
from l2d.rejector.grid import make_grid
from l2d.rejector.losses import surrogate_deferral_loss
from l2d.rejector.networks import make_network
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sweep import sweep

BETAS, SEEDS, EPOCHS, BATCH = [0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5], [0, 1, 2, 3], 200, 64


def build_seconds(recipe, out: Path) -> float:
    """Of everything but fitting: the answers and costs of a finished cache are made again."""
    build(recipe, out, device="cpu")
    cache = CostCache(out)
    for agent in cache.agents:
        for part in (out / "agents" / agent.name).rglob("*.parquet"):
            part.unlink()
        for seal in (out / "agents" / agent.name).rglob("*.seal.json"):
            seal.unlink()
    start = time.perf_counter()
    build(recipe, out, device="cpu")
    return time.perf_counter() - start


def algorithm_1(recipe, out: Path, batches: int) -> tuple[float, float]:
    """Seconds of a training batch and of a validation scene, for one rejector."""
    from safetensors.numpy import load

    dataset = load_dataset(recipe.dataset, recipe.name)
    agents = []
    for config in recipe.agents:
        agent = make_agent(config)
        agent.load(load(frozen_file(out, config.name).read_bytes()), dataset, "cpu")
        agents.append(agent)

    def ask(rows: range) -> tuple[torch.Tensor, torch.Tensor]:
        batch, costs, features = dataset.batch(rows), [], None
        for agent in agents:
            answers = agent.ask(batch)
            costs.append(torch.from_numpy(recipe.costs.compute(answers, batch, len(dataset.classes))["map"]))
            features = answers.features if features is None else features
        return torch.from_numpy(features).float(), torch.stack(costs, dim=1)

    features, _ = ask(range(2))
    rejector = make_network("mlp", features.shape[1], len(agents), 64)
    optimizer = torch.optim.Adam(rejector.parameters(), lr=1e-3)
    start = time.perf_counter()
    for number in range(batches):
        features, costs = ask(range(number * BATCH, (number + 1) * BATCH))
        optimizer.zero_grad()
        surrogate_deferral_loss(rejector(features), costs, 1.0).mean().backward()
        optimizer.step()
    seconds = (time.perf_counter() - start) / batches
    start = time.perf_counter()
    rejector(ask(range(BATCH))[0])
    return seconds, (time.perf_counter() - start) / BATCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--out", type=Path, help="where data and cache are kept; a temporary folder without")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        write_digits(folder / "VOCdevkit")
        recipe = load_recipe("digits", folder / "VOCdevkit")
        building = build_seconds(recipe, folder / "digits.cache")
        cache = CostCache(folder / "digits.cache")
        of_split = [
            name for k in range(cache.record.num_chunks) for name in cache.samples(k, ["split"])["split"].to_pylist()
        ]
        counts = Counter(of_split)
        points = make_grid(cache, methods=["multi-task"], weights=[], betas=BETAS, nus=[1.0], seeds=SEEDS)
        config = TrainConfig(epochs=EPOCHS, batch_size=BATCH, lr=1e-3)
        with tempfile.TemporaryDirectory(dir=folder) as runs:
            start = time.perf_counter()
            sweep(cache, points, [Path(runs) / point.run_id for point in points], config)
            training = time.perf_counter() - start
        of_batch, of_scene = algorithm_1(recipe, folder / "digits.cache", arguments.batches)
    per_epoch = -(-counts["train"] // BATCH) * of_batch + counts["validation"] * of_scene
    theirs, ours = len(points) * EPOCHS * per_epoch, building + training
    calls = 3 * len(points) * EPOCHS * (counts["train"] + counts["validation"])
    print(
        f"{counts['train']:,} training and {counts['validation']:,} validation scenes, 3 detectors, "
        f"{len(points)} rejectors x {EPOCHS} epochs, {torch.get_num_threads()} threads\n"
    )
    print("| | seconds | answers of agents |\n| --- | ---: | ---: |")
    print(f"| Algorithm 1: one batch of {BATCH} | {of_batch:.2f} | {3 * BATCH} |")
    print(
        f"| Algorithm 1: the whole table, by multiplication | {theirs:,.0f} ({theirs / 86400:.1f} days) | {calls:,} |"
    )
    print(f"| stage one, once (test scenes too) | {building:.1f} | {3 * cache.record.num_samples:,} |")
    print(f"| stage two: all rejectors | {training:.1f} | 0 |")
    print(f"| stages one and two | {ours:.1f} | {3 * cache.record.num_samples:,} |\n")
    ratios = {"algorithm_1": round(theirs / ours), "algorithm_1_for_one_rejector": round(theirs / len(points) / ours)}
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
