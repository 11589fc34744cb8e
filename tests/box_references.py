"""What matching and AP mean, box by box: slow loops, pycocotools, and images to try them on."""

from __future__ import annotations

import contextlib
import copy
import io
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from l2d.data.samples.boxes import Boxes

# --- images ---------------------------------------------------------------------------------------------------------

_CORNERS = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 4), st.integers(1, 4)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)
_TARGET = st.tuples(_CORNERS, st.integers(0, 2), st.sampled_from(["", "", "", "ignore", "crowd"]))
_DETECTION = st.tuples(_CORNERS, st.integers(0, 2), st.sampled_from([0.2, 0.5, 0.6, 0.9]))
_IMAGE = st.tuples(st.lists(_TARGET, max_size=6), st.lists(_DETECTION, max_size=10))

#: Images of few pixels: IoU and scores tie, IoU lies on thresholds, boxes repeat, classes lack objects or detections.
SMALL_IMAGES = st.lists(_IMAGE, min_size=1, max_size=4).map(lambda images: as_boxes(images))


def as_boxes(images) -> tuple[Boxes, Boxes]:
    """Ground truth and detections from ``[([(corners, label, flag)], [(corners, label, score)])]``."""
    targets = [
        {
            "boxes": [box for box, _, _ in truth],
            "labels": [label for _, label, _ in truth],
            "ignore": [flag == "ignore" for _, _, flag in truth],
            "crowd": [flag == "crowd" for _, _, flag in truth],
        }
        for truth, _ in images
    ]
    detections = [
        {
            "boxes": [box for box, _, _ in found],
            "labels": [label for _, label, _ in found],
            "scores": [score for _, _, score in found],
        }
        for _, found in images
    ]
    return Boxes.from_images(targets), Boxes.from_images(detections)


def random_images(
    seed: int,
    images: int = 30,
    *,
    targets: tuple[int, int] = (0, 12),
    detections: tuple[int, int] = (0, 60),
    classes: int = 4,
    ignored: float = 0.0,
    crowds: float = 0.0,
) -> tuple[Boxes, Boxes]:
    """Ground truth, and detections most of which are a ground-truth box that has been moved."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(images):
        num_truth, num_found = (
            generator.integers(*targets, endpoint=True),
            generator.integers(*detections, endpoint=True),
        )
        corner, size = generator.uniform(0, 60, (num_truth, 2)), generator.uniform(5, 40, (num_truth, 2))
        truth = np.hstack([corner, corner + size])
        labels = generator.integers(0, classes, num_truth)
        corner, size = generator.uniform(0, 60, (num_found, 2)), generator.uniform(5, 40, (num_found, 2))
        found, found_labels = np.hstack([corner, corner + size]), generator.integers(0, classes, num_found)
        if num_truth:
            near = np.flatnonzero(generator.random(num_found) < 0.7)
            source = generator.integers(0, num_truth, len(near))
            found[near] = truth[source] + generator.normal(scale=2, size=(len(near), 4))
            found_labels[near] = np.where(generator.random(len(near)) < 0.9, labels[source], found_labels[near])
        flags = np.where(generator.random(num_truth) < ignored, "ignore", "")
        flags = np.where(generator.random(num_truth) < crowds, "crowd", flags)
        scores = generator.random(num_found)
        made.append((list(zip(truth, labels, flags, strict=True)), list(zip(found, found_labels, scores, strict=True))))
    return as_boxes(made)


# --- pycocotools ----------------------------------------------------------------------------------------------------


def pycocotools_evaluation(
    targets: Boxes, detections: Boxes, thresholds, cap: int, use_classes: bool = True
) -> COCOeval:
    """COCOeval after ``evaluate``. It knows no ignored boxes but crowds and those whose area is out of range."""
    labels = sorted({0, *targets.label.tolist(), *detections.label.tolist()})

    def coco(boxes: Boxes) -> COCO:
        made = COCO()
        corners, annotations = boxes.xyxy.astype(np.float64), []
        for row, (image, label) in enumerate(zip(boxes.image.tolist(), boxes.label.tolist(), strict=True)):
            x1, y1, x2, y2 = corners[row].tolist()
            entry = {"id": row + 1, "image_id": image, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            entry |= {"score": float(boxes.score[row]), "iscrowd": int(boxes.crowd[row])}
            annotations.append(entry | {"area": 100.0 if boxes.ignore[row] else 1.0})
        images, categories = [{"id": image} for image in range(len(boxes))], [{"id": label} for label in labels]
        made.dataset = {"images": images, "categories": categories, "annotations": annotations}
        made.createIndex()
        return made

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco(targets), coco(detections), "bbox")
        evaluation.params.iouThrs, evaluation.params.maxDets = np.asarray(thresholds), [cap]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 10]], ["small"]
        evaluation.params.useCats = int(use_classes)
        evaluation.evaluate()
    return evaluation


def pycocotools_ap(targets: Boxes, detections: Boxes, thresholds, cap: int = 100) -> np.ndarray:
    """AP of each image over its classes (n, T); NaN where pycocotools says -1 for all of them."""
    evaluation = pycocotools_evaluation(targets, detections, thresholds, cap)
    every, params = evaluation.evalImgs, copy.deepcopy(evaluation.params)
    evaluation._paramsEval = params
    ap = np.full((len(targets), len(thresholds)), np.nan)
    for image in range(len(targets)):
        params.imgIds, evaluation.evalImgs = [image], every[image :: len(targets)]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate(params)
        precision = evaluation.eval["precision"][:, :, :, 0, 0]  # thresholds, recalls, classes
        present = (precision > -1).all(axis=(0, 1))
        if present.any():
            ap[image] = precision[:, :, present].mean(axis=(1, 2))
    return ap


# --- loops ----------------------------------------------------------------------------------------------------------


def overlap(one: list[float], other: list[float], crowd: bool = False) -> float:
    """IoU of a detection with a ground-truth box, or its share that lies in a crowd."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    area, other_area = ((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return width * height / (area if crowd else area + other_area - width * height)


def best_first(rows, scores) -> list[int]:
    return sorted(rows, key=lambda row: -scores[row])  # stable


def coco_matches(truth: dict, found: dict, truths, founds, threshold: float) -> dict[int, int | None]:
    """Detection -> ground-truth box or None, for these rows of an image, in the order of scores."""
    taken, matches = set(), {}
    for d in best_first(founds, found["scores"]):
        matches[d] = None
        for ignored in (False, True):
            best = min(threshold, 1 - 1e-10)
            for t in truths:
                if truth["ignore"][t] != ignored or (t in taken and not truth["crowd"][t]):
                    continue
                value = overlap(found["boxes"][d], truth["boxes"][t], truth["crowd"][t])
                if value >= best:
                    best, matches[d] = value, t
            if matches[d] is not None:
                taken.add(matches[d])
                break
    return matches


def voc_matches(truth: dict, found: dict, truths, founds, threshold: float) -> dict[int, int | None]:
    """The same by the devkit's VOCevaldet: one look at the box with the greatest overlap."""
    taken, matches = set(), {}
    for d in best_first(founds, found["scores"]):
        greatest, nearest = 0.0, None
        for t in truths:
            value = overlap(found["boxes"][d], truth["boxes"][t])
            if value > greatest:
                greatest, nearest = value, t
        matches[d] = None
        if nearest is not None and greatest >= threshold and (truth["ignore"][nearest] or nearest not in taken):
            matches[d] = nearest
            taken.add(nearest)
    return matches


def curve_ap(right: list[bool], objects: int, protocol: str) -> float:
    """AP of detections in order of their scores, with exact fractions but for COCO's recall points."""
    points, hits = [], 0
    for rank, hit in enumerate(right, start=1):
        hits += hit
        points.append((Fraction(hits, objects), Fraction(hits, rank)))

    def envelope(enough) -> Fraction:
        return max((precision for recall, precision in points if enough(recall)), default=Fraction(0))

    if protocol == "coco":
        return float(sum(envelope(lambda r, x=x: float(r) >= x) for x in np.linspace(0, 1, 101)) / 101)
    if protocol == "voc2007":
        return float(sum(envelope(lambda r, k=k: r >= Fraction(k, 10)) for k in range(11)) / 11)
    return float(sum(envelope(lambda r, k=k: r >= Fraction(k, objects)) for k in range(1, objects + 1)) / objects)


def loop_ap(targets: Boxes, detections: Boxes, threshold, protocol, *, cap=None, confident=0.5) -> list[tuple]:
    """For each image: the AP of each class with countable ground truth, and how many other classes are claimed."""
    results = []
    for image in range(len(targets)):
        truth, found = plain(targets, image), plain(detections, image)
        aps, claimed = [], 0
        for label in sorted({*truth["labels"], *found["labels"]}):
            truths = [t for t, other in enumerate(truth["labels"]) if other == label]
            founds = [d for d, other in enumerate(found["labels"]) if other == label]
            founds = best_first(founds, found["scores"])[:cap]
            match = coco_matches if protocol == "coco" else voc_matches
            matches = match(truth, found, truths, founds, threshold)
            counted = {d: t for d, t in matches.items() if t is None or not truth["ignore"][t]}
            objects = sum(not truth["ignore"][t] for t in truths)
            if objects:
                aps.append(curve_ap([t is not None for t in counted.values()], objects, protocol))
            else:
                claimed += any(found["scores"][d] >= np.float32(confident) for d in counted)
        results.append((aps, claimed))
    return results


def plain(boxes: Boxes, image: int) -> dict[str, list]:
    """The boxes of one image as Python numbers."""
    return {name: values.tolist() for name, values in boxes.of(image).items()}
