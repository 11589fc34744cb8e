"""Per-image AP of 2000 images: ours, pycocotools image by image, and fast COCO evaluators used as cleverly as we can.

    python benchmarks/average_precision.py [--rounds 5]

Every candidate turns the same flat arrays into the AP of each image (mean over its classes and IoU 0.50:0.05:0.95).
Building its input is part of its time, and its values have to be ours. Fast evaluators get one image in which each
(image, class) pair that has ground truth is a category of its own, so that their AP of a category is what is wanted,
and neither other areas nor other limits of detections. They run on as many threads as they like, ours on one. Of
vernier, hotcoco and ultrafast-pycocotools those that are installed take part. Image by image, pycocotools gets the
first 60 images and is scaled. Ratios are taken within a round; the table shows their medians and ranges.

The table of README.md had vernier 0.5.4, hotcoco 1.3.0, ultrafast-pycocotools 0.1.14, faster-coco-eval 1.8.0 and
pycocotools 2.0.11, on numpy 2.4.6.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from l2d.data.costs.average_precision import average_precision
from l2d.data.samples.boxes import Boxes

IMAGES, LOOPED = 2000, 60
SIZE = 500
BASE = {"targets": (3, 20), "detections": (20, 100), "classes": 20, "crowds": 0.0}
CASES = {
    "base": {},
    "80 classes": {"classes": 80},
    "100-300 detections": {"detections": (100, 300)},
    "20-100 objects": {"targets": (20, 100)},
    "1 class": {"classes": 1},
    "a tenth are crowds": {"crowds": 0.1},
}


def arrays(targets: tuple[int, int], detections: tuple[int, int], classes: int, crowds: float) -> tuple[dict, dict]:
    """Fields of :class:`Boxes` for ground truth and detections: a good one near each object, duplicates, and noise."""
    generator = np.random.default_rng(0)
    num_targets = generator.integers(*targets, IMAGES, endpoint=True)
    num_detections = generator.integers(*detections, IMAGES, endpoint=True)
    image_t, image_d = (np.repeat(np.arange(IMAGES), counts) for counts in (num_targets, num_detections))
    offsets_t, offsets_d = (np.cumsum([0, *counts]) for counts in (num_targets, num_detections))

    def corners(count: int) -> np.ndarray:
        sides = np.exp(generator.normal(np.log(80), 0.6, (count, 2))).clip(8, 0.9 * SIZE)
        start = generator.random((count, 2)) * (SIZE - sides)
        return np.hstack([start, start + sides])

    of_image = np.argsort(generator.random((IMAGES, classes)), axis=1)  # a few classes for each image
    few = np.minimum(generator.poisson(2.9, IMAGES) + 1, classes)
    truth, label_t = (
        corners(len(image_t)),
        of_image[image_t, (generator.random(len(image_t)) * few[image_t]).astype(int)],
    )
    crowd = generator.random(len(image_t)) < crowds

    place = np.arange(len(image_d)) - offsets_d[image_d]
    good = (place < num_targets[image_d]) & (generator.random(len(image_d)) < 0.93)
    noise = ~good & (generator.random(len(image_d)) < 0.6)
    source = (generator.random(len(image_d)) * num_targets[image_d]).astype(int)
    source = offsets_t[image_d] + np.where(good, place, source)
    sides = np.tile(truth[source, 2:] - truth[source, :2], 2)
    moved = truth[source] + generator.normal(size=sides.shape) * sides * np.where(good, 0.07, 0.2)[:, None]
    found = np.where(noise[:, None], corners(len(image_d)), moved)
    found = np.hstack([np.minimum(found[:, :2], found[:, 2:]), np.maximum(found[:, :2], found[:, 2:]) + 1])
    wrong = noise | (generator.random(len(image_d)) < 0.06)
    label_d = np.where(wrong, generator.integers(0, classes, len(image_d)), label_t[source])
    score = np.where(good, generator.beta(5, 3, len(image_d)), generator.beta(1.5, 5, len(image_d)))
    shuffled = np.lexsort((generator.random(len(image_d)), image_d))

    def fields(offsets, xyxy, label, score, crowd) -> dict[str, np.ndarray]:
        return {
            "offsets": offsets.astype(np.int64),
            "xyxy": xyxy.astype(np.float32),
            "label": label.astype(np.int32),
            "score": score.astype(np.float32),
            "ignore": crowd,
            "crowd": crowd,
        }

    return (
        fields(offsets_t, truth, label_t, np.ones(len(truth)), crowd),
        fields(offsets_d, found[shuffled], label_d[shuffled], score[shuffled], np.zeros(len(found), bool)),
    )


def ours(targets: dict, detections: dict) -> np.ndarray:
    return average_precision(Boxes(**targets), Boxes(**detections)).ap.mean(axis=1)


# --- the fast evaluators: each (image, class) a category ------------------------------------------------------------


def as_categories(targets: dict, detections: dict) -> tuple[np.ndarray, dict, dict]:
    """Image of each category, and flat columns of boxes: category from 1, xywh, score, crowd. Others are left out."""
    columns, keys = [], []
    for boxes in (targets, detections):
        image = np.repeat(np.arange(IMAGES), np.diff(boxes["offsets"]))
        keys.append(image * 1000 + boxes["label"])
        xyxy = boxes["xyxy"].astype(np.float64)
        xywh = np.hstack([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]])
        columns.append({"xywh": xywh, "score": boxes["score"].astype(np.float64), "crowd": boxes["crowd"]})
    known, category = np.unique(keys[0], return_inverse=True)
    columns[0]["category"] = category + 1
    position = np.searchsorted(known, keys[1]).clip(max=len(known) - 1)
    there = known[position] == keys[1]
    columns[1] = {name: values[there] for name, values in columns[1].items()} | {"category": position[there] + 1}
    return known // 1000, *columns


def matrix(found: dict) -> np.ndarray:
    """Detections as ``loadRes`` takes them: image, x, y, width, height, score, category."""
    ones = np.ones(len(found["score"]))
    return np.column_stack([ones, found["xywh"], found["score"], found["category"]])


def dataset(truth: dict, num_categories: int) -> dict:
    """Ground truth as COCO's JSON."""
    area = truth["xywh"][:, 2] * truth["xywh"][:, 3]
    rows = zip(*(truth[k].tolist() for k in ("category", "xywh", "crowd")), area.tolist(), strict=True)
    return {
        "images": [{"id": 1, "width": SIZE, "height": SIZE}],
        "categories": [{"id": category, "name": str(category)} for category in range(1, num_categories + 1)],
        "annotations": [
            {"id": row, "image_id": 1, "category_id": category, "bbox": box, "iscrowd": int(crowd), "area": area}
            for row, (category, box, crowd, area) in enumerate(rows, start=1)
        ],
    }


def of_images(precision: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Mean over the categories of each image from (thresholds, recalls, categories, areas, limits)."""
    ap = precision[:, :, :, 0, -1].mean(axis=(0, 1))
    there = ap > -1  # not where there are crowds alone
    counts = np.bincount(image[there], minlength=IMAGES)
    total = np.bincount(image[there], weights=ap[there], minlength=IMAGES)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def evaluated(evaluation) -> np.ndarray:
    """Precision from an evaluator with pycocotools' interface, for all areas together and 100 detections."""
    params = evaluation.params
    params.areaRng, params.areaRngLbl, params.maxDets = [[0, 1e10]], ["all"], [100]
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])


def faster_coco_eval(targets: dict, detections: dict) -> np.ndarray:
    from faster_coco_eval import COCO, COCOeval_faster

    image, truth, found = as_categories(targets, detections)
    coco = COCO(dataset(truth, len(image)))
    return of_images(evaluated(COCOeval_faster(coco, coco.loadRes(matrix(found)), "bbox")), image)


def hotcoco(targets: dict, detections: dict) -> np.ndarray:
    from hotcoco import COCO, COCOeval

    image, truth, found = as_categories(targets, detections)
    coco = COCO(dataset(truth, len(image)))
    return of_images(evaluated(COCOeval(coco, coco.load_res(matrix(found)), "bbox")), image)


def ultrafast_pycocotools(targets: dict, detections: dict) -> np.ndarray:
    from ultrafast_pycocotools import COCO, COCOeval

    image, truth, found = as_categories(targets, detections)
    coco = COCO(dataset(truth, len(image)), verbose=False)
    return of_images(evaluated(COCOeval(coco, coco.loadRes(matrix(found)), "bbox")), image)


def vernier(targets: dict, detections: dict) -> np.ndarray:
    from vernier._core import Breakdown, CocoDataset, evaluate_bbox_grid  # below its classes, so at its fastest

    image, truth, found = as_categories(targets, detections)
    ids = np.arange(1, len(truth["category"]) + 1)
    annotations = {
        "id": ids,
        "image_id": np.ones_like(ids),
        "category_id": truth["category"],
        "bbox": truth["xywh"],
        "area": truth["xywh"][:, 2] * truth["xywh"][:, 3],
        "iscrowd": truth["crowd"],
    }
    images = {"id": np.array([1]), "width": np.array([SIZE]), "height": np.array([SIZE])}
    categories = [{"id": category, "name": str(category)} for category in range(1, len(image) + 1)]
    grid = evaluate_bbox_grid(
        CocoDataset.from_arrays(images, annotations, categories),
        matrix(found),
        parity_mode="strict",
        max_dets_per_image=100,
        use_cats=True,
        area_ranges=Breakdown.from_ranges("area", [("all", 0, 1e10)]),
    )
    return of_images(grid.accumulate([100]).precision, image)


# --- pycocotools, image by image ------------------------------------------------------------------------------------


def pycocotools(targets: dict, detections: dict, *, tuned: bool) -> np.ndarray:
    """AP of the first images; ``tuned`` leaves out areas and limits that were not asked for."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = Boxes(**targets), Boxes(**detections)
    ap = np.full(IMAGES, np.nan)
    for image in range(LOOPED):
        boxes = [part.of(image) for part in (truth, found)]
        labels = sorted(set(boxes[0]["labels"].tolist()) | set(boxes[1]["labels"].tolist()))
        pair = []
        for part in boxes:
            coco = COCO()
            xyxy = part["boxes"].astype(np.float64)
            xywh = np.hstack([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]]).tolist()
            rows = zip(part["labels"].tolist(), xywh, part["scores"].tolist(), part["crowd"].tolist(), strict=True)
            coco.dataset = {
                "images": [{"id": 1}],
                "categories": [{"id": label} for label in labels],
                "annotations": [
                    {"id": row, "image_id": 1, "category_id": label, "bbox": box, "score": score}
                    | {"iscrowd": int(crowd), "area": box[2] * box[3]}
                    for row, (label, box, score, crowd) in enumerate(rows, start=1)
                ],
            }
            coco.createIndex()
            pair.append(coco)
        evaluation = COCOeval(*pair, "bbox")
        if tuned:
            precision = evaluated(evaluation)
        else:
            evaluation.evaluate()
            evaluation.accumulate()
            precision = evaluation.eval["precision"]
        precision = precision[:, :, :, 0, -1]
        there = precision[0, 0] > -1
        if there.any():
            ap[image] = precision[:, :, there].mean()
    return ap


def candidates() -> dict[str, Callable]:
    fast = {"vernier": vernier, "hotcoco": hotcoco, "ultrafast-pycocotools": ultrafast_pycocotools}
    chosen = {"ours": ours}
    for name, run in fast.items():
        if importlib.util.find_spec(name.replace("-", "_")) is None:
            print(f"{name} is not installed and takes no part.")
        else:
            chosen[name] = run
    return chosen | {
        "faster-coco-eval": faster_coco_eval,
        "pycocotools, tuned": lambda *given: pycocotools(*given, tuned=True),
        "pycocotools": lambda *given: pycocotools(*given, tuned=False),
    }


def seconds(run: Callable, given: tuple[dict, dict], expected: np.ndarray) -> float:
    """Time for all images, ours the median of five because it is so short; the answer has to be ours."""
    times: list[float] = []
    while len(times) < (5 if run is ours else 1):
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            ap = run(*given)
        times.append(time.perf_counter() - start)
    taken = statistics.median(times)
    looped = slice(LOOPED) if np.isnan(ap[LOOPED:]).all() else slice(None)
    np.testing.assert_allclose(ap[looped], expected[looped], rtol=0, atol=1e-9)
    return taken * IMAGES / len(ap[looped])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    chosen = candidates()
    peers = [name for name in chosen if name != "ours"]
    print("Times slower than ours, and the range over rounds;", ", ".join(map(version, peers[:-1])))
    print()
    print("| case | boxes / image | detections | classes | AP | ours, images/s |", " | ".join(peers), "|")
    print("| --- |" + " ---: |" * (5 + len(peers)))
    ratios: dict[str, float] = {}
    for case, changes in CASES.items():
        given = arrays(**{**BASE, **changes})
        expected = ours(*given)
        rounds = []
        for _ in range(options.rounds):
            rounds.append({name: seconds(run, given, expected) for name, run in chosen.items()})
        cells = []
        for name in peers:
            slower = [taken[name] / taken["ours"] for taken in rounds]
            cells.append(f"{statistics.median(slower):.3g} ({min(slower):.3g}-{max(slower):.3g})")
            ratios[f"{name}, {case}"] = round(statistics.median(slower), 2)
        speed = IMAGES / statistics.median(taken["ours"] for taken in rounds)
        per_image = [len(boxes["label"]) / IMAGES for boxes in given]
        classes = average_precision(Boxes(**given[0]), Boxes(**given[1])).num_classes_present.mean()
        facts = f"{per_image[0]:.1f} | {per_image[1]:.0f} | {classes:.1f} | {np.nanmean(expected):.3f} | {speed:,.0f}"
        print(f"| {case} | {facts} |", " | ".join(cells), "|", flush=True)
    print(json.dumps(ratios))


def version(name: str) -> str:
    package = name.split(",")[0]
    return f"{package} {importlib.metadata.version(package)}"


if __name__ == "__main__":
    main()
