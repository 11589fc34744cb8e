"""What a rejector is measured against, all from the same cost table."""

from __future__ import annotations

import torch
from torch import Tensor


def allocation_rates(allocation: Tensor, num_agents: int) -> Tensor:
    """Share of samples that each agent gets: float64 (agents,), from agent indices (n,)."""
    return torch.bincount(allocation, minlength=num_agents).double() / len(allocation)


def random_same_shares(rates: Tensor, costs: Tensor) -> Tensor:
    """Expected deferral loss of each sample if agents are drawn at random at these shares.

    The expectation itself, not a draw: ``sum_j rate_j c_j``.

    Args:
        rates: (agents,), summing to 1.
        costs: (n, agents).

    Returns:
        (n,) float64.
    """
    return costs.double() @ rates.double()


def best_constant(costs: Tensor) -> int:
    """The agent with the lowest mean cost, ties to the lowest index.

    On the evaluated split itself, so in hindsight: the hardest constant agent to beat.
    """
    means = costs.double().mean(dim=0)
    return int((means == means.min()).nonzero()[0])


def oracle(costs: Tensor) -> Tensor:
    """Cost of the cheapest agent of each sample (n,): the lower bound of any rejector (Lemma 4.2)."""
    return costs.double().amin(dim=1)
