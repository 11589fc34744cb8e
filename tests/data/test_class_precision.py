"""AP of each class on a set of images, against pycocotools."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from box_references import pycocotools_evaluation, random_images

from l2d.data.costs.average_precision import COCO_THRESHOLDS
from l2d.data.costs.class_precision import class_precision, judge
from l2d.data.samples.boxes import Boxes


def theirs(targets: Boxes, detections: Boxes) -> dict[int, tuple[float, float]]:
    evaluation = pycocotools_evaluation(targets, detections, COCO_THRESHOLDS, 100)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    every = {label: precision[:, :, place] for place, label in enumerate(evaluation.params.catIds)}
    return {label: (one.mean(), one[0].mean()) for label, one in every.items() if (one > -1).all()}


def ours(found) -> dict[int, tuple[float, float]]:
    return {one.label: (one.ap, one.ap_50) for one in found}


def as_close(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for label, values in expected.items():
        assert found[label] == pytest.approx(values, abs=1e-9)


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"ignored": 0.3, "crowds": 0.2},
        {"classes": 1, "detections": (0, 160), "images": 12},
        {"classes": 9, "targets": (0, 2), "detections": (0, 9)},
    ],
)
def test_it_is_pycocotools_and_counts_what_there_is(kind):
    targets, detections = random_images(3, **kind)
    detections.score[::3] = 0.5  # ties, within images and across them
    found = class_precision(targets, [judge(targets, detections)], np.zeros(len(targets), int))
    as_close(ours(found), theirs(targets, detections))
    for one in found:
        own = (targets.label == one.label) & ~targets.ignore
        assert (one.objects, one.images) == (own.sum(), len(np.unique(targets.image[own])))


def test_a_system_is_judged_on_the_answers_it_chose_and_the_images_of_its_set():
    targets, first = random_images(5, ignored=0.2)
    second = random_images(6)[1]
    chosen = np.random.default_rng(0).integers(-1, 2, len(targets))
    found = class_precision(targets, [judge(targets, first), judge(targets, second)], chosen)
    inside = np.flatnonzero(chosen >= 0)
    system = Boxes.concatenate([first, second]).take(chosen[inside] * len(targets) + inside)
    as_close(ours(found), theirs(targets.take(inside), system))


def test_of_equal_scores_the_image_of_the_lower_rank_comes_first():
    box = {"boxes": [[0, 0, 9, 9]], "labels": [0]}
    targets = Boxes.from_images([box, {"boxes": np.zeros((0, 4)), "labels": []}])
    detections = Boxes.from_images([box, box])
    judged, chosen = [judge(targets, detections)], np.zeros(2, int)
    assert [one.ap for one in class_precision(targets, judged, chosen)] == [pytest.approx(1.0)]
    assert [one.ap for one in class_precision(targets, judged, chosen, np.array([1, 0]))] == [pytest.approx(0.5)]


def test_images_without_objects_to_find_have_no_classes():
    empty = Boxes.empty(2)
    assert class_precision(empty, [judge(empty, empty)], np.zeros(2, int)) == []
