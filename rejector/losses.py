"""The paper's losses: cross-entropy surrogates, the surrogate deferral loss and the true deferral loss.

Shapes: B samples, A agents (``J + 1`` in the paper); leading dimensions (a grid of rejectors, say) broadcast. All
take scores and costs, never an agent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Past this exponent (by dtype) surrogates with ``nu < 1`` go on linearly, so that value and gradient stay finite:
#: ``exp(40)`` squared, as Adam does, still fits a float32.
_EXPONENT_LIMIT = {torch.float32: 40.0, torch.float64: 300.0}


def aggregated_costs(costs: Tensor) -> Tensor:
    """``tau_j = sum_{i != j} c_i`` (Lemma 4.3).

    Args:
        costs: total cost of each agent, (..., B, A).

    Returns:
        (..., B, A).
    """
    return costs.sum(dim=-1, keepdim=True) - costs


def cross_entropy_surrogate(scores: Tensor, nu: float | Tensor) -> Tensor:
    """``Phi_01^nu(r, x, j)`` for every agent ``j`` (Eq. 1): with ``s = softmax(r)``,

    ``-log s_j`` at ``nu = 1``, else ``(s_j^(nu-1) - 1) / (1 - nu)``; 0 sum-exponential, 1 log-softmax, 2 MAE.

    Computed as ``expm1((nu-1) log s) / (1-nu)``, which loses no digits near ``nu = 1``. Where ``(nu-1) log s`` exceeds
    40 (300 in float64; only for ``nu < 1``), the function is continued linearly. Convex in the scores only for
    ``nu <= 1``; with natural logarithms it does not bound the 0-1 loss at ``nu = 1`` (log 2 at a tie).

    Args:
        scores: (..., B, A).
        nu: a number >= 0, or a tensor that broadcasts against ``scores``.

    Returns:
        (..., B, A), not negative.

    Raises:
        ValueError: ``nu`` is negative.
    """
    log_softmax = scores.log_softmax(dim=-1)
    if not isinstance(nu, Tensor):
        if nu < 0 or not math.isfinite(nu):
            raise ValueError(f"nu must be a number >= 0, not {nu}")
        if nu == 1:
            return -log_softmax
        nu = torch.as_tensor(nu, dtype=scores.dtype, device=scores.device)
    elif not bool(((nu >= 0) & nu.isfinite()).all()):
        raise ValueError("nu must be a number >= 0")
    is_one = nu == 1
    rate = torch.where(is_one, torch.full_like(nu, 0.5), nu) - 1  # any rate but 0 where the other branch is taken
    exponent = rate * log_softmax
    limit = _EXPONENT_LIMIT[scores.dtype]
    inside = exponent.clamp(max=limit)
    beyond = math.expm1(limit) + math.exp(limit) * (exponent - limit)
    power = torch.where(exponent > limit, beyond, torch.expm1(inside))
    return torch.where(is_one, -log_softmax, -power / rate)


def surrogate_deferral_loss(scores: Tensor, costs: Tensor, nu: float | Tensor = 1.0) -> Tensor:
    """``Phi_def^nu = sum_j tau_j Phi_01^nu(r, x, j)`` of each sample (Lemma 4.3).

    Args:
        scores: (..., B, A).
        costs: total cost of each agent, (..., B, A), >= 0.
        nu: see :func:`cross_entropy_surrogate`.

    Returns:
        (..., B).
    """
    return (aggregated_costs(costs) * cross_entropy_surrogate(scores, nu)).sum(dim=-1)


def allocate(scores: Tensor) -> Tensor:
    """``argmax_j r(x, j)``, ties to the lowest index (so to the model first, as in Lemma 4.2).

    ``torch.argmax`` promises no order among ties on a GPU, hence this. The same rule holds in numpy (``argmax``) and in
    SQL (macro ``allocate``).

    Args:
        scores: (..., A), not NaN.

    Returns:
        Agent indices, int64, (...).
    """
    best = scores == scores.amax(dim=-1, keepdim=True)
    position = torch.arange(scores.shape[-1], device=scores.device)
    return torch.where(best, position, scores.shape[-1] - 1).amin(dim=-1)


def oracle_allocation(costs: Tensor) -> Tensor:
    """Bayes rejector (Lemma 4.2) on known costs: ``argmin_j c_j``, ties to the lowest index. (..., A) -> (...)."""
    return allocate(-costs)


def deferral_loss(allocation: Tensor, costs: Tensor) -> Tensor:
    """``l_def = sum_j c_j 1[r(x) = j]`` of each sample (Definition 4.1).

    Args:
        allocation: agent indices, (..., B).
        costs: (..., B, A).

    Returns:
        (..., B).
    """
    return costs.gather(-1, allocation.unsqueeze(-1)).squeeze(-1)
