"""Rejectors on pixels that look at the files of the dataset's folder, at the cache's size and at others."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from image_rejectors import TINY, resumed, trained
from PIL import Image

import l2d
from l2d.data.cache.reader import CostCache
from l2d.data.errors import DataError, UsageError
from l2d.data.samples.images import find_images
from l2d.rejector.rows.pictures import files_of
from l2d.rejector.rows.table import load_tables
from l2d.rejector.runs.run import load_run, open_cache
from l2d.rejector.settings import TrainConfig
from l2d.rejector.training.loop import _Training

PLAIN = TrainConfig(network="conv", hidden=16, epochs=2, batch_size=16, lr=0.01)


@pytest.fixture(scope="module")
def cache(detection_runs) -> Path:
    return detection_runs[0]


@pytest.fixture(scope="module")
def devkit(cache) -> str:
    return str(cache.parent / "devkit")


@pytest.fixture(scope="module")
def larger(cache, devkit, tmp_path_factory) -> Path:
    """A run on images of twice the cache's side."""
    return trained(cache, tmp_path_factory.mktemp("larger") / "run", images=devkit, image_size=32)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["image", "conv"])
def test_files_at_the_caches_size_give_the_same_run_to_the_bit(cache, devkit, tmp_path, network):
    config = TINY if network == "image" else PLAIN
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


def test_missing_and_other_files_are_named_before_anything_is_trained(cache, devkit, tmp_path):
    folder = tmp_path / "photographs"  # any folder with files of these names will do
    shutil.copytree(Path(devkit) / "VOCdigits" / "JPEGImages", folder)
    opened = CostCache(cache)
    first, second = opened.samples(0, ["sample_id"])["sample_id"].to_pylist()[:2]
    assert files_of(opened, folder).unchecked == ""
    Image.new("RGB", (144, 144)).save(folder / f"{second}.jpg")
    with pytest.raises(DataError, match="not the image that the agents were asked about") as error:
        trained(cache, tmp_path / "run", images=str(folder), image_size=17)
    assert error.value.where == folder / f"{second}.jpg"
    (folder / f"{first}.jpg").unlink()
    with pytest.raises(DataError, match=f"1 of .* images are not here, such as '{first}'"):
        trained(cache, tmp_path / "run", images=str(folder), image_size=18)
    with pytest.raises(UsageError, match="no such folder"):
        trained(cache, tmp_path / "run", images=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="names a folder, and this is a file"):
        trained(cache, tmp_path / "run", images=str(folder / f"{second}.jpg"))
    assert not (tmp_path / "run").exists()


def test_another_file_of_the_same_name_is_named(cache, devkit, tmp_path):
    shutil.copytree(Path(devkit) / "VOCdigits" / "JPEGImages", tmp_path / "photographs" / "right")
    name = CostCache(cache).samples(0, ["sample_id"])["sample_id"][0].as_py()
    right, wrong = (tmp_path / "photographs" / folder / f"{name}.jpg" for folder in ("right", "marked"))
    wrong.parent.mkdir()
    Image.new("RGB", (144, 144)).save(wrong)
    with pytest.raises(DataError, match="not the image") as error:
        files_of(CostCache(cache), tmp_path / "photographs")
    assert error.value.where == wrong
    assert str(right) in error.value.hint


@pytest.mark.slow
def test_run_cache_and_images_move_together_or_the_folder_is_said(cache, devkit, tmp_path, monkeypatch):
    work, photographs = tmp_path / "work", Path(devkit) / "VOCdigits" / "JPEGImages"
    shutil.copytree(cache, work / "photos.cache")
    shutil.copytree(photographs, work / "photographs")
    monkeypatch.chdir(work)
    settings = {"config": PLAIN, "epochs": 1, "image_size": 8}
    run = trained(Path("photos.cache"), Path("run"), images="photographs", **settings)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    work.rename(tmp_path / "moved")
    run, moved = Path("../moved/run"), tmp_path / "moved" / "photographs"
    assert open_cache(load_run(run)).pictures.found.files.keys()
    assert load_run(run).rejector.config.images == str(moved)

    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="no such folder") as error:
        l2d.evaluate(run)
    assert "--images FOLDER" in error.value.hint
    shares = l2d.evaluate(run, images="../elsewhere").to_json()[0]["allocation"]
    said = pl.read_parquet(run / "allocations.parquet")
    assert shares[said["agent"][0]] == (said.filter(split="test")["agent"] == said["agent"][0]).mean()
    again = trained(Path("../moved/photos.cache"), run, images="../elsewhere", **settings)
    assert again.samefile(run)  # the same images in another folder: nothing to train

    l2d.route(run, "../moved/photos.cache", "cached.parquet", images="../elsewhere")
    both = said.join(pl.read_parquet("cached.parquet"), on="sample_id", suffix="_routed")
    assert both.height == said.height
    np.testing.assert_allclose(both["score_0"], both["score_0_routed"], rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="no such folder"):
        l2d.route(run, "../moved/photos.cache", "again.parquet")
    with pytest.raises(UsageError, match="the input has its images"):
        l2d.route(run, "../elsewhere", "again.parquet", images="../elsewhere")


def test_images_of_runs_that_look_at_none_are_refused(detection_runs, devkit):
    with pytest.raises(UsageError, match="none of these runs looks at image files"):
        l2d.evaluate(detection_runs[1]["mlp"], images=devkit)


def test_pixels_are_not_attacked_one_by_one(detection_runs):
    with pytest.raises(UsageError, match="reads pixels"):
        l2d.evaluate(detection_runs[1]["conv"], robust=0.1)


def test_images_that_change_after_they_were_checked_are_checked_again(cache, devkit, tmp_path):
    folder = tmp_path / "photographs"
    shutil.copytree(Path(devkit) / "VOCdigits" / "JPEGImages", folder)
    file = next(iter(files_of(CostCache(cache), folder).files.values()))
    Image.new("RGB", (144, 144)).save(file)
    with pytest.raises(DataError, match="not the image"):
        files_of(CostCache(cache), folder)


def test_without_a_digest_in_the_cache_it_is_said_that_nothing_was_compared(cache, devkit):
    opened = CostCache(cache)
    opened.record.fingerprint.pop("images")
    assert "not compared" in files_of(opened, Path(devkit)).unchecked


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
