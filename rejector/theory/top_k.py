"""Asking the k agents of the highest scores: what that costs, and what the surrogate says of it.

Source: Montreuil, Carlier, Ng and Ooi, *Why Ask One When You Can Ask k?*, ICLR 2026 (arXiv 2504.12988). The loss of
asking k agents is the sum of their costs. The surrogate is that of one agent, ``Phi_def^nu``, whatever k is, so that
one run serves all k (Lemma 4.5 there: at the minimum scores rank agents by expected cost).
"""

from __future__ import annotations

import numpy as np

from l2d.rejector.theory.conditional_risk import surrogate_losses


def asked(scores: np.ndarray, costs: np.ndarray, k: int) -> np.ndarray:
    """The k available agents of the highest scores, bool (n, A), ties to the lowest index; all where fewer are there.

    Args:
        scores: (n, A).
        costs: (n, A); ``+inf`` where an agent is unavailable.
        k: >= 1. At 1 it is the rejector's own agent.
    """
    available = np.isfinite(costs)
    order = np.argsort(np.where(available, -np.asarray(scores, np.float64), np.inf), axis=1, kind="stable")
    chosen = np.zeros(costs.shape, dtype=bool)
    np.put_along_axis(chosen, order[:, :k], True, axis=1)
    return chosen & available


def top_k_costs(scores: np.ndarray, costs: np.ndarray, k: int) -> np.ndarray:
    """``sum of c_j`` over the agents of :func:`asked`, (n,). At ``k = 1`` the deferral loss of each sample."""
    return np.where(asked(scores, costs, k), costs, 0.0).sum(axis=1)


def top_k_bound(scores: np.ndarray, costs: np.ndarray, nu: float, k: int) -> np.ndarray:
    """The most that :func:`top_k_costs` can be, by the surrogate loss on the sample (Lemma 4.3), (n,):

    ``Phi_def^nu(r) / Phi_01^nu(1 / (k + 1)) - (A - 1 - k) sum_j c_j``

    with A agents available, and ``Phi_01^nu(s)`` the surrogate at a share ``s``. The lemma has no divisor. That holds
    at ``nu = 0`` and for logarithms to base 2; with natural ones a tie of two breaks it, as ``log 2 < 1``. An agent
    that is not asked has k others with at least its share, so ``s <= 1 / (k + 1)`` and its term is at least the
    divisor: with it the bound holds for every ``nu``, and is the tighter the larger k is.

    Args:
        costs: (n, A), >= 0; ``+inf`` where an agent is unavailable.
        nu: >= 0.
        k: >= 1.
    """
    available = np.isfinite(costs)
    count = available.sum(axis=1)
    several = np.minimum(k, count)
    log_share = -np.log1p(several)
    least = -log_share if nu == 1 else np.expm1((nu - 1) * log_share) / (1 - nu)
    total = np.where(available, costs, 0.0).sum(axis=1)
    return surrogate_losses(scores, costs, nu) / least - (count - 1 - several) * total
