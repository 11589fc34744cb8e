"""What each agent is expected to cost on an input, told from a rejector's scores.

A policy trades one agent's cost on one input against another's elsewhere, so it needs costs on one scale. Scores are
not costs, but a loss's minimiser says what costs they stand for (``A`` agents are available):

- ``surrogate``, ``nu < 2``: ``softmax(r)_j`` is in proportion to ``tau_j^(1/(2-nu))`` (Theorem 4.6's minimiser), so
  with ``p_j`` in proportion to ``softmax(r)_j^(2-nu)``, ``c_j = C (1 - (A - 1) p_j)``, where ``C = sum_j c_j`` is the
  input's own and not known;
- ``surrogate``, ``nu >= 2``: the minimiser is a vertex; ``1 - softmax(r)_j`` keeps the order and nothing else;
- ``regression``: ``c_j = -r_j``; ``one_vs_all``: ``c_j = C (1 - sigmoid(r_j))``, ``C = max_j c_j``;
- ``chances`` of being right (methods of the literature): ``c_j = 1 - r_j``.

These are the *implied* costs. They are put on scale, and calibrated if that predicts better, on the validation split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("implied", "linear", "isotonic")
FOLDS = 5
FEWEST = 10  # samples that an agent's own calibration takes


def implied_costs(scores: np.ndarray, available: np.ndarray, loss: str, nu: float) -> np.ndarray:
    """Costs that scores stand for if they minimise the loss, up to a factor (see above).

    Args:
        scores: (n, agents).
        available: bool (n, agents).
        loss: a name of :data:`l2d.rejector.losses.LOSSES`, or ``chances``.
        nu: of the surrogate.

    Returns:
        (n, agents) float64, infinite where an agent is unavailable.
    """
    scores = np.where(available, np.asarray(scores, np.float64), -np.inf)
    if loss == "regression":
        return -scores
    if loss == "chances":
        return 1 - scores
    if loss == "one_vs_all":
        return np.where(available, 1 / (1 + np.exp(np.clip(scores, -700, 700))), np.inf)
    log_softmax = scores - scores.max(axis=1, keepdims=True)
    sharpness, others = (2 - nu, available.sum(axis=1, keepdims=True) - 1) if nu < 2 else (1.0, 1.0)
    share = np.exp(sharpness * log_softmax)
    return np.where(available, 1 - others * share / share.sum(axis=1, keepdims=True), np.inf)


@dataclass(frozen=True)
class CostPredictor:
    """From scores to expected costs.

    ``kind`` is ``implied`` (implied costs times one factor), ``linear`` (a line of each agent's own), or ``isotonic``:
    centred isotonic regression (Oron and Flournoy, *Centered Isotonic Regression*, Statistics in Biopharmaceutical
    Research 2017), which joins the centres of isotonic regression's flat pieces by lines, so that few inputs tie.
    """

    kind: str
    loss: str
    nu: float
    parameters: dict[str, Any]

    @classmethod
    def fit(cls, kind: str, scores: np.ndarray, costs: np.ndarray, loss: str, nu: float) -> CostPredictor:
        """Fit on scored samples.

        Args:
            scores: (n, agents).
            costs: (n, agents), infinite where an agent is unavailable.
        """
        there = np.isfinite(costs)
        implied = implied_costs(scores, there, loss, nu)
        if kind == "implied":
            return cls(kind, loss, nu, {"scale": 1.0 if loss in ("regression", "chances") else _scale(implied, costs)})
        dearest = float(costs[there].max())  # what an agent that was never seen is taken to cost
        columns = [(implied[there[:, j], j], costs[there[:, j], j]) for j in range(costs.shape[1])]
        fits = [_fit_agent(kind, *column, unseen=dearest) for column in columns]
        return cls(kind, loss, nu, {"agents": fits})

    def predict(self, scores: np.ndarray, available: np.ndarray) -> np.ndarray:
        """Expected costs (n, agents), infinite where an agent is unavailable."""
        implied = implied_costs(scores, available, self.loss, self.nu)
        if self.kind == "implied":
            return implied * self.parameters["scale"]
        predicted = np.full(implied.shape, np.inf)
        for agent, fit in enumerate(self.parameters["agents"]):
            rows = available[:, agent]
            own = implied[rows, agent]
            predicted[rows, agent] = np.interp(own, fit["at"], fit["cost"]) + fit["slope"] * own
        return predicted


def choose_predictor(
    scores: np.ndarray, costs: np.ndarray, loss: str, nu: float
) -> tuple[CostPredictor, dict[str, float]]:
    """The kind that predicts differences between agents' costs best on held-out samples, fitted on all.

    Allocation depends on differences alone, so the error is the squared error of costs less their mean over the
    sample's available agents, by five-fold cross-validation.

    Returns:
        The predictor, and the error of every kind (that of always predicting no difference is ``none``).
    """
    fold = np.random.default_rng(0).permutation(len(costs)) % FOLDS
    there = np.isfinite(costs)
    errors = dict.fromkeys(KINDS, 0.0)
    for kind in KINDS:
        for k in range(FOLDS if len(costs) >= 2 * FOLDS else 1):
            held = fold == k
            fitted = CostPredictor.fit(kind, scores[~held], costs[~held], loss, nu)
            difference = contrasts(fitted.predict(scores[held], there[held])) - contrasts(costs[held])
            errors[kind] += float((difference**2).sum()) / len(costs)
    best = min(KINDS, key=errors.__getitem__)
    errors["none"] = float((contrasts(costs) ** 2).sum()) / len(costs)
    return CostPredictor.fit(best, scores, costs, loss, nu), errors


def contrasts(costs: np.ndarray) -> np.ndarray:
    """Costs less their mean over the available agents of the sample, 0 for the others. (n, agents) -> the same."""
    there = np.isfinite(costs)
    finite = np.where(there, costs, 0.0)
    return np.where(there, finite - finite.sum(1, keepdims=True) / there.sum(1, keepdims=True), 0.0)


def _scale(implied: np.ndarray, costs: np.ndarray) -> float:
    """Factor of least squares between differences of implied costs and of costs; 1 where they do not go together."""
    have, want = contrasts(implied), contrasts(costs)
    square = float((have**2).sum())
    factor = float((have * want).sum()) / square if square > 0 else 0.0
    return factor if factor > 0 else 1.0


def isotonic(at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Isotonic regression: the rising function of ``at`` (n,) nearest to ``values`` (n,) in squares, at each ``at``.

    In the bits that ``sklearn.isotonic`` gives it, where no two of ``at`` are nearer than 1e-15 and yet differ. That
    asks scipy as well, and takes a second to import.
    """
    from scipy.optimize import isotonic_regression

    _, group, count = np.unique(at, return_inverse=True, return_counts=True)
    rising = np.lexsort((values, at))  # the order in which equal ones are summed
    mean = np.bincount(group[rising], values[rising]) / count
    return np.asarray(isotonic_regression(mean, weights=count).x[group])


def _fit_agent(kind: str, implied: np.ndarray, cost: np.ndarray, *, unseen: float) -> dict[str, Any]:
    """One agent's calibration: ``cost`` over ``at``, interpolated, plus ``slope`` times the implied cost."""
    mean = float(cost.mean()) if len(cost) else unseen
    variance = float(implied.var()) if len(implied) else 0.0
    if len(cost) < FEWEST or variance < 1e-24:
        return {"at": [0.0], "cost": [mean], "slope": 0.0}
    slope = max(0.0, float(((implied - implied.mean()) * (cost - mean)).mean()) / variance)
    if kind == "linear":
        return {"at": [0.0], "cost": [mean - slope * float(implied.mean())], "slope": slope}
    level, piece, size = np.unique(isotonic(implied, cost), return_inverse=True, return_counts=True)
    centre = np.bincount(piece, implied) / size
    tilt = 1e-3 * slope  # so that inputs beyond the outer centres still differ, in their scores' order
    return {"at": centre.tolist(), "cost": (level - tilt * centre).tolist(), "slope": tilt}
