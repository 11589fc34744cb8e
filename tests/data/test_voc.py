"""Pascal VOC's format: what is read is what independent readers read, and everything odd is refused by name."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import hypothesis
import numpy as np
import pytest
from conftest import refused
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from l2d.data.errors import DataError
from l2d.data.samples.boxes import Boxes
from l2d.data.sources.voc import VOC_CLASSES, VocAnnotation, VocConfig, VocObject, format_voc, load_voc, parse_voc

OBJECT = """
  <object>
    <name>{name}</name>
    <pose>Frontal</pose>
    <truncated>0</truncated>
    {difficult}
    <bndbox><xmax>{xmax}</xmax><ymax>{ymax}</ymax><xmin>{xmin}</xmin><ymin>{ymin}</ymin></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part>
  </object>"""


class Devkit:
    """A VOCdevkit folder written by hand."""

    def __init__(self, folder: Path):
        self.folder = folder / "VOCdevkit"
        self.size = (100, 60)

    def image(self, image_id: str, *objects: tuple, year: str = "2012", suffix: str = ".jpg", shade: int = 0) -> Path:
        """Objects are (name, xmin, ymin, xmax, ymax), in VOC's coordinates, and an optional text for <difficult>."""
        root = self.folder / f"VOC{year}"
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / part).mkdir(parents=True, exist_ok=True)
        shown = ""
        for name, xmin, ymin, xmax, ymax, *rest in objects:
            difficult = f"<difficult>{rest[0]}</difficult>" if rest else ""
            values = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
            shown += OBJECT.format(name=escape(name), difficult=difficult, **values)
        width, height = self.size
        self.annotation(image_id, year).write_text(
            f"<annotation>\n  <folder>VOC{year}</folder>\n  <filename>{image_id}{suffix}</filename>\n"
            f"  <source><annotation>PASCAL VOC</annotation></source>\n  <size><width>{width}</width>"
            f"<height>{height}</height><depth>3</depth></size>\n  <segmented>0</segmented>{shown}\n</annotation>\n"
        )
        seed = sum(image_id.encode()) + shade
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = root / "JPEGImages" / f"{image_id}{suffix}"
        Image.fromarray(pixels).save(path)
        return path

    def annotation(self, image_id: str, year: str = "2012") -> Path:
        return self.folder / f"VOC{year}" / "Annotations" / f"{image_id}.xml"

    def edit(self, image_id: str, old: str, new: str) -> None:
        text = self.annotation(image_id).read_text()
        assert old in text
        self.annotation(image_id).write_text(text.replace(old, new))

    def set(self, source: str, *ids: str) -> Path:
        year, name = source.split("/")
        path = self.folder / f"VOC{year}" / "ImageSets" / "Main" / f"{name}.txt"
        path.write_text("".join(f"{image_id}\n" for image_id in ids))
        return path

    def load(self, path: Path | None = None, **settings):
        return load_voc(VocConfig(path=path or self.folder, **settings), "pets")


@pytest.fixture
def devkit(tmp_path) -> Devkit:
    """Ten images to train on, of which a fifth becomes the validation split, and three to test on."""
    devkit = Devkit(tmp_path)
    ids = [f"2008_{k:06d}" for k in range(13)]
    devkit.image(ids[0], ("dog", 1, 1, 100, 60), ("cat", 10, 20, 30, 40, 1), ("cat", 5, 5, 9, 9, 0))
    devkit.image(ids[1])
    devkit.image(ids[2], ("cat", "12.25", 3, 40, "50.5"), ("dog", 3, 3, 3, 3), ("cat", 2, 2, 7, 8))
    for image_id in ids[3:]:
        devkit.image(image_id, ("person", 20, 10, 60, 50, "0"))
    devkit.set("2012/train", *ids[:10])
    devkit.set("2012/val", *ids[10:])
    return devkit


def test_boxes_labels_and_columns_are_those_of_the_files(devkit):
    dataset = devkit.load()
    assert dataset.ids == [f"2008_{k:06d}" for k in range(13)]
    assert dataset.classes == tuple(VOC_CLASSES)
    first = dataset.target_boxes.of(0)
    np.testing.assert_array_equal(first["boxes"], [[0, 0, 100, 60], [9, 19, 30, 40], [4, 4, 9, 9]])
    assert [VOC_CLASSES[label] for label in first["labels"]] == ["dog", "cat", "cat"]
    assert first["ignore"].tolist() == [False, True, False]
    assert not first["crowd"].any()
    assert (dataset.target_boxes.score == 1).all()
    assert len(dataset.target_boxes.of(1)["boxes"]) == 0
    np.testing.assert_array_equal(
        dataset.target_boxes.of(2)["boxes"], [[11.25, 2, 40, 50.5], [2, 2, 3, 3], [1, 1, 7, 8]]
    )
    assert dataset.columns.columns == ["width", "height", "num_objects", "num_ignored", "objects", "source"]
    assert dataset.keep == tuple(dataset.columns.columns)
    assert dataset.columns.rows()[:4] == [
        (100, 60, 2, 1, "cat, dog", "2012/train"),
        (100, 60, 0, 0, "", "2012/train"),
        (100, 60, 3, 0, "cat, dog", "2012/train"),
        (100, 60, 1, 0, "person", "2012/train"),
    ]
    assert dataset.features is None
    assert dataset.images[4] == devkit.folder / "VOC2012" / "JPEGImages" / "2008_000004.jpg"


def test_difficult_objects_count_where_the_recipe_says_so(devkit):
    dataset = devkit.load(difficult="count")
    assert not dataset.target_boxes.ignore.any()
    assert dataset.columns["num_objects"][0] == 3
    assert dataset.content["target_boxes"] != devkit.load().content["target_boxes"]


@pytest.mark.parametrize("root", ["", "VOCdevkit"])
def test_the_boxes_are_those_of_torchvisions_reader(devkit, root):
    from torchvision.datasets import VOCDetection

    theirs = VOCDetection(str(devkit.folder.parent), year="2012", image_set="train")
    ours = devkit.load(devkit.folder.parent / root)
    assert len(theirs) == 10
    for position, (image, target) in enumerate(theirs):
        annotation = target["annotation"]
        assert Path(theirs.images[position]) == ours.images[position]
        assert image.size == ours.columns.row(position)[:2]
        boxes = [thing["bndbox"] for thing in annotation["object"]]
        expected = [[float(box[side]) for side in ("xmin", "ymin", "xmax", "ymax")] for box in boxes]
        found = ours.target_boxes.of(position)
        np.testing.assert_array_equal(found["boxes"] + [1, 1, 0, 0], np.reshape(expected, (-1, 4)))
        assert [VOC_CLASSES[label] for label in found["labels"]] == [t["name"] for t in annotation["object"]]
        assert found["ignore"].tolist() == [t.get("difficult") == "1" for t in annotation["object"]]


def test_the_2011_layout_that_torchvision_unpacks_is_found(devkit):
    (devkit.folder.parent / "root" / "TrainVal").mkdir(parents=True)
    devkit.folder.rename(devkit.folder.parent / "root" / "TrainVal" / "VOCdevkit")
    assert len(devkit.load(devkit.folder.parent / "root")) == 13


PARTS = Path(os.environ.get("L2D_ASSETS", "assets"))


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """Three photographs of Pascal VOC 2011 with their annotations, out of labelme's source archive."""
    import tarfile

    archives = sorted(PARTS.glob("labelme-*.tar.gz"))
    if not archives:
        pytest.skip("no labelme archive in L2D_ASSETS")
    root = tmp_path_factory.mktemp("photographs") / "VOC2011"
    with tarfile.open(archives[0]) as archive:
        for member in archive.getmembers():
            if "/data_dataset_voc/" in member.name and member.name.endswith((".jpg", ".xml")):
                file = root / Path(member.name).parent.name / Path(member.name).name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.extractfile(member).read())
    main = root / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "train.txt").write_text("2011_000003\n2011_000006\n")
    (main / "val.txt").write_text("2011_000025\n")
    return root.parent


def test_real_photographs_are_read(photographs):
    """Fractional coordinates, empty <difficult/>, class names of labelme's own."""
    classes = ["person", "chair", "bottle", "potted plant", "bus", "car", "tv/monitor", "sofa"]
    sets = {"train": ["2011/train"], "test": ["2011/val"]}
    dataset = load_voc(VocConfig(path=photographs, sets=sets, classes=classes, validation=0.5), "photographs")
    assert dataset.ids == ["2011_000003", "2011_000006", "2011_000025"]
    assert dataset.columns["num_objects"].to_list() == [2, 4, 3]
    assert dataset.columns.select("width", "height").rows() == [(500, 338), (500, 375), (500, 375)]
    total = 0
    for sample_id, found in zip(dataset.ids, map(dataset.target_boxes.of, range(3)), strict=True):
        root = ElementTree.parse(photographs / "VOC2011" / "Annotations" / f"{sample_id}.xml").getroot()
        for box, label, thing in zip(found["boxes"], found["labels"], root.findall("object"), strict=True):
            values = [float(thing.find("bndbox").findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")]
            np.testing.assert_allclose(box, np.subtract(values, [1, 1, 0, 0]), rtol=1e-6)
            assert classes[label] == thing.findtext("name")
            total += 1
    assert total == 9
    assert sorted(np.unique(dataset.split)) == ["test", "train", "validation"]


# --- splits ---------------------------------------------------------------------------------------------------------


def test_a_share_of_train_validates_by_a_hash_of_the_id(devkit):
    dataset = devkit.load()
    assert (dataset.split[10:] == "test").all()
    drawn = {sample for sample, split in zip(dataset.ids, dataset.split, strict=True) if split == "validation"}
    assert len(drawn) == 2
    assert (dataset.split[:10] == "train").sum() == 8
    devkit.set("2012/train", *reversed([f"2008_{k:06d}" for k in range(10)]))
    other = devkit.load()
    assert drawn == {sample for sample, split in zip(other.ids, other.split, strict=True) if split == "validation"}
    salts = {tuple(devkit.load(salt=f"{salt}").split) for salt in range(8)}
    assert len(salts) > 3
    assert (devkit.load(validation=0.5).split == "validation").sum() == 5


def test_a_named_validation_set_is_the_validation_split(devkit):
    devkit.set("2012/mine", "2008_000009")
    devkit.set("2012/train", *[f"2008_{k:06d}" for k in range(9)])
    sets = {"train": ["2012/train"], "validation": ["2012/mine"], "test": ["2012/val"]}
    dataset = devkit.load(sets=sets)
    assert dataset.split.tolist() == ["train"] * 9 + ["validation"] + ["test"] * 3
    assert dataset.columns["source"][9] == "2012/mine"


def test_images_to_fit_on_are_a_dataset_of_their_own(devkit):
    devkit.image("2009_000001", ("dog", 1, 1, 50, 50))
    devkit.image("2009_000002", ("cat", 1, 1, 50, 50))
    devkit.set("2012/more", "2009_000001", "2009_000002")
    sets = {"train": ["2012/train"], "test": ["2012/val"]}
    dataset = devkit.load(sets={**sets, "fit": ["2012/more"]})
    assert len(dataset) == 13
    assert dataset.fit.ids == ["2009_000001", "2009_000002"]
    assert dataset.fit.split.tolist() == ["train", "train"]
    assert dataset.fit.columns["objects"].to_list() == ["dog", "cat"]
    before = dataset.fingerprint()
    devkit.edit("2009_000001", "<name>dog</name>", "<name>cow</name>")
    assert devkit.load(sets={**sets, "fit": ["2012/more"]}).fingerprint() != before
    assert devkit.load(sets=sets).fit is None


def test_years_are_told_apart_only_where_their_ids_collide(devkit):
    devkit.image("000001", ("dog", 1, 1, 50, 50), year="2007")
    devkit.set("2007/test", "000001")
    sets = {"train": ["2012/train"], "test": ["2007/test"]}
    assert devkit.load(sets=sets).ids[-2:] == ["2008_000009", "000001"]
    devkit.image("2008_000001", ("dog", 1, 1, 50, 50), year="2007", shade=1)
    devkit.set("2007/test", "000001", "2008_000001")
    dataset = devkit.load(sets=sets)
    assert dataset.ids[:2] == ["2012/2008_000000", "2012/2008_000001"]
    assert dataset.ids[-2:] == ["2007/000001", "2007/2008_000001"]
    assert dataset.images[1] != dataset.images[-1]


def test_one_photograph_in_the_sets_of_two_years_is_refused(devkit):
    """VOC2012 holds the images of the years before it."""
    devkit.image("2008_000001", ("dog", 1, 1, 50, 50), year="2011")
    devkit.set("2011/val", "2008_000001")
    sets = {"train": ["2012/train"], "test": ["2011/val"]}
    refused(lambda: devkit.load(sets=sets), DataError, "2008_000001", "train (2012/train)", "test (2011/val)")


def test_a_limit_takes_the_first_of_each_set(devkit):
    devkit.annotation("2008_000009").unlink()  # not looked at
    dataset = devkit.load(limit=3)
    assert dataset.ids == ["2008_000000", "2008_000001", "2008_000002", "2008_000010", "2008_000011", "2008_000012"]
    assert (dataset.split == "validation").sum() == 1


def test_what_the_files_hold_is_the_fingerprint_and_not_where_they_lie(devkit, tmp_path):
    before = devkit.load(image_size=16)
    fingerprint = before.fingerprint()
    devkit.folder.rename(tmp_path / "moved")
    devkit.folder = tmp_path / "moved"
    assert devkit.load(image_size=16).fingerprint() == fingerprint
    assert before.image_size == 16
    assert devkit.load(image_size=16, limit=99).fingerprint() == fingerprint  # it left nothing out
    devkit.edit("2008_000005", "<xmin>20</xmin>", "<xmin>21</xmin>")
    changed = devkit.load(image_size=16).fingerprint()
    assert {key for key in changed if changed[key] != fingerprint[key]} == {"target_boxes"}
    assert devkit.load().fingerprint().keys() == changed.keys()


# --- mistakes -------------------------------------------------------------------------------------------------------


def _odd_set(devkit):
    (devkit.folder / "VOC2012" / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\x00")


def _png(devkit):
    Image.new("RGB", (9, 9)).save(devkit.folder / "VOC2012" / "JPEGImages" / "2008_000003.jpg")


PERSON = "<name>person</name>"
MISTAKES = {
    "no devkit": (lambda d: d.folder.rename(d.folder.with_name("x")), "there is no folder VOC2012", "VOCdevkit"),
    "no year": (lambda d: (d.folder / "VOC2012").rename(d.folder / "VOC2007"), "no folder VOC2012", "VOC2007"),
    "no set": (lambda d: d.set("2012/train").unlink(), "there is no set '2012/train'", "train.txt", "sets val"),
    "empty set": (lambda d: d.set("2012/val"), "the set '2012/val' is empty", "val.txt"),
    "set of bytes": (_odd_set, "cannot be read", "train.txt"),
    "no annotation": (lambda d: d.annotation("2008_000003").unlink(), "'2008_000003'", "2008_000003.xml"),
    "list of a class": (lambda d: d.set("2012/val", "2008_000010 -1"), "2008_000010 -1.xml", "aeroplane_train"),
    "no XML": (lambda d: d.annotation("2008_000003").write_text("<annotation>"), "is not XML", "2008_000003.xml"),
    "other bytes": (lambda d: d.annotation("2008_000003").write_bytes(b"\xff\xd8"), "is not XML", "000003.xml"),
    "empty file": (lambda d: d.annotation("2008_000003").write_text(""), "is not XML", "2008_000003.xml"),
    "other XML": (lambda d: d.annotation("2008_000003").write_text("<html/>"), "is <html>", "2008_000003.xml"),
    "odd encoding": (
        lambda d: d.edit("2008_000003", "<annotation>\n", "<?xml version='1.0' encoding='x'?>"),
        "not XML",
    ),
    "no image": (
        lambda d: (d.folder / "VOC2012/JPEGImages/2008_000003.jpg").unlink(),
        "there is no image '2008_000003'",
        "2008_000003.jpg",
    ),
    "no image inside": (
        lambda d: (d.folder / "VOC2012/JPEGImages/2008_000003.jpg").write_text("x"),
        "cannot be read as an image",
        "2008_000003.jpg",
    ),
    "another size": (_png, "100 x 60 pixels", "9 x 9", "2008_000003.xml"),
    "box without a side": (
        lambda d: d.edit("2008_000003", "<xmin>20</xmin>", ""),
        "<bndbox/xmin> is missing",
        "object 0",
    ),
    "box of words": (lambda d: d.edit("2008_000003", ">20<", ">left<"), "<bndbox/xmin> is 'left'", "object 0"),
    "no name": (lambda d: d.edit("2008_000003", PERSON, "<name> </name>"), "no name", "2008_000003.xml, object 0"),
    "unknown class": (
        lambda d: d.edit("2008_000003", PERSON, "<name>persan</name>"),
        "'persan'",
        "did you mean 'person'?",
    ),
    "nobody's class": (lambda d: d.edit("2008_000003", PERSON, "<name>zzz</name>"), "'zzz'", "aeroplane, bicycle"),
    "odd difficult": (lambda d: d.edit("2008_000003", ">0</diff", ">maybe</diff"), "'maybe'", "2008_000003.xml"),
    "size without width": (lambda d: d.edit("2008_000003", "<width>100</width>", ""), "<size/width> is missing"),
    "zero size": (lambda d: d.edit("2008_000003", "<width>100<", "<width>0<"), "the size is 0 x 60", "000003.xml"),
    "endless size": (lambda d: d.edit("2008_000003", "<width>100<", "<width>inf<"), "the size is inf x 60"),
    "half a pixel": (lambda d: d.edit("2008_000003", "<width>100<", "<width>99.5<"), "the size is 99.5 x 60"),
    "box outside": (
        lambda d: d.edit("2008_000003", "<xmax>60<", "<xmax>101.5<"),
        "(19, 9, 101.5, 50) of a person reaches outside",
        "2008_000003.xml, object 0",
        'bad_objects = "drop"',
    ),
    "box before the image": (lambda d: d.edit("2008_000003", "<ymin>10<", "<ymin>-1<"), "(19, -2, 60, 50)", "outside"),
    "box without area": (lambda d: d.edit("2008_000003", "<xmax>60<", "<xmax>19<"), "(19, 9, 19, 50)", "has no area"),
    "box turned round": (lambda d: d.edit("2008_000003", "<ymax>50<", "<ymax>5<"), "has no area"),
    "box that is no number": (lambda d: d.edit("2008_000003", "<xmax>60<", "<xmax>nan<"), "is not finite"),
    "endless box": (lambda d: d.edit("2008_000003", "<xmax>60<", "<xmax>1e999<"), "is not finite"),
    "huge box": (lambda d: d.edit("2008_000003", "<xmax>60<", "<xmax>1e300<"), "reaches outside"),
    "in two splits": (
        lambda d: d.set("2012/val", "2008_000010", "2008_000003"),
        "'2008_000003'",
        "is in train (2012/train) and again in test (2012/val)",
    ),
    "twice in a set": (
        lambda d: d.set("2012/val", "2008_000010", "2008_000010"),
        "test (2012/val) and again in test (2012/val)",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_what_is_wrong_is_named(devkit, what):
    spoil, *words = MISTAKES[what]
    devkit.load()
    spoil(devkit)
    refused(devkit.load, DataError, *words)


def test_an_object_without_a_box_is_named(devkit):
    text = devkit.annotation("2008_000003").read_text()
    start, stop = text.index("<bndbox>"), text.index("</bndbox>") + len("</bndbox>")
    devkit.annotation("2008_000003").write_text(text[:start] + text[stop:])  # the box of its part stays
    refused(devkit.load, DataError, "a person has no <bndbox>", "2008_000003.xml, object 0")


def test_only_the_objects_of_the_image_itself_count():
    content = format_voc(VocAnnotation("a.jpg", 9, 9, [VocObject("dog", (0, 0, 1, 1))]), folder="x", database="y")
    nested = content.replace(b"<segmented>", b"<other><object><name>cat</name></object></other><segmented>")
    assert nested != content
    assert parse_voc(nested, Path("a.xml")) == parse_voc(content, Path("a.xml"))


def test_a_missing_size_is_named(devkit):
    text = devkit.annotation("2008_000003").read_text()
    start, stop = text.index("<size>"), text.index("</size>") + len("</size>")
    devkit.annotation("2008_000003").write_text(text[:start] + text[stop:])
    refused(devkit.load, DataError, "<size/width> is missing", "2008_000003.xml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_document_type_is_refused_before_its_entities_grow(encoding):
    bomb = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>'
    content = f'<?xml version="1.0" encoding="{encoding}"?>{bomb}'.encode(encoding)
    refused(lambda: parse_voc(content, Path("bomb.xml")), DataError, "document type", "bomb.xml")


def test_an_image_to_fit_on_that_is_tested_on_is_refused(devkit):
    devkit.set("2012/more", "2008_000011")
    sets = {"train": ["2012/train"], "test": ["2012/val"], "fit": ["2012/more"]}
    refused(lambda: devkit.load(sets=sets), DataError, "'2008_000011'", "test (2012/val)", "fit (2012/more)")


def test_one_training_image_cannot_be_split(devkit):
    refused(lambda: devkit.load(limit=1), DataError, "one image", "validation")


def test_boxes_a_pixel_outside_stay_as_they_are_and_worse_ones_are_dropped_if_asked(devkit):
    devkit.image(
        "2008_000001",
        ("dog", 0, 0, 101, 61),  # a pixel over on every side
        ("cat", -1, 1, 20, 20),
        ("cow", 5, 5, 4, 9),
        ("cow", 101, 5, 101, 9),  # beyond the edge, nothing left of it
        ("cow", "nan", 5, 6, 9),
        ("cat", 5, 5, 9, 9, 1),
    )
    refused(devkit.load, DataError, "(-2, 0, 20, 20) of a cat", "object 1", "4 such objects")
    dataset = devkit.load(bad_objects="drop")
    found = dataset.target_boxes.of(1)
    np.testing.assert_array_equal(found["boxes"], [[-1, -1, 101, 61], [4, 4, 9, 9]])
    assert dataset.columns.row(1)[2:5] == (1, 1, "dog")
    assert dataset.inputs["dropped_objects"] == {"bad": 4}
    assert len(dataset.target_boxes.of(2)["boxes"]) == 3


def test_other_image_files_are_found_by_the_name_that_the_annotation_has(devkit):
    path = devkit.image("2008_000003", ("dog", 1, 1, 50, 50), suffix=".png")
    assert devkit.load().images[3].suffix == ".jpg"  # VOC's own name comes first
    path.with_suffix(".jpg").unlink()
    assert devkit.load().images[3] == path
    devkit.edit("2008_000003", "<filename>", "<filename>C:/scans/")
    assert devkit.load().images[3] == path
    path.rename(path.with_suffix(".bmp"))
    devkit.edit("2008_000003", ".png", ".bmp")
    refused(devkit.load, DataError, "there is no image '2008_000003'", "2008_000003.bmp")


BAD_SETTINGS = {
    "no test": {"sets": {"train": ["2012/train"]}},
    "unknown set": {"sets": {"train": ["2012/train"], "test": ["2012/val"], "trian": ["2012/x"]}},
    "no year": {"sets": {"train": ["train"], "test": ["2012/val"]}},
    "a path": {"sets": {"train": ["2012/../train"], "test": ["2012/val"]}},
    "no sets of a split": {"sets": {"train": [], "test": ["2012/val"]}},
    "a class twice": {"classes": ["dog", "dog"]},
    "no classes": {"classes": []},
    "tiny copies": {"image_size": 4},
    "all to validate": {"validation": 1.0},
    "no limit": {"limit": 0},
    "what to do": {"bad_objects": "keep"},
    "a text": {"limit": "3"},
}


@pytest.mark.parametrize("what", BAD_SETTINGS)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, what):
    VocConfig(path=tmp_path)
    with pytest.raises(ValidationError):
        VocConfig(path=tmp_path, **BAD_SETTINGS[what])


# --- round trips ----------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)


@st.composite
def annotations(draw) -> VocAnnotation:
    width, height = draw(st.integers(1, 2000)), draw(st.integers(1, 2000))
    objects = []
    for _ in range(draw(st.integers(0, 6))):
        x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        x2, y2 = draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))
        box = tuple(float(value) for value in (x1, y1, x2, y2))
        objects.append(VocObject(draw(NAMES), box, draw(st.booleans())))
    return VocAnnotation(draw(NAMES), width, height, objects)


@hypothesis.given(annotations())
@hypothesis.settings(max_examples=150, deadline=None)
def test_objects_survive_xml_and_boxes(annotation):
    content = format_voc(annotation, folder="VOC2012", database="made up")
    found = parse_voc(content, Path("a.xml"))
    assert found == annotation
    corners = [thing.findtext("xmin") for thing in ElementTree.fromstring(content).iter("bndbox")]
    assert corners == [f"{round(thing.xyxy[0]) + 1}" for thing in annotation.objects]
    boxes = Boxes.from_images(
        [{"boxes": [t.xyxy for t in found.objects], "labels": range(len(found.objects))}, {"boxes": [], "labels": []}]
    )
    again = Boxes.from_arrow(boxes.to_arrow())
    np.testing.assert_array_equal(again.of(0)["boxes"], np.reshape([t.xyxy for t in annotation.objects], (-1, 4)))


@hypothesis.given(st.lists(st.floats(1, 500, allow_nan=False), min_size=4, max_size=4))
@hypothesis.settings(max_examples=100, deadline=None)
def test_fractions_survive_xml_to_a_billionth(values):
    given = VocAnnotation("a.jpg", 500, 500, [VocObject("dog", tuple(values))])
    found = parse_voc(format_voc(given, folder="VOC2012", database="x"), Path("a.xml"))
    np.testing.assert_allclose(found.objects[0].xyxy, values, rtol=0, atol=1e-9)


@hypothesis.given(st.binary(max_size=60), st.integers(0, 500), st.integers(0, 500))
@hypothesis.settings(max_examples=150, deadline=None)
def test_spoilt_annotations_are_read_or_refused(noise, start, length):
    whole = format_voc(
        VocAnnotation("a.jpg", 50, 40, [VocObject("dog", (1.0, 2.0, 30.0, 20.0), True)]), folder="x", database="y"
    )
    with suppress(DataError):
        parse_voc(whole[:start] + noise + whole[start + length :], Path("a.xml"))
