"""A COCO folder from build to report: its recorded facts are more than input columns."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

RECIPE = """
[dataset]
kind = "coco"
path = "."
[dataset.sets]
train = { annotations = "train.json", images = "." }
test = { annotations = "test.json", images = "." }
[costs.map]
kind = "coco"
[[agents]]
name = "all"
kind = "detections"
file = "all.json"
features = ["detections"]
[[agents]]
name = "half"
kind = "detections"
file = "half.json"
"""


def _part(folder, name: str, ids: range) -> None:
    for i in ids:
        Image.new("RGB", (100, 80), (i, 0, 0)).save(folder / f"{i}.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 80} for i in ids]
    box = {"category_id": 1, "area": 400, "iscrowd": 0}
    annotations = [{"id": i, "image_id": i, "bbox": [10 + i, 10, 20, 20], **box} for i in ids]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (folder / name).write_text(json.dumps(content))


def _l2d(folder, *arguments: str) -> str:
    command = [sys.executable, "-m", "l2d.cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout


@pytest.mark.timeout(300)
def test_a_coco_folder_goes_all_the_way(tmp_path):
    _part(tmp_path, "train.json", range(1, 41))
    _part(tmp_path, "test.json", range(41, 61))
    found = [
        {"image_id": i, "category_id": 1, "bbox": [10 + i, 10, 20, 20], "score": 0.5 + i / 200} for i in range(1, 61)
    ]
    (tmp_path / "all.json").write_text(json.dumps(found))
    (tmp_path / "half.json").write_text(json.dumps(found[::2]))
    (tmp_path / "r.toml").write_text(RECIPE)
    _l2d(tmp_path, "build", "r.toml", "--out", "c")
    _l2d(tmp_path, "audit", "c")
    _l2d(tmp_path, "train", "c", "--out", "run", "--method", "multi-task", "--epochs", "1")
    result = json.loads(_l2d(tmp_path, "evaluate", "run", "--format", "json"))
    assert result["agents"]["all"]["map"] == 1
    assert result["agents"]["half"]["mean_cost"] == 0.5
    _l2d(tmp_path, "report", "run", "--out", "report.html")
    _l2d(tmp_path, "route", "run", "c", "--out", "allocations.csv")
    assert len((tmp_path / "allocations.csv").read_text().splitlines()) == 61
