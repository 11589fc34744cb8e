"""COCO's mAP of detections on a set of images, which pools them: it is not the mean of the per-image AP of costs.

Computed by faster-coco-eval, whose figures are pycocotools'.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from l2d.data.samples.boxes import Boxes


def system_map(targets: Boxes, detections: Boxes, ids: Sequence[str] = ()) -> dict[str, float]:
    """COCO's mAP of detections on n images.

    Of detections with equal scores those of the image with the lower id come first, as in pycocotools, which sorts the
    images; within an image those that the answer names first. Ids that are whole numbers count as numbers.

    Args:
        targets: ground truth; boxes to ignore neither have to be found nor count against what finds them.
        detections: on the same images; the 100 best of each image and class count.
        ids: of the n images; if left out, images are in the order given.

    Returns:
        ``map``, the mean over IoU 0.50:0.05:0.95 and the classes that occur, and ``map_50``; nothing where no image has
        ground truth that counts.
    """
    if targets.ignore.all():
        return {}
    from faster_coco_eval import COCO, COCOeval_faster

    if len(ids):
        order = np.array(sorted(range(len(ids)), key=lambda image: in_order(ids[image])))
        targets, detections = targets[order], detections[order]
    classes = sorted(set(targets.label.tolist()) | set(detections.label.tolist()))
    truth, found = COCO(), COCO()
    for coco, boxes in ((truth, targets), (found, detections)):
        coco.dataset = {
            "images": [{"id": image} for image in range(len(boxes))],
            "categories": [{"id": label} for label in classes],
            "annotations": _annotations(boxes),
        }
        coco.createIndex()
    evaluation = COCOeval_faster(truth, found, iouType="bbox", print_function=lambda *_: None)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, _LARGEST_AREA]], ["all"]
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]  # (thresholds, recalls, classes); -1 for a class not there
    present = (precision > -1).all(axis=(0, 1))
    return {"map": float(precision[:, :, present].mean()), "map_50": float(precision[0][:, present].mean())}


def in_order(sample_id: str) -> tuple:
    """What a sample is sorted by: its set first, as in ``train/17``, then its number, or its text if it has none."""
    origin, _, name = sample_id.rpartition("/")
    number = name.isascii() and name.isdigit()
    return (origin, 0, int(name), name) if number else (origin, 1, 0, name)


def ranks(ids: Sequence[str]) -> np.ndarray:
    """The place of each of n images in that order, int (n,)."""
    rank = np.empty(len(ids), np.int64)
    rank[sorted(range(len(ids)), key=lambda image: in_order(ids[image]))] = np.arange(len(ids))
    return rank


_LARGEST_AREA = 1e10


def _annotations(boxes: Boxes) -> list[dict]:
    """In COCO's form. COCO knows no difficult boxes, but ignores those whose area is out of range."""
    area = np.where(boxes.ignore & ~boxes.crowd, 10 * _LARGEST_AREA, boxes.size.prod(axis=1))
    columns = (boxes.image, boxes.label, np.hstack([boxes.xyxy[:, :2], boxes.size]), area, boxes.crowd, boxes.score)
    names = ("image_id", "category_id", "bbox", "area", "iscrowd", "score")
    rows = zip(*(values.tolist() for values in columns), strict=True)
    return [dict(zip(names, row, strict=True), id=position) for position, row in enumerate(rows, start=1)]
