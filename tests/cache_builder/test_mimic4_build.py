"""The MIMIC-IV recipes that ship, built on made-up files."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import binomtest, kstest

from l2d import cli
from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import SHIPPED, load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.sources.mimic4.generator import write_mimic4
from l2d.data.sources.mimic4.reader import load_mimic4
from l2d.data.sources.mimic4.risk import true_risk

MASKS = {"expert_1": ({1, 2, 4}, {1, 3, 5}), "expert_2": ({1, 5, 6}, {1, 4, 6})}  # the paper's C_i: class, stay


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe") / "mimic"
    write_mimic4(folder, patients=16_000, seed=5, drugs_per_visit=1.0)
    return folder


def shortened(folder: Path, recipe: str, width: int = 64) -> str:
    """A shipped recipe whose model is small and trained for two epochs."""
    text = (SHIPPED / f"{recipe}.toml").read_text(encoding="utf-8")
    small = 'kind = "two_transformers"\nepochs = 2\nhidden = 8\nlayers = 1\nbatch_size = 64\n\n'
    text = re.sub(r'kind = "two_transformers".*?\n\n', small, text, flags=re.DOTALL)
    (folder / "recipe.toml").write_text(text.replace("width = 64", f"width = {width}"), encoding="utf-8")
    return str(folder / "recipe.toml")


@pytest.fixture(scope="module")
def cache(files, tmp_path_factory) -> CostCache:
    folder = tmp_path_factory.mktemp("cache")
    build(load_recipe(shortened(folder, "mimic4", width=16), files), folder / "cache", device="cpu")
    return CostCache(folder / "cache")


def test_the_recipes_hold_the_papers_values():
    paper, authors = load_recipe("mimic4"), load_recipe("mimic4_authors")
    for recipe in (paper, authors):
        assert recipe.costs.describe()["reg"] == {"kind": "smooth_l1", "beta": 1.0, "clamp": 5.0}
        assert recipe.defaults.weights == {"cla": 1.0, "reg": 0.2}
        assert recipe.dataset.split.test == 0.2
        assert (recipe.dataset.clusters.count, recipe.dataset.clusters.seed) == (6, 42)
        share = 1 / (1 + recipe.dataset.negatives)
        assert share == pytest.approx(0.482, abs=5e-5)
    for agent in paper.agents[1:]:
        assert (set(agent.right_cla), set(agent.right_reg)) == MASKS[agent.name]
    model = paper.agents[0]
    assert (model.epochs, model.lr, model.batch_size, model.warmup, model.schedule) == (100, 3e-3, 1024, 0.1, "cosine")
    assert authors.dataset.require == ["diagnoses", "procedures", "prescriptions"]


def predictions(cache: CostCache, agent: str) -> pl.DataFrame:
    parts = sorted((cache.path / "agents" / agent / "predictions").glob("*.parquet"))
    samples = pl.concat([pl.read_parquet(part) for part in sorted((cache.path / "samples").glob("*.parquet"))])
    return samples.hstack(
        pl.concat([pl.read_parquet(part) for part in parts]).drop("sample_id", "failure", strict=False)
    )


@pytest.mark.slow
def test_experts_are_right_on_the_papers_clusters_and_nowhere_else(cache):
    assert cache.verify() > 0
    assert sorted(predictions(cache, "expert_1")["cluster"].unique()) == [1, 2, 3, 4, 5, 6]
    for agent, (right_cla, right_reg) in MASKS.items():
        found = predictions(cache, agent)
        inside = found["cluster"].is_in(list(right_cla))
        assert ((found["pred_cla"] == found["target_cla"]) == inside).all()
        inside = found["cluster"].is_in(list(right_reg))
        assert (found.filter(inside)["pred_reg"] == found.filter(inside)["target_reg"]).all()
        wrong = found.filter(~inside)["pred_reg"].to_numpy()
        assert kstest(wrong, "uniform", args=(0, 9)).pvalue > 1e-4  # categories 0 to 9


def test_token_lists_and_columns_are_in_the_cache(cache, files):
    found = predictions(cache, "model")
    assert {"patient", "age", "gender", "days", "cluster", "tokens_diagnoses", "tokens_procedures"} <= set(
        found.columns
    )
    assert set(cache.record.inputs) >= {"tokens", "features", "clusters", "preparation"}
    vocabulary = cache.record.inputs["tokens"]["fields"]["diagnoses"]["vocabulary"]
    dataset = load_mimic4(load_recipe("mimic4", files).dataset.model_copy(update={"features": None}), "test")
    assert dataset.tokens["diagnoses"].vocabulary == tuple(vocabulary)
    assert found["sample_id"].to_list() == dataset.ids
    assert found["tokens_diagnoses"].list.len().to_list() == dataset.tokens["diagnoses"].counts.tolist()


def test_nobody_beats_the_known_risk(files, tmp_path):
    """A network on codes does better than guessing, and no better than the probabilities behind the files."""
    recipe = shortened(tmp_path, "mimic4", width=24)
    text = Path(recipe).read_text()
    start = text.index("[[agents]]")
    Path(recipe).write_text(text[:start] + '[[agents]]\nname = "model"\nkind = "two_head"\nepochs = 20\n')
    build(load_recipe(recipe, files), tmp_path / "cache", device="cpu")
    cache = CostCache(tmp_path / "cache")
    found = predictions(cache, "model")
    test = (found["split"] == "test").to_numpy()
    raw = load_mimic4(load_recipe("mimic4", files).dataset.model_copy(update={"min_count": 1}), "test")
    risk = true_risk(*(raw.tokens[field].to_lists() for field in ("diagnoses", "procedures")))
    chance = risk.death_among(cache.record.inputs["preparation"]["share_of_negatives"])[test]
    best = np.maximum(chance, 1 - chance).mean()
    right = (found["pred_prob"].arr.get(1) > 0.5).cast(pl.Int32).to_numpy()[test] == found["target_cla"].to_numpy()[
        test
    ]
    assert binomtest(int(right.sum()), len(right), best, alternative="greater").pvalue > 1e-3
    assert binomtest(int(right.sum()), len(right), 0.5, alternative="greater").pvalue < 1e-3


def test_the_authors_recipe_builds(files, tmp_path):
    recipe = load_recipe(shortened(tmp_path, "mimic4_authors"), files)
    build(recipe, tmp_path / "cache", device="cpu")
    found = predictions(CostCache(tmp_path / "cache"), "expert_2")
    assert ((found["pred_cla"] == found["target_cla"]) == found["cluster"].is_in([1, 5])).all()


def test_the_command_writes_and_says_so(tmp_path, monkeypatch, capfd):
    for again in ("", "there already"):
        monkeypatch.setattr(
            sys, "argv", ["l2d", "data", "mimic", "--out", str(tmp_path / "m"), "--patients", "50", "--seed", "3"]
        )
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
        out, err = capfd.readouterr()
        assert out.strip() == str(tmp_path / "m")
        assert again in err
        assert "l2d build mimic4 --data" in err
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == ["README.txt", "hosp"]
