"""Costs of detections: each against loops over the boxes of each image, and worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from box_references import SMALL_IMAGES, as_boxes, coco_matches, loop_ap, overlap, plain, random_images
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from l2d.data.costs.average_precision import COCO_THRESHOLDS
from l2d.data.costs.detection import DetectionCost, ObjectBoxCost, ObjectClassCost

KINDS = ("coco", "voc2007", "voc2012")


def loop_detection_cost(targets, detections, config: DetectionCost) -> list[float]:
    """Mean over thresholds of one minus AP; of images without objects 1 where a class is claimed."""
    defaults = COCO_THRESHOLDS if config.kind == "coco" else [0.5]
    thresholds = defaults if config.iou is None else np.atleast_1d(config.iou).tolist()
    cap = config.max_detections or (100 if config.kind == "coco" else None)
    costs = np.zeros(len(targets))
    for threshold in thresholds:
        loops = loop_ap(targets, detections, threshold, config.kind, cap=cap, confident=config.confident)
        for image, (aps, claimed) in enumerate(loops):
            if not aps:
                cost = 1.0 if claimed else 0.0
            else:
                cost = 1 - sum(aps) / (len(aps) + (claimed if config.strict else 0))
            costs[image] += cost / len(thresholds)
    return costs.tolist()


def pairs(targets, detections, iou: float, confident: float):
    """For each image: its boxes as numbers, and detection -> ground-truth box or None of the confident ones."""
    for image in range(len(targets)):
        truth, found = plain(targets, image), plain(detections, image)
        sure = [d for d, score in enumerate(found["scores"]) if score >= np.float32(confident)]
        yield truth, found, coco_matches(truth, found, range(len(truth["labels"])), sure, iou)


def loop_object_class(targets, detections, iou, confident) -> list[float]:
    costs = []
    for truth, found, matches in pairs(targets, detections, iou, confident):
        right = {t for d, t in matches.items() if t is not None and truth["labels"][t] == found["labels"][d]}
        objects = [t for t, ignored in enumerate(truth["ignore"]) if not ignored]
        if objects:
            costs.append(sum(t not in right for t in objects) / len(objects))
        else:
            costs.append(float(None in matches.values()))
    return costs


def loop_object_box(targets, detections, iou, confident, kind, beta, clamp) -> list[float]:
    costs = []
    for truth, found, matches in pairs(targets, detections, iou, confident):
        taker = {t: d for d, t in matches.items() if t is not None}
        objects = [t for t, ignored in enumerate(truth["ignore"]) if not ignored]
        total = 0.0
        for t in objects:
            if t not in taker:
                total += 1 if kind == "object_iou" else clamp
                continue
            box, other = truth["boxes"][t], found["boxes"][taker[t]]
            if kind == "object_iou":
                total += 1 - overlap(other, box)
                continue
            width, height = box[2] - box[0], box[3] - box[1]
            sides = [abs(o - b) / size for o, b, size in zip(other, box, [width, height] * 2, strict=True)]
            total += min(sum(e * e / (2 * beta) if e < beta else e - beta / 2 for e in sides), clamp)
        costs.append(total / len(objects) if objects else 0.0)
    return costs


def same(costs: np.ndarray, expected: list[float], top: float = 1.0) -> None:
    assert costs.dtype == np.float32
    np.testing.assert_allclose(costs, expected, rtol=0, atol=1e-6)
    assert ((costs >= 0) & (costs <= np.float32(top))).all()


CONFIGS = [
    DetectionCost(),
    DetectionCost(strict=True),
    DetectionCost(iou=0.75, confident=0.6),
    DetectionCost(strict=True, iou=[0.5, 0.75], confident=0.6, max_detections=2),
    DetectionCost(kind="voc2007"),
    DetectionCost(kind="voc2012", strict=True, iou=[0.5, 0.7], max_detections=1),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config.model_dump(exclude_defaults=True)))
def test_the_joint_cost_is_its_definition(config):
    images = random_images(1, 12, detections=(0, 20), ignored=0.3, crowds=0.1, targets=(0, 6))
    costs = config.compute(images[1], images[0])
    same(costs, loop_detection_cost(*images, config))
    assert len(set(np.round(costs, 3))) > 5


@settings(max_examples=100, deadline=None)
@given(SMALL_IMAGES, st.sampled_from(KINDS), st.booleans(), st.sampled_from([0.3, 0.55, 1.0]))
def test_the_joint_cost_is_its_definition_where_everything_ties(images, kind, strict, confident):
    config = DetectionCost(kind=kind, strict=strict, confident=confident, iou=[0.5, 2 / 3])
    same(config.compute(images[1], images[0]), loop_detection_cost(*images, config))


def test_more_than_a_hundred_detections_count_only_for_voc():
    wrong = [([50 + k, 0, 60 + k, 10], 0, 0.9) for k in range(100)]
    targets, detections = as_boxes([([([0, 0, 10, 10], 0, "")], [*wrong, ([0, 0, 10, 10], 0, 0.8)])])
    assert DetectionCost(iou=0.5).compute(detections, targets).tolist() == [1.0]
    expected = pytest.approx([100 / 101])
    assert DetectionCost(iou=0.5, max_detections=101).compute(detections, targets).tolist() == expected
    assert DetectionCost(kind="voc2012").compute(detections, targets).tolist() == expected
    assert DetectionCost(kind="voc2012", max_detections=100).compute(detections, targets).tolist() == [1.0]


@settings(max_examples=200, deadline=None)
@given(SMALL_IMAGES, st.sampled_from([0.5, 2 / 3, 1.0]), st.sampled_from([0.0, 0.6]))
@pytest.mark.slow
def test_class_and_box_costs_are_their_definitions_where_everything_ties(images, iou, confident):
    targets, detections = images
    cost = ObjectClassCost(iou=iou, confident=confident).compute(detections, targets)
    same(cost, loop_object_class(*images, iou, confident))
    cost = ObjectBoxCost(iou=iou, confident=confident).compute(detections, targets)
    same(cost, loop_object_box(*images, iou, confident, "object_iou", 0, 1))


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("confident", [0.1, 0.5])
def test_class_and_box_costs_are_their_definitions(iou, confident):
    images = random_images(2, 40, ignored=0.2, crowds=0.1, targets=(0, 8))
    targets, detections = images
    shared = {"iou": iou, "confident": confident}
    costs = ObjectClassCost(**shared).compute(detections, targets)
    same(costs, loop_object_class(*images, iou, confident))
    assert 0 < costs.mean() < 1
    costs = ObjectBoxCost(**shared).compute(detections, targets)
    same(costs, loop_object_box(*images, iou, confident, "object_iou", 0, 1))
    for beta, clamp in [(0.1, 1.0), (0.05, 0.2), (1.0, 3.0)]:
        config = ObjectBoxCost(kind="object_smooth_l1", beta=beta, clamp=clamp, **shared)
        same(
            config.compute(detections, targets),
            loop_object_box(*images, iou, confident, config.kind, beta, clamp),
            clamp,
        )


def test_the_parts_tell_a_wrong_class_from_a_wrong_place():
    truth = [([0, 0, 10, 10], 0, ""), ([20, 0, 30, 10], 1, ""), ([50, 0, 60, 10], 2, "ignore")]
    moved = [([0, 0, 10, 8], 0, 0.9), ([20, 0, 30, 8], 1, 0.9)]
    renamed = [([0, 0, 10, 10], 0, 0.9), ([20, 0, 30, 10], 2, 0.9)]
    hesitant = [(box, label, 0.4) for box, label, _ in renamed]
    targets, detections = as_boxes([(truth, moved), (truth, renamed), (truth, hesitant), (truth, [])])
    assert ObjectClassCost().compute(detections, targets).tolist() == [0, 0.5, 1, 1]
    np.testing.assert_allclose(ObjectBoxCost().compute(detections, targets), [0.2, 0, 1, 1], atol=1e-7)
    smooth = ObjectBoxCost(kind="object_smooth_l1", clamp=0.7).compute(detections, targets)
    np.testing.assert_allclose(smooth, [0.2 - 0.05, 0, 0.7, 0.7], atol=1e-7)


def test_images_without_objects_follow_the_stated_rules():
    crowd, box = [([0, 0, 30, 30], 0, "crowd")], [0, 0, 10, 10]
    images = [([], []), ([], [(box, 0, 0.4)]), ([], [(box, 0, 0.5)]), (crowd, [(box, 1, 0.9)] * 2), (crowd, [])]
    targets, detections = as_boxes([*images, (crowd, [([40, 0, 50, 10], 0, 0.9)])])
    assert ObjectClassCost().compute(detections, targets).tolist() == [0, 0, 1, 0, 0, 1]
    assert DetectionCost().compute(detections, targets).tolist() == [
        0,
        0,
        1,
        1,
        0,
        1,
    ]  # the class is wrong in the fourth
    for kind in ("object_iou", "object_smooth_l1"):
        assert ObjectBoxCost(kind=kind).compute(detections, targets).tolist() == [0] * 6


def test_a_perfect_answer_costs_nothing_at_all():
    targets, _ = random_images(3, ignored=0.2)
    perfect = targets.select(~targets.ignore)
    for config in (*CONFIGS[:2], *CONFIGS[4:5], ObjectClassCost(), ObjectBoxCost(kind="object_smooth_l1")):
        assert not config.compute(perfect, targets).any(), config
    assert ObjectBoxCost().compute(perfect, targets).max() < 1e-6


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (DetectionCost, {"kind": "coco2017"}),
        (DetectionCost, {"iou": 0.0}),
        (DetectionCost, {"iou": []}),
        (DetectionCost, {"iou": [0.5, 1.5]}),
        (DetectionCost, {"max_detections": 0}),
        (DetectionCost, {"strict": "yes"}),
        (DetectionCost, {"confident": float("nan")}),
        (DetectionCost, {"clamp": 1.0}),
        (ObjectClassCost, {"kind": "zero_one"}),
        (ObjectClassCost, {"iou": [0.5]}),
        (ObjectBoxCost, {"beta": 0.0}),
        (ObjectBoxCost, {"clamp": -1.0}),
    ],
)
def test_settings_that_make_no_sense_are_refused(config, values):
    with pytest.raises(ValidationError):
        config(**values)


def test_settings_come_from_toml_as_they_are_meant():
    assert DetectionCost(iou=1).iou == 1.0
    targets, detections = random_images(4)
    one, listed = DetectionCost(iou=1), DetectionCost(iou=[1])
    np.testing.assert_array_equal(one.compute(detections, targets), listed.compute(detections, targets))
