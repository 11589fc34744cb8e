"""Raw costs of detections, per image: of the whole answer, or of its classes and of its places apart.

Ground truth with ``ignore`` (VOC's difficult boxes, COCO's crowds) neither has to be found nor counts against the
agent that finds it; the rest is called countable. The paper writes the cost as mAP, but a cost falls as the agent gets
better: 1 - mAP.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from l2d.data.costs.average_precision import BoxMatches, average_precision, detection_cost, match_any_class
from l2d.data.measures import smooth_l1
from l2d.data.samples.boxes import Boxes
from l2d.data.sources.table import Strict

Threshold = Annotated[float, Field(gt=0, le=1)]


class DetectionCost(Strict):
    """``[costs.map]``, in [0, 1]: one minus the mean AP of the image, over its classes and over IoU thresholds.

    * ``coco``: as pycocotools, over IoU 0.50:0.05:0.95.
    * ``voc2012``, ``voc2007``: as the VOC devkit from 2010 on, and until 2009; IoU 0.5.

    ``iou`` sets one threshold or several. ``max_detections`` is how many detections of an image and class are looked
    at, by default 100 for ``coco`` and all for the others.

    Classes that are not in the image are free, as in all these protocols. With ``strict`` each such class counts as one
    more with AP 0 if there is a detection of it with a score of at least ``confident`` that is not on a box to ignore.

    An image without countable ground truth has no AP: it costs 0 if no class is so claimed, else 1, ``strict`` or not.
    """

    kind: Literal["coco", "voc2007", "voc2012"] = "coco"
    """Which protocol, see above."""
    iou: Threshold | Annotated[list[Threshold], Field(min_length=1)] | None = None
    """IoU threshold, or several; the protocol's if not given."""
    strict: bool = False
    """Also charge for classes that are not in the image."""
    confident: float = 0.5
    """Score from which a detection claims a class."""
    max_detections: Annotated[int, Field(ge=1)] | None = None
    """Detections of an image and class that are looked at; 100 for `coco` and all for the others if not given."""

    def compute(self, detections: Boxes, targets: Boxes) -> np.ndarray:
        """Cost of the detections on each of n images: float32 (n,)."""
        result = average_precision(
            targets,
            detections,
            [self.iou] if isinstance(self.iou, float) else self.iou,
            self.kind,
            max_detections=self.max_detections,
            confident=self.confident,
        )
        return detection_cost(result, self.strict).astype(np.float32)


class _OfConfidentBoxes(Strict):
    """The matching that two costs share: of detections with a score of at least ``confident``, whatever their class."""

    iou: Threshold = 0.5
    """IoU from which a detection covers an object."""
    confident: float = 0.5
    """Score from which a detection counts."""

    def _match(self, detections: Boxes, targets: Boxes) -> BoxMatches:
        return match_any_class(targets, detections, self.iou, self.confident)


class ObjectClassCost(_OfConfidentBoxes):
    """``[costs.cla]`` of detections, in [0, 1]: the share of objects that are missed or whose class is wrong.

    Objects are the countable ground-truth boxes. Detections with a score of at least ``confident`` are matched to them
    as COCO does, but whatever their classes, at IoU ``iou``. An image without objects costs 1 if it has a confident
    detection that is not on a box to ignore, else 0.
    """

    kind: Literal["object_class"] = "object_class"
    """The one cost of this task."""

    def compute(self, detections: Boxes, targets: Boxes) -> np.ndarray:
        """Cost of the detections on each of n images: float32 (n,)."""
        match = self._match(detections, targets)
        wrong = np.ones(len(targets.label))
        found = np.flatnonzero(match.detection >= 0)
        wrong[found] = detections.label[match.detection[found]] != targets.label[found]
        unfounded = (detections.score >= self.confident) & (match.target < 0)
        otherwise = np.bincount(detections.image[unfounded], minlength=len(targets)) > 0
        return _mean_over_objects(wrong, targets, otherwise.astype(np.float64))


class ObjectBoxCost(_OfConfidentBoxes):
    """``[costs.reg]`` of detections: how far from the objects their boxes are, on average over the objects of an image.

    Objects and their detections are those of :class:`ObjectClassCost`, whatever their classes.

    * ``object_iou``: one minus the IoU, in [0, 1]; 1 for a missed object.
    * ``object_smooth_l1``: smooth L1 (of ``beta``) of each of the four sides' distances, those of left and right in
      widths of the object, those of top and bottom in heights; summed, and at most ``clamp``, which is also the cost
      of a missed object. With the default ``beta`` it turns linear at a tenth of the object's size.

    An image without objects costs 0.
    """

    kind: Literal["object_iou", "object_smooth_l1"] = "object_iou"
    """Which cost, see above."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Where smooth L1 turns from square to straight, in sizes of the object."""
    clamp: Annotated[float, Field(gt=0)] = 1.0
    """Largest cost, also that of a missed object."""

    def compute(self, detections: Boxes, targets: Boxes) -> np.ndarray:
        """Cost of the detections on each of n images: float32 (n,)."""
        match = self._match(detections, targets)
        if self.kind == "object_iou":
            cost = 1.0 - match.iou
        else:
            cost = np.full(len(targets.label), self.clamp)
            found = np.flatnonzero(match.detection >= 0)  # so they have an area to divide by
            offset = detections.xyxy[match.detection[found]] - targets.xyxy[found]
            offset /= np.tile(targets.size[found], 2)
            cost[found] = np.minimum(smooth_l1(offset, self.beta).sum(axis=1), self.clamp)
        return _mean_over_objects(cost, targets, np.zeros(len(targets)))


#: Task -> its cost, where answers are boxes.
DETECTION_COSTS: dict[str, type[DetectionCost] | type[ObjectClassCost] | type[ObjectBoxCost]] = {
    "cla": ObjectClassCost,
    "reg": ObjectBoxCost,
    "map": DetectionCost,
}


def _mean_over_objects(cost: np.ndarray, targets: Boxes, otherwise: np.ndarray) -> np.ndarray:
    """Mean of each ground-truth box's cost over the countable ones of its image: float32 (n,)."""
    image = targets.image[~targets.ignore]
    objects = np.bincount(image, minlength=len(targets))
    total = np.bincount(image, weights=cost[~targets.ignore], minlength=len(targets))
    return np.where(objects > 0, total / np.maximum(objects, 1), otherwise).astype(np.float32)
