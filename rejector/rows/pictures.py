"""Image files of a dataset's folder as the input of a rejector on pixels, in place of the small copies in the cache.

A cache keeps images at one size, or none at all. From the files they can be had at any size, and at the cache's size
the pixels are the cache's, bit by bit. The cache knows its images: their names follow from what it keeps of a sample,
and one digest over all files says whether these are the ones that the agents were asked about.
"""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from l2d.data.cache.integrity import sha256_of
from l2d.data.cache.schema import digest
from l2d.data.errors import CorruptPart, DataError, UsageError
from l2d.data.samples.expressions import columns_of, evaluate
from l2d.data.samples.images import SUFFIXES, find_images, image_size, squeezed, thumbnail
from l2d.rejector.settings import TrainConfig

if TYPE_CHECKING:
    from l2d.data.cache.reader import CostCache

FILE_NAME = "file_name"  # column of a cache that says what an image is called, where its id does not
AT_ONCE = 64  # images that wait to be compared with the cache's
#: Folders that were checked, the last few: evaluating a grid opens the same again and again.
_CHECKED: OrderedDict[tuple, tuple[Checked, list[tuple[int, int]]]] = OrderedDict()
KEPT = 4


@dataclass(frozen=True)
class Checked:
    """The image files of a cache's samples.

    Attributes:
        files: sample id -> its file.
        unchecked: why it is not known whether they are those of the build; empty where they are.
    """

    files: dict[str, Path]
    unchecked: str = ""


@dataclass(frozen=True)
class Pictures:
    """What a rejector sees of image files. They are looked for and checked once pixels are wanted.

    Attributes:
        cache: whose images they are.
        folder: that they lie in.
        size: side in pixels that they are squeezed to.
    """

    cache: CostCache
    folder: Path
    size: int

    @cached_property
    def found(self) -> Checked:
        """The files, see :func:`files_of`."""
        return files_of(self.cache, self.folder)

    @property
    def width(self) -> int:
        """Numbers a sample."""
        return 3 * self.size * self.size

    def pixels(self, ids: list[str], wanted: np.ndarray | None = None) -> np.ndarray:
        """Images as numbers from 0 to 1, float32 (n, 3 * size * size), decoded by as many threads as there are cores.

        Args:
            ids: of the samples.
            wanted: bool (n,): those that are decoded; the others are 0. None: all.

        Raises:
            DataError: a file is gone or damaged; names it.
        """
        found, files = np.zeros((len(ids), self.width), np.float32), self.found.files
        rows = range(len(ids)) if wanted is None else np.flatnonzero(wanted).tolist()

        def fill(row: int) -> None:
            np.divide(squeezed(files[ids[row]], self.size).reshape(-1), np.float32(255), out=found[row])

        with ThreadPoolExecutor() as pool:
            for _ in pool.map(fill, rows):
                pass
        return found


def seen(cache: CostCache, config: TrainConfig) -> CostCache:
    """A cache as a rejector of these settings sees it: with ``images`` by the files of that folder.

    Raises:
        UsageError: it is not said how large images are to be.
    """
    if config.images is None:
        return cache
    size = config.image_size or _kept(cache).get("size")
    if size is None:
        raise UsageError(
            "--images: at what size?", where=cache.address,
            hint="this cache keeps no images, so say --image-size 224, or another side in pixels",
        )  # fmt: skip
    return with_pictures(cache, Path(config.images), size)


def with_pictures(cache: CostCache, folder: Path, size: int) -> CostCache:
    """A cache seen by the files of a folder, at this side in pixels."""
    named = _expression(cache)
    made: Any = {"kind": "image", "size": size, **({"file": named} if named is not None else {})}
    view = copy.copy(cache)
    view.record = replace(cache.record, inputs={**cache.record.inputs, "image": made})
    view.pictures = Pictures(cache, folder, size)
    return view


def checked(cache: CostCache, narrate: Callable[[str], None] | None = None) -> None:
    """See that a cache's image files are there and those of the build, where it is seen by them.

    Args:
        narrate: told in a sentence what cannot be checked.

    Raises:
        UsageError, DataError: as :func:`files_of`.
    """
    if cache.pictures is not None and cache.pictures.found.unchecked and narrate is not None:
        narrate(cache.pictures.found.unchecked)


def settings_by_content(config: TrainConfig, cache: CostCache) -> dict[str, Any]:
    """Settings as they are compared: not by the folder of images, where these are known to be the build's.

    Args:
        cache: as :func:`seen`.
    """
    settings = asdict(config)
    if cache.pictures is not None and not cache.pictures.found.unchecked:
        settings["images"] = cache.record.fingerprint["images"]
    return settings


def files_of(cache: CostCache, folder: Path) -> Checked:
    """The image files of all samples of a cache, found in a folder and checked.

    Raises:
        UsageError: there is no such folder, or samples have no image files.
        DataError: images are missing or others than those of the build; names one.
    """
    built = cache.record.fingerprint.get("images")
    key = cache.address, cache.record.fingerprint.get("ids_and_order"), built, str(folder)
    if key in _CHECKED and _CHECKED[key][1] == _stamps(_CHECKED[key][0].files.values()):
        _CHECKED.move_to_end(key)
        return _CHECKED[key][0]
    if not folder.is_dir():
        what = (
            "--images names a folder, and this is a file" if folder.is_file() else "there is no such folder of images"
        )
        raise UsageError(what, where=folder, hint="say where the dataset's images lie: --images FOLDER")
    if "pixels" in cache.record.fingerprint:
        raise UsageError(
            "--images: the images of this dataset are no files of their own",
            where=cache.address,
            hint="leave it out: the cache keeps them whole",
        )
    names = _names(cache)
    files = _found(names, folder, cache)
    before = _stamps(files)
    found = Checked(dict(zip(names, files, strict=True)), _compare(cache, files, built, folder))
    _CHECKED[key] = found, before
    while len(_CHECKED) > KEPT:
        _CHECKED.popitem(last=False)
    return found


def _stamps(files: Iterable[Path]) -> list[tuple[int, int]]:
    """When each file was written, in ns, and its bytes: what a later look compares. -1 of a file that is gone."""
    found = []
    for file in files:
        try:
            said = os.stat(file)
            found.append((said.st_mtime_ns, said.st_size))
        except OSError:
            found.append((-1, -1))
    return found


def _expression(cache: CostCache) -> str | None:
    """SQL expression of an image's file over the columns of the table that the samples come from; None: no table."""
    kept = _kept(cache).get("file")
    return kept if kept is not None else cache.record.fingerprint.get("dataset.image")


def _kept(cache: CostCache) -> Mapping[str, Any]:
    """What the cache says of the images that it keeps; nothing where it keeps none."""
    inputs: Mapping[str, Any] = cache.record.inputs
    return inputs.get("image", {})


def _names(cache: CostCache) -> dict[str, str]:
    """Sample id -> what its image is called, in the cache's order."""
    named, kept = _expression(cache), set(cache.record.keep)
    columns, expression = ["sample_id"], None
    if named is not None and set(columns_of(named)) <= kept:
        columns, expression = [*columns, *columns_of(named)], named
    elif FILE_NAME in kept:
        columns, expression = [*columns, FILE_NAME], FILE_NAME
    found: dict[str, str] = {}
    for chunk in range(cache.record.num_chunks):
        rows = pl.DataFrame(pl.from_arrow(cache.samples(chunk, list(dict.fromkeys(columns)))))
        ids = rows["sample_id"].to_list()
        names = ids if expression is None else evaluate(rows, expression, pl.String).to_list()
        found |= {sample: name or sample for sample, name in zip(ids, names, strict=True)}
    return found


def _found(names: dict[str, str], folder: Path, cache: CostCache) -> list[Path]:
    """The files of images: by their path from the folder, or beneath it by their name."""
    files = {name: folder / name for name in names.values() if (folder / name).is_file()}
    others = set(names.values()) - set(files)
    if others:
        files |= find_images(folder, others)
    gone = [name for name in names.values() if name not in files]
    if gone:
        named = _expression(cache)
        hint = "give the folder that the dataset lies in, with all that was unpacked"
        if named is not None and not set(columns_of(named)) <= set(cache.record.keep):
            missing = ", ".join(name for name in columns_of(named) if name not in cache.record.keep)
            hint = f"files are looked for by sample id, since the cache does not keep {missing}: add it to `keep`"
        raise DataError(f"{len(gone):,} of {len(names):,} images are not here, such as {gone[0]!r}", where=folder,
                        hint=hint)  # fmt: skip
    return [files[name] for name in names.values()]


def _compare(cache: CostCache, files: list[Path], built: str | None, folder: Path) -> str:
    """See that files are those of the build; why that cannot be seen, or an empty text."""
    if built is None:
        return "--images: these files are not compared with those of the build, since the cache keeps no digest of them"
    with ThreadPoolExecutor() as pool:
        try:
            digests = list(pool.map(sha256_of, files))
        except (CorruptPart, FileNotFoundError) as error:
            raise DataError(
                "an image cannot be read", where=getattr(error, "where", None), hint="restore it"
            ) from error
    if digest(digests) == built:
        return ""
    other = _other(cache, files)
    hint = "restore the files, or build the cache again from those that are here"
    twins = [] if other is None else [file for file in _of_name(folder, other.stem) if file != other]
    if twins:
        hint = f"of the same name: {twins[0]}; name the folder that has the right ones only, or restore the file"
    raise DataError(
        "this is not the image that the agents were asked about" if other is not None
        else f"one or more of these {len(files):,} images are not those that the agents were asked about",
        where=other if other is not None else files[0].parent,
        hint=hint,
    )  # fmt: skip


def _of_name(folder: Path, stem: str) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.stem == stem and file.suffix.lower() in SUFFIXES]


def _other(cache: CostCache, files: list[Path]) -> Path | None:
    """The first file that differs from what the cache keeps of its image: a small copy, or its width and height."""
    small, first = _kept(cache).get("size"), 0
    for chunk in range(cache.record.num_chunks):
        columns = [name for name in ("width", "height") if name in cache.record.keep]
        rows = cache.samples(chunk, ["sample_id", *(["image"] if small else []), *columns])
        here = files[first : first + len(rows)]
        first += len(rows)
        if small:
            with ThreadPoolExecutor() as pool:
                made = pool.map(partial(thumbnail, size=small), here)
                for file, one, kept in zip(here, made, rows["image"].to_pylist(), strict=True):
                    if one != kept:
                        return file
        elif len(columns) == 2:
            for file, *sides in zip(here, *(rows[name].to_pylist() for name in columns), strict=True):
                if image_size(file) != tuple(sides):
                    return file
    return None
