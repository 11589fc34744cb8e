"""How often `l2d recalibrate` advises a correction, and how often its interval holds the truth, in known worlds.

python benchmarks/recalibrate.py
python benchmarks/recalibrate.py --worlds 100
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime

import numpy as np

from l2d.data.terminal.render import print_rows
from l2d.rejector.calibration import Calibration
from l2d.rejector.recalibration.evidence import deciding, judged
from l2d.rejector.recalibration.outcomes import Outcomes
from l2d.rejector.recalibration.recalibrating import LEAST, advice_of, agent_of

NOW = datetime.now(UTC)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(12)
NAMES = ["small", "medium", "large"]
CHARGES = np.array([0.0, 0.03, 0.1])
#: What has changed since training: none; one agent is wrong more often; predictions of one agent are too flat.
CHANGES = ("nothing", "worse agent", "flat predictions")


def chances(x: np.ndarray) -> np.ndarray:
    """Of a wrong answer, (n, agents)."""
    ability = np.array([0.3, 1.2, 2.2])
    slope = np.array([1.5, 1.0, 0.5])
    return 1 / (1 + np.exp(ability - slope * x[:, :1] - 0.7 * x[:, 1:]))


def log(n: int, explore: float, change: str, seed: int) -> tuple[Outcomes, np.ndarray]:
    """A log, and the true expected total costs of its decisions."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, 2))
    true = chances(x)
    seen = 0.6 * x[:, 1] + 0.8 * generator.standard_normal(n)  # of the second feature, and no more
    guesses = [chances(np.stack([x[:, 0], 0.6 * seen + 0.8 * node], axis=1)) for node in NODES]
    predicted = np.tensordot(WEIGHTS / WEIGHTS.sum(), np.array(guesses), axes=1)
    if change == "worse agent":
        true[:, 1] = 1 - 0.6 * (1 - true[:, 1])
    if change == "flat predictions":
        predicted[:, 0] = predicted[:, 0].mean() + 0.4 * (predicted[:, 0] - predicted[:, 0].mean())
    predicted, true = predicted + CHARGES, true + CHARGES
    rows, greedy = np.arange(n), predicted.astype(np.float32).argmin(axis=1)
    chance = np.full((n, 3), explore / 3)
    chance[rows, greedy] += 1 - explore
    agent = (generator.random(n)[:, None] > chance.cumsum(axis=1)).sum(axis=1)
    cost = (generator.random(n) < (true - CHARGES)[rows, agent]) + CHARGES[agent]
    scores = -predicted.astype(np.float32)
    there = np.ones((n, 3), bool)
    ids = np.array([str(row) for row in rows])
    return Outcomes(ids, rows, agent, greedy, there, chance, cost, scores, -scores.astype(np.float64)), true


def one(n: int, explore: float, change: str, seed: int) -> dict[str, float]:
    """What is said of one log, and what is so."""
    outcomes, true = log(n, explore, change, seed)
    end = 2 * n // 3
    earlier, later = outcomes.take(np.arange(end)), outcomes.take(np.arange(end, n))
    agents = [agent_of(name, place, earlier, later, LEAST) for place, name in enumerate(NAMES)]
    corrections = tuple(agent.correction for agent in agents if agent.correction is not None)
    calibration = Calibration("run", "run", False, "", NOW, NOW, corrections)
    found = -calibration.correct(later.scores, NAMES).astype(np.float64)
    rows = np.isin(later.agent, [NAMES.index(one.agent) for one in calibration.corrections])
    together, decided = judged(later.take(rows), found[rows]), deciding(later, found)
    improves, _ = advice_of(together, decided, 0.95)
    truth = true[end:]
    each = np.arange(len(later))
    gain = float((truth[each, found.argmin(axis=1)] - truth[each, later.greedy]).mean())
    result = {"improves": improves, "gain": gain, "better": together.says(0.95) == "better"}
    if decided.difference is not None:
        low, high = decided.difference.interval(0.95)
        result |= {"told": 1.0, "held": low <= gain <= high}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=1000, help="of each setting")
    worlds, rows, wrong = parser.parse_args().worlds, [], 0.0
    for change in CHANGES:
        for n, explore in ((1500, 0.1), (6000, 0.02), (6000, 0.1)):
            found = [one(n, explore, change, seed) for seed in range(worlds)]
            advised = [each for each in found if each["improves"]]
            told = [each["held"] for each in found if "told" in each]
            rows.append(
                {
                    "changed": change, "decisions": n, "explore": explore,
                    "errors better %": 100 * np.mean([each["better"] for each in found]),
                    "decisions told %": 100 * len(told) / worlds,
                    "interval holds %": 100 * np.mean(told) if told else None,
                    "advised %": 100 * len(advised) / worlds,
                    "true gain where advised": -float(np.mean([each["gain"] for each in advised])) if advised else None,
                }
            )  # fmt: skip
            if change == "nothing":
                wrong = max(wrong, len(advised) / worlds)
    print_rows(rows)
    print(json.dumps({"most_advised_without_change": wrong, "worlds": worlds}))


if __name__ == "__main__":
    main()
