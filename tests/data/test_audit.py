"""The leakage audit: leaks that are planted are found, clean tables are not accused."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from conftest import patients, refused
from recipes import CLUSTER, COLUMN, HEAD, MODEL, Recipe, changed
from scipy.stats import spearmanr

from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.audit import _digests, _digests_of_rows, _mean, audit, leaks
from l2d.data.cache.audit_features import _explained, binned
from l2d.data.cache.audit_truth import _class_told, _is_hopeless, _order_told
from l2d.data.cache.reader import CostCache
from l2d.data.errors import UsageError

RECIPE = HEAD.but({"dataset.keep": ["ward", "family"]}).plus(MODEL, COLUMN, CLUSTER)


def cache_of(folder, table: pl.DataFrame, recipe: str = RECIPE) -> CostCache:
    table.write_parquet(folder / "patients.parquet")
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    build(load_recipe(str(folder / "recipe.toml")), folder / "cache", device="cpu")
    return CostCache(folder / "cache")


def families(rows: int, size: int) -> pl.Series:
    return pl.Series("family", [f"f{row // size}" for row in range(rows)])


def levels(findings) -> dict[str, str]:
    return {finding.check: finding.level for finding in findings}


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> CostCache:
    table = patients(400)
    return cache_of(tmp_path_factory.mktemp("clean"), table.with_columns(families(400, 1)))


@pytest.mark.slow
def test_a_clean_table_gets_no_warning(clean):
    found = levels(audit(clean, groups=("family",)))
    assert found == {
        "ids": "ok", "group family": "ok", "duplicated features": "ok", "row numbers": "ok", "features": "ok",
        "agent model": "note", "agent column": "ok",
        "agent sim": "ok",
    }  # fmt: skip
    assert leaks(clean) == []


def test_gaps_are_those_of_the_files(clean):
    folder = clean.path
    for finding in audit(clean)[-3:]:
        name = finding.check.removeprefix("agent ")
        costs = pl.concat([pl.read_parquet(f) for f in sorted((folder / "agents" / name).glob("costs-*/*.parquet"))])
        samples = pl.concat([pl.read_parquet(f) for f in sorted((folder / "samples").glob("*.parquet"))])
        for gap in finding.gaps:
            of = {
                split: costs.filter(samples["split"] == split)[gap.cost].cast(pl.Float64) for split in ("train", "test")
            }
            assert gap.train == pytest.approx(of["train"].mean())
            assert gap.test == pytest.approx(of["test"].mean())
            half = 1.96 * np.sqrt(sum(values.var() / len(values) for values in of.values()))
            assert gap.high - gap.low == pytest.approx(2 * half, rel=1e-3)


def with_feature(recipe: Recipe, *names: str) -> Recipe:
    quoted = [f'"{name}"' for name in names]
    return recipe.but({"dataset.features": [*quoted, *recipe.values["dataset"]["features"]]})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("number", lambda n: np.arange(n)),
        ("from the end", lambda n: np.arange(n)[::-1] + 1),
        ("shuffled", lambda n: np.random.default_rng(3).permutation(n)),
        ("as a float", lambda n: np.arange(n) * 1.0),
        ("large", lambda n: 10_000_000_000 + np.arange(n)),
        ("with rows left out", lambda n: np.flatnonzero(np.random.default_rng(3).random(2 * n) < 0.7)[:n]),
    ],
)
def test_a_feature_that_counts_the_rows_is_found(tmp_path, name, values):
    table = patients(400).with_columns(families(400, 1), pl.Series(name, values(400)).alias(name))
    cache = cache_of(tmp_path, table, with_feature(RECIPE, name))
    (finding,) = [finding for finding in audit(cache) if finding.check == "row numbers"]
    assert finding.level == "warning"
    assert name in finding.what
    assert [leak.check for leak in leaks(cache)] == ["row numbers"]


def test_a_time_of_a_sorted_file_is_a_note(tmp_path):
    times = np.cumsum(np.random.default_rng(0).integers(5, 90, 400))
    table = patients(400).with_columns(families(400, 1), seconds=times)
    found = levels(audit(cache_of(tmp_path, table, with_feature(RECIPE, "seconds"))))
    assert found["row numbers"] == "note"


def test_features_that_give_away_which_agent_is_right_are_found(tmp_path):
    """The oracle's choice as a category, and an agent's score as a number, as tables of router benchmarks have them."""
    table = patients(600).with_columns(families(600, 1))
    recipe = RECIPE.without("model")  # whose answers do not change with the features
    cache = cache_of(tmp_path, table, recipe)
    agents = [agent.name for agent in cache.agents]
    parts = {
        name: pl.concat([pl.read_parquet(f) for f in sorted((cache.path / "agents" / name).glob("costs-*/*.parquet"))])
        for name in agents
    }
    costs = np.stack([parts[name].select(pl.sum_horizontal("^cost_.*$")).to_series() for name in agents], axis=1)
    table = table.with_columns(
        oracle=pl.Series(np.array(agents)[costs.argmin(axis=1)]), score=pl.Series(1 - costs[:, 0].astype(np.float64))
    )
    (tmp_path / "leaky").mkdir()
    found = {f.check: f for f in audit(cache_of(tmp_path / "leaky", table, with_feature(recipe, "oracle", "score")))}
    assert found["feature oracle"].level == found["feature score"].level == "warning"
    assert "which agent costs least (" in found["feature oracle"].what
    assert "what column costs (" in found["feature score"].what
    assert "feature ward" not in found
    assert "feature x1" not in found


def test_features_that_tell_the_truth_are_found(tmp_path):
    """The diagnosis in other words, or in other units, as a registry's export has it; a strong symptom is not one."""
    table = patients(600).with_columns(
        families(600, 1),
        code=pl.when(pl.col("died") == 1).then(pl.lit("I46")).otherwise(pl.lit("Z00")),
        hours=24 * pl.col("stay") + 5,
        symptom=pl.col("died") + pl.Series(np.random.default_rng(0).random(600) < 0.05).cast(pl.Int64),
        patient=pl.int_range(600).cast(pl.Float64).shuffle(seed=1),
    )
    recipe = with_feature(RECIPE, "code", "hours", "symptom", "patient")
    warned = {f.check: f.what for f in leaks(cache_of(tmp_path, table, recipe)) if f.check.startswith("feature ")}
    assert "the true class of 100.0% of held-out samples" in warned["feature code"]
    assert "order of the true numbers (rank correlation 1.0000)" in warned["feature hours"]
    assert set(warned) == {"feature code", "feature hours"}
    assert set(warned.values()) <= {finding.what for finding in audit(CostCache(tmp_path / "cache"))}


def test_what_a_number_tells_of_another_is_spearmans_correlation():
    generator = np.random.default_rng(0)
    values = generator.integers(0, 300, 2_000).astype(float)
    numbers = np.round(5 * generator.normal(size=2_000) - values / 40)
    values[::50] = np.nan
    expected = abs(spearmanr(values, numbers, nan_policy="omit").statistic)
    assert _order_told(values, numbers) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("wrong", [0, 0.002, 0.005, 0.05, 0.2, 0.5])
def test_a_glance_gives_up_no_feature_that_tells_the_truth(wrong):
    generator = np.random.default_rng(0)
    true = generator.integers(0, 3, 40_000)
    feature = np.where(generator.random(40_000) < wrong, generator.integers(0, 3, 40_000), true)[:, None]
    everything = feature.astype(np.float32), true.astype(np.float64), (train := generator.random(40_000) < 0.6), ~train
    share, hopeless = _class_told(*everything), _is_hopeless(*(rows[::5] for rows in everything))
    right = float((feature[~train, 0] == true[~train]).mean())
    assert share == (pytest.approx(right) if wrong <= 0.01 else 0)
    assert hopeless == (wrong >= 0.2)


def test_what_a_feature_tells_is_what_scikit_learn_says_its_bins_tell():
    from sklearn.metrics import r2_score
    from sklearn.preprocessing import KBinsDiscretizer
    from sklearn.tree import DecisionTreeRegressor

    generator = np.random.default_rng(0)
    x, train = generator.normal(size=3000), np.arange(3000) < 2000
    cost = (x > 0.3) * 0.8 + 0.1 * generator.normal(size=3000)
    bins = binned(x[:, None].astype(np.float32), train)
    edges = KBinsDiscretizer(64, encode="ordinal", strategy="quantile", quantile_method="linear").fit(x[train, None])
    codes = edges.transform(x[:, None])
    tree = DecisionTreeRegressor().fit(codes[train], cost[train])
    expected = r2_score(cost[~train], tree.predict(codes[~train]))
    assert _explained(bins, cost, train, ~train) == pytest.approx(expected, abs=5e-3)


def test_duplicated_rows_are_found_and_counted(tmp_path):
    table = patients(400).with_columns(families(400, 1))
    copies = table.head(60).with_columns(pl.format("copy{}", pl.col("id")).alias("id"))
    other = copies.tail(20).with_columns((1 - pl.col("died")).alias("died"))  # the same features, another outcome
    cache = cache_of(tmp_path, pl.concat([table, copies.head(40), other]))
    samples = pl.concat([pl.read_parquet(f) for f in sorted((cache.path / "samples").glob("*.parquet"))])
    split = dict(zip(samples["sample_id"], samples["split"], strict=True))
    twin = {f"copyp{k:04d}": f"p{k:04d}" for k in range(60)}
    twin |= {original: copy for copy, original in twin.items()}
    leaked = [s for s in split if split[s] == "test" and s in twin and split[twin[s]] != "test"]
    same = [s for s in leaked if int(s[-2:]) < 40]
    (finding,) = leaks(cache)
    assert (finding.level, finding.samples) == ("warning", len(leaked))
    assert f"{len(same)} of them with the same targets" in finding.what
    assert set(finding.examples) <= set(leaked)
    assert len(leaked) > len(same) > 0


def test_coarse_inputs_repeat_by_chance_and_are_only_noted(tmp_path):
    table = patients(400).with_columns(pl.col("x1").round(0), pl.lit(0.0).alias("x2"), families(400, 1))
    cache = cache_of(tmp_path, table)
    finding = audit(cache)[1]
    assert finding.level == "note"
    assert "may be chance" in finding.what
    assert leaks(cache) == []


def test_groups_in_two_splits_are_found(tmp_path):
    table = patients(400)
    cache = cache_of(tmp_path, table.with_columns(families(400, 4)))
    samples = pl.concat([pl.read_parquet(f) for f in sorted((cache.path / "samples").glob("*.parquet"))])
    outside = set(samples.filter(pl.col("split") != "test")["family"])
    leaked = [
        family
        for family, split in samples.select("family", "split").iter_rows()
        if split == "test" and family in outside
    ]
    finding = audit(cache, groups=("family", "ward"))[1]
    assert (finding.level, finding.samples) == ("warning", len(leaked))
    assert f"{len(set(leaked))} of 100 groups" in finding.what
    refused(lambda: audit(cache, groups=("x1",)), UsageError, "no kept column 'x1'", "kept are: ward, family")
    together = RECIPE.but({"dataset.split": {"column": "part"}}).only("model", "column")
    parts = ["train", "validation", "test", "train"]
    whole = table.with_columns(families(400, 4), pl.Series("part", [parts[row // 4 % 4] for row in range(400)]))
    (tmp_path / "other").mkdir()
    cache = cache_of(tmp_path / "other", whole, together)
    assert levels(audit(cache, groups=("family",)))["group family"] == "ok"


def test_an_agent_that_has_seen_the_training_targets_is_found(tmp_path):
    """Answers recorded elsewhere, by something that was fitted on our training split."""
    table = patients(400).with_columns(families(400, 1))
    split = pl.Series("part", ["train"] * 240 + ["validation"] * 80 + ["test"] * 80)
    memorised = np.where(split == "train", table["died"] * 0.98 + 0.01, table["risk_bad"])
    table = table.with_columns(split, pl.Series("risk_memory", memorised))
    recipe = RECIPE.but({"dataset.split": {"column": "part"}})
    recipe = recipe.plus(changed(COLUMN, {"name": "memory", "prob": "risk_memory"}))
    found = {finding.check: finding for finding in audit(cache_of(tmp_path, table, recipe))}
    assert found["agent memory"].level == "warning"
    assert "seen their targets" in found["agent memory"].what
    assert found["agent column"].level == "ok"
    gap = found["agent memory"].gaps[0]
    assert gap.low > 0
    assert gap.test - gap.train > 0.1


def test_warnings_about_agents_are_as_rare_as_said_and_intervals_cover():
    """400 tables without a leak: the interval holds the true difference, 0, in 95 % of them; with groups too."""
    generator = np.random.default_rng(0)
    covered = {"alone": 0, "grouped": 0}
    for _ in range(400):
        units = np.repeat(np.arange(60), 5)
        half = units < 30
        shared = generator.normal(size=60)[units]
        for name, costs in (
            ("alone", generator.exponential(size=300)),
            ("grouped", shared + generator.normal(size=300)),
        ):
            (a, b), (c, d) = (_mean(costs, mask, units if name == "grouped" else None) for mask in (half, ~half))
            covered[name] += abs(a - c) <= 1.96 * np.hypot(b, d)
    assert 0.92 < covered["alone"] / 400 < 0.98
    assert 0.91 < covered["grouped"] / 400 < 0.98


def test_failures_and_absent_splits_are_no_costs():
    costs = np.array([1.0, np.nan, 3.0, np.nan])
    assert _mean(costs, np.array([True, True, True, False]), None) == (2.0, pytest.approx(1.0))
    assert np.isnan(_mean(costs, np.array([False, False, False, True]), None)[0])


def test_digests_tell_inputs_apart():
    import pyarrow as pa

    grid = np.array(np.meshgrid(*[np.arange(24, dtype=np.float32)] * 4)).reshape(4, -1).T  # 331,776 rows
    assert len(np.unique(_digests_of_rows(np.ascontiguousarray(grid)))) == len(grid)
    swapped = _digests_of_rows(np.array([[1, 2], [2, 1], [1, 2], [0.0, -0.0], [-0.0, 0.0]], np.float32))
    assert swapped[0] == swapped[2] != swapped[1]
    assert swapped[3] == swapped[4]
    images = _digests(pa.chunked_array([pa.array([b"a", b"b", b"a", None, None], pa.binary())]), 0)
    assert images[0] == images[2] != images[1]
    assert images[3] != images[4]
    later = _digests(pa.chunked_array([pa.array([None], pa.binary())]), 4)
    assert later[0] == images[4] != images[3]  # by position in the cache


def test_the_command_and_the_line_before_training(tmp_path, l2d):
    table = patients(200).with_columns(families(200, 2))
    copies = table.head(50).with_columns(pl.format("copy{}", pl.col("id")).alias("id"))
    cache = cache_of(tmp_path, pl.concat([table, copies]))
    code, out, err = l2d("audit", cache.path, "--group", "family", "--format", "json")
    assert (code, "2 warnings" in err) == (0, True)
    rows = json.loads(out)
    assert [row["level"] for row in rows[:3]] == ["ok", "warning", "warning"]
    assert {gap["cost"] for gap in rows[5]["gaps"]} == {"cost_cla", "cost_reg"}
    code, out, _ = l2d("audit", cache.path)
    assert (code, "Mean cost of each agent" in out) == (0, True)
    _, _, err = l2d("train", cache.path, "--out", tmp_path / "run", "--epochs", 1, "--rejector", "linear")
    assert err.count("warning: duplicated features") == 1
    assert f"l2d audit {cache.path}" in err
