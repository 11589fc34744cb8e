"""How far the mAP of a system could be off for the images that happened to be drawn: a bootstrap over images.

An image's detections match its objects whatever other images there are, so matches are found once for each agent. A
draw then counts each image as often as it was drawn: of precision and recall only the sums change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from l2d.data.costs.class_precision import EPSILON, RECALLS, judge
from l2d.data.samples.boxes import Boxes

DRAWS = 500
AT_ONCE = 1 << 22  # numbers of a block of draws


class ImageBootstrap:
    """mAP of systems made of some agents on n images, and how far it could be off.

    Args:
        targets: n images.
        answers: detections of each agent on them.
        groups: images of one group are drawn together, int (n,); None: each alone.
        rank: of images, (n,): of equal scores the image of the lower rank comes first; None: as they are.
    """

    def __init__(
        self,
        targets: Boxes,
        answers: Sequence[Boxes],
        groups: np.ndarray | None = None,
        rank: np.ndarray | None = None,
        draws: int = DRAWS,
    ):
        self.matches = [judge(targets, answer) for answer in answers]
        self._rank = np.arange(len(targets)) if rank is None else rank
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
        label, score, row = (
            np.concatenate([getattr(match, name)[rows] for match, rows in zip(self.matches, keep, strict=True)])
            for name in ("label", "score", "row")
        )
        found, ignored = (
            np.concatenate(
                [getattr(match, name)[:, rows] for match, rows in zip(self.matches, keep, strict=True)], axis=1
            )
            for name in ("found", "ignored")
        )
        order = np.lexsort((row, self._rank[image], -score))
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
    return result / len(found)
