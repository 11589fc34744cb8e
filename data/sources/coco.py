"""Annotated images in the format of COCO: one JSON file a set, boxes as x, y, width, height from 0.

The format is described at https://cocodataset.org/#format-data. Objects marked ``iscrowd`` are crowds in the sense of
:mod:`l2d.data.samples.boxes`: neither do they have to be found, nor does finding them count against anyone.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Literal, NoReturn

from l2d.data.errors import DataError
from l2d.data.samples.dataset import Dataset
from l2d.data.sources._annotated import (
    AnnotatedImage,
    AnnotatedObject,
    ClassNames,
    DetectionConfig,
    is_file,
    make_dataset,
    unknown_class,
)
from l2d.data.sources.table import Strict

FORMAT_HINT = "see https://cocodataset.org/#format-data"


class CocoSet(Strict):
    """One set: its annotation file and the folder of its images, both relative to the dataset's ``path``.

    Categories of sets are the same by name; their ids may differ, and a set may lack some.
    """

    annotations: str
    """The annotation file, relative to `path`."""
    images: str | None = None
    """Folder of the images, relative to `path`. Without it no image file is needed, and nothing can look at the pixels.
    """


class CocoSets(Strict):
    """``[dataset.sets]``."""

    train: CocoSet
    """Training images."""
    validation: CocoSet | None = None
    """Validation images; a share of `train` if not given."""
    test: CocoSet | None = None
    """Test images; without them `test` under `[dataset]` is a share of `train`."""
    fit: CocoSet | None = None
    """Images for agents that are still to be trained; they are not part of the cache."""


class CocoConfig(DetectionConfig):
    """``[dataset]`` in COCO's format. ``path`` is the folder that the sets lie in."""

    kind: Literal["coco"] = "coco"
    sets: CocoSets
    """The sets, see below."""
    classes: ClassNames | None = None
    """Names of categories in order; all categories by id if not given."""
    other_classes: Literal["refuse", "drop"] = "refuse"
    """What becomes of objects of categories that `classes` leaves out."""


def load_coco(config: CocoConfig, name: str) -> Dataset:
    """Read the sets that a recipe names.

    Sample ids are COCO's image ids, preceded by the set's key (``train/17``) where two sets have an id in common.
    Columns of this format: ``image_id`` (int64) and ``file_name``. So a results file of a set is matched by ``source``
    (its annotation file, as in the recipe) and ``image_id``; its ``category_id`` is that of class ``k`` in
    ``inputs["category_ids"][k]``.

    Args:
        config: the recipe's ``[dataset]``, its path absolute.
        name: the recipe's name, for messages.

    Raises:
        DataError: a file is missing or not as the format has it, an annotation is of an unknown image or category, two
            sets have other categories, or an image is in two sets; names the file. See
            :func:`l2d.data.sources._annotated.make_dataset` for the check of objects.
    """
    readers = {key: _Reader(config, key, chosen) for key, chosen in config.sets if chosen is not None}
    first = readers["train"]
    classes, category_ids = _classes(config, first)
    ids_of = {reader.source: _ids_in(reader, first, classes) for reader in readers.values()}
    images = {}
    for key, reader in readers.items():
        labels = {category: label for label, category in enumerate(ids_of[reader.source]) if category is not None}
        images[key] = reader.images(labels, classes)
    inputs: dict[str, Any] = {"category_ids": category_ids}
    if any(ids != category_ids for ids in ids_of.values()):
        inputs["category_ids_of"] = ids_of
        inputs["annotations"] = {"notes": ["category ids differ between the sets: classes are matched by their names"]}
    without = [key for key, chosen in config.sets if chosen is not None and chosen.images is None]
    if without and (len(without) < len(readers) or config.image_size is not None):
        raise DataError(
            f"sets.{without[0]} names no folder of images",
            where=config.path,
            hint="name one for every set, or for none and without image_size: then nothing looks at the pixels",
        )
    if config.other_classes == "drop":
        dropped = sum(reader.dropped for key, reader in readers.items() if key != "fit")
        inputs["dropped_objects"] = {"other_classes": dropped}
    return make_dataset(config, name, images, classes=classes, inputs=inputs)


def _ids_in(reader: _Reader, first: _Reader, classes: list[str]) -> list[int | None]:
    """The category id that each class has in a set, None where the set does not have it.

    Raises:
        DataError: the set has a category that the training set does not have.
    """
    if len(set(reader.categories.values())) < len(reader.categories):
        _names_once(reader)
    known = set(first.categories.values())
    for name in reader.categories.values():
        if name not in known:
            raise unknown_class(
                name,
                first.categories.values(),
                where=str(reader.file),
                hint=f"categories are matched by name; {first.file.name} has",
            )
    own = {name: category for category, name in reader.categories.items()}
    return [own.get(name) for name in classes]


def _classes(config: CocoConfig, reader: _Reader) -> tuple[list[str], list[int]]:
    """Names of the classes and COCO's ids of them, in order."""
    ids = {name: category for category, name in sorted(reader.categories.items())}
    if len(ids) < len(reader.categories):
        _names_once(reader)
    for name in config.classes or ():
        if name not in ids:
            raise unknown_class(name, ids, where=str(reader.file), hint="its categories are")
    names = list(config.classes or ids)
    return names, [ids[name] for name in names]


def _names_once(reader: _Reader) -> NoReturn:
    twice = next(name for name, count in Counter(reader.categories.values()).items() if count > 1)
    raise DataError(f"two categories are called {twice!r}", where=reader.file, hint="give each a name of its own")


class _Reader:
    """One annotation file, its parts checked as they are used."""

    def __init__(self, config: CocoConfig, key: str, chosen: CocoSet):
        self.config, self.key, self.source = config, key, chosen.annotations
        self.file, self.folder = config.path / chosen.annotations, config.path / (chosen.images or "")
        self.pixels = chosen.images is not None
        self.dropped = 0  # objects of other classes on the images read
        if not is_file(self.file):
            raise DataError(
                "there is no such file", where=self.file, hint=f"sets.{key}.annotations is relative to `path`"
            )
        try:
            self.content = json.loads(self.file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"is not JSON: {error}", where=self.file, hint="restore the file") from error
        for part in ("images", "annotations", "categories"):
            found = self.content.get(part) if isinstance(self.content, dict) else None
            if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
                raise DataError(f"has no list of objects {part!r}", where=self.file, hint=FORMAT_HINT)
        self.categories: dict[int, str] = {}
        for position, entry in enumerate(self.content["categories"]):
            where = f"category {position}"
            category = self._field(entry, "id", int, where)
            if category in self.categories:
                raise self._error(f"category id {category} is given twice", where)
            self.categories[category] = self._field(entry, "name", str, where)
        if not self.categories:
            raise self._error("has no categories", "categories")

    def images(self, labels: dict[int, int], classes: list[str]) -> list[AnnotatedImage]:
        """The images in the file's order with their objects in the file's order."""
        found: dict[int, AnnotatedImage] = {}
        for position, entry in enumerate(self.content["images"]):
            image_id = self._field(entry, "id", int, f"image at position {position}")
            where = f"image {image_id}"
            if image_id in found:
                raise self._error(f"image id {image_id} is given twice", where)
            file_name = self._field(entry, "file_name", str, where)
            width, height = (self._field(entry, side, int, where) for side in ("width", "height"))
            if width < 1 or height < 1:
                raise self._error(f"the size is {width} x {height}", where)
            found[image_id] = AnnotatedImage(
                id=str(image_id),
                origin=self.key,
                source=self.source,
                path=self.folder / file_name,
                width=width,
                height=height,
                objects=[],
                where=f"{self.file}, {where}",
                facts={"image_id": image_id, "file_name": file_name},
                pixels=self.pixels,
            )
        others = []
        for position, entry in enumerate(self.content["annotations"]):
            number = self._field(entry, "id", int, f"annotation at position {position}")
            where = f"annotation {number}"
            image_id = self._field(entry, "image_id", int, where)
            if image_id not in found:
                raise self._error(f"image_id {image_id} is that of no image", where)
            thing = self._object(entry, labels, classes, number, where)
            if thing is None:
                others.append(image_id)
            else:
                found[image_id].objects.append(thing)
        kept = list(found.values())[: self.config.limit]
        ids = {image.facts["image_id"] for image in kept}
        self.dropped = sum(image_id in ids for image_id in others)
        return kept

    def _object(
        self, entry: dict, labels: dict[int, int], classes: list[str], number: int, where: str
    ) -> AnnotatedObject | None:
        """An annotation, or None if it is of a class to be dropped."""
        category = self._field(entry, "category_id", int, where)
        if category not in self.categories:
            raise self._error(f"category_id {category} is that of no category", where)
        if category not in labels:
            if self.config.other_classes == "drop":
                return None
            raise unknown_class(
                self.categories[category],
                classes,
                where=f"{self.file}, {where}",
                hint='set other_classes = "drop" to do without objects of other classes than',
            )
        bbox = entry.get("bbox")
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(value) in (int, float) for value in bbox):
            raise self._error(f"bbox is {bbox!r}, not four numbers", where)
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise self._error(f"iscrowd is {crowd!r}", where)
        try:
            x, y, width, height = map(float, bbox)
        except OverflowError:  # an integer of hundreds of digits
            x = y = width = height = float("inf")
        corners = (x, y, x + width, y + height)
        return AnnotatedObject(corners, labels[category], bool(crowd), bool(crowd), number, (width, height))

    def _field(self, entry: dict, key: str, kind: type, where: str) -> Any:
        value = entry.get(key)
        if type(value) is not kind:  # True is an int, and no id
            shown = "missing" if key not in entry else repr(value)
            raise self._error(f"{key!r} is {shown}, not {'a text' if kind is str else 'a whole number'}", where)
        return value

    def _error(self, what: str, where: str) -> DataError:
        return DataError(what, where=f"{self.file}, {where}", hint=FORMAT_HINT)
