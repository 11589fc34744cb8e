"""docs/agreement.md: what other tools answer to the same valid input, and what this project does.

Peers that the development environment has are asked here; the others were asked in the versions that the page names,
by the scripts in findings/.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from l2d.data.costs.average_precision import average_precision
from l2d.data.samples.boxes import Boxes

PAGE = (Path(__file__).parents[2] / "docs" / "agreement.md").read_text(encoding="utf-8")

SQUARE = (10, 10, 20, 20)  # x, y, width, height
ELSEWHERE = (60, 60, 20, 20)
TEN = [(10 * i, 10, 8, 8) for i in range(10)]


def ours(truth, found, protocol="coco", crowd=()):
    """Mean AP of one image with one class."""

    def corners(boxes):
        return [[x, y, x + width, y + height] for x, y, width, height in boxes]

    targets = {
        "boxes": corners(truth),
        "labels": [0] * len(truth),
        "ignore": [False] * len(truth),
        "crowd": [i in crowd for i in range(len(truth))],
    }
    detections = {
        "boxes": corners([box for box, _ in found]),
        "labels": [0] * len(found),
        "scores": [score for _, score in found],
    }
    result = average_precision(Boxes.from_images([targets]), Boxes.from_images([detections]), protocol=protocol)
    return float(result.ap.mean())


def coco(truth, found, crowd=(), first_id=1, area=True, peer="pycocotools"):
    """What pycocotools or faster-coco-eval makes of the same image."""
    if peer == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    annotations = [
        {"id": first_id + i, "image_id": 1, "category_id": 1, "bbox": list(box), "iscrowd": int(i in crowd)}
        | ({"area": box[2] * box[3]} if area else {})
        for i, box in enumerate(truth)
    ]
    results = [{"image_id": 1, "category_id": 1, "bbox": list(box), "score": score} for box, score in found]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            "info": {},
            "images": [{"id": 1, "width": 100, "height": 100}],
            "categories": [{"id": 1, "name": "thing"}],
            "annotations": annotations,
        }
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


PEERS = ("pycocotools", "faster-coco-eval")


@pytest.mark.parametrize("peer", PEERS)
def test_an_annotation_numbered_0(peer):
    """Both take id 0 for "not matched": a perfect detector loses that object. Ours has no ids."""
    found = [(SQUARE, 0.9), (ELSEWHERE, 0.8)]
    warned = pytest.warns(UserWarning, match="id 0") if peer == "faster-coco-eval" else contextlib.nullcontext()
    with warned:
        assert coco([SQUARE, ELSEWHERE], found, first_id=0, peer=peer) == pytest.approx(0.2524752475)
    assert coco([SQUARE, ELSEWHERE], found, first_id=1, peer=peer) == pytest.approx(1)
    assert ours([SQUARE, ELSEWHERE], found) == 1


def test_annotations_without_area():
    with pytest.raises(KeyError, match="area"):
        coco([SQUARE], [(SQUARE, 0.9)], area=False)
    assert coco([SQUARE], [(SQUARE, 0.9)], area=False, peer="faster-coco-eval") == pytest.approx(1)
    assert ours([SQUARE], [(SQUARE, 0.9)]) == 1


@pytest.mark.parametrize("peer", PEERS)
def test_tied_scores_keep_their_order(peer):
    right, wrong = (SQUARE, 0.5), (ELSEWHERE, 0.5)
    for found, expected in (([right, wrong], 1.0), ([wrong, right], 0.5)):
        assert coco([SQUARE], found, peer=peer) == pytest.approx(expected)
        assert ours([SQUARE], found) == expected


@pytest.mark.parametrize("peer", PEERS)
def test_scores_that_differ_in_the_ninth_decimal(peer):
    found = [(ELSEWHERE, 0.9), (SQUARE, 0.9 + 1e-9)]
    assert coco([SQUARE], found, peer=peer) == pytest.approx(1)
    assert ours([SQUARE], found) == 1


@pytest.mark.parametrize("peer", PEERS)
def test_an_overlap_of_exactly_the_threshold_counts(peer):
    half = (10, 10, 20, 10)
    assert coco([SQUARE], [(half, 0.5)], peer=peer) == pytest.approx(0.1)
    assert ours([SQUARE], [(half, 0.5)]) == pytest.approx(0.1)
    assert ours([SQUARE], [(half, 0.5)], "voc2012") == 1


@pytest.mark.parametrize("peer", PEERS)
def test_a_detection_of_a_crowd_is_neither_right_nor_wrong(peer):
    truth, found = [SQUARE, (50, 50, 40, 40)], [((55, 55, 10, 10), 0.9), (SQUARE, 0.5)]
    assert coco(truth, found, crowd={1}, peer=peer) == pytest.approx(1)
    assert ours(truth, found, crowd={1}) == 1
    assert ours(truth, found) == pytest.approx(0.2524752475)  # what a tool that knows no crowds makes of it


def test_eleven_points_at_a_recall_of_exactly_three_tenths():
    """By hand: 3 of 10 found first, so recall 0, .1, .2, .3 have precision 1 and the others 0."""
    found = [(box, 0.9 - 0.01 * i) for i, box in enumerate(TEN[:3])]
    assert ours(TEN, found, "voc2007") == pytest.approx(4 / 11)
    recall = 3 / 10
    assert sum(recall >= point for point in np.arange(0, 1.1, 0.1)) == 3  # floating point loses the fourth
    assert ours(TEN, found, "voc2012") == pytest.approx(0.3)
    assert ours(TEN, found, "coco") == pytest.approx(31 / 101)


def test_pixels_counted_from_1_become_corners():
    """VOC's rule adds 1 to each width; reading ``xmin - 1`` as the corner gives the same overlap without it."""
    a, b = (11, 11, 13, 13), (11, 11, 13, 12)  # xmin, ymin, xmax, ymax as in the files, the last pixel included
    voc = (3 * 2) / (3 * 3)
    assert overlap_of_corners(shifted(a), shifted(b)) == pytest.approx(voc)
    assert overlap_of_corners(a, b) == pytest.approx(1 / 2)  # widths a pixel short


def shifted(box):
    return box[0] - 1, box[1] - 1, box[2], box[3]


def overlap_of_corners(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def test_votes_that_tie():
    """The same two votes, in both orders: a tool may take the first, the smallest, or both."""
    import pandas as pd
    import polars as pl
    from scipy import stats

    for votes in (["b", "a"], ["a", "b"]):
        assert Counter(votes).most_common(1)[0][0] == votes[0]
        assert pd.Series(votes).value_counts().idxmax() == votes[0]
        assert list(pd.Series(votes).mode()) == ["a", "b"]
        assert sorted(pl.Series(votes).mode().to_list()) == ["a", "b"]
    assert stats.mode([1, 0]).mode == stats.mode([0, 1]).mode == 0
    assert average_of_votes([1, 0]) == average_of_votes([0, 1]) == 0  # ours: the first class of the recipe


def average_of_votes(votes):
    """The class that ``kind = "average"`` answers when two agents vote for one class each."""
    from l2d.cache_builder.answers import Answers

    parts = [Answers(cla=np.array([vote])).probabilities(2) for vote in votes]
    mean = Answers(prob=np.mean(parts, axis=0))
    return int(mean.prob.argmax(axis=1)[0])


def test_the_page_names_versions_and_its_tests():
    assert re.search(r"pycocotools 2\.0\.\d+", PAGE)
    here = Path(__file__).read_text(encoding="utf-8")
    for name in re.findall(r"`(test_[a-z0-9_]+)`", PAGE):
        assert f"def {name}(" in here, name
