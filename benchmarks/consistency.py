"""The consistency experiment: true regret of rejectors where the Bayes rejector is known, by samples, nu and shift.

Three agents on the square, see known_distribution.py. Regret is exact up to the midpoint rule. Peers, on the
same samples: one scikit-learn regressor an agent (gradient boosting; k nearest neighbours), the agent of the lowest
predicted cost. About two minutes on two cores.

    python benchmarks/consistency.py

The last line is JSON: regret without recentring over regret with it, at the largest shift; and regret of the best peer
over ours, by number of samples.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from known_distribution import expected_costs, regret, sample, true_regrets

from l2d.data.terminal.render import print_table

NUS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]


def peer_regrets(rows: int, seeds: int) -> dict[str, list[float]]:
    """True regret of the cheapest prediction of one regressor an agent, on the samples that rejectors see."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.neighbors import KNeighborsRegressor

    side = (np.arange(256) + 0.5) / 128 - 1
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    truth = expected_costs(grid)
    makers = {
        "scikit-learn, gradient boosting": lambda: HistGradientBoostingRegressor(max_leaf_nodes=8, max_iter=80),
        "scikit-learn, nearest neighbours": lambda: KNeighborsRegressor(n_neighbors=max(5, round(rows**0.5))),
    }
    found: dict[str, list[float]] = {name: [] for name in makers}
    for seed in range(seeds):
        train = sample(rows, 2 * seed)
        x, costs = train.features.numpy(), train.raw[:, :, 0].numpy()
        for name, make in makers.items():
            predicted = np.stack([make().fit(x, costs[:, j]).predict(grid) for j in range(costs.shape[1])], axis=1)
            found[name].append(regret(predicted.argmin(axis=1), truth))
    return found


def text(values: list[float] | tuple[float, ...]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 400, 1600, 6400, 25600])
    parser.add_argument("--shifts", type=float, nargs="+", default=[0.0, 1.0, 4.0, 16.0])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    ours, peers = {}, {}
    for rows in arguments.rows:
        ours[rows] = true_regrets(rows, NUS, seeds=arguments.seeds)
        peers[rows] = peer_regrets(rows, arguments.seeds)
    table: list[dict | None] = [
        {"rejector": f"nu = {nu:g}", **{f"{n:,}": text(ours[n][k].regrets) for n in ours}} for k, nu in enumerate(NUS)
    ]
    table.append(None)
    table += [
        {"rejector": name, **{f"{n:,}": text(peers[n][name]) for n in peers}} for name in peers[arguments.rows[0]]
    ]
    print_table(table, title="True regret by training samples, 600 steps")

    shifted, rows = {}, arguments.rows[len(arguments.rows) // 2]
    for recentre in (False, True):
        for shift in arguments.shifts:
            shifted[recentre, shift] = true_regrets(
                rows, NUS, shift=shift, recentre=recentre, seeds=arguments.seeds, steps=200
            )
    table = [
        {
            "shift of all costs": shift,
            "recentred": "yes" if recentre else "no",
            **{f"nu = {nu:g}": text(found[k].regrets) for k, nu in enumerate(NUS)},
        }
        for (recentre, shift), found in shifted.items()
    ]
    print_table(table, title=f"True regret where every cost is shifted, {rows:,} samples, 200 steps")

    largest = arguments.shifts[-1]
    ratios = {
        f"shift_{largest:g}_over_recentred_nu_{nu:g}": shifted[False, largest][k].mean / shifted[True, largest][k].mean
        for k, nu in enumerate(NUS)
    }
    for n in arguments.rows:
        best = min(float(np.mean(values)) for values in peers[n].values())
        ratios[f"best_peer_over_nu_1_at_{n}"] = best / ours[n][NUS.index(1.0)].mean
    print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
