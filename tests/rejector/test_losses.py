"""The surrogates, the deferral losses and their theory, against plain loops and numerical minimisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2d.rejector.losses import (
    LOSSES,
    aggregated_costs,
    check_nu,
    cross_entropy_surrogate,
    deferral_loss,
    one_vs_all,
    recentred,
    surrogate,
    surrogate_deferral_loss,
)

NUS = [0.0, 0.3, 1.0, 1 - 1e-6, 1 + 1e-6, 1.5, 2.0, 3.0]


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / math.fsum(powers) for power in powers]


def eq_1(scores: list[float], agent: int, nu: float) -> float:
    """Eq. 1 in Python floats. Near nu = 1 its quotient loses digits, so there it is the series in nu - 1."""
    log_share = math.log(softmax(scores)[agent])
    if nu == 1:
        return -log_share
    if abs(nu - 1) < 1e-4:
        e = nu - 1
        return -log_share * (1 + e * log_share / 2 + (e * log_share) ** 2 / 6)
    return (softmax(scores)[agent] ** (nu - 1) - 1) / (1 - nu)


def random_scores(rows: int = 40, agents: int = 4, scale: float = 2.0, seed: int = 0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=(rows, agents))


def by_loop(scores: np.ndarray, nu: float) -> np.ndarray:
    return np.array([[eq_1(row.tolist(), j, nu) for j in range(len(row))] for row in scores])


@pytest.mark.parametrize("nu", NUS)
def test_surrogate_equals_eq_1_in_float64(nu):
    scores = random_scores()
    found = cross_entropy_surrogate(torch.from_numpy(scores), nu).numpy()
    np.testing.assert_allclose(found, by_loop(scores, nu), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("nu", NUS)
def test_surrogate_equals_eq_1_in_float32(nu):
    scores = random_scores().astype(np.float32)
    found = cross_entropy_surrogate(torch.from_numpy(scores), nu)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), by_loop(scores.astype(np.float64), nu), rtol=5e-5, atol=1e-6)


def test_surrogate_at_known_points():
    """nu = 0 is sum-exponential, 1 log-softmax, 2 MAE; at nu = 1 it is log 2 at a tie, so no bound of the 0-1 loss."""
    scores = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    others = math.exp(-1.0 - 0.5) + math.exp(2.0 - 0.5)
    assert float(cross_entropy_surrogate(scores, 0)[0, 0]) == pytest.approx(others, abs=1e-12)
    mae = 1 - softmax(scores[0].tolist())[0]
    assert float(cross_entropy_surrogate(scores, 2)[0, 0]) == pytest.approx(mae, abs=1e-12)
    tie = cross_entropy_surrogate(torch.zeros(1, 2, dtype=torch.float64), 1.0)
    assert tie.flatten().tolist() == pytest.approx([math.log(2)] * 2, abs=1e-15)


def test_tensor_nu_of_a_grid_equals_each_scalar_nu():
    scores = torch.from_numpy(np.stack([random_scores(seed=k) for k in range(len(NUS))]))
    together = cross_entropy_surrogate(scores, torch.tensor(NUS, dtype=torch.float64)[:, None, None])
    for index, nu in enumerate(NUS):
        torch.testing.assert_close(together[index], cross_entropy_surrogate(scores[index], nu), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nu", [-0.5, -1e-9, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_nu_that_is_no_number_from_0_on_is_refused(nu, kind):
    with pytest.raises(ValueError, match="nu must be"):
        cross_entropy_surrogate(torch.zeros(2, 3), kind(nu))


def test_a_bad_nu_within_a_grid_of_good_ones_is_refused():
    for bad in (-0.5, float("nan")):
        with pytest.raises(ValueError, match="nu must be"):
            cross_entropy_surrogate(torch.zeros(2, 2, 3), torch.tensor([1.0, bad])[:, None, None])


@pytest.mark.parametrize("nu", NUS)
def test_surrogate_deferral_loss_is_the_double_sum_of_lemma_4_3(nu):
    scores, costs = random_scores(), np.random.default_rng(1).random((40, 4))
    expected = []
    for row, cost in zip(scores.tolist(), costs.tolist(), strict=True):
        total = 0.0
        for j in range(4):
            for i in range(4):
                if i != j:
                    total += cost[i] * eq_1(row, j, nu)
        expected.append(total)
    found = surrogate_deferral_loss(torch.from_numpy(scores), torch.from_numpy(costs), nu)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("nu", NUS)
def test_float32_gradients_are_those_of_float64(nu):
    scores, costs = random_scores(), np.random.default_rng(3).random((40, 4))
    gradients = []
    for dtype in (torch.float32, torch.float64):
        values = torch.tensor(scores, dtype=dtype, requires_grad=True)
        surrogate_deferral_loss(values, torch.tensor(costs, dtype=dtype), nu).sum().backward()
        gradients.append(values.grad.double())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)
    assert (gradients[1].abs().sum(dim=1) > 0).all()


cost_rows = st.integers(2, 6).flatmap(
    lambda agents: st.lists(st.lists(st.floats(0, 100), min_size=agents, max_size=agents), min_size=1, max_size=8)
)


@settings(max_examples=100, deadline=None)
@given(cost_rows)
def test_aggregated_cost_sums_every_other_agent(rows):
    expected = [[math.fsum(c for i, c in enumerate(row) if i != j) for j in range(len(row))] for row in rows]
    found = aggregated_costs(torch.tensor(rows, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert (aggregated_costs(torch.tensor(rows, dtype=torch.float32)) >= 0).all()


def test_deferral_loss_is_the_cost_of_who_answers():
    generator = np.random.default_rng(2)
    costs, allocation = generator.random((3, 20, 4)), generator.integers(0, 4, (3, 20))
    found = deferral_loss(torch.from_numpy(allocation), torch.from_numpy(costs)).numpy()
    for g in range(3):
        for b in range(20):
            assert found[g, b] == sum(costs[g, b, j] * (allocation[g, b] == j) for j in range(4))


@pytest.mark.parametrize("nu", NUS)
def test_gradients_are_those_of_finite_differences(nu):
    scores = torch.from_numpy(random_scores(rows=6)).requires_grad_()
    costs = torch.from_numpy(np.random.default_rng(3).random((6, 4)))
    assert torch.autograd.gradcheck(lambda r: surrogate_deferral_loss(r, costs, nu), (scores,))


def test_gradients_of_a_grid_are_those_of_finite_differences():
    scores = torch.from_numpy(np.stack([random_scores(rows=2, seed=k) for k in range(len(NUS))])).requires_grad_()
    costs = torch.from_numpy(np.random.default_rng(3).random((2, 4)))
    nu = torch.tensor(NUS, dtype=torch.float64)[:, None, None]
    assert torch.autograd.gradcheck(lambda r: surrogate_deferral_loss(r, costs, nu), (scores,))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3),
    st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
    st.one_of(st.sampled_from([*NUS, 0.999999, 1.00001]), st.floats(0, 4)),
    st.booleans(),
)
def test_loss_and_gradient_are_finite_in_float32_for_score_gaps_up_to_100(scores, costs, nu, as_tensor):
    values = torch.tensor([scores, [50.0, -50.0, 0.0]]).requires_grad_()
    loss = surrogate_deferral_loss(values, torch.tensor([costs] * 2), torch.tensor(nu) if as_tensor else nu)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert (loss >= 0).all()
    assert values.grad.isfinite().all()
    assert values.grad.square().isfinite().all()  # Adam squares it


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=4),
    st.one_of(st.sampled_from([*NUS, 0.1, 0.12, 0.2]), st.floats(0, 4)),
)
def test_float32_values_are_right_for_score_gaps_up_to_100_wherever_they_fit(scores, nu):
    """Against logarithms in float64, where no surrogate of such gaps overflows."""
    scores = [50.0, -50.0, *scores]
    top = max(scores)
    log_total = math.log(math.fsum(math.exp(score - top) for score in scores))
    found = cross_entropy_surrogate(torch.tensor([scores]), nu)[0]
    nu = float(np.float32(nu))
    for value, score in zip(found.tolist(), scores, strict=True):
        log_share = score - top - log_total
        exponent = (nu - 1) * log_share
        expected = -log_share if abs(exponent) < 1e-9 else math.expm1(exponent) / (1 - nu)
        if expected < 3.3e38:
            assert value == pytest.approx(expected, rel=1e-4, abs=1e-6)
        else:  # within a hair of the largest float32, or beyond
            assert 3.3e38 <= value < math.inf


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3),
    st.lists(st.floats(2**-7, 1, width=32), min_size=3, max_size=3),
    st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0, 2.0]),
)
def test_float32_gradients_are_right_for_score_gaps_up_to_100_until_adam_could_not_square_them(scores, costs, nu):
    """In float64 the bound is exp(300), so there these gradients are the true ones."""
    gradients = []
    for dtype in (torch.float32, torch.float64):
        values, costs_ = (torch.tensor([row], dtype=dtype) for row in (scores, costs))
        gradients.append(surrogate(values, costs_, check_nu(nu, dtype))[1][0].double())
    found, true = gradients
    if (1 - nu) * (max(scores) - min(scores) + math.log(3)) < 40:
        torch.testing.assert_close(found, true, rtol=1e-3, atol=float(1e-6 + 1e-5 * true.abs().max()))
    else:  # shortened, but the agent whose score has to rise most is the same
        assert found.abs().max() >= math.exp(38) * 0.01
        assert found[true.argmin()] < 0
    assert found.square().float().isfinite().all()


def infimum(tau: list[float], nu: float) -> float:
    """Theorem 4.6, with the erratum for nu > 2."""
    total = math.fsum(tau)
    if nu == 1:
        return -math.fsum(t * math.log(t / total) for t in tau)
    if nu < 2:
        return (math.fsum(t ** (1 / (2 - nu)) for t in tau) ** (2 - nu) - total) / (1 - nu)
    return (total - max(tau)) / (nu - 1)


def minimise(costs: torch.Tensor, nu: float, steps: int = 1500) -> torch.Tensor:
    """Scores of each row that minimise the surrogate: Adam from a point that is a little better than a tie."""
    start = 0.5 * (costs.mean(-1, keepdim=True) - costs) / costs.std(-1, keepdim=True)
    scores = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps) if nu < 2 else 0.1
        optimizer.zero_grad()
        surrogate_deferral_loss(scores, costs, nu).sum().backward()
        optimizer.step()
    return scores.detach()


@pytest.mark.parametrize("nu", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.slow
def test_infimum_over_free_scores_is_theorem_4_6_with_its_erratum(nu):
    costs = torch.from_numpy(np.random.default_rng(4).uniform(0.05, 1, (60, 3)))
    lowest = surrogate_deferral_loss(minimise(costs, nu), costs, nu)
    expected = [infimum([sum(row) - c for c in row], nu) for row in costs.tolist()]
    np.testing.assert_allclose(lowest.numpy(), expected, rtol=1e-4, atol=1e-5)
    anywhere = surrogate_deferral_loss(torch.from_numpy(random_scores(60, 3, 5.0)), costs, nu)
    assert (anywhere.numpy() >= np.array(expected) - 1e-9).all()


def test_for_nu_above_2_a_vertex_beats_the_formula_that_the_paper_prints():
    """spec.md, errata 2: the stationary point is a maximum there, and the infimum is approached at a vertex."""
    costs = torch.tensor([[0.15, 0.35, 0.55]], dtype=torch.float64)
    tau, nu = [0.9, 0.7, 0.5], 3.0
    printed = (sum(t ** (1 / (2 - nu)) for t in tau) ** (2 - nu) - sum(tau)) / (1 - nu)
    vertices = torch.diag(torch.full((3,), 60.0, dtype=torch.float64))
    lowest = float(surrogate_deferral_loss(vertices, costs.expand(3, 3), nu).min())
    assert lowest == pytest.approx(infimum(tau, nu), abs=1e-12)
    assert printed > lowest + 0.1


@pytest.mark.parametrize("nu", [0.0, 0.5, 1.0, 1.5])
def test_minimiser_allocates_to_the_cheapest_agent(nu):
    costs = np.random.default_rng(5).random((300, 3))
    two_best = np.sort(costs, axis=1)[:, :2]
    costs = costs[two_best[:, 1] - two_best[:, 0] > 0.05]
    assert len(costs) >= 200
    start_at_a_tie = torch.zeros(costs.shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([start_at_a_tie], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        surrogate_deferral_loss(start_at_a_tie, torch.from_numpy(costs), nu).sum().backward()
        optimizer.step()
    assert (start_at_a_tie.detach().numpy().argmax(axis=1) == costs.argmin(axis=1)).all()


# --- recentring -------------------------------------------------------------------------------------------------------


def test_recentring_leaves_the_cheapest_agent_free_and_every_difference_as_it_was():
    costs = torch.from_numpy(np.random.default_rng(6).random((2, 50, 4)))
    found = recentred(costs)
    assert (found.amin(dim=-1) == 0).all()
    assert torch.equal(found.argmin(dim=-1), costs.argmin(dim=-1))
    torch.testing.assert_close(found.diff(dim=-1), costs.diff(dim=-1), rtol=0, atol=1e-15)
    torch.testing.assert_close(recentred(costs.mT, dim=1), found.mT, rtol=0, atol=0)


def test_what_all_agents_cost_flattens_the_minimiser_unless_it_is_recentred():
    """At nu = 1 softmax(scores) is tau / |tau| at the minimum."""
    costs = torch.tensor([[0.30, 0.28, 0.55], [5.30, 5.28, 5.55]], dtype=torch.float64)
    tau = torch.tensor([[0.83, 0.85, 0.58], [10.83, 10.85, 10.58]], dtype=torch.float64)
    sharp = torch.tensor([[0.27, 0.29, 0.02]] * 2, dtype=torch.float64)  # of costs 0.02, 0 and 0.27
    for target, expected in ((costs, tau), (recentred(costs), sharp)):
        shares = expected / expected.sum(dim=-1, keepdim=True)
        _, gradient = surrogate(shares.log(), target, None)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
        assert (
            surrogate(shares.log() + torch.eye(3)[:2] * 0.1, target, None)[0] > surrogate(shares.log(), target, None)[0]
        ).all()


def test_at_nu_2_recentring_changes_nothing():
    """There the surrogates of all agents sum to a constant, so what all agents cost adds a constant to the loss."""
    scores, costs = torch.from_numpy(random_scores()), torch.from_numpy(np.random.default_rng(7).random((40, 4)))
    gradients = [surrogate(scores, c, check_nu(2.0, torch.float64))[1] for c in (costs, recentred(costs))]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)


# --- all losses that can be trained on --------------------------------------------------------------------------------


def plain_formulas(nu: float) -> dict:
    """Each loss of one row as autograd can differentiate it, from its definition."""

    def of_surrogate(scores, costs):
        share = scores.softmax(dim=-1)
        surrogates = -share.log() if nu == 1 else (share ** (nu - 1) - 1) / (1 - nu)
        return sum((costs.sum() - costs[j]) * surrogates[j] for j in range(len(costs)))

    def of_one_vs_all(scores, costs):
        dearest = max(costs)
        return sum((dearest - c) * (1 + (-r).exp()).log() + c * (1 + r.exp()).log() for r, c in zip(scores, costs))  # noqa: B905

    return {
        "surrogate": of_surrogate,
        "regression": lambda scores, costs: sum((r + c) ** 2 for r, c in zip(scores, costs)),  # noqa: B905
        "one_vs_all": of_one_vs_all,
    }


@pytest.mark.parametrize("agents_first", [False, True])
@pytest.mark.parametrize(
    ("loss", "nu"), [*(("surrogate", nu) for nu in (0, 0.3, 1, 1.5, 3)), ("regression", 1), ("one_vs_all", 1)]
)
def test_values_and_gradients_are_those_of_the_definition_and_autograd(loss, nu, agents_first):
    scores, costs = random_scores(rows=12, scale=3.0), np.random.default_rng(8).random((12, 4))
    expected, gradients = [], []
    for row, cost in zip(scores, costs, strict=True):
        leaf = torch.tensor(row, requires_grad=True)
        value = plain_formulas(nu)[loss](leaf, torch.tensor(cost))
        expected.append(value.item())
        gradients.append(torch.autograd.grad(value, leaf)[0])
    given = torch.from_numpy(scores), torch.from_numpy(costs)
    dim = 0 if agents_first else -1
    if agents_first:
        given = tuple(values.T for values in given)
    value, gradient = LOSSES[loss](*given, check_nu(nu, torch.float64), dim)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    np.testing.assert_allclose(gradient.T if agents_first else gradient, torch.stack(gradients), rtol=1e-8, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["regression", "one_vs_all"]),
    st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3),
    st.lists(st.floats(0, 5, width=32), min_size=3, max_size=3),
)
def test_the_alternatives_are_right_in_float32_for_score_gaps_up_to_100(loss, scores, costs):
    scores = [50.0, -50.0, *scores]
    single, double = (
        LOSSES[loss](torch.tensor(scores, dtype=dtype), torch.tensor([*costs, 0.5, 1.0], dtype=dtype), None, -1)
        for dtype in (torch.float32, torch.float64)
    )
    for found, expected in zip(single, double, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert single[0] >= 0


def test_one_vs_all_with_0_1_costs_is_the_experts_part_of_verma_et_al():
    """phi(r_j) where expert j is right, phi(-r_j) where it is wrong, phi(r) = log(1 + exp(-r))."""
    scores, wrong = random_scores(), np.random.default_rng(9).integers(0, 2, (40, 4))
    found, _ = one_vs_all(torch.from_numpy(scores), torch.from_numpy(wrong.astype(float)))
    for value, row, mistakes in zip(found.tolist(), scores.tolist(), wrong.tolist(), strict=True):
        expected = sum(math.log1p(math.exp(r if mistake else -r)) for r, mistake in zip(row, mistakes, strict=True))
        assert value == pytest.approx(expected if any(mistakes) else 0.0, abs=1e-12)


def conditional_costs() -> torch.Tensor:
    """Costs of 3 agents given x, for 200 x: 6 equally likely outcomes each, (200, 6, 3). The cheapest agent by
    expectation is clear, and often not the cheapest of an outcome."""
    costs = np.random.default_rng(10).gamma(0.7, size=(2000, 6, 3))
    expected = np.sort(costs.mean(axis=1), axis=1)
    costs = costs[expected[:, 1] - expected[:, 0] > 0.1][:200]
    assert len(costs) == 200
    assert (costs.argmin(axis=2) != costs.mean(axis=1).argmin(axis=1)[:, None]).mean() > 0.4
    return torch.from_numpy(costs)


@pytest.mark.parametrize("recentre", [False, True])
@pytest.mark.parametrize(
    ("loss", "nu"),
    [("surrogate", 0.5), ("surrogate", 1.0), ("surrogate", 1.5), ("regression", 1.0), ("one_vs_all", 1.0)],
)
def test_the_minimiser_of_the_expected_loss_allocates_to_the_cheapest_agent_in_expectation(loss, nu, recentre):
    costs = conditional_costs()
    target = recentred(costs) if recentre else costs
    scores = torch.zeros(200, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 400)
        _, gradient = LOSSES[loss](scores.detach()[:, None].expand(-1, 6, -1), target, check_nu(nu, torch.float64), -1)
        scores.grad = gradient.mean(dim=1)
        optimizer.step()
    found = scores.detach()
    assert (found.argmax(dim=1) == costs.mean(dim=1).argmin(dim=1)).all()
    expected = target.mean(dim=1)
    if loss == "regression":
        torch.testing.assert_close(found, -expected, rtol=0, atol=1e-6)
    if loss == "one_vs_all":
        torch.testing.assert_close(
            found.sigmoid(), 1 - expected / target.amax(dim=2).mean(dim=1)[:, None], rtol=0, atol=0.02
        )
