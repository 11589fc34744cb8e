"""The model agent over token lists: what it learns, that it does so the same again, what it refuses."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pytest
import torch
from conftest import Workshop
from safetensors.numpy import load_file
from torch.utils.flop_counter import FlopCounterMode

from l2d.cache_builder.agents import make_agent
from l2d.cache_builder.agents.two_transformers import TwoTransformersConfig
from l2d.data.errors import DataError, FingerprintMismatch, UsageError
from l2d.data.networks.schedules import SCHEDULES
from l2d.data.sources import load_dataset

RECIPE = """
[dataset]
path = "stays.parquet"
id = "id"
target_cla = "died"
target_reg = "days"
[dataset.tokens]
diagnoses = { column = "diagnoses", max_length = 6 }
procedures = { column = "procedures", min_count = 1, max_length = 3 }
[costs.cla]
[costs.reg]
[build]
chunk_size = 150
batch_size = 40
[[agents]]
name = "model"
kind = "two_transformers"
hidden = 16
layers = 1
epochs = 25
batch_size = 64
lr = 0.01
[[agents]]
name = "other"
kind = "column"
cla = "'1'"
reg = "3.0"
"""
FROZEN = "agents/model/frozen.safetensors"
SHORT = ("epochs = 25", "epochs = 2")


def stays(rows: int = 500) -> pl.DataFrame:
    """Death where d1 stands among the diagnoses; two days, five more with p1, four more with d2."""
    generator = np.random.default_rng(0)
    diagnoses = [generator.choice(8, size=n, replace=False) for n in generator.integers(0, 6, size=rows)]
    procedures = [generator.choice(4, size=n, replace=False) for n in generator.integers(0, 3, size=rows)]
    return pl.DataFrame(
        {
            "id": [f"s{row}" for row in range(rows)],
            "diagnoses": [[f"d{code}" for code in codes] for codes in diagnoses],
            "procedures": [[f"p{code}" for code in codes] for codes in procedures],
            "died": [int(1 in codes) for codes in diagnoses],
            "days": [2.0 + 5 * (1 in p) + 4 * (2 in d) for d, p in zip(diagnoses, procedures, strict=True)],
        }
    )


@pytest.fixture
def shop(tmp_path) -> Workshop:
    stays().write_parquet(tmp_path / "stays.parquet")
    return Workshop(tmp_path)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.slow
def test_both_tasks_are_learnt(shop, shared):
    shop.build(RECIPE.replace("layers = 1", "layers = 1\nshared = true") if shared else RECIPE)
    found, table = shop.predictions("model"), stays()
    test = shop.column("samples", "split") == "test"
    assert (found["pred_cla"] == table["died"].to_numpy())[test].mean() > 0.97
    assert np.abs(found["pred_reg"] - table["days"].to_numpy())[test].mean() < 0.5
    assert table["died"].mean() < 0.8
    assert table["days"].std() > 2


def test_it_is_trained_the_same_again_and_never_twice_and_may_be_loaded(shop):
    text = RECIPE.replace(*SHORT)
    assert shop.build(text).fitted == ["model"]
    shop.build(text, out="again")
    assert shop.files()[FROZEN][1] == shop.files("again")[FROZEN][1]
    first = shop.predictions("model")
    shutil.rmtree(shop.folder / "cache" / "agents" / "model" / "predictions")
    assert (shop.build(text).fitted, shop.column("predictions", "pred_reg", "model").tolist()) == (
        [],
        first["pred_reg"].tolist(),
    )
    weights = shop.folder / "cache" / FROZEN
    shop.build(text.replace("epochs = 2", f'weights = "{weights}"'), out="loaded")
    np.testing.assert_array_equal(shop.predictions("model", "loaded")["pred_prob"], first["pred_prob"])
    shop.build(text.replace("epochs = 2", "epochs = 2\nseed = 1"), out="other")
    assert (shop.predictions("model", "other")["pred_reg"] != first["pred_reg"]).any()


def test_the_two_networks_share_nothing_unless_told(shop):
    shop.build(RECIPE.replace(*SHORT))
    frozen = load_file(shop.folder / "cache" / FROZEN)
    assert {name.partition(".")[0] for name in frozen} == {"cla", "reg"}
    embedding = "network.encoders.0.embedding"
    assert (frozen[f"cla.{embedding}"] != frozen[f"reg.{embedding}"]).any()
    alone = RECIPE.replace(*SHORT).replace('target_reg = "days"\n', "").replace("[costs.reg]\n", "")
    shop.build(alone.replace('reg = "3.0"\n', ""), out="alone")
    only = load_file(shop.folder / "alone" / FROZEN)
    assert {name.partition(".")[0] for name in only} == {"cla"}
    for name, value in only.items():  # the class is learnt as if there were no stay
        np.testing.assert_array_equal(value, frozen[name])


@pytest.mark.slow
def test_answers_do_not_depend_on_the_batch(shop):
    shop.build(RECIPE.replace(*SHORT))
    other = RECIPE.replace(*SHORT).replace("batch_size = 40", "batch_size = 7")
    shop.build(other, out="other")
    one, two = shop.predictions("model"), shop.predictions("model", "other")
    np.testing.assert_allclose(one["pred_prob"], two["pred_prob"], atol=1e-6)
    np.testing.assert_allclose(one["pred_reg"], two["pred_reg"], atol=1e-5)


def test_its_gflops_are_those_of_a_stay_of_mean_length(shop):
    text = RECIPE.replace(*SHORT).replace("layers = 1", "layers = 3")
    shop.build(text)
    dataset = load_dataset(shop.recipe(text).dataset, "test")
    agent = make_agent(shop.recipe(text).agents[0])
    agent.load(load_file(shop.folder / "cache" / FROZEN), dataset, "cpu")
    lengths = [
        int(np.ceil(np.minimum(t.counts[dataset.train], n).mean()))
        for t, n in zip(dataset.tokens.values(), (6, 3), strict=True)
    ]
    row = torch.zeros(1, 9)
    row[0, : lengths[0]], row[0, 6 : 6 + lengths[1]] = 1, 1
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        for network in agent.networks.values():
            network(row)
    assert shop.cache().agent("model").gflops == pytest.approx(counter.get_total_flops() / 2e9, rel=0.02)


def test_other_lengths_are_another_agent(shop):
    shop.build(RECIPE.replace(*SHORT))
    with pytest.raises(FingerprintMismatch, match=r"(?s)agent 'model'.*lr: was 0.01, now 0.02"):
        shop.build(RECIPE.replace(*SHORT).replace("lr = 0.01", "lr = 0.02"))
    shorter = RECIPE.replace(*SHORT).replace("max_length = 3", "max_length = 2")
    with pytest.raises(FingerprintMismatch, match="max_length"):
        shop.build(shorter)
    assert shop.build(shorter, overwrite=True).fitted == ["model"]


def test_the_rate_follows_the_papers_schedule(shop, monkeypatch):
    """Adam, 0.1 warm-up, cosine: rates of all steps, from the optimizer itself."""
    rates, step = [], torch.optim.AdamW.step

    def record(optimizer, *args, **kwargs):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    text = RECIPE.replace("epochs = 25", "epochs = 10").replace('target_reg = "days"\n', "")
    shop.build(text.replace("[costs.reg]\n", "").replace('reg = "3.0"\n', ""))
    steps, warm = len(rates), round(0.1 * len(rates))
    rising = [0.01 * (k + 1) / warm for k in range(warm)]
    falling = [0.005 * (1 + np.cos(np.pi * (k - warm) / (steps - warm))) for k in range(warm, steps)]
    np.testing.assert_allclose(rates, rising + falling, rtol=1e-6)
    assert steps == 10 * 5  # 270 of 300 training samples, 64 at once
    assert set(TwoTransformersConfig.model_fields["schedule"].annotation.__args__) == set(SCHEDULES)


@pytest.mark.slow
def test_what_it_cannot_work_on_is_refused(shop):
    without = (
        RECIPE.partition("[dataset.tokens]")[0]
        + 'features = ["days"]\n[costs.cla]'
        + RECIPE.partition("[costs.cla]")[2]
    )
    with pytest.raises(UsageError, match="no token lists"):
        shop.build(without)
    features = RECIPE.replace("two_transformers", "two_head").replace("hidden = 16\nlayers = 1", "hidden = [8]")
    with pytest.raises(UsageError, match="no features"):
        shop.build(features)
    shop.build(RECIPE.replace(*SHORT))
    weights = shop.folder / "cache" / FROZEN
    with pytest.raises(DataError, match="do not fit"):
        shop.build(RECIPE.replace("epochs = 25", f'weights = "{weights}"').replace("layers = 1", "layers = 2"), out="b")
    with pytest.raises(DataError, match="never finite"):
        shop.build(RECIPE.replace("lr = 0.01", "lr = 1e30"), out="c")
