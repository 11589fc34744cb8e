"""The scripts of the league: what scikit-learn's documentation lets one write in twenty lines, and the real constant.

Each takes arrays and predicts every agent's raw cost on validation and test; query costs are added afterwards and the
lowest total answers. Nothing of l2d is imported here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ROUNDS = 25  # of greedy selection
NEIGHBOURS = (1, 2, 5, 10, 20, 50, 100, 200)
Parts = dict[str, np.ndarray]  # train, validation and test
#: (features, raw costs of train) -> predictions of raw costs, name -> {validation, test}; a script may give several.
Script = Callable[[Parts, np.ndarray], dict[str, Parts]]


def hgb(x: Parts, costs: np.ndarray) -> dict[str, Parts]:
    """Boosted trees, one model an agent, fitted where it answered."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    def one(cost: np.ndarray) -> object:
        known = np.isfinite(cost)
        model = HistGradientBoostingRegressor(
            max_iter=200, learning_rate=0.05, max_leaf_nodes=15, early_stopping=True, random_state=0
        )
        return model.fit(x["train"][known], cost[known])

    return {"hgb": _by_agent(one, x, costs)}


def ridge(x: Parts, costs: np.ndarray) -> dict[str, Parts]:
    """Ridge on standardised features, its penalty by leave-one-out, one model an agent."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def one(cost: np.ndarray) -> object:
        known = np.isfinite(cost)
        return make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 11))).fit(x["train"][known], cost[known])

    return {"ridge": _by_agent(one, x, costs)}


def extra_trees(leaf: int) -> Script:
    """Extremely randomised trees on all agents' costs at once; a missing cost counts as the agent's mean."""

    def fit(x: Parts, costs: np.ndarray) -> dict[str, Parts]:
        from sklearn.ensemble import ExtraTreesRegressor

        filled = np.where(np.isfinite(costs), costs, np.nanmean(costs, axis=0))
        model = ExtraTreesRegressor(300, min_samples_leaf=leaf, max_features=0.5, random_state=0)
        model.fit(x["train"], filled)
        return {f"et{leaf}": {part: model.predict(x[part]) for part in ("validation", "test")}}

    return fit


def knn(x: Parts, costs: np.ndarray) -> dict[str, Parts]:
    """Mean cost of the nearest training rows that the agent answered, standardised features; one for each k."""
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x["train"])
    most = min(NEIGHBOURS[-1], len(costs))
    index = NearestNeighbors(n_neighbors=most).fit(scaler.transform(x["train"]))
    near = {part: index.kneighbors(scaler.transform(x[part]), return_distance=False) for part in ("validation", "test")}
    mean = np.nanmean(costs, axis=0)
    found: dict[str, Parts] = {}
    for k in NEIGHBOURS:
        if k > most:
            break
        found[f"knn{k}"] = {}
        for part, rows in near.items():
            total, known = np.zeros((len(rows), costs.shape[1])), np.zeros((len(rows), costs.shape[1]))
            for position in range(k):
                cost = costs[rows[:, position]]
                there = np.isfinite(cost)
                total += np.where(there, cost, 0.0)
                known += there
            found[f"knn{k}"][part] = np.where(known > 0, total / np.maximum(known, 1), mean)
    return found


SCRIPTS: dict[str, Script] = {
    "hgb": hgb,
    "ridge": ridge,
    "et5": extra_trees(5),
    "et20": extra_trees(20),
    "et50": extra_trees(50),
    "knn": knn,
}


def _by_agent(fit: Callable[[np.ndarray], object], x: Parts, costs: np.ndarray) -> Parts:
    models = [fit(costs[:, agent]) for agent in range(costs.shape[1])]
    return {part: np.stack([model.predict(x[part]) for model in models], 1) for part in ("validation", "test")}


# --- decisions --------------------------------------------------------------------------------------------------------


def losses(predicted: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Cost (n,) of the agent of the lowest prediction among those that have an answer.

    Args:
        predicted: predicted total costs (n, agents).
        costs: total costs (n, agents), NaN where an agent has no answer.
    """
    chosen = np.where(np.isfinite(costs), predicted, np.inf).argmin(axis=1)
    return costs[np.arange(len(costs)), chosen]


def constant(validation: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Loss (n,) of the best constant on ``others``: ask j; where it has no answer, the best of the rest that has one.

    j, and the order of the rest, are chosen on validation by mean total cost.
    """
    return losses(np.broadcast_to(constant_ranks(validation), others.shape), others)


def constant_ranks(validation: np.ndarray) -> np.ndarray:
    """Rank (agents,) of each agent for the best constant: 0 is asked first."""
    known = np.isfinite(validation)
    means = np.where(known.any(axis=0), np.where(known, validation, 0.0).sum(0) / np.maximum(known.sum(0), 1), np.inf)
    ranks = means.argsort(kind="stable").argsort(kind="stable").astype(np.float64)
    first = [np.where(np.arange(len(ranks)) == agent, -1.0, ranks) for agent in range(len(ranks))]
    return min(first, key=lambda rank: losses(np.broadcast_to(rank, validation.shape), validation).mean())


def ensemble(predicted: dict[str, Parts], beta: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """Greedy selection with replacement among predictions of costs, and the constant, by loss on validation.

    Caruana et al., *Ensemble Selection from Libraries of Models*, ICML 2004: each round adds the model whose mean with
    those chosen so far loses least; the best round counts.

    Args:
        predicted: name -> predicted raw costs.
        beta: query costs (agents,).
        validation: total costs.

    Returns:
        Mean predicted total costs on test (n, agents).
    """
    members = [(parts["validation"] + beta, parts["test"] + beta) for parts in predicted.values()]
    known = np.isfinite(validation)
    mean = np.where(known, validation, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    test = next(iter(predicted.values()))["test"]
    members.append((np.broadcast_to(mean, validation.shape), np.broadcast_to(mean, test.shape)))
    total, chosen, best = np.zeros(validation.shape), [], (np.inf, 0)
    for round_ in range(ROUNDS):
        found = [losses((total + member[0]) / (round_ + 1), validation).mean() for member in members]
        pick = int(np.argmin(found))
        chosen.append(pick)
        total = total + members[pick][0]
        best = min(best, (found[pick], round_ + 1))
    return sum(members[pick][1] for pick in chosen[: best[1]]) / best[1]
