"""The figures of router benchmarks, each against a computation of another kind: brute force, sums by hand, polars."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import l2d
from l2d.rejector.evaluation.router_metrics import (
    arena_score,
    average_recovered,
    calls_for,
    metrics_of_sweep,
    recovered_gap,
)

ROWS = 600
NAMES = ("small", "middle", "large")
PRICES = (0.0001, 0.0006, 0.004)


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    """Larger models are right more often, each kind of prompt with its own gap; prices differ by prompt."""
    generator = np.random.default_rng(0)
    kind, length = generator.integers(0, 3, ROWS), generator.uniform(0.5, 1.5, ROWS)
    columns = {"id": [f"q{row}" for row in range(ROWS)], "kind": [f"k{k}" for k in kind]}
    for agent, name in enumerate(NAMES):
        columns[name] = (generator.random(ROWS) < 0.45 + 0.2 * agent * (kind > 0) + 0.1 * (kind == 0)).astype(float)
    columns |= {f"{name}|total_cost": price * length for name, price in zip(NAMES, PRICES, strict=True)}
    return pl.DataFrame(columns)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("routers")


@pytest.fixture(scope="module")
def judged(table, folder):
    cache = l2d.import_table(table, out=folder / "c", id="id", kind="scores", columns=["kind"])
    runs = l2d.sweep(cache, folder / "runs", betas=[{"paid": worth} for worth in (0.0, 20.0, 60.0, 300.0)], guard=0.0)
    return l2d.evaluate(runs)


def of_test(table: pl.DataFrame, found) -> tuple[np.ndarray, np.ndarray]:
    """Scores and dollars by hand, (n, agents) each, of the evaluated samples in their order."""
    rows = pl.DataFrame({"id": found.measured.table.ids}).join(table, on="id", how="left", maintain_order="left")
    return rows.select(NAMES).to_numpy(), rows.select(f"{name}|total_cost" for name in NAMES).to_numpy()


def test_gains_and_the_gap_are_ratios_of_mean_scores(table, judged):
    for found in judged:
        scores, dollars = of_test(table, found)
        said, rows = found.result["router_metrics"], np.arange(len(scores))
        quality = scores[rows, found.allocation].mean()
        assert said["gain_at_random"] == pytest.approx(quality / scores.mean() - 1)
        assert said["gain_at_best"] == pytest.approx(quality / scores.mean(axis=0).max() - 1)
        assert said["gap_at_oracle"] == pytest.approx(1 - quality / scores.max(axis=1).mean())
        cost = 1000 * dollars[rows, found.allocation].mean()
        cheap = math.log(200 / cost) / math.log(200 / 0.0044)
        assert said["dollars_per_1000"] == pytest.approx(cost)
        assert said["arena_score"] == pytest.approx(1.1 / (0.1 / cheap + 1 / quality))  # the weighted harmonic mean


def test_the_arena_score_at_its_ends():
    assert arena_score(1.0, 0.0044) == pytest.approx(1.0)
    assert arena_score(0.8, 200.0) == 0.0
    assert arena_score(0.0, 1.0) == 0.0
    assert arena_score(0.7, 0.0) is None


def test_aiq_is_the_mean_over_costs_of_the_best_coin_between_two_settings(table, judged):
    """The hull by brute force: for each cost the best mixture of any two points, or of one and throwing money away."""
    said = judged[0].result["router_metrics"]["sweep"]["best"]
    points, singles = [], None
    for found in judged:
        scores, dollars = of_test(table, found)
        rows = np.arange(len(scores))
        points.append((dollars[rows, found.allocation].mean(), scores[rows, found.allocation].mean()))
        singles = list(zip(dollars.mean(axis=0), scores.mean(axis=0), strict=True))
    low, high = max(min(points)[0], min(singles)[0]), max(cost for cost, _ in singles)
    assert said["costs"] == pytest.approx([low, high])

    def coin(some: list[tuple[float, float]], cost: float) -> float:
        reached = [quality for price, quality in some if price <= cost]
        for (first, q1), (second, q2) in itertools.permutations(some, 2):
            if first <= cost <= second and first < second:
                reached.append(q1 + (q2 - q1) * (cost - first) / (second - first))
        return max(reached)

    grid = np.linspace(low, high, 20_001)
    for name, some in (("aiq", points), ("zero_router_aiq", singles)):
        expected = np.trapezoid([coin(some, cost) for cost in grid], grid) / (high - low)
        assert said[name] == pytest.approx(expected, abs=1e-6)
    best_cost, best = max(singles, key=lambda point: point[1])
    assert said["perf_gain"] == pytest.approx(max(quality for _, quality in points) / best - 1)
    as_good = [cost for cost, quality in points if quality >= best]
    assert said["cost_save"] == (None if not as_good else pytest.approx(1 - min(as_good) / best_cost))
    assert metrics_of_sweep(list(judged)) == judged[0].result["router_metrics"]["sweep"]


def test_apgr_and_cpt_of_two_models_by_counting(table, folder):
    run = l2d.train(folder / "c", folder / "two", beta={"paid": 10.0}, only=["middle", "large"], guard=0.0)
    (found,) = l2d.evaluate(run)  # agent 0 is not free, so it is one of several and may be left out
    assert list(found.result["allocation"]) == ["middle", "large"]
    said = found.result["router_metrics"]
    scores, _ = of_test(table, found)
    weak, strong = scores[:, 1], scores[:, 2]
    assert said["strong"] == "large"
    toward = -found.margin
    levels = np.unique(toward)[::-1]
    gaps, calls = [0.0], [0.0]  # at thresholds between levels; on a level, ties are called in no order: a straight line
    for level in levels:
        asked = toward >= level
        quality = np.where(asked, strong, weak).mean()
        gaps.append((quality - weak.mean()) / (strong.mean() - weak.mean()))
        calls.append(asked.mean())
    assert said["apgr"] == pytest.approx(np.trapezoid(gaps, calls))
    for wanted in (0.2, 0.5, 0.8):
        after = next(k for k, gap in enumerate(gaps) if gap >= wanted)
        exact = np.interp(wanted, gaps[after - 1 : after + 1], calls[after - 1 : after + 1])
        assert 0 <= said[f"cpt_{100 * wanted:.0f}"] - exact <= 1 / len(weak) + 1e-9


def test_a_perfect_order_and_a_coin():
    weak, strong = np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0])
    perfect = recovered_gap(strong - weak, weak, strong)
    assert perfect.tolist() == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert average_recovered(perfect) == pytest.approx(0.75)
    assert [calls_for(perfect, wanted) for wanted in (0.5, 0.8)] == [0.25, 0.5]
    coin = recovered_gap(np.zeros(4), weak, strong)
    assert average_recovered(coin) == pytest.approx(0.5)
    assert calls_for(coin, 0.5) == 0.5


def test_they_are_in_the_table_of_evaluate_and_in_the_report(judged, tmp_path):
    text = judged.table()
    for name in ("Arena score", "Gain@R", "Gain@B", "Gap@O", "AIQ", "PerfGain", "CostSave"):
        assert name in text
    page = l2d.report(judged, tmp_path / "r.html")[0].read_text(encoding="utf-8")
    for name in (
        "Arena score",
        "AIQ of single agents",
        "mean price of the queries of a sample (USD)",
        "mean paid (USD)",
    ):
        assert name in page
    for name in NAMES:
        assert f"{name} alone" in page
