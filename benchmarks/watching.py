"""After how many outcomes `l2d watch` says that an agent has changed, and how often it says so of one that has not.

An agent errs at a constant rate, which is known from some test samples; at some outcome the rate changes.

python benchmarks/watching.py
python benchmarks/watching.py --agents 100
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from l2d.data.terminal.render import print_rows
from l2d.rejector.evaluation.betting import Betting
from l2d.rejector.watch.baseline import ERRORS

RATES = [(0.2, 0.2), (0.2, 0.25), (0.2, 0.3), (0.2, 0.4), (0.2, 0.1), (0.05, 0.15), (0.5, 0.7)]
TESTED, LONGEST, ALPHA = 2000, 20_000, 0.01 / 3 / 3  # of three agents, a third of a chance of 1 %


def alarm(before: float, after: float, seed: int) -> int | None:
    """After how many outcomes; None: not within the longest."""
    generator = np.random.default_rng(seed)
    tested = (generator.random(TESTED) < before).astype(float)
    error = ERRORS * tested.std(ddof=1) / TESTED**0.5
    test = Betting(0.0, 1.0, tested.mean() - error, tested.mean() + error)
    for number, value in enumerate((generator.random(LONGEST) < after).astype(float).tolist(), 1):
        test.see(value)
        if test.wealth >= 1 / ALPHA:
            return number
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=1000, help="a pair of rates")
    agents, rows = parser.parse_args().agents, []
    for before, after in RATES:
        found = [alarm(before, after, seed) for seed in range(agents)]
        known = np.array([number if number is not None else LONGEST for number in found])
        rows.append(
            {
                "rate before": before, "rate after": after, "found %": 100 * sum(n is not None for n in found) / agents,
                "half within": int(np.median(known)), "95 % within": int(np.quantile(known, 0.95)),
            }
        )  # fmt: skip
    print_rows(rows)
    print(json.dumps({"false_alarms": rows[0]["found %"] / 100, "stated": ALPHA, "outcomes": LONGEST}))


if __name__ == "__main__":
    main()
