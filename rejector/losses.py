"""What rejectors are judged by and trained on: the paper's losses, and two alternatives to its surrogate.

Shapes: B samples, A agents (``J + 1`` in the paper); leading dimensions (a grid of rejectors, say) broadcast. All
take scores and costs, never an agent. What can be trained on is in :data:`LOSSES`, as a function that gives value and
gradient: the gradients are written out, since they are short, and have to be bounded where the losses are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

#: By dtype: ``exp`` of more does not fit (so values stay there), and the square of a gradient of more does not, which
#: Adam keeps (so gradients stay there).
_LARGEST_EXPONENT = {torch.float32: (88.72, 40.0), torch.float64: (709.78, 300.0)}


def aggregated_costs(costs: Tensor, dim: int = -1) -> Tensor:
    """``tau_j = sum_{i != j} c_i`` (Lemma 4.3).

    Args:
        costs: total cost of each agent, (..., B, A).
        dim: of the agents.

    Returns:
        (..., B, A).
    """
    return costs.sum(dim=dim, keepdim=True) - costs


def recentred(costs: Tensor, dim: int = -1) -> Tensor:
    """Costs less the cheapest agent's, sample by sample: what an agent costs too much. (..., B, A) -> (..., B, A).

    The cheapest agent in expectation stays the cheapest, since every agent's cost falls by the same. But a part that
    all agents' costs share flattens the surrogate's minimiser (``s_j`` in proportion to ``tau_j`` at ``nu = 1``, so
    never above ``1 / J``), the more the more agents there are; without it the target is sharp.
    """
    return costs - costs.amin(dim=dim, keepdim=True)


def cross_entropy_surrogate(scores: Tensor, nu: float | Tensor, dim: int = -1) -> Tensor:
    """``Phi_01^nu(r, x, j)`` for every agent ``j`` (Eq. 1): with ``s = softmax(r)``,

    ``-log s_j`` at ``nu = 1``, else ``(s_j^(nu-1) - 1) / (1 - nu)``; 0 sum-exponential, 1 log-softmax, 2 MAE.

    Computed as ``expm1((nu-1) log s) / (1-nu)``, which loses no digits near ``nu = 1``. Where ``s_j^(nu-1)`` does not
    fit the dtype (from ``exp(88.72)`` in float32 on; only for ``nu < 1``) it is the largest that does. Convex in the
    scores only for ``nu <= 1``; with natural logarithms it does not bound the 0-1 loss at ``nu = 1`` (log 2 at a tie).

    Args:
        scores: (..., B, A).
        nu: a number >= 0, or a tensor that broadcasts against ``scores``.
        dim: of the agents.

    Returns:
        (..., B, A), not negative and finite.

    Raises:
        ValueError: ``nu`` is negative or no number.
    """
    return _surrogate(scores.log_softmax(dim=dim), check_nu(nu, scores.dtype, scores.device))


def check_nu(nu: float | Tensor, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor | None:
    """``nu`` as the losses take it: a tensor, or None where all of it is 1, which needs no powers.

    Raises:
        ValueError: ``nu`` is negative or no number.
    """
    values = torch.as_tensor(nu, dtype=dtype, device=device)
    if not bool(((values >= 0) & values.isfinite()).all()):
        raise ValueError(f"nu must be a number >= 0, not {nu}")
    return None if bool((values == 1).all()) else values


def _surrogate(log_softmax: Tensor, nu: Tensor | None) -> Tensor:
    if nu is None:
        return -log_softmax
    is_one = nu == 1
    rate = torch.where(is_one, torch.full_like(nu, 0.5), nu) - 1  # any rate but 0 where the other branch is taken
    largest, _ = _LARGEST_EXPONENT[log_softmax.dtype]
    power = torch.expm1((rate * log_softmax).clamp(max=largest))
    return torch.where(is_one, -log_softmax, (-power / rate).clamp(max=torch.finfo(power.dtype).max))


# --- losses to train on: value and gradient ---------------------------------------------------------------------------


def surrogate(
    scores: Tensor, costs: Tensor, nu: Tensor | None, dim: int = -1, missing: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``Phi_def^nu = sum_j tau_j Phi_01^nu(r, x, j)`` of each sample (Lemma 4.3), and its gradient

    ``s_k sum_j w_j - w_k`` with ``w_j = tau_j s_j^(nu-1)``. For ``nu < 1`` ``w`` grows as ``exp((1-nu) gap)`` with the
    gap between scores. Where that factor is beyond ``exp(40)`` (``exp(300)`` in float64) it stays there: the direction
    is right, and Adam's squares fit. No float32 training comes near unless it has diverged.

    Args:
        scores: (..., B, A).
        costs: total cost of each agent, (..., B, A), >= 0.
        nu: see :func:`check_nu`; broadcasts against ``scores``.
        dim: of the agents.
        missing: where an agent is unavailable, bool (..., B, A), or None: nowhere. The loss is that of the others
            alone: ``tau``, softmax and sum run over the available agents, and the gradient is 0 elsewhere.

    Returns:
        Values without the dimension ``dim``, and gradients by score (..., B, A); finite for finite scores.
    """
    if missing is not None:
        scores, costs = scores.masked_fill(missing, torch.finfo(scores.dtype).min / 4), costs.masked_fill(missing, 0)
    log_softmax = scores.log_softmax(dim=dim)
    weights = aggregated_costs(costs, dim)
    if missing is not None:
        weights = weights.masked_fill(missing, 0)
    value = (weights * _surrogate(log_softmax, nu)).sum(dim=dim)
    if nu is not None:
        value = value.clamp(max=torch.finfo(value.dtype).max)
        _, largest = _LARGEST_EXPONENT[scores.dtype]
        weights = weights * ((nu - 1) * log_softmax).clamp_(max=largest).exp_()
    return value, log_softmax.exp() * weights.sum(dim=dim, keepdim=True) - weights


def regression(
    scores: Tensor, costs: Tensor, nu: None = None, dim: int = -1, missing: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``sum_j (r_j + c_j)^2``: scores are negated predictions of the costs. Shapes as :func:`surrogate`.

    The minimiser is ``r_j = -E[c_j | x]``, so its argmax is the cheapest agent: cost-sensitive one-against-all
    (Krishnamurthy et al., *Active Learning for Cost-Sensitive Classification*, ICML 2017, section 2).
    """
    error = scores + costs
    if missing is not None:
        error = error.masked_fill(missing, 0)
    return error.square().sum(dim=dim), 2 * error


def one_vs_all(
    scores: Tensor, costs: Tensor, nu: None = None, dim: int = -1, missing: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``sum_j (C - c_j) log(1 + e^-r_j) + c_j log(1 + e^r_j)``, ``C = max_j c_j``. Shapes as :func:`surrogate`.

    The experts' part of the one-vs-all surrogate of Verma, Barrejón and Nalisnick (*Learning to Defer to Multiple
    Experts*, AISTATS 2023), whose experts are right (cost 0) or wrong (cost 1), with any costs as weights. Agents are
    scored apart: ``sigmoid(r_j) = E[C - c_j | x] / E[C | x]`` at the minimum, so the argmax is the cheapest agent.
    Convex, its gradient within ``[-C, C]``.
    """
    if missing is not None:
        costs = costs.masked_fill(missing, 0)
    dearest = costs.amax(dim=dim, keepdim=True)
    spared, log_sigmoid = dearest - costs, logsigmoid(scores)
    value = spared * log_sigmoid + costs * logsigmoid(-scores)
    gradient = dearest * log_sigmoid.exp() - spared
    if missing is not None:
        value, gradient = value.masked_fill(missing, 0), gradient.masked_fill(missing, 0)
    return -value.sum(dim=dim), gradient


#: Name of a loss -> function of scores, costs, nu (of the surrogate), the agents' dimension, which are unavailable.
LOSSES: dict[str, Callable[[Tensor, Tensor, Any, int, Tensor | None], tuple[Tensor, Tensor]]] = {
    "surrogate": surrogate,
    "regression": regression,
    "one_vs_all": one_vs_all,
}


class _Differentiable(torch.autograd.Function):
    """Gives autograd the gradient of :func:`surrogate`, which is bounded where that of its formula is not."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, costs: Tensor, nu: Tensor | None) -> Tensor:
        value, gradient = surrogate(scores, costs, nu, -1, costs.isinf())
        ctx.save_for_backward(gradient)
        ctx.shape = scores.shape
        return value

    @staticmethod
    def backward(ctx: Any, of_value: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (of_value.unsqueeze(-1) * gradient).sum_to_size(ctx.shape), None, None


def surrogate_deferral_loss(scores: Tensor, costs: Tensor, nu: float | Tensor = 1.0) -> Tensor:
    """:func:`surrogate` for autograd, by scores: (..., B, A), (..., B, A) -> (..., B).

    A cost of infinity says that the agent is unavailable.

    Raises:
        ValueError: ``nu`` is negative or no number.
    """
    return _Differentiable.apply(scores, costs, check_nu(nu, scores.dtype, scores.device))


# --- what rejectors are judged by -------------------------------------------------------------------------------------


def allocate(scores: Tensor, available: Tensor | None = None) -> Tensor:
    """``argmax_j r(x, j)``, ties to the lowest index (so to the model first, as in Lemma 4.2).

    ``torch.argmax`` promises no order among ties on a GPU, hence this. The same rule holds in numpy (``argmax``) and in
    SQL (macro ``allocate``).

    Args:
        scores: (..., A), not NaN.
        available: which may be chosen, bool (..., A), at least one; None: all.

    Returns:
        Agent indices, int64, (...).
    """
    if available is not None:
        scores = scores.masked_fill(~available, -torch.inf)
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
