"""Numbers of boxes go through files, the cache and the matching without losing a bit: pycocotools is the reference."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.samples.boxes import Boxes
from l2d.rejector.evaluation.detection_metrics import system_map

RECIPE = """
[dataset]
kind = "coco"
path = "."
image_size = 8
[dataset.sets]
train = { annotations = "train.json", images = "." }
test = { annotations = "test.json", images = "." }
[costs.map]
kind = "coco"
[[agents]]
name = "found"
kind = "detections"
file = "found.json"
"""
COLOURS = {"width": 100, "height": 80}


def write(folder, truth: dict[int, list[list[float]]], found: dict[int, list[tuple]]) -> None:
    """A dataset of one class from boxes by image id, the last third of the images for testing, and its detections."""
    ids = list(truth)
    for name, part in (("train.json", ids[: 2 * len(ids) // 3]), ("test.json", ids[2 * len(ids) // 3 :])):
        boxes = [(image, box) for image in part for box in truth[image]]
        content = {
            "images": [{"id": image, "file_name": f"{image}.png", **COLOURS} for image in part],
            "annotations": [
                {"id": k, "image_id": image, "category_id": 1, "bbox": box, "iscrowd": 0, "area": 1.0}
                for k, (image, box) in enumerate(boxes, start=1)
            ],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (folder / name).write_text(json.dumps(content))
    for image in ids:
        Image.new("RGB", (COLOURS["width"], COLOURS["height"]), (image % 256, image // 256, 0)).save(
            folder / f"{image}.png"
        )
    entries = [
        {"image_id": image, "category_id": 1, "bbox": box, "score": score}
        for image, boxes in found.items()
        for box, score in boxes
    ]
    (folder / "found.json").write_text(json.dumps(entries))
    (folder / "r.toml").write_text(RECIPE)


def built(folder) -> tuple[list[int], np.ndarray, Boxes, Boxes]:
    """Image ids, costs, ground truth and detections as the cache has them."""
    build(load_recipe(str(folder / "r.toml")), folder / "cache")
    cache = CostCache(folder / "cache")
    samples, answers = cache.samples(0, ["image_id", "target_boxes"]), cache.predictions("found", 0, ["pred_boxes"])
    boxes = [Boxes.from_arrow(column) for column in (samples["target_boxes"], answers["pred_boxes"])]
    costs = cache.costs("found", 0, ["cost_map"])["cost_map"].to_numpy()
    return samples["image_id"].to_pylist(), costs, *boxes


def pycocotools_map(truth: dict, found: dict, images: list[int]) -> float:
    """AP of the images together; the ids of annotations are from 1."""
    made = []
    for boxes in ([(i, box, 1.0) for i in truth for box in truth[i]], [(i, *one) for i in found for one in found[i]]):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in truth],
            "categories": [{"id": 1}],
            "annotations": [
                {"id": k, "image_id": i, "category_id": 1, "bbox": b, "area": b[2] * b[3], "iscrowd": 0, "score": s}
                for k, (i, b, s) in enumerate(boxes, start=1)
            ],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        made.append(coco)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(*made, "bbox")
        evaluation.params.imgIds = images
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    return float(evaluation.eval["precision"].mean())


def tenths(generator, low: int, high: int) -> float:
    """A number with one decimal, as annotation tools round."""
    return int(generator.integers(10 * low, 10 * high)) / 10


def test_costs_of_rounded_boxes_equal_pycocotools_to_the_last_bit(tmp_path):
    """Sides of whole tens and shifts of halves of them: many overlaps are exactly on a threshold."""
    generator = np.random.default_rng(3)
    truth, found = {}, {}
    for image in generator.permutation(np.arange(1, 61)).tolist():
        boxes = []
        for k in range(3):
            width = int(generator.choice([3, 6, 9])) + int(generator.integers(0, 10)) / 10
            boxes.append([tenths(generator, 33 * k, 33 * k + 10), tenths(generator, 0, 40), width, width])
        truth[image] = boxes
        # a third of the width to the side gives an overlap of exactly a half
        found[image] = [
            ([x + width * int(generator.integers(0, 5)) / 12, y, width, height], tenths(generator, 0, 1))
            for x, y, width, height in boxes
        ]
    write(tmp_path, truth, found)
    ids, costs, targets, detections = built(tmp_path)
    expected = [1 - pycocotools_map(truth, found, [image]) for image in ids]
    np.testing.assert_allclose(costs, expected, rtol=0, atol=1e-7)
    assert system_map(targets, detections, [str(image) for image in ids])["map"] == pytest.approx(
        pycocotools_map(truth, found, sorted(ids)), abs=1e-12
    )
    given = {image: np.array([box for box, _ in found[image]]) for image in ids}
    np.testing.assert_array_equal(detections.size, np.concatenate([given[image][:, 2:] for image in ids]))
    np.testing.assert_array_equal(targets.size, np.concatenate([np.array(truth[image])[:, 2:] for image in ids]))


def test_scores_that_differ_in_the_ninth_decimal_do_not_tie(tmp_path):
    wrong, right = [70.0, 50.0, 20.0, 20.0], [10.0, 10.0, 20.0, 20.0]
    truth = {image: [right] for image in range(1, 7)}
    write(tmp_path, truth, {image: [(wrong, 0.9), (right, 0.9 + 1e-9)] for image in truth})
    assert built(tmp_path)[1].tolist() == [0.0] * 6


def test_a_narrow_box_at_the_border_is_matched_by_itself(tmp_path):
    border = [99.2, 10.0, 1.5, 20.0]  # 0.7 of a pixel beyond, which rounding does
    truth = {image: [border] for image in range(1, 7)}
    write(tmp_path, truth, {image: [(border, 0.9)] for image in truth})
    assert built(tmp_path)[1].tolist() == [0.0] * 6


def test_scores_that_tie_across_images_are_ranked_by_image_id(tmp_path):
    """Whatever the order of the images in their files."""
    generator = np.random.default_rng(5)
    truth, found = {}, {}
    for image in generator.permutation(np.arange(1, 241)).tolist():
        box = [tenths(generator, 0, 60), tenths(generator, 0, 40), 20.0, 20.0]
        truth[image] = [box]
        shift = float(generator.integers(0, 12))
        found[image] = [([box[0] + shift, *box[1:]], float(generator.choice([0.5, 0.75])))]
    write(tmp_path, truth, found)
    ids, _, targets, detections = built(tmp_path)
    expected = pycocotools_map(truth, found, sorted(ids))
    assert system_map(targets, detections, [str(image) for image in ids])["map"] == pytest.approx(expected, abs=1e-12)
    assert system_map(targets, detections)["map"] != pytest.approx(expected, abs=1e-6)  # in the cache's order
