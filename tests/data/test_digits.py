"""The semi-synthetic digits: the same every time, real digits in one set only, boxes around their ink."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from PIL import Image
from sklearn.datasets import load_digits

from l2d.data.errors import DataError, UsageError
from l2d.data.samples.images import read_image
from l2d.data.sources import digits
from l2d.data.sources.digits import CLASSES, draw_scene, write_digits
from l2d.data.sources.voc import VocConfig, load_voc

IMAGES = {"fit": 30, "train": 20, "val": 6, "test": 14}
SETS = {key: [f"digits/{key}"] for key in ("train", "test", "fit")} | {"validation": ["digits/val"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "VOCdevkit"
    write_digits(folder, images=IMAGES, seed=3)
    return folder


@pytest.fixture(scope="module")
def pool():
    return digits._share_digits({"all": 1}, seed=0)["all"]


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_voc_reader_reads_what_is_written(folder):
    dataset = load_voc(VocConfig(path=folder, sets=SETS, classes=list(CLASSES)), "digits")
    assert (len(dataset), len(dataset.fit)) == (40, 30)
    assert dict(zip(*np.unique(dataset.split, return_counts=True), strict=True)) == {
        "train": 20,
        "validation": 6,
        "test": 14,
    }
    assert set(dataset.columns["source"]) == {"digits/train", "digits/val", "digits/test"}
    assert set(dataset.columns["width"]) == set(dataset.columns["height"]) == {144}
    counts = dataset.target_boxes.counts
    assert counts.min() >= 1
    assert counts.max() <= 5
    with Image.open(dataset.images[0]) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (144, 144))


def test_torchvisions_reader_understands_it_too(folder):
    from xml.etree import ElementTree

    from torchvision.datasets import VOCDetection

    dataset = load_voc(VocConfig(path=folder, sets=SETS, classes=list(CLASSES)), "digits")
    for position in range(10):
        file = folder / "VOCdigits" / "Annotations" / f"{dataset.ids[position]}.xml"
        found = VOCDetection.parse_voc_xml(ElementTree.parse(file).getroot())["annotation"]
        assert found["filename"] == dataset.images[position].name
        names = [thing["name"] for thing in found["object"]]
        assert names == [CLASSES[label] for label in dataset.target_boxes.of(position)["labels"]]
        first = found["object"][0]["bndbox"]
        corners = [int(first[side]) for side in ("xmin", "ymin", "xmax", "ymax")]  # whole pixels, as VOC's
        np.testing.assert_array_equal(dataset.target_boxes.of(position)["boxes"][0] + [1, 1, 0, 0], corners)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(folder, tmp_path):
    write_digits(tmp_path / "again", images=IMAGES, seed=3)
    assert contents(tmp_path / "again") == contents(folder)
    write_digits(tmp_path / "other", images=IMAGES, seed=4)
    other, first = contents(tmp_path / "other"), contents(folder)
    assert other.keys() == first.keys()
    same = {name for name in first if other[name] == first[name]}
    assert same == {f"VOCdigits/ImageSets/Main/{name}.txt" for name in IMAGES}


def grounds(folder: Path, ids: range) -> np.ndarray:
    """Colour of the ground of some scenes, (n, 3)."""
    files = [folder / "VOCdigits" / "JPEGImages" / f"{scene:06d}.jpg" for scene in ids]
    return np.array([np.median(read_image(file).numpy(), axis=(1, 2)) for file in files])


def test_scenes_are_no_copies_of_each_other(folder, tmp_path):
    images = [digest for name, digest in contents(folder).items() if name.endswith(".jpg")]
    assert len(images) == 70
    assert len(set(images)) == 70
    write_digits(tmp_path / "other", images=IMAGES, seed=4)
    first = grounds(folder, range(1, 21))
    for others in (grounds(folder, range(31, 51)), grounds(tmp_path / "other", range(1, 21))):  # train; another seed
        alike = (np.abs(first - others) < 8).all(axis=1)
        assert alike.sum() <= 3


def test_it_says_that_it_is_semi_synthetic(folder):
    text = (folder / "README.txt").read_text()
    assert "semi-synthetic" in text.lower()
    assert "seed 3" in text
    assert "14 test" in text


def test_every_real_digit_is_handed_to_one_set():
    pools = digits._share_digits(IMAGES, seed=3)
    sizes = [len(labels) for _, labels in pools.values()]
    assert sum(sizes) == 1797
    np.testing.assert_allclose(sizes, 1797 * np.array([30, 20, 6, 14]) / 70, atol=1)
    given = sorted(glyph.tobytes() for glyphs, _ in pools.values() for glyph in glyphs)
    real = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert given == sorted(glyph.tobytes() for glyph in real)
    assert len(set(given)) == 1797  # so none is in two sets
    labels = {glyph.tobytes(): label for glyph, label in zip(real, load_digits().target, strict=True)}
    for glyphs, found in pools.values():
        assert [labels[glyph.tobytes()] for glyph in glyphs] == found.tolist()


def test_boxes_are_tight_around_ink(pool):
    glyphs, _ = pool
    generator = np.random.default_rng(0)
    for glyph in glyphs[:60]:
        height = generator.uniform(8, 80)
        mask = digits._glyph(glyph, height, generator.normal(0, 15))
        edges = mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()
        assert min(edges) > 0.25
        assert 0.7 * height <= mask.shape[0] <= 1.5 * height + 2
        assert mask.max() > 0.6


def test_digits_lie_in_the_scene_and_hardly_overlap(pool):
    numbers, heights = [], []
    for seed in range(150):
        pixels, objects = draw_scene(np.random.default_rng(seed), pool, 128)
        assert (pixels.shape, pixels.dtype) == ((128, 128, 3), np.uint8)
        boxes = np.array([thing.xyxy for thing in objects])
        assert boxes.min() >= 0
        assert boxes.max() <= 128
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        for i in range(len(boxes)):
            for j in range(i):
                sides = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
                assert sides.clip(0).prod() <= 0.1 * min(areas[i], areas[j]) + 1e-9
        tall = boxes[:, 3] - boxes[:, 1]
        assert [thing.difficult for thing in objects] == [bool(value < 10) for value in tall]
        numbers.append(len(objects))
        heights += tall.tolist()
    assert set(numbers) == {1, 2, 3, 4, 5}
    assert np.percentile(heights, 95) > 3.5 * np.percentile(heights, 5)


def test_hardships_come_together_and_can_be_seen(pool):
    """Grain, measured between neighbouring pixels, goes with small digits and with many of them."""
    rows = []
    for seed in range(200):
        pixels, objects = draw_scene(np.random.default_rng(seed), pool, 144)
        grain = np.median(np.abs(np.diff(pixels[..., 1].astype(float), axis=1)))
        tall = np.mean([thing.xyxy[3] - thing.xyxy[1] for thing in objects])
        rows.append((grain, tall, len(objects)))
    ranks = np.argsort(np.argsort(rows, axis=0), axis=0)
    found = np.corrcoef(ranks, rowvar=False)
    assert found[0, 1] < -0.5
    assert found[0, 2] > 0.4
    assert found[1, 2] < -0.4


def test_a_crash_leaves_nothing_behind(tmp_path, monkeypatch):
    drawn = []

    def fail(*args):
        drawn.append(args)
        if len(drawn) == 5:
            raise OSError(28, "No space left on device")
        return draw_scene(*args)

    monkeypatch.setattr(digits, "draw_scene", fail)
    refused(lambda: write_digits(tmp_path / "kit", images=IMAGES), DataError, "No space left", "kit")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "thesis.doc").write_text("mine")
    refused(
        lambda: write_digits(tmp_path / "kit", images=IMAGES), DataError, "there already", "kit", "name another one"
    )
    assert [path.name for path in (tmp_path / "kit").iterdir()] == ["thesis.doc"]


@pytest.mark.parametrize("images", [{}, {"train": 0}, {"../train": 3}, {"a": 1, "b": 9999}])
def test_sets_that_cannot_be_are_refused(tmp_path, images):
    refused(lambda: write_digits(tmp_path / "kit", images=images), UsageError)
    assert list(tmp_path.iterdir()) == []


def test_scenes_too_small_for_digits_are_refused(tmp_path):
    refused(lambda: write_digits(tmp_path / "kit", images=IMAGES, size=32), UsageError, "32 x 32")
