#!/usr/bin/env bash
# torchmetrics 1.9.0 keeps the scores of detections in 32 bits: 0.9 and 0.9 + 1e-9 tie, and the order of the detections
# decides. Expected of the same input in pycocotools 2.0.11, which keeps 64 bits: mAP 1, since the right box has the
# higher score. Seen: mAP 0.5 with the wrong box first, though the tensor given is float64.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torchmetrics==1.9.0" "torch>=2.11" "torchvision>=0.26" "pycocotools==2.0.11" "numpy<3"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torchmetrics.detection import MeanAveragePrecision

right, wrong = [10.0, 10.0, 30.0, 30.0], [60.0, 60.0, 80.0, 80.0]
metric = MeanAveragePrecision()
scores = torch.tensor([0.9, 0.9 + 1e-9], dtype=torch.float64)
metric.update(
    [{"boxes": torch.tensor([wrong, right]), "scores": scores, "labels": torch.tensor([1, 1])}],
    [{"boxes": torch.tensor([right]), "labels": torch.tensor([1])}],
)
found = float(metric.compute()["map"])
print("mAP", found, "(1 in 64 bits)")
assert scores[0] < scores[1] and abs(found - 0.5) < 1e-6, found
PYTHON
