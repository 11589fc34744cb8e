"""A run of the default method at query costs and weights that it was not trained at: as if it had been."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest

from l2d.data.cache.reader import CostCache
from l2d.data.errors import UsageError
from l2d.rejector import at_work as library
from l2d.rejector.grid import make_grid
from l2d.rejector.library import train
from l2d.rejector.runs.elsewhere import at_setting
from l2d.rejector.runs.run import load_run
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sweep import sweep

FEW = {"expert": 0.3, "cheap": 0.2, "asked": 0.02}


@pytest.fixture(scope="module")
def home(patient_runs, tmp_path_factory):
    """Runs of one fit on the patients' cache at several settings, with the default guard, and another seed's."""
    folder = tmp_path_factory.mktemp("settings")
    cache = CostCache(patient_runs / "cache")
    for name, weights, beta in (
        ("free", {"cla": 1.0, "reg": 0.2}, 0.0),
        ("scaled", {"cla": 1.0, "reg": 0.2}, 0.3),
        ("named", {"cla": 1.0, "reg": 0.2}, FEW),
        ("class", {"cla": 1.0}, 0.3),
        ("dear", {"cla": 1.0, "reg": 0.2}, 50.0),
    ):
        [point] = make_grid(cache, methods=["best"], nus=[1.0], seeds=[0], weights=[weights], betas=[beta])
        sweep(cache, [point], [folder / name], TrainConfig())
    return folder


def routed(run, source, out, **options) -> pl.DataFrame:
    library.route(run, source, out, overwrite=True, **options)
    return pl.read_parquet(out)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("scaled", {"beta": 0.3}),
        ("named", {"beta": FEW}),
        ("class", {"beta": 0.3, "weights": {"cla": 1.0}}),
        ("dear", {"beta": 50.0}),
    ],
)
def test_a_run_at_another_setting_is_the_run_that_was_trained_there(home, patient_runs, tmp_path, name, setting):
    """Same scores to the bit, same guard, whether it holds or not; and the cache is not needed."""
    shutil.copytree(home / "free", tmp_path / "away" / "run")  # its cache is not where it was
    table = patient_runs / "patients.parquet"
    wanted = routed(home / name, table, tmp_path / "trained.parquet")
    found = routed(tmp_path / "away" / "run", table, tmp_path / "moved.parquet", **setting)
    assert found.equals(wanted)
    trained, moved = load_run(home / name).rejector, at_setting(load_run(home / "free"), **setting).rejector
    assert moved.guard == trained.guard
    assert trained.guard["holds"] == (name in ("scaled", "dear"))
    back = at_setting(load_run(home / "dear"), beta=0.0).rejector
    assert back.guard == load_run(home / "free").rejector.guard


def test_guards_are_judged_on_the_samples_that_were_fitted(home):
    run = load_run(home / "named").rejector
    predicted, costs = run.held_out()
    table = pl.read_parquet(home / "named" / "allocations.parquet").filter(pl.col("split") != "test")
    assert len(predicted) == len(table)
    mine = np.sort(costs[:, 1])
    np.testing.assert_allclose(mine, np.sort(table["cost_1"].to_numpy()), atol=1e-6)
    scores = -table.select(pl.col("^score_.*$")).to_numpy()
    np.testing.assert_allclose(np.sort(predicted[:, 1]), np.sort(scores[:, 1]), atol=1e-5)


def test_a_policy_and_a_graph_at_another_setting(home, patient_runs, tmp_path):
    """The policy of a run that was trained there; its file knows the setting, so any run of the fit routes by it."""
    table, setting = patient_runs / "patients.parquet", {"beta": FEW}
    wanted = library.policy(home / "named", budget=0.5, save=tmp_path / "trained.json")
    found = library.policy(home / "free", budget=0.5, save=tmp_path / "moved.json", **setting)
    np.testing.assert_array_equal(found.allocation, wanted.allocation)
    for name in ("policy", "rejector", "constraints", "random_same_shares_loss"):
        assert json.dumps(found.result[name]) == json.dumps(wanted.result[name])
    by = [
        routed(home / run, table, tmp_path / "out.parquet", policy=tmp_path / f"{file}.json")
        for run, file in (("named", "trained"), ("free", "moved"), ("free", "trained"), ("dear", "moved"))
    ]
    assert all(rows.equals(by[0]) for rows in by)
    assert by[0]["agent"].n_unique() > 1
    with pytest.raises(UsageError, match="has the query costs"):
        library.route(home / "free", table, tmp_path / "no.parquet", policy=tmp_path / "moved.json", beta=0.1)

    onnxruntime = pytest.importorskip("onnxruntime")
    library.export(home / "free", tmp_path / "moved.onnx", **setting)
    session = onnxruntime.InferenceSession(tmp_path / "moved.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["query_costs"]) == pytest.approx([0, 0.3, 0.2, 0.02])
    rejector = load_run(home / "named").rejector
    x = rejector.state["feature_mean"] + rejector.state["feature_std"] * 0.3
    _, agent = session.run(None, {"features": x[None].astype(np.float32)})
    assert agent[0] == rejector.scores(x[None].astype(np.float32)).argmax()


def test_the_command_says_what_the_guard_says(home, patient_runs, tmp_path, l2d):
    table = patient_runs / "patients.parquet"
    args = ("route", home / "free", table, "--format", "json", "--out")
    code, out, err = l2d(*args, tmp_path / "a.parquet", "--beta", 50)
    assert code == 0, err
    found = json.loads(out)
    assert "choosing agents does not pay here" in err
    assert found["setting"]["query_costs"]["expert"] == pytest.approx(25)  # asked, at a price of 4, is the dearest
    assert [row["agent"] for row in found["agents"] if row["samples"]] == ["model"]
    code, out, err = l2d(*args, tmp_path / "b.parquet", "--beta", "expert=0.15,cheap=0.02", "--lambda", "cla=1")
    assert code == 0, err
    assert "held-out gain" in err
    assert json.loads(out)["setting"]["lambda"] == {"cla": 1.0, "reg": 0.0}


@pytest.mark.parametrize(
    ("run", "options", "words"),
    [
        ("mlp", ("--beta", "0.1"), "method 'multi-task' trains on total costs"),
        ("best", ("--beta", "0.1,0.2"), "gives 2 values"),
        ("best", ("--beta", "exprt=0.1"), "'expert'"),
        ("best", ("--beta", "-1"), "query costs are numbers >= 0"),
        ("best", ("--beta", "model=0.1"), "must be 0"),
        ("best", ("--lambda", "clas=1"), "'cla'"),
        ("best", ("--lambda", "cla=0"), "every task weighs 0"),
    ],
)
def test_what_a_run_cannot_be_put_at_is_refused_and_nothing_is_written(
    patient_runs, tmp_path, l2d, run, options, words
):
    for command in (
        ("route", patient_runs / run, patient_runs / "patients.parquet", "--out", tmp_path / "out.parquet"),
        ("policy", patient_runs / run, "--budget", "1", "--out", tmp_path / "out.parquet"),
        ("export", patient_runs / run, "--onnx", tmp_path / "out.parquet"),
    ):
        code, _, err = l2d(*command, *options)
        assert (code, words in err) == (2, True), err
    assert not (tmp_path / "out.parquet").exists()


def test_methods_whose_scores_are_not_costs_by_task_say_so(make_cache, tmp_path):
    from test_method_runs import run_methods

    cache = make_cache(tmp_path)
    runs = run_methods(cache, tmp_path / "runs", ["knn", "learned_oracle"])
    for run, words in zip(runs, ("predicts one total cost", "says which agent is best"), strict=True):
        with pytest.raises(UsageError, match=words):
            at_setting(load_run(run), beta=0.1)


def test_a_run_with_a_cost_of_its_own_has_no_weights(make_cache, tmp_path):
    cache = make_cache(tmp_path)
    run = train(cache, tmp_path / "run", method="best", cost="greatest(cost_cla, 0.2 * cost_reg)", beta=0.0)
    with pytest.raises(UsageError, match="no task weights"):
        at_setting(run, weights={"cla": 1.0})
    moved = at_setting(run, beta=0.3).rejector
    trained = train(cache, tmp_path / "b", method="best", cost=run.point.cost, beta=0.3).rejector
    assert moved.guard == trained.guard
    assert moved.point.query_costs == trained.point.query_costs


def test_an_estimator_at_other_query_costs_is_the_one_that_was_fitted_with_them():
    from sklearn.base import clone

    from l2d.rejector.estimator import DeferralRejector

    generator = np.random.default_rng(0)
    x = generator.standard_normal((300, 4))
    costs = (generator.random((300, 3, 2)) < 1 / (1 + np.exp(-2 * x[:, :3, None]))).astype(float)
    asked = {"query_costs": [0.0, 0.1, 0.3], "weights": [1.0, 0.2]}
    fitted = DeferralRejector(guard=0.2).fit(x, costs)
    moved, wanted = fitted.at(**asked), DeferralRejector(guard=0.2, **asked).fit(x, costs)
    np.testing.assert_array_equal(moved.decision_function(x), wanted.decision_function(x))
    assert moved.rejector_.guard == wanted.rejector_.guard
    assert clone(moved).get_params() == wanted.get_params()
    assert fitted.query_costs is None
    assert len(set(moved.predict(x))) > 1
    np.testing.assert_array_equal(moved.at(query_costs=[0.0, 0.0, 0.0]).query_costs, [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="3 numbers"):
        fitted.at(query_costs=[1.0])
    network = DeferralRejector(method="multi-task", epochs=2).fit(x, costs)
    with pytest.raises(ValueError, match="multi-task"):
        network.at(query_costs=[0.0, 0.1, 0.3])
