#!/usr/bin/env bash
# globox 2.9.0 beside pycocotools 2.0.11: AP of small objects (ap_small, ap_medium and their recalls too). COCO ignores a
# detection that lies on an object of another size. globox first looks at objects of the size asked for, with any overlap
# above 0, and stops there: a detection that lies on a large object and touches a small one counts as wrong.
# Valid input: a small object (400 pixels) and a large one (1,200), each found, the boxes overlap a little.
# Expected: 0.8, as pycocotools says (one detection is 930 pixels, right up to an IoU of 0.775). Seen: 0.5. AP over all
# sizes agrees. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "globox==2.9.0" "pycocotools==2.0.11" "numpy==2.4.6"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import contextlib
import io

from globox import Annotation, AnnotationSet, BoundingBox, COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

objects = [(100, 100, 120, 120), (110, 100, 150, 130)]
detections = [((112, 100, 143, 130), 0.9), ((100, 100, 120, 120), 0.8)]


def box(corners, score=None):
    left, top, right, bottom = corners
    return BoundingBox(label="a", xmin=left, ymin=top, xmax=right, ymax=bottom, confidence=score)


def coco(corners):
    left, top, right, bottom = corners
    return [left, top, right - left, bottom - top]


truth = AnnotationSet([Annotation("1", (200, 200), [box(corners) for corners in objects])])
found = AnnotationSet([Annotation("1", (200, 200), [box(corners, score) for corners, score in detections])])
theirs = COCOEvaluator(ground_truths=truth, predictions=found)

with contextlib.redirect_stdout(io.StringIO()):
    reference = COCO()
    annotations = [
        {"id": k + 1, "image_id": 1, "category_id": 1, "bbox": coco(c), "area": coco(c)[2] * coco(c)[3], "iscrowd": 0}
        for k, c in enumerate(objects)
    ]
    reference.dataset = {
        "info": {},
        "images": [{"id": 1, "width": 200, "height": 200}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": annotations,
    }
    reference.createIndex()
    results = [{"image_id": 1, "category_id": 1, "bbox": coco(c), "score": s} for c, s in detections]
    evaluation = COCOeval(reference, reference.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()

print(f"AP of small objects: globox {theirs.ap_small():.3f}, pycocotools {evaluation.stats[3]:.3f}")
print(f"AP of all objects:   globox {theirs.ap():.3f}, pycocotools {evaluation.stats[0]:.3f}")
assert abs(evaluation.stats[3] - 0.8) < 1e-9
assert abs(theirs.ap_small() - 0.5) < 1e-9, "globox answers otherwise now"
assert abs(theirs.ap() - evaluation.stats[0]) < 1e-9
PYTHON
