"""Raw costs: every kind against loops written straight from its definition, torch and scikit-learn."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import brier_score_loss

from l2d.cache_builder.answers import Answers
from l2d.cache_builder.costs import ClassificationCost, CostConfig, RegressionCost

CLASSES = 4


def some_answers(rows: int = 200, classes: int = CLASSES, seed: int = 0):
    generator = np.random.default_rng(seed)
    prob = generator.dirichlet(np.ones(classes), size=rows)
    return prob, generator.integers(classes, size=rows).astype(np.int32)


def loop_zero_one(prob, target):
    """1 unless the first of the largest probabilities is the target's."""
    costs = []
    for row, truth in zip(prob.tolist(), target.tolist(), strict=True):
        costs.append(0.0 if row.index(max(row)) == truth else 1.0)
    return costs


def loop_brier(prob, target):
    costs = []
    for row, truth in zip(prob.tolist(), target.tolist(), strict=True):
        costs.append(0.5 * sum((p - (1.0 if k == truth else 0.0)) ** 2 for k, p in enumerate(row)))
    return costs


def loop_absolute(prob, target):
    return [1.0 - row[truth] for row, truth in zip(prob.tolist(), target.tolist(), strict=True)]


def loop_regression(kind, beta, clamp, value, target):
    costs = []
    for v, t in zip(value.tolist(), target.tolist(), strict=True):
        error = abs(v - t)
        if kind == "absolute":
            cost = error
        elif kind == "squared":
            cost = error * error
        elif error < beta:
            cost = error * error / (2 * beta)
        else:
            cost = error - beta / 2
        costs.append(cost if clamp is None else min(cost, clamp))
    return costs


@pytest.mark.parametrize(
    ("kind", "loop"), [("zero_one", loop_zero_one), ("brier", loop_brier), ("absolute", loop_absolute)]
)
def test_classification_cost_is_its_definition(kind, loop):
    prob, target = some_answers()
    costs = ClassificationCost(kind=kind).compute(Answers(prob=prob), target, CLASSES)
    assert costs.dtype == np.float32
    np.testing.assert_allclose(costs, loop(prob, target), rtol=0, atol=1e-7)
    assert len(set(np.round(costs, 4))) > 1


def test_two_class_brier_is_the_mean_of_scikit_learns():
    prob, target = some_answers(classes=2, seed=1)
    costs = ClassificationCost(kind="brier").compute(Answers(prob=prob), target, 2)
    assert costs.mean() == pytest.approx(brier_score_loss(target, prob[:, 1]), abs=1e-6)
    np.testing.assert_allclose(costs, (prob[:, 1] - target) ** 2, atol=1e-6)


def test_two_class_absolute_is_the_distance_of_the_probability():
    prob, target = some_answers(classes=2, seed=2)
    costs = ClassificationCost(kind="absolute").compute(Answers(prob=prob), target, 2)
    np.testing.assert_allclose(costs, np.abs(prob[:, 1] - target), atol=1e-6)


@pytest.mark.parametrize("kind", ["zero_one", "brier", "absolute"])
def test_a_hard_answer_costs_what_a_sure_one_does(kind):
    _, target = some_answers()
    hard = np.random.default_rng(3).integers(CLASSES, size=len(target)).astype(np.int32)
    sure = np.array([[1.0 if k == answer else 0.0 for k in range(CLASSES)] for answer in hard])
    cost = ClassificationCost(kind=kind)
    np.testing.assert_array_equal(
        cost.compute(Answers(cla=hard), target, CLASSES), cost.compute(Answers(prob=sure), target, CLASSES)
    )
    np.testing.assert_array_equal(cost.compute(Answers(cla=hard), target, CLASSES), (hard != target).astype(float))


def test_zero_one_takes_the_stated_class_over_the_probabilities():
    answers = Answers(cla=np.array([1]), prob=np.array([[0.9, 0.1]]))
    assert ClassificationCost(kind="zero_one").compute(answers, np.array([1]), 2).tolist() == [0.0]


def test_a_tie_goes_to_the_lowest_class():
    answers = Answers(prob=np.array([[0.5, 0.5], [0.5, 0.5]]))
    assert ClassificationCost().compute(answers, np.array([0, 1]), 2).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("clamp", [None, 0.4, 5.0])
@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("kind", ["smooth_l1", "absolute", "squared"])
def test_regression_cost_is_its_definition(kind, beta, clamp):
    generator = np.random.default_rng(4)
    target = generator.normal(size=300).astype(np.float32)
    value = (target + 3 * generator.normal(size=300)).astype(np.float32)
    value[0], value[1] = target[0], target[1] + np.float32(beta)  # no error, and the seam
    costs = RegressionCost(kind=kind, beta=beta, clamp=clamp).compute(Answers(reg=value), target)
    assert costs.dtype == np.float32
    np.testing.assert_allclose(costs, loop_regression(kind, beta, clamp, value, target), rtol=1e-6, atol=1e-7)
    if clamp is not None:
        assert costs.max() == np.float32(clamp)  # the data reach it


@pytest.mark.parametrize("beta", [0.05, 1.0, 3.0])
def test_smooth_l1_is_torchs(beta):
    generator = np.random.default_rng(5)
    value, target = generator.normal(scale=2, size=(2, 500)).astype(np.float32)
    ours = RegressionCost(kind="smooth_l1", beta=beta).compute(Answers(reg=value), target)
    torchs = torch.nn.functional.smooth_l1_loss(
        torch.from_numpy(value), torch.from_numpy(target), beta=beta, reduction="none"
    )
    np.testing.assert_allclose(ours, torchs.numpy(), rtol=2e-6, atol=1e-7)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 6), st.integers(1, 20), st.integers(0, 2**32 - 1), st.floats(0.01, 10))
def test_classification_costs_lie_in_zero_to_one(classes, rows, seed, sharpness):
    generator = np.random.default_rng(seed)
    scores = sharpness * generator.normal(size=(rows, classes))
    prob = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    target = generator.integers(classes, size=rows)
    found = {}
    for kind in ("zero_one", "brier", "absolute"):
        found[kind] = ClassificationCost(kind=kind).compute(Answers(prob=prob), target, classes)
        assert ((found[kind] >= 0) & (found[kind] <= 1 + 1e-6)).all()
    assert (found["brier"] <= found["absolute"] + 1e-6).all()  # half a squared distance never exceeds 1 - p_true
    np.testing.assert_array_equal(found["zero_one"] == 0, prob.argmax(axis=1) == target)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 8), elements=st.floats(-1e3, 1e3, width=32)),
    st.floats(0.01, 100),
    st.floats(0.01, 100),
    st.sampled_from(["smooth_l1", "absolute", "squared"]),
)
def test_regression_costs_lie_in_zero_to_clamp_and_grow_with_the_error(pair, beta, clamp, kind):
    value, target = pair
    costs = RegressionCost(kind=kind, beta=beta, clamp=clamp).compute(Answers(reg=value), target)
    assert (costs >= 0).all()
    assert (costs <= np.float32(clamp)).all()
    order = np.argsort(np.abs(value.astype(np.float64) - target), kind="stable")
    assert (np.diff(costs[order]) >= 0).all()
    free = RegressionCost(kind=kind, beta=beta).compute(Answers(reg=value), target)
    np.testing.assert_allclose(costs, [min(cost, clamp) for cost in free.tolist()], rtol=1e-6)
    swapped = RegressionCost(kind=kind, beta=beta, clamp=clamp).compute(Answers(reg=target), value)
    np.testing.assert_array_equal(costs, swapped)


def test_smooth_l1_is_the_absolute_error_less_half_beta_far_away():
    far = RegressionCost(kind="smooth_l1", beta=2.0).compute(Answers(reg=np.float32([100])), np.float32([0]))
    assert math.isclose(far[0], 99.0)


def test_a_cost_table_costs_the_tasks_it_names_and_no_other():
    prob, target = some_answers()
    value = target.astype(np.float32)
    answers = Answers(prob=prob, reg=value)
    truth = SimpleNamespace(target_cla=target, target_reg=value + 1)
    both = CostConfig(cla=ClassificationCost(), reg=RegressionCost()).compute(answers, truth, CLASSES)
    assert list(both) == ["cla", "reg"]
    np.testing.assert_allclose(both["reg"], 0.5)
    np.testing.assert_array_equal(both["cla"], loop_zero_one(prob, target))
    no_class = SimpleNamespace(target_cla=None, target_reg=value)
    assert list(CostConfig(reg=RegressionCost()).compute(answers, no_class, 0)) == ["reg"]
    assert CostConfig(cla=ClassificationCost()).tasks == ["cla"]


def test_squared_errors_of_stored_floats_are_taken_in_double_precision():
    value, target = np.float32([16777216.0]), np.float32([16777215.0])  # 2^24: their squares differ beyond a float
    costs = RegressionCost(kind="squared").compute(Answers(reg=value), target)
    assert costs.tolist() == [1.0]
