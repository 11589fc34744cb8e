"""COCO's AP of each class on a set of images whose answers come from several agents.

An image's detections match its objects whatever other images there are, so matches are found once for each agent
(:func:`judge`); the AP of any system of these agents, on any of the images, then only counts them. Figures are
pycocotools' (``COCOeval.accumulate``, all areas, 100 detections of an image and class).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from l2d.data.costs.average_precision import COCO_THRESHOLDS
from l2d.data.costs.box_matching import Groups, checked_limits, chunks, match_groups
from l2d.data.samples.boxes import Boxes

MOST = 100  # detections of an image and class that count
RECALLS = np.linspace(0.0, 1.0, 101)
EPSILON = np.spacing(1.0)


@dataclass(frozen=True)
class Judged:
    """Detections of one agent on n images, those that count, matched at COCO's ten thresholds.

    Attributes:
        row: positions in the agent's boxes, (m,). image, label, score: of each.
        found: bool (10, m): it is an object's. ignored: bool (10, m): it is one to ignore.
    """

    row: np.ndarray
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    found: np.ndarray
    ignored: np.ndarray


@dataclass(frozen=True)
class ClassPrecision:
    """AP of one class.

    Attributes:
        label: of the class.
        ap, ap_50: mean over IoU 0.50:0.05:0.95, and at 0.50.
        images, objects: that have objects of it, and those objects; none of them to ignore.
        detections: of it that count.
    """

    label: int
    ap: float
    ap_50: float
    images: int
    objects: int
    detections: int


def judge(targets: Boxes, detections: Boxes) -> Judged:
    """Match an agent's detections with the objects of the same n images.

    Raises:
        ValueError: different numbers of images, a number that is not finite, a negative label.
    """
    limits = checked_limits(COCO_THRESHOLDS, "coco")
    nothing = np.zeros((len(limits), 0), bool)
    rows, found, ignored = [np.zeros(0, np.int64)], [nothing], [nothing]
    for images, truth, answer, num_labels in chunks(targets, detections):
        groups = Groups.of(truth, answer, num_labels, MOST)
        match = match_groups(groups, truth, answer, limits, "coco")
        others = _best(groups.alone, groups.alone_key, answer.score)
        hit, skip = (np.zeros((len(limits), len(groups.detection) + len(others)), bool) for _ in range(2))
        skipped = truth.ignore[groups.target[match.target]]
        hit[match.threshold[~skipped], match.detection[~skipped]] = True
        skip[match.threshold[skipped], match.detection[skipped]] = True
        rows.append(detections.offsets[images.start] + np.concatenate([groups.detection, others]))
        found.append(hit)
        ignored.append(skip)
    row = np.concatenate(rows)
    return Judged(
        row, detections.image[row], detections.label[row], detections.score[row],
        np.concatenate(found, axis=1), np.concatenate(ignored, axis=1),
    )  # fmt: skip


def _best(rows: np.ndarray, key: np.ndarray, score: np.ndarray) -> np.ndarray:
    """The best-scored rows of each key, as many as count."""
    order = np.lexsort((rows, -score[rows], key))
    rows, key = rows[order], key[order]
    return rows[np.arange(len(key)) - np.searchsorted(key, key) < MOST]


def class_precision(
    targets: Boxes, answers: Sequence[Judged], chosen: np.ndarray, rank: np.ndarray | None = None
) -> list[ClassPrecision]:
    """AP of every class that has objects, by label.

    Args:
        targets: objects of n images.
        answers: of each agent, on the same images.
        chosen: position in ``answers`` of the agent that answers each image, int (n,); -1: it is not in the set.
        rank: of images, (n,): of equal scores the image of the lower rank comes first; None: as they are.
    """
    parts = [np.flatnonzero(chosen[answer.image] == agent) for agent, answer in enumerate(answers)]

    def joined(name: str) -> np.ndarray:
        values = [getattr(one, name)[..., rows] for one, rows in zip(answers, parts, strict=True)]
        return np.concatenate(values, axis=-1)

    image, label, found, ignored = joined("image"), joined("label"), joined("found"), joined("ignored")
    order = np.lexsort((joined("row"), image if rank is None else rank[image], -joined("score"), label))
    label, found, ignored = label[order], found[:, order], ignored[:, order]
    wanted = np.flatnonzero(~targets.ignore & (chosen[targets.image] >= 0))
    result = []
    for name in np.unique(targets.label[wanted]).tolist():
        own = wanted[targets.label[wanted] == name]
        mine = slice(np.searchsorted(label, name), np.searchsorted(label, name, side="right"))
        precision = _precision(found[:, mine], ignored[:, mine], len(own))
        images = len(np.unique(targets.image[own]))
        ap, ap_50 = float(precision.mean()), float(precision[0])
        result.append(ClassPrecision(name, ap, ap_50, images, len(own), int(mine.stop - mine.start)))
    return result


def _precision(found: np.ndarray, ignored: np.ndarray, objects: int) -> np.ndarray:
    """Mean precision over COCO's recalls at each threshold, of detections by falling score (T, k)."""
    right = np.cumsum(found, axis=1, dtype=np.float64)
    wrong = np.cumsum(~(found | ignored), axis=1, dtype=np.float64)
    best = np.maximum.accumulate((right / (right + wrong + EPSILON))[:, ::-1], axis=1)[:, ::-1]
    result = np.zeros(len(found))
    for level, (reached, values) in enumerate(zip(right / objects, best, strict=True)):
        place = np.searchsorted(reached, RECALLS, side="left")
        result[level] = values[place[place < len(values)]].sum() / len(RECALLS)
    return result
