"""COCO's format: what is read is what pycocotools reads, and everything odd is refused by name."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from conftest import refused
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from l2d.cache_builder.agents import config_class, make_agent
from l2d.data.errors import DataError
from l2d.data.sources.coco import CocoConfig, load_coco

CATEGORIES = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]


def annotation(number: int, image_id: int, category_id: int, bbox: list, **more) -> dict:
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0, **more}


class Folder:
    """Two sets in COCO's layout, changed by the tests before they are written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.sets = {
            "train2017": self.content(
                [9, 139, 7, 25, 30, 34, 36, 42, 49, 61],
                [
                    annotation(501, 9, 18, [10, 20, 30, 15.5]),
                    annotation(502, 7, 1, [0, 0, 80, 50]),
                    annotation(503, 9, 1, [5, 5, 20.25, 10], iscrowd=1, segmentation={"counts": [1], "size": [50, 80]}),
                    annotation(504, 9, 3, [1, 2, 3, 4]),
                ],
            ),
            "val2017": self.content([785, 632], [annotation(11, 632, 3, [10, 10, 10, 10])]),
        }
        for name, content in self.sets.items():
            (folder / name).mkdir(parents=True)
            for image in content["images"]:
                self.draw(folder / name / image["file_name"])

    @staticmethod
    def content(ids: list[int], annotations: list[dict]) -> dict:
        images = [{"id": k, "file_name": f"{k:012d}.jpg", "width": 80, "height": 50} for k in ids]
        return {"images": images, "annotations": annotations, "categories": copy.deepcopy(CATEGORIES)}

    @staticmethod
    def draw(path: Path) -> None:
        pixels = np.random.default_rng(sum(path.stem.encode())).integers(0, 256, (50, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)

    def file(self, name: str) -> Path:
        return self.folder / f"instances_{name}.json"

    def write(self) -> None:
        for name, content in self.sets.items():
            self.file(name).write_text(json.dumps(content))

    def load(self, **settings):
        sets = {
            key: {"annotations": f"instances_{name}.json", "images": name}
            for key, name in (("train", "train2017"), ("test", "val2017"))
        }
        return load_coco(CocoConfig(path=self.folder, **{"sets": sets, **settings}), "coco")


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "coco")


def test_boxes_labels_and_columns_are_those_of_the_files(folder):
    folder.write()
    dataset = folder.load()
    assert dataset.ids == ["9", "139", "7", "25", "30", "34", "36", "42", "49", "61", "785", "632"]
    assert dataset.classes == ("person", "car", "dog")  # by id
    assert dataset.inputs == {"category_ids": [1, 3, 18]}
    first = dataset.target_boxes.of(0)
    np.testing.assert_array_equal(first["boxes"], [[10, 20, 40, 35.5], [5, 5, 25.25, 15], [1, 2, 4, 6]])
    assert first["labels"].tolist() == [2, 0, 1]
    assert first["crowd"].tolist() == first["ignore"].tolist() == [False, True, False]
    assert dataset.columns.schema["image_id"].is_integer()
    assert dataset.keep == tuple(dataset.columns.columns)
    assert dataset.columns.row(0) == (80, 50, 2, 1, "car, dog", "instances_train2017.json", 9, "000000000009.jpg")
    assert dataset.columns.row(1)[2:5] == (0, 0, "")
    assert dataset.images[2] == folder.folder / "train2017" / "000000000007.jpg"
    assert dataset.split[10:].tolist() == ["test", "test"]
    assert sorted(dataset.split[:10]) == ["train"] * 8 + ["validation"] * 2


def test_it_is_what_pycocotools_reads_and_matches_its_results(folder):
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO

    folder.write()
    dataset = folder.load()
    theirs = COCO(str(folder.file("train2017")))
    results = []
    for position, image_id in enumerate(theirs.getImgIds()):
        assert dataset.columns["image_id"][position] == image_id
        expected = theirs.loadAnns(theirs.getAnnIds(imgIds=[image_id]))
        found = dataset.target_boxes.of(position)
        corners = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in expected)]
        np.testing.assert_array_equal(found["boxes"], np.reshape(corners, (-1, 4)))
        assert found["crowd"].tolist() == [bool(entry["iscrowd"]) for entry in expected]
        categories = [dataset.inputs["category_ids"][label] for label in found["labels"]]
        assert categories == [entry["category_id"] for entry in expected]
        assert [dataset.classes[label] for label in found["labels"]] == [
            theirs.cats[category]["name"] for category in categories
        ]
        for (x1, y1, x2, y2), category in zip(found["boxes"].tolist(), categories, strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": image_id, "category_id": category, "bbox": box, "score": 1.0})
    assert len(theirs.loadRes(results).anns) == 4


def test_classes_can_be_chosen_in_an_order_of_ones_own(folder):
    folder.write()
    chosen = ["dog", "person"]
    refused(lambda: folder.load(classes=chosen), DataError, "'car'", "annotation 504", 'other_classes = "drop"')
    dataset = folder.load(classes=chosen, other_classes="drop")
    assert dataset.classes == ("dog", "person")
    assert dataset.inputs == {"category_ids": [18, 1], "dropped_objects": {"other_classes": 2}}
    assert dataset.target_boxes.of(0)["labels"].tolist() == [0, 1]
    assert len(dataset.target_boxes.xyxy) == 3
    folder.sets["train2017"]["annotations"].append(annotation(505, 61, 3, [1, 2, 3, 4]))
    folder.write()
    assert folder.load(classes=chosen, other_classes="drop").inputs["dropped_objects"] == {"other_classes": 3}
    both = folder.load(classes=chosen, other_classes="drop", bad_objects="drop", limit=2)
    assert both.inputs["dropped_objects"] == {"other_classes": 2, "bad": 0}
    refused(
        lambda: folder.load(classes=["dogs", "person"]), DataError, "'dogs'", "did you mean 'dog'?", "train2017.json"
    )


def test_sets_that_number_their_images_alike_are_told_apart(folder):
    for image in folder.sets["val2017"]["images"]:
        old = image["file_name"]
        image["id"] -= 623  # 162 and 9
        image["file_name"] = f"new/{old}"
        (folder.folder / "val2017" / "new").mkdir(exist_ok=True)
        (folder.folder / "val2017" / old).rename(folder.folder / "val2017" / "new" / old)
    folder.sets["val2017"]["annotations"][0]["image_id"] = 9
    folder.write()
    dataset = folder.load()
    assert dataset.ids[:2] == ["train/9", "train/139"]
    assert dataset.ids[-2:] == ["test/162", "test/9"]
    assert dataset.columns["image_id"].to_list()[-2:] == [162, 9]
    assert dataset.columns["source"][-1] == "instances_val2017.json"


def test_one_photograph_in_two_sets_is_refused(folder):
    folder.sets["val2017"]["images"][0] = dict(folder.sets["train2017"]["images"][0], file_name="COCO_val2014_9.jpg")
    folder.write()
    content = (folder.folder / "train2017" / "000000000009.jpg").read_bytes()
    (folder.folder / "val2017" / "COCO_val2014_9.jpg").write_bytes(content)
    refused(folder.load, DataError, "image '9'", "train (instances_train2017.json)", "test (instances_val2017.json)")


def test_one_file_under_two_ids_is_refused(folder):
    folder.sets["val2017"]["images"][0]["file_name"] = "../train2017/000000000009.jpg"
    folder.sets["train2017"]["images"][1]["file_name"] = "000000000009.jpg"
    folder.write()
    refused(folder.load, DataError, "image '139'", "train", "again in train", "instances_train2017.json")
    folder.sets["train2017"]["images"][1]["file_name"] = "000000000139.jpg"
    folder.write()
    refused(folder.load, DataError, "image '785'", "train", "again in test", "instances_val2017.json")
    folder.sets["val2017"]["images"][0].update(id=9, file_name="a\0b.jpg")
    folder.write()
    refused(folder.load, DataError, "cannot be read as an image", "val2017/a")


def test_images_to_fit_on_are_a_dataset_of_their_own(folder):
    folder.sets["more"] = folder.content([1, 2], [annotation(1, 2, 18, [0, 0, 5, 5])])
    (folder.folder / "more").mkdir()
    for image_id in (1, 2):
        folder.draw(folder.folder / "more" / f"{image_id:012d}.jpg")
    folder.write()
    names = {"train": "train2017", "test": "val2017", "fit": "more", "validation": "more"}
    sets = {key: {"annotations": f"instances_{name}.json", "images": name} for key, name in names.items()}
    refused(lambda: folder.load(sets=sets), DataError, "image '1'", "validation", "again in fit")
    del sets["validation"]
    dataset = folder.load(sets=sets)
    assert len(dataset) == 12
    assert dataset.fit.ids == ["1", "2"]
    assert dataset.fit.split.tolist() == ["train", "train"]
    assert dataset.fit.target_boxes.counts.tolist() == [0, 1]


def test_a_limit_takes_the_first_of_each_set(folder):
    folder.write()
    dataset = folder.load(limit=2)
    assert dataset.ids == ["9", "139", "785", "632"]
    assert len(dataset.target_boxes.xyxy) == 4


def test_coco_s_own_objects_without_height_are_refused_or_dropped(folder):
    """instances_train2017.json has two: https://github.com/cocodataset/cocoapi/issues/355."""
    folder.sets["train2017"]["annotations"].append(annotation(918, 139, 1, [29.65, 38.33, 1.03, 0.0]))
    folder.sets["train2017"]["annotations"].append(annotation(919, 139, 1, [70, 38.33, 10.9, 5]))
    folder.write()
    refused(folder.load, DataError, "of a person has no area", "image 139, object 918", "instances_train2017.json")
    dataset = folder.load(bad_objects="drop")
    np.testing.assert_allclose(dataset.target_boxes.of(1)["boxes"], [[70, 38.33, 80.9, 43.33]], rtol=1e-15)
    assert dataset.inputs["dropped_objects"] == {"bad": 1}


# --- mistakes -------------------------------------------------------------------------------------------------------


def setting(*path, to) -> object:
    """Sets one value of the training set, or removes it if ``to`` is None."""

    def change(folder: Folder) -> None:
        place = folder.sets["train2017"]
        for step in path[:-1]:
            place = place[step]
        if to is None:
            del place[path[-1]]
        else:
            place[path[-1]] = to

    return change


FIRST, IMAGE = ("annotations", 0), ("images", 0)
MISTAKES = {
    "no images": (setting("images", to=None), "has no list of objects 'images'"),
    "no categories": (setting("categories", to={}), "has no list of objects 'categories'"),
    "annotations of a results file": (setting("annotations", to=[1, 2]), "'annotations'"),
    "no category": (setting("categories", to=[]), "has no categories"),
    "category without a name": (setting("categories", 0, "name", to=None), "'name' is missing", "category 0"),
    "category twice": (setting("categories", 0, "id", to=1), "category id 1 is given twice"),
    "empty set": (setting("images", to=[]), "image_id 9 is that of no image"),
    "image without an id": (setting(*IMAGE, "id", to=None), "'id' is missing", "position 0"),
    "image id of text": (setting(*IMAGE, "id", to="9"), "'id' is '9', not a whole number"),
    "image id twice": (setting(*IMAGE, "id", to=7), "image id 7 is given twice"),
    "image without a file": (setting(*IMAGE, "file_name", to=None), "'file_name' is missing", "image 9"),
    "image without a width": (setting(*IMAGE, "width", to=None), "'width' is missing", "image 9"),
    "image without area": (setting(*IMAGE, "height", to=0), "the size is 80 x 0", "image 9"),
    "another size": (setting(*IMAGE, "height", to=80), "80 x 80", "is 80 x 50", "image 9"),
    "missing file": (setting(*IMAGE, "file_name", to="gone.jpg"), "no such image", "train2017/gone.jpg"),
    "file that is none": (setting(*IMAGE, "file_name", to="a\0b.jpg"), "cannot be read as an image"),
    "unknown image": (setting(*FIRST, "image_id", to=8), "image_id 8 is that of no image", "annotation 501"),
    "image id that is true": (setting(*FIRST, "image_id", to=True), "'image_id' is True", "annotation 501"),
    "unknown category": (setting(*FIRST, "category_id", to=2), "category_id 2 is that of no category", "ion 501"),
    "no box": (setting(*FIRST, "bbox", to=None), "bbox is None", "annotation 501"),
    "short box": (setting(*FIRST, "bbox", to=[1, 2, 3]), "bbox is [1, 2, 3]", "annotation 501"),
    "box of text": (setting(*FIRST, "bbox", to=[1, 2, 3, "4"]), "not four numbers", "annotation 501"),
    "negative box": (setting(*FIRST, "bbox", to=[10, 10, -3, 5]), "has no area", "image 9, object 501"),
    "box outside": (setting(*FIRST, "bbox", to=[10, 10, 72, 5]), "reaches outside", "image 9, object 501"),
    "no number": (setting(*FIRST, "bbox", to=[10, 10, float("nan"), 5]), "is not finite", "object 501"),
    "number without end": (setting(*FIRST, "bbox", to=[10, 10, 10**400, 5]), "is not finite", "object 501"),
    "odd crowd": (setting(*FIRST, "iscrowd", to=2), "iscrowd is 2", "annotation 501"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_what_is_wrong_is_named(folder, what):
    folder.write()
    folder.load()
    spoil, *words = MISTAKES[what]
    spoil(folder)
    folder.write()
    refused(folder.load, DataError, *words)


def test_files_that_are_none_are_named(folder):
    folder.write()
    text = folder.file("val2017").read_text()
    for content in (text[:-5], "[" * 100_000, "[]", '"text"', ""):
        folder.file("val2017").write_text(content)
        refused(folder.load, DataError, "instances_val2017.json")
    folder.file("val2017").write_bytes(b"\xff\xfe\xff")
    refused(folder.load, DataError, "is not JSON", "instances_val2017.json")
    folder.file("val2017").unlink()
    refused(folder.load, DataError, "there is no such file", "instances_val2017.json", "sets.test.annotations")


def test_sets_may_number_their_categories_differently(folder, tmp_path):
    """Also a file of results is read by the ids of each image's own set."""
    folder.write()
    plain = folder.load()
    content = folder.sets["val2017"]
    new = {entry["id"]: 100 + k for k, entry in enumerate(reversed(content["categories"]))}
    for entry in content["categories"]:
        entry["id"] = new[entry["id"]]
    for entry in content["annotations"]:
        entry["category_id"] = new[entry["category_id"]]
    folder.write()
    dataset = folder.load()
    assert dataset.classes == plain.classes
    np.testing.assert_array_equal(dataset.target_boxes.label, plain.target_boxes.label)
    assert dataset.inputs["category_ids_of"]["instances_val2017.json"] == [new[k] for k in (1, 3, 18)]
    assert "matched by their names" in dataset.inputs["annotations"]["notes"][0]
    results = [
        {key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": 1.0}
        for one in folder.sets.values()
        for entry in one["annotations"]
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    config = {"name": "same", "kind": "detections", "file": tmp_path / "results.json"}
    agent = make_agent(config_class("detections").model_validate(config))
    agent.check(dataset, ["boxes"])
    np.testing.assert_array_equal(agent.boxes.label, dataset.target_boxes.label)
    np.testing.assert_array_equal(agent.boxes.xyxy, dataset.target_boxes.xyxy)


def test_files_without_pixels_do_where_nothing_looks_at_them(folder):
    folder.write()
    plain = folder.load()
    for name in folder.sets:
        shutil.rmtree(folder.folder / name)
    sets = {
        key: {"annotations": f"instances_{name}.json"} for key, name in (("train", "train2017"), ("test", "val2017"))
    }
    dataset = folder.load(sets=sets)
    assert dataset.images is None
    assert dataset.ids == plain.ids
    np.testing.assert_array_equal(dataset.target_boxes.xyxy, plain.target_boxes.xyxy)
    refused(lambda: folder.load(sets=sets, image_size=8), DataError, "names no folder of images", "without image_size")
    sets["train"]["images"] = "train2017"
    refused(lambda: folder.load(sets=sets), DataError, "sets.test names no folder of images")
    del sets["train"]["images"]
    folder.sets["val2017"]["images"][0] = folder.sets["train2017"]["images"][0]
    folder.sets["val2017"]["annotations"] = [
        {**entry, "id": 900 + k}
        for k, entry in enumerate(folder.sets["train2017"]["annotations"])
        if entry["image_id"] == 9
    ]
    folder.write()
    refused(lambda: folder.load(sets=sets), DataError, "image '9' is in train", "again in test")


def test_sets_of_other_categories_and_without_images_are_refused(folder):
    folder.sets["val2017"]["categories"][0]["name"] = "lorry"
    folder.write()
    refused(folder.load, DataError, "there is no class 'lorry'", "matched by name", "instances_val2017.json")
    folder.sets["val2017"] = folder.content([], [])
    folder.write()
    refused(folder.load, DataError, "the test set has no images")
    folder.sets["val2017"]["categories"][0]["name"] = "dog"
    folder.sets["train2017"]["categories"][0]["name"] = "dog"
    folder.write()
    refused(folder.load, DataError, "two categories are called 'dog'", "instances_train2017.json")


def test_settings_that_cannot_be_meant_are_refused(tmp_path):
    one = {"annotations": "a.json", "images": "a"}
    good = {"path": tmp_path, "sets": {"train": one, "test": one}}
    CocoConfig(**good)
    for bad in (
        {"sets": {"train": one}},
        {"sets": {"train": one, "test": "a.json"}},
        {"sets": {"train": one, "test": {"images": "a"}}},
        {"classes": []},
        {"classes": ["dog", "dog"]},
        {"other_classes": "keep"},
    ):
        with pytest.raises(ValidationError):
            CocoConfig(**{**good, **bad})


# --- round trip -----------------------------------------------------------------------------------------------------

NUMBERS = st.floats(0, 79, allow_nan=False, width=16)


@hypothesis.given(
    st.lists(st.tuples(NUMBERS, NUMBERS, st.sampled_from([3, 1, 18]), st.integers(0, 1), st.integers(0, 2)), max_size=8)
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_objects_survive_json(tmp_path_factory, objects):
    folder = _KEPT.get("folder") or _KEPT.setdefault("folder", Folder(tmp_path_factory.mktemp("coco") / "coco"))
    ids = [9, 139, 7]
    entries = [
        annotation(k, ids[image], category, [x, y / 2, (80 - x) / 2, (50 - y / 2) / 2], iscrowd=crowd)
        for k, (x, y, category, crowd, image) in enumerate(objects)
    ]
    folder.sets["train2017"]["annotations"] = entries
    folder.write()
    dataset = folder.load()
    for position, image_id in enumerate(ids):
        mine = [entry for entry in entries if entry["image_id"] == image_id]
        found = dataset.target_boxes.of(position)
        corners = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in mine)]
        np.testing.assert_allclose(found["boxes"], np.reshape(corners, (-1, 4)), rtol=1e-6)
        assert [dataset.inputs["category_ids"][label] for label in found["labels"]] == [e["category_id"] for e in mine]
        assert found["ignore"].tolist() == [bool(entry["iscrowd"]) for entry in mine]


_KEPT: dict[str, Folder] = {}  # one folder for all examples
