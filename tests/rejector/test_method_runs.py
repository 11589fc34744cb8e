"""Runs of the literature's methods: saved, read back, evaluated, queried and routed like the others'."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from l2d.data.errors import UsageError
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.evaluation.summary import paper_table
from l2d.rejector.grid import chosen_agents, make_grid
from l2d.rejector.methods import LITERATURE as METHODS
from l2d.rejector.policies.constraints import Constraint
from l2d.rejector.policies.policy import run_policy
from l2d.rejector.route import route
from l2d.rejector.rows.subset import training_rows
from l2d.rejector.rows.table import load_tables
from l2d.rejector.runs.run import load_run
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sql.query import query
from l2d.rejector.sweep import sweep
from l2d.rejector.training.loop import train_grid

QUICK = {"network": "linear", "epochs": 3, "batch_size": 64, "lr": 0.05}
PLAIN = [name for name in METHODS if name != "post_hoc"]  # which is for one expert


def run_methods(cache, folder: Path, methods: list[str], *, config: dict | None = None, **grid) -> list[Path]:
    values = {"methods": methods, "weights": [{"cla": 1.0}], "betas": [0.05], "nus": [1.0], "seeds": [0], **grid}
    points = make_grid(cache, **values)
    folders = [folder / point.run_id for point in points]
    return sweep(cache, points, folders, TrainConfig(**{**QUICK, **(config or {})})).folders


@pytest.fixture(scope="module")
def swept(make_cache, tmp_path_factory):
    """The folder of a cache, and runs of all methods but one on it, one of them with two seeds."""
    folder = tmp_path_factory.mktemp("methods")
    cache = make_cache(folder)
    runs = run_methods(cache, folder / "runs", ["multi-task", *PLAIN])
    runs += run_methods(cache, folder / "runs", ["realizable"], seeds=[1])
    return folder, cache, runs


@pytest.fixture(scope="module")
def evaluated(swept):
    return evaluate_runs(swept[2])


def answers_of(folder: Path, run: Path) -> pl.DataFrame:
    """A run's test allocations with the truth and every agent's cached class."""
    allocations = pl.read_parquet(run / "allocations.parquet").filter(pl.col("split") == "test")
    truth = pl.concat([pl.read_parquet(part) for part in sorted((folder / "cache").rglob("samples/*.parquet"))])
    found = allocations.join(truth.select("sample_id", "target_cla"), on="sample_id")
    sql = "SELECT sample_id, agent, pred_cla AS cached FROM predictions"
    cached = pl.from_arrow(query([folder / "cache"], sql)).pivot("agent", index="sample_id", values="cached")
    return found.join(cached, on="sample_id")


@pytest.mark.slow
def test_every_method_is_evaluated_on_its_own_answers(swept, evaluated):
    folder, cache, _ = swept
    names = [agent.name for agent in cache.agents]
    for evaluation in evaluated:
        result, rows = evaluation.result, answers_of(folder, evaluation.run.path)
        own = METHODS.get(result["method"]) is not None and METHODS[result["method"]].classifier == "own"
        assert result["classifier"] == ("own" if own else "cached")
        assert ("pred_cla" in rows.columns) is own
        of_model = rows["pred_cla" if own else "model"].to_numpy()
        answers = np.stack([of_model, *(rows[name].to_numpy() for name in names[1:])], axis=1)
        truth, chosen = rows["target_cla"].to_numpy(), rows["agent_index"].to_numpy()
        wrong = answers[np.arange(len(rows)), chosen] != truth
        assert result["metrics"]["accuracy"] == pytest.approx(1 - wrong.mean())
        beta = np.array(evaluation.run.point.query_costs)
        assert result["deferral_loss"] == pytest.approx((wrong + beta[chosen]).mean(), rel=1e-6)
        assert result["agents"]["model"]["accuracy"] == pytest.approx((of_model == truth).mean())
        every = (answers != truth[:, None]) + beta
        assert result["oracle_loss"] == pytest.approx(every.min(axis=1).mean(), rel=1e-6)
        np.testing.assert_allclose(rows.select(f"cost_{j}" for j in range(len(names))).to_numpy(), every, atol=1e-6)


def test_the_own_classifier_alone_is_a_mean_over_seeds(evaluated):
    evaluations = evaluated
    ours = [e for e in evaluations if e.result["method"] == "realizable"]
    losses = [e.baselines.alone["model"].mean() for e in ours]
    assert losses[0] != losses[1]
    difference = ours[0].result["over_seeds"]["agents"]["model"]["value"]
    assert difference == pytest.approx(np.mean([e.losses.mean() for e in ours]) - np.mean(losses), abs=1e-6)
    rows = [row for row in paper_table(evaluations) if row is not None]
    alone = next(row for row in rows if row["rejector"] == "model of realizable alone")
    assert alone["deferral loss"] == f"{np.mean(losses):.4f}"
    shown = next(row for row in rows if row["rejector"].startswith("realizable"))["rejector"]
    assert shown == "realizable (Mozannar et al. 2023), own classifier, trained without query costs"


def test_runs_read_back_score_and_route_as_they_were_saved(swept, tmp_path):
    folder, cache, runs = swept
    for path in runs[:-1]:
        run = load_run(path)
        saved = pl.read_parquet(path / "allocations.parquet")
        if run.point.method in METHODS and METHODS[run.point.method].classifier == "given":
            with pytest.raises(UsageError, match="--classifier own"):
                route(path, folder / "patients.parquet", tmp_path / "no.parquet")
            continue
        out = tmp_path / f"{run.point.method}.parquet"
        route(path, folder / "patients.parquet", out)
        routed = pl.read_parquet(out)
        joined = saved.join(routed, on="sample_id", suffix="_routed")
        assert len(joined) == len(saved)
        scores = [joined[f"score_{j}"] - joined[f"score_{j}_routed"] for j in range(len(cache.agents))]
        assert max(difference.abs().max() for difference in scores) < 1e-4
        if run.rejector.has_classifier:
            assert (joined["pred_cla"] == joined["pred_cla_routed"]).all()


def test_runs_of_all_methods_are_queried_together(swept):
    folder = swept[0]
    sql = "SELECT method, count(*) AS rows, count(pred_cla) AS own FROM allocations JOIN runs USING (run_id) GROUP BY 1"
    rows = {row["method"]: row for row in query([folder], sql).to_pylist()}
    assert rows.keys() == {"multi-task", *PLAIN}
    for name, row in rows.items():
        assert row["own"] == (row["rows"] if name in METHODS and METHODS[name].classifier == "own" else 0)


@pytest.mark.slow
def test_a_classifier_of_ones_own_takes_the_models_place(swept, tmp_path):
    folder, whole, _ = swept
    cache = chosen_agents(whole, ["expert", "model"])
    assert [agent.name for agent in cache.agents] == ["model", "expert"]
    methods = ["confidence", "model_confidence", "post_hoc", "knn"]
    runs = run_methods(cache, tmp_path / "own", methods, config={"classifier": "own"})
    evaluations = evaluate_runs(runs)
    for evaluation in evaluations:
        rows = answers_of(folder, evaluation.run.path)
        alone = evaluation.result["agents"]["model"]["accuracy"]
        assert alone == pytest.approx((rows["pred_cla"] == rows["target_cla"]).mean())
        assert evaluation.result["allocation"].keys() == {"model", "expert"}
    same = {e.result["agents"]["model"]["accuracy"] for e in evaluations}
    assert len(same) == 1  # they all start from the same classifier


def test_what_a_method_is_not_defined_for_is_refused(swept, tmp_path):
    cache = swept[1]
    cases = [
        (["post_hoc"], {}, "one expert"),
        (["mozannar_sontag"], {"weights": []}, "--lambda cla=1"),
        (["knn"], {"config": {"network": "transformer"}}, "linear"),
        (["knn"], {"config": {"memory": 10**9}}, "--memory"),
        (["multi-task"], {"config": {"classifier": "own"}}, "--classifier own"),
        (["cost_regression"], {"config": {"classifier": "own"}, "weights": []}, "--lambda cla=1"),
        (["knn"], {"config": {"train_rows": 10_000}}, "--train-rows"),
    ]
    for number, (methods, options, words) in enumerate(cases):
        with pytest.raises(UsageError) as caught:
            run_methods(cache, tmp_path / str(number), methods, **options)
        assert words in str(caught.value)
        assert caught.value.hint
    with pytest.raises(UsageError, match="--only model,expert"):
        chosen_agents(cache, ["expert"])
    with pytest.raises(UsageError, match="nobody"):
        chosen_agents(cache, ["model", "nobody"])
    with pytest.raises(UsageError, match="mozannar_sontag"):
        run_methods(cache, tmp_path / "x", ["no_such"])


def test_methods_have_no_nu_so_a_grid_of_nus_has_each_of_them_once(swept):
    grid = {"weights": [{"cla": 1.0}], "betas": [0.0], "nus": [0.0, 1.0, 2.0], "seeds": [0, 1]}
    points = make_grid(swept[1], methods=["multi-task", "knn"], **grid)
    assert [point.method for point in points].count("knn") == 2
    assert [point.method for point in points].count("multi-task") == 6


def test_fewer_training_rows_are_nested_and_drawn_by_the_seed():
    smaller, larger = (set(training_rows(100, wanted, 3).tolist()) for wanted in (20, 0.5))
    assert (len(smaller), len(larger)) == (20, 50)
    assert smaller < larger
    assert smaller != set(training_rows(100, 20, 4).tolist())
    assert training_rows(5, None, 0).tolist() == [0, 1, 2, 3, 4]


def test_a_grid_on_fewer_rows_is_a_grid_on_a_table_of_these_rows(swept, tmp_path):
    cache = swept[1]
    runs = run_methods(cache, tmp_path / "few", ["multi-task"], config={"train_rows": 60}, seeds=[0, 1])
    tables = load_tables(cache, ("train", "validation"))
    for path in runs:
        run = load_run(path)
        rows = training_rows(len(tables["train"]), 60, run.point.seed)
        part = type(tables["train"])(
            split="train", ids=[], features=tables["train"].features[rows], raw=tables["train"].raw[rows]
        )
        config = TrainConfig(**{**QUICK, "train_rows": 60})
        wanted = train_grid([run.point], part, tables["validation"], config, tasks=cache.record.tasks)[0]
        assert all(torch.equal(run.rejector.state[name], value) for name, value in wanted.state.items())
        assert json.loads((path / "run.json").read_text())["training"]["train_rows"] == 60


def test_a_method_on_fewer_rows_sees_these_alone(swept, tmp_path):
    cache = swept[1]
    run = load_run(run_methods(cache, tmp_path / "few", ["knn"], config={"train_rows": 50})[0])
    train = load_tables(cache, ("train",))["train"]
    part = train.features[training_rows(len(train), 50, 0)]
    memory = run.rejector.state["memory_x"] * run.rejector.state["feature_std"] + run.rejector.state["feature_mean"]
    torch.testing.assert_close(memory, part, atol=1e-4, rtol=1e-4)


def test_runs_among_other_agents_are_other_settings_not_seeds(swept, tmp_path):
    _, cache, runs = swept
    pair = run_methods(chosen_agents(cache, ["model", "expert"]), tmp_path / "pair", ["knn"])
    mine = [path for path in runs if path.name.startswith("knn")]
    evaluations = evaluate_runs([*mine, *pair])
    assert [e.result["over_seeds"]["seeds"] for e in evaluations] == [1, 1]
    rows = [row for row in paper_table(evaluations) if row is not None]
    assert {row["agents"] for row in rows[:2]} == {"model,expert", "model,expert,cheap,asked"}


def test_a_report_says_how_to_make_such_runs_again(swept, tmp_path):
    from l2d.rejector.report.reproduce import commands

    cache = chosen_agents(swept[1], ["model", "expert"])
    runs = run_methods(cache, tmp_path / "pair", ["knn"], config={"classifier": "own", "train_rows": 0.5})
    lines = commands(evaluate_runs(runs), tmp_path / "page.html")
    (line,) = [text for text in lines if text.startswith(("l2d sweep", "l2d train"))]
    assert "--only model,expert" in line
    assert "--classifier own" in line
    assert "--train-rows 0.5" in line


def test_what_is_about_one_network_refuses_a_run_that_is_more(swept, tmp_path):
    from l2d.rejector.theory.of_costs import Judged
    from l2d.rejector.theory.section import theory_section
    from l2d.rejector.theory.subject import examine

    path = next(path for path in swept[2] if path.name.startswith("realizable"))
    with pytest.raises(UsageError, match="no theory here is about method 'realizable'"):
        theory_section(path)
    for taken, of in ((examine, "multi-task"), (Judged.of, "best")):
        with pytest.raises(UsageError, match=f"not for runs of method 'realizable'\n.*{of}"):
            taken(load_run(path), "test")


def test_a_policy_takes_what_scores_say_of_costs_and_refuses_scores_that_say_nothing(swept):
    for folder in swept[2]:
        run = load_run(folder)
        told = "costs" if run.point.method == "multi-task" else METHODS[run.point.method].scores
        constraints = [Constraint("capacity of expert", "<= 1", (0.0, 1.0, *[0.0] * (len(run.agents) - 2)), limit=1.0)]
        if told == "order":
            with pytest.raises(UsageError, match="which agent is best, not what each would cost"):
                run_policy(run, constraints)
            continue
        report = run_policy(run, constraints, calibration="implied")
        np.testing.assert_array_equal(report.allocation, report.split.chosen)  # a limit that does not bind
        there = report.split.available
        if run.point.method in ("knn", "cost_regression"):
            np.testing.assert_array_equal(report.predicted[there], -report.split.scores[there])
        if run.point.method == "confidence":  # 0-1 costs: what is not right costs 1
            np.testing.assert_array_equal(report.predicted[there], 1 - report.split.scores[there])


def test_each_method_says_what_its_scores_are():
    assert {name for name, method in METHODS.items() if method.scores == "costs"} >= {"knn", "cost_regression"}
    assert METHODS["post_hoc"].scores == "surrogate"  # with one expert it is the paper's surrogate at nu = 1


def test_a_method_of_a_sweep_that_does_not_fit_is_left_out_by_name_and_the_others_run(make_cache, tmp_path):
    """The cache has three experts and costs of values beside those of classes: three methods are not defined for it."""
    from l2d.rejector.library import sweep

    cache, said = make_cache(tmp_path), []
    wanted = ["post_hoc", "regression-only", "knn", "mozannar_sontag"]
    runs = sweep(cache, tmp_path / "runs", methods=wanted, betas=[0.0], seeds=1, say=said.append, epochs=2)
    assert {run.name.partition("_beta")[0] for run in runs.folders} == {"regression-only", "knn"}
    left_out = [line for line in said if line.startswith("left out")]
    assert len(left_out) == 2
    assert left_out[0].startswith("left out post_hoc: method 'post_hoc' is for one expert")
    assert left_out[1].startswith("left out mozannar_sontag: method 'mozannar_sontag'")
    with pytest.raises(UsageError, match="post_hoc"):
        sweep(cache, tmp_path / "none", methods=["post_hoc", "mozannar_sontag"], betas=[0.0], seeds=1)
    with pytest.raises(UsageError, match="post_hoc"):
        sweep(cache, tmp_path / "one", methods=["post_hoc"], betas=[0.0], seeds=1)
