"""Low-rank methods of the router literature: matrix factorization on preferences, and item response theory.

Both meet a sample and an agent in a few dimensions: an agent is a vector, a sample a linear map of its features. Their
networks are of this form whatever ``--rejector`` says.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from l2d.data.errors import UsageError
from l2d.rejector.literature.rule import Rule
from l2d.rejector.literature.samples import Samples

RANK = 16  # dimensions in which samples and agents meet; the papers' 128 and 25 are for embeddings of text


class Factors(torch.nn.Module):
    """``delta_j(x) = w2 . (v_j * W1 x)``, ``v_j`` of length 1: how good agent j is on a sample."""

    def __init__(self, width: int, num_agents: int):
        super().__init__()
        self.agents = torch.nn.Parameter(torch.randn(num_agents, RANK))
        self.project = torch.nn.Linear(width + 1, RANK, bias=False)  # features carry no constant, embeddings do
        self.combine = torch.nn.Linear(RANK, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width) -> (n, agents)."""
        met = self.project(_with_constant(x)) * self.combine.weight
        return met @ normalize(self.agents, dim=1).T


class ItemResponse(torch.nn.Module):
    """``a(x) . theta_j - b(x)``: log-odds that agent j is right, of its ability, a sample's discrimination and
    difficulty."""

    def __init__(self, width: int, num_agents: int):
        super().__init__()
        self.abilities = torch.nn.Parameter(torch.randn(num_agents, RANK))
        self.discrimination = torch.nn.Linear(width, RANK)
        self.difficulty = torch.nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width) -> (n, agents)."""
        return self.discrimination(x).sigmoid() @ self.abilities.T - self.difficulty(x)


def _with_constant(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


def preference_loss(outputs: Tensor, samples: Samples, alpha: float) -> Tensor:
    """``-log sigmoid(delta_w - delta_l)``, mean over the pairs of agents of which ``w`` costs less than ``l``.

    The Bradley-Terry likelihood of a preference. Pairs that cost the same say nothing and are left out, as in the code
    of the paper; so are pairs of which one is unavailable.

    Source: Ong et al., *RouteLLM: Learning to Route LLMs with Preference Data*, 2024, matrix factorization (and its
    code, ``train_matrix_factorization.py``, there with noise on embeddings in training). Left open there: more than two
    agents (here the highest ``delta`` is chosen), and what an agent costs. The paper moves a threshold on the win rate;
    here a preference is one of total costs, the query included, and the threshold stays at one half.

    Returns:
        (n,); 0 where no pair differs.
    """
    difference = outputs[:, :, None] - outputs[:, None, :]
    won = preferred(samples.costs)
    value = -(logsigmoid(difference) * won).sum(dim=(1, 2))
    return value / won.sum(dim=(1, 2)).clamp(min=1)


def preferred(costs: Tensor) -> Tensor:
    """Whether agent i is available and costs less than an available agent j: (n, A) -> 0 or 1, (n, A, A)."""
    there = costs.isfinite()
    both = there[:, :, None] & there[:, None, :]
    return ((costs[:, :, None] < costs[:, None, :]) & both).to(costs.dtype)


def item_response_loss(outputs: Tensor, samples: Samples, alpha: float) -> Tensor:
    """Cross-entropy of how right each agent is, ``1 - cost``, over the agents that are available.

    ``P(agent j is right | x) = sigmoid(a(x) . theta_j - b(x))`` with ``a(x) > 0``: ability, discrimination and
    difficulty of multidimensional item response theory, the latter two read from the features, so that a new sample has
    them. Scores are the negated expected cost, the query included.

    Source: Song et al., *IRT-Router: Effective and Interpretable Multi-LLM Routing via Item Response Theory*, ACL 2025,
    M-IRT. There abilities come from a text that describes the agent; a table has none, so each agent has its own.

    Returns:
        (n,).
    """
    assert samples.unasked is not None  # training sets it
    right = 1 - samples.unasked.masked_fill(samples.missing, 1.0)
    value = -(right * logsigmoid(outputs) + (1 - right) * logsigmoid(-outputs))
    return value.masked_fill(samples.missing, 0.0).sum(dim=1)


def check_shares(samples: Samples) -> None:
    """Refuse costs that are not those of an answer which is more or less right.

    Raises:
        UsageError: a cost is above 1.
    """
    assert samples.unasked is not None  # training sets it
    highest = float(samples.unasked.masked_fill(samples.missing, 0.0).max())
    if highest > 1:
        raise UsageError(
            f"method 'irt' is for answers that are right, wrong or in between: costs from 0 to 1; one is {highest:g}",
            hint="--lambda for costs of at most 1 (--lambda cla=1), or another method",
        )


def _expected_costs(outputs: Tensor, _: Tensor | None, query_costs: Tensor) -> Tensor:
    return outputs.sigmoid() - 1 - query_costs


def _num_agents(num_classes: int, num_agents: int) -> int:
    return num_agents


RULES: dict[str, Rule] = {
    "matrix_factorization": Rule(
        outputs=_num_agents,
        loss=preference_loss,
        scores=lambda outputs, probabilities, query_costs: outputs,
        network=Factors,
    ),
    "irt": Rule(
        outputs=_num_agents,
        loss=item_response_loss,
        scores=_expected_costs,
        network=ItemResponse,
        check=check_shares,
        estimates=True,
    ),
}
