"""torchvision's detectors as agents, against torchvision itself; weights that do not fit; the small one we train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model_builder, get_model_weights
from torchvision.ops import box_iou

from l2d.cache_builder.agents import _torchvision_models as torchvision_models
from l2d.cache_builder.agents import config_class, make_agent
from l2d.cache_builder.agents.torchvision_detector import architectures, read_weights
from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.errors import AgentFailure, DataError, UsageError
from l2d.data.samples.boxes import Boxes
from l2d.data.samples.dataset import Dataset
from l2d.data.samples.images import image_size, read_image
from l2d.rejector.rows.table import load_tables

pytestmark = pytest.mark.slow

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
CLASSES = ("person", "sofa", "tvmonitor")
SIZES = [(96, 64), (64, 96), (90, 66)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on busy cores, threads mostly wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = []
    for number, size in enumerate(SIZES):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        paths.append(folder / f"{number}.png")
        coarse.resize(size, Image.Resampling.NEAREST).save(paths[-1])
    return paths


def make_dataset(images: list[Path], classes=CLASSES, boxes: Boxes | None = None) -> Dataset:
    sizes = [image_size(path) for path in images]
    width, height = np.array(sizes).T
    return Dataset(
        name="test",
        ids=[path.stem for path in images],
        split=np.array(["train"] * len(images)),
        features=None,
        columns=pl.DataFrame({"width": width, "height": height}),
        target_boxes=boxes or Boxes.empty(len(images)),
        images=tuple(images),
        classes=tuple(classes),
        keep=(),
        inputs={},
        config={},
    )


def make(kind: str = "torchvision_detector", **keys):
    return make_agent(config_class(kind).model_validate({"name": "detector", "kind": kind, **keys}))


def random_model(architecture: str, num_classes: int = 91, seed: int = 0):
    """A model that finds things: random weights whose batch normalisation has seen something, and bolder classes."""
    torch.manual_seed(seed)
    model = get_model_builder(architecture)(weights=None, weights_backbone=None, num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(2e-5, 2e-4)  # so small that a constant added to it shows
            module.weight.data.uniform_(0.5, 1.0).mul_(module.running_var.sqrt())
            module.running_mean.normal_(0, 0.01)
    head = getattr(model, "roi_heads", None)
    if head is not None:
        head.box_predictor.cls_score.weight.data.mul_(30)
        head.box_predictor.cls_score.bias.data[[1, 63, 72] if num_classes == 91 else [1, 2, 3]] += 4
    return model


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """torch.hub's folder, with random weights in the place of those that torchvision publishes."""
    before, folder = torch.hub.get_dir(), tmp_path_factory.mktemp("hub")
    torch.hub.set_dir(str(folder))
    (folder / "checkpoints").mkdir()
    yield folder
    torch.hub.set_dir(before)


def published(architecture: str, hub: Path) -> Path:
    """Where the published weights of an architecture are looked for; random ones are put there."""
    file = hub / "checkpoints" / Path(get_model_weights(architecture).COCO_V1.url).name
    if not file.exists():
        torch.save(random_model(architecture).state_dict(), file)
    return file


@torch.inference_mode()
def by_torchvision(architecture: str, path: Path, min_score: float, size: int | None) -> dict[str, np.ndarray]:
    """torchvision's own way from published weights to detections on one image, those of our classes alone."""
    weights = get_model_weights(architecture).COCO_V1
    model = get_model_builder(architecture)(weights=weights).eval()
    if size is not None:
        model.transform.min_size = (size,)
    heads = getattr(model, "roi_heads", model)
    heads.score_thresh, heads.detections_per_img = min_score, 100_000
    with Image.open(path) as image:
        found = model([torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255])[0]
    names = {"person": 0, "couch": 1, "tv": 2}
    labels = np.array([names.get(weights.meta["categories"][k], -1) for k in found["labels"]], dtype=int)
    return {"boxes": found["boxes"].numpy()[labels >= 0], "labels": labels[labels >= 0]} | {
        "scores": found["scores"].numpy()[labels >= 0]
    }


@pytest.mark.parametrize(
    ("architecture", "min_score", "size"),
    [
        (SMALL, 0.02, 64),
        ("fasterrcnn_resnet50_fpn", 0.02, 64),
        ("retinanet_resnet50_fpn", 0.0, 64),
        ("ssdlite320_mobilenet_v3_large", 0.01, None),
    ],
)
@pytest.mark.slow
def test_published_weights_answer_as_torchvision_does(images, hub, architecture, min_score, size):
    published(architecture, hub)
    keys = {} if size is None else {"min_size": size}
    agent = make(architecture=architecture, weights="COCO_V1", min_score=min_score, max_detections=40, **keys)
    dataset = make_dataset(images)
    agent.check(dataset, ["boxes"])
    agent.load(None, dataset, "cpu")
    # our batches pad, which lets values at the edge differ; here one image at a time
    for position in range(2):
        found = agent.ask(dataset.batch(range(position, position + 1))).boxes.of(0)
        expected = by_torchvision(architecture, images[position], min_score, size)
        best = np.argsort(-expected["scores"], kind="stable")[:40]
        expected = {name: values[best] for name, values in expected.items()}
        assert len(expected["scores"]) >= 1
        np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-3, atol=1e-5)
        same = box_iou(torch.from_numpy(found["boxes"]), torch.from_numpy(expected["boxes"])).numpy()
        same *= found["labels"][:, None] == expected["labels"]
        assert np.mean(same.max(axis=1) > 0.99) > 0.95
    assert agent.gflops(dataset) == (
        get_model_weights(architecture).COCO_V1.meta["_ops"] if size is None else pytest.approx(agent.gflops(dataset))
    )


def test_published_weights_under_their_name_elsewhere_are_the_same_agent(images, hub, tmp_path):
    file = published(SMALL, hub)
    dataset = make_dataset(images)
    by_name, by_file = make(architecture=SMALL, weights="COCO_V1"), make(architecture=SMALL, weights=file)
    assert by_name.fingerprint(dataset) == by_file.fingerprint(dataset)
    by_name.load(None, dataset, "cpu")
    assert by_name.gflops(dataset) == 0.719
    other = tmp_path / "own.pth"
    other.write_bytes(file.read_bytes())
    own = make(architecture=SMALL, weights=other, labels="dataset")
    assert own.fingerprint(dataset) != by_name.fingerprint(dataset)
    assert by_name.fingerprint(dataset)["weights"] == own.fingerprint(dataset)["weights"]


@pytest.fixture(scope="module")
def own_weights(tmp_path_factory) -> Path:
    """Weights of a detector for three classes."""
    file = tmp_path_factory.mktemp("weights") / "own.pth"
    torch.save({"epoch": 3, "model": random_model(SMALL, num_classes=4, seed=1).state_dict()}, file)
    return file


def test_own_weights_against_a_plain_forward_pass(images, own_weights):
    dataset = make_dataset(images)
    agent = make(
        architecture=SMALL, weights=own_weights, min_size=64, min_score=0.1, max_detections=7, features=["backbone"]
    )
    agent.load(None, dataset, "cpu")
    model = random_model(SMALL, num_classes=4, seed=1).eval()
    model.transform.min_size = (64,)
    model.roi_heads.score_thresh, model.roi_heads.detections_per_img = 0.1, 7
    answers = [agent.ask(dataset.batch(range(k, k + 1))) for k in range(len(images))]
    for path, answer in zip(images, answers, strict=True):
        image = read_image(path) / 255
        with torch.inference_mode():
            found = model([image])[0]
            # the features: every level's mean over the image scaled, normalised and padded to multiples of 32 by hand
            factor = min(64 / min(image.shape[1:]), 640 / max(image.shape[1:]))
            scaled = torch.nn.functional.interpolate(
                image[None], scale_factor=factor, mode="bilinear", recompute_scale_factor=True, align_corners=False
            )
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.transform.image_mean, model.transform.image_std))
            canvas = torch.zeros(1, 3, *(-(-side // 32) * 32 for side in scaled.shape[2:]))
            canvas[:, :, : scaled.shape[2], : scaled.shape[3]] = (scaled - mean) / std
            levels = model.backbone(canvas).values()
        rows = []
        for level in levels:
            height, width = (
                int(np.ceil(side * size / whole))
                for side, size, whole in zip(scaled.shape[2:], level.shape[2:], canvas.shape[2:], strict=True)
            )
            rows.append(level[0, :, :height, :width].mean(dim=(1, 2)))
        one = answer.boxes.of(0)
        assert len(one["scores"]) == 7
        np.testing.assert_allclose(one["scores"], found["scores"], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(one["boxes"], found["boxes"], atol=0.05)
        np.testing.assert_array_equal(one["labels"] + 1, found["labels"])
        np.testing.assert_allclose(answer.features[0], torch.cat(rows), rtol=1e-3, atol=1e-4)


def test_features_of_a_padded_batch_are_means_of_the_crop_that_is_image(images, own_weights):
    """96 x 64 and 64 x 96 pixels, scale 1: both in the corner of 96 x 96, on maps of 3 x 3 and 2 x 2 places."""
    dataset = make_dataset(images[:2])
    agent = make(architecture=SMALL, weights=own_weights, min_size=64, features=["backbone"])
    agent.load(None, dataset, "cpu")
    _, shown = agent.detect([read_image(path) for path in images[:2]])
    model = random_model(SMALL, num_classes=4, seed=1).eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.transform.image_mean, model.transform.image_std))
    canvas = torch.zeros(2, 3, 96, 96)
    canvas[0, :, :64, :] = (read_image(images[0]) / 255 - mean) / std
    canvas[1, :, :, :64] = (read_image(images[1]) / 255 - mean) / std
    with torch.inference_mode():
        one, two, three = model.backbone(canvas).values()
    assert [level.shape[2:] for level in (one, two, three)] == [(3, 3), (3, 3), (2, 2)]
    first = [level[0, :, :rows].mean(dim=(1, 2)) for level, rows in ((one, 2), (two, 2), (three, 2))]
    second = [level[1, :, :, :columns].mean(dim=(1, 2)) for level, columns in ((one, 2), (two, 2), (three, 2))]
    np.testing.assert_allclose(shown, torch.stack([torch.cat(first), torch.cat(second)]), rtol=1e-3, atol=1e-4)


def test_padding_is_left_out_of_the_means():
    level = torch.zeros(2, 1, 4, 4)
    level[0, :, :2, :3] = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    level[1] = 7
    level[0, :, 2:], level[0, :, :, 3:] = 1000, 1000
    batch = type("ImageList", (), {"tensors": torch.zeros(2, 3, 32, 32), "image_sizes": [(10, 24), (32, 32)]})
    assert torch.cat(torchvision_models.mean_of_levels({"0": level, "1": level[:, :, :1]}, batch), dim=1).tolist() == [
        [3.5, 2.0],
        [7.0, 7.0],
    ]


def test_measured_gflops_are_the_convolutions_and_matrices(images):
    model = torch.nn.Conv2d(3, 8, 3, padding=1)
    agent = make("small_faster_rcnn")

    agent.detect = lambda found: model(found[0][None].float())
    dataset = make_dataset(images[:1])
    assert agent.gflops(dataset) == pytest.approx(96 * 64 * 8 * 27 / 1e9)


@pytest.mark.parametrize("form", ["bare", "state_dict", "parallel", "safetensors", "frozen"])
def test_files_of_all_kinds_hold_the_same_weights(tmp_path, own_weights, images, form):
    weights = torch.load(own_weights, weights_only=True)["model"]
    file = tmp_path / ("own.safetensors" if form == "safetensors" else "own.pth")
    if form == "safetensors":
        save_file(weights, file)
    else:
        content = {
            "bare": weights,
            "state_dict": {"state_dict": weights},
            "parallel": {f"module.{name}": value for name, value in weights.items()},
            "frozen": {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")},
        }[form]
        torch.save(content, file)
    agent, dataset = make(architecture=SMALL, weights=file), make_dataset(images)
    agent.load(None, dataset, "cpu")
    for name, value in agent.model.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, weights[name])


@pytest.mark.slow
def test_weights_that_do_not_fit_are_refused_naming_file_and_key(tmp_path, own_weights, images):
    weights = torch.load(own_weights, weights_only=True)["model"]
    dataset, key = make_dataset(images), "roi_heads.box_predictor.cls_score.weight"
    first = next(iter(weights))
    cases = {
        f"no weights '{first}'": {name: value for name, value in weights.items() if name != first},
        r"'more', for which there is no place": {**weights, "more": torch.zeros(1)},
        rf"'{key}' is of shape \(91, 1024\), expected \(4, 1024\)": {**weights, key: torch.zeros(91, 1024)},
        rf"'{key}' has values that are not finite": {**weights, key: weights[key] * float("nan")},
        "holds no weights": {"epoch": 3},
    }
    for number, (said, content) in enumerate(cases.items()):
        file = tmp_path / f"{number}.pth"
        torch.save(content, file)
        with pytest.raises(DataError, match=said) as error:
            make(architecture=SMALL, weights=file).load(None, dataset, "cpu")
        assert str(file) in str(error.value)
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(own_weights.read_bytes()[:5000])
        with pytest.raises(DataError, match="cannot be read"):
            make(architecture=SMALL, weights=tmp_path / name).load(None, dataset, "cpu")


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/l2d_unpickled"),))


def test_weights_are_never_unpickled(tmp_path):
    file, mark = tmp_path / "trap.pth", Path("/tmp/l2d_unpickled")
    torch.save({"model": Trap()}, file)
    with pytest.raises(DataError, match="cannot be read"):
        read_weights(file)
    assert not mark.exists()


def refused(images, **keys) -> str:
    with pytest.raises(UsageError) as error:
        make(**keys).check(make_dataset(images), ["boxes"])
    return str(error.value)


def test_recipes_that_cannot_work_are_refused(images, hub, own_weights):
    misspelt = refused(images, architecture="fasterrcn_resnet50_fpn", weights="COCO_V1")
    assert "did you mean 'fasterrcnn_resnet50_fpn'" in misspelt
    assert "more than boxes" in refused(images, architecture="maskrcnn_resnet50_fpn", weights="COCO_V1")
    assert "more than boxes" in refused(images, architecture="keypointrcnn_resnet50_fpn", weights="COCO_V1")
    assert "publishes no weights 'IMAGENET'" in refused(images, architecture=SMALL, weights="IMAGENET")
    absent = refused(images, architecture="fcos_resnet50_fpn", weights="COCO_V1")
    assert "https://download.pytorch.org/models/fcos_resnet50_fpn_coco-99b0c9b7.pth" in absent
    assert str(hub / "checkpoints" / "fcos_resnet50_fpn_coco-99b0c9b7.pth") in absent
    assert "no such file" in refused(images, architecture=SMALL, weights=Path("/nowhere/a.pth"))
    assert "one size" in refused(images, architecture="ssd300_vgg16", weights=own_weights, min_size=400)
    assert "labels are not known" in refused(images, architecture=SMALL, weights=own_weights, labels="weights")
    assert "none of the detector's labels" in refused(images, architecture=SMALL, weights=own_weights, labels=["ox"])
    assert {"fcos_resnet50_fpn", "ssd300_vgg16", "retinanet_resnet50_fpn_v2"} < set(architectures())


def test_labels_that_are_listed(images, own_weights):
    agent = make(architecture=SMALL, weights=own_weights, labels=["tv", "dog", "human"], label_map={"human": "person"})
    assert agent._labels(make_dataset(images)).tolist() == [-1, 2, -1, 0]


def test_a_model_that_overflows_is_a_failure_and_finds_not_nothing(images, own_weights):
    dataset = make_dataset(images)
    agent = make(architecture=SMALL, weights=own_weights, min_size=64)
    agent.load(None, dataset, "cpu")
    next(agent.model.backbone.parameters()).data.fill_(float("inf"))
    answers = agent.ask(dataset.batch(range(3)))
    assert all("not finite" in reason for reason in answers.failure)


# --- through a build ----------------------------------------------------------------------------------------------

BUILD = """
[dataset]
kind = "voc"
path = "VOCdevkit"
sets = {{ train = ["2012/train"], test = ["2012/val"] }}

[costs.map]

[build]
chunk_size = 4
batch_size = 4

[[agents]]
name = "model"
kind = "torchvision_detector"
architecture = "{architecture}"
weights = "{weights}"
labels = ["person", "sofa", "bird"]
min_size = 64
min_score = 0.3
price = "gflops"
features = ["backbone", "detections"]
workers = 1

[[agents]]
name = "expert"
kind = "small_faster_rcnn"
channels = [8, 8]
hidden = 8
anchors = [16.0]
proposals = 8
epochs = 2
"""
OBJECT = """<annotation><size><width>64</width><height>48</height></size><object><name>dog</name><bndbox>
<xmin>11</xmin><ymin>11</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object></annotation>"""


@pytest.fixture
def project(tmp_path, own_weights) -> Path:
    folder, generator = tmp_path / "VOCdevkit" / "VOC2012", np.random.default_rng(1)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for number in range(8):
        (folder / "Annotations" / f"{number}.xml").write_text(OBJECT)
        image = np.repeat(np.repeat(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8), 8, 0), 8, 1)
        Image.fromarray(image).save(folder / "JPEGImages" / f"{number}.jpg")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("0\n1\n2\n3\n4\n")
    (folder / "ImageSets" / "Main" / "val.txt").write_text("5\n6\n7\n")
    (tmp_path / "own.pth").write_bytes(own_weights.read_bytes())
    (tmp_path / "recipe.toml").write_text(BUILD.format(architecture=SMALL, weights="own.pth"))
    return tmp_path


@pytest.mark.slow
def test_a_corrupt_jpeg_stops_the_build_or_is_recorded(project):
    recipe = load_recipe(str(project / "recipe.toml"))
    image = project / "VOCdevkit" / "VOC2012" / "JPEGImages" / "6.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:-100])  # the header is whole: reading the dataset does not notice
    with pytest.raises(AgentFailure, match=r"6\.jpg") as error:
        build(recipe, project / "cache")
    assert "sample '6'" in str(error.value)
    report = build(recipe, project / "cache", on_failure="record")
    assert report.failed == {"model": 1, "expert": 1}
    tables = load_tables(CostCache(project / "cache"), ("train", "test"), failures="drop", predictions=True)
    assert sorted(tables["test"].ids) == ["5", "7"]
    assert len(tables["test"].predictions["model"]["pred_boxes"].label) > 0
    image.write_bytes(whole)
    report = build(recipe, project / "whole")
    whole_tables = load_tables(CostCache(project / "whole"), ("test",), predictions=True)
    chosen = np.array([whole_tables["test"].ids.index(name) for name in tables["test"].ids])
    np.testing.assert_allclose(tables["test"].features, whole_tables["test"].features[chosen], rtol=1e-4, atol=1e-5)
    assert report.asked["model"] == 8


def test_weights_names_stay_names_and_files_are_relative_to_the_recipe(project):
    text = (project / "recipe.toml").read_text()
    assert load_recipe(str(project / "recipe.toml")).agents[0].weights == project / "own.pth"
    (project / "recipe.toml").write_text(text.replace("own.pth", "COCO_V1"))
    assert load_recipe(str(project / "recipe.toml")).agents[0].weights == "COCO_V1"
    shipped = load_recipe("voc2012", data=project)
    assert [agent.weights for agent in shipped.agents] == ["COCO_V1"] * 3


# --- the small one ------------------------------------------------------------------------------------------------


def test_the_small_one_is_trained_the_same_twice_and_answers_from_what_it_froze(images):
    boxes = Boxes.from_images([{"boxes": [[5, 5, 30, 40]], "labels": [k]} for k in range(3)])
    dataset = make_dataset(images, boxes=boxes)
    keys = {"channels": [8, 8], "hidden": 8, "anchors": [24.0], "proposals": 8, "epochs": 3, "min_score": 0.0}
    agents = [make("small_faster_rcnn", **keys, seed=seed) for seed in (0, 0, 1)]
    frozen = [agent.freeze(dataset, "cpu") for agent in agents]
    same = [all(np.array_equal(frozen[0][name], other[name]) for name in frozen[0]) for other in frozen]
    assert same == [True, True, False]
    answers = []
    for arrays in frozen[:2]:
        agent = make("small_faster_rcnn", **keys)
        agent.load(arrays, dataset, "cpu")
        answers.append(agent.ask(dataset.batch(range(3))).boxes)
    assert len(answers[0].label) > 0
    for name in ("xyxy", "label", "score"):
        np.testing.assert_array_equal(getattr(answers[0], name), getattr(answers[1], name))
    with pytest.raises(DataError, match="nothing to find"):
        make("small_faster_rcnn", **keys).freeze(make_dataset(images), "cpu")
