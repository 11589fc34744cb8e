"""Pareto sets, hulls and risk-coverage curves against their definitions, by brute force on random tables."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from l2d.rejector.evaluation.curves import (
    convex_hull,
    deferral_curve,
    mean_quality,
    pareto_set,
    quality_at,
    risk_coverage,
)


def points(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to 12 points on a coarse grid, so that ties of either kind are common."""
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 13))
    return generator.integers(0, 6, size) / 2, generator.integers(-3, 4, size) / 4


@pytest.mark.parametrize("seed", range(40))
def test_the_pareto_set_is_what_nothing_dominates(seed):
    costs, qualities = points(seed)

    def dominated(i: int) -> bool:
        return any(
            c <= costs[i] and q >= qualities[i] and (c < costs[i] or q > qualities[i])
            for c, q in zip(costs, qualities, strict=True)
        )

    found = pareto_set(costs, qualities)
    assert sorted(found) == [i for i in range(len(costs)) if not dominated(i)]
    assert (np.diff(costs[found]) >= 0).all()


@pytest.mark.parametrize("seed", range(40))
def test_the_hull_is_the_best_mixture_within_each_budget(seed):
    costs, qualities = points(seed)
    hull = convex_hull(costs, qualities)
    assert (np.diff(hull, axis=0) > 0).all()
    slopes = np.diff(hull[:, 1]) / np.diff(hull[:, 0])
    assert (np.diff(slopes) < 0).all()  # every vertex is needed
    for budget in np.linspace(costs.min(), costs.max() + 1, 7):
        # weights of the points, summing to 1, that cost at most the budget
        best = linprog(-qualities, A_ub=[costs], b_ub=[budget], A_eq=[np.ones(len(costs))], b_eq=[1])
        assert quality_at(hull, budget) == pytest.approx(-best.fun, abs=1e-9)
    assert np.isnan(quality_at(hull, costs.min() - 0.1))


def test_mean_quality_is_the_area_over_the_range():
    hull = convex_hull(np.array([0.0, 1.0, 3.0]), np.array([0.0, 0.6, 0.8]))
    grid = np.linspace(0.5, 4.0, 350_001)
    assert mean_quality(hull, 0.5, 4.0) == pytest.approx(quality_at(hull, grid).mean(), abs=1e-5)
    assert mean_quality(hull, 3.0, 5.0) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="begins at a cost of 0"):
        mean_quality(hull, -1.0, 1.0)


def expected_curve(key: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean over every order that the keys allow of the sums of the first 0, 1, ... n values."""
    sums = []
    for order in itertools.permutations(range(len(key))):
        if all(key[i] >= key[j] for i, j in itertools.pairwise(order)):
            sums.append(np.concatenate([[0.0], np.cumsum(values[list(order)])]))
    return np.mean(sums, axis=0)


@pytest.mark.parametrize("seed", range(25))
def test_risk_coverage_is_the_mean_over_all_orders_of_ties(seed):
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 7))
    confidence, losses = generator.integers(0, 3, size) / 2, generator.integers(0, 4, size) / 3
    curve = risk_coverage(confidence, losses)
    answered = np.arange(1, size + 1)
    risk = expected_curve(confidence, losses)[1:] / answered
    np.testing.assert_allclose(curve.coverage, answered / size)
    np.testing.assert_allclose(curve.risk, risk, atol=1e-12)
    assert curve.aurc == pytest.approx(risk.mean())
    best = min(
        (np.cumsum(losses[list(order)]) / answered).mean() for order in itertools.permutations(range(size))
    )  # the best order of all
    assert curve.excess_aurc == pytest.approx(curve.aurc - best, abs=1e-12)
    assert risk_coverage(-losses, losses).excess_aurc == pytest.approx(0.0, abs=1e-12)


def test_risk_coverage_does_not_see_the_order_of_rows_and_no_confidence_is_a_flat_curve():
    generator = np.random.default_rng(0)
    confidence, losses = generator.integers(0, 20, 500) / 20, generator.random(500)
    order = generator.permutation(500)
    here, there = risk_coverage(confidence, losses), risk_coverage(confidence[order], losses[order])
    np.testing.assert_allclose(here.risk, there.risk)
    np.testing.assert_allclose(risk_coverage(np.zeros(500), losses).risk, losses.mean())
    coverage, risk = here.thinned(50)
    assert len(coverage) == 50
    assert (coverage[0], coverage[-1], risk[-1]) == (1 / 500, 1.0, here.risk[-1])
    with pytest.raises(ValueError, match="numbers"):
        risk_coverage(np.array([np.nan]), np.array([1.0]))
    with pytest.raises(ValueError, match="finite"):
        risk_coverage(np.array([1.0]), np.array([np.inf]))


@pytest.mark.parametrize("seed", range(25))
def test_the_deferral_curve_is_the_system_at_each_coverage(seed):
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 7))
    margin = generator.integers(-1, 2, size) / 2
    kept, deferred = generator.integers(0, 4, size) / 3, generator.integers(0, 4, size) / 3
    curve = deferral_curve(margin, kept, deferred)
    np.testing.assert_allclose(curve.coverage, np.arange(size + 1) / size)
    changes = expected_curve(margin, kept - deferred)
    np.testing.assert_allclose(curve.risk, (deferred.sum() + changes) / size, atol=1e-12)
    assert curve.aurc == pytest.approx(curve.risk.mean())
    best = [
        deferral_curve(np.array(order, dtype=float), kept, deferred).aurc
        for order in itertools.permutations(range(size))
    ]
    assert curve.excess_aurc == pytest.approx(curve.aurc - min(best), abs=1e-12)


def test_the_deferral_curve_leaves_out_what_nobody_could_answer():
    margin = np.array([np.inf, 0.5, -0.5, -np.inf])
    kept, deferred = np.array([1.0, 2.0, 3.0, np.inf]), np.array([np.inf, 1.0, 5.0, 7.0])
    curve = deferral_curve(margin, kept, deferred)
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(curve.risk, [(1 + 1 + 5 + 7) / 4, (1 + 2 + 5 + 7) / 4, (1 + 2 + 3 + 7) / 4])
    with pytest.raises(ValueError, match="lowest margin"):
        deferral_curve(-margin, kept, deferred)
