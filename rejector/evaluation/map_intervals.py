"""How far the mAP of a system could be off for the images that happened to be drawn: a bootstrap over images.

An image's detections match its objects whatever other images there are, so matches are found once for each agent. A
draw then counts each image as often as it was drawn: of precision and recall only the sums change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from l2d.data.samples.boxes import Boxes

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU, COCO's
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # detections of an image and class that count
DRAWS = 500
AT_ONCE = 1 << 22  # numbers of a block of draws
EPSILON = np.spacing(1.0)


class Matches:
    """Detections of one agent on n images, matched with the objects as COCO does: greedily, by falling score.

    Attributes:
        image, label, score: of the detections that count, (m,), by image, within it by class, then by falling score.
        found: bool (thresholds, m): it is an object's. ignored: bool (thresholds, m): it is one to ignore.
    """

    def __init__(self, targets: Boxes, detections: Boxes):
        rows, found, ignored = [], [], []
        for image in range(len(targets)):
            truth = slice(targets.offsets[image], targets.offsets[image + 1])
            own = np.arange(detections.offsets[image], detections.offsets[image + 1])
            for label in np.unique(detections.label[own]):
                of_class = own[detections.label[own] == label]
                of_class = of_class[np.argsort(-detections.score[of_class], kind="stable")][:MOST]
                objects = np.arange(truth.start, truth.stop)[targets.label[truth] == label]
                objects = objects[np.argsort(targets.ignore[objects], kind="stable")]  # those to ignore come last
                hit, skip = _greedy(detections, of_class, targets, objects)
                rows.append(of_class)
                found.append(hit)
                ignored.append(skip)
        order = np.concatenate([np.zeros(0, np.int64), *rows])
        self.image, self.label, self.score = detections.image[order], detections.label[order], detections.score[order]
        empty = np.zeros((len(THRESHOLDS), 0), bool)
        self.found, self.ignored = np.concatenate([empty, *found], axis=1), np.concatenate([empty, *ignored], axis=1)


def _greedy(detections: Boxes, rows: np.ndarray, targets: Boxes, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of an image and class: detections by falling score (k,), objects (g,); found, ignored: bool (thresholds, k)."""
    found, ignored = (np.zeros((len(THRESHOLDS), len(rows)), bool) for _ in range(2))
    if not len(objects):
        return found, ignored
    overlap = _overlap(detections.xyxy[rows], detections.size[rows], targets, objects).tolist()
    ignore, crowd = targets.ignore[objects].tolist(), targets.crowd[objects].tolist()
    for level, threshold in enumerate(np.minimum(THRESHOLDS, 1 - 1e-10).tolist()):
        taken = [False] * len(objects)
        for place, row in enumerate(overlap):
            best, match = threshold, -1
            for number, iou in enumerate(row):
                if taken[number] and not crowd[number]:
                    continue
                if match >= 0 and not ignore[match] and ignore[number]:
                    break
                if iou >= best:
                    best, match = iou, number
            if match >= 0:
                taken[match] = True
                (ignored if ignore[match] else found)[level, place] = True
    return found, ignored


def _overlap(corners: np.ndarray, sizes: np.ndarray, targets: Boxes, objects: np.ndarray) -> np.ndarray:
    """IoU (k, g); with a crowd the share of the detection that lies in it."""
    other, other_size = targets.xyxy[objects], targets.size[objects]
    low = np.maximum(corners[:, None, :2], other[None, :, :2])
    high = np.minimum(corners[:, None, :2] + sizes[:, None], other[None, :, :2] + other_size[None])
    inner = np.clip(high - low, 0, None).prod(axis=2)
    area = sizes.prod(axis=1)[:, None]
    union = np.where(targets.crowd[objects][None], area, area + other_size.prod(axis=1)[None] - inner)
    return inner / np.maximum(union, 1e-300)


class ImageBootstrap:
    """mAP of systems made of some agents on n images, and how far it could be off.

    Args:
        targets: n images.
        answers: detections of each agent on them.
        groups: images of one group are drawn together, int (n,); None: each alone.
    """

    def __init__(self, targets: Boxes, answers: Sequence[Boxes], groups: np.ndarray | None = None, draws: int = DRAWS):
        self.matches = [Matches(targets, answer) for answer in answers]
        self.classes = np.unique(targets.label[~targets.ignore])
        counted = ~targets.ignore
        self.objects = np.zeros((len(self.classes), len(targets)))  # that have to be found, of each class and image
        np.add.at(self.objects, (np.searchsorted(self.classes, targets.label[counted]), targets.image[counted]), 1)
        self._images, self._draws = len(targets), draws
        self._groups = np.arange(len(targets)) if groups is None else np.unique(groups, return_inverse=True)[1]

    @cached_property
    def weights(self) -> np.ndarray:
        """How often each image was drawn, (draws, n); the same draws for all systems."""
        count = int(self._groups.max()) + 1
        generator = np.random.default_rng(0)
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=self._draws)
        return drawn[:, self._groups].astype(np.float64)

    def value(self, chosen: np.ndarray) -> float:
        """mAP where ``chosen`` (n,) says which agent answers an image."""
        return float(self._map(chosen, np.ones((1, self._images)))[0])

    def by_class(self, chosen: np.ndarray) -> dict[int, float]:
        """AP of each class that has objects."""
        found = self._by_class(chosen, np.ones((1, self._images)))
        return {int(label): float(precision[0]) for label, precision, _ in found}

    def interval(self, chosen: np.ndarray) -> tuple[float, float]:
        """95 % interval for the mAP of all images like these: the basic bootstrap, twice the mAP less the percentiles.

        A draw's mAP is too high, since repeated images agree with each other, as the mAP of few images itself is; the
        percentiles would add one to the other. On made-up images 80 to 88 of 100 such intervals hold the mAP of all
        images, and 60 to 87 of percentiles (``benchmarks/map_intervals.py``): none sees all of what few images flatter.
        """
        found = self._map(chosen, self.weights)
        low, high = 2 * self.value(chosen) - np.nanquantile(found, [0.975, 0.025])
        return max(float(low), 0.0), min(float(high), 1.0)

    def _map(self, chosen: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """mAP of each draw (draws,), over the classes that it has objects of; NaN without any."""
        total, classes = np.zeros(len(weights)), np.zeros(len(weights))
        for _, precision, objects in self._by_class(chosen, weights):
            total += np.where(objects > 0, precision, 0.0)
            classes += objects > 0
        return np.where(classes > 0, total / np.maximum(classes, 1), np.nan)

    def _by_class(self, chosen: np.ndarray, weights: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Each class, its AP in each draw, and how many objects of it each draw has."""
        parts = [match.image[chosen[match.image] == agent] for agent, match in enumerate(self.matches)]
        keep = [chosen[match.image] == agent for agent, match in enumerate(self.matches)]
        image = np.concatenate(parts)
        label, score = (
            np.concatenate([getattr(match, name)[rows] for match, rows in zip(self.matches, keep, strict=True)])
            for name in ("label", "score")
        )
        found, ignored = (
            np.concatenate(
                [getattr(match, name)[:, rows] for match, rows in zip(self.matches, keep, strict=True)], axis=1
            )
            for name in ("found", "ignored")
        )
        order = np.lexsort((image, -score))
        image, label, found, ignored = image[order], label[order], found[:, order], ignored[:, order]
        for number, name in enumerate(self.classes):
            objects = weights @ self.objects[number]
            mine = label == name
            yield name, _precision(weights[:, image[mine]], found[:, mine], ignored[:, mine], objects), objects


def _precision(weights: np.ndarray, found: np.ndarray, ignored: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Mean precision over COCO's recalls and thresholds, of each draw.

    Args:
        weights: how often each detection was drawn, by falling score (draws, k).
        found, ignored: (thresholds, k).
        objects: to be found, (draws,).
    """
    result = np.zeros(len(weights))
    if not found.shape[1]:
        return result
    for start in range(0, len(weights), step := max(1, AT_ONCE // found.shape[1])):
        block, wanted = weights[start : start + step], np.maximum(objects[start : start + step], 1e-300)
        for hit, skip in zip(found, ignored, strict=True):
            right = np.cumsum(block * hit, axis=1)
            wrong = np.cumsum(block * ~(hit | skip), axis=1)
            precision = right / (right + wrong + EPSILON)
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recall = right / wanted[:, None]
            for row, (reached, best) in enumerate(zip(recall, precision, strict=True)):
                place = np.searchsorted(reached, RECALLS, side="left")
                inside = place < len(best)
                result[start + row] += best[place[inside]].sum() / len(RECALLS)
    return result / len(THRESHOLDS)
