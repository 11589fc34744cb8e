"""What deferring saves: the local lines against least squares, worlds with a known jump, and runs."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from l2d.rejector.evaluation.causal import at_cutoff, bandwidth, deferral_effects, discontinuity
from l2d.rejector.evaluation.evaluate import evaluate_runs

#: Order, estimate, standard error of rdrobust 2.1.1, ``rdrobust(y, x, c=0, h=0.5, b=0.5, vce="hc1")`` on the points
#: below: its conventional row, and its robust one, which parabolas in the same window give.
RDROBUST = [(1, 0.646194894, 0.0679257758), (2, 0.54714522, 0.08827126)]


def by_numpy(x: np.ndarray, y: np.ndarray, width: float, order: int) -> float:
    """Weighted least squares by numpy on rows scaled by the root of their weight: the value at 0."""
    root = np.sqrt(np.clip(1 - np.abs(x) / width, 0, None))
    design = np.stack([x**power for power in range(order + 1)], axis=1)
    return float(np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0][0])


def drawn(rows: int, seed: int, jump: float = -0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A margin, the model's cost and the expert's, whose mean difference at the margin is ``jump``."""
    random = np.random.default_rng(seed)
    x = random.normal(size=rows)
    kept = 0.5 + 0.3 * np.tanh(x) + 0.2 * random.normal(size=rows)
    return x, kept, kept + jump - 0.2 * x + 0.2 * random.normal(size=rows)


@pytest.mark.parametrize("order", [1, 2])
def test_polynomials_are_weighted_least_squares(order):
    x, kept, expert = drawn(500, 0)
    y = np.where(x > 0, expert, kept)
    above, below = (by_numpy(x[side], y[side], 0.7, order) for side in (x > 0, x <= 0))
    assert discontinuity(x, y, 0.7, order).value == pytest.approx(above - below)
    assert at_cutoff(x, y, 0.7, order).value == pytest.approx(by_numpy(x, y, 0.7, order))


@pytest.mark.parametrize(("order", "value", "error"), RDROBUST)
def test_estimates_and_errors_are_those_of_rdrobust(order, value, error):
    x = np.linspace(-1, 1, 41) + 0.01
    y = np.sin(3 * x) + 0.5 * (x > 0) + 0.1 * np.cos(40 * x)
    found = discontinuity(x, y, 0.5, order)
    assert (found.value, found.error) == pytest.approx((value, error), rel=1e-7)


def test_intervals_of_the_jump_hold_what_it_is():
    held, widths = [], []
    for seed in range(25):
        x, kept, expert = drawn(800, seed)
        y = np.where(x > 0, expert, kept)
        width = bandwidth(x, y)
        found = discontinuity(x, y, width)
        held.append(abs(found.value + 0.3) < 1.96 * found.error)
        widths.append(found.error)
    assert np.mean(held) >= 0.84
    assert np.mean(widths) < 0.1


def test_a_window_needs_samples_on_both_sides():
    assert bandwidth(np.linspace(0.1, 1, 50), np.ones(50)) is None
    assert bandwidth(np.concatenate([-np.ones(5), np.linspace(0.1, 1, 50)]), np.ones(55)) is None
    assert bandwidth(np.zeros(100), np.ones(100)) is None
    x, kept, _ = drawn(500, 3)
    assert bandwidth(x, kept) is not None
    assert bandwidth(np.round(2 * x) / 2, kept) is None  # a handful of steps


@pytest.fixture(scope="module")
def swept(make_cache, make_runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    cache = make_cache(folder)
    return folder, make_runs(cache, folder / "runs", config={"network": "linear", "epochs": 5})


def test_the_effect_on_the_deferred_is_a_mean_of_cached_costs(swept):
    (evaluation,) = evaluate_runs(swept[1], "train")
    found = deferral_effects(evaluation)
    rows = pl.read_parquet(swept[1][0] / "allocations.parquet").filter(pl.col("split") == "train")
    deferred = rows.filter(pl.col("agent_index") > 0)
    assert found["deferred_samples"] == len(deferred) > 20
    saved = (deferred["cost_0"] - deferred["deferral_cost"]).to_numpy()
    assert found["deferred"]["saved"] == pytest.approx(saved.mean(), abs=1e-6)
    error = saved.std(ddof=1) / np.sqrt(len(saved))  # that of the papers' regression on a constant, HC1
    assert found["deferred"]["high"] - found["deferred"]["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    if found["at_margin"] is not None:
        low, high = found["at_margin"]["low"], found["at_margin"]["high"]
        both = found["at_margin_both"]
        assert both["high"] > low
        assert both["low"] < high  # the design finds what both costs say


def test_at_the_bayes_rule_deferring_pays_on_average_and_not_at_the_margin():
    """The published reading: an effect on the deferred says that deferring pays, one at the margin how to move it."""
    x, kept, _ = drawn(4000, 1)
    expert = kept - 0.4 * x + 0.1 * np.random.default_rng(2).normal(size=4000)
    assert float((kept - expert)[x > 0].mean()) > 0.25
    assert abs(at_cutoff(x, kept - expert, 0.5).value) < 0.02


def test_the_command_prints_both_tables_and_the_keys(swept):
    from l2d.cli import app

    shown = CliRunner().invoke(app, ["evaluate", str(swept[1][0]), "--causal", "--robust", "0.2"])
    assert shown.exit_code == 0, shown.output
    assert "What deferring saves" in shown.output
    assert "Attacks that move each feature by at most 0.2" in shown.output
    found = CliRunner().invoke(app, ["evaluate", str(swept[1][0]), "--causal", "--robust", "0.2", "--format", "json"])
    result = json.loads(found.stdout)
    assert {"deferred", "at_margin", "at_margin_both"} <= result["causal"].keys()
    assert result["robust"]["radius"] == 0.2
    for form in ("csv", "parquet"):
        args = ["evaluate", str(swept[1][0]), "--causal", "--robust", "0.2", "--format", form]
        assert CliRunner().invoke(app, args).exit_code == 0
