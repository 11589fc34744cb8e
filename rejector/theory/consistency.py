"""From excess surrogate risk to excess deferral loss (Theorem 4.4): the transform ``T^nu``, its inverse, the bound.

``T^nu(v)`` is a lower bound on what a 0-1 mistake of size ``v`` costs in the surrogate: if the agent of the highest
score has probability ``v`` less than the likeliest, the conditional surrogate risk is at least ``T^nu(v)`` above its
infimum. It is exact for ``nu <= 1``, and with two agents up to ``nu = 2``; beyond it is a bound with room to spare.
"""

from __future__ import annotations

import numpy as np

_HALVINGS = 80  # of an interval of length 1: far below the spacing of floats


def transform(v: np.ndarray | float, nu: float, agents: int) -> np.ndarray:
    """``T^nu(v)``, with ``a = 1 / (2 - nu)``, ``M = ((1+v)^a + (1-v)^a) / 2`` and ``n`` agents:

    * ``0 <= nu < 1``: ``2^(1-nu) / (1-nu) (1 - M^(1/a))``;
    * ``nu = 1``: ``(1+v)/2 log(1+v) + (1-v)/2 log(1-v)``;
    * ``1 < nu < 2``: ``(M^(1/a) - 1) / ((nu-1) n^(nu-1))``;
    * ``nu >= 2``: ``v / ((nu-1) n^(nu-1))``.

    Convex, increasing, 0 at 0 (Mao, Mohri and Zhong 2023, *Cross-Entropy Loss Functions*, Theorem 3.1; the paper's
    appendix C).

    Args:
        v: in [0, 1], (...).
        nu: >= 0.
        agents: >= 2.

    Returns:
        float64 (...).

    Raises:
        ValueError: an argument is out of range.
    """
    v = np.asarray(v, dtype=np.float64)
    _check(nu, agents)
    if not ((v >= 0) & (v <= 1)).all():
        raise ValueError("v must be in [0, 1]")
    if nu >= 2:
        return v / ((nu - 1) * float(agents) ** (nu - 1))
    up, down = 1 + v, 1 - v
    with np.errstate(divide="ignore"):
        log_up, log_down = np.log1p(v), np.log1p(-v)
    power = 1 / (2 - nu)
    scale = 2.0 ** (1 - nu) if nu <= 1 else float(agents) ** (1 - nu)
    at_small = 0.5 * scale * power * v**2  # the first term of the series, where the others would only be rounding
    small = power * v < 1e-4
    if nu == 1:
        found = 0.5 * (up * log_up + np.where(down > 0, down * np.where(down > 0, log_down, 0.0), 0.0))
        return np.where(small, at_small, found)
    if abs(nu - 1) < 0.5:  # M - 1 from what each power adds to its base: no digits are lost as nu goes to 1
        rate = (nu - 1) * power  # power - 1, exactly
        grown = up * np.expm1(rate * log_up)
        grown += np.where(down > 0, down * np.expm1(rate * np.where(down > 0, log_down, 0.0)), 0.0)
        log_mean = np.log1p(0.5 * grown)
    else:
        log_mean = power * log_up + np.log1p(np.exp(power * (log_down - log_up))) - np.log(2.0)
    return np.where(small, at_small, scale * np.expm1(log_mean / power) / (nu - 1))


def inverse_transform(u: np.ndarray | float, nu: float, agents: int) -> np.ndarray:
    """``Gamma^nu(u) = (T^nu)^-1(u)``: the largest ``v`` in [0, 1] with ``T^nu(v) <= u``, by bisection; 1 beyond
    ``T^nu(1)``. Concave and increasing. Shapes as :func:`transform`.

    Raises:
        ValueError: ``u`` is negative or not a number, ``nu`` or ``agents`` out of range.
    """
    u = np.asarray(u, dtype=np.float64)
    _check(nu, agents)
    if not (u >= 0).all():
        raise ValueError("u must be >= 0")
    low, high = np.zeros_like(u), np.ones_like(u)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        below = transform(middle, nu, agents) <= u
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(transform(np.ones_like(u), nu, agents) <= u, 1.0, low)


def deferral_bound(excess: np.ndarray | float, tau_norm: np.ndarray | float, nu: float, agents: int) -> np.ndarray:
    """``||tau||_1 Gamma^nu(excess / ||tau||_1)``: the most that the deferral loss can be above its infimum (Thm 4.4).

    Holds for one ``x`` with its conditional excess and ``||tau||_1``, and, ``Gamma`` being concave (Jensen's inequality
    for its perspective), for means over ``x`` of both. The theorem's second term, the model's own excess cost, is in
    :mod:`l2d.rejector.theory.encoder_split`; it is 0 when the model is taken as it is.

    Args:
        excess: of the surrogate risk over its infimum, >= 0, (...).
        tau_norm: ``||tau||_1``, >= 0, (...); 0 where there is nothing to choose, and so nothing to lose.
        nu: >= 0.
        agents: >= 2.
    """
    excess, norm = np.broadcast_arrays(np.asarray(excess, np.float64), np.asarray(tau_norm, np.float64))
    ratio = np.divide(excess, norm, out=np.zeros_like(excess), where=norm > 0)
    return norm * inverse_transform(ratio, nu, agents)


def _check(nu: float, agents: int) -> None:
    if not 0 <= nu < np.inf:
        raise ValueError(f"nu must be a number >= 0, not {nu}")
    if agents < 2:
        raise ValueError(f"{agents} agents: there is nothing to choose")
