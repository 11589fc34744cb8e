"""PiCCE: its loss by hand, its minimum by numbers, and what further experts do to the classifier."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from l2d.rejector.literature.one_stage import mozannar_sontag_loss, picce_loss
from l2d.rejector.literature.samples import Samples


def samples_of(target: torch.Tensor, right: torch.Tensor) -> Samples:
    costs = torch.cat([torch.zeros(len(target), 1, dtype=right.dtype), 1 - right], dim=1)
    return Samples(x=torch.zeros(len(target), 1), costs=costs, target=target, right=right)


def drawn(rows: int, experts: int) -> tuple[torch.Tensor, Samples]:
    generator = torch.Generator().manual_seed(7)
    outputs = torch.randn(rows, 3 + experts, generator=generator, dtype=torch.float64)
    right = (torch.rand(rows, experts, generator=generator) < 0.5).double()
    return outputs, samples_of(torch.randint(3, (rows,), generator=generator), right)


def minimised(loss, chances: torch.Tensor, joint: dict[tuple[int, ...], float]) -> torch.Tensor:
    """Softmax of the outputs of least expected loss, where y has these chances and which experts are right is joint."""
    cases = [(y, right, float(p) * q) for y, p in enumerate(chances) for right, q in joint.items()]
    target = torch.tensor([y for y, _, _ in cases])
    right = torch.tensor([list(map(float, right)) for _, right, _ in cases], dtype=torch.float64)
    weight, samples = torch.tensor([w for *_, w in cases], dtype=torch.float64), samples_of(target, right)
    experts = right.shape[1]

    def descended(first: int) -> tuple[float, torch.Tensor]:
        outputs = torch.zeros(len(chances) + experts, dtype=torch.float64)
        outputs[len(chances) + first] = 0.1
        outputs.requires_grad_(True)
        optimizer = torch.optim.LBFGS([outputs], max_iter=60, line_search_fn="strong_wolfe")

        def value() -> torch.Tensor:
            optimizer.zero_grad()
            found = (weight * loss(outputs.expand(len(cases), -1), samples, 1.0)).sum()
            found.backward()
            return found

        optimizer.step(value)
        return float(value().detach()), outputs.detach().softmax(dim=0)

    # it is not convex: start once with each expert ahead
    return min((descended(first) for first in range(experts)), key=lambda pair: pair[0])[1]


def test_the_loss_is_the_papers_sum_and_its_gradient_that_of_differences():
    outputs, samples = drawn(40, 3)
    found = picce_loss(outputs, samples, 1.0)
    for row in range(40):
        g, y = outputs[row].tolist(), int(samples.target[row])
        total = math.log(sum(map(math.exp, g)))
        among = [g[3 + j] for j in range(3) if samples.right[row, j]]
        assert float(found[row]) == pytest.approx(total - g[y] + (total - max(among) if among else 0.0))
    leaf = outputs.clone().requires_grad_(True)
    picce_loss(leaf, samples, 1.0).sum().backward()
    step = 1e-6
    for column in range(outputs.shape[1]):
        moved = torch.zeros_like(outputs)
        moved[:, column] = step
        slope = (picce_loss(outputs + moved, samples, 1.0) - picce_loss(outputs - moved, samples, 1.0)) / (2 * step)
        torch.testing.assert_close(leaf.grad[:, column], slope, atol=1e-6, rtol=1e-6)


def test_with_one_expert_it_is_the_cross_entropy_of_mozannar_and_sontag():
    outputs, samples = drawn(30, 1)
    torch.testing.assert_close(picce_loss(outputs, samples, 1.0), mozannar_sontag_loss(outputs, samples, 1.0))


def test_an_unavailable_expert_has_no_term_and_no_share():
    outputs, samples = drawn(30, 2)
    samples.costs[:, 2], samples.right[:, 1] = math.inf, 0.0
    alone = samples_of(samples.target, samples.right[:, :1])
    torch.testing.assert_close(picce_loss(outputs, samples, 1.0), picce_loss(outputs[:, :-1], alone, 1.0))


def test_its_minimum_recovers_class_probabilities_and_the_best_experts_accuracy():
    """Accuracies 3/4 and 1/2, some expert right with 7/8: 2/5 as the paper's proof has it (its theorem prints 7/20)."""
    joint = {(0, 0): 1 / 8, (0, 1): 1 / 8, (1, 0): 3 / 8, (1, 1): 3 / 8}
    chances = torch.tensor([0.6, 0.4])
    found = minimised(picce_loss, chances, joint)
    assert float(found[2]) == pytest.approx(2 / 5, abs=1e-3)
    assert found[:2].tolist() == pytest.approx([p / (1 + 7 / 8) for p in (0.6, 0.4)], abs=1e-3)


def test_further_experts_flatten_the_classifier_of_the_cross_entropy_and_not_of_this_one():
    """The paper's mechanism: the classes share 1 / (1 + sum of accuracies) there, at least 1/2 here."""
    chances, shares = torch.tensor([0.8, 0.2]), {}
    for experts in (1, 2, 4):
        joint = {
            right: math.prod(0.75 if good else 0.25 for good in right)
            for right in itertools.product((0, 1), repeat=experts)
        }
        for name, loss in (("sum", mozannar_sontag_loss), ("picked", picce_loss)):
            shares[name, experts] = float(minimised(loss, chances, joint)[:2].sum())
        assert shares["sum", experts] == pytest.approx(1 / (1 + 0.75 * experts), abs=2e-3)
        assert shares["picked", experts] == pytest.approx(1 / (2 - 0.25**experts), abs=2e-3)
    assert shares["picked", 4] > 2 * shares["sum", 4]
