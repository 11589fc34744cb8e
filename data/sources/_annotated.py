"""What readers of annotated images share: settings, the check of every image and object, the dataset made of them."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import polars as pl
from pydantic import AfterValidator, Field, model_validator

from l2d.data.cache.schema import SPLITS
from l2d.data.errors import DataError, nearest
from l2d.data.samples.boxes import Boxes
from l2d.data.samples.dataset import Dataset
from l2d.data.samples.images import image_size
from l2d.data.samples.splits import validation_share
from l2d.data.sources.table import Strict

#: How far a box may reach outside its image, in pixels: rounding does that.
TOLERANCE = 1.0


def _once_each(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a class is named twice")
    return names


#: Names of the classes, in order.
ClassNames = Annotated[list[str], Field(min_length=1), AfterValidator(_once_each)]


class DetectionConfig(Strict):
    """``[dataset]`` of annotated images, whatever the format. Splits are the sets that their publisher made."""

    path: Path
    """Folder of the dataset."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training images for validation, by a hash of the id, where `sets` names none."""
    test: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the training images for the test set, by a hash of the id, where `sets` names none."""
    salt: str = "l2d"
    """Another salt draws other splits."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    """Side in pixels of the small images that the cache keeps, for `--rejector conv` and `image`; none if not given."""
    bad_objects: Literal["refuse", "drop"] = "refuse"
    """What becomes of boxes outside their image, without area or not finite."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Read only this number of images of each set, to try things out."""

    @model_validator(mode="after")
    def _one_test_set(self):
        sets = None if getattr(self, "annotations", None) is not None else getattr(self, "sets", None)
        if (getattr(sets, "test", None) is None) == (self.test is None):
            both = "no test set is named" if self.test is None else "a test set is named, and a share of `train` for it"
            raise ValueError(f"{both}: say sets.test, or test = 0.4, a share of the training images")
        return self


class AnnotatedObject(NamedTuple):
    """One object, its box in the coordinates of :mod:`l2d.data.samples.boxes`, not checked yet."""

    xyxy: tuple[float, float, float, float]
    label: int  # index into the dataset's classes
    ignore: bool
    crowd: bool
    number: int  # for messages: its place in the file, or the id it has there
    size: tuple[float, float] | None = None  # width and height, where the file has them


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedImage:
    """One image and what its annotation says, as a reader found it."""

    id: str  # as its publisher has it
    origin: str  # tells it from an image of another origin with the same id
    source: str  # the set it comes from, as the recipe names it
    path: Path
    width: int  # pixels, as annotated
    height: int
    objects: list[AnnotatedObject]
    where: str  # the annotation, for messages
    facts: dict[str, Any] = field(default_factory=dict)  # columns of this reader's own
    pixels: bool = True  # whether its file has to be there


def make_dataset(
    config: DetectionConfig,
    name: str,
    images: Mapping[str, list[AnnotatedImage]],
    *,
    classes: Iterable[str],
    inputs: dict[str, Any] | None = None,
) -> Dataset:
    """Check annotated images and make a dataset of them, in the order train, validation, test.

    Sample ids are the publisher's; where one occurs twice among them, every id is preceded by its origin
    (``2007/000001``). Columns, all of them kept: ``width, height``, ``num_objects`` to be found, ``num_ignored``,
    ``objects`` (names of the classes to be found, sorted, joined by ", "), ``source``, and the reader's own.

    Args:
        config: the recipe's ``[dataset]``.
        name: the recipe's name.
        images: set -> its images, at least ``train``. Where there is no ``test`` or ``validation``, a share of
            ``train`` becomes it. ``fit`` becomes :attr:`Dataset.fit`, all of it training split.
        inputs: what else :attr:`Dataset.inputs` tells. Where bad objects are dropped, their number is added.

    Raises:
        DataError: a set is empty; an image is missing, no image or of another size than its annotation says, or stands
            in two places; an object is bad and ``bad_objects`` is ``refuse``. The message names the file.
    """
    for split, members in images.items():
        if not members:
            raise DataError(f"the {split} set has no images", where=config.path, hint="name another one in `sets`")
    refuse_repeated(images)
    fit = None
    shares = (("test", config.test or 0.0), ("validation", config.validation))
    if "fit" in images:
        fit = _dataset(config, f"{name}, fit", {"train": images["fit"]}, tuple(classes), dict(inputs or {}))
    return _dataset(
        config,
        name,
        {split: images[split] for split in SPLITS if split in images},
        tuple(classes),
        dict(inputs or {}),
        drawn={split: share for split, share in shares if split not in images},
        fit=fit,
    )


def _dataset(
    config: DetectionConfig,
    name: str,
    images: Mapping[str, list[AnnotatedImage]],
    classes: tuple[str, ...],
    inputs: dict[str, Any],
    *,
    drawn: Mapping[str, float] | None = None,
    fit: Dataset | None = None,
) -> Dataset:
    samples = [image for members in images.values() for image in members]
    splits = np.repeat(np.array(list(images), dtype="<U10"), [len(members) for members in images.values()])
    ids = [image.id for image in samples]
    if len(set(ids)) < len(ids):
        ids = [f"{image.origin}/{image.id}" for image in samples]
    for name_of_split, share in (drawn or {}).items():
        train = [sample_id for sample_id, split in zip(ids, splits, strict=True) if split == "train"]
        if len(train) < 2:
            raise DataError(
                f"the train set has one image, so no {name_of_split} split can be drawn from it",
                where=config.path,
                hint=f"name a set as `{name_of_split}`, or a larger one as `train`",
            )
        chosen = validation_share(train, share, config.salt)
        splits[np.flatnonzero(splits == "train")[chosen]] = name_of_split

    _check_files(samples)
    boxes = _check_objects(samples, classes, config.bad_objects)
    if config.bad_objects == "drop":
        given = sum(len(image.objects) for image in samples)
        inputs["dropped_objects"] = {**inputs.get("dropped_objects", {}), "bad": given - len(boxes.xyxy)}
    columns = _columns(samples, boxes, classes)
    return Dataset(
        name=name,
        ids=ids,
        split=splits,
        features=None,
        columns=columns,
        target_boxes=boxes,
        images=tuple(image.path for image in samples) if all(image.pixels for image in samples) else None,
        image_size=config.image_size,
        fit=fit,
        classes=classes,
        keep=tuple(columns.columns),
        inputs=inputs,
        config=config.model_dump(mode="json", exclude={"path", "limit"} | _unset(config)),  # the ids say these two
    )


def _unset(config: DetectionConfig) -> set[str]:
    """Keys that came after caches had been built and are not used: part of a cache's record only where they are."""
    return {name for name in ("test", "annotations", "images") if getattr(config, name, None) is None}


def refuse_repeated(images: Mapping[str, list[AnnotatedImage]]) -> None:
    """See that no image belongs to two sets: agents or rejectors would be tested on what they were trained on.

    Two files are taken for one image if they are of the same id and the same content: VOC2012 holds the images of the
    years before it, COCO's 2014 and 2017 sets are the same photographs.

    Raises:
        DataError: one does, or is in a set twice; names both places.
    """
    files: dict[str, tuple[str, AnnotatedImage]] = {}
    named: dict[str, list[tuple[str, AnnotatedImage]]] = {}
    for split, members in images.items():
        for image in members:
            file = os.path.normpath(image.path)
            if image.pixels:
                others = [files[file]] if file in files else []
                others += [other for other in named.get(image.id, []) if _same_content(other[1].path, image.path)]
            else:
                others = [other for other in named.get(image.id, []) if _same_annotation(other[1], image)]
            if others:
                before, other = others[0]
                raise DataError(
                    f"image {image.id!r} is in {before} ({other.source}) and again in {split} ({image.source})",
                    where=image.where,
                    hint="an image belongs to one of train, validation, test and fit, once; without `fit`, agents are "
                    "trained on train",
                )
            files[file] = split, image
            named.setdefault(image.id, []).append((split, image))


def _same_content(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)  # sizes first
    except (OSError, ValueError):  # a file that is missing, or that cannot be one, is named later
        return False


def _same_annotation(one: AnnotatedImage, other: AnnotatedImage) -> bool:
    """Whether two images without pixels are one: called the same, of one size and with the same objects."""
    boxes = [[(thing.xyxy, thing.label) for thing in image.objects] for image in (one, other)]
    return one.path == other.path and (one.width, one.height) == (other.width, other.height) and boxes[0] == boxes[1]


def _check_files(images: list[AnnotatedImage]) -> None:
    """See that each image is there and of the size that its boxes refer to."""
    for image in images:
        if not image.pixels:
            continue
        width, height = image_size(image.path)
        if (width, height) != (image.width, image.height):
            raise DataError(
                f"the annotation says {image.width} x {image.height} pixels, {image.path} is {width} x {height}",
                where=image.where,
                hint="boxes have to refer to the stored pixels: not rotated (EXIF), not resized since",
            )


def _check_objects(images: list[AnnotatedImage], classes: tuple[str, ...], bad_objects: str) -> Boxes:
    """The objects of all images as their files have them; bad ones refused or left out.

    None is cut to its image, because no evaluator cuts detections: a box that is found as it was drawn is a perfect
    match, at the border too.
    """
    objects = [thing for image in images for thing in image.objects]
    counts = np.array([len(image.objects) for image in images])
    given = np.array([thing.xyxy for thing in objects], dtype=np.float64).reshape(-1, 4)
    corners = np.array([(image.width, image.height) * 2 for image in images], dtype=np.float64)
    corners = np.repeat(corners, counts, axis=0)
    sizes = np.array([thing.size or (np.nan, np.nan) for thing in objects], dtype=np.float64).reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        sizes = np.where(np.isnan(sizes), given[:, 2:] - given[:, :2], sizes)
    cut = np.clip(given, 0, corners)
    problems = {
        "is not finite": ~np.isfinite(given).all(axis=1),
        "reaches outside its image": ((given < -TOLERANCE) | (given > corners + TOLERANCE)).any(axis=1),
        "has no area": ~(cut[:, 2:] > cut[:, :2]).all(axis=1),
    }
    crowd = np.array([thing.crowd for thing in objects], dtype=bool)
    boxes = Boxes(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        xyxy=given,
        size=sizes,
        label=np.array([thing.label for thing in objects], dtype=np.int32),
        score=np.ones(len(objects)),
        ignore=np.array([thing.ignore for thing in objects], dtype=bool) | crowd,
        crowd=crowd,
    )
    bad = np.logical_or.reduce(list(problems.values()))
    if bad.any() and bad_objects == "refuse":
        first = int(bad.argmax())
        image = images[int(boxes.image[first])]
        box = ", ".join(f"{value:g}" for value in given[first])
        raise DataError(
            f"the box ({box}) of a {classes[boxes.label[first]]} "
            f"{next(text for text, found in problems.items() if np.asarray(found)[first])}"
            f" ({bad.sum()} such objects, images are {image.width} x {image.height} here)",
            where=f"{image.where}, object {objects[first].number}",
            hint='correct it, or set bad_objects = "drop" to do without such objects',
        )
    return boxes.select(~bad)


def _columns(images: list[AnnotatedImage], boxes: Boxes, classes: tuple[str, ...]) -> pl.DataFrame:
    countable = boxes.select(~boxes.ignore)
    labels = np.split(countable.label, countable.offsets[1:-1])
    return pl.DataFrame(
        {
            "width": [image.width for image in images],
            "height": [image.height for image in images],
            "num_objects": countable.counts,
            "num_ignored": boxes.counts - countable.counts,
            "objects": [", ".join(sorted(classes[label] for label in set(found.tolist()))) for found in labels],
            "source": [image.source for image in images],
            **{name: [image.facts[name] for image in images] for name in images[0].facts},
        }
    )


def unknown_class(name: str, classes: Iterable[str], *, where: str, hint: str) -> DataError:
    """The error for an object of a class that the recipe does not have; names the nearest that it has."""
    classes = list(classes)
    return DataError(f"there is no class {name!r}", where=where, hint=nearest(name, classes, f"{hint}:"))


def is_file(path: Path) -> bool:
    """Whether there is such a file; False for what cannot be a path."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; False for what cannot be a path."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
