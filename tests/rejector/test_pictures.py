"""Rejectors on pixels that look at the files of the dataset's folder, at the cache's size and at others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

import l2d
from l2d.data.cache.reader import CostCache
from l2d.data.errors import DataError, UsageError
from l2d.data.samples.images import find_images
from l2d.rejector.rows.pictures import pictures_of
from l2d.rejector.rows.table import load_tables
from l2d.rejector.runs.run import load_run, open_cache
from l2d.rejector.settings import TrainConfig
from l2d.rejector.training.loop import _Training

TINY = TrainConfig(
    network="image",
    backbone="mobilenet_v3_small",
    backbone_weights="random",
    hidden=16,
    epochs=2,
    batch_size=16,
    lr=0.01,
)


@pytest.fixture(scope="module")
def cache(detection_runs) -> Path:
    return detection_runs[0]


@pytest.fixture(scope="module")
def devkit(cache) -> str:
    return str(cache.parent / "devkit")


def trained(cache: Path, folder: Path, config: TrainConfig = TINY, **settings) -> Path:
    config = replace(config, **settings)
    return l2d.train(cache, folder, method="multi-task", beta=0.2, seed=1, config=config).path


@pytest.fixture(scope="module")
def larger(cache, devkit, tmp_path_factory) -> Path:
    """A run on images of twice the cache's side."""
    return trained(cache, tmp_path_factory.mktemp("larger") / "run", images=devkit, image_size=32)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["image", "conv"])
def test_files_at_the_caches_size_give_the_same_run_to_the_bit(cache, devkit, tmp_path, network):
    plain = TrainConfig(network="conv", hidden=16, epochs=2, batch_size=16, lr=0.01)
    config = TINY if network == "image" else plain
    cached, files = (
        trained(cache, tmp_path / name, config, images=folder) for name, folder in (("cached", None), ("files", devkit))
    )
    one, other = (load_run(path).rejector.state for path in (cached, files))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert pl.read_parquet(cached / "allocations.parquet").equals(pl.read_parquet(files / "allocations.parquet"))
    assert l2d.evaluate(cached).to_json()[0]["deferral_loss"] == l2d.evaluate(files).to_json()[0]["deferral_loss"]


def test_larger_images_than_the_caches_are_trained_on_evaluated_and_routed(cache, devkit, larger, tmp_path):
    run = load_run(larger)
    assert run.input.made["size"] == 32
    assert CostCache(cache).record.inputs["image"]["size"] == 16
    table = load_tables(open_cache(run), ("test",), column="image")["test"]
    written = pl.read_parquet(larger / "allocations.parquet").filter(split="test").sort("sample_id")
    file = Path(devkit) / "VOCdigits" / "JPEGImages" / f"{table.ids[0]}.jpg"
    pixels = np.asarray(Image.open(file).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(table.features[0].view(3, 32, 32), pixels.transpose(2, 0, 1).astype(np.float32) / 255)

    routed = tmp_path / "where.parquet"
    l2d.route(larger, Path(devkit) / "VOCdigits" / "JPEGImages", routed)
    found = pl.read_parquet(routed).with_columns(pl.col("sample_id").str.strip_suffix(".jpg"))
    both = written.join(found, on="sample_id", suffix="_routed", maintain_order="left")
    assert both.height == written.height
    assert both["agent"].to_list() == both["agent_routed"].to_list()
    np.testing.assert_allclose(both["score_0"], both["score_0_routed"], rtol=1e-5, atol=1e-6)
    shares = l2d.evaluate(larger).to_json()[0]["allocation"]
    assert shares[written["agent"][0]] == pytest.approx((written["agent"] == written["agent"][0]).mean())


@pytest.mark.slow
def test_training_on_files_that_was_ended_goes_on_to_the_same_bits(cache, devkit, tmp_path, monkeypatch):
    settings = {"images": devkit, "image_size": 24}
    whole = trained(cache, tmp_path / "whole", **settings)
    end = _Training._end_epoch

    def stopped(self, epoch, *rest):
        if epoch == 1:
            raise KeyboardInterrupt
        end(self, epoch, *rest)

    monkeypatch.setattr(_Training, "_end_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        resumed(cache, tmp_path / "ended", settings)
    monkeypatch.setattr(_Training, "_end_epoch", end)
    resumed(cache, tmp_path / "ended", settings)
    one, other = (load_run(tmp_path / name).rejector.state for name in ("ended", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert load_run(whole).rejector.history == load_run(tmp_path / "ended").rejector.history


def resumed(cache: Path, folder: Path, settings: dict) -> None:
    from l2d.rejector.grid import make_grid
    from l2d.rejector.sweep import sweep

    opened = CostCache(cache)
    points = make_grid(opened, methods=["multi-task"], weights=[], betas=[0.2], nus=[1.0], seeds=[1])
    sweep(opened, points, [folder], replace(TINY, **settings), checkpoint_every=0)


def test_missing_and_other_files_are_named_before_anything_is_trained(cache, devkit, tmp_path):
    folder = tmp_path / "photographs"  # any folder with files of these names will do
    shutil.copytree(Path(devkit) / "VOCdigits" / "JPEGImages", folder)
    opened = CostCache(cache)
    first, second = opened.samples(0, ["sample_id"])["sample_id"].to_pylist()[:2]
    assert pictures_of(opened, folder, 16).unchecked == ""
    Image.new("RGB", (144, 144)).save(folder / f"{second}.jpg")
    with pytest.raises(DataError, match="not the image that the agents were asked about") as error:
        trained(cache, tmp_path / "run", images=str(folder), image_size=17)
    assert error.value.where == folder / f"{second}.jpg"
    (folder / f"{first}.jpg").unlink()
    with pytest.raises(DataError, match=f"1 of .* images are not here, such as '{first}'"):
        trained(cache, tmp_path / "run", images=str(folder), image_size=18)
    with pytest.raises(UsageError, match="no such folder"):
        trained(cache, tmp_path / "run", images=str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_without_a_digest_in_the_cache_it_is_said_that_nothing_was_compared(cache, devkit):
    opened = CostCache(cache)
    opened.record.fingerprint.pop("images")
    assert "not compared" in pictures_of(opened, Path(devkit), 16).unchecked


def test_settings_that_do_not_fit_are_refused(devkit):
    with pytest.raises(UsageError, match="image_size = 64"):
        TrainConfig(network="image", image_size=64)
    with pytest.raises(UsageError) as error:
        TrainConfig(images=devkit)
    assert "mlp looks at features" in error.value.hint


def test_a_table_names_its_files_by_what_the_cache_keeps(tmp_path):
    colors, names = ["red", "blue"] * 20, [f"pictures/{k:02d}.png" for k in range(40)]
    (tmp_path / "pictures").mkdir()
    for name, color in zip(names, colors, strict=True):
        Image.new("RGB", (12, 12), color).save(tmp_path / name)
    table = pl.DataFrame({"id": [f"s{k}" for k in range(40)], "file": names, "y": colors, "x": range(40), "a": colors})
    table = table.with_columns(b=pl.lit("red"))
    table.write_csv(tmp_path / "t.csv")
    recipe = """
[dataset]
kind = "table"
path = "t.csv"
id = "id"
classes = ["red", "blue"]
target_cla = "y"
features = ["x"]
image = "file"
{keep}
[costs.cla]
kind = "zero_one"
[[agents]]
name = "one"
kind = "column"
cla = "a"
[[agents]]
name = "two"
kind = "column"
cla = "b"
"""
    for keep, works in (('keep = ["file"]', True), ("", False)):
        (tmp_path / "r.toml").write_text(recipe.format(keep=keep))
        built = tmp_path / f"{works}.cache"
        l2d.build(tmp_path / "r.toml", built)
        if works:
            with pytest.raises(UsageError, match="at what size"):
                trained(built, tmp_path / "run", images=str(tmp_path))
            run = load_run(trained(built, tmp_path / "run", images=str(tmp_path), image_size=8))
            assert run.input.made == {"kind": "image", "size": 8, "file": "file"}
        else:
            with pytest.raises(DataError) as error:
                trained(built, tmp_path / "other", images=str(tmp_path), image_size=8)
            assert "add it to `keep`" in error.value.hint


def test_of_files_of_one_name_the_one_in_its_origin_and_before_masks_is_taken(tmp_path):
    for name in ("VOC2007/JPEGImages/1.jpg", "VOC2007/SegmentationObject/1.png", "VOC2012/JPEGImages/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(tmp_path, {"2007/1", "2012/1", "1", "2"})
    assert {name: file.relative_to(tmp_path).as_posix() for name, file in found.items()} == {
        "2007/1": "VOC2007/JPEGImages/1.jpg",
        "2012/1": "VOC2012/JPEGImages/1.jpg",
        "1": "VOC2007/JPEGImages/1.jpg",
    }
