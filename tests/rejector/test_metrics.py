"""The parts of an evaluation: task metrics, constant baselines and intervals, against other libraries."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, brier_score_loss, roc_auc_score

from l2d.rejector.evaluation.baselines import allocation_rates, best_constant, oracle, random_same_shares
from l2d.rejector.evaluation.metrics import (
    _of_chosen,
    area_under_precision,
    auroc,
    balanced_accuracy,
    sample_metrics,
    smooth_l1,
    task_metrics,
)
from l2d.rejector.rows.table import CostTable


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


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_average_precision_is_that_of_scikit_learn_with_ties(levels):
    generator = np.random.default_rng(levels)
    target = (generator.random(400) < 0.2).astype(int)
    score = np.floor((generator.random(400) * 0.7 + 0.3 * target) * levels) / levels
    assert area_under_precision(target, score) == pytest.approx(average_precision_score(target, score), abs=1e-12)
    assert area_under_precision(target, np.zeros(400)) == pytest.approx(target.mean())


@pytest.mark.parametrize("classes", [2, 4])
def test_balanced_accuracy_is_that_of_scikit_learn(classes):
    generator = np.random.default_rng(classes)
    target = generator.integers(0, classes, 300)
    answer = np.where(generator.random(300) < 0.6, target, generator.integers(0, classes, 300))
    assert balanced_accuracy(target, answer) == pytest.approx(balanced_accuracy_score(target, answer), abs=1e-12)


def table_of(generator: np.random.Generator, classes: int, rows: int = 200) -> CostTable:
    """Two agents with probabilities and values."""
    target = generator.integers(0, classes, rows)
    predictions = {}
    for name in ("one", "two"):
        chances = generator.dirichlet(np.ones(classes), rows)
        chances[np.arange(rows), target] += generator.random(rows)
        chances /= chances.sum(axis=1, keepdims=True)
        predictions[name] = {
            "pred_prob": chances,
            "pred_cla": chances.argmax(axis=1),
            "pred_reg": generator.normal(size=rows),
        }
    return CostTable(
        split="test",
        ids=[f"s{row}" for row in range(rows)],
        features=torch.zeros(rows, 1),
        raw=torch.zeros(rows, 2, 2),
        targets={"target_cla": target, "target_reg": generator.normal(size=rows)},
        predictions=predictions,
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_of_a_system_are_those_of_the_mixed_answers(classes):
    generator = np.random.default_rng(classes)
    table = table_of(generator, classes)
    chosen, costs = generator.integers(0, 2, 200), {"reg": {"kind": "smooth_l1", "beta": 1.0, "clamp": 2.0}}
    found = task_metrics(table, chosen, ["one", "two"], costs)
    target = table.targets["target_cla"]
    chances = np.array(
        [table.predictions["one" if c == 0 else "two"]["pred_prob"][row] for row, c in enumerate(chosen)]
    )
    assert found["accuracy"] == pytest.approx((chances.argmax(axis=1) == target).mean())
    if classes == 2:
        assert found["auroc"] == pytest.approx(roc_auc_score(target, chances[:, 1]))
        assert found["average_precision"] == pytest.approx(average_precision_score(target, chances[:, 1]))
        assert found["brier"] == pytest.approx(brier_score_loss(target, chances[:, 1]))
    else:
        expected = roc_auc_score(target, chances, multi_class="ovr", average="macro")
        assert found["auroc"] == pytest.approx(expected)
        assert "average_precision" not in found
    by_sample = sample_metrics(table, chosen, ["one", "two"], costs)
    assert set(by_sample) == {"accuracy", "brier", "smooth_l1", "mean_absolute_error"}
    assert {name: values.mean() for name, values in by_sample.items()} == pytest.approx(
        {name: found[name] for name in by_sample}
    )


@pytest.mark.parametrize("agents", [[0, 1, 2], [1]])
def test_what_is_said_is_that_of_the_agent_that_is_asked_about_each_row(agents):
    generator, names = np.random.default_rng(0), ["a", "b", "c"]
    said = {name: {"pred_prob": generator.random((50, 4), np.float32)} for name in names}
    rows = np.flatnonzero(generator.random(50) < 0.7)
    chosen = generator.choice(agents, len(rows))
    table = SimpleNamespace(predictions=said)
    everything = np.stack([said[name]["pred_prob"] for name in names], axis=1)
    np.testing.assert_array_equal(_of_chosen("pred_prob", table, rows, chosen, names), everything[rows, chosen])
