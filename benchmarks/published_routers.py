"""Parts of ``published.py``: what papers on routers, on several agents at once and on attacks say of their methods."""

from __future__ import annotations

import math

import numpy as np
import torch
from published_worlds import linear_rejector, scored, shown, table, trained
from scipy.stats import spearmanr

from l2d.rejector.evaluation.robust import attack
from l2d.rejector.literature.carrot import Carrot
from l2d.rejector.literature.samples import Samples
from l2d.rejector.losses import allocate
from l2d.rejector.theory.top_k import asked, top_k_costs


def carrot(worlds: int) -> None:
    """CARROT: what a plug-in of nearest neighbours loses against the best router there is, by training samples."""
    print("\n| samples | excess loss | exponent since the line above |\n| ---: | --- | ---: |")
    before: list[float] = []
    for rows in (250, 1000, 4000, 16000):
        excess = []
        for seed in range(worlds):
            random = np.random.default_rng(seed)
            waves = random.normal(size=(2, 4)) * 1.5

            def drawn(count: int, random=random, waves=waves) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
                x = random.random((count, 2))
                chance = 0.5 + 0.4 * np.sin(2 * np.pi * x @ waves)
                costs = (random.random((count, 4)) < chance).astype(np.float32)
                return torch.from_numpy(x).float(), torch.from_numpy(costs), chance

            (x, costs, _), (vx, vcosts, _), (tx, _, chance) = drawn(rows), drawn(rows // 2), drawn(5000)
            state, _ = Carrot().learn(
                Samples(x=x, costs=costs, unasked=costs), Samples(x=vx, costs=vcosts, unasked=vcosts)
            )
            chosen = allocate(Carrot().scores(state, tx, None, 4)).numpy()
            excess.append(float((chance[np.arange(len(chance)), chosen] - chance.min(axis=1)).mean()))
        rate = f"{math.log(np.mean(excess) / np.mean(before)) / math.log(4):.2f}" if before else ""
        before = excess
        print(f"| {rows:,} | {shown(excess)} | {rate} |", flush=True)


def preferences(worlds: int) -> None:
    """RouteLLM: the gap between a weak and a strong model that a router recovers (APGR; 0.5 at random)."""
    print("\n| training samples | matrix_factorization | elo |\n| ---: | --- | --- |")
    for rows in (100, 500, 2500):
        cells = []
        for method in ("matrix_factorization", "elo"):
            recovered = []
            for seed in range(worlds):
                random, parts = np.random.default_rng(seed), []
                hard = np.random.default_rng(99).normal(size=8)
                for split, count in (("train", rows), ("validation", 500), ("test", 4000)):
                    x = random.normal(size=(count, 8))
                    weak = 1 / (1 + np.exp(x @ hard))  # right on easy prompts, the strong one nearly everywhere
                    right = np.stack([random.random(count) < weak, random.random(count) < 0.75 + 0.25 * weak], axis=1)
                    y = np.where(right[:, 0], 0, 1)  # the model, agent 0, says 0
                    parts.append(table(split, x, y, np.where(right[:, 1], y, 1 - y)[:, None]))
                found = trained(method, parts, 2)
                scores, costs = found.scores_on(parts[2]), parts[2].raw[:, :, 0].numpy()
                gain = (costs[:, 0] - costs[:, 1])[np.argsort(scores[:, 0] - scores[:, 1], kind="stable")]
                recovered.append(float((np.cumsum(gain) / gain.sum()).mean()))
            cells.append(shown(recovered))
        print(f"| {rows:,} | {' | '.join(cells)} |", flush=True)


def irt(worlds: int) -> None:
    """IRT-Router: a world of its model; are chances of being right, and the order of the abilities, found again?"""
    print("\n| training samples | error of chances (RMS) | of each agent's mean | rank correlation of abilities |")
    print("| ---: | --- | --- | --- |")
    for rows in (500, 2000, 8000):
        cells: list[list[float]] = [[] for _ in range(3)]
        for seed in range(worlds):
            random, parts, chances = np.random.default_rng(seed), [], []
            ability, maps, hard = random.normal(size=(7, 3)), random.normal(size=(6, 3)), random.normal(size=6)
            ability += np.linspace(-1, 2, 7)[:, None]
            for split, count in (("train", rows), ("validation", 500), ("test", 3000)):
                x = random.normal(size=(count, 6))
                odds = (1 / (1 + np.exp(-x @ maps))) @ ability.T - (x @ hard)[:, None]
                chance = 1 / (1 + np.exp(-odds))
                right = random.random(chance.shape) < chance
                y = np.where(right[:, 0], 0, 1)
                parts.append(table(split, x, y, np.where(right[:, 1:], y[:, None], 1 - y[:, None])))
                chances.append(chance)
            found = trained("irt", parts, 2)
            predicted = 1 + found.scores_on(parts[2])
            constant = 1 - parts[0].raw[:, :, 0].numpy().mean(axis=0)
            cells[0].append(float(np.sqrt(((predicted - chances[2]) ** 2).mean())))
            cells[1].append(float(np.sqrt(((constant - chances[2]) ** 2).mean())))
            abilities = found.state["network.abilities"].numpy().mean(axis=1)
            cells[2].append(float(spearmanr(abilities, ability.mean(axis=1)).statistic))
        print(f"| {rows:,} | {' | '.join(shown(values) for values in cells)} |", flush=True)


def top_k(worlds: int) -> None:
    """Top-k: one linear rejector, trained on the surrogate of one agent, asks k of seven readers."""
    print("\n| k | cost of the k asked | of the k cheapest | of k at random | errors of their vote | of k at random |")
    print("| ---: | --- | --- | --- | --- | --- |")
    for k in (1, 2, 3, 5, 7):
        cells: list[list[float]] = [[] for _ in range(5)]
        for seed in range(worlds):
            random = np.random.default_rng(seed)
            skill = 1.5 * random.normal(size=(6, 7))

            def drawn(count: int, random=random, skill=skill) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
                x = random.normal(size=(count, 6))
                chance = 0.05 + 0.5 / (1 + np.exp(x @ skill))  # of being wrong
                return x, chance, random.random(chance.shape) < chance

            (x, _, wrong), (tx, chance, twrong) = drawn(4000), drawn(4000)
            scores = scored(linear_rejector(x, wrong.astype(float)), tx)
            drawn_by_lot = random.random(scores.shape)
            cells[0].append(float(top_k_costs(scores, chance, k).mean()))
            cells[1].append(float(top_k_costs(-chance, chance, k).mean()))
            cells[2].append(float(k * chance.mean()))
            for cell, order in ((3, scores), (4, drawn_by_lot)):
                votes = (twrong & asked(order, chance, k)).sum(axis=1)
                cells[cell].append(float(((votes > k / 2) + 0.5 * (votes == k / 2)).mean()))
        print(f"| {k} | {' | '.join(shown(values) for values in cells)} |", flush=True)


def advice(worlds: int) -> None:
    """Expert-conditional advice: pairs as agents, against an expert first and its advice afterwards."""
    print("\n| no advice | expert first, advice afterwards | pairs | best pair, costs known in expectation |")
    print("| --- | --- | --- | --- |")
    cells: list[list[float]] = [[] for _ in range(4)]
    for seed in range(worlds):
        random = np.random.default_rng(seed)

        def drawn(count: int, random=random) -> tuple[np.ndarray, np.ndarray]:
            x = random.normal(size=(count, 3))
            side = 1 / (1 + np.exp(-3 * x[:, 0]))  # where advice helps the first expert; the second needs none
            alone = np.stack([0.45 + 0 * side, 0.30 + 0.1 * (x[:, 1] > 0)], axis=1)
            advised = np.stack([0.45 - 0.4 * side, alone[:, 1]], axis=1) + 0.05  # its price
            return x, np.concatenate([alone, advised], axis=1)

        (x, mean), (tx, true) = drawn(4000), drawn(4000)
        costs = (random.random(mean.shape) < mean).astype(float)
        rows = np.arange(len(tx))
        expert = scored(linear_rejector(x, costs[:, :2]), tx).argmax(axis=1)
        helped = np.stack([scored(linear_rejector(x, costs[:, [j, j + 2]]), tx).argmax(axis=1) for j in (0, 1)], axis=1)
        pair = scored(linear_rejector(x, costs), tx).argmax(axis=1)
        for cell, chosen in zip(
            cells, (expert, expert + 2 * helped[rows, expert], pair, true.argmin(axis=1)), strict=True
        ):
            cell.append(float(true[rows, chosen].mean()))
    print(f"| {' | '.join(shown(values) for values in cells)} |")


def attacks(worlds: int) -> None:
    """Attacks on a two-stage rejector: loss under an untargeted one, and what a targeted one brings to one expert."""
    print("\n| radius | loss | under attack | always the dearest | share of one expert | forced to it |")
    print("| ---: | --- | --- | --- | --- | --- |")
    for radius in (0.05, 0.1, 0.3, 1.0):
        cells: list[list[float]] = [[] for _ in range(5)]
        for seed in range(worlds):
            random = np.random.default_rng(seed)
            region = 2 * random.normal(size=(20, 4))

            def drawn(count: int, random=random, region=region) -> tuple[np.ndarray, np.ndarray]:
                x = random.normal(size=(count, 20))
                best = (x @ region).argmax(axis=1)
                return x, np.where(np.arange(4) == best[:, None], 0.05, 0.7)  # each knows a region

            (x, chance), (tx, costs) = drawn(4000), drawn(1000)
            network = linear_rejector(x, (random.random(chance.shape) < chance).astype(float))
            found = attack(
                lambda rows, network=network: scored(network, rows).astype(np.float32),
                tx.astype(np.float32), x.std(axis=0), radius, np.ones(costs.shape, dtype=bool),
            )  # fmt: skip
            cells[0].append(float(costs[np.arange(len(costs)), found.clean].mean()))
            cells[1].append(float(np.where(found.reached, costs, -np.inf).max(axis=1).mean()))
            cells[2].append(float(costs.max(axis=1).mean()))
            cells[3].append(float((found.clean == 3).mean()))
            cells[4].append(float(found.reached[:, 3].mean()))
        print(f"| {radius:g} | {' | '.join(shown(values) for values in cells)} |", flush=True)
