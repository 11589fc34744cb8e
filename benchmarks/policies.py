"""Allocation under constraints: dual prices with exact repair, against HiGHS on the whole problem.

    python benchmarks/policies.py [--rows 1000,10000,100000,1000000] [--rounds 3] [--limit 300]

Costs are made up like those a policy predicts: of three agents, in [0, 1]. Two problems: one budget; and a budget, an
exact coverage and a capacity together. HiGHS solves the same problem as an integer program (scipy.optimize.milp, gap 0)
and as its linear relaxation (scipy.optimize.linprog), each within ``--limit`` seconds (which it overstays); what does
not finish is shown as such, with its time. Times are medians of the rounds and include checking feasibility;
HiGHS's include writing its matrix down. The gap is ours against the bound that our own prices prove, per sample and in
samples: gap x rows / range of the costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, vstack

from l2d.rejector.policies.assignment import assign
from l2d.rejector.policies.constraints import Constraint

PRICES = (0.0, 1.0, 2.5)
BUDGET = Constraint("budget", "<= 0.4", PRICES, limit=0.4)
THREE = [
    Constraint("budget", "<= 0.8", PRICES, limit=0.8),
    Constraint("coverage", "= 0.5", (1.0, 0.0, 0.0), limit=0.5, exact=True),
    Constraint("capacity", "<= 0.3", (0.0, 1.0, 0.0), limit=0.3),
]


def costs_of(rows: int, seed: int) -> np.ndarray:
    """Predicted costs (rows, 3): the model's vary most, the dear expert's are lowest."""
    difficulty = np.random.default_rng(seed).beta(1.5, 3.0, size=(rows, 1))
    noise = np.random.default_rng(seed + 1).random((rows, 3))
    return np.clip(difficulty * [1.0, 0.6, 0.3] + 0.3 * noise * [0.5, 1.0, 0.8], 0, 1)


def matrices(rows: int, constraints: list[Constraint]) -> tuple[csr_array, np.ndarray, np.ndarray]:
    """The whole problem: a row a sample, then a row a constraint; lower and upper limits."""
    size = 3 * rows
    each = csr_array((np.ones(size), (np.repeat(np.arange(rows), 3), np.arange(size))), (rows, size))
    use = csr_array(np.array([np.tile(constraint.use, rows) for constraint in constraints]))
    totals = np.array([constraint.total(rows) for constraint in constraints])
    lower = np.where([constraint.exact for constraint in constraints], totals, -np.inf)
    return vstack([each, use], "csr"), np.r_[np.ones(rows), lower], np.r_[np.ones(rows), totals]


def by_milp(costs: np.ndarray, constraints: list[Constraint], limit: float) -> float | None:
    """Mean cost of the best allocation; None if it was not found and proven in time."""
    rows = LinearConstraint(*matrices(len(costs), constraints))
    options = {"time_limit": limit, "mip_rel_gap": 0.0}
    found = milp(costs.ravel(), integrality=np.ones(costs.size), bounds=Bounds(0, 1), constraints=rows, options=options)
    return found.fun / len(costs) if found.status == 0 else None


def by_linprog(costs: np.ndarray, constraints: list[Constraint], limit: float) -> float | None:
    """Mean cost of the linear relaxation; None if it was not solved in time."""
    matrix, lower, upper = matrices(len(costs), constraints)
    equal = lower == upper
    found = linprog(
        costs.ravel(),
        A_ub=matrix[~equal] if (~equal).any() else None,
        b_ub=upper[~equal] if (~equal).any() else None,
        A_eq=matrix[equal],
        b_eq=upper[equal],
        bounds=(0, 1),
        method="highs",
        options={"time_limit": limit},
    )
    return found.fun / len(costs) if found.status == 0 else None


def timed(solve: Callable) -> tuple[float, object]:
    started = time.perf_counter()
    result = solve()
    return time.perf_counter() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000,10000,100000,1000000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=100_000, help="rows that HiGHS is tried on")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that HiGHS gets")
    options = parser.parse_args()
    assign(costs_of(1000, 99), THREE)  # imports and first calls are not timed
    heads = ["constraints", "rows", "prices, s", "HiGHS milp, s", "ratio", "HiGHS linprog, s", "ratio"]
    print("| " + " | ".join([*heads, "gap, samples", "milp is lower by"]) + " |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    ratios: dict[str, float | None] = {}
    for name, constraints in (("budget", [BUDGET]), ("budget, coverage, capacity", THREE)):
        given_up: set[str] = set()  # of a size; larger ones are not tried
        for rows in map(int, options.rows.split(",")):
            ours, theirs = [], {"milp": [], "linprog": []}
            rounds = options.rounds if rows <= 10_000 else 1
            for seed in range(rounds):
                costs = costs_of(rows, 10 * seed)
                seconds, found = timed(partial(assign, costs, constraints))
                assert all(c.holds(c.used(found.allocation), rows) for c in constraints)
                ours.append((seconds, found))
                for solver, solve in (("milp", by_milp), ("linprog", by_linprog)):
                    if solver not in given_up and rows <= options.most:
                        took, value = timed(partial(solve, costs, constraints, options.limit))
                        theirs[solver].append((took, value, took / seconds, found.value))
                        if value is None:
                            given_up.add(solver)
            cells = [f"{statistics.median(seconds for seconds, _ in ours):.3f}"]
            for solver, runs in theirs.items():
                stopped = solver in given_up
                ratio = statistics.median(run[2] for run in runs) if runs else None
                sign = ">" if stopped else ""
                cells.append(f"{sign}{statistics.median(run[0] for run in runs):.2f}" if runs else "not tried")
                cells.append(f"{sign}{ratio:.{0 if ratio > 1 else 1}f}" if runs else "")
                ratios[f"{solver} / prices, {name}, {rows}"] = None if stopped else ratio
            gap = max(found.gap * rows / np.ptp(costs) for _, found in ours)
            lower = [mine - value for _, value, _, mine in theirs["milp"] if value is not None]
            better = f"{max(lower):.1e}" if lower else ""
            print(f"| {name} | {rows:,} | {' | '.join(cells)} | {gap:.3f} | {better} |", flush=True)
    print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
