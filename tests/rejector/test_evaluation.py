"""Evaluation, recomputed with polars and numpy from the files alone; and the metrics and intervals it is made of."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score

from l2d.data.errors import UsageError
from l2d.rejector.evaluation.cost_quality import cost_quality
from l2d.rejector.evaluation.curves import model_curve, system_curve
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.evaluation.intervals import paired_interval

BASELINES = {
    "oracle",
    "best_agent",
    "best_constant",
    "random_same_shares",
    "confidence",
    "confidence_same_coverage",
    "averaging",
}
METHODS = ["classification-only", "multi-task"]
AGENTS = ["model", "expert", "cheap", "asked"]
BETA = {"model": 0.0, "expert": 0.05 * 2 / 4, "cheap": 0.05 * 1 / 4, "asked": 0.05}


@pytest.fixture(scope="module")
def trained(make_cache, make_runs, tmp_path_factory) -> tuple[Path, list[Path], list]:
    """A cache, runs of two methods with three seeds each, and their evaluations on test."""
    folder = tmp_path_factory.mktemp("evaluation")
    cache = make_cache(folder)
    runs = make_runs(cache, folder / "runs", methods=METHODS, seeds=[0, 1, 2])
    return folder, runs, evaluate_runs(runs)


def read(folder: Path, pattern: str) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(file) for file in sorted(folder.glob(pattern))])


class Files:
    """The test split of a cache, read without the code under test."""

    def __init__(self, folder: Path, split: str = "test"):
        samples = read(folder, "cache/samples/*.parquet")
        mask = samples["split"] == split
        self.samples = samples.filter(mask)
        self.predictions, self.raw = {}, {}
        for agent in [*AGENTS, "everyone"]:
            self.predictions[agent] = read(folder, f"cache/agents/{agent}/predictions/*.parquet").filter(mask)
            costs = read(folder, f"cache/agents/{agent}/costs-*/*.parquet").filter(mask)
            assert costs["sample_id"].to_list() == self.samples["sample_id"].to_list()
            cla, reg = costs["cost_cla"].cast(pl.Float64).to_numpy(), costs["cost_reg"].cast(pl.Float64).to_numpy()
            self.raw[agent] = cla + 0.2 * reg
        self.costs = np.stack([self.raw[agent] + BETA[agent] for agent in AGENTS], axis=1)

    def __len__(self) -> int:
        return len(self.samples)

    def chosen(self, run: Path) -> np.ndarray:
        """Who a linear rejector allocates to, from its weights."""
        state = load_file(run / "rejector.safetensors")
        features = np.stack(self.samples["features"].to_list())
        scores = (features - state["feature_mean"]) / state["feature_std"] @ state["weight"].T + state["bias"]
        return scores.argmax(axis=1)

    def metrics(self, chosen: np.ndarray, names: list[str]) -> dict[str, float]:
        right, errors = [], []
        for row, agent in enumerate(chosen):
            prediction = self.predictions[names[agent]]
            right.append(prediction["pred_cla"][row] == self.samples["target_cla"][row])
            errors.append(prediction["pred_reg"][row] - self.samples["target_reg"][row])
        sizes = [abs(error) for error in errors]
        losses = [min(5.0, 0.5 * e * e if e < 1 else e - 0.5) for e in sizes]
        truth = self.samples["target_cla"].to_numpy()
        return {
            "accuracy": np.mean(right),
            "balanced_accuracy": np.mean([np.array(right)[truth == label].mean() for label in (0, 1)]),
            "smooth_l1": np.mean(losses),
            "mean_absolute_error": np.mean(sizes),
        }


def test_losses_and_metrics_are_those_of_the_files(trained):
    folder, runs, evaluations = trained
    files, rows = Files(folder), np.arange(len(Files(folder)))
    for run, evaluation in zip(runs, evaluations, strict=True):
        result, chosen = evaluation.result, files.chosen(run)
        assert result["num_samples"] == len(files)
        shares = np.bincount(chosen, minlength=4) / len(files)
        assert result["allocation"] == pytest.approx(dict(zip(AGENTS, shares, strict=True)))
        assert result["deferral_loss"] == pytest.approx(files.costs[rows, chosen].mean(), abs=1e-6)
        assert result["oracle_loss"] == pytest.approx(files.costs.min(axis=1).mean(), abs=1e-6)
        means = files.costs.mean(axis=0)
        assert result["best_agent"] == AGENTS[int(means.argmin())]
        assert result["best_agent_loss"] == pytest.approx(means.min(), abs=1e-6)
        assert result["random_same_shares_loss"] == pytest.approx(float(shares @ means), abs=1e-6)
        assert result["metrics"] == pytest.approx(files.metrics(chosen, AGENTS), rel=1e-5)
        np.testing.assert_allclose(evaluation.losses, files.costs[rows, chosen], atol=1e-6)


def test_allocations_on_disk_are_those_evaluated(trained):
    folder, runs, evaluations = trained
    for split in ("train", "validation", "test"):
        files = Files(folder, split)
        rows = np.arange(len(files))
        for run, evaluation in zip(runs, evaluations, strict=True):
            found = pl.read_parquet(run / "allocations.parquet").filter(pl.col("split") == split)
            assert found["sample_id"].to_list() == files.samples["sample_id"].to_list()
            scores = found.select([f"score_{j}" for j in range(4)]).to_numpy()
            np.testing.assert_array_equal(found["agent_index"], scores.argmax(axis=1))
            np.testing.assert_array_equal(found["agent_index"], files.chosen(run))
            assert found["agent"].to_list() == [AGENTS[j] for j in found["agent_index"]]
            np.testing.assert_allclose(found.select([f"cost_{j}" for j in range(4)]).to_numpy(), files.costs, atol=1e-6)
            np.testing.assert_allclose(found["deferral_cost"], files.costs[rows, files.chosen(run)], atol=1e-6)
            np.testing.assert_allclose(found["oracle_cost"], files.costs.min(axis=1), atol=1e-6)
            if split == "test":
                np.testing.assert_allclose(found["deferral_cost"], evaluation.losses, atol=1e-6)


def test_another_split_is_another_evaluation(trained):
    folder, runs, _ = trained
    files = Files(folder, "validation")
    result = evaluate_runs(runs[:1], "validation")[0].result
    assert (result["split"], result["num_samples"]) == ("validation", len(files))
    expected = files.costs[np.arange(len(files)), files.chosen(runs[0])].mean()
    assert result["deferral_loss"] == pytest.approx(expected, abs=1e-6)
    recorded = json.loads((runs[-1] / "run.json").read_text())
    result = evaluate_runs(runs[-1:], "validation")[0].result
    assert result["deferral_loss"] == pytest.approx(recorded["validation_risk"], abs=1e-5)


def test_each_agent_alone_is_reported_with_its_metrics(trained):
    folder, _, evaluations = trained
    files, alone = Files(folder), evaluations[0].result["agents"]
    assert list(alone) == [*AGENTS, "everyone"]
    for position, agent in enumerate(AGENTS):
        expected = files.metrics(np.zeros(len(files), dtype=int), [agent])
        assert {name: alone[agent][name] for name in expected} == pytest.approx(expected, rel=1e-5)
        assert alone[agent]["mean_cost"] == pytest.approx(files.costs[:, position].mean(), abs=1e-6)
    target = files.samples["target_cla"].to_numpy()
    probability = np.stack(files.predictions["expert"]["pred_prob"].to_list())[:, 1].astype(np.float64)
    assert alone["expert"]["auroc"] == pytest.approx(roc_auc_score(target, probability))
    assert alone["expert"]["brier"] == pytest.approx(((probability - target) ** 2).mean(), abs=1e-6)
    assert "auroc" not in alone["cheap"]  # it answers a class alone


def test_a_reference_pays_for_its_members_and_gets_no_sample(trained):
    folder, runs, evaluations = trained
    files = Files(folder)
    for run, evaluation in zip(runs, evaluations, strict=True):
        reported = evaluation.result["agents"]["everyone"]
        assert reported["role"] == "reference"
        expected = files.raw["everyone"].mean() + BETA["expert"] + BETA["cheap"]
        assert reported["mean_cost"] == pytest.approx(expected, abs=1e-6)
        assert list(evaluation.result["allocation"]) == AGENTS
        assert set(pl.read_parquet(run / "allocations.parquet")["agent"]) <= set(AGENTS)
    mean = np.mean([files.predictions[name]["pred_reg"].to_numpy() for name in ("expert", "cheap")], axis=0)
    np.testing.assert_allclose(files.predictions["everyone"]["pred_reg"], mean, rtol=1e-6)


def test_regret_is_the_difference_to_each_baseline_with_an_interval(trained):
    for evaluation in trained[2]:
        result = evaluation.result
        assert set(result["regret"]) == BASELINES
        for baseline, interval in result["regret"].items():
            assert set(interval) == {"value", "low", "high"} | ({"p"} if baseline != "oracle" else set())
            assert interval["value"] == pytest.approx(result["deferral_loss"] - result[f"{baseline}_loss"], abs=1e-9)
            assert interval["low"] <= interval["value"] <= interval["high"]
        assert result["regret"]["oracle"]["low"] >= 0
        json.dumps(result, allow_nan=False)


def test_seeds_of_a_setting_are_summed_up_and_methods_compared(trained):
    by_method = {method: [e for e in trained[2] if e.result["method"] == method] for method in METHODS}
    for method, members in by_method.items():
        summary = members[0].result["over_seeds"]
        assert summary["seeds"] == 3
        for name in ("deferral_loss", "random_same_shares_loss"):
            values = [e.result[name] for e in members]
            assert summary[name] == pytest.approx({"mean": statistics.mean(values), "std": statistics.stdev(values)})
        shares = [e.result["allocation"]["expert"] for e in members]
        assert summary["allocation"]["expert"]["std"] == pytest.approx(statistics.stdev(shares), abs=1e-12)
        accuracies = [e.result["metrics"]["accuracy"] for e in members]
        assert summary["metrics"]["accuracy"]["mean"] == pytest.approx(statistics.mean(accuracies))
        other = next(name for name in METHODS if name != method)
        assert set(summary["regret"]) == {*BASELINES, other}
        ours, theirs = (np.mean([e.losses for e in group], axis=0) for group in (members, by_method[other]))
        assert summary["regret"][other]["value"] == pytest.approx((ours - theirs).mean(), abs=1e-9)


def test_runs_of_another_beta_are_neither_seeds_nor_baselines(trained, make_runs, tmp_path):
    from l2d.data.cache.reader import CostCache

    folder, runs, _ = trained
    cheaper = make_runs(CostCache(folder / "cache"), tmp_path, betas=[0.0], methods=["classification-only"])
    summary = evaluate_runs([runs[-1], *cheaper])[0].result["over_seeds"]
    assert summary["seeds"] == 1
    assert summary["deferral_loss"]["std"] == 0
    assert set(summary["regret"]) == BASELINES


def test_runs_of_another_network_are_not_seeds_of_one_setting(trained, make_runs, tmp_path):
    from l2d.data.cache.reader import CostCache

    folder, runs, _ = trained
    deeper = make_runs(CostCache(folder / "cache"), tmp_path, seeds=[0], config={"network": "mlp", "hidden": 8})
    linear = next(run for run in runs if run.name.startswith("multi-task") and run.name.endswith("seed=0"))
    for evaluation in evaluate_runs([linear, *deeper]):
        assert evaluation.result["over_seeds"]["seeds"] == 1


def test_a_beta_sweep_asks_no_agent(make_cache, make_runs, tmp_path):
    cache = make_cache(tmp_path)
    (tmp_path / "asked.py").unlink()
    (tmp_path / "patients.parquet").unlink()
    calls = tmp_path / "calls.txt"
    before = calls.read_bytes()
    assert sum(map(int, before.split())) == 400
    betas = [0.0, 0.01, 0.1, 1.0, 10.0]
    results = [e.result for e in evaluate_runs(make_runs(cache, tmp_path / "runs", betas=betas, config={"lr": 0.1}))]
    assert calls.read_bytes() == before
    assert [result["beta"] for result in results] == betas
    assert [result["oracle_loss"] for result in results] == sorted(result["oracle_loss"] for result in results)
    assert results[-1]["allocation"]["model"] > results[0]["allocation"]["model"]


def test_a_cost_expression_takes_the_place_of_the_weighted_sum(make_cache, make_runs, tmp_path):
    run = make_runs(make_cache(tmp_path), tmp_path / "runs", cost="greatest(cost_cla, 0.2 * cost_reg)")[0]
    result, files = evaluate_runs([run])[0].result, Files(tmp_path)
    mask = read(tmp_path, "cache/samples/*.parquet")["split"] == "test"
    costs = []
    for agent in AGENTS:
        raw = read(tmp_path, f"cache/agents/{agent}/costs-*/*.parquet").filter(mask)
        costs.append(np.maximum(raw["cost_cla"].to_numpy(), 0.2 * raw["cost_reg"].to_numpy()) + BETA[agent])
    costs = np.stack(costs, axis=1)
    assert result["cost"] == "greatest(cost_cla, 0.2 * cost_reg)"
    assert result["deferral_loss"] == pytest.approx(costs[np.arange(len(costs)), files.chosen(run)].mean(), abs=1e-6)
    assert result["oracle_loss"] == pytest.approx(costs.min(axis=1).mean(), abs=1e-6)


def test_the_system_curve_passes_through_the_rejectors_own_coverage(trained):
    for evaluation in trained[2]:
        curve, result = system_curve(evaluation), evaluation.result
        at = int(np.argmin(np.abs(curve.coverage - result["allocation"]["model"])))
        assert curve.risk[at] == pytest.approx(result["deferral_loss"], abs=1e-6)
        assert curve.risk[-1] == pytest.approx(result["agents"]["model"]["mean_cost"], abs=1e-6)
        assert model_curve(evaluation).risk[-1] == pytest.approx(curve.risk[-1], abs=1e-6)


def test_operating_points_are_prices_and_metrics_of_the_results(trained):
    folder, _, evaluations = trained
    files = Files(folder)
    found = cost_quality(evaluations)
    assert [point.seeds for point in found.points] == [3, 3]
    for point in found.points:
        members = [e for e in evaluations if e.result["method"] == point.name]
        shares = np.mean([list(e.result["allocation"].values()) for e in members], axis=0)
        assert point.cost == pytest.approx(shares @ [0.0, 2.0, 1.0, 4.0])
        paid = shares @ np.array(list(BETA.values()))
        loss = np.mean([e.result["deferral_loss"] for e in members])
        assert point.quality == pytest.approx(loss - paid, abs=1e-6)
    alone = {point.name: point for point in found.baselines}
    assert set(alone) == {*AGENTS, "everyone", "oracle"}
    for agent, price in zip([*AGENTS, "everyone"], [0.0, 2.0, 1.0, 4.0, 3.0], strict=True):
        assert (alone[agent].cost, alone[agent].quality) == pytest.approx((price, files.raw[agent].mean()), abs=1e-6)
    for point in [*found.points, *found.baselines]:
        assert point.interval[0] <= point.quality <= point.interval[1]
    model = paired_interval(files.raw["model"])
    assert alone["model"].interval == pytest.approx((model.low, model.high), abs=1e-6)
    assert cost_quality(evaluations, "balanced_accuracy").points[0].interval is None
    accuracy = cost_quality(evaluations, "accuracy")
    assert accuracy.points[0].interval[0] < accuracy.points[0].quality < accuracy.points[0].interval[1]
    assert not accuracy.lower_is_better
    assert found.lower_is_better
    assert [point.quality for point in accuracy.baselines if point.name == "model"] == [
        evaluations[0].result["agents"]["model"]["accuracy"]
    ]
    with pytest.raises(UsageError, match="no metric 'map'"):
        cost_quality(evaluations, "map")
