"""Methods that predict costs without a network or fill them in: cluster profiles, CARROT, and artificial answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from l2d.rejector.literature.carrot import Carrot
from l2d.rejector.literature.neighbours import mean_costs
from l2d.rejector.literature.on_agents import with_artificial_answers
from l2d.rejector.literature.profiles import Profiles, cluster_centers, left_out, means, nearest, sums_by_cluster
from l2d.rejector.literature.samples import Samples
from l2d.rejector.losses import allocate, deferral_loss

TOPICS = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0], [0.0, -4.0]])
#: Chance that an agent errs on a topic: the last one arrives later.
ERRORS = torch.tensor([[0.1, 0.5, 0.2], [0.5, 0.1, 0.4], [0.4, 0.4, 0.0], [0.3, 0.2, 0.9]])


def world(rows: int, seed: int) -> tuple[Samples, torch.Tensor]:
    """The paper's Proposition 2: a mixture of topics inside which errors are alike."""
    generator = torch.Generator().manual_seed(seed)
    topic = torch.randint(4, (rows,), generator=generator)
    x = TOPICS[topic] + 0.5 * torch.randn(rows, 2, generator=generator)
    costs = (torch.rand(rows, 3, generator=generator) < ERRORS[topic]).float()
    return Samples(x=x, costs=costs, unasked=costs), topic


# --- cluster profiles -------------------------------------------------------------------------------------------------


def test_profiles_are_means_by_cluster_and_left_out_ones_leave_out_the_sample():
    generator = torch.Generator().manual_seed(0)
    member, costs = torch.randint(3, (60,), generator=generator), torch.rand(60, 2, generator=generator)
    costs[torch.rand(60, 2, generator=generator) < 0.3] = math.inf
    costs[member == 2, 1] = math.inf  # so the second agent has no answer there
    total, count = sums_by_cluster(member, costs, 3)
    found, without = means(total, count), left_out(total[member], count[member], costs, costs)
    known = lambda rows, agent: [c for c in costs[rows, agent].tolist() if c < math.inf]  # noqa: E731
    everything = torch.ones(60, dtype=torch.bool)
    for agent in range(2):
        for cluster in range(3):
            wanted = known(member == cluster, agent) or known(everything, agent)
            assert float(found[cluster, agent]) == pytest.approx(np.mean(wanted), rel=1e-5)
        for row in range(60):
            others = member == member[row]
            others[row] = False
            wanted = known(others, agent) or known(everything, agent)
            assert float(without[row, agent]) == pytest.approx(np.mean(wanted), rel=1e-5)


def test_the_nearest_center_is_that_of_all_distances():
    generator = torch.Generator().manual_seed(1)
    x, centers = torch.randn(50, 3, generator=generator), torch.randn(7, 3, generator=generator)
    assert nearest(x, centers).tolist() == torch.cdist(x, centers).argmin(dim=1).tolist()
    assert cluster_centers(world(200, 3)[0].x, 1)[0].tolist() == pytest.approx(
        world(200, 3)[0].x.mean(dim=0).tolist(), abs=1e-5
    )


def test_a_mixture_of_topics_is_routed_as_well_as_can_be():
    train, other = world(800, 0)[0], world(400, 1)[0]
    state, _ = Profiles().learn(train, other)
    test, topic = world(2000, 2)
    chosen = allocate(Profiles().scores(state, test.x, None, 3))
    assert float((chosen == ERRORS[topic].argmin(dim=1)).float().mean()) > 0.98


def test_an_agent_that_arrives_later_is_routed_to_after_few_answers_and_moves_nothing_else():
    """Its 60 answers make a profile; the clusters, and the other agents' profiles, stay as they were."""
    train, other = world(800, 0)[0], world(400, 1)[0]
    before = Samples(x=train.x, costs=train.costs[:, :2])
    old, _ = Profiles().learn(before, Samples(x=other.x, costs=other.costs[:, :2]))
    late = train.costs.clone()
    late[:, 2] = math.inf
    few = other.costs.clone()
    few[60:, 2] = math.inf
    state, _ = Profiles().learn(Samples(x=train.x, costs=late), Samples(x=other.x, costs=few))
    if len(state["centers"]) == len(old["centers"]):
        assert torch.equal(state["centers"], old["centers"])
        assert torch.equal(state["profiles"][:, :2], old["profiles"])
    test, topic = world(2000, 2)
    chosen = allocate(Profiles().scores(state, test.x, None, 3))
    assert float((chosen[topic == 2] == 2).float().mean()) > 0.95  # where it never errs
    assert float((chosen[topic == 3] == 2).float().mean()) < 0.05  # where it nearly always does


def test_an_agent_without_an_answer_is_asked_last():
    train, other = world(200, 0)[0], world(100, 1)[0]
    train.costs[:, 2] = other.costs[:, 2] = math.inf
    state, risk = Profiles().learn(train, other)
    assert math.isfinite(risk)
    scores = Profiles().scores(state, other.x, None, 3)
    assert bool(torch.isfinite(scores).all())
    assert (allocate(scores) != 2).all()


# --- cost and quality apart -------------------------------------------------------------------------------------------


def test_each_kind_of_cost_has_its_own_number_of_neighbours_and_they_add_up():
    """One kind follows the input closely, the other is noise: few neighbours for the one, many for the other."""
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(600, 1, generator=generator)
    sharp = torch.stack([(40 * x[:, 0]).floor() % 2, 1 - (40 * x[:, 0]).floor() % 2], dim=1)
    noise = torch.rand(600, 2, generator=generator)
    parts, query = torch.stack([sharp, 0.5 * noise], dim=2), torch.tensor([0.0, 0.1])
    samples = Samples(x=x, costs=parts.sum(dim=2) + query, parts=parts, unasked=parts.sum(dim=2))
    train, other = samples.take(torch.arange(400)), samples.take(torch.arange(400, 600))
    state, risk = Carrot().learn(train, other)
    few, many = state["neighbours"].tolist()
    assert few <= 5 < 50 <= many
    scores = Carrot().scores(state, other.x, None, 2)
    wanted = sum(
        mean_costs(other.x, train.x, train.parts[:, :, kind].contiguous(), [number])[0]
        for kind, number in enumerate((few, many))
    )
    torch.testing.assert_close(-scores, wanted + query)
    assert risk == pytest.approx(float(deferral_loss(allocate(scores), other.costs).double().mean()))


def test_with_one_kind_of_cost_it_is_the_mean_of_neighbours():
    train, other = world(300, 5)[0], world(150, 6)[0]
    state, _ = Carrot().learn(train, other)
    (number,) = state["neighbours"].tolist()
    found = Carrot().scores(state, other.x, None, 3)
    torch.testing.assert_close(-found, mean_costs(other.x, train.x, train.costs, [number])[0])


# --- artificial answers -----------------------------------------------------------------------------------------------


def test_artificial_answers_fill_in_what_an_expert_would_have_got():
    """An expert who is right where x > 0 answers 40 of 1,000 samples; the rest is filled in as it would have been."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(1000, 2, generator=generator)
    right = (x[:, :1] > 0).float()
    right = torch.cat([right, torch.zeros(1000, 1), torch.ones(1000, 1)], dim=1)  # the third is always right
    costs = torch.cat([torch.ones(1000, 1), 1 - right + torch.tensor([0.1, 0.0, 0.2])], dim=1)
    costs[40:, 1] = math.inf
    costs[:, 2] = math.inf  # has answered nothing
    costs[500:, 3] = math.inf
    given = right.masked_fill(costs[:, 1:].isinf(), 0.0)
    found = with_artificial_answers(Samples(x=x, costs=costs, right=given))
    assert torch.equal(found.costs[:40], costs[:40])  # what is known stays
    assert float((found.right[:, 0] == right[:, 0]).float().mean()) > 0.9
    torch.testing.assert_close(found.costs[:, 1], 1.1 - found.right[:, 0])
    assert bool(found.costs[:, 2].isinf().all())
    torch.testing.assert_close(found.costs[:, 3], torch.full((1000,), 0.2))
    assert torch.equal(found.costs[:, 0], costs[:, 0])
