"""New photographs as inputs: image files, or a folder of them, whatever the rejector looks at.

A rejector on pixels reads them. One that looks at what an agent shows of itself, its pooled features or a summary of
what it found, needs that agent to be run; agents are the other stage's, so who calls lends a function that runs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from l2d.data.cache.columns import texts_column
from l2d.data.errors import DataError, UsageError
from l2d.data.samples.images import SUFFIXES, thumbnail
from l2d.rejector.rows.input import pixels_of
from l2d.rejector.rows.unlabelled import Batches, InputRecord, Inputs

OTHERS = (".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".jfif")  # not read
AT_ONCE = 256  # images, of which only features or small copies are held


@dataclass(frozen=True, kw_only=True)
class ToShow:
    """What has to be run on photographs.

    Attributes:
        agent: name of the agent whose features the rejector looks at.
        fingerprint: of it, without what it says of the dataset.
        cache: where the cache of the run lies, or lay; None where the run does not say.
        recipe: the file that describes the agent, if the user names one.
        files, ids: the images and what they are called.
        at_once: images of a batch, at most.
    """

    agent: str
    fingerprint: dict[str, Any]
    cache: Path | None
    recipe: Path | None
    files: list[Path]
    ids: list[str]
    at_once: int


#: Batches of features float32 (n, width), and why an image has none, a text or None each, (n,).
Show = Callable[[ToShow], Iterator[tuple[np.ndarray, list[str | None]]]]


@dataclass(frozen=True)
class Showing:
    """What the caller lends: how agents are run, and by which recipe."""

    show: Show
    recipe: Path | None = None


def photographs_at(path: Path | str | Sequence[Path | str]) -> tuple[list[Path], list[str]] | None:
    """Image files at or beneath a path, by name, and their ids; None where it is something else.

    An id is the file's name, or in folders of a folder the path from there, ``monday/cat.jpg``. Of several paths, all
    their images, in the order given. Hidden files are left out: a Mac's archives have one, ``._cat.jpg``, for each.

    Raises:
        UsageError: a folder has no images and is no cache; an image is of a format that is not read; of several paths
            one has no images, or two images have one id.
    """
    if not isinstance(path, Path | str):
        return _of_several(path)
    if isinstance(path, str):
        return None
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        return [path], [path.name]
    if path.suffix.lower() in OTHERS and path.is_file():
        raise UsageError(f"{path.suffix} files are not read", where=path, hint="convert it to JPEG or PNG")
    if not path.is_dir() or (path / "cache.json").is_file():
        return None
    files = _beneath(path, SUFFIXES)
    if not files:
        others = _beneath(path, OTHERS)
        raise UsageError(
            f"no JPEG or PNG file is here, only other images, such as {others[0].name}" if others
            else "neither a cost cache nor JPEG or PNG files are here",
            where=path,
            hint="convert them to JPEG or PNG" if others else "give a table, a cache, images or a folder of images",
        )  # fmt: skip
    return files, [file.relative_to(path).as_posix() for file in files]


def other_images(source: Path | str | Sequence[Path | str]) -> list[str]:
    """Names of image files in the folders of :func:`photographs_at` that are not read, by their format."""
    paths = [source] if isinstance(source, Path | str) else source
    return [file.name for path in paths if isinstance(path, Path) and path.is_dir() for file in _beneath(path, OTHERS)]


def _beneath(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    return sorted(
        file for file in folder.rglob("*")
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    )  # fmt: skip


def _of_several(paths: Sequence[Path | str]) -> tuple[list[Path], list[str]]:
    files: list[Path] = []
    ids: list[str] = []
    for path in paths:
        if isinstance(path, Path) and not path.exists():
            raise UsageError("there is no such file or folder", where=path, hint="check the path")
        found = photographs_at(path)
        if found is None:
            raise UsageError(
                f"one of {len(paths)} inputs, and not an image or a folder of images",
                where=path,
                hint="give images alone, or a single table",
            )
        files, ids = files + found[0], ids + found[1]
    name, count = Counter(ids).most_common(1)[0]
    if count > 1:
        here = [file for file, one in zip(files, ids, strict=True) if one == name]
        if len({file.resolve() for file in here}) < len(here):
            raise UsageError("this image is given twice", where=here[1], hint="give each image, or its folder, once")
        raise UsageError(
            f"{count} images are called {name}",
            where=here[1],
            hint="give the folder that has them all: images are called by their paths from there",
        )
    return files, ids


def open_photographs(
    files: list[Path],
    ids: list[str],
    record: InputRecord,
    width: int,
    *,
    cache: Path | None = None,
    unseen: np.ndarray | None = None,
    showing: Showing | None = None,
) -> Inputs:
    """Photographs as inputs of a run, in the order of ``files``.

    Args:
        files, ids: the images and what they are called.
        record: what the rejector looks at.
        width: numbers a sample.
        cache: where the run's cache lies, or lay.
        unseen: features, (width,), of images on which the agent that shows them fails; without, such are refused.
        showing: how that agent is run.

    Raises:
        UsageError: the run looks at columns of a table, or the agent cannot be run here.
        DataError: (when it is read) an image cannot be read, or the agent fails on it.
    """
    if record.column == "image":
        batches = _pixels(files, ids, int(record.made["size"]))
    elif record.made.get("agent") is not None and showing is not None and record.column == "features":
        wanted = ToShow(
            agent=record.made["agent"],
            fingerprint=record.shown_by or {},
            cache=cache,
            recipe=showing.recipe,
            files=files,
            ids=ids,
            at_once=AT_ONCE,
        )
        batches = _shown(wanted, showing.show(wanted), width, unseen)
    else:
        what = "columns of a table" if record.made.get("agent") is None else "what an agent makes of images"
        raise UsageError(
            f"this run looks at {what}, not at photographs",
            where=files[0].parent,
            hint="give a table with its columns, or a column `features`",
        )
    return Inputs(ids="file names", samples=len(files), batches=batches)


def _pixels(files: list[Path], ids: list[str], size: int) -> Batches:
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), AT_ONCE):
            small = list(pool.map(partial(thumbnail, size=size), files[start : start + AT_ONCE]))
            yield texts_column(ids[start : start + AT_ONCE]), pixels_of(pa.array(small, pa.binary())), None


def _shown(
    wanted: ToShow, parts: Iterator[tuple[np.ndarray, list[str | None]]], width: int, unseen: np.ndarray | None
) -> Batches:
    start = 0
    for features, reasons in parts:
        failed = [row for row, reason in enumerate(reasons) if reason is not None]
        if failed and unseen is None:
            reason = reasons[failed[0]]
            more = f" ({len(failed)} of {len(reasons)} photographs in this batch)" if len(failed) > 1 else ""
            raise DataError(
                f"agent {wanted.agent!r} has no features of it: {reason}{more}",
                where=wanted.files[start + failed[0]],
                hint="repair the file, or leave it out",
            )
        if features.shape[1] != width:
            raise DataError(
                f"agent {wanted.agent!r} shows {features.shape[1]} features, the rejector looks at {width}",
                where=wanted.files[start],
                hint="give the recipe that the run's cache was built by: --recipe FILE",
            )
        rows = features.astype(np.float32)
        rows[failed] = 0 if unseen is None else unseen
        yield texts_column(wanted.ids[start : start + len(rows)]), rows, None
        start += len(rows)
