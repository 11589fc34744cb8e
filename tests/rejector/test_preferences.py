"""Matrix factorization, item response theory and Elo: likelihoods by hand, known cases, and worlds of the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from l2d.data.errors import UsageError
from l2d.rejector.literature.elo import PRIOR, Elo, bradley_terry, similarity_weights, wins
from l2d.rejector.literature.factors import (
    RULES,
    Factors,
    ItemResponse,
    check_shares,
    item_response_loss,
    preference_loss,
    preferred,
)
from l2d.rejector.literature.fitting import fit, network_of
from l2d.rejector.literature.samples import Samples
from l2d.rejector.losses import allocate, deferral_loss
from l2d.rejector.settings import TrainConfig

CONFIG = TrainConfig(network="linear", epochs=40, batch_size=256, lr=0.03)


def samples_of(x: torch.Tensor, costs: torch.Tensor) -> Samples:
    return Samples(x=x, costs=costs, unasked=costs)


def drawn(rows: int, agents: int) -> tuple[torch.Tensor, Samples]:
    generator = torch.Generator().manual_seed(5)
    outputs = torch.randn(rows, agents, generator=generator, dtype=torch.float64)
    costs = (torch.rand(rows, agents, generator=generator) * 3).round().double() / 3
    costs[torch.rand(rows, agents, generator=generator) < 0.2] = math.inf
    return outputs, samples_of(outputs, costs)


def test_the_preference_loss_is_a_mean_over_pairs_of_which_one_costs_less():
    outputs, samples = drawn(40, 3)
    found = preference_loss(outputs, samples, 1.0)
    for row in range(40):
        g, c = outputs[row].tolist(), samples.costs[row].tolist()
        pairs = [(i, j) for i in range(3) for j in range(3) if c[i] < c[j] < math.inf]
        terms = [math.log(1 + math.exp(g[j] - g[i])) for i, j in pairs]
        assert float(found[row]) == pytest.approx(np.mean(terms) if terms else 0.0)


def test_the_item_response_loss_is_a_cross_entropy_of_shares_that_are_right():
    outputs, samples = drawn(40, 3)
    found = item_response_loss(outputs, samples, 1.0)
    for row in range(40):
        total = 0.0
        for g, c in zip(outputs[row].tolist(), samples.costs[row].tolist(), strict=True):
            p = 1 / (1 + math.exp(-g))
            total -= 0.0 if c == math.inf else (1 - c) * math.log(p) + c * math.log(1 - p)
        assert float(found[row]) == pytest.approx(total)


@pytest.mark.parametrize("loss", [preference_loss, item_response_loss])
def test_gradients_are_those_of_differences(loss):
    outputs, samples = drawn(20, 3)
    leaf = outputs.clone().requires_grad_(True)
    loss(leaf, samples, 1.0).sum().backward()
    for column in range(3):
        moved = torch.zeros_like(outputs)
        moved[:, column] = 1e-6
        slope = (loss(outputs + moved, samples, 1.0) - loss(outputs - moved, samples, 1.0)) / 2e-6
        torch.testing.assert_close(leaf.grad[:, column], slope, atol=1e-6, rtol=1e-6)


def test_networks_are_the_papers_forms():
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    factors, response = Factors(4, 3), ItemResponse(4, 3)
    with torch.no_grad():
        met = torch.cat([x, torch.ones(5, 1)], dim=1) @ factors.project.weight.T
        for agent in range(3):
            v = factors.agents[agent] / factors.agents[agent].norm()
            torch.testing.assert_close(factors(x)[:, agent], (v * met) @ factors.combine.weight[0])
            a = response.discrimination(x).sigmoid()
            wanted = a @ response.abilities[agent] - response.difficulty(x)[:, 0]
            torch.testing.assert_close(response(x)[:, agent], wanted)
            assert (a > 0).all()


def test_a_cost_above_one_is_refused_by_name():
    with pytest.raises(UsageError, match="'irt' is for answers") as caught:
        check_shares(samples_of(torch.zeros(2, 1), torch.tensor([[0.0, 2.5], [1.0, math.inf]])))
    assert "--lambda" in str(caught.value.hint)


def hard_and_easy(rows: int, seed: int) -> Samples:
    """Ability and difficulty: the strong agent is right on more of the hard samples, both on the easy ones."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 3)).astype(np.float32)
    right = 1 / (1 + np.exp(-(np.array([0.0, 2.0]) - 2 * x[:, :1])))
    wrong = random.random((rows, 2)) > right
    return samples_of(torch.from_numpy(x), torch.from_numpy(wrong.astype(np.float32)))


def test_item_response_recovers_ability_and_difficulty():
    """A 2-agent Rasch world is inside the family: its probabilities are found."""
    train, other = hard_and_easy(4000, 0), hard_and_easy(1000, 1)
    rule = RULES["irt"]
    risk = lambda outputs, samples: float(item_response_loss(outputs, samples, 1.0).mean())  # noqa: E731
    fitted = fit(train, other, 2, lambda o, s: rule.loss(o, s, 1.0), risk, CONFIG, 0, "irt", make=rule.network)
    network = network_of(fitted.state, CONFIG, 3, 2, make=rule.network)
    chances = network(other.x).sigmoid()
    wanted = (torch.tensor([0.0, 2.0]) - 2 * other.x[:, :1]).sigmoid()
    assert float((chances - wanted).abs().mean()) < 0.03
    scores = rule.scores(network(other.x), None, torch.tensor([0.0, 0.25]))
    torch.testing.assert_close(-scores, 1 - chances + torch.tensor([0.0, 0.25]))  # expected costs, queries included


def test_preferences_alone_find_where_each_agent_is_better():
    """Two agents, each right on one side of a line: factors of rank 1 would do; ties say nothing."""
    random = np.random.default_rng(3)
    x = random.normal(size=(1500, 4)).astype(np.float32)
    good = np.stack([x[:, 0] > 0, x[:, 0] <= 0], axis=1)
    wrong = random.random((1500, 2)) > np.where(good, 0.9, 0.3)
    samples = samples_of(torch.from_numpy(x), torch.from_numpy(wrong.astype(np.float32)))
    train, test = samples.take(torch.arange(1000)), samples.take(torch.arange(1000, 1500))
    rule = RULES["matrix_factorization"]
    risk = lambda outputs, s: float(deferral_loss(allocate(outputs), s.costs).mean())  # noqa: E731
    fitted = fit(train, test, 2, lambda o, s: rule.loss(o, s, 1.0), risk, CONFIG, 0, "mf", make=rule.network)
    chosen = network_of(fitted.state, CONFIG, 4, 2, make=rule.network)(test.x).argmax(dim=1)
    assert float((chosen == (test.x[:, 0] <= 0)).float().mean()) > 0.95


# --- elo --------------------------------------------------------------------------------------------------------------


def test_two_agents_are_rated_by_their_shares_of_battles():
    found = bradley_terry(torch.tensor([[[0.0, 30.0], [10.0, 0.0]]], dtype=torch.float64))
    wanted = math.log((30 + PRIOR) / (10 + PRIOR)) / 2
    assert found[0].tolist() == pytest.approx([wanted, -wanted], abs=1e-6)


def test_ratings_maximise_the_likelihood():
    random = np.random.default_rng(1)
    won = torch.from_numpy(random.integers(1, 20, (3, 4, 4)).astype(float)) * (1 - torch.eye(4).double())
    strength = bradley_terry(won).requires_grad_(True)
    gap = strength[:, :, None] - strength[:, None, :]
    ((won + PRIOR) * (1 - torch.eye(4)) * torch.nn.functional.logsigmoid(gap)).sum().backward()
    assert float(strength.grad.abs().max()) < 1e-5


def test_battles_and_weights_are_those_of_the_papers_code():
    costs = torch.tensor([[0.0, 1.0, 1.0], [0.5, math.inf, 0.5]])
    assert wins(costs)[0].tolist() == [[0, 1, 1], [0, 0, 0.5], [0, 0.5, 0]]
    assert wins(costs)[1].tolist() == [[0, 0, 0.5], [0, 0, 0], [0.5, 0, 0]]
    assert preferred(costs)[1].sum() == 0
    x, memory = torch.randn(4, 3), torch.randn(6, 3)
    similar = (x @ memory.T) / (x.norm(dim=1)[:, None] * memory.norm(dim=1))
    torch.testing.assert_close(similarity_weights(x, memory), 10 * 10 ** (similar / similar.amax(dim=1, keepdim=True)))
    assert similarity_weights(torch.zeros(1, 3), memory).tolist() == [[10.0] * 6]


def test_similar_samples_decide_where_agents_have_opposite_strengths():
    random = np.random.default_rng(2)
    x = random.normal(size=(900, 2)).astype(np.float32)
    first = torch.from_numpy((x[:, 0] > 0).astype(np.float32))
    samples = samples_of(torch.from_numpy(x), torch.stack([1 - first, first], dim=1))
    state, risk = Elo().learn(samples.take(torch.arange(600)), samples.take(torch.arange(600, 900)))
    assert risk < 0.1  # of 0.5 for each agent alone
    known = Elo().scores(state, torch.tensor([[3.0, 0.0], [-3.0, 0.0]]), None, 2)
    assert known[0, 0] > known[0, 1]
    assert known[1, 0] < known[1, 1]
