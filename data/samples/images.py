"""Image files as arrays, and the small copies of them that the cache keeps for a convolutional rejector.

Pillow decodes them, not torchvision: torchvision's decoders are deprecated since 0.29, and a PNG with one flipped bit
makes them crash the process (seen with 0.29.2) where Pillow raises. On undamaged JPEG and PNG files of 8 bits both give
the same pixels. An orientation noted in EXIF data is not applied: annotations refer to the pixels as they are stored.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from l2d.data.errors import DataError
from l2d.data.samples.cells import first_true

if TYPE_CHECKING:
    import polars as pl
    import torch
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png")
FORMATS = ("JPEG", "PNG")  # and nothing else: some of Pillow's other readers start programs
HINT = "is it a whole JPEG or PNG file? Restore it, or leave it out of the sets"


def read_image(path: Path | str) -> torch.Tensor:
    """The pixels of a JPEG or PNG file, whatever its kind (grey, palette, 16 bits, CMYK), as uint8 RGB (3, H, W).

    Transparency is dropped; of 16 bits the higher 8 are taken.

    Raises:
        DataError: there is no such file, or it is damaged as far as its format tells; names the file.
    """
    import torch

    pixels = np.array(_decode(path, path))  # a copy: torch wants memory it may write to
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def image_size(path: Path | str) -> tuple[int, int]:
    """Width and height of a JPEG or PNG file as it is stored. Only its header is read: 40 microseconds a file.

    Raises:
        DataError: there is no such file, or it does not begin like an image; names the file.
    """
    return _decode(path, path, header_only=True).size


def thumbnail(path: Path | str, size: int) -> bytes:
    """An image squeezed to ``size`` x ``size`` pixels, whatever its shape, as a PNG file. Threads may call it at once.

    Raises:
        DataError: as :func:`read_image`.
    """
    return _png(_squeezed(path, size))


def squeezed(path: Path | str, size: int) -> np.ndarray:
    """The pixels of :func:`thumbnail` without the file: uint8 RGB (3, size, size)."""
    return np.asarray(_squeezed(path, size)).transpose(2, 0, 1)


def _squeezed(path: Path | str, size: int) -> Image:
    from PIL.Image import Resampling

    return _decode(path, path).resize((size, size), Resampling.BILINEAR)  # averages over all pixels that it shrinks


def png(pixels: np.ndarray) -> bytes:
    """uint8 RGB pixels (3, height, width) as a PNG file."""
    from PIL import Image

    return _png(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))))


def _png(image: Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def decode_thumbnails(files: list[bytes]) -> np.ndarray:
    """Images that :func:`thumbnail` made, as one uint8 array (n, 3, size, size).

    Raises:
        DataError: one is damaged, or not of the same size as the first; names its position.
    """
    found = np.zeros((0, 3, 0, 0), np.uint8)
    for position, file in enumerate(files):
        where = f"small image {position}"
        pixels = np.asarray(_decode(io.BytesIO(file), where)).transpose(2, 0, 1)
        if position == 0:
            found = np.empty((len(files), *pixels.shape), np.uint8)
        if pixels.shape != found.shape[1:]:
            sizes = [f"{width} x {height}" for _, height, width in (pixels.shape, found.shape[1:])]
            raise DataError(f"is {sizes[0]} pixels, the first is {sizes[1]}", where=where, hint="build the cache again")
        found[position] = pixels
    return found


def image_files(names: pl.Series, folder: Path, first_row: int = 0) -> tuple[Path, ...]:
    """Paths of images that a table names, relative to its folder unless they are absolute.

    Args:
        first_row: number of the first row, for messages, where the table is a part of a larger one.

    Raises:
        DataError: a row names no file, or one that is not there; the first is named, and how many there are.
    """
    if names.null_count():
        row = first_row + first_true(names.is_null())
        raise DataError(f"row {row} names no image", hint="filter such rows with `where`, or fill the cell")
    paths = tuple(folder / name for name in names.to_list())
    gone = [row for row, path in enumerate(paths) if not path.is_file()]
    if gone:
        more = f" ({len(gone):,} of {len(paths):,} images are not there)" if len(gone) > 1 else ""
        raise DataError(
            f"row {first_row + gone[0]}: there is no such image{more}",
            where=paths[gone[0]],
            hint="names are relative to the folder of the table; `image` is SQL: 'pictures/' || file",
        )
    return paths


def find_images(folder: Path, names: Collection[str]) -> dict[str, Path]:
    """Image files beneath a folder whose name, without its suffix, is the last part of a wanted name.

    Of several the first by path whose folders name the origin that precedes an id (``2007/000001`` lies in
    ``VOC2007``), else the first: a VOCdevkit has masks of the same names behind its ``JPEGImages``.

    Returns:
        Wanted name -> file; names without one are left out.
    """
    by_stem: dict[str, list[str]] = {}
    for name in names:
        last = Path(name)
        by_stem.setdefault(last.stem if last.suffix.lower() in SUFFIXES else last.name, []).append(name)
    found: dict[str, Path] = {}
    in_place: set[str] = set()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.stem not in by_stem:
            continue
        for name in by_stem[path.stem]:
            origin = name.rpartition("/")[0]
            belongs = bool(origin) and any(part.endswith(origin) for part in path.parent.parts)
            if name not in found or (belongs and name not in in_place):
                found[name] = path
            if belongs:
                in_place.add(name)
    return found


def _decode(source: Path | str | BinaryIO, where: object, *, header_only: bool = False) -> Image:
    """An image file opened, and unless ``header_only`` decoded to RGB."""
    from PIL import Image

    try:
        with Image.open(source, formats=FORMATS) as image:
            return image if header_only else _to_rgb(image)
    except FileNotFoundError as error:
        raise DataError(
            "there is no such image", where=where, hint="check the path, and that all were unpacked"
        ) from error
    except MemoryError:  # no fault of the file: the caller may ask for half of the batch
        raise
    except Exception as error:  # damaged bytes make Pillow raise OSError, SyntaxError, ValueError, struct.error …
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot be read as an image: {reason}", where=where, hint=HINT) from error


def _to_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits grey; Pillow's own conversion would cut all above 255 off
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:  # Pillow warns where it would have to drop it itself
        image = image.convert("RGBA")
    return image.convert("RGB")
