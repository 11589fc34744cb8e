"""Every kind of dataset with every input that it can give a rejector: build, train, evaluate, report and route.

Parts of this are tested elsewhere, number by number. Here the command line is followed from end to end on each.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image

from l2d.data.sources.chexpert import COLUMNS, FINDINGS
from l2d.data.sources.cifar10 import CLASSES
from l2d.data.sources.mimic4.generator import write_mimic4

pytestmark = pytest.mark.slow

COSTS = '\n[costs.cla]\nkind = "zero_one"\n'
MAP = '\n[costs.map]\nkind = "coco"\n'


def agents(*entries: tuple[str, str, str]) -> str:
    return "".join(f'[[agents]]\nname = "{name}"\nkind = "{kind}"\n{keys}\n' for name, kind, keys in entries)


SEER = """
def ask(batch):
    return {"cla": batch.target_cla}

def first(batch):
    return {"cla": [0] * len(batch.ids)}
"""
TWO = agents(("first", "python", 'file = "seer.py"\nfunction = "first"'), ("seer", "python", 'file = "seer.py"'))


def table(folder: Path) -> str:
    rows = np.arange(90)
    for k in rows:
        Image.new("RGB", (12, 10), (2 * int(k), 0, 0)).save(folder / f"{k}.png")
    frame = pl.DataFrame(
        {
            "id": rows,
            "x": np.sin(rows),
            "words": [f"w{k % 3};w{k % 5}" for k in rows],
            "y": np.where(np.sin(rows) > 0, "up", "down"),
            "photo": [f"{k}.png" for k in rows],
        }
    )
    frame.write_csv(folder / "t.csv")
    return (
        '[dataset]\npath = "t.csv"\nid = "id"\ntarget_cla = "y"\nfeatures = ["x", "x * x AS square"]\nimage = "photo"\n'
        'image_size = 8\n[dataset.tokens]\nwords = { column = "words", separator = ";" }\n' + COSTS + TWO
    )


def voc(folder: Path) -> str:
    root = folder / "VOCdevkit" / "VOC2012"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    names = [f"2012_{k:06d}" for k in range(24)]
    for k, name in enumerate(names):
        Image.new("RGB", (40, 30), (10 * k, 0, 0)).save(root / "JPEGImages" / f"{name}.jpg")
        box = f"<bndbox><xmin>{2 + k % 5}</xmin><ymin>3</ymin><xmax>20</xmax><ymax>25</ymax></bndbox>"
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename><size><width>40</width><height>30</height><depth>3</depth>"
            f"</size><object><name>dog</name><difficult>0</difficult>{box}</object></annotation>"
        )
    (root / "ImageSets/Main/train.txt").write_text("\n".join(names[:16]))
    (root / "ImageSets/Main/val.txt").write_text("\n".join(names[16:]))
    rows = [(name, "dog", 1.0 + k % 5, 2.0, 20.0, 25.0, 0.9) for k, name in enumerate(names)]
    found = pl.DataFrame(rows, schema=["image", "label", "x1", "y1", "x2", "y2", "score"], orient="row")
    found.write_csv(folder / "all.csv")
    found[::2].write_csv(folder / "half.csv")
    return '[dataset]\nkind = "voc"\npath = "VOCdevkit"\nimage_size = 8\n' + MAP + both_files("csv")


def both_files(suffix: str) -> str:
    return agents(
        ("half", "detections", f'file = "half.{suffix}"\nfeatures = ["detections"]'),
        ("all", "detections", f'file = "all.{suffix}"'),
    )


def coco(folder: Path) -> str:
    ids = range(1, 31)
    for name, part in (("train", ids[:20]), ("test", ids[20:])):
        for k in part:
            Image.new("RGB", (40, 30), (8 * k, 0, 0)).save(folder / f"{k}.png")
        content = {
            "images": [{"id": k, "file_name": f"{k}.png", "width": 40, "height": 30} for k in part],
            "annotations": [
                {"id": k, "image_id": k, "category_id": 3, "bbox": [k % 7, 2, 15, 20], "iscrowd": 0, "area": 300}
                for k in part
            ],
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        }
        (folder / f"{name}.json").write_text(json.dumps(content))
    found = [{"image_id": k, "category_id": 3, "bbox": [k % 7, 2, 15, 20], "score": 0.8} for k in ids]
    (folder / "all.json").write_text(json.dumps(found))
    (folder / "half.json").write_text(json.dumps(found[::2]))
    return (
        '[dataset]\nkind = "coco"\npath = "."\nimage_size = 8\n[dataset.sets]\n'
        'train = { annotations = "train.json", images = "." }\ntest = { annotations = "test.json", images = "." }\n'
        + MAP
        + both_files("json")
    )


def cifar10(folder: Path) -> str:
    generator = np.random.default_rng(0)
    for source in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        rows = np.hstack([np.arange(20)[:, None] % 10, generator.integers(256, size=(20, 3072))])
        (folder / f"{source}.bin").write_bytes(rows.astype(np.uint8).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n")
    return '[dataset]\nkind = "cifar10"\npath = "."\npool = 8\n' + COSTS + TWO


def chexpert(folder: Path) -> str:
    root, name = folder / "CheXpert-v1.0-small", "CheXpert-v1.0-small"
    generator, features, rows = np.random.default_rng(1), [], []
    for patient in range(1, 41):
        path = f"train/patient{patient:05d}/study1/view1_frontal.jpg"
        labels = generator.choice(["0.0", "1.0"], len(FINDINGS))
        rows.append([f"{name}/{path}", "Female", 60, "Frontal", "AP", *labels])
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(256, size=(20, 16)).astype(np.uint8)).save(root / path)
        features.append({"Path": f"{name}/{path}", "a": float(patient), "b": generator.random()})
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(root / "train.csv", index=False)
    pl.DataFrame(features).write_parquet(folder / "features.parquet")
    return (
        f'[dataset]\nkind = "chexpert"\npath = "{name}"\ntarget = "Edema"\nimage_features = "features.parquet"\n'
        "image_size = 8\n" + COSTS + TWO
    )


def mimic4(folder: Path) -> str:
    write_mimic4(folder / "mimic", patients=120, seed=7)
    return '[dataset]\nkind = "mimic4"\npath = "mimic"\n' + COSTS + TWO


#: Kind of dataset -> how its files and recipe are made, and the networks that read one of its inputs each.
KINDS = {
    "table": (table, ("linear", "mlp", "feature_transformer", "token_transformer", "conv")),
    "voc": (voc, ("mlp", "conv")),
    "coco": (coco, ("mlp", "conv")),
    "cifar10": (cifar10, ("mlp", "conv")),
    "chexpert": (chexpert, ("mlp", "conv")),
    "mimic4": (mimic4, ("token_transformer",)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_from_files_to_decisions(kind, tmp_path, l2d_done):
    make, networks = KINDS[kind]
    (tmp_path / "seer.py").write_text(SEER)
    (tmp_path / "r.toml").write_text(make(tmp_path))
    cache = tmp_path / "cache"
    l2d_done("build", tmp_path / "r.toml", "--out", cache)
    l2d_done("verify", cache)
    l2d_done("status", cache)
    small = ("--method", "multi-task", "--epochs", 1, "--hidden", 16, "--beta", 0.1)
    for network in networks:
        run = tmp_path / f"run {network}"
        l2d_done("train", cache, "--out", run, "--rejector", network, *small)
        result = json.loads(l2d_done("evaluate", run, "--format", "json"))
        costs = {name: agent["mean_cost"] for name, agent in result["agents"].items()}
        right = costs.get("seer", costs.get("all"))
        assert right == pytest.approx(0.1)  # never wrong, and beta
        assert sum(result["allocation"].values()) == pytest.approx(1)
        l2d_done("report", run, "--out", tmp_path / f"{network}.html")
        assert (tmp_path / f"{network}.html").stat().st_size > 10_000
        l2d_done("route", run, cache, "--out", tmp_path / f"{network}.csv")
        routed = pl.read_csv(tmp_path / f"{network}.csv", infer_schema=False)
        answer = json.loads(l2d_done("query", cache, "SELECT count(*) AS n FROM samples", "--format", "json"))
        assert len(routed) == answer[0]["n"]
        assert set(routed["agent"]) <= set(costs)
