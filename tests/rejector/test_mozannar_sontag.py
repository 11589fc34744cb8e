"""Mozannar and Sontag's experiments: exact coverage by brute force, and each experiment end to end, small."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from cifar10_files import write_batches
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, roc_auc_score

from l2d.data.cache.reader import CostCache
from l2d.data.sources.chexpert import COLUMNS, FINDINGS
from l2d.data.sources.digits import write_digit_table
from l2d.rejector.evaluation.curves import kept_at, ranking_at_coverages

FILE = Path(__file__).parents[2] / "benchmarks" / "mozannar_sontag.py"


@pytest.fixture(scope="module")
def experiments():
    spec = importlib.util.spec_from_file_location("mozannar_sontag", FILE)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_exact_coverage_keeps_so_many_of_the_largest_margins():
    margin = np.round(np.random.default_rng(0).normal(size=37), 1)  # with ties
    for coverage in (0.0, 0.1, 0.5, 0.99, 1.0):
        kept = kept_at(margin, coverage)
        assert kept.sum() == round(coverage * 37)
        if kept.any() and not kept.all():
            assert margin[kept].min() >= margin[~kept].max()


def test_rankings_at_a_coverage_are_scikit_learns_of_the_mixed_scores():
    rng = np.random.default_rng(1)
    target, margin = rng.integers(2, size=60), rng.normal(size=60)
    model, expert = rng.random(60), rng.integers(2, size=60)
    for row in ranking_at_coverages(margin, model, expert, target, [0.0, 0.3, 0.8, 1.0]):
        order = sorted(range(60), key=lambda i: -margin[i])[: round(row["coverage"] * 60)]
        mixed = np.array([model[i] if i in order else expert[i] for i in range(60)])
        assert row["auroc"] == pytest.approx(roc_auc_score(target, mixed))
        assert row["average_precision"] == pytest.approx(average_precision_score(target, mixed))
        assert row["accuracy"] == pytest.approx(((mixed > 0.5) == target).mean())


def test_the_table_of_digits_is_scikit_learns(tmp_path):
    assert write_digit_table(tmp_path / "digits.parquet")
    assert not write_digit_table(tmp_path / "digits.parquet")
    table, digits = pl.read_parquet(tmp_path / "digits.parquet"), load_digits()
    assert table["class"].to_list() == digits.target.tolist()
    np.testing.assert_array_equal(table.drop("digit", "class").to_numpy(), digits.data)


@pytest.mark.slow
def test_the_findings_of_the_slides_on_digits(experiments, tmp_path, capsys):
    """The consistent loss beats MixOfExp and LearnedOracle; its lead over Confidence grows as training data shrink."""
    out = tmp_path / "ms"
    methods = "mozannar_sontag,mixture_of_experts,confidence,learned_oracle"
    experiments.main(["digits", "--out", str(out), "--k", "2", "--rows", "0,60", "--seeds", "2", "--methods", methods])
    saved = json.loads((out / "results.json").read_text())
    assert {row["method"] for row in saved["results"]} == set(methods.split(","))
    found = {row["finding"]: row for row in saved["findings"]}
    for claim in ("mixture_of_experts, all rows", "mixture_of_experts, 60 rows", "learned_oracle, 60 rows"):
        assert found[f"mozannar_sontag over {claim}"]["low"] > 0
    assert found["mozannar_sontag over learned_oracle, all rows"]["high"] > 0  # no more than that is shown
    assert found["growth of the lead over confidence, 60 rows against all"]["low"] > 0
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "results.csv").read_text().count("\n") == 1 + len(saved["results"])
    # an expert who knows 2 classes of 10 and guesses elsewhere
    runs = CostCache(out / "cache").only(["model", "expert_2"])
    assert runs.record.num_chunks == 1
    answers = runs.predictions("expert_2", 0)["pred_cla"].to_numpy()
    truth = load_digits().target
    assert (answers == truth)[truth < 2].all()
    assert 0.05 < (answers == truth)[truth >= 2].mean() < 0.15


@pytest.mark.slow
def test_cifar_10_runs_from_its_binary_files(experiments, tmp_path, capsys):
    write_batches(tmp_path / "cifar-10-batches-bin")
    arguments = ["cifar10", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--k", "2,7", "--rows", "0,40"]
    experiments.main([*arguments, "--epochs", "1", "--seeds", "1", "--methods", "mozannar_sontag,confidence"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [(row["training rows"], row["k"]) for row in results][::2] == [("all", 2), ("all", 7), (40, 2), (40, 7)]
    assert all(0 <= row["system accuracy"] <= 1 and 0 <= row["coverage"] <= 1 for row in results)
    assert "growth of the lead" in capsys.readouterr().out


def write_chexpert(root: Path, patients: int = 150) -> Path:
    """``train.csv`` of the format, every finding told by one feature up to noise; returns the features' file."""
    rng, rows, features = np.random.default_rng(0), [], []
    for patient in range(1, patients + 1):
        path = f"CheXpert-v1.0-small/train/patient{patient:05d}/study1/view1_frontal.jpg"
        hidden = rng.normal(size=len(FINDINGS))
        rows.append([path, "Female", 60, "Frontal", "AP", *np.where(hidden > 0, "1.0", "0.0")])
        seen = hidden + 0.7 * rng.normal(size=len(FINDINGS))
        features.append({"Path": path, **{f"f{i}": float(value) for i, value in enumerate(seen)}})
    root.mkdir()
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(root / "train.csv", index=False)
    pl.DataFrame(features).write_parquet(root.parent / "features.parquet")
    return root.parent / "features.parquet"


@pytest.mark.slow
def test_chexpert_under_a_coverage_constraint(experiments, tmp_path, monkeypatch):
    features = write_chexpert(tmp_path / "CheXpert-v1.0-small")
    monkeypatch.setattr(experiments, "TASKS", ["Edema", "Pleural Effusion"])
    monkeypatch.setattr(experiments, "COVERAGES", [0.0, 0.5, 1.0])
    out = tmp_path / "out"
    experiments.main(["chexpert", "--data", str(tmp_path / "CheXpert-v1.0-small"), "--features", str(features), "--out",
                      str(out), "--q", "0.6", "--rejector", "linear", "--epochs", "10", "--seeds", "1"])  # fmt: skip
    rows = json.loads((out / "results.json").read_text())["results"]
    assert len(rows) == 2 * 3 * 3
    for task in ("Edema", "Pleural Effusion"):
        mine = [row for row in rows if row["task"] == task]
        cache = CostCache(out / task.replace(" ", "_") / "cache")
        assert cache.record.num_chunks == 1
        samples, answers = pl.from_arrow(cache.samples(0)), pl.from_arrow(cache.predictions("expert", 0))
        right = (answers["pred_cla"] == samples["target_cla"]).to_numpy()
        device = (samples["support_devices"] == 1).to_numpy()
        assert right[device].all()
        assert 0.35 < right[~device].mean() < 0.85
        test = (samples["split"] == "test").to_numpy()
        truth, expert = samples["target_cla"].to_numpy()[test], answers["pred_cla"].to_numpy()[test]
        nothing_kept = [row for row in mine if row["coverage"] == 0]
        assert len(nothing_kept) == 3
        for row in nothing_kept:  # the expert alone, whatever the method
            assert row["auroc"] == pytest.approx(roc_auc_score(truth, expert))
            assert row["average_precision"] == pytest.approx(average_precision_score(truth, expert))
        half = [row["coverage"] for row in mine][1::3]
        assert half == [round(0.5 * len(truth)) / len(truth)] * 3
        alone = {row["method"]: row["auroc"] for row in mine if row["coverage"] == 1}
        assert alone["confidence"] == alone["model_confidence"]  # the same classifier
        assert alone["confidence"] != alone["mozannar_sontag"]
    assert (out / "curves.png").is_file()
