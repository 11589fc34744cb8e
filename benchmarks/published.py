"""What papers say of their methods, on made-up worlds of the kind they describe, larger than in the tests.

Each part prints one table. Worlds are drawn anew for each repetition; figures are means with standard errors.

    python benchmarks/published.py            # about three minutes of one core
    python benchmarks/published.py --parts picce,imputed --worlds 3
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from published_routers import advice, attacks, carrot, irt, preferences, top_k
from published_worlds import error, shown, table, trained

from l2d.rejector.evaluation.causal import bandwidth, discontinuity
from l2d.rejector.literature.conformal import Conformal
from l2d.rejector.literature.profiles import Profiles
from l2d.rejector.literature.samples import Samples
from l2d.rejector.losses import allocate


def picce(worlds: int) -> None:
    """When More Experts Hurt: the classifier's own accuracy as experts of 75 % accuracy are added."""
    print("\n| experts | mozannar_sontag: classifier, system | picce: classifier, system |\n| ---: | --- | --- |")
    for experts in (1, 2, 4, 8, 16):
        cells = []
        for method in ("mozannar_sontag", "picce"):
            alone, system = [], []
            for seed in range(worlds):
                random, centers = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(10, 8))
                parts = []
                for split, rows in (("train", 1500), ("validation", 500), ("test", 2000)):
                    y = random.integers(0, 10, rows)
                    x = centers[y] + 0.9 * random.normal(size=(rows, 8))
                    right = random.random((rows, experts)) < 0.75
                    other = (y[:, None] + random.integers(1, 10, (rows, experts))) % 10
                    parts.append(table(split, x, y, np.where(right, y[:, None], other)))
                found = trained(method, parts, 10)
                said = found.probabilities(parts[2].features.numpy()).argmax(axis=1)
                alone.append(float((said == parts[2].targets["target_cla"]).mean()))
                system.append(1 - error(found, parts[2]))
            cells.append(f"{shown(alone)}, {shown(system)}")
        print(f"| {experts} | {' | '.join(cells)} |", flush=True)


def imputed(worlds: int) -> None:
    """Learning to Defer with Limited Expert Predictions: system error by how many samples the expert has answered."""
    print("\n| answered, of 2,000 | imputed | cost_regression, which leaves gaps out |\n| ---: | --- | --- |")
    for known in (20, 50, 100, 400, 2000):
        cells = []
        for method in ("imputed", "cost_regression"):
            errors = []
            for seed in range(worlds):
                random, parts = np.random.default_rng(seed), []
                for split, rows in (("train", 2000), ("validation", 500), ("test", 3000)):
                    x, y = random.normal(size=(rows, 10)), random.integers(0, 2, rows)
                    right = random.random(rows) < np.where(x[:, 0] + x[:, 1] > 0, 0.95, 0.2)
                    answers = np.where(right, y, 1 - y)[:, None]
                    if split == "train":
                        answers[known:] = -1
                    parts.append(table(split, x, y, answers))
                errors.append(error(trained(method, parts, 2), parts[2]))
            cells.append(shown(errors))
        print(f"| {known:,} | {' | '.join(cells)} |", flush=True)


def profiles(worlds: int) -> None:
    """Universal Model Routing: an agent that arrives later, by how many samples it has answered."""
    print("\n| answers of the new agent | profiles | a linear rejector trained again on these | without it |")
    print("| ---: | --- | --- | --- |")
    for known in (30, 100, 300, 1000):
        cells: list[list[float]] = [[], [], []]
        for seed in range(worlds):
            random = np.random.default_rng(seed)
            topics, errors = 4 * random.normal(size=(12, 16)), random.random((12, 4))

            def drawn(rows: int, random=random, topics=topics, errors=errors) -> tuple[torch.Tensor, torch.Tensor]:
                topic = random.integers(0, 12, rows)
                x = topics[topic] + random.normal(size=(rows, 16))
                costs = random.random((rows, 4)) < errors[topic]
                return torch.from_numpy(x).float(), torch.from_numpy(costs).float()

            (x, costs), (vx, vcosts), (tx, tcosts) = drawn(2000), drawn(1000), drawn(4000)
            late, few = costs.clone(), vcosts.clone()
            late[:, 3] = few[known:, 3] = math.inf
            state, _ = Profiles().learn(Samples(x=x, costs=late), Samples(x=vx, costs=few))
            chosen = allocate(Profiles().scores(state, tx, None, 4))
            cells[0].append(float(tcosts[torch.arange(len(tx)), chosen].mean()))
            again = torch.linalg.lstsq(_with_one(vx[:known]), vcosts[:known]).solution
            chosen = allocate(-(_with_one(tx) @ again))
            cells[1].append(float(tcosts[torch.arange(len(tx)), chosen].mean()))
            state, _ = Profiles().learn(Samples(x=x, costs=costs[:, :3]), Samples(x=vx, costs=vcosts[:, :3]))
            chosen = allocate(Profiles().scores(state, tx, None, 3))
            cells[2].append(float(tcosts[torch.arange(len(tx)), chosen].mean()))
        print(f"| {known:,} | {' | '.join(shown(values) for values in cells)} |", flush=True)


def _with_one(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], dim=1)


def conformal(worlds: int) -> None:
    """Training-free deferral: accuracy beside the model's and the best expert's, and what each expert has to do."""
    print("\n| model | best expert | conformal | share deferred | most of it to one expert |\n" + "| ---: " * 5 + "|")
    cells: list[list[float]] = [[] for _ in range(5)]
    for seed in range(worlds):
        random, parts = np.random.default_rng(seed), []
        skill = random.uniform(0.5, 1.0, (5, 10))
        for rows in (3000, 1000, 4000):
            y = random.integers(0, 10, rows)
            logits = 3.0 * (np.arange(10) == y[:, None]) + 1.5 * random.normal(size=(rows, 10))
            chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            right = random.random((rows, 5)) < skill[:, y].T
            answers = np.where(right, y[:, None], (y[:, None] + random.integers(1, 10, (rows, 5))) % 10)
            wrong = np.concatenate([(chances.argmax(axis=1) != y)[:, None], answers != y[:, None]], axis=1)
            parts.append(
                Samples(
                    x=torch.zeros(rows, 1),
                    costs=torch.from_numpy(wrong).float(),
                    target=torch.from_numpy(y),
                    probabilities=torch.from_numpy(chances).float(),
                    answers=torch.from_numpy(answers),
                )
            )
        state, _ = Conformal().learn(parts[0], parts[1])
        chosen = allocate(Conformal().scores(state, parts[2].x, parts[2].probabilities, 6))
        accuracy = 1 - parts[2].costs.mean(dim=0)
        shares = torch.bincount(chosen, minlength=6).double() / len(chosen)
        system = 1 - float(parts[2].costs[torch.arange(len(chosen)), chosen].mean())
        found = (accuracy[0], accuracy[1:].max(), system, 1 - shares[0], shares[1:].max())
        for cell, value in zip(cells, found, strict=True):
            cell.append(float(value))
    print(f"| {' | '.join(shown(values) for values in cells)} |")


def causal(worlds: int) -> None:
    """The jump at the margin: how often 95 % intervals hold it, over 40 worlds for each that is asked for."""
    print("\n| samples | intervals that hold the jump | mean error | mean width |\n| ---: | ---: | ---: | ---: |")
    for rows in (400, 1500):
        held, errors, widths = [], [], []
        for seed in range(40 * worlds):
            random = np.random.default_rng(seed)
            x = random.normal(size=rows)
            kept = 0.5 + 0.3 * np.tanh(x) + 0.2 * random.normal(size=rows)
            y = np.where(x > 0, kept - 0.3 - 0.2 * x + 0.2 * random.normal(size=rows), kept)
            width = bandwidth(x, y)
            found = discontinuity(x, y, width) if width else None
            if found is not None:
                held.append(abs(found.value + 0.3) < 1.96 * found.error)
                errors.append(found.value + 0.3)
                widths.append(2 * 1.96 * found.error)
        print(f"| {rows:,} | {np.mean(held):.3f} of {len(held)} | {np.mean(errors):+.4f} | {np.mean(widths):.3f} |")


PARTS = {
    "picce": picce, "imputed": imputed, "profiles": profiles, "conformal": conformal, "causal": causal,
    "carrot": carrot, "preferences": preferences, "irt": irt, "top_k": top_k, "advice": advice, "attacks": attacks,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--worlds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.parts.split(","):
        print(f"\n{PARTS[name].__doc__}", flush=True)
        PARTS[name](args.worlds)


if __name__ == "__main__":
    main()
