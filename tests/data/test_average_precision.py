"""Per-image AP: pycocotools to the last digits, the VOC devkit's rules by loops, and what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
from box_references import (
    SMALL_IMAGES,
    as_boxes,
    loop_ap,
    pycocotools_ap,
    pycocotools_evaluation,
    random_images,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.cocoeval import Params

from l2d.data.costs import box_matching, compiled
from l2d.data.costs.average_precision import (
    COCO_THRESHOLDS,
    average_precision,
    detection_cost,
    match_any_class,
)
from l2d.data.samples.boxes import Boxes

#: Overlaps of boxes of a few pixels are such fractions.
EXACT = (0.5, 0.6, 2 / 3, 0.75, 1.0)
CASES = {
    "few": {},
    "dense": {"images": 4, "targets": (40, 70), "detections": (150, 250), "classes": 2},
    "one class": {"classes": 1},
    "many detections": {"images": 8, "detections": (120, 300), "classes": 1},
    "crowds": {"crowds": 0.3, "targets": (0, 8)},
    "ignored": {"ignored": 0.4},
    "ignored and crowds": {"ignored": 0.3, "crowds": 0.3, "targets": (0, 20), "classes": 2},
    "no ground truth": {"targets": (0, 0)},
    "no detections": {"detections": (0, 0)},
    "many classes": {"classes": 60},
}


def same_ap(targets, detections, thresholds, **options) -> None:
    ours = average_precision(targets, detections, thresholds, **options).ap
    np.testing.assert_allclose(
        ours, pycocotools_ap(targets, detections, thresholds, options.get("max_detections", 100)), rtol=0, atol=1e-12
    )


@settings(max_examples=500, deadline=None)
@given(SMALL_IMAGES)
@pytest.mark.slow
def test_coco_is_pycocotools_where_everything_ties(images):
    same_ap(*images, EXACT)


@settings(max_examples=150, deadline=None)
@given(SMALL_IMAGES, st.integers(1, 3))
@pytest.mark.slow
def test_coco_looks_at_no_more_detections_than_pycocotools(images, cap):
    same_ap(*images, (0.5, 0.75), max_detections=cap)


@pytest.mark.parametrize("case", CASES)
def test_coco_is_pycocotools(case):
    targets, detections = random_images(1, **CASES[case])
    same_ap(targets, detections, COCO_THRESHOLDS)
    rounded = np.round(detections.score, 1)
    detections = Boxes(**{**vars(detections), "score": rounded})  # many ties
    same_ap(targets, detections, COCO_THRESHOLDS)


def test_the_default_thresholds_are_pycocotools():
    assert Params("bbox").iouThrs.tolist() == list(COCO_THRESHOLDS)
    images = random_images(2)
    np.testing.assert_array_equal(average_precision(*images).ap, average_precision(*images, COCO_THRESHOLDS).ap)
    voc = average_precision(*images, protocol="voc2007").ap
    np.testing.assert_array_equal(voc, average_precision(*images, [0.5], "voc2007").ap)


def same_as_loops(images, protocol, thresholds, cap=None, confident=0.5) -> None:
    """AP, classes and claims against loops; returns nothing, raises where they differ."""
    result = average_precision(*images, thresholds, protocol, max_detections=cap, confident=confident)
    for position, threshold in enumerate(thresholds):
        loops = loop_ap(*images, threshold, protocol, cap=cap, confident=confident)
        expected = [np.mean(aps) if aps else np.nan for aps, _ in loops]
        np.testing.assert_allclose(result.ap[:, position], expected, rtol=0, atol=1e-12)
        assert result.num_classes_present.tolist() == [len(aps) for aps, _ in loops]
        assert result.num_absent_claimed[:, position].tolist() == [claimed for _, claimed in loops]
        strict = [sum(aps) / (len(aps) + claimed) if aps or claimed else np.nan for aps, claimed in loops]
        np.testing.assert_allclose(result.strict[:, position], strict, rtol=0, atol=1e-12)


@pytest.mark.parametrize("protocol", ["coco", "voc2012", "voc2007"])
@settings(max_examples=200, deadline=None)
@given(images=SMALL_IMAGES, confident=st.sampled_from([0.3, 0.5, 0.6, 0.95]), cap=st.sampled_from([None, 1, 2]))
@pytest.mark.slow
def test_every_protocol_is_its_definition_where_everything_ties(protocol, images, confident, cap):
    same_as_loops(images, protocol, (0.5, 2 / 3, 1.0), cap, confident)


@pytest.mark.parametrize("protocol", ["coco", "voc2012", "voc2007"])
@pytest.mark.parametrize("case", ["few", "ignored and crowds", "no ground truth", "no detections"])
def test_every_protocol_is_its_definition(protocol, case):
    same_as_loops(random_images(3, **{"images": 15} | CASES[case]), protocol, (0.5, 0.7))


@pytest.mark.parametrize(("protocol", "total"), [("coco", 101), ("voc2007", 11)])
def test_recall_points_are_compared_with_every_number_of_objects(protocol, total):
    """The j best of n objects are found and nothing else is: AP is the share of recall points up to j / n."""
    for objects in (1, 2, 3, 7, 10, 20, 29, 30, 57, 100, 101):
        corners = [[3 * k, 0, 3 * k + 2, 2] for k in range(objects)]
        truth = [(box, 0, "") for box in corners]
        images = [(truth, [(box, 0, 0.9) for box in corners[:j]]) for j in range(1, objects + 1)]
        ap = average_precision(*as_boxes(images), [0.5], protocol).ap[:, 0]
        if protocol == "coco":
            expected = [np.sum(np.linspace(0, 1, 101) <= j / objects) / 101 for j in range(1, min(objects, 100) + 1)]
        else:
            expected = [(10 * j // objects + 1) / 11 for j in range(1, objects + 1)]
        np.testing.assert_allclose(ap[: len(expected)], expected, rtol=0, atol=1e-15)
        assert (np.round(ap * total, 9) % 1 == 0).all()


def test_voc_has_no_second_choice_and_coco_has():
    truth = [([0, 0, 10, 10], 0, ""), ([0, 2, 10, 12], 0, "")]
    images = as_boxes([(truth, [([0, 0, 10, 10], 0, 0.9), ([0, 0.5, 10, 10.5], 0, 0.8)])])
    assert average_precision(*images, [0.5]).ap[0, 0] == 1.0
    assert average_precision(*images, [0.5], "voc2012").ap[0, 0] == 0.5
    assert average_precision(*images, [0.5], "voc2007").ap[0, 0] == pytest.approx(6 / 11)


def test_voc_counts_duplicates_as_wrong_but_not_on_difficult_boxes():
    twice = [([0, 0, 10, 10], 0, 0.9), ([0, 0, 10, 10], 0, 0.8), ([20, 0, 30, 10], 0, 0.7)]
    truth = [([0, 0, 10, 10], 0, ""), ([20, 0, 30, 10], 0, "")]
    assert average_precision(*as_boxes([(truth, twice)]), protocol="voc2012").ap[0, 0] == pytest.approx((1 + 2 / 3) / 2)
    truth[0] = ([0, 0, 10, 10], 0, "ignore")
    assert average_precision(*as_boxes([(truth, twice)]), protocol="voc2012").ap[0, 0] == 1.0
    assert average_precision(*as_boxes([(truth, twice)]), [0.5]).ap[0, 0] == 0.5  # COCO ignores it once
    truth[0] = ([0, 0, 10, 10], 0, "crowd")
    assert average_precision(*as_boxes([(truth, twice)]), [0.5]).ap[0, 0] == 1.0


def test_of_equal_overlaps_voc_takes_the_first_box_and_coco_the_last():
    box, found = [0, 0, 10, 10], [([0, 0, 10, 10], 0, 0.9), ([0, 0, 10, 5], 0, 0.8)]
    first, last = ([(box, 0, ""), (box, 0, "ignore")], [(box, 0, "ignore"), (box, 0, "")])
    images = as_boxes([(first, found[:1]), (last, found[:1])])
    np.testing.assert_array_equal(average_precision(*images, protocol="voc2012").ap, [[1], [0]])
    np.testing.assert_array_equal(average_precision(*images, [0.5]).ap, [[1], [1]])  # the one that counts goes first
    low, high = ([0, 0, 10, 8], 0, ""), ([0, 2, 10, 10], 0, "")  # the second detection reaches the upper one alone
    images = as_boxes([([low, high], found), ([high, low], found)])
    np.testing.assert_array_equal(average_precision(*images, [0.5]).ap > 0.9, [[True], [False]])
    np.testing.assert_array_equal(average_precision(*images, protocol="voc2012").ap, [[0.5], [1]])


def test_an_iou_of_one_but_for_rounding_reaches_a_threshold_of_one():
    images = as_boxes([([([1e-9, 0, 100, 100], 0, "")], [([0, 0, 100, 100], 0, 0.9)])])
    same_ap(*images, [1.0])
    assert average_precision(*images, [1.0]).ap == 1
    assert average_precision(*images, [1.0], "voc2012").ap == 0


@pytest.mark.parametrize("protocol", ["coco", "voc2012"])
def test_the_last_bit_of_a_score_decides_and_the_sign_of_zero_does_not(protocol):
    truth, right, wrong = [([0, 0, 5, 5], 0, "")], [0, 0, 5, 5], [6, 6, 9, 9]

    def ap(first: float, second: float) -> float:
        return average_precision(*as_boxes([(truth, [(wrong, 0, first), (right, 0, second)])]), [0.5], protocol).ap[
            0, 0
        ]

    for score in np.float32([0.7, 0.1, 1e-40, 0.0, -1e-40, -0.3, -2.0]):
        assert ap(score, np.nextafter(score, np.float32(9))) == 1
        assert ap(score, np.nextafter(score, np.float32(-9))) == 0.5
    assert ap(0.0, -0.0) == ap(-0.0, 0.0) == 0.5


def test_boxes_without_an_area_overlap_nothing():
    odd = [[2, 2, 2, 8], [2, 2, 8, 2], [2, 2, 2, 2], [8, 2, 2, 8], [2, 8, 8, 2], [8, 8, 2, 2], [0, 30, 100, 20]]
    normal = [[2, 2, 8, 8], [0, 20, 100, 30], [50, 20, 51, 29.5]]
    truth = [(box, 0, "") for box in (*odd, *normal)]
    found = [(box, 0, 0.9 - k / 50) for k, box in enumerate((*odd, *normal))]
    images = as_boxes([(truth, found), (truth[:7], found), (truth, found[:7])] + [(truth[k:], found) for k in range(9)])
    same_ap(*images, (0.01, 0.5))
    assert average_precision(*images, (0.01, 0.5)).ap[1:3].max() == 0


RULES = {  # what is in an image, cost as COCO, cost strictly; thresholds 0.5 and 0.9
    "nothing and nothing claimed": (([], []), 0, 0),
    "nothing and a hesitant claim": (([], [([0, 0, 5, 5], 0, 0.4)]), 0, 0),
    "nothing but a confident claim": (([], [([0, 0, 5, 5], 0, 0.5)]), 1, 1),
    "an object that nobody sees": (([([0, 0, 5, 5], 0, "")], []), 1, 1),
    "an object seen perfectly": (([([0, 0, 5, 5], 0, "")], [([0, 0, 5, 5], 0, 0.3)]), 0, 0),
    "and another class claimed": (([([0, 0, 5, 5], 0, "")], [([0, 0, 5, 5], 0, 0.9), ([0, 0, 5, 5], 1, 0.9)]), 0, 0.5),
    "and two boxes of it": (([([0, 0, 5, 5], 0, "")], [([0, 0, 5, 5], 0, 0.9), *[([0, 0, 5, 5], 1, 0.9)] * 2]), 0, 0.5),
    "only a difficult box, seen": (([([0, 0, 5, 5], 0, "ignore")], [([0, 0, 5, 5], 0, 0.9)]), 0, 0),
    "seen well enough for one threshold": (([([0, 0, 5, 5], 0, "ignore")], [([0, 0, 4, 5], 0, 0.9)]), 0.5, 0.5),
    "and as another class": (([([0, 0, 5, 5], 0, "ignore")], [([0, 0, 5, 5], 1, 0.9)]), 1, 1),
    "a crowd with two in it": (([([0, 0, 9, 9], 0, "crowd")], [([0, 0, 2, 2], 0, 0.9), ([1, 1, 3, 3], 0, 0.9)]), 0, 0),
}


@pytest.mark.parametrize("case", RULES)
def test_costs_of_images_follow_the_stated_rules(case):
    image, free, strict = RULES[case]
    result = average_precision(*as_boxes([image]), [0.5, 0.9])
    assert detection_cost(result).tolist() == [free]  # exactly: a perfect answer costs 0
    assert detection_cost(result, strict=True).tolist() == [strict]


@settings(max_examples=200, deadline=None)
@given(SMALL_IMAGES, st.sampled_from(["coco", "voc2012", "voc2007"]))
@pytest.mark.slow
def test_costs_lie_in_zero_to_one_and_strictness_only_adds(images, protocol):
    result = average_precision(*images, (0.5, 0.75), protocol)
    free, strict = detection_cost(result), detection_cost(result, strict=True)
    assert free.shape == strict.shape == (len(images[0]),)
    assert ((free >= 0) & (free <= strict) & (strict <= 1)).all()
    assert (free[(result.num_classes_present == 0)] == strict[(result.num_classes_present == 0)]).all()


def columns(result) -> np.ndarray:
    return np.hstack([result.ap, result.num_classes_present[:, None], result.num_absent_claimed])


@pytest.mark.parametrize("protocol", ["coco", "voc2012"])
@pytest.mark.parametrize(
    "changed",
    ["CHUNK_IMAGES 1", "CHUNK_IMAGES 7", "CHUNK_BOXES 40", "BLOCK_PAIRS 5", "PACKED_BITS 0", "PLAIN_LABELS 1"],
)
def test_how_the_work_is_cut_changes_nothing(monkeypatch, protocol, changed):
    monkeypatch.setattr(compiled, "available", lambda: False)
    targets, detections = random_images(4, ignored=0.2, crowds=0.2)
    detections = Boxes(**{**vars(detections), "score": np.round(detections.score, 1)})
    whole = average_precision(targets, detections, (0.5, 0.75), protocol)
    anyhow = match_any_class(targets, detections)
    name, value = changed.split()
    monkeypatch.setattr(box_matching, name, int(value))
    parts = average_precision(targets, detections, (0.5, 0.75), protocol)
    np.testing.assert_array_equal(columns(whole), columns(parts))
    for name, values in vars(match_any_class(targets, detections)).items():
        np.testing.assert_array_equal(getattr(anyhow, name), values)


@pytest.mark.skipif(not compiled.available(), reason="installed without a C compiler")
@pytest.mark.parametrize("protocol", ["coco", "voc2012", "voc2007"])
@pytest.mark.parametrize("case", CASES)
def test_the_compiled_loop_gives_the_bits_of_numpy(monkeypatch, protocol, case):
    """Elsewhere in this file whatever is there is compared with pycocotools and the definitions."""
    for seed in range(3):
        targets, detections = random_images(seed, **CASES[case])
        # seed 0: scores that tie; 1: in 32 bits; 2: whole pixels, so that overlaps tie
        score = [np.round(detections.score, 1), detections.score.astype(np.float32), detections.score][seed]
        detections = Boxes(**{**vars(detections), "score": score})
        if seed == 2:
            targets, detections = (
                Boxes(**{name: values for name, values in vars(boxes).items() if name != "size"} | {"xyxy": whole})
                for boxes in (targets, detections)
                for whole in [np.round(boxes.xyxy / 40) * 40]
            )
        for cap in (None, 2):
            given = (targets, detections, (0.75, 0.5, 0.9), protocol)
            with monkeypatch.context() as patched:
                found = average_precision(*given, max_detections=cap, confident=0.3)
                patched.setattr(compiled, "available", lambda: False)
                plain = average_precision(*given, max_detections=cap, confident=0.3)
            np.testing.assert_array_equal(columns(found), columns(plain))


@pytest.mark.parametrize("protocol", ["coco", "voc2012", "voc2007"])
def test_an_image_is_judged_by_itself(protocol):
    images = random_images(5, ignored=0.2, crowds=0.2)
    whole = columns(average_precision(*images, (0.5, 0.75), protocol))
    order = np.random.default_rng(0).permutation(len(whole))
    shuffled = average_precision(*(boxes.take(order) for boxes in images), (0.5, 0.75), protocol)
    np.testing.assert_array_equal(columns(shuffled), whole[order])
    for image in range(len(whole)):
        alone = average_precision(*(boxes[image : image + 1] for boxes in images), (0.5, 0.75), protocol)
        np.testing.assert_array_equal(columns(alone), whole[image : image + 1])


def test_class_numbers_and_what_is_added_to_all_scores_mean_nothing():
    targets, detections = random_images(6, ignored=0.2)
    whole = columns(average_precision(targets, detections, confident=0.5))
    far = np.array([2**31 - 1, 5, 70_000, 0], np.int32)
    renamed = (Boxes(**{**vars(boxes), "label": far[boxes.label]}) for boxes in (targets, detections))
    np.testing.assert_allclose(columns(average_precision(*renamed)), whole, rtol=0, atol=1e-12)
    score = np.round(detections.score * 64) / 64  # so that the sums are exact
    lower = Boxes(**{**vars(detections), "score": (score - 0.75).astype(np.float32)})  # most are negative
    np.testing.assert_array_equal(
        columns(average_precision(targets, Boxes(**{**vars(detections), "score": score}), confident=0.5)),
        columns(average_precision(targets, lower, confident=-0.25)),
    )


def test_thresholds_do_not_mind_each_other():
    images = random_images(7, crowds=0.2)
    mixed = average_precision(*images, (0.9, 0.5, 0.7))
    for position, threshold in enumerate((0.9, 0.5, 0.7)):
        alone = average_precision(*images, [threshold])
        np.testing.assert_array_equal(mixed.ap[:, [position]], alone.ap)
        np.testing.assert_array_equal(mixed.num_absent_claimed[:, [position]], alone.num_absent_claimed)


def pycocotools_matches(targets, detections, threshold, use_classes) -> list[int]:
    """Row of the ground-truth box of each detection, or -1, from pycocotools without classes."""
    taken = [-1] * len(detections.xyxy)
    for image in pycocotools_evaluation(targets, detections, [threshold], 1000, use_classes).evalImgs:
        if image is not None:
            for found, truth in zip(image["dtIds"], image["dtMatches"][0], strict=True):
                taken[found - 1] = int(truth) - 1
    return taken


@settings(max_examples=200, deadline=None)
@given(SMALL_IMAGES, st.sampled_from(EXACT), st.sampled_from([0.0, 0.6]))
@pytest.mark.slow
def test_matching_without_classes_is_pycocotools_with_one_class(images, threshold, confident):
    match = match_any_class(*images, threshold, confident)
    one = [Boxes(**{**vars(boxes), "label": np.zeros_like(boxes.label)}) for boxes in images]
    sure = np.flatnonzero(one[1].score >= confident)
    expected = np.full(len(one[1].score), -1)
    rows = pycocotools_matches(one[0], one[1].select(one[1].score >= confident), threshold, True)
    expected[sure] = rows
    np.testing.assert_array_equal(match.target, expected)
    check_consistent(match, *images)


@pytest.mark.parametrize("case", ["few", "dense", "many detections", "ignored and crowds", "no ground truth"])
def test_matching_without_classes_is_pycocotools_use_cats_0(case):
    images = random_images(8, **CASES[case])
    match = match_any_class(*images, 0.5, 0.0)
    assert match.target.tolist() == pycocotools_matches(*images, 0.5, False)
    check_consistent(match, *images)


def check_consistent(match, targets, detections) -> None:
    """Both directions say the same, and the IoU is that of the pair."""
    for row in range(len(targets.xyxy)):
        takers = np.flatnonzero(match.target == row)
        if not len(takers):
            assert (match.detection[row], match.iou[row]) == (-1, 0)
            continue
        assert len(takers) == 1 or targets.crowd[row]
        best = takers[np.argmax(detections.score[takers])]  # the first of the best
        assert match.detection[row] == best
        t, d = targets.xyxy[row].astype(float), detections.xyxy[best].astype(float)
        both = np.prod(np.minimum(t[2:], d[2:]) - np.maximum(t[:2], d[:2]))
        either = np.prod(d[2:] - d[:2]) + (0 if targets.crowd[row] else np.prod(t[2:] - t[:2]) - both)
        assert match.iou[row] == pytest.approx(both / either, abs=1e-12)


def test_no_images_are_no_trouble():
    result = average_precision(Boxes.empty(0), Boxes.empty(0))
    assert result.ap.shape == result.num_absent_claimed.shape == (0, 10)
    assert detection_cost(result).shape == detection_cost(result, strict=True).shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": []}, "thresholds"),
        ({"thresholds": [0.0]}, "thresholds"),
        ({"thresholds": [0.5, 1.01]}, "thresholds"),
        ({"thresholds": [float("nan")]}, "thresholds"),
        ({"protocol": "voc"}, "protocol 'voc'"),
        ({"max_detections": 0}, "max_detections 0"),
        ({"detections": Boxes.empty(2)}, "1 images, detections of 2"),
        ({"targets": as_boxes([([([0, 0, 1, np.inf], 0, "")], [])])[0]}, "finite"),
        ({"detections": as_boxes([([], [([0, 0, 1, 1], 0, np.nan)])])[1]}, "finite"),
        ({"detections": as_boxes([([], [([0, 0, 1, 1], -1, 0.5)])])[1]}, "negative"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        average_precision(**{"targets": Boxes.empty(1), "detections": Boxes.empty(1), **options})


@pytest.mark.parametrize("threshold", [0.0625, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("offset", [0.0, 12_345.0, 2.0**30, -(2.0**30)])
def test_boxes_that_reach_the_threshold_exactly_are_not_left_out_as_too_far_away(threshold, offset):
    """A detection may lie at either end of a box 1 / threshold times as wide, or hold one as much smaller."""
    width = 32.0
    wide, narrow = width / threshold, width * threshold
    pairs = []
    for other in (wide, narrow):
        for shift in (0.0, width - other, (width - other) / 2):
            start = offset + 4096.0 * len(pairs)
            pairs.append(([start, 0, start + width, 8], [start + shift, 0, start + shift + other, 8]))
    found, truth = (np.array(side) for side in zip(*pairs, strict=True))

    def boxes(xyxy: np.ndarray) -> Boxes:
        rows = {"boxes": xyxy, "labels": np.zeros(len(xyxy), int), "scores": np.linspace(0.9, 0.6, len(xyxy))}
        return Boxes.from_images([rows])

    matches = match_any_class(boxes(truth), boxes(found), threshold)
    np.testing.assert_array_equal(matches.target, np.arange(len(pairs)))
