#!/usr/bin/env bash
# mean-average-precision 2024.1.5.0 (PyPI) adds a pixel to each width and height although its boxes are given by corners,
# and it divides by the number of classes it was told of, also where a class has neither objects nor detections.
# Valid input: one object 3 x 3 and one detection 3 x 1.2 on it (IoU 0.4); IoU threshold 0.5. Expected AP: 0.
# Seen: found (IoU 4 * 2.2 / (4 * 4) = 0.55), and the mean over 3 classes of which 2 do not occur: 1/3.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "mean-average-precision==2024.1.5.0" "numpy<2.4" "pandas<3"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from mean_average_precision import MetricBuilder

def measure(detection, classes):
    metric = MetricBuilder.build_evaluation_metric("map_2d", async_mode=False, num_classes=classes)
    truth = np.array([[10, 10, 13, 13, 0, 0, 0]], float)
    metric.add(np.array([[*detection, 0, 0.5]], float), truth)
    return float(metric.value(iou_thresholds=0.5)["mAP"])

short, perfect = measure((10, 10, 13, 11.2), 1), measure((10, 10, 13, 13), 3)
print("IoU 0.4 at threshold 0.5: AP", short, "- one class of three, found: mAP", perfect)
assert abs(short - 1) < 1e-6 and abs(perfect - 1 / 3) < 1e-6
PYTHON
