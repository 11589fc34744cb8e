"""How often 95 % intervals of a regret hold the true regret, over simulated cost tables whose truth is known.

python benchmarks/interval_coverage.py
python benchmarks/interval_coverage.py --tables 100
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable

import numpy as np

from l2d.data.terminal.render import print_rows
from l2d.rejector.evaluation.intervals import paired_intervals

ERRORS = np.array([0.30, 0.25, 0.20])  # of the agents, before the input says more
QUERY_COSTS = np.array([0.0, 0.05, 0.10])


def allocated(x: np.ndarray) -> np.ndarray:
    """A rejector: the agent that answers at input x."""
    return np.where(x < 0.5, 0, np.where(x < 0.8, 1, 2))


def chances(x: np.ndarray) -> np.ndarray:
    """Chance of an error of each agent at x in [0, 1]: (n, 3)."""
    return np.stack([ERRORS[0] * 2 * x, ERRORS[1] * (1.5 - x), ERRORS[2] + 0 * x], axis=1)


def zero_one(generator: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """0-1 costs, agents' errors independent given x."""
    return (generator.random((len(x), 3)) < chances(x)).astype(float)


def heavy(generator: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Skewed costs of the same means: exponential, clamped nowhere."""
    return generator.exponential(chances(x))


TRUTH_GRID = (np.arange(1_000_000) + 0.5) / 1_000_000


def truth(baseline: str) -> float:
    """True mean difference of the rejector against a baseline, by integration over x."""
    means = chances(TRUTH_GRID) + QUERY_COSTS
    chosen = allocated(TRUTH_GRID)
    own = means[np.arange(len(chosen)), chosen]
    if baseline == "constant":
        return float((own - means[:, 0]).mean())
    shares = np.bincount(chosen, minlength=3) / len(chosen)
    return float((own - means @ shares).mean())


def difference(costs: np.ndarray, x: np.ndarray, baseline: str) -> np.ndarray:
    chosen = allocated(x)
    total = costs + QUERY_COSTS
    own = total[np.arange(len(chosen)), chosen]
    shares = np.array([0.5, 0.3, 0.2])  # of x uniform: those of the true allocation
    return own - (total[:, 0] if baseline == "constant" else total @ shares)


def table(
    generator: np.random.Generator, costs: Callable, samples: int, groups: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Costs, inputs and groups of one table; in a group all samples share most of x."""
    if groups is None:
        x = generator.random(samples)
        return costs(generator, x), x, None
    of = generator.integers(0, groups, samples)
    x = (generator.random(groups)[of] + 0.1 * generator.random(samples)) % 1.0
    return costs(generator, x), x, of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=10_000)
    options = parser.parse_args()
    cases = [
        ("0-1", zero_one, 50, None),
        ("0-1", zero_one, 200, None),
        ("0-1", zero_one, 2000, None),
        ("exponential", heavy, 50, None),
        ("exponential", heavy, 200, None),
        ("exponential", heavy, 2000, None),
        ("0-1, grouped", zero_one, 600, 40),
        ("0-1, grouped", zero_one, 1500, 150),
    ]
    rows, coverages = [], {}
    for name, costs, samples, groups in cases:
        generator = np.random.default_rng(samples)
        tables = [table(generator, costs, samples, groups) for _ in range(options.tables)]
        for baseline in ("constant", "random"):
            differences = [difference(c, x, baseline) for c, x, _ in tables]
            if groups is None:  # tables of one size can be resampled alike
                found = paired_intervals(differences, resamples=options.resamples)
            else:
                found = []
                for values, (_, _, of) in zip(differences, tables, strict=True):
                    found += paired_intervals([values], of, resamples=options.resamples)
            true = truth(baseline)
            normal = [1.96 * d.std(ddof=1) / math.sqrt(samples) for d in differences]

            def share(intervals: list[tuple[float, float]], true: float = true) -> float:
                return float(np.mean([low <= true <= high for low, high in intervals]))

            covered = share([(i.low, i.high) for i in found])
            plain = [(d.mean() - half, d.mean() + half) for d, half in zip(differences, normal, strict=True)]
            rows.append(
                {
                    "costs": name,
                    "samples": samples,
                    "groups": "" if groups is None else str(groups),
                    "against": baseline,
                    "true difference": f"{true:+.4f}",
                    "l2d covers %": f"{100 * covered:.1f}",
                    "truth below / above %": " / ".join(
                        f"{100 * float(np.mean(missed)):.1f}"
                        for missed in ([true < i.low for i in found], [true > i.high for i in found])
                    ),
                    "mean ± 1.96 s/√n covers %": f"{100 * share(plain):.1f}",
                }
            )
            coverages[f"{name}, {samples}, {baseline}"] = round(covered, 4)
    print_rows(rows, title=f"Coverage of 95 % intervals over {options.tables:,} tables")
    print(json.dumps({"coverage": coverages, "lowest": min(coverages.values()), "highest": max(coverages.values())}))


if __name__ == "__main__":
    main()
