"""What later papers of the surrogate's authors say of it: its scores rank agents for any k, and pairs are agents."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from l2d.rejector.losses import aggregated_costs, cross_entropy_surrogate, surrogate_deferral_loss
from l2d.rejector.theory.conditional_risk import surrogate_losses
from l2d.rejector.theory.subject import chosen_costs
from l2d.rejector.theory.top_k import asked, top_k_bound, top_k_costs


def minimiser(costs: torch.Tensor, chances: torch.Tensor, nu: float) -> torch.Tensor:
    """Scores of least expected surrogate, where rows of costs come with these chances."""
    scores = torch.zeros(costs.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=100, line_search_fn="strong_wolfe")

    def value() -> torch.Tensor:
        optimizer.zero_grad()
        found = (chances * surrogate_deferral_loss(scores.expand_as(costs), costs, nu)).sum()
        found.backward()
        return found

    optimizer.step(value)
    return scores.detach()


@pytest.mark.parametrize("nu", [0.0, 1.0, 1.5])
def test_scores_at_the_minimum_rank_agents_by_expected_cost_so_every_top_k_is_the_cheapest_k(nu):
    """Montreuil et al., *Why Ask One When You Can Ask k?*, ICLR 2026: one surrogate for all k (Lemmas 4.3 and 4.5)."""
    generator = torch.Generator().manual_seed(0)
    costs, chances = torch.rand(6, 5, generator=generator).double(), torch.rand(6, generator=generator).double()
    expected = (chances[:, None] * costs).sum(dim=0)
    assert minimiser(costs, chances, nu).argsort(descending=True).tolist() == expected.argsort().tolist()


def test_the_surrogate_bounds_the_cost_of_the_k_agents_that_score_highest():
    """Lemma 4.3 there: ``sum_(j in top k) c_j <= Phi - (A - 1 - k) sum_j c_j``. For sum-exponential (nu = 0), and for
    logarithms to base 2; with natural ones (nu = 1) the lemma needs ``-log(1/2) >= 1``, and a case breaks it."""
    generator = torch.Generator().manual_seed(1)
    scores = 3 * torch.randn(2000, 5, generator=generator).double()
    costs = torch.rand(2000, 5, generator=generator).double()
    ranked = scores.argsort(dim=1, descending=True)
    for k in range(1, 6):
        asked = costs.gather(1, ranked[:, :k]).sum(dim=1)
        rest = (5 - 1 - k) * costs.sum(dim=1)
        for value in (
            surrogate_deferral_loss(scores, costs, 0.0),
            (aggregated_costs(costs) * cross_entropy_surrogate(scores, 1.0)).sum(dim=1) / torch.tensor(2.0).log(),
        ):
            assert bool((asked <= value - rest + 1e-9).all())
    tied, one = torch.zeros(1, 2).double(), torch.tensor([[1.0, 0.0]]).double()
    assert float(surrogate_deferral_loss(tied, one, 1.0)) < float(one[0, 0])


@pytest.mark.parametrize("nu", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_the_bound_holds_for_every_nu_and_with_agents_missing(nu):
    random = np.random.default_rng(2)
    scores, costs = 3 * random.normal(size=(3000, 4)), random.random((3000, 4)) ** 2
    scores[::7] = 0.0  # ties
    costs[:1000][random.random((1000, 4)) < 0.3] = np.inf
    costs[:, 0] = np.where(np.isinf(costs).all(axis=1), 0.5, costs[:, 0])
    for k in range(1, 5):
        assert (top_k_costs(scores, costs, k) <= top_k_bound(scores, costs, nu, k) + 1e-9).all()
    whole = costs[1000:]
    lemma = surrogate_losses(scores[1000:], whole, 0.0) - 2 * whole.sum(axis=1)
    np.testing.assert_allclose(top_k_bound(scores[1000:], whole, 0.0, 1), lemma)  # as the paper has it, at k = 1
    tie, one = np.zeros((1, 2)), np.array([[1.0, 0.0]])
    assert top_k_bound(tie, one, nu, 1) == pytest.approx(1.0)  # reached


def test_the_k_that_are_asked_are_the_k_highest_that_are_there_and_one_is_the_rejector_s():
    random = np.random.default_rng(3)
    scores, costs = random.integers(0, 3, (200, 4)).astype(float), random.random((200, 4))
    costs[random.random((200, 4)) < 0.3] = np.inf
    costs[:, 3] = 0.25
    for k in (1, 2, 3):
        for row, chosen in enumerate(asked(scores, costs, k)):
            there = np.flatnonzero(np.isfinite(costs[row])).tolist()
            sets = list(itertools.combinations(there, min(k, len(there))))
            best = max(sets, key=lambda some: (sum(sorted(scores[row, list(some)])), [-agent for agent in some]))
            assert np.flatnonzero(chosen).tolist() == sorted(best)
    np.testing.assert_array_equal(top_k_costs(scores, costs, 1), chosen_costs(scores, costs))


def test_pairs_of_expert_and_advice_are_agents_and_choosing_them_one_after_the_other_is_not_enough():
    """Montreuil et al., *Learning-to-Defer with Expert-Conditional Advice*, 2026: the surrogate on pairs finds
    the best pair. A router of experts as they are, with advice chosen afterwards, goes to the wrong expert here."""
    without = torch.tensor([0.4, 0.3]).double()  # of experts A and B
    advised = torch.tensor([0.1, 0.3]).double() + 0.05  # advice costs 0.05 and helps A alone
    pairs = torch.cat([without, advised])[None]
    assert int(minimiser(pairs, torch.ones(1).double(), 1.0).argmax()) == 2  # A with advice
    router = int(minimiser(without[None], torch.ones(1).double(), 1.0).argmax())
    one_after_the_other = float(torch.stack([without[router], advised[router]]).min())
    assert one_after_the_other == pytest.approx(0.3)
    assert float(pairs.min()) == pytest.approx(0.15)
