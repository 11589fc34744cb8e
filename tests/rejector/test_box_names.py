"""Names of boxes in the report's pictures: inside, none on another, the surest first."""

from __future__ import annotations

import itertools

import numpy as np

from l2d.rejector.report.tiles import LETTER_HIGH, LETTER_WIDE, write_names

SIZE = (500.0, 375.0)


def box(x1: float, y1: float, x2: float, y2: float, text: str = "cat 90") -> dict:
    return {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "text": text}


def test_names_stay_inside_and_lie_on_no_other_name():
    generator = np.random.default_rng(0)
    high = LETTER_HIGH * SIZE[0] / 100
    for _ in range(30):
        corners = np.sort(generator.uniform(0, 1, (12, 2, 2)), axis=1) * SIZE
        boxes = [box(*low, *most, f"{name} 50") for (low, most), name in zip(corners, "abcdefghijkl", strict=True)]
        write_names(boxes, SIZE)
        places = []
        for one in boxes:
            if one["written"] is not None:
                (left, base), wide = one["written"], LETTER_WIDE * SIZE[0] / 100 * len(one["text"])
                places.append((left, base - 0.8 * high, left + wide, base + 0.2 * high))
        assert boxes[-1]["written"] is not None  # the surest
        for left, top, right, bottom in places:
            assert min(left, top) >= -1e-9
            assert right <= SIZE[0] + 1e-9
            assert bottom <= SIZE[1] + 1e-9
        for one, other in itertools.combinations(places, 2):
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart


def test_a_name_goes_above_else_inside_and_doubles_of_one_class_have_one():
    boxes = [box(101, 101, 201, 201), box(0, 0, 90, 90), box(100, 100, 200, 200)]
    write_names(boxes, SIZE)
    assert boxes[0]["written"] is None
    assert boxes[1]["written"][1] > 0  # no room above it
    assert boxes[2]["written"][1] < 100
