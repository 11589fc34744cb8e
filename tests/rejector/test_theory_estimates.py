"""What the theory's diagnostics estimate: expected costs, refits, the model's split, the learning bound."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import binom

from l2d.data.errors import CorruptPart
from l2d.rejector.costs import CostWeights
from l2d.rejector.grid import GridPoint
from l2d.rejector.rows.table import CostTable, load_tables
from l2d.rejector.settings import TrainConfig
from l2d.rejector.theory.bayes import bayes_risk, expected_costs
from l2d.rejector.theory.encoder_split import answer_costs, encoder_split, frozen_network
from l2d.rejector.theory.learning_bound import (
    AgentCosts,
    ScoreClass,
    accuracy_term,
    agent_costs,
    bound_curve,
    learning_bound,
    linear_rademacher,
    mlp_rademacher,
    score_class,
)
from l2d.rejector.theory.refits import fitted_longer, on_halves, with_weight_decay
from l2d.rejector.training.loop import train_grid

# --- expected costs ---------------------------------------------------------------------------------------------------


def _known_distribution():
    """The module of benchmarks/consistency.py: agents whose expected costs are known everywhere."""
    file = Path(__file__).parents[2] / "benchmarks" / "known_distribution.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


experiment = _known_distribution()


def test_expected_costs_and_bayes_risk_are_those_of_a_known_distribution():
    table = experiment.sample(6000, seed=0)
    x, costs = table.features.numpy(), table.raw[:, :, 0].double().numpy()
    truth = experiment.expected_costs(x)
    found = expected_costs(x, costs)
    assert found.learner != "mean"
    assert ((found.costs - truth) ** 2).mean() < 0.1 * truth.var()
    explained = 1 - (truth * (1 - truth)).mean(axis=0) / costs.var(axis=0)  # what the known truth explains
    np.testing.assert_allclose(found.explained, explained, atol=0.03)
    risk, best = bayes_risk(found.costs, costs), truth.min(axis=1).mean()
    assert risk.plug_in.mean() == pytest.approx(best, abs=0.02)
    assert truth[np.arange(6000), risk.allocation].mean() == pytest.approx(best, abs=0.01)
    assert risk.oracle.mean() < best


def test_no_sample_s_estimate_has_seen_its_own_cost():
    """Costs that nothing tells: an estimate that had seen them would follow them."""
    generator = np.random.default_rng(0)
    costs = generator.random((400, 2))
    found = expected_costs(generator.normal(size=(400, 5)), costs)
    assert (found.explained < 0.02).all()
    assert min(found.errors.values()) == pytest.approx(costs.var(axis=0).mean(), rel=0.05)
    assert abs(np.corrcoef(found.costs[:, 0], costs[:, 0])[0, 1]) < 0.2


def test_an_unavailable_agent_has_no_estimate_and_is_learned_from_where_it_is_available():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(600, 2))
    costs = np.stack([np.full(600, 0.5), (x[:, 0] > 0).astype(float)], axis=1)
    absent = generator.random(600) < 0.3
    costs[absent, 1] = np.inf
    found = expected_costs(x, costs)
    assert np.isinf(found.costs[absent, 1]).all()
    assert np.isfinite(found.costs[~absent]).all()
    risk = bayes_risk(found.costs, costs)
    assert (risk.allocation[absent] == 0).all()
    assert np.isfinite(risk.earned).all()
    assert (risk.allocation[~absent] == (x[~absent, 0] <= 0)).mean() > 0.97


def test_samples_that_agents_were_fitted_on_may_have_other_costs():
    generator = np.random.default_rng(0)
    x, fitted = generator.normal(size=(900, 3)), np.arange(900) < 500
    costs = np.where(fitted, 0.1, 0.6)[:, None] + 0.05 * generator.random((900, 2))
    found = expected_costs(x, costs, fitted=fitted).costs
    assert found[fitted].mean() == pytest.approx(0.125, abs=0.03)
    assert found[~fitted].mean() == pytest.approx(0.625, abs=0.03)


def test_wide_inputs_are_projected_and_constant_costs_are_known():
    generator = np.random.default_rng(0)
    images = generator.random((200, 300)).astype(np.float32)
    costs = np.stack([np.full(200, 0.3), images[:, :150].mean(axis=1)], axis=1)
    assert expected_costs(images, costs, folds=3).costs[:, 0].tolist() == [0.3] * 200


# --- refits -----------------------------------------------------------------------------------------------------------


def small_grid(nu: float = 1.0, loss: str = "surrogate", network: str = "linear", rows: int = 300, epochs: int = 3):
    point = GridPoint(
        run_id="r", method="multi-task", weights=CostWeights((("cla", 1.0),)), beta=0.0,
        query_costs=(0.0, 0.0, 0.0), nu=nu, seed=0,
    )  # fmt: skip
    train, validation = experiment.sample(rows, seed=1), experiment.sample(100, seed=2)
    config = TrainConfig(network=network, hidden=8, epochs=epochs, batch_size=64, lr=0.02, loss=loss)
    return train_grid([point], train, validation, config, tasks=["cla"])[0], train, validation


@pytest.mark.parametrize("nu", [0.0, 1.0])
def test_fitted_longer_is_the_minimum_of_the_class_where_it_is_convex(nu):
    rejector, train, _ = small_grid(nu)
    costs = train.raw[:, :, 0].clone()
    costs[:40, 1] = torch.inf  # the others alone count
    costs[40:50, :2] = torch.inf  # nothing to choose
    found = fitted_longer(rejector, train.features, costs)
    assert found.rows == 290
    assert found.after < found.before
    x = ((train.features - rejector.state["feature_mean"]) / rejector.state["feature_std"]).double().numpy()
    c = costs.double().numpy()

    def mean_loss(flat: np.ndarray) -> float:
        scores = np.column_stack([x, np.ones(len(x))]) @ flat.reshape(3, 3)
        losses = []
        for rows, agents in ((slice(40), [0, 2]), (slice(50, 300), [0, 1, 2])):
            known, costs_of = scores[rows, agents], c[rows, agents]
            log_s = known - np.logaddexp.reduce(known, axis=1, keepdims=True)
            loss = -log_s if nu == 1 else np.exp(-log_s) - 1
            losses += ((costs_of.sum(axis=1, keepdims=True) - costs_of) * loss).sum(axis=1).tolist()
        return float(np.mean(losses))

    assert found.after == pytest.approx(minimize(mean_loss, np.zeros(9), options={"gtol": 1e-7}).fun, abs=1e-6)


@pytest.mark.parametrize("loss", ["regression", "one_vs_all"])
def test_other_losses_and_networks_are_fitted_longer_too(loss):
    rejector, train, _ = small_grid(loss=loss, network="mlp")
    found = fitted_longer(rejector, train.features, train.raw[:, :, 0])
    assert found.after < found.before
    assert np.isfinite(found.rejector.scores(train.features.numpy())).all()


def test_no_row_with_a_choice_is_an_error():
    rejector, train, _ = small_grid()
    with pytest.raises(ValueError, match="no row"):
        fitted_longer(rejector, train.features, torch.full((300, 3), torch.inf))


def test_halves_are_of_the_training_rows_and_share_none():
    rejector, train, validation = small_grid(rows=301)
    halves = on_halves(rejector, train, validation, ["cla"])
    means = torch.stack([half.state["feature_mean"] for half in halves])
    whole = (151 * means[0] + 150 * means[1]) / 301
    torch.testing.assert_close(whole, rejector.state["feature_mean"], atol=1e-6, rtol=0)
    assert [half.config.epochs for half in halves] == [6, 6]
    decays = with_weight_decay(rejector, train, validation, ["cla"])
    assert [member.config.weight_decay for member in decays.values()] == [0.1, 1.0]


# --- the model's split ------------------------------------------------------------------------------------------------

TWO_HEAD = """
[dataset]
kind = "table"
path = "patients.parquet"
id = "id"
target_cla = "died"
classes = ["no", "yes"]
target_reg = "stay"
features = ["x1", "x2", "ward"]
[costs.cla]
kind = "{cla}"
[costs.reg]
kind = "{reg}"
[build]
chunk_size = 200
[[agents]]
name = "model"
kind = "two_head"
hidden = [16]
epochs = {epochs}
{weights}
[[agents]]
name = "expert"
kind = "column"
prob = "risk_good"
reg = "stay_good"
"""


@pytest.fixture(scope="module")
def two_head(make_cache, tmp_path_factory):
    """Builds a cache of 400 patients whose model is a network, once for each set of values."""
    known = {}

    def make(cla="zero_one", reg="smooth_l1", epochs=30, weights=""):
        key = (cla, reg, epochs, weights)
        if key not in known:
            recipe = TWO_HEAD.format(cla=cla, reg=reg, epochs=epochs, weights=weights)
            known[key] = make_cache(tmp_path_factory.mktemp("two_head"), recipe)
        return known[key]

    return make


def tables_of(cache) -> dict[str, CostTable]:
    return load_tables(cache, ("train", "validation", "test"), predictions=True)


def point_of(cache, cost: str | None = None) -> GridPoint:
    weights = CostWeights.parse({}, cache.record.tasks)
    return GridPoint(
        run_id="r", method="multi-task", weights=weights, beta=0.0, query_costs=(0.0,) * len(cache.agents),
        nu=1.0, seed=0, cost=cost,
    )  # fmt: skip


@pytest.mark.parametrize(("cla", "reg"), [("zero_one", "smooth_l1"), ("brier", "absolute"), ("absolute", "squared")])
def test_answers_cost_what_the_cache_says_they_cost(two_head, cla, reg):
    cache = two_head(cla, reg, epochs=1)
    table = tables_of(cache)["test"]
    for position, agent in enumerate(cache.agents):
        answers = table.predictions[agent.name]
        raw = answer_costs(
            cache.record.costs, cache.record.tasks, table.targets, answers["pred_prob"], answers["pred_reg"]
        )
        np.testing.assert_allclose(raw[:, 0], table.raw[:, position].numpy(), rtol=1e-6, atol=1e-7)


def test_the_frozen_network_answers_as_the_model_did(two_head):
    cache = two_head()
    table, network = tables_of(cache)["test"], frozen_network(cache)
    scores, value = network(table.features)
    np.testing.assert_allclose(scores.softmax(1).numpy(), table.predictions["model"]["pred_prob"], atol=1e-6)
    np.testing.assert_allclose(value.numpy(), table.predictions["model"]["pred_reg"], rtol=1e-5)


def test_spoilt_heads_are_a_heads_gap_and_nothing_else(two_head, tmp_path):
    """The same encoder with its heads' signs turned: better heads bring back what was lost."""
    from safetensors.torch import load_file, save_file

    good = two_head()
    state = load_file(good.path / "agents/model/frozen.safetensors")
    for name in ("class_head.weight", "class_head.bias", "value_head.weight"):
        state[name] = -state[name]
    save_file(state, tmp_path / "spoilt.safetensors")
    cache = two_head(weights=f'weights = "{tmp_path / "spoilt.safetensors"}"')
    found = encoder_split(cache, tables_of(cache), "test", point_of(cache))
    as_it_was = tables_of(good)["test"].raw[:, 0].sum(dim=1).mean()
    lost = found.as_is.mean() - float(as_it_was)
    assert lost > 0.5
    assert (found.as_is - found.heads).mean() > 0.9 * lost
    assert abs((found.heads - found.best).mean()) < 0.3 * lost
    assert found.separate is not None
    assert found.reasons == {}


def test_with_validation_s_samples_no_gap_is_below_0(two_head):
    cache = two_head()
    found = encoder_split(cache, tables_of(cache), "validation", point_of(cache))
    assert found.as_is.mean() >= found.heads.mean() >= found.best.mean()


@pytest.mark.slow
def test_a_cost_expression_is_what_the_gaps_are_in(two_head):
    cache = two_head()
    plain, doubled = (
        encoder_split(cache, tables_of(cache), "test", point_of(cache, cost)).heads
        for cost in ("cost_cla + cost_reg", "2 * cost_cla + 2 * cost_reg")
    )
    np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-5)


def test_damaged_weights_are_named(two_head, tmp_path):
    import shutil

    from l2d.data.cache.reader import CostCache

    shutil.copytree(two_head().path, tmp_path / "cache")
    file = tmp_path / "cache/agents/model/frozen.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptPart, match=r"frozen\.safetensors"):
        frozen_network(CostCache(tmp_path / "cache"))


def test_a_model_of_unknown_insides_has_no_heads_gap_and_says_why(make_cache, tmp_path):
    cache = make_cache(tmp_path)
    found = encoder_split(cache, tables_of(cache), "test", point_of(cache))
    assert found.heads is None
    assert "neither weights nor features of 'model'" in found.reasons["heads"]
    assert found.best.mean() < found.as_is.mean()  # it always says 0.5
    assert found.separate is not None


def test_answers_in_boxes_have_no_heads_to_refit(detection_runs):
    from l2d.data.cache.reader import CostCache

    cache = CostCache(detection_runs[0])
    found = encoder_split(cache, tables_of(cache), "test", point_of(cache))
    assert found.heads is found.best is found.separate is None
    assert all("boxes" in reason for reason in found.reasons.values())


# --- the learning bound -----------------------------------------------------------------------------------------------


def test_monte_carlo_complexity_is_that_over_all_signs():
    x = np.random.default_rng(0).normal(size=(10, 3))
    every = np.array(list(itertools.product([-1.0, 1.0], repeat=10)))
    exact = 2.0 * np.linalg.norm(every @ x, axis=1).mean() / 10
    assert linear_rademacher(x, 2.0, draws=20_000) == pytest.approx(exact, rel=0.01)
    assert exact <= 2.0 * math.sqrt((x**2).sum()) / 10
    directions = np.random.default_rng(1).normal(size=(50_000, 3))  # the supremum for given signs, by search
    directions *= 2.0 / np.linalg.norm(directions, axis=1, keepdims=True)
    reached = (directions @ x.T @ every[77]).max() / 10
    assert reached == pytest.approx(2.0 * np.linalg.norm(every[77] @ x) / 10, rel=1e-3)


@pytest.mark.parametrize("depth", [2, 3])
def test_no_network_of_the_norm_follows_signs_better_than_the_bound(depth):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(12, 3))
    signs = 2.0 * generator.integers(0, 2, size=(64, 12)) - 1
    outputs = []
    for _ in range(2000):
        sizes = [3] + [6] * (depth - 1) + [1]
        hidden = x
        for layer, (before, after) in enumerate(itertools.pairwise(sizes)):
            weights = generator.normal(size=(before, after))
            hidden = hidden @ (weights / np.linalg.norm(weights))
            hidden = np.maximum(hidden, 0) if layer < depth - 1 else hidden
        outputs.append(hidden[:, 0])
    reached = (signs @ np.array(outputs).T).max(axis=1).mean() / 12
    assert 0 < reached <= mlp_rademacher(x, 1.0, depth)


@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_a_rejector_is_in_its_own_class(network):
    rejector, train, _ = small_grid(network=network, epochs=10)
    found = score_class(rejector, train.features)
    limit = found.norm * np.linalg.norm(found.inputs, axis=1)
    assert (rejector.scores(train.features.numpy()).astype(np.float64) <= limit[:, None] * (1 + 1e-6)).all()
    assert found.depth == (1 if network == "linear" else 3)
    if network == "linear":
        assert found.norm == pytest.approx(
            float(torch.cat([rejector.state["weight"], rejector.state["bias"][:, None]], 1).norm(dim=1).max())
        )


def test_networks_without_a_bound_have_none():
    rejector, train, _ = small_grid(network="transformer", epochs=1)
    assert score_class(rejector, train.features) is None


@pytest.mark.parametrize("error_rate", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("rows", [50, 2000])
def test_the_accuracy_term_is_above_the_expectation_it_stands_for(error_rate, rows):
    """E[N/K R_N] over the number N of samples the expert gets wrong, by summation."""
    wrong = np.arange(1, rows + 1)
    exact = (binom.pmf(wrong, rows, error_rate) * wrong / rows * np.minimum(1 / np.sqrt(wrong), 0.5)).sum()
    term = accuracy_term(error_rate, rows, lambda count: min(1 / math.sqrt(count), 0.5))
    assert term >= exact
    assert accuracy_term(0.0, rows, lambda count: 1.0) == 0


def test_the_bound_is_the_theorem_s():
    x = np.random.default_rng(0).normal(size=(400, 4))
    scores = ScoreClass(kind="linear", inputs=x, norm=1.5, depth=1)
    common = {"class_weight": 1.0, "query_cost": 0.0}
    model = AgentCosts(error_rate=0.2, largest=1.0, is_model=True, **common)
    experts = [AgentCosts(error_rate=e, largest=top, is_model=False, **common) for e, top in ((0.1, 0.7), (0.0, 0.4))]
    found = learning_bound(scores, [model, *experts], empirical=0.3, largest_cost=1.0, rows=400, delta=0.1)
    r = linear_rademacher(x, 1.5)
    omega = 0.05 * math.exp(-400 * 0.1 / 8) + r * math.sqrt(400 / 20)
    of_class = omega + (0.7 + 0.4 + 2) * r  # R_K(H) = R_K(F) = 0
    assert found.bound == pytest.approx(0.3 + 2 * of_class + math.sqrt(math.log(10) / 800))
    dearer = [replace(agent, query_cost=0.5) for agent in experts]
    with_beta = learning_bound(scores, [model, *dearer], empirical=0.3, largest_cost=1.0, rows=400, delta=0.1)
    assert with_beta.bound - found.bound == pytest.approx(2 * r)


def test_the_bound_falls_with_rows_to_the_empirical_loss():
    scores = ScoreClass(kind="mlp", inputs=np.ones((100, 2)), norm=1.0, depth=2)
    agents = [AgentCosts(error_rate=None, class_weight=0, largest=1, query_cost=0, is_model=k == 0) for k in range(2)]
    curve = bound_curve(scores, agents, empirical=0.25, largest_cost=1.0)
    assert [point.rows for point in curve] == sorted({10, 32, 100, 316, 1000, 3162, 10_000})
    bounds = [point.bound for point in curve]
    assert bounds == sorted(bounds, reverse=True)
    assert curve[-1].bound - 0.25 == pytest.approx((curve[2].bound - 0.25) / 10, rel=1e-9)


def test_what_the_bound_needs_of_each_agent():
    raw = np.array([[[0, 2.0], [1, 1.0]], [[1, 4.0], [np.nan, np.nan]], [[1, 0.0], [0, 3.0]]])
    costs = np.array([[0.4, 1.5], [1.8, np.inf], [1.0, 0.9]])
    zero_one = {"cla": {"kind": "zero_one"}, "reg": {"kind": "absolute"}}
    found = agent_costs(raw, costs, (0.0, 0.3), {"cla": 1.0, "reg": 0.2}, zero_one, ["cla", "reg"])
    assert [agent.error_rate for agent in found] == pytest.approx([2 / 3, 1 / 2])
    assert [agent.largest for agent in found] == pytest.approx([0.8, 0.6])
    assert [agent.is_model for agent in found] == [True, False]
    for weights, table in ((None, zero_one), ({"cla": 1.0, "reg": 0.2}, {"cla": {"kind": "brier"}})):
        plain = agent_costs(raw, costs, (0.0, 0.3), weights, table, ["cla", "reg"])
        assert [agent.error_rate for agent in plain] == [None, None]
        assert [agent.largest for agent in plain] == pytest.approx([1.8, 1.2])


# --- benchmarks/consistency.py ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_regret_falls_with_samples_whichever_nu():
    few, many = (experiment.true_regrets(rows, [0.0, 1.0, 1.5], seeds=2, steps=300, hidden=16) for rows in (40, 4000))
    for before, after in zip(few, many, strict=True):
        assert after.mean < 0.4 * before.mean
        assert after.mean < 0.015


@pytest.mark.slow
def test_a_shift_underfits_and_recentring_takes_it_out():
    settings = {"seeds": 2, "steps": 80, "hidden": 16}
    plain, shifted = (experiment.true_regrets(1000, [0.0, 1.0], shift=shift, **settings) for shift in (0.0, 32.0))
    recentred = experiment.true_regrets(1000, [0.0, 1.0], shift=32.0, recentre=True, **settings)
    unshifted = experiment.true_regrets(1000, [0.0, 1.0], recentre=True, **settings)
    for before, after, mended, same in zip(plain, shifted, recentred, unshifted, strict=True):
        assert after.mean > 3 * before.mean
        assert mended.mean < 0.5 * after.mean
        assert mended.regrets == pytest.approx(same.regrets, abs=1e-4)  # the costs are the same to the last float


def test_the_true_regret_is_0_for_the_known_bayes_rejector_and_positive_for_others():
    x = np.random.default_rng(0).uniform(-1, 1, size=(5000, 2))
    truth = experiment.expected_costs(x)
    assert experiment.regret(truth.argmin(axis=1), truth) == 0
    assert all(experiment.regret(np.full(5000, agent), truth) > 0.1 for agent in range(3))
    table = experiment.sample(5000, seed=3, shift=2.0)
    assert set(np.unique(table.raw)) == {2.0, 3.0}
    mean = table.raw[:, :, 0].numpy().mean(axis=0) - 2
    np.testing.assert_allclose(mean, experiment.expected_costs(table.features.numpy()).mean(axis=0), atol=0.025)
