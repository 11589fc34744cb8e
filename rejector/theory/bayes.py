"""The Bayes rejector and its risk (Lemma 4.2), from costs that are known sample by sample only.

Two of them. The *oracle* knows every agent's cost on the very sample, which no rejector can. The *Bayes rejector* knows
the expected costs ``E[c_j | x]`` and takes the cheapest agent in expectation: the best that features allow. Those
expectations have to be estimated, here by regressing each agent's cost on the features, cross-fitted: every sample's
expectation comes from regressors that did not see it.

What that assumes: that samples are independent draws of one distribution, and that the best of the regressors here
comes near the true expectation. Where it does not, two figures tell: the *plug-in* risk ``mean_x min_j c_j(x)``, which
the estimated costs promise, and the *earned* risk, what their choice of agent then really costs on the samples. The
earned risk is an upper estimate of the Bayes risk; the further the promise is below it, the worse the regression.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FOLDS = 5
MOST_ROWS = 20_000  # that a regressor is fitted on; beyond, more of them hardly help, and cost minutes
WIDEST = 256  # features; wider inputs (images) are projected on their first principal components


@dataclass(frozen=True, kw_only=True)
class ExpectedCosts:
    """Cross-fitted estimates of ``E[c_j | x]``.

    Attributes:
        costs: float64 (n, A), in the range of the observed ones; ``+inf`` where the agent is unavailable.
        learner: which regressor had the lowest squared error on the samples it did not see.
        errors: mean squared error of each regressor, likewise.
        explained: share of the variance of each agent's cost that the estimates explain, (A,); <= 0 for none.
    """

    costs: np.ndarray
    learner: str
    errors: dict[str, float]
    explained: np.ndarray


def learners() -> dict[str, Callable[[], object]]:
    """The regressors that are tried: name -> maker of an unfitted scikit-learn estimator."""
    from sklearn.dummy import DummyRegressor
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.neighbors import KNeighborsRegressor

    return {
        "mean": DummyRegressor,
        "ridge": lambda: RidgeCV(alphas=np.logspace(-1, 5, 13)),
        "nearest neighbours": lambda: KNeighborsRegressor(n_neighbors=50),
        "gradient boosting": lambda: HistGradientBoostingRegressor(
            max_iter=80, learning_rate=0.1, max_leaf_nodes=8, min_samples_leaf=20, l2_regularization=1.0,
            early_stopping=False, random_state=0,
        ),
    }  # fmt: skip


def expected_costs(
    features: np.ndarray, costs: np.ndarray, *, fitted: np.ndarray | None = None, seed: int = 0, folds: int = FOLDS
) -> ExpectedCosts:
    """Estimate ``E[c_j | x]`` of every sample by cross-fitting.

    Args:
        features: what the rejector looks at, (n, width).
        costs: (n, A); ``+inf`` where an agent is unavailable. An agent's cost is learned from the samples where it is
            available, which assumes that whether it is says nothing about its cost beyond the features.
        fitted: samples that agents were fitted on, bool (n,): their costs are lower there than elsewhere. The
            regressors are told which these are.
        seed: of the folds.
        folds: how many.
    """
    costs = np.asarray(costs, dtype=np.float64)
    inputs = _inputs(features, fitted, seed)
    generator = np.random.default_rng(seed)
    fold = generator.permutation(len(costs)) % min(folds, len(costs))
    available = np.isfinite(costs)
    found = {}
    for name, make in learners().items():
        predicted = np.zeros(costs.shape)
        for part in range(fold.max() + 1):
            held_out = np.flatnonzero(fold == part)
            for agent in range(costs.shape[1]):
                rows = np.flatnonzero((fold != part) & available[:, agent])
                predicted[held_out, agent] = _fit(make, inputs, costs[:, agent], rows, generator)(inputs[held_out])
        found[name] = predicted
    errors = {name: float(((p - costs)[available] ** 2).mean()) for name, p in found.items()}
    learner = min(errors, key=lambda name: errors[name])
    return ExpectedCosts(
        costs=np.where(available, found[learner], np.inf),
        learner=learner,
        errors=errors,
        explained=_explained(found[learner], costs, available),
    )


def _fit(make: Callable, inputs: np.ndarray, target: np.ndarray, rows: np.ndarray, generator) -> Callable:
    """A regressor fitted on some rows, clipped to the range of the targets there."""
    if len(rows) > MOST_ROWS:
        rows = generator.choice(rows, MOST_ROWS, replace=False)
    if not len(rows):
        return lambda where: np.zeros(len(where))
    known = target[rows]
    if known.min() == known.max():
        return lambda where: np.full(len(where), known[0])
    estimator = make()
    if hasattr(estimator, "n_neighbors"):
        estimator.n_neighbors = min(estimator.n_neighbors, len(rows))
    estimator.fit(inputs[rows], known)
    return lambda where: np.clip(estimator.predict(where), known.min(), known.max())


def _inputs(features: np.ndarray, fitted: np.ndarray | None, seed: int) -> np.ndarray:
    """Standardised features, projected if they are many, and whether agents were fitted on the sample."""
    from l2d.data.samples.standardise import standardisation

    mean, std = standardisation(features)
    inputs = (features - mean) / std
    if inputs.shape[1] > WIDEST:
        from sklearn.decomposition import PCA

        size = min(64, len(inputs))
        inputs = PCA(size, svd_solver="randomized", random_state=seed).fit_transform(inputs)
    if fitted is None or fitted.all() or not fitted.any():
        return inputs
    return np.column_stack([inputs, fitted.astype(inputs.dtype)])


def _explained(predicted: np.ndarray, costs: np.ndarray, available: np.ndarray) -> np.ndarray:
    shares = []
    for agent in range(costs.shape[1]):
        rows = available[:, agent]
        known = costs[rows, agent]
        spread = known.var() if rows.any() else 0.0
        error = ((predicted[rows, agent] - known) ** 2).mean() if rows.any() else 0.0
        shares.append(1 - error / spread if spread > 0 else 0.0)
    return np.array(shares)


@dataclass(frozen=True, kw_only=True)
class BayesRisk:
    """Risks on n samples, all per sample (n,) float64.

    Attributes:
        allocation: of the estimated Bayes rejector, (n,) agent indices.
        oracle: cost of the cheapest agent of the sample.
        plug_in: expected cost of the agent that is cheapest in expectation.
        earned: what that agent costs on the sample.
    """

    allocation: np.ndarray
    oracle: np.ndarray
    plug_in: np.ndarray
    earned: np.ndarray


def bayes_risk(expected: np.ndarray, costs: np.ndarray) -> BayesRisk:
    """The Bayes rejector of expected costs (n, A), and its risk on costs (n, A); ties to the lowest index.

    An agent at ``+inf`` in either is unavailable and never chosen.
    """
    expected = np.where(np.isfinite(costs), expected, np.inf)
    allocation = expected.argmin(axis=1)
    rows = np.arange(len(costs))
    return BayesRisk(
        allocation=allocation,
        oracle=np.asarray(costs, np.float64).min(axis=1),
        plug_in=expected[rows, allocation],
        earned=np.asarray(costs, np.float64)[rows, allocation],
    )
