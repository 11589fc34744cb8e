"""Similarity-weighted ranking: an Elo rating of the agents for each sample, from preferences on similar samples.

Source: Ong et al., *RouteLLM: Learning to Route LLMs with Preference Data*, 2024, similarity-weighted (SW) ranking, and
its code (``routers.py``, ``similarity_weighted/utils.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from l2d.rejector.literature.factors import preferred
from l2d.rejector.literature.samples import Samples
from l2d.rejector.losses import allocate, deferral_loss

SCALE, BASE = 400.0, 10.0
PRIOR = 1e-3  # of a battle that each pair has won each: a rating exists where an agent has never lost
STEPS = 100
NUMBERS_AT_ONCE = 1 << 22  # of similarities, to bound memory


class Elo:
    """Ratings from all training samples, each sample's preferences counted the more the more similar it is.

    A sample is a battle between every pair of agents that have answered it; the one that costs less wins, equal costs
    are half a win for each. Its weight for a new sample is ``10 * 10^(S / max S)``, ``S`` the cosine similarity of the
    (standardised) features. Ratings maximise the weighted Bradley-Terry likelihood. Left open by the paper, and so
    here: more than two agents (the highest rating is chosen), and query costs (a battle is about total costs, the query
    included, where the paper moves a threshold on the win rate); tiers of models are not formed. Nothing is tuned.
    """

    def learn(self, train: Samples, validation: Samples) -> tuple[dict[str, Tensor], float]:
        state = {"memory_x": train.x.contiguous(), "memory_wins": wins(train.costs)}
        chosen = allocate(self.scores(state, validation.x, None, train.costs.shape[1]), ~validation.missing)
        return state, float(deferral_loss(chosen, validation.costs).double().mean())

    def scores(self, state: Mapping[str, Tensor], x: Tensor, chances: Tensor | None, num_agents: int) -> Tensor:
        memory, battles = state["memory_x"].double(), state["memory_wins"].double()
        found = []
        for part in x.split(max(1, NUMBERS_AT_ONCE // len(memory))):
            won = similarity_weights(part.double(), memory) @ battles.flatten(1)
            found.append(SCALE * bradley_terry(won.view(-1, num_agents, num_agents)) / math.log(BASE))
        return torch.cat(found).float() if found else torch.zeros(0, num_agents)


def wins(costs: Tensor) -> Tensor:
    """What each agent has won against each other on each sample: 1, half where costs are equal, (n, A) -> (n, A, A)."""
    there = costs.isfinite()
    both = there[:, :, None] & there[:, None, :] & ~torch.eye(costs.shape[1], dtype=torch.bool)
    equal = (costs[:, :, None] == costs[:, None, :]) & both
    return preferred(costs) + 0.5 * equal.to(costs.dtype)


def similarity_weights(x: Tensor, memory: Tensor) -> Tensor:
    """``10 * 10^(S / max S)`` with ``S`` the cosine similarity, the largest of a row's: (n, W), (m, W) -> (n, m).

    A row of zeros is similar to nothing; it, and a row whose largest similarity is not positive, weigh all alike.
    """
    similar = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(memory, dim=1).T
    largest = similar.amax(dim=1, keepdim=True)
    share = torch.where(largest > 0, similar / largest.clamp(min=1e-12), 0.0)
    return 10 * BASE**share


def bradley_terry(won: Tensor) -> Tensor:
    """Log-strengths that maximise ``sum_ij w_ij log(e^s_i / (e^s_i + e^s_j))``, of mean 0.

    Zermelo's iteration (Hunter, *MM algorithms for generalized Bradley-Terry models*, 2004): the likelihood never
    falls.

    Args:
        won: what agent i has won against agent j, (n, A, A), >= 0.

    Returns:
        (n, A).
    """
    agents = won.shape[-1]
    apart = 1 - torch.eye(agents, dtype=won.dtype)
    won = won + PRIOR * apart
    battles, total = won + won.transpose(1, 2), won.sum(dim=2)
    strength = torch.ones(won.shape[:2], dtype=won.dtype)
    for _ in range(STEPS):
        shared = apart * battles / (strength[:, :, None] + strength[:, None, :])
        strength = total / shared.sum(dim=2)
        strength = strength / strength.log().mean(dim=1, keepdim=True).exp()
    return strength.log()
