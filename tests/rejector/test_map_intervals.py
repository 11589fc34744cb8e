"""The bootstrap of a detection system's mAP: matches against COCO's figures, draws against repeated images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import l2d
from l2d.data.cache.reader import CostCache
from l2d.data.costs.pooled import ranks
from l2d.data.samples.boxes import Boxes
from l2d.rejector.evaluation.detection_metrics import mixed_detections, system_map
from l2d.rejector.evaluation.map_intervals import ImageBootstrap
from l2d.rejector.thresholds import detector_confidence


def world(images: int = 12, seed: int = 0) -> tuple[Boxes, list[Boxes]]:
    """Objects of three classes, some to ignore, some crowds, and two detectors that find them more or less well."""
    rng = np.random.default_rng(seed)
    truth, answers = [], [[], []]
    for _ in range(images):
        count = int(rng.integers(0, 5))
        corner = rng.uniform(0, 60, (count, 2))
        boxes = np.hstack([corner, corner + rng.uniform(10, 40, (count, 2))])
        labels = rng.integers(0, 3, count)
        crowd = rng.random(count) < 0.1
        ignore = crowd | (rng.random(count) < 0.15)
        truth.append({"boxes": boxes, "labels": labels, "ignore": ignore, "crowd": crowd})
        for answer, noise in zip(answers, (2.0, 6.0), strict=True):
            near = np.repeat(np.arange(count), 2)
            found = boxes[near] + rng.normal(0, noise, (2 * count, 4))
            found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
            named = np.where(rng.random(2 * count) < 0.8, labels[near], rng.integers(0, 3, 2 * count))
            answer.append({"boxes": found, "labels": named, "scores": rng.random(2 * count)})
    return Boxes.from_images(truth), [Boxes.from_images(answer) for answer in answers]


@pytest.mark.parametrize("seed", range(6))
def test_the_map_of_a_system_is_pycocotools(seed):
    targets, answers = world(seed=seed)
    chosen = np.random.default_rng(seed).integers(0, 2, len(targets))
    expected = system_map(targets, mixed_detections(answers, chosen))["map"]
    bootstrap = ImageBootstrap(targets, answers)
    assert bootstrap.value(chosen) == pytest.approx(expected, abs=1e-9)
    assert np.mean(list(bootstrap.by_class(chosen).values())) == pytest.approx(expected, abs=1e-9)


def test_of_equal_scores_the_image_of_the_lower_id_comes_first_whatever_the_order():
    targets, answers = world(images=40, seed=5)
    answers = [replace(answer, score=np.round(answer.score, 1)) for answer in answers]
    ids = [str(k) for k in np.random.default_rng(0).permutation(40)]
    chosen = np.arange(40) % 2
    system = mixed_detections(answers, chosen)
    expected = system_map(targets, system, ids)["map"]
    assert abs(expected - system_map(targets, system)["map"]) > 1e-4
    assert ImageBootstrap(targets, answers, rank=ranks(ids)).value(chosen) == pytest.approx(expected, abs=1e-9)


def test_a_draw_counts_an_image_as_often_as_it_was_drawn():
    targets, answers = world(images=8, seed=3)
    chosen = np.array([0, 1] * 4)
    bootstrap = ImageBootstrap(targets, answers, draws=20)
    found = bootstrap._map(chosen, bootstrap.weights)
    system = mixed_detections(answers, chosen)
    for weights, value in zip(bootstrap.weights.astype(int), found, strict=True):
        drawn = np.repeat(np.arange(8), weights)
        again = system_map(targets.take(drawn), system.take(drawn)).get("map", np.nan)
        assert value == pytest.approx(again, abs=1e-9, nan_ok=True)


def test_images_of_one_group_are_drawn_together_and_more_images_narrow_the_interval():
    targets, answers = world(images=60)
    groups = np.arange(60) // 3
    assert (np.ptp(ImageBootstrap(targets, answers, groups).weights.reshape(-1, 20, 3), axis=2) == 0).all()
    chosen = np.zeros(60, int)
    low, high = ImageBootstrap(targets, answers).interval(chosen)
    assert low < ImageBootstrap(targets, answers).value(chosen) < high
    few = ImageBootstrap(targets[:15], [answer[:15] for answer in answers]).interval(chosen[:15])
    assert high - low < few[1] - few[0]


def test_how_sure_a_detector_is_of_an_image():
    found = Boxes.from_images(
        [
            {"boxes": np.zeros((2, 4)), "labels": [0, 1], "scores": [0.2, 0.7]},
            {"boxes": np.zeros((0, 4)), "labels": [], "scores": []},
            {"boxes": np.zeros((1, 4)), "labels": [0], "scores": [0.4]},
        ]
    )
    assert detector_confidence(found).tolist() == [0.7, 0.0, 0.4]
    assert detector_confidence(found, np.array([True, True, False])).tolist() == [0.7, 0.0, -np.inf]


def test_evaluate_and_status_say_it_of_a_cache(detection_runs):
    cache, runs = detection_runs
    (result,) = l2d.evaluate(runs["mlp"]).to_json()
    assert result["map_interval"][0] <= result["metrics"]["map"] <= result["map_interval"][1]
    assert np.mean([one["ap"] for one in result["by_class"].values()]) == pytest.approx(result["metrics"]["map"])
    assert result["confidence"]["expert"] in result["allocation"]
    for name, alone in result["agents"].items():
        assert (np.mean([one["ap"] for one in alone["by_class"].values()]), name) == (pytest.approx(alone["map"]), name)
    opened = CostCache(cache)
    for row in l2d.status(cache).rows():
        found = [opened.predictions(row["agent"], k)["pred_boxes"] for k in range(opened.record.num_chunks)]
        boxes = Boxes.concatenate([Boxes.from_arrow(column) for column in found])
        assert (row["nothing found"], row["lowest score"]) == ((boxes.counts == 0).sum(), boxes.score.min())
        assert row["mAP % test"] == pytest.approx(100 * result["agents"][row["agent"]]["map"])
