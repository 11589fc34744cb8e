"""A rejector on pixels: a frozen body once for a grid, stages that learn, images that change, runs that move."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
from image_rejectors import TINY, resumed, trained

import l2d
from l2d.data.cache.reader import CostCache
from l2d.data.errors import DataError, UsageError
from l2d.data.networks.bodies import Affine, Body, normalised
from l2d.rejector.rows.shuffled import Shuffled
from l2d.rejector.rows.stream import open_streams
from l2d.rejector.rows.table import load_tables
from l2d.rejector.runs.run import load_run
from l2d.rejector.settings import TrainConfig
from l2d.rejector.training.images import augmented, look


@pytest.fixture(scope="module")
def cache(detection_runs) -> Path:
    return detection_runs[0]


@pytest.fixture(scope="module")
def grid(cache, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("grid") / "runs"
    l2d.sweep(cache, folder, methods=["multi-task"], betas=[0, 0.2], seeds=2, config=TINY)
    return sorted(path for path in folder.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def thawed(cache, tmp_path_factory) -> list[Path]:
    """The last stage learns, and images are mirrored."""
    folder, config = tmp_path_factory.mktemp("thawed"), replace(TINY, unfreeze="features.12", augment="flip")
    l2d.sweep(cache, folder / "runs", methods=["multi-task"], betas=[0, 0.2], seeds=1, config=config)
    return [folder / "runs" / f"multi-task_beta={beta}_nu=1_seed=0" for beta in ("0", "0.2")]


def state(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_run(path).rejector.state)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_point_of_a_grid_is_what_it_is_alone_and_the_body_is_one_file(cache, grid, tmp_path):
    (same,) = (path for path in grid if "beta=0.2" in path.name and "seed=1" in path.name)
    assert_same(state(trained(cache, tmp_path / "alone")), state(same))
    assert len({os.stat(path / "body.safetensors").st_ino for path in grid}) == 1
    assert not any(name.startswith("body.tail") for name in state(same))


def test_scores_are_those_of_torchvisions_network_whatever_rows_stand_beside(cache, grid):
    rejector = load_run(grid[-1]).rejector
    rows = load_tables(CostCache(cache), ("test",), column="image")["test"].features
    body = Body("mobilenet_v3_small").eval()
    with torch.no_grad():
        features = body(normalised(rows.view(-1, 3, 16, 16)))
        scores = rejector.network().head((features - rejector.state["mean"]) / rejector.state["std"])
    found = rejector.scores(rows.numpy())
    np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-5)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(rejector.scores(rows[order].numpy()), found[order])
    np.testing.assert_array_equal(rejector.scores(rows[:3].numpy()), found[:3])


def test_allocations_that_were_written_are_those_that_evaluate_and_route_find(cache, grid, thawed, tmp_path):
    opened, columns = CostCache(cache), ["sample_id", "split", "image"]
    samples = pl.concat(pl.from_arrow(opened.samples(chunk, columns)) for chunk in range(opened.record.num_chunks))
    samples.filter(split="test").write_parquet(tmp_path / "new.parquet")
    for number, run in enumerate([grid[1], thawed[0]]):
        written = pl.read_parquet(run / "allocations.parquet").filter(split="test").sort("sample_id")
        l2d.route(run, tmp_path / "new.parquet", tmp_path / f"{number}.parquet", id_column="sample_id")
        routed = pl.read_parquet(tmp_path / f"{number}.parquet").sort("sample_id")
        assert routed["agent"].to_list() == written["agent"].to_list()
        np.testing.assert_allclose(routed["score_0"], written["score_0"], rtol=1e-4, atol=1e-5)
        shares = l2d.evaluate(run).to_json()[0]["allocation"]
        assert shares[written["agent"][0]] == pytest.approx((written["agent"] == written["agent"][0]).mean())


def test_with_autocast_evaluation_finds_the_scores_that_were_written(cache, grid, tmp_path):
    run = trained(cache, tmp_path / "run", autocast=True)
    written = pl.read_parquet(run / "allocations.parquet").filter(split="test").sort("sample_id")
    table = load_tables(CostCache(cache), ("test",), column="image")["test"]
    order = np.argsort(table.ids)
    np.testing.assert_array_equal(load_run(run).rejector.scores_on(table)[order][:, 0], written["score_0"])
    exact = state(grid[-1])["mean"]
    assert not torch.equal(state(run)["mean"], exact)  # the body has indeed run in bfloat16
    torch.testing.assert_close(state(run)["mean"], exact, rtol=0.05, atol=0.02)


def test_stages_that_learn_move_and_the_rest_does_not(cache, thawed, tmp_path):
    body = Body("mobilenet_v3_small", "features.12")
    assert any(isinstance(module, Affine) for module in body.tail.modules())
    begun, ended = body.state_dict(), state(thawed[0])
    moved = {name: not torch.equal(value, ended[f"body.{name}"]) for name, value in begun.items()}
    assert all(is_moved == name.startswith("tail.") for name, is_moved in moved.items())
    alone = trained(cache, tmp_path / "alone", beta=0, seed=0, unfreeze="features.12", augment="flip")
    losses = [load_run(path).rejector.history[0][0] for path in (alone, thawed[0])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # convolutions of several networks at once round otherwise


@pytest.mark.parametrize("settings", [{}, {"unfreeze": "features.12", "augment": "crop"}])
def test_training_that_was_ended_goes_on_to_the_same_bits(cache, tmp_path, monkeypatch, settings):
    from l2d.rejector.training.loop import _Training

    whole = trained(cache, tmp_path / "whole", **settings)
    end = _Training._end_epoch

    def stopped(self, epoch, *rest):
        if epoch == 1:
            raise KeyboardInterrupt
        end(self, epoch, *rest)

    from l2d.rejector import sweep as sweeping

    monkeypatch.setattr(_Training, "_end_epoch", stopped)
    monkeypatch.setattr(sweeping, "EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        resumed(cache, tmp_path / "ended", settings)
    monkeypatch.setattr(_Training, "_end_epoch", end)
    resumed(cache, tmp_path / "ended", settings)
    assert_same(state(tmp_path / "ended"), state(whole))
    histories = [load_run(path).rejector.history for path in (whole, tmp_path / "ended")]  # the best epoch may be early
    assert histories[0] == histories[1]


def test_a_second_wave_sees_the_images_that_the_first_one_saw(cache, tmp_path):
    config = replace(TINY, augment="flip")
    looked = look(open_streams(CostCache(cache), ("train", "validation"), column="image"), config, 3, "cpu")
    passes = []
    for _ in range(2):  # each wave reads its rows anew
        batches = Shuffled(looked.train, 16, [0])
        passes.append([torch.cat([rows[0] for _, rows in batches.epoch(epoch)], dim=1) for epoch in range(2)])
    for first, second in zip(*passes, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.slow
def test_the_theory_takes_its_head_on_what_the_body_makes_of_images(grid):
    [evaluated] = l2d.evaluate(grid[0]).to_json()
    found = l2d.theory(grid[0]).to_json()
    loss = found["parts"]["deferral loss: from the oracle to this rejector"]
    assert found["network"] == "image"
    assert loss["run"]["value"] == pytest.approx(evaluated["deferral_loss"], abs=1e-6)


@pytest.mark.slow
def test_it_exports_and_onnxruntime_scores_pixels_as_it_does(cache, thawed, tmp_path):
    l2d.export(thawed[0], tmp_path / "rejector.onnx")
    rows = load_tables(CostCache(cache), ("test",), column="image")["test"].features
    session = onnxruntime.InferenceSession(str(tmp_path / "rejector.onnx"))
    scores, _ = session.run(None, {"image": rows.view(-1, 3, 16, 16).numpy()})
    np.testing.assert_allclose(scores, load_run(thawed[0]).rejector.scores(rows.numpy()), rtol=1e-3, atol=1e-3)


def test_weights_come_from_a_file_whatever_its_last_layer(tmp_path):
    from torchvision.models import mobilenet_v3_small

    torch.manual_seed(3)
    model = mobilenet_v3_small(num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    body = Body("mobilenet_v3_small", "features.11").eval()
    body.load(str(tmp_path / "mine.pth"))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.avgpool(model.features(images)).flatten(1)
        torch.testing.assert_close(body(images), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="are these weights of resnet18"):
        Body("resnet18").load(str(tmp_path / "mine.pth"))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large_320_fpn"])
def test_bodies_of_torchvision_are_cut_into_stages(name):
    whole = Body(name).eval()
    cut = Body(name, "all" if "fpn" in name else whole.stages[-1]).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(cut(images), whole(images), rtol=1e-4, atol=1e-5)


def test_an_augmented_image_is_drawn_by_its_seed_alone():
    image = torch.rand(3, 16, 16)
    found = [augmented("crop", image, seed) for seed in (1, 2, 1)]
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)
    assert not torch.equal(found[0], found[1])
    assert found[0].shape == image.shape
    mirrored = {bool(torch.equal(augmented("flip", image, seed), image.flip(-1))) for seed in range(9)}
    assert mirrored == {True, False}


def test_what_does_not_fit_is_refused(cache, tmp_path):
    for settings, said in (
        ({"backbone": "resnet81"}, "no such network"),
        ({"unfreeze": "layer4"}, "no such stage"),
        ({"backbone_weights": str(tmp_path / "none.pth")}, "not here"),
        ({"backbone": "resnet18", "backbone_weights": "DEFAULT"}, "not here"),
    ):
        with pytest.raises(UsageError, match=said):
            trained(cache, tmp_path / "run", **settings)
    with pytest.raises(UsageError, match="--rejector image"):
        TrainConfig(unfreeze="layer4")
    with pytest.raises(UsageError, match="augment with memory"):
        replace(TINY, augment="flip", memory=1 << 20)
