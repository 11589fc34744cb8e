"""Values of policies from logged decisions: formulas by hand, simulations with known values, and refusals."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from scipy.stats import t as student

import l2d
from l2d.data.errors import DataError, UsageError
from l2d.rejector.replay.estimators import Logged, effective, estimates
from l2d.rejector.replay.replaying import FEWEST


def by_name(found):
    return {one.name: one for one in found}


def test_estimates_are_the_formulas():
    """Four decisions between two agents, worked out by hand."""
    chances = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    agent, cost = np.array([0, 1, 1, 0]), np.array([1.0, 2.0, 3.0, 4.0])
    policy = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 1.0]])
    predicted = np.array([[1.0, 2.0], [2.0, 2.5], [1.0, 2.0], [3.0, 3.0]])
    logged = Logged(agent, chances, cost, predicted)
    weights = [1 / 0.9, 1 / 0.1, 0.5 / 0.8, 0.0]
    np.testing.assert_allclose(logged.weights(policy), weights)
    found = by_name(estimates(logged, policy))
    terms = [1 / 0.9, 20.0, 0.625 * 3, 0.0]
    assert found["ips"].value == pytest.approx(sum(terms) / 4)
    assert found["ips"].error == pytest.approx(np.std(terms, ddof=1) / 2)
    assert found["self-normalised"].value == pytest.approx(sum(terms) / sum(weights))
    direct = [1.0, 2.5, 1.5, 3.0]
    corrected = [d + w * (c - q) for d, w, c, q in zip(direct, weights, cost, [1.0, 2.5, 2.0, 3.0], strict=True)]
    assert found["doubly robust"].value == pytest.approx(np.mean(corrected))
    low, high = found["doubly robust"].interval(0.95)
    size = sum(weights) ** 2 / sum(w * w for w in weights)
    assert (high - low) / 2 == pytest.approx(student.ppf(0.975, max(1, size - 1)) * np.std(corrected, ddof=1) / 2)
    assert effective(logged.weights(policy)) == pytest.approx(size)
    without = by_name(estimates(Logged(agent, chances, cost), policy))
    assert set(without) == {"ips", "self-normalised"}


def test_with_true_costs_as_predictions_the_value_is_exact():
    generator = np.random.default_rng(0)
    costs, chances = generator.random((50, 3)), np.full((50, 3), 1 / 3)
    agent = generator.integers(0, 3, 50)
    policy = np.eye(3)[generator.integers(0, 3, 50)]
    found = by_name(estimates(Logged(agent, chances, costs[np.arange(50), agent], costs), policy))
    for name in ("doubly robust", "switch"):
        assert found[name].value == pytest.approx((policy * costs).sum(axis=1).mean())


def test_switch_leaves_out_what_weighs_too_much():
    """One decision of weight 1,000 whose cost is far from predicted decides the doubly robust estimate, not switch."""
    n = 200
    chances = np.tile([0.999, 0.001], (n, 1))
    agent = np.zeros(n, np.int64)
    agent[0] = 1
    policy = np.tile([0.99, 0.01], (n, 1))
    policy[0] = [0.0, 1.0]
    cost, predicted = np.full(n, 0.5), np.full((n, 2), 0.5)
    cost[0] = 5.0
    found = by_name(estimates(Logged(agent, chances, cost, predicted), policy))
    assert found["doubly robust"].value == pytest.approx(0.5 + 1000 * 4.5 / n)
    assert found["switch"].value == pytest.approx(0.5)


def world(n: int, explore: float, seed: int, *, returned: tuple[float, ...] = (1.0, 1.0, 1.0)):
    """Logged decisions among three agents, and the true mean cost of always asking the last one.

    Predictions are wrong: biased, and blind to half of what costs depend on.
    """
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, 2))
    chance = 1 / (1 + np.exp(-np.stack([x[:, 0] + x[:, 1], -x[:, 0], 0.5 * x[:, 1] - 0.5], axis=1)))
    predicted = 0.1 + 1 / (1 + np.exp(-np.stack([x[:, 0], -x[:, 0], 0 * x[:, 0]], axis=1)))
    greedy = predicted.argmin(axis=1)
    chances = np.full((n, 3), explore / 3)
    chances[np.arange(n), greedy] += 1 - explore
    agent = (generator.random(n)[:, None] > chances.cumsum(axis=1)).sum(axis=1)
    cost = (generator.random(n) < chance[np.arange(n), agent]).astype(float)
    cost[generator.random(n) > np.array(returned)[agent]] = np.nan
    policy = np.zeros((n, 3))
    policy[:, 2] = 1
    return Logged(agent, chances, cost, predicted), policy


#: Mean of the logistic function of a normal variable of mean -0.5 and deviation 0.5, by quadrature.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
TRUE = float((WEIGHTS / (1 + np.exp(-(0.5 * NODES - 0.5)))).sum() / WEIGHTS.sum())


@pytest.mark.parametrize("returned", [(1.0, 1.0, 1.0), (0.9, 0.7, 0.5)], ids=["all", "some"])
def test_intervals_cover_the_true_value_as_often_as_they_say(returned):
    """Also where outcomes come back more often from some agents. More worlds: benchmarks/replay_coverage.py."""
    worlds, hits, values = 200, {}, {}
    for seed in range(worlds):
        for one in estimates(*world(3000, 0.3, seed, returned=returned)):
            low, high = one.interval(0.95)
            hits[one.name] = hits.get(one.name, 0) + (low <= TRUE <= high)
            values.setdefault(one.name, []).append(one.value)
    for name, count in hits.items():
        assert count / worlds > 0.95 - 3 * (0.95 * 0.05 / worlds) ** 0.5, name
        spread = np.std(values[name]) / worlds**0.5
        assert abs(np.mean(values[name]) - TRUE) < 4 * spread, name
    assert np.std(values["doubly robust"]) < np.std(values["ips"])


@pytest.fixture(scope="module")
def logged(patient_runs, tmp_path_factory):
    """A log of `best` over every patient, exploring, with a shadow, and outcomes as the run's cache has them."""
    folder = tmp_path_factory.mktemp("logged")
    rows = pl.read_parquet(patient_runs / "patients.parquet").to_dicts()
    known = pl.read_parquet(patient_runs / "best" / "allocations.parquet")
    router = l2d.load_router(
        patient_runs / "best", explore=0.5, seed=5, log=folder / "log", shadow=patient_runs / "linear"
    )
    query = dict(zip(router.agents, router.query_costs, strict=True))
    costs = {
        row["sample_id"]: {name: row[f"cost_{k}"] for k, name in enumerate(router.agents)}
        for row in known.iter_rows(named=True)
    }
    asked = [row for row in rows if row["id"] in costs]
    for row in asked:
        decision = router.route(row, id=row["id"])
        router.feedback(decision, costs[row["id"]][decision.agent] - query[decision.agent] + 1e-12)
    router.log.close()
    return folder / "log", {name: np.mean([costs[row["id"]][name] for row in asked]) for name in router.agents}


def test_a_log_tells_what_each_agent_alone_would_have_cost(logged, patient_runs):
    log, true = logged
    found = l2d.replay(log, [f"always:{name}" for name in true], level=0.999)
    for one, (name, value) in zip(found.policies, true.items(), strict=True):
        for estimate in one.found:
            low, high = estimate.interval(0.999)
            assert low - 1e-6 <= value <= high + 1e-6, (name, estimate.name)
    exact = l2d.replay(log, [f"always:{name}" for name in true], cache=patient_runs / "cache")
    assert exact.known == exact.decisions
    for one, value in zip(exact.policies, true.values(), strict=True):
        assert by_name(one.found)["doubly robust"].value == pytest.approx(value, abs=1e-6)


def test_the_shadow_and_files_are_policies(logged, patient_runs, tmp_path):
    log, _ = logged
    l2d.route(patient_runs / "linear", patient_runs / "patients.parquet", tmp_path / "linear.parquet")
    shadow, by_file, greedy, uniform = l2d.replay(
        log, ["shadow", str(tmp_path / "linear.parquet"), "greedy", "uniform"], cache=patient_runs / "cache"
    ).policies
    for one, other in zip(shadow.found, by_file.found, strict=True):
        assert one.value == other.value
    assert all(gain.value == 0 for gain in greedy.gains)
    assert uniform.effective > greedy.effective * 0.5
    known = pl.read_parquet(patient_runs / "linear" / "allocations.parquet")
    assert by_name(shadow.found)["doubly robust"].value == pytest.approx(known["deferral_cost"].mean(), abs=1e-6)


def test_a_saved_policy_is_one(logged, patient_runs, tmp_path):
    log, _ = logged
    l2d.policy(patient_runs / "best", coverage=0.5, save=tmp_path / "half.json")
    (half,) = l2d.replay(log, str(tmp_path / "half.json")).policies
    assert half.refusal is None
    assert 0.2 < half.agrees < 0.8
    l2d.policy(patient_runs / "linear", coverage=0.5, save=tmp_path / "other.json")
    with pytest.raises(UsageError, match="another run"):
        l2d.replay(log, str(tmp_path / "other.json"))


def test_the_command_prints_and_refuses(logged, patient_runs, tmp_path, l2d):
    log, _ = logged
    code, out, err = l2d("replay", log, "--policy", "always:model", "--format", "json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["estimator"] for row in rows] == ["ips", "self-normalised", "doubly robust", "switch"]
    assert all(row["low"] < row["cost"] < row["high"] for row in rows)
    assert "the policy in force" in err
    for policy, said in (("always:mode1", "model"), ("greddy", "greedy"), ("nothing.csv", "no such file")):
        code, _, err = l2d("replay", log, "--policy", policy)
        assert code == 2
        assert said in err


def test_what_a_log_cannot_say_is_refused(patient_runs, tmp_path, l2d):
    import l2d as library

    router = library.load_router(patient_runs / "best", log=tmp_path / "log")
    rows = pl.read_parquet(patient_runs / "patients.parquet").to_dicts()[:60]
    decisions = [router.route(row) for row in rows]
    with pytest.raises(DataError, match="no outcome is known"):
        library.replay(tmp_path / "log", "greedy")
    for decision in decisions:
        router.feedback(decision, 1.0)
    code, out, err = l2d("replay", tmp_path / "log", "--policy", "always:model", "--format", "json")
    assert code == 3
    assert "could not have been drawn" in err
    assert json.loads(out)[0]["estimator"] == "refused"
    (done,) = library.replay(tmp_path / "log", "greedy").policies
    assert done.refusal is None
    assert done.effective == 60
    router.log.close()
    few = library.load_router(patient_runs / "best", explore=0.1, log=tmp_path / "few")
    for row in rows[: FEWEST - 5]:
        few.feedback(few.route(row), 1.0)
    (refused,) = library.replay(tmp_path / "few", "uniform").policies
    assert "are the least" in refused.refusal
    few.log.close()
