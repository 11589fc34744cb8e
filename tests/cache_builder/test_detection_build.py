"""Detection end to end on a small semi-synthetic VOC folder: build, resume, sweep, evaluate, query, report."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.errors import AgentFailure, FingerprintMismatch, UsageError
from l2d.data.samples.boxes import Boxes
from l2d.data.sources.digits import write_digits
from l2d.rejector.evaluation.detection_metrics import mixed_detections, system_map
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.grid import make_grid
from l2d.rejector.rows.table import load_tables
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sql.query import query
from l2d.rejector.sweep import sweep

pytestmark = pytest.mark.slow

COUNTS = {"fit": 4, "train": 40, "val": 16, "test": 24}

AGENTS = '''
import numpy as np


def look(batch, noise, good=None):
    """The truth, jittered; good only on images whose id ends in an even digit, if told so."""
    images, features = [], []
    for position, name in enumerate(batch.ids):
        generator = np.random.default_rng(abs(hash_of(name)))
        truth = batch.target_boxes.of(position)
        shake = noise * (3.0 if good is not None and int(name[-1]) % 2 != good else 1.0)
        boxes = truth["boxes"] + generator.normal(0, shake, truth["boxes"].shape)
        boxes = np.hstack([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])])
        scores = generator.uniform(0.3, 1, len(boxes))
        images.append({"boxes": boxes, "labels": truth["labels"], "scores": scores})
        features.append([int(name[-1]) % 2, len(boxes), generator.normal()])
    return {"boxes": images, "features": np.array(features, dtype=np.float32)}


def hash_of(name):
    return int.from_bytes(name.encode(), "little") % (1 << 31)
'''

RECIPE = """
[dataset]
kind = "voc"
path = "devkit"
sets = {{ fit = ["digits/fit"], train = ["digits/train"], validation = ["digits/val"], test = ["digits/test"] }}
classes = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
{dataset}

[costs.map]
{costs}

[build]
chunk_size = 32
batch_size = 7

[[agents]]
name = "model"
kind = "python"
file = "agents.py"
function = "look"
options = {{ noise = 4.0 }}
features = ["features"]

[[agents]]
name = "even"
kind = "python"
file = "agents.py"
function = "look"
options = {{ noise = 1.0, good = 0 }}
price = 1.0

[[agents]]
name = "best"
kind = "python"
file = "agents.py"
function = "look"
options = {{ noise = 0.5 }}
price = 2.0
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_digits(folder / "devkit", images=COUNTS, seed=3)
    (folder / "agents.py").write_text(AGENTS)
    return folder


def recipe(folder: Path, dataset: str = "", costs: str = "", text: str = RECIPE):
    file = folder / "recipe.toml"
    file.write_text(text.format(dataset=dataset, costs=costs))
    return load_recipe(str(file))


@pytest.fixture(scope="module")
def built(scenes) -> CostCache:
    build(recipe(scenes, dataset="image_size = 16"), scenes / "cache")
    return CostCache(scenes / "cache")


def points(cache, betas=(0.0, 0.3), seeds=(0, 1)):
    return make_grid(cache, methods=["multi-task"], weights=[], betas=list(betas), nus=[1.0], seeds=list(seeds))


@pytest.fixture(scope="module")
def runs(built, scenes) -> list[Path]:
    grid = points(built)
    folders = [scenes / "runs" / point.run_id for point in grid]
    sweep(built, grid, folders, TrainConfig(epochs=30, batch_size=16, hidden=16))
    return folders


@pytest.mark.slow
def test_the_cache_holds_boxes_costs_and_small_images(built):
    assert built.record.tasks == ["map"]
    assert built.record.num_samples == COUNTS["train"] + COUNTS["val"] + COUNTS["test"]
    assert built.record.inputs["features"] == {"kind": "dense", "agent": "model", "of": ["features"]}
    built.verify()
    tables = load_tables(built, ("train", "validation", "test"), predictions=True)
    assert [len(table) for table in tables.values()] == [COUNTS["train"], COUNTS["val"], COUNTS["test"]]
    test = tables["test"]
    assert test.features.shape == (COUNTS["test"], 3)
    assert len(test.targets["target_boxes"]) == COUNTS["test"]
    costs = test.raw[:, :, 0].numpy()
    assert costs.min() >= 0
    assert costs.max() <= 1
    assert costs[:, 2].mean() < costs[:, 1].mean() < costs[:, 0].mean()
    images = load_tables(built, ("test",), column="image")["test"].features
    assert images.shape == (COUNTS["test"], 3 * 16 * 16)
    assert 0 <= images.min() < images.max() <= 1


def test_costs_are_one_minus_what_pycocotools_says_of_each_image(built, capsys):
    table = load_tables(built, ("test",), predictions=True)["test"]
    for agent in range(3):
        found = table.predictions[["model", "even", "best"][agent]]["pred_boxes"]
        for image in range(0, len(table), 5):
            truth = table.targets["target_boxes"].take(np.array([image]))
            assert table.raw[image, agent, 0] == pytest.approx(1 - coco_map(truth, found[np.array([image])]), abs=1e-6)
    capsys.readouterr()


def coco_map(targets: Boxes, detections: Boxes) -> float:
    """mAP by pycocotools from plain loops over boxes."""
    cocos = []
    for boxes in (targets, detections):
        coco = COCO()
        annotations = []
        for image in range(len(boxes)):
            one = boxes.of(image)
            for (x1, y1, x2, y2), label, score in zip(one["boxes"].tolist(), one["labels"], one["scores"], strict=True):
                size = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                entry = {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "score": float(score),
                }
                annotations.append({**entry, **size})
        categories = [{"id": label} for label in range(10)]
        coco.dataset = {
            "images": [{"id": image} for image in range(len(boxes))],
            "categories": categories,
            "annotations": annotations,
        }
        coco.createIndex()
        cocos.append(coco)
    evaluation = COCOeval(*cocos, iouType="bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return float(precision[precision > -1].mean())


def test_the_systems_map_is_that_of_the_detections_of_whom_each_image_went_to(built, runs, capsys):
    table = load_tables(built, ("test",), predictions=True)["test"]
    answers = [table.predictions[name]["pred_boxes"] for name in ("model", "even", "best")]
    evaluations = evaluate_runs(runs)
    for evaluation in evaluations:
        allocated = query([evaluation.run.path], "SELECT agent_index FROM allocations WHERE split = 'test'")
        chosen = allocated["agent_index"].to_numpy()
        by_hand = Boxes.from_images([answers[agent].of(image) for image, agent in enumerate(chosen)])
        assert evaluation.result["metrics"]["map"] == pytest.approx(coco_map(table.targets["target_boxes"], by_hand))
    alone = evaluations[0].result["agents"]
    assert alone["best"]["map"] > alone["even"]["map"] > alone["model"]["map"]
    assert evaluations[0].result["metrics"]["map"] >= alone["even"]["map"]
    capsys.readouterr()


def test_mixing_takes_each_image_from_its_agent():
    one = Boxes.from_images([{"boxes": [[0, 0, 1, 1]], "labels": [0]}, {"boxes": [], "labels": []}])
    two = Boxes.from_images([{"boxes": [], "labels": []}, {"boxes": [[0, 0, 2, 2]] * 2, "labels": [1, 2]}])
    assert mixed_detections([one, two], np.array([0, 1])).label.tolist() == [0, 1, 2]
    assert mixed_detections([one, two], np.array([1, 0])).label.tolist() == []


def test_difficult_boxes_neither_have_to_be_found_nor_count_against_the_finder():
    truth = [[0, 0, 10, 10], [20, 20, 30, 30]]
    easy = Boxes.from_images([{"boxes": truth, "labels": [0, 0], "ignore": [False, True]}])
    first = Boxes.from_images([{"boxes": truth[:1], "labels": [0], "scores": [0.5]}])
    both = Boxes.from_images([{"boxes": truth, "labels": [0, 0], "scores": [0.5, 0.9]}])
    stray = Boxes.from_images([{"boxes": [truth[0], [40, 40, 50, 50]], "labels": [0, 0], "scores": [0.5, 0.9]}])
    assert system_map(easy, first)["map"] == system_map(easy, both)["map"] == pytest.approx(1.0)
    assert system_map(easy, stray)["map"] == pytest.approx(0.5)
    nothing = Boxes.from_images([{"boxes": truth[1:], "labels": [0], "ignore": [True]}])
    assert system_map(nothing, first) == {}


def test_sql_names_classes_and_has_a_row_for_each_box(built):
    found = query([built.path], "SELECT agent, class, count(*) AS n FROM boxes GROUP BY ALL").to_pylist()
    classes, expected = built.record.classes, Counter()
    for k in range(built.record.num_chunks):
        parts = [(None, built.samples(k)["target_boxes"])]
        parts += [(agent.name, built.predictions(agent.name, k)["pred_boxes"]) for agent in built.all_agents]
        for agent, column in parts:
            expected.update((agent, classes[box["label"]]) for boxes in column.to_pylist() for box in boxes)
    assert {(row["agent"], row["class"]): row["n"] for row in found} == dict(expected)
    named = query([built.path], "SELECT class FROM classes ORDER BY class_index").to_pylist()
    assert [row["class"] for row in named] == list(classes)


def test_a_conv_rejector_looks_at_the_small_images(built, scenes):
    grid = points(built, betas=(0.1,), seeds=(0, 1))
    folders = [scenes / "conv" / point.run_id for point in grid]
    sweep(built, grid, folders, TrainConfig(network="conv", hidden=16, epochs=2, batch_size=16))
    assert sum(evaluate_runs(folders)[0].result["allocation"].values()) == pytest.approx(1)


def test_building_again_asks_nobody_and_a_killed_part_is_asked_alone(scenes, built):
    again = build(recipe(scenes, dataset="image_size = 16"), scenes / "cache")
    assert set(again.asked.values()) == {0}
    copy = scenes / "copy"
    shutil.copytree(built.path, copy)
    (copy / "agents" / "even" / "predictions" / "00001.parquet").unlink()
    report = build(recipe(scenes, dataset="image_size = 16"), copy)
    assert report.asked == {"model": 0, "even": 32, "best": 0}
    for name in ("predictions", f"costs-{built.record.cost_digest}"):
        for part in sorted((built.path / "agents" / "even" / name).iterdir()):
            assert part.read_bytes() == (copy / "agents" / "even" / name / part.name).read_bytes()


def test_another_cost_asks_nobody(scenes, built):
    copy = scenes / "costs"
    shutil.copytree(built.path, copy)
    report = build(recipe(scenes, dataset="image_size = 16", costs='kind = "voc2012"'), copy)
    assert set(report.asked.values()) == {0}
    joint = load_tables(built, ("test",))["test"].raw
    assert not np.allclose(load_tables(CostCache(copy), ("test",))["test"].raw, joint)
    text = RECIPE.replace(
        "[costs.map]", "[costs.cla]\nkind = 'object_class'\n[costs.reg]\nkind = 'object_iou'\n[costs.map]"
    )
    report = build(recipe(scenes, dataset="image_size = 16", text=text), copy)
    assert set(report.asked.values()) == {0}
    parts = load_tables(CostCache(copy), ("test",))["test"].raw
    assert parts.shape[2] == 3
    np.testing.assert_array_equal(parts[:, :, 2], joint[:, :, 0])


def test_a_changed_image_is_noticed(scenes, built, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(scenes / "devkit", folder / "devkit")
    (folder / "agents.py").write_text(AGENTS)
    shutil.copytree(built.path, folder / "cache")
    image = next((folder / "devkit").rglob("JPEGImages/*"))
    image.write_bytes(image.read_bytes() + b"\n")
    with pytest.raises(FingerprintMismatch, match="images"):
        build(recipe(folder, dataset="image_size = 16"), folder / "cache")


@pytest.mark.slow
def test_recipes_that_cannot_work_are_refused(scenes):
    without = RECIPE.replace('features = ["features"]\n', "")
    with pytest.raises(UsageError, match="nothing to look at"):
        build(recipe(scenes, text=without), scenes / "none")
    wrong = RECIPE.replace("price = 1.0\n", 'features = ["features"]\n')
    with pytest.raises(UsageError, match="agent 0"):
        recipe(scenes, text=wrong)
    table = RECIPE.replace(
        'kind = "python"\nfile = "agents.py"\nfunction = "look"\noptions = {{ noise = 0.5 }}',
        'kind = "column"\ncla = "x"',
    )
    with pytest.raises(UsageError, match="the costs need boxes"):
        build(recipe(scenes, text=table), scenes / "none")
    with pytest.raises(UsageError, match=r"dataset of kind 'vok'"):
        recipe(scenes, text=RECIPE.replace('kind = "voc"', 'kind = "vok"'))
    with pytest.raises(UsageError, match="no image for a rejector"):
        load_tables(one_without_images(scenes), ("test",), column="image")


def one_without_images(scenes: Path) -> CostCache:
    build(recipe(scenes), scenes / "plain")
    return CostCache(scenes / "plain")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ('images[0]["scores"] = np.full(len(boxes_of(images)), np.nan)', "scores"),
        ('images[0]["labels"] = np.full(len(boxes_of(images)), 10)', "labels"),
        ('images[0]["boxes"] = np.asarray(boxes_of(images))[:, [2, 3, 0, 1]]', "not a box"),
        ('images[0]["boxes"] = np.full((len(boxes_of(images)), 4), np.inf)', "not finite"),
        ("images.pop()", "on 6 images, expected 7"),
        ("images[0].pop('labels')", "boxes of another form"),
        ("features = features[1:]", "features"),
    ],
)
def test_bad_detections_are_refused_naming_the_sample(scenes, tmp_path, spoil, said):
    shutil.copytree(scenes / "devkit", tmp_path / "devkit")
    line = '    return {"boxes": images'
    code = AGENTS.replace(line, f"    {spoil}\n{line}") + "\n\ndef boxes_of(images):\n    return images[0]['boxes']\n"
    (tmp_path / "agents.py").write_text(code)
    with pytest.raises(AgentFailure, match=said) as failure:
        build(recipe(tmp_path), tmp_path / "cache")
    assert "sample" in str(failure.value)


@pytest.mark.slow
def test_a_recorded_failure_of_the_model_leaves_the_rejector_the_mean_to_look_at(scenes, tmp_path):
    shutil.copytree(scenes / "devkit", tmp_path / "devkit")
    first = (tmp_path / "devkit" / "VOCdigits" / "ImageSets" / "Main" / "test.txt").read_text().split()[0]
    failing = f'    if "{first}" in batch.ids and "features" in FAIL:\n        raise RuntimeError("no")\n'
    code = AGENTS.replace("    images, features = [], []\n", failing + "    images, features = [], []\n")
    (tmp_path / "agents.py").write_text('FAIL = "features"\n' + code)
    report = build(recipe(tmp_path), tmp_path / "cache", on_failure="record")
    assert report.failed == {"model": 1, "even": 1, "best": 1}
    cache = CostCache(tmp_path / "cache")
    tables = load_tables(cache, ("train", "test"), failures="worst", predictions=True)
    row = tables["test"].ids.index(first)
    np.testing.assert_allclose(tables["test"].features[row], tables["train"].features.mean(0), rtol=1e-5)
    assert len(load_tables(cache, ("test",), failures="drop")["test"]) == COUNTS["test"] - 1


def test_sql_sees_boxes_features_and_images(built):
    detections = query([built.path], "SELECT count(*) AS n FROM (SELECT unnest(pred_boxes) FROM predictions)")
    assert detections["n"][0].as_py() > 100
    columns = query([built.path], "SELECT * FROM predictions LIMIT 1").column_names
    assert "features" not in columns
    joined = query(
        [built.path],
        "SELECT count(*) AS n FROM features JOIN samples USING (cache, sample_id) JOIN images USING (cache, sample_id)",
    )
    assert joined["n"][0].as_py() == built.record.num_samples
    present = query([built.path], "SELECT objects, width FROM samples WHERE num_objects > 0")
    assert len(present) > 0


@pytest.mark.slow
def test_the_report_has_the_papers_table_and_figure(runs, scenes):
    import subprocess

    out, figure = scenes / "report.html", scenes / "figure.png"
    command = [
        sys.executable,
        "-m",
        "l2d.cli",
        "report",
        str(runs[0].parent),
        "--out",
        str(out),
        "--figure",
        str(figure),
    ]
    subprocess.run([*command, "--images", str(scenes / "devkit")], check=True, capture_output=True, timeout=300)
    page = out.read_text()
    assert "mAP %" in page
    assert figure.stat().st_size > 10_000

    # one example's pictures: its own image, the truth's boxes, every agent's that are sure enough
    found = re.search(r'<article class="example">.*?</article>', page, re.DOTALL).group()
    sample = re.search(r"<h4>(\S+)", found).group(1)
    encoded = re.search(r'<image [^>]*href="data:image/jpeg;base64,([^"]+)"', found).group(1)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("L"), dtype=float)
    (file,) = (scenes / "devkit").rglob(f"{sample}.jpg")
    truth = np.asarray(Image.open(file).convert("L").resize(shown.shape[::-1]), dtype=float)
    assert np.abs(shown - truth).mean() < 6
    table = load_tables(CostCache(scenes / "cache"), ("test",), predictions=True)["test"]
    row = table.ids.index(sample)
    tiles = re.findall(r'<div class="tile.*?</svg>', found, re.DOTALL)
    answers = [table.targets["target_boxes"], *(table.predictions[name]["pred_boxes"] for name in table.predictions)]
    assert len(tiles) == len(answers) == 4
    for tile, boxes in zip(tiles, answers, strict=True):
        drawn = [
            [float(n) for n in r] for r in re.findall(r'<rect x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"', tile)
        ]
        mine = boxes.of(row)
        sure = mine["boxes"][mine["scores"] >= 0.3].astype(float)
        expected = np.hstack([sure[:, :2], sure[:, 2:] - sure[:, :2]])
        assert np.allclose(sorted(drawn), sorted(expected.tolist()), atol=0.11)
    result = subprocess.run(
        [sys.executable, "-m", "l2d.cli", "evaluate", str(runs[0]), "--format", "json"], check=True, capture_output=True
    )
    assert {"map", "map_50"} <= set(json.loads(result.stdout)["metrics"])
