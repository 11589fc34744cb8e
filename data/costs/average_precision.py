"""Average precision of every image by itself, for many images, classes and IoU thresholds at once.

Three protocols. They differ in which ground truth a detection may take (:mod:`l2d.data.costs.box_matching`)
and in how precision is averaged over recall:

* ``coco``: as pycocotools. 101 recall points, at most 100 detections of a class in an image.
* ``voc2012``: as the VOC devkit from 2010 on. The area under the whole curve.
* ``voc2007``: as the VOC devkit until 2009. 11 recall points.

AP needs the precision at the true positives only: the j-th of n stands for as many recall points as a small table says,
and that table is all the difference between the interpolations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from l2d.data.costs import compiled
from l2d.data.costs.box_matching import Groups, Match, checked_limits, chunks, match_groups
from l2d.data.samples.boxes import Boxes

Protocol = Literal["coco", "voc2012", "voc2007"]

#: 0.50:0.05:0.95, bit for bit pycocotools'.
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
DEFAULT_THRESHOLDS = {"coco": COCO_THRESHOLDS, "voc2012": (0.5,), "voc2007": (0.5,)}
DEFAULT_MAX_DETECTIONS = {"coco": 100, "voc2012": None, "voc2007": None}


@dataclass(frozen=True, kw_only=True)
class ImageAP:
    """Per-image AP of n images at T thresholds. Ground truth without ``ignore`` is called countable.

    Attributes:
        ap: float64 (n, T): mean AP over the classes with countable ground truth in the image; NaN where there is none.
        num_classes_present: int64 (n,): how many classes that are.
        num_absent_claimed: int64 (n, T): classes without countable ground truth in the image of which there is a
            detection with a score of at least ``confident`` that took no box to ignore either.
    """

    ap: np.ndarray
    num_classes_present: np.ndarray
    num_absent_claimed: np.ndarray

    @property
    def strict(self) -> np.ndarray:
        """Mean AP over present and claimed classes, the latter with AP 0: float64 (n, T), NaN without either."""
        present = self.num_classes_present[:, None]
        classes = present + self.num_absent_claimed
        share = np.divide(present, classes, out=np.full(classes.shape, np.nan), where=classes > 0)
        return np.where(present > 0, self.ap, 0.0) * share


@dataclass(frozen=True, kw_only=True)
class BoxMatches:
    """Which detection matched which object, at one threshold.

    Attributes:
        detection: int64 (ground-truth boxes,): row of the detection, of a crowd's the best-scored one; -1: missed.
        iou: float64 (ground-truth boxes,): of that match; 0 where missed.
        target: int64 (detections,): row of the ground-truth box that a detection took; -1: none.
    """

    detection: np.ndarray
    iou: np.ndarray
    target: np.ndarray


def average_precision(
    targets: Boxes,
    detections: Boxes,
    thresholds: Sequence[float] | None = None,
    protocol: Protocol = "coco",
    *,
    max_detections: int | None = None,
    confident: float = 0.5,
) -> ImageAP:
    """AP of each image by itself.

    Args:
        targets: ground truth of n images. ``ignore`` is what VOC calls difficult; to its protocols a crowd is no more.
        detections: of the same images; their ``ignore`` and ``crowd`` mean nothing. Equal scores keep their order.
        thresholds: of IoU, T numbers in (0, 1]; if left out COCO's ten, or VOC's 0.5.
        max_detections: how many of an image and class are looked at, the best-scored; if left out 100 for ``coco``, and
            all for the others, as in their originals.
        confident: score from which on a detection claims its class to be there, see :class:`ImageAP`.

    The recall points of ``voc2007`` are compared exactly. (The devkit's ``0:0.1:1`` has 0.30000000000000004 in it,
    which a recall of 3/10 misses in floating point.)

    Raises:
        ValueError: different numbers of images, or an argument out of its range.
    """
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol {protocol!r} is not one of {', '.join(get_args(Protocol))}")
    rule: Literal["coco", "voc"] = "coco" if protocol == "coco" else "voc"
    limits = checked_limits(DEFAULT_THRESHOLDS[protocol] if thresholds is None else thresholds, rule)
    if max_detections is None:
        max_detections = DEFAULT_MAX_DETECTIONS[protocol]
    elif max_detections < 1:
        raise ValueError(f"max_detections {max_detections} is less than 1")
    if compiled.available():
        return ImageAP(**compiled.image_ap(targets, detections, limits, protocol, max_detections, confident))
    ap = np.empty((len(targets), len(limits)))
    present = np.empty(len(targets), np.int64)
    claimed = np.empty((len(targets), len(limits)), np.int64)
    for images, truth, found, num_labels in chunks(targets, detections):
        groups = Groups.of(truth, found, num_labels, max_detections)
        match = match_groups(groups, truth, found, limits, rule)
        ap[images], present[images] = _mean_ap(groups, match, truth, protocol)
        claimed[images] = _absent_claimed(groups, match, found, confident)
    return ImageAP(ap=ap, num_classes_present=present, num_absent_claimed=claimed)


def detection_cost(result: ImageAP, strict: bool = False) -> np.ndarray:
    """One minus AP, averaged over the thresholds: float64 (n,) in [0, 1].

    Without ``strict`` false positives of a class that the image does not have are free, as in COCO. With it such a
    class counts as one more, with AP 0, where it is claimed with confidence.

    An image without countable ground truth has no AP, so it is judged by its claims either way: at each threshold it
    costs 0 where no class is claimed with confidence, and 1 otherwise.
    """
    ap = result.strict if strict else np.where(result.num_classes_present[:, None] > 0, result.ap, result.strict)
    return 1.0 - np.where(np.isnan(ap), 1.0, ap).mean(axis=1)


def match_any_class(targets: Boxes, detections: Boxes, threshold: float = 0.5, confident: float = 0.5) -> BoxMatches:
    """Match boxes whatever their classes, as pycocotools with ``useCats = 0``: to tell wrong places from wrong classes.

    Args:
        targets: ground truth of n images.
        detections: of the same images. Those with a score of at least ``confident`` take part, all of them.
        threshold: of IoU, in (0, 1].

    Ties of scores or IoU follow the order of the boxes (pycocotools orders them by class first).

    Raises:
        ValueError: different numbers of images, or an argument out of its range.
    """
    limits = checked_limits([threshold], "coco")
    targets = replace(targets, label=np.zeros_like(targets.label))
    detections = replace(detections, label=np.zeros_like(detections.label))
    detection = np.full(len(targets.xyxy), -1)
    iou = np.zeros(len(targets.xyxy))
    target = np.full(len(detections.xyxy), -1)
    sure = detections.score >= confident
    rows, detections = np.flatnonzero(sure), detections.select(sure)
    for images, truth, found, _ in chunks(targets, detections):
        groups = Groups.of(truth, found, 1, None)
        match = match_groups(groups, truth, found, limits, "coco")
        taken = groups.target[match.target] + targets.offsets[images.start]
        taker = rows[groups.detection[match.detection] + detections.offsets[images.start]]
        target[taker] = taken
        taken, first = np.unique(taken, return_index=True)  # of a crowd's many the best-scored, which stands first
        detection[taken], iou[taken] = taker[first], match.iou[first]
    return BoxMatches(detection=detection, iou=iou, target=target)


def _mean_ap(groups: Groups, match: Match, targets: Boxes, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """AP of each image (T thresholds: (n, T)), and the number of its classes with countable ground truth (n,)."""
    num_groups = len(groups.image)
    ignored = targets.ignore[groups.target][match.target]
    begin = groups.first[groups.group[match.detection]]
    rank = match.detection - begin + 1
    if ignored.any():  # a detection that took a box to ignore is neither right nor wrong
        before = np.zeros((match.num_thresholds, len(groups.detection) + 1), np.int64)
        before[match.threshold[ignored], match.detection[ignored] + 1] = 1
        before = before.cumsum(axis=1)
        rank -= before[match.threshold, match.detection] - before[match.threshold, begin]
    right = np.flatnonzero(~ignored)
    curve = match.threshold[right] * num_groups + groups.group[match.detection[right]]  # ascending
    counts = np.bincount(curve, minlength=match.num_thresholds * num_groups)
    place = np.arange(len(curve)) - (np.cumsum(counts) - counts)[curve]  # 0 for the first true positive of its curve
    precision = (place + 1) / rank[right]
    reach = 1
    while reach < counts.max(initial=0):  # its envelope: the greatest from each true positive to the last of the curve
        same = curve[reach:] == curve[:-reach]
        precision[:-reach] = np.maximum(precision[:-reach], precision[reach:] * same)
        reach *= 2
    sizes, kind = np.unique(groups.countable, return_inverse=True)
    tables = [_weights(protocol, int(size)) for size in sizes]
    table_start = np.cumsum([0, *map(len, tables)])[kind]
    weight = np.concatenate([np.zeros(0), *tables])[np.tile(table_start, match.num_thresholds)[curve] + place]
    area = np.bincount(curve, weights=precision * weight, minlength=len(counts))
    points = {"coco": 101, "voc2007": 11, "voc2012": np.maximum(groups.countable, 1)}[protocol]
    area = area.reshape(match.num_thresholds, num_groups) / points

    present = np.bincount(groups.image[groups.countable > 0], minlength=groups.num_images)
    total = np.stack([np.bincount(groups.image, weights=row, minlength=groups.num_images) for row in area], axis=1)
    return np.where(present[:, None] > 0, total / np.maximum(present, 1)[:, None], np.nan), present


@lru_cache(maxsize=4096)
def _weights(protocol: Protocol, size: int) -> np.ndarray:
    """How many recall points the j-th true positive of ``size`` objects stands for, j = 1 .. ``size``: float64 (size,).

    A point takes the envelope at the first true positive that reaches it, and recall 0 that of the very first. Whole
    numbers, to be divided by how many points there are, so that a perfect AP is 1 and not nearly so.
    """
    if protocol == "voc2012" or size == 0:
        return np.ones(size)
    if protocol == "voc2007":
        reached = -(np.arange(11) * -size // 10)  # the least j with j / size >= k / 10
    else:
        reached = np.searchsorted(np.arange(size + 1) / size, np.linspace(0, 1, 101))  # as pycocotools does
    return np.bincount(np.maximum(reached, 1) - 1, minlength=size).astype(np.float64)


def _absent_claimed(groups: Groups, match: Match, detections: Boxes, confident: float) -> np.ndarray:
    """Classes without countable ground truth that are claimed nevertheless: int64 (n, T)."""
    claimed = np.zeros(groups.num_images * groups.num_labels, bool)
    claimed[groups.alone_key[detections.score[groups.alone] >= confident]] = True
    counts = claimed.reshape(groups.num_images, groups.num_labels).sum(axis=1)
    counts = np.repeat(counts[:, None], match.num_thresholds, axis=1)
    nothing = groups.countable == 0
    if nothing.any():  # nothing but boxes to ignore: is every confident detection on one of them?
        claims = (detections.score[groups.detection] >= confident) & nothing[groups.group]
        wrong = np.repeat(claims[None], match.num_thresholds, axis=0)
        wrong[match.threshold, match.detection] = False
        threshold, detection = np.nonzero(wrong)
        threshold, group = np.unique(np.stack([threshold, groups.group[detection]]), axis=1)
        np.add.at(counts, (groups.image[group], threshold), 1)
    return counts
