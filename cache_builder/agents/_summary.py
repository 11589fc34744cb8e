"""What a detector makes of an image, in fixed width: the rejector's input where no other is at hand."""

from __future__ import annotations

import numpy as np

from l2d.data.samples.boxes import Boxes

CONFIDENCES = (0.05, 0.25, 0.5, 0.75)  # of which the summary of an answer counts the detections


def summary_of_detections(boxes: Boxes, area: np.ndarray, num_classes: int) -> np.ndarray:
    """An answer in fixed width: what the model itself makes of the image.

    Args:
        boxes: detections on n images.
        area: of each image in pixels, (n,).
        num_classes: of the dataset.

    Returns:
        float32 (n, 4 + 3 + classes): detections with a score of at least each of :data:`CONFIDENCES`; highest and mean
        score, and mean share of the image that a detection covers; the highest score of each class. 0 where there are
        none.
    """
    n, image = len(boxes), boxes.image
    counts = [np.bincount(image[boxes.score >= least], minlength=n) for least in CONFIDENCES]
    best = np.zeros((n, num_classes))
    np.maximum.at(best, (image, boxes.label), boxes.score)
    many = np.maximum(boxes.counts, 1)
    mean_score = np.bincount(image, boxes.score, minlength=n) / many
    sizes = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).prod(axis=1) / area[image]
    mean_size = np.bincount(image, sizes, minlength=n) / many
    return np.column_stack([*counts, best.max(axis=1), mean_score, mean_size, best]).astype(np.float32)
