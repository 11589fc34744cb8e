"""Where each method's loss has its minimum, on distributions whose minimum is known; and its gradients."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from l2d.rejector import losses
from l2d.rejector.literature import factors, on_agents, one_stage
from l2d.rejector.literature.samples import Samples

K, J = 3, 2
LOSSES = {
    **{name: rule.loss for name, rule in one_stage.RULES.items()},
    "cost_regression": on_agents.cost_regression_loss,
    "expert_right": on_agents.expert_right_loss,
    "post_hoc": on_agents.post_hoc_loss,
    "irt": factors.item_response_loss,
}
WIDTH = {"mixture_of_experts": K + J + 1, "cost_regression": J + 1, "expert_right": J, "post_hoc": J + 1, "irt": J + 1}


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_differences_where_experts_are_missing_too(name, alpha):
    generator = torch.Generator().manual_seed(5)
    outputs = torch.randn(8, WIDTH.get(name, K + J), generator=generator, dtype=torch.float64, requires_grad=True)
    right = (torch.rand(8, J, generator=generator) < 0.5).double()
    costs = torch.cat([torch.rand(8, 1, generator=generator), 1 - right + 0.1], dim=1).double()
    gone = torch.rand(8, J, generator=generator) < 0.4
    gone[0], gone[1] = True, False  # none is there, all are
    costs[:, 1:][gone], right[gone] = math.inf, 0.0
    target = torch.randint(K, (8,), generator=generator)
    samples = Samples(x=outputs.detach(), costs=costs, target=target, right=right, unasked=costs.clamp(min=0.1) - 0.1)
    assert torch.autograd.gradcheck(lambda values: LOSSES[name](values, samples, alpha), (outputs,))


# --- closed forms of the minimum: the mean gradient is 0 there --------------------------------------------------------


def world(seed: int = 0) -> tuple[np.ndarray, Samples]:
    """The chance of every class with every pattern of right and wrong experts, dependent on each other."""
    chance = np.random.default_rng(seed).dirichlet(np.full(K * 2**J, 0.7)).reshape(K, *(2,) * J)
    rows = list(product(range(K), *[range(2)] * J))
    target, right = torch.tensor([row[0] for row in rows]), torch.tensor([row[1:] for row in rows]).double()
    costs = torch.cat([torch.full((len(rows), 1), 0.3), 1 - right + torch.tensor([0.2, 0.45])], dim=1).double()
    return np.array([chance[row] for row in rows]), Samples(x=right, costs=costs, target=target, right=right)


def mean_gradient(name: str, outputs: np.ndarray, chance: np.ndarray, samples: Samples, alpha: float = 1.0) -> Tensor:
    """Of the expected loss, at outputs that all samples share."""
    values = torch.tensor(outputs, dtype=torch.float64, requires_grad=True)
    loss = LOSSES[name](values.expand(len(chance), -1), samples, alpha)
    (torch.from_numpy(chance) @ loss).backward()
    assert values.grad is not None
    return values.grad


def moments(chance: np.ndarray, samples: Samples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P(y), P(expert right) and expected costs."""
    classes = np.array([chance[samples.known_target.numpy() == k].sum() for k in range(K)])
    return classes, chance @ samples.known_right.numpy(), chance @ samples.costs.numpy()


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(p / (1 - p))


@pytest.mark.parametrize("seed", range(3))
def test_each_loss_has_its_minimum_where_the_closed_form_says(seed):
    chance, samples = world(seed)
    classes, right, costs = moments(chance, samples)
    found = {
        "one_vs_all": np.concatenate([logit(classes), logit(right)]),
        "expert_right": logit(right),
        "cost_regression": -costs,
        # surrogate at nu = 1: shares in proportion to what all others cost
        "post_hoc": np.log(costs.sum() - costs),
    }
    for name, outputs in found.items():
        gradient = mean_gradient(name, outputs, chance, samples)
        assert gradient.abs().max() < 1e-9, name
        assert mean_gradient(name, outputs + 0.1 * np.arange(len(outputs)), chance, samples).abs().max() > 1e-3


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_the_cost_sensitive_cross_entropy_has_shares_in_proportion_to_expected_savings(alpha):
    """``s_i = E[w_i] / sum E[w]``, ``w_i = max c - c_i``, the classes' times alpha where an expert is right."""
    chance, samples = world()
    weights = np.zeros(K + J)
    for p, y, right, cost in zip(chance, samples.known_target, samples.known_right, samples.costs[:, 1:], strict=True):
        of_all = np.concatenate([(np.arange(K) != int(y)).astype(float), cost.numpy()])
        saved = of_all.max() - of_all
        saved[:K] *= alpha if bool(right.any()) else 1.0
        weights += p * saved
    assert mean_gradient("mozannar_sontag", np.log(weights), chance, samples, alpha).abs().max() < 1e-7


def best_shares(chance: np.ndarray, samples: Samples, num_classes: int = K) -> np.ndarray:
    """Shares that minimise the expected realizable loss: the likelihood of a mixture, climbed by EM in plain numpy."""
    right = samples.known_right.numpy()
    sets = np.hstack([np.eye(num_classes)[samples.known_target.numpy()], right])
    shares = np.full(sets.shape[1], 1 / sets.shape[1])
    for _ in range(5_000):
        shares = (chance[:, None] * sets * shares / (sets @ shares)[:, None]).sum(axis=0)
    return shares


@pytest.mark.parametrize("seed", range(3))
def test_the_realizable_surrogate_is_the_likelihood_of_a_mixture(seed):
    chance, samples = world(seed)
    shares = best_shares(chance, samples)
    assert mean_gradient("realizable", np.log(np.maximum(shares, 1e-12)), chance, samples).abs().max() < 1e-4


def test_the_realizable_surrogate_keeps_what_an_expert_of_more_knowledge_would_get_right_more_often():
    """Classes of chances 0.55 and 0.45, and an expert who is right on 0.6 of either: deferring errs less, it keeps.

    Consistent it is for experts whose answer follows from the input. This one sees more than the input.
    """
    rows = list(product(range(2), range(2)))
    chance = np.array([(0.55, 0.45)[y] * (0.6 if right else 0.4) for y, right in rows])
    target, right = torch.tensor([y for y, _ in rows]), torch.tensor([[right] for _, right in rows]).double()
    samples = Samples(x=right, costs=torch.cat([right, 1 - right], dim=1), target=target, right=right)
    shares = best_shares(chance, samples, num_classes=2)
    assert shares.tolist() == pytest.approx([0.4490, 0.3529, 0.1981], abs=1e-4)
    assert mean_gradient("realizable", np.log(shares), chance, samples).abs().max() < 1e-6
    scores = one_stage.RULES["realizable"].scores(torch.from_numpy(np.log(shares))[None], None, torch.zeros(2))
    assert scores.argmax() == 0


def test_post_hoc_with_one_expert_is_the_papers_ratio_of_costs():
    """``sigmoid(r) = E[c_0] / E[c_0 + c_1]``: defer as often as the model's share of the costs."""
    chance, samples = world()
    two = Samples(x=samples.x, costs=samples.costs[:, :2])
    own, expert = (chance @ two.costs.numpy()).tolist()
    outputs = np.array([0.0, math.log(own / expert)])
    assert mean_gradient("post_hoc", outputs, chance, two).abs().max() < 1e-12


def test_cost_regression_is_the_regression_loss_of_training():
    outputs = torch.randn(20, J + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    costs = torch.rand(20, J + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted, _ = losses.regression(outputs, costs)
    torch.testing.assert_close(on_agents.cost_regression_loss(outputs, Samples(x=outputs, costs=costs), 1.0), wanted)


def test_where_no_answer_is_missing_nothing_is_imputed():
    _, samples = world()
    found = on_agents.with_artificial_answers(samples)
    assert torch.equal(found.costs, samples.costs)
    assert torch.equal(found.known_right, samples.known_right)
