"""Reliability of predicted costs, and what a guard did, against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from l2d.data.cache.reader import CostCache
from l2d.rejector.best.reliability import reliability
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.evaluation.findings import predicted_in_words
from l2d.rejector.grid import make_grid
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sweep import sweep


def draw(generator: np.random.Generator, rows: int, slope: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions, and 0-1 costs whose chance is ``slope`` times as far from a half."""
    said = generator.uniform(0.2, 0.8, rows)
    return said[:, None], (generator.random(rows) < 0.5 + slope * (said - 0.5)).astype(float)[:, None]


def test_bins_are_tenths_in_order_of_the_prediction():
    generator = np.random.default_rng(0)
    said, paid = draw(generator, 1000)
    about = reliability(said, paid, ["a"])["a"]
    order = np.argsort(said[:, 0]).reshape(10, 100)
    np.testing.assert_allclose(about["predicted"], said[order, 0].mean(axis=1))
    np.testing.assert_allclose(about["actual"], paid[order, 0].mean(axis=1))
    assert about["error"] == pytest.approx(np.abs(said[order, 0].mean(axis=1) - paid[order, 0].mean(axis=1)).mean())
    assert about["slope"] == pytest.approx(np.polyfit(said[:, 0], paid[:, 0], 1)[0])
    assert all(
        low <= mean <= high for low, mean, high in zip(about["low"], about["actual"], about["high"], strict=True)
    )
    few = reliability(said[:25], paid[:25], ["a"])["a"]
    assert few["samples"] == [13, 12]
    assert reliability(said[:0], paid[:0], ["a"])["a"]["samples"] == []


@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_the_slope_s_interval_covers_and_the_error_by_chance_is_that_of_calibrated_costs(slope):
    generator = np.random.default_rng(3)
    found = [reliability(*draw(generator, 500, slope), ["a"])["a"] for _ in range(300)]
    inside = np.mean([about["slope_low"] <= slope <= about["slope_high"] for about in found])
    assert abs(inside - 0.95) < 5 * np.sqrt(0.95 * 0.05 / 300)
    error, chance = (np.mean([about[key] for about in found]) for key in ("error", "error_by_chance"))
    assert (abs(error / chance - 1) < 0.1) == (slope == 1.0)


def test_samples_of_a_group_count_as_one():
    generator = np.random.default_rng(0)
    said, paid = draw(generator, 200)
    once = reliability(said, paid, ["a"])["a"]
    six = (np.repeat(values, 6, axis=0) for values in (said, paid))
    grouped = reliability(*six, ["a"], np.repeat(np.arange(200), 6))["a"]
    for key in ("slope", "slope_low", "slope_high"):
        assert grouped[key] == pytest.approx(once[key], abs=1e-9)


def test_a_slope_is_given_only_where_a_calibrated_one_is_told_from_none():
    generator = np.random.default_rng(0)
    said, paid = draw(generator, 400)
    for narrow in (0.5 + 1e-3 * (said - 0.5), np.full_like(said, 0.3), said[:10]):
        about = reliability(narrow, paid[: len(narrow)], ["a"])["a"]
        assert about["slope"] is about["slope_low"] is about["slope_high"] is None
    many = {f"a{k}": about for k, about in enumerate(reliability(*draw(generator, 500), ["a"])["a"] for _ in range(6))}
    words = predicted_in_words({"reliability": {**many, "flat": about}})
    assert "lowest and highest of 6" in words
    assert "the predictions of one other agent vary too little for a slope" in words
    assert "too little for a slope" in predicted_in_words({"reliability": {"flat": about}})
    assert predicted_in_words({}) is None


def test_an_evaluation_says_what_the_guard_kept_cost_and_saved(patient_runs, tmp_path):
    cache = CostCache(patient_runs / "cache")
    values = {"weights": [{"cla": 1.0}], "betas": [{"expert": 0.15, "cheap": 0.02, "asked": 0.02}]}
    points = make_grid(cache, methods=["best"], nus=[1.0], seeds=[0], **values)
    sweep(cache, points, [tmp_path / "held"], TrainConfig(guard=1e9))
    held, free = evaluate_runs([tmp_path / "held", patient_runs / "best"])
    guard, rise = held.result["guard"], held.losses - free.losses
    assert guard["kept"] == (held.allocation != free.allocation).sum() > 0
    assert guard["saved"] == pytest.approx(-rise[rise < 0].sum() / len(rise), abs=1e-6)
    assert guard["cost"] == pytest.approx(rise[rise > 0].sum() / len(rise), abs=1e-6)
    assert guard["difference"]["value"] == pytest.approx(rise.mean(), abs=1e-6)
    assert free.result["guard"] | {"kept": 0, "difference": None} == free.result["guard"]
    from l2d.rejector.evaluation.findings import findings

    assert f"kept {guard['kept']} of 81 samples" in " ".join(findings([held]))
