"""AP of each image by one compiled loop, where l2d was installed with a C compiler at hand.

The numbers are those of :mod:`l2d.data.costs.average_precision` in NumPy to the last bit. NumPy goes over memory once
for each step; the loop in ``image_ap.pyx`` goes over the boxes of an image once, while they are in the processor's
cache. Without a compiler the installation leaves it out, and NumPy does the work.
"""

from __future__ import annotations

import numpy as np

from l2d.data.costs.box_matching import checked_labels
from l2d.data.samples.boxes import Boxes

try:
    from l2d.data.costs.image_ap import over_images
except ImportError:
    over_images = None

RECALLS = np.linspace(0, 1, 101)  # pycocotools' points, bit for bit
PROTOCOLS = {"coco": 0, "voc2007": 1, "voc2012": 2}
ALL = np.iinfo(np.int64).max


def available() -> bool:
    """Whether the loop was compiled."""
    return over_images is not None


def image_ap(
    targets: Boxes,
    detections: Boxes,
    limits: np.ndarray,
    protocol: str,
    max_detections: int | None,
    confident: float,
) -> dict[str, np.ndarray]:
    """The fields of :class:`l2d.data.costs.average_precision.ImageAP`, of n images.

    Args:
        limits: what an IoU has to reach, float64 (T,).
        protocol: one of :data:`PROTOCOLS`.

    Raises:
        ValueError: see :func:`l2d.data.costs.box_matching.checked_labels`.
    """
    *labels, num_labels = checked_labels(targets, detections)
    ap = np.empty((len(targets), len(limits)))
    present = np.empty(len(targets), np.int64)
    claimed = np.empty((len(targets), len(limits)), np.int64)
    over_images(
        np.ascontiguousarray(targets.offsets, np.int64),
        np.ascontiguousarray(labels[0], np.int64),
        *(np.ascontiguousarray(values, np.float64) for values in (targets.xyxy, targets.size)),
        *(np.ascontiguousarray(values, bool).view(np.uint8) for values in (targets.ignore, targets.crowd)),
        np.ascontiguousarray(detections.offsets, np.int64),
        np.ascontiguousarray(labels[1], np.int64),
        *(np.ascontiguousarray(values, np.float64) for values in (detections.xyxy, detections.size, detections.score)),
        num_labels,
        limits,
        limits.min(),
        RECALLS,
        PROTOCOLS[protocol],
        ALL if max_detections is None else max_detections,
        float(detections.score.dtype.type(confident)),  # compared in the precision of the scores
        ap,
        present,
        claimed,
    )
    return {"ap": ap, "num_classes_present": present, "num_absent_claimed": claimed}
