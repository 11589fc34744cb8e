"""`l2d import detections`: true boxes and detectors' results as they lie there, costs against pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from box_references import pycocotools_ap
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typer.testing import CliRunner

import l2d
from l2d.cli import app
from l2d.data.errors import DataError, UsageError
from l2d.data.samples.boxes import Boxes
from l2d.data.sources.voc import VOC_CLASSES, VocAnnotation, VocObject, format_voc

WIDTH, HEIGHT, IMAGES = 64, 48, 25
NAMES = {3: "crack", 7: "rust", 12: "dent"}  # category ids
IDS = list(NAMES)
YOLO = "label cx cy width height score"
PUBLISHED = next(
    (folder / "shared/data" for folder in Path(__file__).resolve().parents if (folder / "shared/data").is_dir()), None
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The same objects as COCO's annotations and as XML files, one detector's results as JSON, another's as texts."""
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    for part in ("photos", "xml", "yolo"):
        (folder / part).mkdir()
    images, annotations, results = [], [], []
    for image in range(IMAGES):
        name = f"p{image:02d}"
        images.append({"id": 100 + image, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT})
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "photos" / f"{name}.png")
        things, lines = [], []
        for _ in range(random.integers(1, 4)):
            x, y, width, height = (int(value) for value in random.integers(2, 24, 4))
            label = int(random.integers(3))
            box = [x, y, width, height]
            entry = {"id": len(annotations) + 1, "image_id": 100 + image, "category_id": IDS[label], "bbox": box}
            annotations.append(entry | {"iscrowd": 0, "area": width * height})
            things.append(VocObject(NAMES[IDS[label]], (x, y, x + width, y + height)))
            shift = float(random.uniform(-2, 2))
            score = float(random.uniform(0.1, 1))
            found = {"image_id": 100 + image, "category_id": IDS[label], "bbox": [x + shift, y, width, height]}
            results.append(found | {"score": score})
            if image != 5:  # the other detector finds nothing there
                centre = f"{(x + width / 2 + 1.2 * shift) / WIDTH!r} {(y + height / 2) / HEIGHT!r}"
                lines.append(f"{label} {centre} {width / WIDTH!r} {height / HEIGHT!r} {score!r}")
        note = VocAnnotation(f"{name}.png", WIDTH, HEIGHT, things)
        (folder / "xml" / f"{name}.xml").write_bytes(format_voc(note, folder="xml", database="made up"))
        if lines:
            (folder / "yolo" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    truth = {"images": images, "annotations": annotations}
    truth["categories"] = [{"id": number, "name": name} for number, name in NAMES.items()]
    (folder / "instances_val.json").write_text(json.dumps(truth))
    (folder / "detr.json").write_text(json.dumps(results))
    return folder


@pytest.fixture(scope="module")
def imported(world) -> tuple[l2d.CostCache, str]:
    """The cache that the command makes of COCO's annotations, and what it says."""
    out = world / "coco.cache"
    words = [world / "instances_val.json", world / "detr.json", "--agent", f"texts={world / 'yolo'}"]
    words += ["--line", YOLO, "--model", "texts", "--out", out]
    result = CliRunner().invoke(app, ["import", "detections", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return l2d.CostCache(out), result.stderr


def costs(cache: l2d.CostCache, agent: str) -> dict[str, float]:
    parts = [pl.from_arrow(cache.costs(agent, k)) for k in range(cache.record.num_chunks)]
    return dict(pl.concat(parts).select("sample_id", "cost_map").iter_rows())


def pycocotools_costs(truth: Path, results: Path | list) -> dict[str, float]:
    """1 - mAP of each image with objects."""
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        boxes = COCO(str(truth))
        evaluation = COCOeval(boxes, boxes.loadRes(results if isinstance(results, list) else str(results)), "bbox")
        for image in boxes.getImgIds():
            evaluation.params.imgIds = [image]
            evaluation.evaluate()
            evaluation.accumulate()
            precision = evaluation.eval["precision"][:, :, :, 0, 2]
            if (precision > -1).any():
                found[str(image)] = 1 - precision[precision > -1].mean()
    return found


def of_texts(world: Path) -> list[dict]:
    """YOLO's files as COCO's results, read plainly."""
    found = []
    for file in sorted((world / "yolo").glob("*.txt")):
        for line in file.read_text().splitlines():
            label, x, y, width, height, score = map(float, line.split())
            width, height = width * WIDTH, height * HEIGHT
            box = [x * WIDTH - width / 2, y * HEIGHT - height / 2, width, height]
            image = 100 + int(file.stem[1:])
            found.append({"image_id": image, "category_id": IDS[int(label)], "bbox": box, "score": score})
    return found


def test_costs_of_results_and_text_files_are_pycocotools(world, imported):
    cache, _ = imported
    for agent, results in (("detr", world / "detr.json"), ("texts", of_texts(world))):
        expected = pycocotools_costs(world / "instances_val.json", results)
        found = costs(cache, agent)
        assert found.keys() == expected.keys()
        np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), atol=3e-8)
    assert costs(cache, "texts")["105"] == 1


def test_the_mapping_is_said_and_the_recipe_is_kept(world, imported):
    cache, said = imported
    for line in (
        f"25 images (12 train, 3 validation, 10 test), {len(json.loads((world / 'detr.json').read_text()))} objects",
        "3 classes: crack, rust, dent",
        "on 24 of 25 images, 3 classes, scores 0.",
        "labels count the classes: 0 is 'crack', 2 is 'dent'",
        "coordinates are shares of width and height",
        "images on which it found nothing: 1 (--partial: it has no answer there)",
        "the model, agent 0, is texts; asking it is free",
        "no image files are named (--images FOLDER)",
    ):
        assert line in said, line
    assert [(agent.name, agent.price) for agent in cache.agents] == [("texts", 0.0), ("detr", 1.0)]
    recipe = tomllib.loads((world / "coco.cache.toml").read_text())
    first, second = recipe["agents"]
    keys = {"categories": "from_0", "coordinates": "fractions", "match": "stem", "line": YOLO, "price": 1.0}
    assert first.items() >= keys.items()
    assert second == {"name": "detr", "kind": "detections", "file": "detr.json", "price": 1.0}


def test_a_folder_of_xml_files_costs_the_same(world, imported):
    folder = world / "as_xml"
    folder.mkdir()
    for part in ("xml", "photos"):
        shutil.copytree(world / part, folder / part)
    entries = json.loads((world / "detr.json").read_text())
    by_name = [{**entry, "image_id": f"p{entry['image_id'] - 100:02d}"} for entry in entries]
    (world / "named.json").write_text(json.dumps(by_name))
    results = {"named": world / "named.json"}
    said: list[str] = []
    labels = {str(number): name for number, name in NAMES.items()}
    cache = l2d.import_detections(folder, results, out=world / "xml.cache", labels=labels, say=said.append)
    expected = {f"p{int(name) - 100:02d}": cost for name, cost in costs(imported[0], "detr").items()}
    assert costs(cache, "named") == pytest.approx(expected, abs=1e-12)
    recipe = tomllib.loads((world / "xml.cache.toml").read_text())
    assert recipe["dataset"].items() >= {"annotations": "xml", "images": "photos", "test": 0.4}.items()
    assert recipe["dataset"]["classes"] == ["crack", "dent", "rust"]
    assert "free = false" in (world / "xml.cache.toml").read_text()
    with pytest.raises(UsageError, match="did you mean 'images'"):
        l2d.import_detections(folder, results, out=world / "x", imges="y")


def test_without_an_answer_is_not_without_objects(world):
    out = world / "partial.cache"
    facts = {"line": YOLO, "partial": True, "images": world / "photos"}
    results = {"detr": world / "detr.json", "texts": world / "yolo"}
    cache = l2d.import_detections(world / "instances_val.json", results, out=out, **facts)
    assert costs(cache, "texts")["105"] is None
    assert 'images = "photos"' in (world / "partial.cache.toml").read_text()


def test_a_devkit_keeps_its_sets(world, tmp_path):
    year = tmp_path / "VOCdevkit" / "VOC2012"
    (year / "ImageSets" / "Main").mkdir(parents=True)
    (year / "Annotations").symlink_to(world / "xml")
    (year / "JPEGImages").symlink_to(world / "photos")
    names = [f"p{image:02d}" for image in range(IMAGES)]
    for chosen, members in (("train", names[:10]), ("val", names[10:20]), ("trainval", names[:20])):
        (year / "ImageSets" / "Main" / f"{chosen}.txt").write_text("\n".join(members))
    words = [tmp_path, world / "yolo", "--line", YOLO, "--classes", "crack,rust,dent", "--dry-run", "--drop-others"]
    result = CliRunner().invoke(app, ["import", "detections", *map(str, words), "--out", str(tmp_path / "c")])
    assert result.exit_code == 0, result.stderr
    recipe = tomllib.loads(result.stdout)
    assert recipe["dataset"]["sets"] == {"train": ["2012/train"], "test": ["2012/val"]}
    assert "20 images (8 train, 2 validation, 10 test)" in result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "VOCdevkit"]  # --dry-run has written nothing


def test_what_cannot_be_told_is_asked_before_anything_is_written(world, tmp_path):
    truth = str(world / "instances_val.json")
    (tmp_path / "from_1").mkdir()
    (tmp_path / "from_1" / "p00.txt").write_text("2 0.9 1 2 11 12\n")
    far = [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 1}]
    (tmp_path / "far.json").write_text(json.dumps(far))
    yolo = str(world / "yolo")
    for words, message in (
        ([truth], "no detector's results are named"),
        ([truth, str(tmp_path / "from_1")], "--categories from_1 (1 is 'crack')"),
        ([truth, str(tmp_path / "far.json")], "image 1 is not in the dataset"),
        ([truth, str(tmp_path / "gone.json")], "there is no such file or folder"),
        ([str(tmp_path), yolo], "there are no XML files beneath it"),
        ([truth, yolo, "--agent", f"yolo={yolo}"], "two agents are called 'yolo'"),
        ([truth, yolo, "--agent", "yolo"], "--agent expects NAME=PATH"),
        ([truth, yolo, "--line", YOLO, "--model", "detr"], "--model detr: no agent is called so"),
        ([truth, yolo, "--target", "class"], "--target is for tables"),
    ):
        _refuses(["import", "detections", *words], message, tmp_path)
    _refuses(["import", "scores", truth, "--partial"], "--partial is for detections alone", tmp_path)


def _refuses(words: list[str], message: str, folder: Path) -> None:
    before = sorted(folder.iterdir())
    result = CliRunner().invoke(app, [*words, "--out", str(folder / "c")])
    assert isinstance(result.exception, (UsageError, DataError)), (words, result.output)
    assert message in f"{result.exception} {result.exception.hint}", (message, result.exception)
    assert sorted(folder.iterdir()) == before


# --- published --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(PUBLISHED is None, reason="published files are not here")
def test_cocos_sample_costs_what_pycocotools_says(tmp_path):
    folder = PUBLISHED / "coco_val2014_100"
    truth, results = folder / "sampled_gts_bbox_area.json", folder / "cocoapi_results.json"
    cache = l2d.import_detections(truth, {"published": results}, out=tmp_path / "c")
    expected, found = pycocotools_costs(truth, results), costs(cache, "published")
    assert len(found) == 100
    np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), atol=3e-8)


@pytest.mark.skipif(PUBLISHED is None, reason="published files are not here")
def test_photographs_cost_what_pycocotools_says(tmp_path):
    folder = PUBLISHED / "voc2012_100"
    out, detected = tmp_path / "c", folder / "dets" / "abs_xyx2y2"
    words = ["import", "detections", folder, detected, "--coordinates", "pixels_from_1", "--out", out]
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert "one agent alone leaves nothing to choose" in result.stderr
    assert "l2d sweep" not in result.stderr
    names = sorted(file.stem for file in (folder / "gts" / "pascalvoc_format").glob("*.xml"))
    truths, founds = [], []
    for name in names:
        root = ET.parse(folder / "gts" / "pascalvoc_format" / f"{name}.xml").getroot()
        for thing in root.iter("object"):
            corners = [float(thing.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
            ignored = thing.findtext("difficult") == "1"
            truths.append((names.index(name), VOC_CLASSES.index(thing.findtext("name")), 1.0, ignored, corners))
        file = detected / f"{name}.txt"
        for line in file.read_text().splitlines() if file.is_file() else ():
            label, score, *corners = line.split()
            founds.append((names.index(name), int(label), float(score), False, [float(value) for value in corners]))
    ap = 1 - pycocotools_ap(_boxes(truths, len(names)), _boxes(founds, len(names)), np.linspace(0.5, 0.95, 10)).mean(1)
    found = costs(l2d.CostCache(out), "abs_xyx2y2")
    judged = np.flatnonzero(~np.isnan(ap))
    assert len(found) == 100
    assert len(judged) > 90
    np.testing.assert_allclose([found[names[k]] for k in judged], ap[judged], atol=3e-8)


def _boxes(rows: list[tuple], images: int) -> Boxes:
    """Rows of image, label, score, ignored and VOC's corners, which count from 1, in the order of images."""
    corners = np.array([row[4] for row in rows]) - [1, 1, 0, 0]
    image = np.array([row[0] for row in rows])
    return Boxes(
        offsets=np.searchsorted(image, np.arange(images + 1)),
        xyxy=corners,
        size=corners[:, 2:] - corners[:, :2],
        label=np.array([row[1] for row in rows], dtype=np.int32),
        score=np.array([row[2] for row in rows]),
        ignore=np.array([row[3] for row in rows]),
        crowd=np.zeros(len(rows), dtype=bool),
    )
