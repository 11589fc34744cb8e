"""How often the guard of `l2d serve --guard` falls back although choosing costs no more, and how soon where it does.

Three agents err at constant rates; the run's choice errs by `difference` more than the constant agent. In the rows that
change, it errs by 0.1 less until the 5,000th outcome. Every decision would be another than the constant agent's, and
every outcome comes back; where a run agrees with the constant agent in half of the decisions, it takes twice as many.

python benchmarks/guarding.py
python benchmarks/guarding.py --worlds 20 --outcomes 5000
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from l2d.data.terminal.render import print_rows
from l2d.rejector.serving.guarding import Costs, LiveGuard

ALPHA, CONSTANT_RATE, TURN = 0.05, 0.4, 5000
ROWS = [(0.02, 0.0, False), (0.02, 0.2, False), (0.1, 0.0, False), (0.1, 0.1, False), (0.1, 0.2, False),
        (0.1, 0.2, True)]  # fmt: skip
AGENTS = ["chosen", "constant", "other"]


def fallen(explore: float, difference: float, turns: bool, outcomes: int, seed: int) -> int | None:
    """After how many outcomes the guard falls back; None: not at all."""
    generator = np.random.default_rng(seed)
    costs = Costs(0.0, 1.0, np.array([CONSTANT_RATE, CONSTANT_RATE, 0.7]))
    guard = LiveGuard(AGENTS, costs, query_costs=np.zeros(3), paid=None, explore=explore, alpha=ALPHA, constant=1)
    drawn = generator.random(outcomes) < explore
    agents = np.where(drawn, generator.integers(0, 3, outcomes), 0)
    gap = np.full(outcomes, difference)
    if turns:
        gap[:TURN] = -0.1
    rates = np.stack([CONSTANT_RATE + gap, np.full(outcomes, CONSTANT_RATE), np.full(outcomes, 0.7)], axis=1)
    wrong = (generator.random(outcomes) < rates[np.arange(outcomes), agents]).astype(float)
    chance = {0: 1 - explore + explore / 3, 1: explore / 3, 2: explore / 3}
    for number, (agent, cost) in enumerate(zip(agents.tolist(), wrong.tolist(), strict=True), 1):
        guard.expect(str(number), agent, 0, chance[agent], [True] * 3, None)
        guard.see(str(number), cost)
        if guard.fallen is not None:
            return number
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=100, help="a row")
    parser.add_argument("--outcomes", type=int, default=20_000, help="of a world, at most")
    asked, rows = parser.parse_args(), []
    for explore, difference, turns in ROWS:
        found = [fallen(explore, difference, turns, asked.outcomes, seed) for seed in range(asked.worlds)]
        known = np.array([asked.outcomes if one is None else one for one in found], float) - TURN * turns
        fell = sum(one is not None for one in found) / asked.worlds
        rows.append(
            {
                "explore": explore, "costs more by": difference, "from outcome": TURN if turns else 0,
                "fell back %": 100 * fell, "half within": float(np.median(known)) if fell > 0.5 else None,
                "nine of ten within": float(np.quantile(known, 0.9)) if fell > 0.9 else None,
            }
        )  # fmt: skip
        print_rows(rows[-1:])
    wrongly = max(row["fell back %"] for row in rows if not row["costs more by"]) / 100
    facts = {"alpha": ALPHA, "worlds": asked.worlds, "outcomes": asked.outcomes}
    print(json.dumps({**facts, "false_alarms": wrongly}))


if __name__ == "__main__":
    main()
