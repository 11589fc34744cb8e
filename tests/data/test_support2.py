"""The data that ship: SUPPORT2 as published, no leak from the outcome, and the two real agents' known figures."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe, shipped_recipes
from l2d.data.cache.reader import CostCache
from l2d.data.sources.table import load_table

DATA = Path(__file__).parents[2] / "data" / "support2" / "support2.parquet"
LEAKS = {
    *("death", "hospdead", "d.time", "slos", "charges", "totcst", "totmcst", "avtisst", "sfdm2", "dnr", "dnrday"),
    *("sps", "aps", "surv2m", "surv6m", "prg2m", "prg6m", "sno", "id"),
}


@pytest.fixture(scope="session")
def patients() -> pl.DataFrame:
    return pl.read_parquet(DATA)


@pytest.fixture(scope="session")
def judged(patients) -> pl.DataFrame:
    """Patients whom both the physician and the SUPPORT model have judged, with the truth after two months."""
    dead = ((pl.col("death") == 1) & (pl.col("d.time") <= 60)).cast(pl.Int8).alias("dead")
    return patients.filter(pl.col("prg2m").is_not_null() & pl.col("surv2m").is_not_null()).with_columns(dead)


@pytest.fixture(scope="session")
def support2(tmp_path_factory) -> CostCache:
    """The shipped ``support2`` recipe, built once."""
    out = tmp_path_factory.mktemp("support2") / "cache"
    report = build(load_recipe("support2"), out, device="cpu")
    assert report.asked == dict.fromkeys(["model", "expert_1", "expert_2"], 9105)
    return CostCache(out)


def samples(cache: CostCache, pattern: str = "samples/*.parquet") -> pl.DataFrame:
    return pl.concat([pl.read_parquet(file) for file in sorted(cache.path.glob(pattern))])


def test_the_table_is_support2_as_published(patients):
    assert patients.shape == (9105, 48)
    assert patients["hospdead"].mean() == pytest.approx(0.259, abs=5e-4)
    assert patients["death"].mean() == pytest.approx(0.681, abs=5e-4)
    assert patients["slos"].mean() == pytest.approx(17.9, abs=0.05)
    assert (patients["slos"].median(), patients["slos"].max()) == (11, 343)
    assert patients["sno"].n_unique() == 9105
    with duckdb.connect() as connection:
        assert connection.execute("SELECT count(*), sum(hospdead) FROM read_parquet(?)", [str(DATA)]).fetchone() == (
            9105,
            round(0.2592 * 9105),
        )


def test_both_recipes_ship_and_load():
    assert {"support2", "support2_physicians"} <= set(shipped_recipes())
    for name in ("support2", "support2_physicians"):
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.dataset.path == DATA.resolve()
        assert recipe.agents[0].kind == "two_head"


@pytest.mark.parametrize("name", ["support2", "support2_physicians"])
def test_no_feature_reads_what_follows_from_the_outcome_or_another_agent(patients, name):
    recipe = load_recipe(name)
    features = list(recipe.dataset.features)
    if recipe.dataset.clusters is not None:
        features += recipe.dataset.clusters.features
    read = {word for text in features for word in re.findall(r"[A-Za-z_][A-Za-z0-9_.]*", text.split(" AS ")[0])}
    columns = read & set(patients.columns)
    assert len(columns) >= 25
    assert not columns & LEAKS
    assert read - columns <= {"ln"}  # every other word is a function


@pytest.mark.parametrize("name", ["support2", "support2_physicians"])
def test_features_do_not_change_when_leaky_columns_are_wiped(patients, tmp_path, name):
    config = load_recipe(name).dataset.model_copy(update={"clusters": None})
    honest = load_table(config, name)
    kept = {"hospdead", "slos", "death", "d.time", "prg2m", "surv2m", "sno"}  # targets and filters still need these
    wiped = patients.with_columns([pl.lit(0.5).alias(c) for c in LEAKS - kept if c in patients.columns])
    wiped.write_parquet(tmp_path / "wiped.parquet")
    np.testing.assert_array_equal(
        load_table(config.model_copy(update={"path": tmp_path / "wiped.parquet"}), name).features, honest.features
    )


def test_the_real_agents_have_their_published_figures(judged):
    assert len(judged) == 7456
    dead = judged["dead"].to_numpy()
    physician, model = 1 - judged["prg2m"].to_numpy(), 1 - judged["surv2m"].to_numpy()
    for probability, auroc, brier in ((physician, 0.804, 0.167), (model, 0.805, 0.165)):
        assert round(roc_auc_score(dead, probability), 3) == auroc
        assert round(brier_score_loss(dead, probability), 3) == brier
    better = np.minimum((physician - dead) ** 2, (model - dead) ** 2).mean()
    assert round(better, 3) == 0.093
    assert brier_score_loss(dead, (physician + model) / 2) == pytest.approx(0.1495, abs=1e-4)


def test_the_physicians_recipe_caches_the_same_figures(judged, tmp_path):
    recipe = load_recipe("support2_physicians")
    model = recipe.agents[0].model_copy(update={"epochs": 1, "hidden": [4]})
    quick = recipe.model_copy(update={"agents": [model, *recipe.agents[1:]]})
    build(quick, tmp_path / "cache", device="cpu")
    cache = CostCache(tmp_path / "cache")
    table = samples(cache)
    assert table["sample_id"].to_list() == judged["sno"].cast(pl.String).to_list()
    np.testing.assert_array_equal(table["target_cla"].to_numpy(), judged["dead"].to_numpy())
    costs = {agent.name: samples(cache, f"agents/{agent.name}/costs-*/*.parquet") for agent in cache.all_agents}
    means = {name: frame["cost_cla"].mean() for name, frame in costs.items()}
    dead = judged["dead"].to_numpy()
    assert means["physician"] == pytest.approx(brier_score_loss(dead, 1 - judged["prg2m"].to_numpy()), abs=1e-5)
    assert means["support_model"] == pytest.approx(brier_score_loss(dead, 1 - judged["surv2m"].to_numpy()), abs=1e-5)
    assert means["average_of_both"] == pytest.approx(0.1495, abs=1e-4)
    assert [agent.name for agent in cache.references] == ["average_of_both", "average_of_all"]


@pytest.mark.slow
def test_the_elbow_of_support2_is_six(support2):
    clusters = support2.record.inputs["clusters"]
    assert clusters["count"] == 6
    table = samples(support2)
    sizes = table.filter(pl.col("split") == "train")["cluster"].value_counts().sort("cluster")["count"].to_list()
    assert len(sizes) == 6
    assert sizes == sorted(sizes, reverse=True)


def test_support2_is_split_60_20_20_with_the_same_share_of_deaths(support2):
    table = samples(support2)
    for split, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        part = table.filter(pl.col("split") == split)
        assert len(part) / 9105 == pytest.approx(share, abs=0.002)
        assert part["target_cla"].mean() == pytest.approx(0.259, abs=0.005)
    np.testing.assert_allclose(table["target_reg"].to_numpy(), np.log2(1 + table["slos"].to_numpy()), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "right_cla", "right_reg"), [("expert_1", {1, 2, 4}, {1, 3, 5}), ("expert_2", {1, 5, 6}, {1, 4, 6})]
)
def test_the_simulated_experts_are_right_where_the_paper_says(support2, name, right_cla, right_reg):
    cluster = samples(support2)["cluster"].to_numpy()
    costs = samples(support2, f"agents/{name}/costs-*/*.parquet")
    np.testing.assert_array_equal(costs["cost_cla"].to_numpy() == 0, np.isin(cluster, list(right_cla)))
    np.testing.assert_array_equal(costs["cost_reg"].to_numpy() == 0, np.isin(cluster, list(right_reg)))


def test_the_model_beats_guessing_on_test_patients_and_the_cache_verifies(support2):
    table = samples(support2)
    test = (table["split"] == "test").to_numpy()
    prob = np.array(samples(support2, "agents/model/predictions/*.parquet")["pred_prob"].to_list())
    assert roc_auc_score(table["target_cla"].to_numpy()[test], prob[test, 1]) > 0.8
    costs = samples(support2, "agents/model/costs-*/*.parquet")
    wrong = costs["cost_cla"].to_numpy()[test].mean()
    assert wrong < table["target_cla"].to_numpy()[test].mean()  # better than "everybody lives"
    assert support2.verify() == 9 + 3 * 2 * 9
