"""Policies on a real run: constraints on every split, the run's own figures, and the command line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from conftest import refused

from l2d.data.cache import store
from l2d.data.cache.reader import CostCache
from l2d.data.errors import DataError, UsageError
from l2d.rejector.grid import make_grid
from l2d.rejector.policies import policy as policies
from l2d.rejector.policies.assignment import assign
from l2d.rejector.policies.constraints import Constraint, make_constraints
from l2d.rejector.policies.cost_prediction import CostPredictor
from l2d.rejector.policies.policy import allocation_table, random_same_shares, run_policy
from l2d.rejector.policies.price_rule import Policy
from l2d.rejector.policies.scored import read_scored
from l2d.rejector.route import route
from l2d.rejector.runs.run import load_run, open_cache
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sweep import sweep

AGENTS = ["model", "expert", "cheap", "asked"]
PRICES = (0.0, 2.0, 1.0, 4.0)


@pytest.fixture(scope="module")
def run(patient_runs):
    return load_run(patient_runs / "linear")


@pytest.fixture(scope="module")
def agents(run):
    return open_cache(run).agents


def split_of(run, split: str) -> pl.DataFrame:
    return pl.read_parquet(run.path / "allocations.parquet").filter(pl.col("split") == split)


@pytest.mark.parametrize("mode", ["prices", "batch", "exact"])
def test_figures_are_those_of_the_runs_files(run, agents, mode):
    constraints = make_constraints(agents, budget=0.8, capacity={"expert": 0.25})
    report = run_policy(run, constraints, mode=mode)
    table, result = split_of(run, "test"), report.result
    costs = table.select([f"cost_{j}" for j in range(4)]).to_numpy().astype(float)
    allocation = report.allocation
    assert result["num_samples"] == len(table)
    assert result["policy"]["deferral_loss"] == pytest.approx(costs[np.arange(len(costs)), allocation].mean())
    assert result["rejector"]["deferral_loss"] == pytest.approx(table["deferral_cost"].mean(), abs=1e-6)
    shares = np.bincount(allocation, minlength=4) / len(table)
    assert result["policy"]["allocation"] == pytest.approx(dict(zip(AGENTS, shares, strict=True)))
    assert result["constraints"][0]["test"] == pytest.approx(shares @ PRICES)
    assert result["constraints"][1]["test"] == pytest.approx(shares[1])
    assert result["random_same_shares_loss"] == pytest.approx(float(costs.mean(axis=0) @ shares))
    assert result["optimality"]["gap"] >= 0
    oracle = result["best_possible"]
    assert oracle["deferral_loss"] <= result["policy"]["deferral_loss"] or not result["constraints"][0]["held"]
    assert oracle["used"]["budget"] <= 0.8 + 1e-9
    if mode != "prices":
        for split in ("validation", "test"):
            assert all(row[split] <= row["limit"] + 1e-9 for row in result["constraints"])
        assert all(row["held"] for row in result["constraints"])
    else:  # what prices are fitted on keeps to the limits
        assert all(row["validation"] <= row["limit"] + 1e-9 for row in result["constraints"])


def test_prices_and_search_agree(run, agents):
    for options in ({"coverage": 0.35}, {"budget": 0.5}, {"capacity": {"expert": 9, "cheap": 0.1, "model": 0.4}}):
        constraints = make_constraints(agents, **options)
        batch, exact = (run_policy(run, constraints, mode=mode).result for mode in ("batch", "exact"))
        assert batch["optimality"]["value"] == pytest.approx(exact["optimality"]["value"], abs=1e-7)
        assert batch["optimality"]["bound"] <= exact["optimality"]["value"] + 1e-9


def test_a_budget_that_does_not_bind_leaves_the_rejector_as_it_is(run, agents):
    report = run_policy(run, make_constraints(agents, budget=4.0), calibration="implied")
    assert report.result["constraints"][0]["dual_price"] == 0
    np.testing.assert_array_equal(report.allocation, report.split.chosen)


def test_coverage_is_exact_to_the_sample_where_the_batch_is_known(run, agents):
    for share in (0.0, 0.123, 0.5, 1.0):
        report = run_policy(run, make_constraints(agents, coverage=share), mode="batch")
        assert (report.allocation == 0).sum() == int(share * len(report.allocation) + 0.5)


def test_capacities_of_batches(run, agents):
    report = run_policy(
        run, make_constraints(agents, capacity={"expert": 3, "asked": 0.2}), mode="batch", batch_size=20
    )
    for start in range(0, len(report.allocation), 20):
        counts = np.bincount(report.allocation[start : start + 20], minlength=4)
        assert counts[1] <= 3
        assert counts[3] <= 0.2 * len(report.allocation[start : start + 20])


def test_a_policy_serves_one_input_at_a_time_as_it_serves_many(run, agents):
    report = run_policy(run, make_constraints(agents, budget=0.5))
    rows = [report.policy.allocate(report.split.scores[k : k + 1])[0] for k in range(len(report.split))]
    np.testing.assert_array_equal(rows, report.allocation)


def test_scores_of_minus_infinity_say_that_an_agent_is_away(run, agents):
    for calibration in ("implied", "isotonic"):
        report = run_policy(run, make_constraints(agents, budget=0.8), calibration=calibration)
        scores = report.split.scores.copy()
        scores[np.arange(len(scores)), report.allocation] = -np.inf
        assert (report.policy.allocate(scores) != report.allocation).all()


def test_nobody_gets_a_sample_for_an_agent_that_is_away(run, agents, monkeypatch):
    original = {split: read_scored(run, split) for split in ("validation", "test")}

    def with_gaps(run, split):
        found = original[split]
        gone = np.random.default_rng(len(split)).random(found.costs.shape) < 0.3
        gone[:, 2] = False
        costs = np.where(gone, np.inf, found.costs)
        chosen = np.where(gone, -np.inf, found.scores).argmax(axis=1)
        return replace(found, costs=costs, scores=np.where(gone, np.nan, found.scores), chosen=chosen)

    monkeypatch.setattr(policies, "read_scored", with_gaps)
    constraints = make_constraints(agents, budget=0.8, capacity={"expert": 0.2})
    for mode in ("prices", "batch", "exact"):
        for calibration in ("implied", "linear", "isotonic"):
            report = run_policy(run, constraints, mode=mode, calibration=calibration)
            chosen = report.split.costs[np.arange(len(report.split)), report.allocation]
            assert np.isfinite(chosen).all()
            assert np.isfinite(
                [report.result["random_same_shares_loss"], report.result["policy"]["deferral_loss"]]
            ).all()
            json.dumps(report.result, allow_nan=False)
            table = allocation_table(report)
            assert table["predicted_cost_0"].null_count == int((~report.split.available[:, 0]).sum()) > 0
    kept = make_constraints(agents, coverage=0.9)
    refused(lambda: run_policy(run, kept, mode="batch"), UsageError, "coverage = 0.9", "the validation split")


def test_random_shares_are_drawn_among_who_is_there():
    costs = np.array([[1.0, 2.0, np.inf], [4.0, np.inf, np.inf], [np.inf, 3.0, 5.0]])
    allocation = np.array([0, 0, 1])  # shares 2/3, 1/3, 0
    assert random_same_shares(allocation, costs) == pytest.approx((4 / 3 + 4 + 3) / 3)
    assert random_same_shares(np.array([0, 0, 0]), costs[[2, 2, 2]]) == pytest.approx(4)  # none of theirs: equal shares


def test_prices_are_raised_by_a_hair_where_ties_break_a_limit(run):
    """Fifty samples alike and one limit: at the price that binds they could go either way."""
    predicted = np.tile([0.7, 0.2, 0.9, 0.9], (50, 1))
    constraint = Constraint("capacity of expert", "<= 0.3", (0.0, 1.0, 0.0, 0.0), limit=0.3)
    solved = assign(predicted, [constraint])
    assert np.bincount(solved.allocation, minlength=4).tolist() == [35, 15, 0, 0]
    predictor = CostPredictor("implied", "regression", 1.0, {"scale": 1.0})
    policy = policies._policy(run, predictor, predicted, solved, [constraint])
    assert isinstance(policy, Policy)
    assert constraint.used(policy.of_costs(predicted)) <= 15


def test_wrong_options_are_refused(run, agents):
    constraints = make_constraints(agents, budget=0.5)
    for options, words in (({"mode": "fast"}, "--mode fast"), ({"calibration": "none"}, "--calibration none")):
        with pytest.raises(UsageError) as caught:
            run_policy(run, constraints, **options)
        assert words in str(caught.value)
    refused(lambda: read_scored(run, "other"), DataError, "no other samples")


# --- the command line -----------------------------------------------------------------------------------------------


def test_the_command_prints_one_object_and_writes_what_it_allocated(run, l2d, tmp_path):
    out = tmp_path / "allocations.parquet"
    arguments = ["policy", run.path, "--coverage", 0.4, "--capacity", "expert=0.3,asked=5", "--mode", "batch"]
    code, printed, err = l2d(*arguments, "--out", out, "--format", "json")
    assert code == 0, err
    result = json.loads(printed)
    assert [row["name"] for row in result["constraints"]] == ["coverage", "capacity of expert", "capacity of asked"]
    assert all(row["held"] for row in result["constraints"])
    written = store.read_table(out)
    shares = {name: written["agent"].to_pylist().count(name) / len(written) for name in AGENTS}
    assert shares == pytest.approx(result["policy"]["allocation"])
    assert np.mean(written["deferral_cost"]) == pytest.approx(result["policy"]["deferral_loss"], abs=1e-6)
    assert written["sample_id"].to_pylist() == split_of(run, "test")["sample_id"].to_list()
    code, _, err = l2d(*arguments, "--out", out)
    assert (code, "--overwrite" in err) == (2, True)
    assert l2d(*arguments, "--out", out, "--overwrite")[0] == 0
    code, printed, err = l2d(*arguments, "--split", "validation")
    assert (code, "best within the limits" in printed, "optimality gap" in err) == (0, True, True)
    code, printed, _ = l2d(*arguments, "--format", "csv")
    assert (code, printed.count("\n")) == (0, 6)


def test_the_command_says_what_cannot_be(run, l2d):
    for arguments, words in (
        (["--budget", 0.2, "--coverage", 0.1], "these cannot be met together: budget <= 0.2 and coverage = 0.1"),
        (["--gflops", 100], "are not known"),
        (["--capacity", "expert"], "expects agent=limit"),
        ([], "no constraint is given"),
    ):
        code, _, err = l2d("policy", run.path, *arguments)
        assert (code, words in err) == (2, True), err


def test_a_saved_policy_goes_to_work_on_inputs_that_nobody_has_labelled(run, l2d, tmp_path):
    """Rows of the training table get what the policy gave them."""
    saved, out, routed = tmp_path / "policy.json", tmp_path / "test.parquet", tmp_path / "routed.parquet"
    code, _, err = l2d("policy", run.path, "--budget", 0.5, "--save", saved, "--out", out)
    assert (code, f"--policy {saved}" in err) == (0, True), err
    table = run.path.parent / "patients.parquet"
    code, _, err = l2d("route", run.path, table, "--policy", saved, "--out", routed)
    assert code == 0, err
    expected = dict(pl.read_parquet(out).select("sample_id", "agent").iter_rows())
    found = dict(pl.read_parquet(routed).select("sample_id", "agent").iter_rows())
    assert {sample: found[sample] for sample in expected} == expected
    alone = dict(split_of(run, "test").select("sample_id", "agent").iter_rows())
    assert alone != expected  # the budget binds
    code, _, err = l2d("route", run.path.parent / "mlp", table, "--policy", saved, "--out", tmp_path / "o.csv")
    assert (code, "this policy is of run" in err) == (2, True), err
    code, _, err = l2d("route", run.path, table, "--policy", tmp_path / "none", "--out", tmp_path / "o.csv")
    assert (code, "there is no policy here" in err) == (2, True), err
    code, _, err = l2d("policy", run.path, "--budget", 0.5, "--save", saved)
    assert (code, "--overwrite" in err) == (2, True), err
    code, _, err = l2d("policy", run.path, "--budget", 0.5, "--save", tmp_path / "p.json", "--mode", "batch")
    assert (code, "--mode prices" in err) == (2, True), err
    saved.write_text(saved.read_text().replace("agents", "agents ", 1))
    code, _, err = l2d("route", run.path, table, "--policy", saved, "--out", tmp_path / "o.csv")
    assert (code, str(saved) in err) == (3, True), err


# --- the default method ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held(patient_runs, tmp_path_factory):
    """A run of the default method whose guard holds the fallback, and the same with the guard off."""
    folder, cache = tmp_path_factory.mktemp("held"), CostCache(patient_runs / "cache")
    values = {"methods": ["best"], "weights": [{"cla": 1.0}], "betas": [0.0], "nus": [1.0], "seeds": [0]}
    points = make_grid(cache, **values)
    for name, guard in (("held", 1e9), ("free", 0.0)):
        sweep(cache, points, [folder / name], TrainConfig(guard=guard))
    return load_run(folder / "held"), load_run(folder / "free")


@pytest.mark.slow
def test_a_guard_that_holds_does_not_hide_costs_from_a_policy(held, agents):
    """Behind the guard every input has the same scores: a budget would be spent on inputs at random."""
    run, free = held
    assert run.rejector.guard["holds"]
    assert split_of(run, "test")["agent"].n_unique() == 1
    for mode in ("prices", "batch"):
        limits = make_constraints(agents, budget=0.5)
        report = run_policy(run, limits, mode=mode, calibration="implied")
        np.testing.assert_array_equal(
            report.predicted, run_policy(free, limits, mode=mode, calibration="implied").predicted
        )
        np.testing.assert_array_equal(
            report.allocation, run_policy(free, limits, mode=mode, calibration="implied").allocation
        )
    assert report.result["rejector"]["allocation"][AGENTS[run.rejector.guard["fallback"]]] == 1  # without a limit


def test_a_policy_of_a_guarded_run_routes_as_it_was_evaluated(held, agents, patient_runs, tmp_path):
    run, _ = held
    report = run_policy(run, make_constraints(agents, budget=0.5))
    report.policy.save(tmp_path / "policy.json")
    table = patient_runs / "patients.parquet"
    route(run.path, table, tmp_path / "routed.parquet", policy=tmp_path / "policy.json")
    found = dict(pl.read_parquet(tmp_path / "routed.parquet").select("sample_id", "agent").iter_rows())
    expected = [run.agents[agent] for agent in report.allocation]
    assert [found[sample] for sample in report.split.ids] == expected
    assert len(set(expected)) > 1
