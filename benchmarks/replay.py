"""How often the intervals of `l2d replay` hold the true value, over simulated logs whose truth is known.

python benchmarks/replay.py
python benchmarks/replay.py --logs 100
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from l2d.data.terminal.render import print_rows
from l2d.rejector.replay.estimators import Logged, estimates

#: Decisions, share that explores, share of each agent's outcomes that come back.
SETTINGS = [
    (1500, 0.3, (1.0, 1.0, 1.0)),
    (3000, 0.3, (0.9, 0.7, 0.5)),
    (3000, 0.05, (1.0, 1.0, 1.0)),
    (20_000, 0.02, (1.0, 1.0, 1.0)),
]


def log(n: int, explore: float, returned: tuple[float, ...], seed: int) -> tuple[Logged, np.ndarray]:
    """Decisions among three agents by predictions that are biased and blind to half of what costs depend on; and the
    policy that always asks the last agent."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, 2))
    chance = 1 / (1 + np.exp(-np.stack([x[:, 0] + x[:, 1], -x[:, 0], 0.5 * x[:, 1] - 0.5], axis=1)))
    predicted = 0.1 + 1 / (1 + np.exp(-np.stack([x[:, 0], -x[:, 0], 0 * x[:, 0]], axis=1)))
    rows, greedy = np.arange(n), predicted.argmin(axis=1)
    chances = np.full((n, 3), explore / 3)
    chances[rows, greedy] += 1 - explore
    agent = (generator.random(n)[:, None] > chances.cumsum(axis=1)).sum(axis=1)
    cost = (generator.random(n) < chance[rows, agent]).astype(float)
    cost[generator.random(n) > np.array(returned)[agent]] = np.nan
    policy = np.zeros((n, 3))
    policy[:, 2] = 1
    return Logged(agent, chances, cost, predicted), policy


def truth() -> float:
    """Mean cost of the last agent, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float((weights / (1 + np.exp(-(0.5 * nodes - 0.5)))).sum() / weights.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logs", type=int, default=1000, help="a setting")
    logs, true, rows = parser.parse_args().logs, truth(), []
    for n, explore, returned in SETTINGS:
        held: dict[str, list[bool]] = {}
        values: dict[str, list[float]] = {}
        sizes = []
        for seed in range(logs):
            for one in estimates(*log(n, explore, returned, seed)):
                low, high = one.interval(0.95)
                held.setdefault(one.name, []).append(low <= true <= high)
                values.setdefault(one.name, []).append(one.value)
                sizes.append(one.size)
        for name, found in held.items():
            rows.append(
                {
                    "decisions": n, "explore": explore, "outcomes": " ".join(f"{share:.0%}" for share in returned),
                    "effective": round(float(np.mean(sizes))), "estimator": name, "covers %": 100 * np.mean(found),
                    "bias": float(np.mean(values[name])) - true, "deviation": float(np.std(values[name])),
                }
            )  # fmt: skip
    print_rows(rows)
    print(json.dumps({"least_coverage": min(row["covers %"] for row in rows) / 100, "logs": logs}))


if __name__ == "__main__":
    main()
