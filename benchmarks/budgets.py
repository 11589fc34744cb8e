"""A budget on a pair of agents: `policy --budget` against ridge on the cost difference, sent to the top of the ranking.

Pairs are those of the league's tables (``league_tables.py``): the model, and the expert of the lowest mean cost on
training rows. At every share of samples that the budget pays the expert for, the yardstick fits ridge regression to
the difference of both costs and sends that share: those with the highest predicted gain, as long as it is above 0.
Ours train at beta 0 and go through :func:`l2d.rejector.policies.policy.run_policy` (mode ``batch``: both spend at most
the budget, to the sample). Differences are paired and pooled over the splits, as in ``league.py``; negative: ours is
better.

    python benchmarks/budgets.py --methods multi-task,regression
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from league import OURS, ROOT, difference, has_best, read
from league_tables import shared_data, tables

from l2d.rejector.evaluation.intervals import holm

SHARES = tuple(np.round(np.arange(0.1, 1.0, 0.1), 1).tolist())
QUICK = ("best", "multi-task", "regression", "l2d knn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=shared_data(), help="folder of the public tables")
    parser.add_argument("--tables", help="by commas; default: all")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--methods", default=",".join(QUICK))
    parser.add_argument("--keep", type=Path, default=ROOT / "build" / "league", help="folder of what is kept")
    args = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    loaders = tables(args.data)
    methods = [name for name in args.methods.split(",") if name != "best" or has_best()]
    facts: dict[str, dict] = {}
    print(f"| table | row | {' | '.join(f'{share:.0%}' for share in SHARES)} | all |")
    print("| --- | --- |" + " ---: |" * (len(SHARES) + 1))
    for name in args.tables.split(",") if args.tables else list(loaders):
        table = loaders[name]()
        pooled, groups = {}, []
        for split in range(args.splits):
            folder, arrays = read(table, split, args.keep)
            pair = np.array([0, 1 + int(np.nanmean(arrays.costs["train"][:, 1:], axis=0).argmin())])
            costs = {part: values[:, pair] for part, values in arrays.costs.items()}
            both = np.isfinite(costs["test"]).all(axis=1)
            if not np.isfinite(costs["train"]).all(axis=1).any():
                break  # two agents that never answered the same sample are no pair
            found = {"ridge": yardstick(arrays.x, costs)}
            found |= {row: ours(row, folder, pair) for row in methods}
            for row, losses in found.items():
                pooled.setdefault(row, []).append(losses[:, both])
            groups.append(np.char.add(f"{split if table.outcomes is None else ''}|", arrays.groups[both].astype(str)))
            print(f"{table.name}, split {split}", file=sys.stderr, flush=True)
        if not groups:
            print(f"{table.name}: no sample has the answers of both", file=sys.stderr)
            continue
        facts[table.name] = show(
            table.name, {k: np.concatenate(v, 1) for k, v in pooled.items()}, np.concatenate(groups)
        )
    compared = [(t, row, k) for t, rows in facts.items() for row, found in rows.items() for k in range(len(found["p"]))]
    adjusted = holm([facts[t][row]["p"][k] for t, row, k in compared])
    worse = [(t, row, SHARES[k]) for (t, row, k), p in zip(compared, adjusted, strict=True)
             if p < 0.05 and facts[t][row]["mean"][k] > 0]  # fmt: skip
    print(f"\nworse than ridge after Holm over {len(compared)}: {worse or 'none'}")
    print(
        json.dumps(
            {"worse": worse, "all": {t: {row: f["all"] for row, f in rows.items()} for t, rows in facts.items()}}
        )
    )


def yardstick(x: dict, costs: dict) -> np.ndarray:
    """Losses on test (shares, n) where ridge's highest predicted gains go to the expert."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    gain = costs["train"][:, 0] - costs["train"][:, 1]
    known = np.isfinite(gain)
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 11))).fit(x["train"][known], gain[known])
    predicted, there = model.predict(x["test"]), np.isfinite(costs["test"]).all(axis=1)
    order = np.argsort(-predicted, kind="stable")
    order, most = order[(there & (predicted > 0))[order]], int(there.sum())
    losses = np.repeat(costs["test"][None, :, 0], len(SHARES), axis=0)
    for position, share in enumerate(SHARES):
        sent = order[: int(share * most + 1e-9)]
        losses[position, sent] = costs["test"][sent, 1]
    return losses


def ours(row: str, folder: Path, pair: np.ndarray) -> np.ndarray:
    """Losses on test (shares, n) of a run of the pair under the budgets."""
    from l2d.data.cache.reader import CostCache
    from l2d.rejector.grid import chosen_agents, make_grid
    from l2d.rejector.policies.constraints import make_constraints
    from l2d.rejector.policies.policy import run_policy
    from l2d.rejector.runs.run import load_run
    from l2d.rejector.settings import TrainConfig
    from l2d.rejector.sweep import sweep

    method, settings = OURS[row]
    work = Path(tempfile.mkdtemp(prefix="budgets-"))
    try:
        cache = CostCache(folder / "cache")
        cache = chosen_agents(cache, [cache.agents[j].name for j in pair])
        points = make_grid(cache, methods=[method], weights=[], betas=[0.0], nus=[1.0], seeds=[0])
        sweep(cache, points, [work / "run"], TrainConfig(**settings))
        run, price, found = load_run(work / "run"), cache.agents[1].price, []
        for share in SHARES:
            report = run_policy(run, make_constraints(cache.agents, budget=share * price), mode="batch")
            chosen = report.split.costs[np.arange(len(report.split)), report.allocation]
            found.append(chosen)
        return np.stack(found)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def show(name: str, losses: dict[str, np.ndarray], groups: np.ndarray) -> dict[str, dict]:
    """Print a row for the yardstick's losses and one for each of ours less it; returns the differences."""
    cells = [f"{values.mean():.4f}" for values in losses["ridge"]]
    print(f"| {name} | ridge | {' | '.join(cells)} | {losses['ridge'].mean():.4f} |")
    facts = {}
    for row, values in losses.items():
        if row == "ridge":
            continue
        each = [difference(a, b, groups) for a, b in zip(values, losses["ridge"], strict=True)]
        whole = difference(values.mean(axis=0), losses["ridge"].mean(axis=0), groups)
        cells = [f"{mean:+.4f}{'*' if low > 0 or high < 0 else ''}" for mean, low, high, _ in each]
        print(f"| | {row} | {' | '.join(cells)} | {whole[0]:+.4f} [{whole[1]:+.4f}, {whole[2]:+.4f}] |", flush=True)
        facts[row] = {"mean": [e[0] for e in each], "p": [e[3] for e in each], "all": [round(v, 4) for v in whole[:3]]}
    return facts


if __name__ == "__main__":
    main()
