"""Annotated images in the format of Pascal VOC: one XML file an image, sets as lists of ids.

::

    VOCdevkit/VOC2012/ImageSets/Main/train.txt      an image id a line
    VOCdevkit/VOC2012/Annotations/2008_000008.xml   size and objects
    VOCdevkit/VOC2012/JPEGImages/2008_000008.jpg

The format is that of *The PASCAL Visual Object Classes Challenge 2012 Development Kit* (Everingham and Winn). Its
pixels count from 1 and a box names the last one it covers; see :mod:`l2d.data.samples.boxes` for ours.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

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

#: The classes of the challenges of 2007 to 2012, in VOC's order.
# fmt: off
VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep",
    "sofa", "train", "tvmonitor",
]
# fmt: on

SUFFIXES = (".jpg", ".jpeg", ".png")
ImageSets = Annotated[list[Annotated[str, Field(pattern=r"^[^/\\]+/[^/\\]+$")]], Field(min_length=1)]


class VocSets(Strict):
    """``[dataset.sets]``: lists of "YEAR/SET", such as "2012/train": the file ``VOC2012/ImageSets/Main/train.txt``."""

    train: ImageSets
    """Training images."""
    validation: ImageSets | None = None
    """Validation images; a share of `train` if not given."""
    test: ImageSets | None = None
    """Test images; without them `test` under `[dataset]` is a share of `train`."""
    fit: ImageSets | None = None
    """Images for agents that are still to be trained; they are not part of the cache."""


class VocConfig(DetectionConfig):
    """``[dataset]`` in Pascal VOC's format. ``path`` is the VOCdevkit folder, or the one it lies in."""

    kind: Literal["voc"] = "voc"
    sets: VocSets = VocSets(train=["2012/train"], test=["2012/val"])
    """The sets, see below; by default `2012/train` and `2012/val` for test."""
    annotations: str | None = None
    """In place of `sets`: a folder of XML files, relative to `path`. All of them are read; `test` draws a share."""
    images: str | None = None
    """With `annotations`: the folder of the images, relative to `path`. Without it no image file is needed, and nothing
    can look at the pixels.
    """
    classes: ClassNames = VOC_CLASSES
    """Names in order; VOC's 20 by default."""
    difficult: Literal["ignore", "count"] = "ignore"
    """Whether objects marked as difficult have to be found."""

    @model_validator(mode="after")
    def _sets_or_folders(self):
        if self.annotations is not None and "sets" in self.model_fields_set:
            raise ValueError("sets and annotations: say one, the devkit's sets or a folder of XML files")
        if self.images is not None and self.annotations is None:
            raise ValueError("images goes with annotations: a devkit has its own JPEGImages")
        return self


class VocObject(NamedTuple):
    """An ``<object>``: its box in the coordinates of :mod:`l2d.data.samples.boxes`."""

    name: str
    xyxy: tuple[float, float, float, float]
    difficult: bool = False


class VocAnnotation(NamedTuple):
    """What we read of an annotation."""

    filename: str  # empty if the file does not say
    width: int
    height: int
    objects: list[VocObject]


def load_voc(config: VocConfig, name: str) -> Dataset:
    """Read the sets that a recipe names.

    Sample ids are VOC's image ids, preceded by the year (``2007/000001``) where two years have an id in common; column
    ``source`` is the set, ``2012/train``.

    Args:
        config: the recipe's ``[dataset]``, its path absolute.
        name: the recipe's name, for messages.

    Raises:
        DataError: a folder, set, annotation or image is missing or not as the format has it, or an image is in two
            sets; names the file. See :func:`l2d.data.sources._annotated.make_dataset` for the check of objects.
    """
    labels = {label: index for index, label in enumerate(config.classes)}
    images = {}
    if config.annotations is not None:
        images["train"] = _read_folder(config, config.annotations, labels)
        return make_dataset(config, name, images, classes=config.classes)
    for split, sets in config.sets:
        if sets is not None:
            images[split] = [image for source in sets for image in _read_set(config, source, labels)]
    return make_dataset(config, name, images, classes=config.classes)


def _read_set(config: VocConfig, source: str, labels: dict[str, int]) -> list[AnnotatedImage]:
    year, chosen = source.split("/")
    folder = _year_folder(config.path, year)
    file = folder / "ImageSets" / "Main" / f"{chosen}.txt"
    if not is_file(file):
        there = sorted(path.stem for path in file.parent.glob("*.txt") if "_" not in path.stem)  # not a class's list
        hint = f"VOC{year} has the sets {', '.join(there)}" if there else "unpack the devkit as it was published"
        raise DataError(f"there is no set {source!r}", where=file, hint=hint)
    try:
        ids = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", where=file, hint="it has to list an image id a line") from error
    if not ids:
        raise DataError(f"the set {source!r} is empty", where=file, hint="it has to list an image id a line")
    return [_read_image(config, source, folder, image_id, labels) for image_id in ids[: config.limit]]


def _read_folder(config: VocConfig, source: str, labels: dict[str, int]) -> list[AnnotatedImage]:
    """All XML files of a folder that is not a devkit's, in the order of their names."""
    files = sorted((config.path / source).glob("*.xml"))
    if not files:
        raise DataError("there are no .xml files here", where=config.path / source, hint="`annotations` names a folder")
    images = None if config.images is None else config.path / config.images
    found = []
    for file in files[: config.limit]:
        note = parse_voc(file.read_bytes(), file)
        path = config.path / (Path(note.filename).name or f"{file.stem}.jpg")
        if images is not None:
            named = [images / f"{file.stem}{suffix}" for suffix in SUFFIXES] + [images / path.name]
            path = next((image for image in named if image.suffix.lower() in SUFFIXES and is_file(image)), named[0])
            if not is_file(path):
                raise DataError(f"there is no image {file.stem!r}", where=path, hint=f"{file} is its annotation")
        image = _annotated(config, source, file, note, labels)
        found.append(replace(image, path=path, pixels=images is not None))
    return found


def _year_folder(path: Path, year: str) -> Path:
    """The folder of a year: in the devkit, or where torchvision's ``VOCDetection`` unpacks it below its root."""
    candidates = [path, path / "VOCdevkit", path / "TrainVal" / "VOCdevkit"]
    for devkit in candidates:
        try:
            if (devkit / f"VOC{year}").is_dir():
                return devkit / f"VOC{year}"
        except (OSError, ValueError):  # the name cannot be a folder's
            continue
    there = sorted({found.parent.name for devkit in candidates for found in devkit.glob("VOC*/ImageSets")})
    raise DataError(
        f"there is no folder VOC{year}",
        where=path,
        hint=f"`path` is the VOCdevkit folder or the one it lies in; there are {', '.join(there) or 'no years in it'}",
    )


def _read_image(config: VocConfig, source: str, folder: Path, image_id: str, labels: dict[str, int]) -> AnnotatedImage:
    file = folder / "Annotations" / f"{image_id}.xml"
    try:
        content = file.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(
            f"image {image_id!r} of the set {source!r} has no annotation that can be read",
            where=file,
            hint="is its id right? lists of one class (aeroplane_train) are not sets of images",
        ) from error
    found = parse_voc(content, file)
    image = _annotated(config, source, file, found, labels)
    return replace(image, origin=source.split("/")[0], path=_image_file(folder, image_id, found.filename, file))


def _annotated(
    config: VocConfig, source: str, file: Path, found: VocAnnotation, labels: dict[str, int]
) -> AnnotatedImage:
    """What an annotation says of an image; its file is still to be found."""
    objects = []
    for number, (label, xyxy, difficult) in enumerate(found.objects):
        if label not in labels:
            where = f"{file}, object {number}"
            raise unknown_class(label, labels, where=where, hint="the dataset's `classes` are")
        ignore = difficult and config.difficult == "ignore"
        objects.append(AnnotatedObject(xyxy, labels[label], ignore, False, number))
    return AnnotatedImage(
        id=file.stem,
        origin=source,
        source=source,
        path=file,
        width=found.width,
        height=found.height,
        objects=objects,
        where=str(file),
    )


def _image_file(folder: Path, image_id: str, filename: str, annotation: Path) -> Path:
    """``JPEGImages/ID.jpg``; where there is none, what the annotation names, as far as it is a JPEG or PNG file."""
    usual = folder / "JPEGImages" / f"{image_id}.jpg"
    if is_file(usual):
        return usual
    named = usual.with_name(Path(filename).name or usual.name)  # some tools write whole paths
    if named.suffix.lower() in SUFFIXES and is_file(named):
        return named
    raise DataError(
        f"there is no image {image_id!r}", where=usual, hint=f"{annotation} names it {filename!r}; was all unpacked?"
    )


class _NoDoctype(ET.TreeBuilder):
    """Refuses a document type: VOC's files have none, and entities declared in one can grow without end."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type")


def parse_voc(content: bytes, file: Path) -> VocAnnotation:
    """Read an annotation.

    Parts of objects (``<part>``) are no objects. Coordinates may be fractions, as some of VOC2012's are.

    Args:
        content: the XML.
        file: for messages.

    Raises:
        DataError: it is no XML, or not an annotation in VOC's format; names the file and the object.
    """
    parser = ET.XMLParser(target=_NoDoctype())
    try:
        parser.feed(content)
        root = parser.close()
    except (ET.ParseError, ValueError, LookupError) as error:
        raise DataError(f"is not XML that we read: {error}", where=file, hint="restore the file") from error
    if root.tag != "annotation":
        raise DataError(f"is <{root.tag}>, not <annotation>", where=file, hint="is it in Pascal VOC's format?")
    width, height = (_number(root, f"size/{side}", file) for side in ("width", "height"))
    if not all(side >= 1 and side.is_integer() for side in (width, height)):
        raise DataError(f"the size is {width:g} x {height:g}", where=file, hint="correct it to the image's pixels")
    objects = [_parse_object(thing, f"{file}, object {k}") for k, thing in enumerate(root.findall("object"))]
    return VocAnnotation((root.findtext("filename") or "").strip(), int(width), int(height), objects)


def _parse_object(thing: ET.Element, where: str) -> VocObject:
    name = (thing.findtext("name") or "").strip()
    if not name:
        raise DataError("the object has no name", where=where, hint="add its class as <name>")
    if thing.find("bndbox") is None:
        raise DataError(f"a {name} has no <bndbox>", where=where, hint="add its box, or remove the object")
    xmin, ymin, xmax, ymax = (_number(thing, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult = (thing.findtext("difficult") or "0").strip() or "0"
    if difficult not in ("0", "1"):
        raise DataError(f"<difficult> is {difficult!r}", where=where, hint="it has to be 0 or 1")
    return VocObject(name, (xmin - 1, ymin - 1, xmax, ymax), difficult == "1")


def _number(element: ET.Element, path: str, where: object) -> float:
    text = element.findtext(path)
    try:
        return float(text or "")
    except ValueError:
        shown = "missing" if text is None else repr(text)
        raise DataError(f"<{path}> is {shown}", where=where, hint="it has to be a number of pixels") from None


def format_voc(annotation: VocAnnotation, *, folder: str, database: str) -> bytes:
    """Inverse of :func:`parse_voc`: an annotation as VOC's own files are written."""
    root = ET.Element("annotation")

    def add(parent: ET.Element, **texts: object) -> None:
        for tag, text in texts.items():
            ET.SubElement(parent, tag).text = str(text)

    add(root, folder=folder, filename=annotation.filename)
    add(ET.SubElement(root, "source"), database=database, annotation=database, image=database)
    add(ET.SubElement(root, "size"), width=annotation.width, height=annotation.height, depth=3)
    add(root, segmented=0)
    for name, (x1, y1, x2, y2), difficult in annotation.objects:
        thing = ET.SubElement(root, "object")
        add(thing, name=name, pose="Unspecified", truncated=0, difficult=int(difficult))
        corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
        add(ET.SubElement(thing, "bndbox"), **{key: f"{value:.15g}" for key, value in corners.items()})
    ET.indent(root, "\t")
    return ET.tostring(root) + b"\n"
