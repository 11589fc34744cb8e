"""Boxes of several detectors as one answer: weighted boxes fusion, and non-maximum suppression over all of them.

Weighted boxes fusion is that of Solovyev, Wang and Gabruseva, *Weighted boxes fusion: Ensembling boxes from different
object detection models* (Image and Vision Computing 2021, section 3), with the mean score of a cluster, lowered where
fewer boxes than detectors are in it. All images and classes advance together: the r-th best box of each joins one of
its clusters or begins its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from l2d.data.samples.boxes import Boxes

FUSED_IOU = 0.55  # above it a box joins a cluster: the paper's
KEPT_IOU = 0.5  # above it a box is taken for one that is kept already


def fuse(answers: Sequence[Boxes], weights: np.ndarray, *, iou: float = FUSED_IOU) -> Boxes:
    """Weighted boxes fusion.

    Args:
        answers: of m detectors on the same n images.
        weights: of each detector on each image, > 0, (n, m).
        iou: above which a box joins a cluster of its class.

    Returns:
        n images, boxes of each by falling score. Of equal scores the earlier detector's box is looked at first.
    """
    boxes, image, weight = _together(answers, weights)
    score = boxes.score * weight
    order, start, size = _groups(image, boxes.label, score)
    boxes, image, score = _at(boxes, order), image[order], score[order]
    place, total, count = _clusters(boxes.xyxy, score, start, size, iou, moving=True)
    here = count > 0
    many = len(answers)
    final = (total / np.maximum(count, 1) * np.minimum(many, count) / weights.sum(axis=1)[image])[here]
    return _of_images(place[here], boxes.label[here], final, image[here], len(weights))


def keep_best(answers: Sequence[Boxes], *, iou: float = KEPT_IOU) -> Boxes:
    """Non-maximum suppression over all detectors' boxes, class by class: the best of those that overlap is kept."""
    boxes, image, _ = _together(answers, np.ones((len(answers[0]), len(answers))))
    order, start, size = _groups(image, boxes.label, boxes.score)
    boxes, image = _at(boxes, order), image[order]
    place, total, count = _clusters(boxes.xyxy, boxes.score, start, size, iou, moving=False)
    here = count > 0
    return _of_images(place[here], boxes.label[here], total[here], image[here], len(answers[0]))


def _together(answers: Sequence[Boxes], weights: np.ndarray) -> tuple[Boxes, np.ndarray, np.ndarray]:
    """All boxes that have an area, the image of each, and its detector's weight."""
    boxes = Boxes.concatenate(list(answers))
    image = np.concatenate([answer.image for answer in answers])
    weight = np.concatenate([weights[answer.image, j] for j, answer in enumerate(answers)])
    areas = np.flatnonzero((boxes.xyxy[:, 2:] > boxes.xyxy[:, :2]).all(axis=1))
    return _at(boxes, areas), image[areas], weight[areas]


def _at(boxes: Boxes, rows: np.ndarray) -> Boxes:
    """Boxes in another order, as those of a single image."""
    return Boxes(
        offsets=np.array([0, len(rows)]), xyxy=boxes.xyxy[rows], label=boxes.label[rows], score=boxes.score[rows],
        ignore=boxes.ignore[rows], crowd=boxes.crowd[rows],
    )  # fmt: skip


def _groups(image: np.ndarray, label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes by image, class and falling score: their order (m,), and first position and size of each group."""
    order = np.lexsort((-score, label, image))
    one, other = image[order], label[order]
    begins = np.flatnonzero(np.r_[True, (one[1:] != one[:-1]) | (other[1:] != other[:-1])][: len(order)])
    return order, begins, np.diff(np.r_[begins, len(order)])


def _clusters(
    xyxy: np.ndarray, score: np.ndarray, start: np.ndarray, size: np.ndarray, iou: float, *, moving: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clusters of each group's boxes.

    Args:
        moving: a cluster's place is the mean of its boxes weighted by score; else it stays at its first box, which
            alone counts.

    Returns:
        Place (m, 4), sum of scores (m,) and number of boxes (m,) of cluster k of a group at its first position + k.
    """
    m = len(xyxy)
    place, sums, total, count = np.zeros((m, 4)), np.zeros((m, 4)), np.zeros(m), np.zeros(m, np.int64)
    found = np.zeros(len(start), np.int64)  # clusters of each group
    for turn in range(int(size.max(initial=0))):
        groups = np.flatnonzero(size > turn)
        new = start[groups] + turn
        into = start[groups] + found[groups]
        begins = np.ones(len(groups), bool)
        if turn:
            counts = found[groups]
            edges = np.r_[0, np.cumsum(counts)]
            each = np.arange(edges[-1]) - np.repeat(edges[:-1], counts) + np.repeat(start[groups], counts)
            overlap = _iou(place[each], np.repeat(xyxy[new], counts, axis=0))
            best = np.maximum.reduceat(overlap, edges[:-1])
            first = np.minimum.reduceat(np.where(overlap == np.repeat(best, counts), each, m), edges[:-1])
            begins = ~(best > iou)
            into = np.where(begins, into, first)
        found[groups] += begins
        some = slice(None) if moving else begins
        at, box = into[some], new[some]
        sums[at] += score[box, None] * xyxy[box]
        total[at] += score[box]
        count[at] += 1
        weighed = moving & (total[at] > 0) & ~begins[some]
        place[at] = np.where(
            weighed[:, None], sums[at] / np.where(total[at] > 0, total[at], 1.0)[:, None],
            np.where(begins[some][:, None], xyxy[box], place[at]),
        )  # fmt: skip
    return place, total, count


def _iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """IoU of boxes pair by pair, (k,)."""
    inside = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = np.maximum(inside, 0).prod(axis=1)
    return shared / ((one[:, 2:] - one[:, :2]).prod(axis=1) + (other[:, 2:] - other[:, :2]).prod(axis=1) - shared)


def _of_images(xyxy: np.ndarray, label: np.ndarray, score: np.ndarray, image: np.ndarray, n: int) -> Boxes:
    order = np.lexsort((-score, image))
    return Boxes(
        offsets=np.r_[0, np.cumsum(np.bincount(image, minlength=n))].astype(np.int64),
        xyxy=xyxy[order], label=label[order], score=score[order],
        ignore=np.zeros(len(order), bool), crowd=np.zeros(len(order), bool),
    )  # fmt: skip
