"""What the surrogate deferral loss costs on a sample with known expected costs, at best and anywhere (Theorem 4.6).

Everything is a function of ``tau_j = E[tau_j | x]``, the expected aggregated costs, float64 (..., A). An agent that is
unavailable has ``tau_j = 0``: it has no weight in the loss, and no share at the minimum.
"""

from __future__ import annotations

import numpy as np


def expected_tau(costs: np.ndarray) -> np.ndarray:
    """``tau_j = sum_{i != j} c_i`` over the available agents (Lemma 4.3), float64 (..., A).

    Args:
        costs: (..., A); an agent at ``+inf`` is unavailable and gets ``tau_j = 0``.
    """
    costs = np.asarray(costs, dtype=np.float64)
    available = np.isfinite(costs)
    known = np.where(available, costs, 0.0)
    return np.where(available, np.maximum(known.sum(axis=-1, keepdims=True) - known, 0.0), 0.0)


def optimal_risk(tau: np.ndarray, nu: float) -> np.ndarray:
    """``C*(tau) = inf_r sum_j tau_j Phi_01^nu(r, j)`` over all scores ``r``, (...).

    With ``p = tau / ||tau||_1``, ``a = 1 / (2 - nu)`` and ``H`` the entropy in nats:

    * ``nu = 1``: ``||tau||_1 H(p)``;
    * other ``0 <= nu < 2``: ``||tau||_1 ((sum p_k^a)^(1/a) - 1) / (1 - nu)``;
    * ``nu >= 2``: ``(||tau||_1 - ||tau||_inf) / (nu - 1)``.

    The last line is not the paper's for ``nu > 2``. Theorem 4.6 prints the stationary point of the second line there,
    but ``-s^(nu-1)`` is concave from ``nu = 2`` on, so that point is a maximum and the infimum is at a vertex of the
    simplex: all share to the agent of the largest ``tau``, the cheapest. (For ``nu < 1``, which the theorem leaves
    out, its proof's "otherwise" is the second line.)

    Args:
        tau: >= 0, finite, (..., A); all zeros where there is nothing to choose.
        nu: >= 0.

    Raises:
        ValueError: ``nu`` is no number >= 0, or ``tau`` is not finite and >= 0.
    """
    tau = _checked(tau, nu)
    norm, largest = tau.sum(axis=-1), tau.max(axis=-1)
    if nu >= 2:
        return (norm - largest) / (nu - 1)
    p = _divided(tau, norm[..., None])
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    held = np.where(p > 0, log_p, 0.0)  # 0 log 0 = 0; and 0^a = 0 below
    if nu == 1:
        return norm * -(p * held).sum(axis=-1)
    power = 1 / (2 - nu)
    if abs(nu - 1) < 0.5:  # sum p^a = 1 + sum p (p^(a-1) - 1): no digits are lost as nu goes to 1
        log_sum = np.log1p((p * np.expm1((nu - 1) * power * held)).sum(axis=-1))
    else:
        log_sum = power * held.max(axis=-1, where=p > 0, initial=-np.inf)
        log_sum = np.where(norm > 0, log_sum, 0.0)
        rest = np.where(p > 0, np.exp(power * held - log_sum[..., None]), 0.0).sum(axis=-1)
        log_sum = np.where(norm > 0, log_sum + np.log(np.where(norm > 0, rest, 1.0)), 0.0)
    return np.maximum(norm * np.expm1(log_sum / power) / (1 - nu), 0.0)


def minimiser(tau: np.ndarray, nu: float) -> np.ndarray:
    """Softmax shares ``s`` at the infimum of :func:`optimal_risk`, (..., A), each row summing to 1.

    ``s_j`` in proportion to ``tau_j^(1/(2-nu))`` below ``nu = 2``; from there on all of it on the largest ``tau_j``
    (the first of several), which finite scores only approach. Its argmax is the cheapest agent for every ``nu``: what
    consistency means. Below 2 it is the flatter the more of their cost all agents share, see
    :func:`l2d.rejector.losses.recentred`.

    Raises:
        ValueError: as :func:`optimal_risk`.
    """
    tau = _checked(tau, nu)
    largest = tau.max(axis=-1, keepdims=True)
    if nu >= 2:
        return (np.arange(tau.shape[-1]) == tau.argmax(axis=-1)[..., None]).astype(np.float64)
    relative = np.where(largest > 0, _divided(tau, largest), 1.0) ** (1 / (2 - nu))
    return relative / relative.sum(axis=-1, keepdims=True)


def risk_at_logs(log_shares: np.ndarray, tau: np.ndarray, nu: float) -> np.ndarray:
    """``sum_j tau_j Phi_01^nu`` at softmax shares ``s``: conditional surrogate risk, or the loss on one sample, (...).

    Args:
        log_shares: ``log s``, (..., A), the shares of a row summing to 1; ``-inf`` for unavailable agents.
        tau: (..., A).
        nu: >= 0.

    Raises:
        ValueError: as :func:`optimal_risk`.
    """
    tau = _checked(tau, nu)
    with np.errstate(invalid="ignore", over="ignore"):
        loss = -log_shares if nu == 1 else np.expm1((nu - 1) * log_shares) / (1 - nu)
        return np.where(tau > 0, tau * loss, 0.0).sum(axis=-1)


def log_softmax(scores: np.ndarray, available: np.ndarray) -> np.ndarray:
    """``log s`` of scores (..., A) over the available agents; ``-inf`` for the others."""
    masked = np.where(available, np.asarray(scores, dtype=np.float64), -np.inf)
    top = masked.max(axis=-1, keepdims=True)
    shifted = masked - np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def surrogate_losses(scores: np.ndarray, costs: np.ndarray, nu: float) -> np.ndarray:
    """``Phi_def^nu`` of each sample (Lemma 4.3), (n,) float64.

    Args:
        scores: (n, A).
        costs: (n, A); ``+inf`` where an agent is unavailable, which then is out of the softmax as well.
        nu: >= 0.
    """
    return risk_at_logs(log_softmax(scores, np.isfinite(costs)), expected_tau(costs), nu)


def _divided(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.divide(values, by, out=np.zeros_like(values), where=by > 0)


def _checked(tau: np.ndarray, nu: float) -> np.ndarray:
    tau = np.asarray(tau, dtype=np.float64)
    if not 0 <= nu < np.inf:
        raise ValueError(f"nu must be a number >= 0, not {nu}")
    if not (np.isfinite(tau) & (tau >= 0)).all():
        raise ValueError("tau must be finite and >= 0")
    return tau
