"""Optimal conditional risk, its minimiser, the consistency transform, its inverse, against numerical minimisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from l2d.rejector.losses import surrogate_deferral_loss
from l2d.rejector.theory.conditional_risk import (
    expected_tau,
    log_softmax,
    minimiser,
    optimal_risk,
    risk_at_logs,
    surrogate_losses,
)
from l2d.rejector.theory.consistency import deferral_bound, inverse_transform, transform

COSTS = st.integers(2, 8).flatmap(lambda n: st.lists(st.floats(0.01, 5), min_size=n, max_size=n)).map(np.array)
NU = st.floats(0, 6)
NUS = [0.0, 0.3, 0.5, 0.9, 1.0, 1.2, 1.5, 1.9, 2.0, 2.5, 3.0, 6.0]


def risk_at(shares: np.ndarray, tau: np.ndarray, nu: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return risk_at_logs(np.log(shares), tau, nu)


def abstention_risk(error: np.ndarray | float, cost: float, nu: float) -> np.ndarray:
    """Abstaining is deferring to an expert whose answer always costs ``cost``."""
    error = np.asarray(error, dtype=np.float64)
    return optimal_risk(np.stack([np.full_like(error, cost), error], axis=-1), nu)


def value_and_slope(scores: np.ndarray, tau: np.ndarray, nu: float) -> tuple[float, np.ndarray]:
    """``sum_j tau_j Phi_01^nu`` straight from Eq. 1, and its gradient by the scores."""
    log_s = scores - np.logaddexp.reduce(scores)
    e = nu - 1
    series = -log_s * (1 + e * log_s / 2 + (e * log_s) ** 2 / 6)  # near nu = 1 the quotient loses digits
    loss = series if abs(e) < 1e-5 else (np.exp(e * log_s) - 1) / -e
    weights = tau * np.exp(e * log_s)
    return float(tau @ loss), np.exp(log_s) * weights.sum() - weights


def least(tau: np.ndarray, nu: float) -> float:
    """The infimum over scores, by BFGS from several places; for nu >= 2, where it is not convex, from every corner."""
    scale, agents = tau.sum(), len(tau)
    starts = [np.zeros(agents)]
    if nu >= 2:
        starts += [*(40.0 * np.eye(agents)), *np.random.default_rng(0).normal(size=(4, agents))]
    best = math.inf
    for start in starts:
        found = minimize(value_and_slope, start, (tau / scale, nu), jac=True, method="BFGS", options={"gtol": 1e-9})
        best = min(best, found.fun)
    return best * scale


@settings(max_examples=60, deadline=None)
@given(COSTS, NU)
def test_the_optimal_risk_is_the_least_that_scores_reach(costs, nu):
    tau = expected_tau(costs)
    assert optimal_risk(tau, nu) == pytest.approx(least(tau, nu), rel=1e-6, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(COSTS, NU, st.integers(0, 2**31))
def test_no_shares_cost_less_than_the_optimum_and_the_minimiser_costs_that(costs, nu, seed):
    tau = expected_tau(costs)
    optimum = optimal_risk(tau, nu)
    drawn = np.random.default_rng(seed).dirichlet(np.full(len(tau), 0.3), size=2000)
    assert (risk_at(drawn, tau, nu) >= optimum * (1 - 1e-9) - 1e-9).all()
    best = minimiser(tau, nu)
    assert best.sum() == pytest.approx(1, abs=1e-12)
    assert risk_at(best, tau, nu) == pytest.approx(optimum, rel=1e-9, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), NU, st.integers(0, 2**31))
def test_the_minimiser_is_the_cheapest_agent_on_every_separated_row(agents, nu, seed):
    costs = np.random.default_rng(seed).uniform(0, 3, size=(300, agents))
    two = np.sort(costs, axis=1)
    costs = costs[two[:, 1] - two[:, 0] > 1e-3]
    assert (minimiser(expected_tau(costs), nu).argmax(axis=1) == costs.argmin(axis=1)).all()


@pytest.mark.parametrize("nu", [0.0, 0.5, 1.0, 1.5])
def test_scores_trained_on_separated_rows_end_at_the_cheapest_agent(nu):
    """The loss as it is trained on, minimised by L-BFGS over free scores: what consistency means, row by row."""
    costs = torch.from_numpy(np.random.default_rng(1).uniform(0, 1, size=(200, 4)))
    two = costs.sort(dim=1).values
    costs = costs[two[:, 1] - two[:, 0] > 0.01]
    scores = torch.zeros_like(costs, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=300, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = surrogate_deferral_loss(scores, costs, nu).sum()
        total.backward()
        return total

    optimizer.step(loss)
    assert torch.equal(scores.argmax(dim=1), costs.argmin(dim=1))
    np.testing.assert_allclose(
        scores.detach().softmax(dim=1).numpy(), minimiser(expected_tau(costs.numpy()), nu), atol=1e-3
    )


def printed_theorem_4_6(tau: np.ndarray, nu: float) -> float:
    """The branch that the theorem prints for nu > 2."""
    return (float((tau ** (1 / (2 - nu))).sum()) ** (2 - nu) - tau.sum()) / (1 - nu)


def test_erratum_theorem_4_6_beyond_nu_2_prints_a_maximum():
    """At nu = 3 the printed formula gives 1.2188 where the infimum is 0.5946: it is the stationary point, a maximum."""
    tau, nu = np.array([1.1892, 1.99322]), 3.0
    assert printed_theorem_4_6(tau, nu) == pytest.approx(1.2188, abs=1e-4)
    assert least(tau, nu) == pytest.approx(0.5946, abs=1e-6)
    assert optimal_risk(tau, nu) == pytest.approx(0.5946, abs=1e-9)
    shares = np.linspace(1e-6, 1 - 1e-6, 10_001)
    along = risk_at(np.stack([shares, 1 - shares], axis=1), tau, nu)
    assert along.max() == pytest.approx(printed_theorem_4_6(tau, nu), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(COSTS, st.floats(2.1, 6))
def test_erratum_the_printed_branch_is_above_what_scores_reach(costs, nu):
    tau = expected_tau(costs)
    assert printed_theorem_4_6(tau, nu) > least(tau, nu) + 1e-3 * tau.min()


@settings(max_examples=30, deadline=None)
@given(COSTS, st.floats(0, 0.99))
def test_the_branch_printed_for_nu_beyond_2_is_the_one_for_nu_below_1(costs, nu):
    tau = expected_tau(costs)
    assert printed_theorem_4_6(tau, nu) == pytest.approx(float(optimal_risk(tau, nu)), rel=1e-9)


@pytest.mark.parametrize("nu", [1.0, 2.0])
def test_branches_meet_from_both_sides(nu):
    tau = np.array([0.3, 1.1, 0.9, 2.0])
    for step in (1e-4, 1e-6, 1e-9):
        for close in (nu - step, nu + step):
            assert optimal_risk(tau, close) == pytest.approx(float(optimal_risk(tau, nu)), abs=20 * step)
            v = np.array([0.0, 0.05, 0.5, 1.0])
            np.testing.assert_allclose(transform(v, close, 3), transform(v, nu, 3), atol=20 * step)


def test_known_values_and_nothing_to_choose():
    tau = np.array([0.5, 1.5])
    p = tau / 2
    assert optimal_risk(tau, 1) == pytest.approx(-2 * (p * np.log(p)).sum(), abs=1e-12)
    assert optimal_risk(tau, 0) == pytest.approx(2 * math.sqrt(0.75), abs=1e-12)
    assert optimal_risk(tau, 2) == 0.5
    assert optimal_risk(tau, 4) == pytest.approx(0.5 / 3)
    for nu in NUS:
        assert optimal_risk(np.zeros((2, 3)), nu).tolist() == [0, 0]
        assert optimal_risk(np.array([0.0, 1.0]), nu) == pytest.approx(0, abs=1e-12)


def test_bad_arguments_are_refused():
    for nu in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="nu"):
            optimal_risk(np.ones(2), nu)
        with pytest.raises(ValueError, match="nu"):
            inverse_transform(0.1, nu, 2)
    with pytest.raises(ValueError, match="tau"):
        optimal_risk(np.array([1.0, -1.0]), 1)
    with pytest.raises(ValueError, match="agents"):
        transform(0.1, 1, 1)
    for v in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="v must"):
            transform(v, 1, 2)


# --- unavailable agents -----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(COSTS, NU, st.data())
def test_an_unavailable_agent_is_as_good_as_absent(costs, nu, data):
    agent = data.draw(st.integers(0, len(costs)))
    scores = np.random.default_rng(0).normal(size=len(costs))
    with_it, its_scores = np.insert(costs, agent, np.inf), np.insert(scores, agent, 9.0)
    assert optimal_risk(expected_tau(with_it), nu) == pytest.approx(float(optimal_risk(expected_tau(costs), nu)))
    found = surrogate_losses(its_scores[None], with_it[None], nu)
    assert found == pytest.approx(surrogate_losses(scores[None], costs[None], nu))
    assert minimiser(expected_tau(with_it), nu)[agent] == 0
    assert log_softmax(its_scores, np.isfinite(with_it))[agent] == -np.inf


def test_the_loss_of_a_sample_is_the_one_trained_on():
    generator = np.random.default_rng(0)
    scores, costs = generator.normal(size=(50, 4)), generator.random((50, 4))
    for nu in NUS:
        trained_on = surrogate_deferral_loss(torch.from_numpy(scores), torch.from_numpy(costs), nu).numpy()
        np.testing.assert_allclose(surrogate_losses(scores, costs, nu), trained_on, rtol=1e-9, atol=1e-12)


def test_one_available_agent_leaves_nothing_to_lose():
    costs = np.array([[np.inf, 0.7, np.inf]])
    assert surrogate_losses(np.zeros((1, 3)), costs, 0.5).tolist() == [0]
    assert deferral_bound(0.0, expected_tau(costs).sum(axis=1), 0.5, 3).tolist() == [0]


# --- abstention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [0.05, 0.3, 0.9])
def test_abstention_is_the_case_of_one_expert_at_a_constant_cost(cost):
    error = np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(abstention_risk(error, cost, 0), 2 * np.sqrt(cost * error), atol=1e-12)
    np.testing.assert_allclose(abstention_risk(error, cost, 2), np.minimum(cost, error), atol=1e-12)
    np.testing.assert_allclose(abstention_risk(error, cost, 4), np.minimum(cost, error) / 3, atol=1e-12)
    entropy = -(cost * np.log(cost / (cost + error)) + error * np.log(error / (cost + error)))
    np.testing.assert_allclose(abstention_risk(error, cost, 1), entropy, atol=1e-12)
    for nu in (0.0, 1.0, 1.7):  # Chow's rule: abstain where the model errs more than that costs
        share = minimiser(np.stack([np.full(50, cost), error], axis=1), nu)[:, 1]
        assert ((share > 0.5) == (error > cost)).all()


def test_abstention_at_the_paper_s_weights():
    """tau = (1, 1 - c): where Mao et al. 2024 find 2 sqrt(1 - c) and 1 - c for nu = 0 and 2."""
    for c in (0.1, 0.5, 0.8):
        assert abstention_risk(1 - c, 1.0, 0) == pytest.approx(2 * math.sqrt(1 - c))
        assert abstention_risk(1 - c, 1.0, 2) == pytest.approx(1 - c)


# --- the transform ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(NU, st.integers(2, 8), st.integers(0, 2**31))
def test_no_mistake_costs_less_in_the_surrogate_than_the_transform_says(nu, agents, seed):
    """The definition: over probabilities p and shares s, surrogate gap >= T(largest p - p of the largest s)."""
    generator = np.random.default_rng(seed)
    p = generator.dirichlet(np.full(agents, generator.choice([0.3, 1, 10, 100])), size=4000)
    if seed % 2:
        s = generator.dirichlet(np.full(agents, generator.choice([0.3, 1, 10, 1000])), size=4000)
    else:  # near the worst case: the minimiser, but for the two largest agents' shares evened out
        s = minimiser(p, min(nu, 1.99))
        largest = np.argsort(-p, axis=1)[:, :2]
        even = 0.5 * np.take_along_axis(s, largest, axis=1).sum(axis=1)
        np.put_along_axis(s, largest, np.stack([even - 1e-9, even + 1e-9], axis=1), axis=1)
    mistake = p.max(axis=1) - p[np.arange(4000), s.argmax(axis=1)]
    gap = risk_at(s, p, nu) - optimal_risk(p, nu)
    assert (gap >= transform(mistake, nu, agents) - 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 2), st.floats(0, 1), st.integers(2, 8))
def test_the_transform_is_reached(nu, v, agents):
    """At p = ((1 + v) / 2, (1 - v) / 2) and even shares: any number of agents up to nu = 1, two up to nu = 2."""
    p = np.array([0.5 * (1 + v), 0.5 * (1 - v)])
    gap = float(risk_at(np.array([0.5, 0.5]), p, nu)) - (least(p, nu) if p[1] > 1e-9 else float(optimal_risk(p, nu)))
    assert transform(v, nu, 2 if nu > 1 else agents) == pytest.approx(gap, abs=1e-6)


def test_many_agents_tied_reach_the_transform_at_nu_2():
    for agents in range(2, 9):
        v = 0.5 / (agents - 1)
        p = np.full(agents, (1 + v) / agents)
        p[0] -= v
        even = np.full(agents, 1 / agents)
        assert float(risk_at(even, p, 2) - optimal_risk(p, 2)) == pytest.approx(
            float(transform(v, 2, agents)), abs=1e-12
        )


@settings(max_examples=60, deadline=None)
@given(NU, st.integers(2, 8), st.floats(0, 1), st.floats(0, 1))
def test_the_transform_rises_is_convex_and_the_inverse_undoes_it(nu, agents, a, b):
    low, high = sorted((a, b))
    at = transform(np.array([low, 0.5 * (low + high), high]), nu, agents)
    assert at[0] <= at[1] <= at[2]
    assert at[1] <= 0.5 * (at[0] + at[2]) + 1e-12
    found = inverse_transform(at, nu, agents)
    np.testing.assert_allclose(found, [low, 0.5 * (low + high), high], atol=1e-6)
    np.testing.assert_allclose(transform(found, nu, agents), at, atol=1e-9)


def test_the_inverse_is_vectorised_and_stays_within_0_and_1():
    u = np.array([[0.0, 1e-12, 0.1], [1.0, 50.0, np.inf]])
    for nu in NUS:
        found = inverse_transform(u, nu, 3)
        assert found.shape == u.shape
        assert found[0, 0] == pytest.approx(0, abs=1e-12)
        assert (np.diff(found.ravel()) >= 0).all()
        assert found.max() == 1


@settings(max_examples=40, deadline=None)
@given(NU, st.integers(2, 6), st.integers(0, 2**31))
def test_theorem_4_4_holds_row_by_row_and_on_average(nu, agents, seed):
    generator = np.random.default_rng(seed)
    costs, scores = generator.uniform(0, 2, (300, agents)), generator.normal(size=(300, agents))
    tau = expected_tau(costs)
    excess = np.maximum(surrogate_losses(scores, costs, nu) - optimal_risk(tau, nu), 0)
    deferral = costs[np.arange(300), scores.argmax(axis=1)] - costs.min(axis=1)
    by_row = deferral_bound(excess, tau.sum(axis=1), nu, agents)
    assert (deferral <= by_row + 1e-9).all()
    together = deferral_bound(excess.mean(), tau.sum(axis=1).mean(), nu, agents)
    assert by_row.mean() <= together + 1e-9  # Jensen: the perspective of a concave function is concave
