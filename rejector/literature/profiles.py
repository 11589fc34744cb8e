"""Cluster profiles: an agent is what it costs on average in each cluster of the inputs, so a new one needs no training.

Source: Jitkrittum et al., *Universal Model Routing for Efficient LLM Inference*, ICLR 2026 (arXiv 2502.08773), UniRoute
with an unsupervised cluster map: section 5.1, equations 12 and 13.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from l2d.rejector.literature.samples import Samples
from l2d.rejector.losses import allocate, deferral_loss
from l2d.rejector.scoring import ExactProducts

CLUSTERS = (1, 2, 4, 8, 16, 32, 64)  # tried on validation; 1 is the best constant agent
FEWEST = 5  # rows of the training split in a cluster, on average


class Profiles:
    """k-means on the inputs of training; in each cluster, every agent's mean cost over the samples it has answered.

    ``gamma(x, agent) = Phi(x) . Psi(agent)``: ``Phi`` says in which cluster a sample lies and knows no agent, ``Psi``
    is the agent's profile. The paper reads profiles from a small validation set that all agents answer; here every
    sample of training and validation counts for the agents that have answered it, which is the same thing for an agent
    that arrives later and has answered few. Left open by the paper, and so here: the number of clusters is that of the
    lowest deferral loss on validation, each sample judged without its own costs; where an agent has answered nothing in
    a cluster, its mean over all samples stands in. The learned cluster map (section 5.2) is not built.
    """

    def learn(self, train: Samples, validation: Samples) -> tuple[dict[str, Tensor], float]:
        x, costs = torch.cat([train.x, validation.x]), torch.cat([train.costs, validation.costs])
        found: list[tuple[float, dict[str, Tensor]]] = []
        for number in CLUSTERS:
            if number > 1 and len(train) < FEWEST * number:
                break
            centers = cluster_centers(train.x, number)
            member = nearest(x, centers)
            total, count = sums_by_cluster(member, costs, number)
            profile = means(total, count)
            inside = member[len(train) :]
            without = left_out(total[inside], count[inside], validation.costs, costs)
            chosen = allocate(-without, ~validation.missing)
            risk = float(deferral_loss(chosen, validation.costs).double().mean())
            found.append((risk, {"centers": centers, "profiles": profile}))
        risk, state = min(found, key=lambda pair: pair[0])  # ties: fewer clusters
        return state, risk

    def scores(self, state: Mapping[str, Tensor], x: Tensor, chances: Tensor | None, num_agents: int) -> Tensor:
        return -state["profiles"][nearest(x, state["centers"])]


def cluster_centers(x: Tensor, number: int) -> Tensor:
    """Centers of k-means (k-means++, the best of 4 starts, from a fixed seed): (n, W) -> (number, W)."""
    from sklearn.cluster import KMeans

    different = len(np.unique(x.numpy(), axis=0))
    fitted = KMeans(min(number, different), n_init=4, random_state=0).fit(x.numpy().astype(np.float64))
    return torch.from_numpy(fitted.cluster_centers_).float()


def nearest(x: Tensor, centers: Tensor) -> Tensor:
    """The cluster of each sample, by Euclidean distance, ties to the lower index: (n, W), (K, W) -> int64 (n,)."""
    squares = centers.double().square().sum(dim=1).numpy()
    return torch.from_numpy((squares - 2 * ExactProducts(centers.numpy())(x.numpy())).argmin(axis=1))


def sums_by_cluster(member: Tensor, costs: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """What each agent's answers in each cluster cost together, and how many they are: two of (number, A), double."""
    known = costs.isfinite()
    total, count = (torch.zeros(number, costs.shape[1], dtype=torch.float64) for _ in range(2))
    total.index_add_(0, member, costs.masked_fill(~known, 0.0).double())
    return total, count.index_add_(0, member, known.double())


def means(total: Tensor, count: Tensor) -> Tensor:
    """Mean cost by cluster and agent, float32 (K, A); an agent's overall mean where it has answered nothing.

    An agent that has answered nothing at all costs infinitely much, so it is asked last.
    """
    overall = total.sum(dim=0) / count.sum(dim=0)
    overall = torch.where(count.sum(dim=0) > 0, overall, torch.tensor(torch.inf, dtype=overall.dtype))
    found = torch.where(count > 0, total / count.clamp(min=1), overall).float()
    return found.clamp(max=torch.finfo(found.dtype).max / 4)


def left_out(total: Tensor, count: Tensor, own: Tensor, costs: Tensor) -> Tensor:
    """Mean costs in a sample's cluster without the sample itself.

    Args:
        total: of its cluster, (n, A).
        count: of its cluster, (n, A).
        own: costs of the sample, (n, A), infinite where an agent is unavailable.
        costs: of all samples, for the overall means that stand in.

    Returns:
        (n, A).
    """
    there = own.isfinite()
    rest, others = total - own.masked_fill(~there, 0.0).double(), count - there.double()
    known = costs.isfinite()
    overall = costs.masked_fill(~known, 0.0).double().sum(dim=0) / known.sum(dim=0).clamp(min=1)
    return torch.where(others > 0, rest / others.clamp(min=1), overall).float()
