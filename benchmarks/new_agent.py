"""Which samples to ask a new agent about: drawn, spread out, or by an optimal design; in worlds whose gain is known.

python benchmarks/new_agent.py
python benchmarks/new_agent.py --worlds 50
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np

from l2d.data.terminal.render import print_rows
from l2d.rejector.decisions.first_questions import spread_out
from l2d.rejector.decisions.new_agent import judge_new_agent, worth_asking
from l2d.rejector.decisions.world import Answers, Known, World
from l2d.rejector.decisions.worth import losses_of

CHARGE = 0.02


def world(n: int, agents: int, seed: int) -> World:
    """Agents whose chance of a wrong answer depends on two features; predictions know both, and err."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, 2))
    slope, level = generator.normal(0, 1.2, (agents, 2)), generator.normal(0.6, 0.5, agents)
    chance = 1 / (1 + np.exp(level - x @ slope.T))
    predicted = np.clip(chance + 0.05 * generator.standard_normal(chance.shape), 0, 1)
    costs = (generator.random(chance.shape) < chance).astype(float)
    there = np.ones(chance.shape, bool)
    known = Known(predicted=predicted, right=None, available=there, answers=Answers())
    charges = np.full(chance.shape, CHARGE)
    names = [f"agent {k}" for k in range(agents)]
    return World(ids=[str(k) for k in range(n)], agents=names, known=known, costs=costs, charges=charges, price=charges)


def without_last(whole: World) -> World:
    known = replace(whole.known, predicted=whole.known.predicted[:, :-1], available=whole.known.available[:, :-1])
    return replace(
        whole, agents=whole.agents[:-1], known=known, costs=whole.costs[:, :-1], charges=whole.charges[:, :-1],
        price=whole.price[:, :-1],
    )  # fmt: skip


def by_design(old: World, count: int, seed: int) -> list[int]:
    """Greedy D-optimal: each next sample is the one whose prediction is least certain."""
    x = np.concatenate([np.ones((len(old), 1)), _standardised(old)], axis=1)
    return worth_asking(old, x, np.array([], np.int64), np.zeros(len(old)), 1.0)[:count]


def _standardised(old: World) -> np.ndarray:
    predicted = old.known.predicted
    return (predicted - predicted.mean(axis=0)) / predicted.std(axis=0)


def drawn(old: World, count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).choice(len(old), count, replace=False).tolist()


DESIGNS = {"random": drawn, "spread out": spread_out, "D-optimal": by_design}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=200)
    worlds, rows = parser.parse_args().worlds, []
    for count in (50, 100, 200):
        found: dict[str, list[tuple[float, bool, float, float]]] = {name: [] for name in DESIGNS}
        for seed in range(worlds):
            whole = world(2000, 5, seed)
            old = without_last(whole)
            for name, design in DESIGNS.items():
                chosen = design(old, count, seed)
                costs = {old.ids[row]: float(whole.costs[row, -1]) for row in chosen}
                judged = judge_new_agent(old, costs, charge=CHARGE)
                # what the rule that these answers teach really gains, on all samples
                saved = losses_of(old, range(4)) - whole.costs[:, -1] - CHARGE
                truth, gain = float(np.where(judged.asks, saved, 0.0).mean()), judged.result["gain"]
                holds = gain["low"] <= truth <= gain["high"]
                found[name].append((gain["value"] - truth, holds, gain["high"] - gain["low"], truth))
        for name, each in found.items():
            errors, held, width, real = (np.array(column, float) for column in zip(*each, strict=True))
            rows.append(
                {
                    "answers": count, "samples": name, "bias": errors.mean(),
                    "error": float(np.sqrt((errors**2).mean())),
                    "interval holds %": 100 * held.mean(), "width": width.mean(), "true gain": real.mean(),
                }
            )  # fmt: skip
    print_rows(rows)
    print(json.dumps({"worlds": worlds}))


if __name__ == "__main__":
    main()
