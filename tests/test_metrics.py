"""The parts of an evaluation: task metrics, constant baselines and intervals, against other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from rejector.baselines import allocation_rates, best_constant, oracle, random_same_shares
from rejector.intervals import paired_interval
from rejector.metrics import auroc, smooth_l1


def test_best_constant_agent_has_the_lowest_mean_and_the_lowest_index_at_a_tie():
    assert best_constant(torch.tensor([[0.5, 0.0, 0.3], [0.5, 0.9, 0.4]])) == 2
    assert best_constant(torch.tensor([[0.5, 0.0, 0.3], [0.5, 0.6, 0.4]])) == 1
    assert best_constant(torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])) == 0


def test_random_allocation_at_the_same_shares_costs_what_drawing_would():
    generator = np.random.default_rng(0)
    costs, allocation = generator.random((50, 3)), torch.tensor([0] * 10 + [2] * 40)
    rates = allocation_rates(allocation, 3)
    assert rates.tolist() == [0.2, 0.0, 0.8]
    expected = random_same_shares(rates, torch.from_numpy(costs)).numpy()
    draws = generator.choice(3, size=(20_000, 50), p=[0.2, 0.0, 0.8])
    np.testing.assert_allclose(costs[np.arange(50), draws].mean(axis=0), expected, atol=0.02)
    np.testing.assert_array_equal(oracle(torch.from_numpy(costs)).numpy(), costs.min(axis=1))


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_auroc_is_that_of_scikit_learn_with_ties(levels):
    generator = np.random.default_rng(levels)
    target = generator.integers(0, 2, 500)
    score = np.round(generator.random(500) * 0.7 + 0.3 * target, 12) * levels // 1 / levels
    assert auroc(target, score) == pytest.approx(roc_auc_score(target, score), abs=1e-12)
    assert auroc(target, np.zeros(500)) == 0.5


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_smooth_l1_is_that_of_torch_and_clamped(beta):
    error = np.random.default_rng(0).normal(size=1000) * 3
    zero = torch.zeros(1000, dtype=torch.float64)
    expected = torch.nn.functional.smooth_l1_loss(torch.from_numpy(error), zero, beta=beta, reduction="none").numpy()
    np.testing.assert_allclose(smooth_l1(error, beta, None), expected, rtol=1e-12)
    np.testing.assert_allclose(smooth_l1(error, beta, 2.0), np.minimum(expected, 2.0), rtol=1e-12)


def test_intervals_hold_the_true_mean_about_95_times_in_100():
    generator = np.random.default_rng(0)
    intervals = [paired_interval(0.3 + generator.normal(size=100)) for _ in range(200)]
    assert 0.90 <= np.mean([interval.low <= 0.3 <= interval.high for interval in intervals]) <= 0.99


def test_bootstrap_and_normal_interval_agree_and_stand_at_the_mean():
    differences = np.random.default_rng(1).exponential(size=2000) - 0.5
    found = paired_interval(differences)
    half = 1.96 * differences.std(ddof=1) / 2000**0.5
    assert found.value == pytest.approx(differences.mean(), abs=1e-12)
    assert found.low == pytest.approx(differences.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(differences.mean() + half, abs=0.1 * half)
    assert paired_interval(differences) == found
    many = np.random.default_rng(2).normal(size=100_000)
    wide = paired_interval(many)
    assert (wide.high - wide.low) / 2 == pytest.approx(1.96 * many.std(ddof=1) / 100_000**0.5, rel=1e-3)
    assert wide.value == pytest.approx(many.mean(), abs=1e-12)
