"""Costs told from scores: against the losses' own minimisers, and on scores with a known relation to costs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from l2d.rejector.losses import LOSSES, check_nu
from l2d.rejector.policies.cost_prediction import (
    CostPredictor,
    choose_predictor,
    contrasts,
    implied_costs,
    isotonic,
)


@pytest.mark.parametrize("agents", [2, 3, 5])
@pytest.mark.parametrize("nu", [0.0, 0.5, 1.0, 1.5])
def test_scores_that_minimise_the_surrogate_give_the_costs_back_up_to_a_factor(nu, agents):
    """Softmax in proportion to tau^(1/(2-nu)) is checked to have no gradient, then inverted."""
    costs = np.random.default_rng(agents).random((50, agents)) + 0.01
    tau = costs.sum(axis=1, keepdims=True) - costs
    scores = np.log(tau) / (2 - nu) + np.random.default_rng(1).normal(size=(50, 1))  # softmax knows no common shift
    _, gradient = LOSSES["surrogate"](torch.tensor(scores), torch.tensor(costs), check_nu(nu, torch.float64), -1)
    np.testing.assert_allclose(gradient, 0, atol=1e-10)
    implied = implied_costs(scores, np.ones(costs.shape, bool), "surrogate", nu)
    np.testing.assert_allclose(implied * costs.sum(axis=1, keepdims=True), costs, atol=1e-12)


@pytest.mark.parametrize("digits", [None, 1, 0])
def test_isotonic_regression_has_the_bits_of_sklearns(digits):
    from sklearn.isotonic import IsotonicRegression

    random = np.random.default_rng(0)
    for size in (1, 2, 7, 100, 400):
        at = random.normal(size=size).astype(np.float32).astype(np.float64)
        at = at if digits is None else np.round(at, digits)
        for values in (random.random(size), random.random(size) < 0.4, at + random.normal(size=size)):
            expected = IsotonicRegression().fit_transform(at, values.astype(np.float64))
            assert isotonic(at, values.astype(np.float64)).tobytes() == expected.tobytes()


def test_an_agent_that_is_away_leaves_the_others_costs_as_they_are_among_themselves():
    costs = np.array([[0.5, 0.2, 0.9], [0.4, 0.3, 0.1]])
    there = np.array([[True, True, False], [True, False, True]])
    among = np.where(there, costs, 0).sum(axis=1, keepdims=True)
    scores = np.log(np.where(there, among - costs, 1.0))  # those of who is away mean nothing
    implied = implied_costs(scores, there, "surrogate", 1.0)
    np.testing.assert_allclose(implied * among, np.where(there, costs, np.inf))
    assert (implied_costs(scores, there, "regression", 1.0)[~there] == np.inf).all()
    assert (implied_costs(scores, there, "one_vs_all", 1.0)[~there] == np.inf).all()


@pytest.mark.parametrize("loss", ["regression", "one_vs_all"])
def test_scores_that_minimise_the_other_losses_give_the_costs_back(loss):
    costs = np.random.default_rng(0).random((40, 3)) * 0.9 + 0.05
    most = costs.max(axis=1, keepdims=True)
    scores = -costs
    if loss == "one_vs_all":
        spared = np.maximum(1 - costs / most, 1e-12)
        scores = np.log(spared / (1 - spared))
    implied = implied_costs(scores, np.ones(costs.shape, bool), loss, 1.0)
    np.testing.assert_allclose(implied * (1 if loss == "regression" else most), costs, atol=1e-9)


def test_vertices_keep_the_order():
    scores = np.random.default_rng(0).normal(size=(30, 4))
    for nu in (2.0, 3.0):
        implied = implied_costs(scores, np.ones(scores.shape, bool), "surrogate", nu)
        np.testing.assert_array_equal(implied.argsort(axis=1), (-scores).argsort(axis=1))


def noisy(rows: int, shape: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Regression scores, and 0-1 costs whose probability is a known function of the cost that the score stands for."""
    generator = np.random.default_rng(seed)
    believed = generator.random((rows, 3))
    truth = {"as believed": believed, "line": 0.4 + 0.3 * believed, "step": np.where(believed > 0.5, 0.9, 0.1)}[shape]
    return -believed, (generator.random((rows, 3)) < truth).astype(float)


@pytest.mark.parametrize(("shape", "expected"), [("as believed", "implied"), ("line", "linear"), ("step", "isotonic")])
def test_the_kind_that_fits_is_chosen_on_held_out_samples(shape, expected):
    scores, costs = noisy(6_000, shape)
    predictor, errors = choose_predictor(scores, costs, "regression", 1.0)
    assert min(errors["implied"], errors["linear"], errors["isotonic"]) == errors[predictor.kind] < errors["none"]
    assert errors[expected] <= errors[predictor.kind] * 1.002  # what holds by construction is not beaten by much
    fresh, truth = noisy(6_000, shape, seed=1)
    found = predictor.predict(fresh, np.ones(fresh.shape, bool))
    error = float((contrasts(found - truth) ** 2).sum(axis=1).mean())
    assert error == pytest.approx(errors[predictor.kind], rel=0.05)  # cross-validation tells what new samples give


@pytest.mark.parametrize("kind", ["implied", "linear", "isotonic"])
def test_predictions_rise_with_implied_costs_and_survive_json(kind):
    scores, costs = noisy(500, "step")
    costs[::7, 1] = np.inf
    predictor = CostPredictor.fit(kind, scores, costs, "regression", 1.0)
    again = CostPredictor(kind, "regression", 1.0, json.loads(json.dumps(predictor.parameters)))
    grid = -np.repeat(np.linspace(-0.5, 1.5, 400)[:, None], 3, axis=1)
    there = np.ones(grid.shape, bool)
    there[:, 2] = False
    found = predictor.predict(grid, there)
    np.testing.assert_array_equal(found, again.predict(grid, there))
    assert (np.diff(found[:, :2], axis=0) > 0).all()  # strictly: two inputs tie only where their scores do
    assert (found[:, 2] == np.inf).all()


def test_agents_with_few_answers_get_their_mean():
    scores, costs = noisy(100, "line")
    costs[5:, 1] = np.inf
    costs[:, 2] = np.inf
    found = CostPredictor.fit("isotonic", scores, costs, "regression", 1.0).predict(scores, np.ones(costs.shape, bool))
    np.testing.assert_allclose(found[:, 1], costs[:5, 1].mean())
    np.testing.assert_allclose(found[:, 2], 1)  # never seen: taken to be as dear as anyone ever was
    assert np.isfinite(choose_predictor(scores, costs, "regression", 1.0)[1]["isotonic"])


def test_contrasts_are_taken_among_who_is_there():
    found = contrasts(np.array([[1.0, 3.0, np.inf], [2.0, np.inf, np.inf]]))
    np.testing.assert_array_equal(found, [[-1, 1, 0], [0, 0, 0]])
