"""CIFAR-10 from its binary version (``data_batch_1.bin`` … ``test_batch.bin``), https://www.cs.toronto.edu/~kriz/cifar.html.

The python version is not read: its files are pickles, and unpickling a file can run any code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field

from l2d.data.errors import DataError
from l2d.data.samples.dataset import Dataset
from l2d.data.samples.splits import validation_share
from l2d.data.sources.table import Strict

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE  # bytes: the label, then rows of red, of green, of blue
HINT = "download the CIFAR-10 binary version (suitable for C programs) and unpack it"


class Cifar10Config(Strict):
    """``[dataset]`` of CIFAR-10: the five training batches, a share of which is for validation, and the test batch."""

    kind: Literal["cifar10"] = "cifar10"
    path: Path
    """The folder with the `.bin` files, or the one that holds `cifar-10-batches-bin`."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training images for validation, by a hash of the id."""
    salt: str = "l2d"
    """Another salt draws another validation split."""
    train_images: Annotated[int, Field(ge=1)] | None = None
    """Train on this number of the rest; smaller sets are parts of larger ones. All if not given."""
    images: bool = True
    """Keep the images in the cache, for `--rejector conv` and `image`."""
    pool: Literal[1, 2, 4, 8, 16, 32] | None = None
    """Features: means of squares of this number of pixels, in three colors; none if not given."""


def load_cifar10(config: Cifar10Config, name: str) -> Dataset:
    """Read the batches.

    Sample ids are file and record, ``data_batch_1/0``. Columns: ``source`` and ``class``. Agents see the images as
    ``batch.pixels``, uint8 (batch, 3, 32, 32). Features are in [0, 1], by colour, then row, then column.

    Args:
        config: the recipe's ``[dataset]``, its path absolute.
        name: the recipe's name, for messages.

    Raises:
        DataError: a file is missing or not of the format, or there are too few images; names file and record.
    """
    folder = config.path / "cifar-10-batches-bin"
    folder = folder if folder.is_dir() else config.path
    classes = _classes(folder)
    found = [read_batch(folder / f"{source}.bin") for source in _sources(folder)]
    counts = [len(labels) for labels, _ in found]
    ids = [f"{source}/{i}" for source, count in zip(_sources(folder), counts, strict=True) for i in range(count)]
    split = np.repeat(np.array(["train", "test"], dtype="<U10"), [sum(counts[:-1]), counts[-1]])
    train = ids[: sum(counts[:-1])]
    if len(train) < 2:
        raise DataError("one training image cannot be cut into two splits", where=folder, hint=HINT)
    split[validation_share(train, config.validation, config.salt)] = "validation"
    kept = np.ones(len(ids), bool)
    if config.train_images is not None:
        at = np.flatnonzero(split == "train")
        if config.train_images > len(at):
            raise DataError(
                f"train_images = {config.train_images}, but there are {len(at)}", where=folder, hint="lower it"
            )
        if config.train_images < len(at):
            chosen = validation_share([ids[i] for i in at], config.train_images / len(at), config.salt)
            kept[at] = False
            kept[at[chosen]] = True
    labels = np.concatenate([labels for labels, _ in found])[kept]
    pixels = np.concatenate([images for _, images in found])[kept]
    ids = [ids[i] for i in np.flatnonzero(kept)]
    inputs, features = {}, None
    if config.pool is not None:
        features = pooled(pixels, config.pool)
        inputs["features"] = {"kind": "dense", "width": features.shape[1], "of": f"pixels, pool {config.pool}"}
    columns = {"source": [sample.split("/")[0] for sample in ids], "class": [classes[label] for label in labels]}
    return Dataset(
        name=name,
        ids=ids,
        split=split[kept],
        features=features,
        columns=pl.DataFrame(columns),
        target_cla=labels.astype(np.int32),
        pixels=pixels,
        image_size=SIDE if config.images else None,
        classes=classes,
        keep=("source", "class"),
        inputs=inputs,
        config=config.model_dump(mode="json", exclude={"path"}),
    )


def _sources(folder: Path) -> list[str]:
    return [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]


def read_batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """One file: labels uint8 (n,), and images uint8 (n, 3, 32, 32).

    Raises:
        DataError: there is no such file, it is no whole number of records, or a label is no class.
    """
    if not file.is_file():
        pickled = file.with_suffix("").is_file()
        what = "there is the python version, which is pickled and not read" if pickled else "there is no such file"
        raise DataError(what, where=file, hint=HINT)
    size = file.stat().st_size
    if size == 0 or size % RECORD:
        raise DataError(f"{size} bytes are not a whole number of records of {RECORD}", where=file, hint=HINT)
    records = np.fromfile(file, np.uint8).reshape(-1, RECORD)
    bad = np.flatnonzero(records[:, 0] >= len(CLASSES))
    if len(bad):
        raise DataError(f"label {records[bad[0], 0]} is not a class", where=f"{file}, record {bad[0]}", hint=HINT)
    return records[:, 0], records[:, 1:].reshape(-1, 3, SIDE, SIDE)


def _classes(folder: Path) -> tuple[str, ...]:
    """The names in ``batches.meta.txt``, where it is there."""
    file = folder / "batches.meta.txt"
    if not file.is_file():
        return CLASSES
    names = tuple(re.findall(r"\S+", file.read_text(encoding="utf-8", errors="replace")))
    if len(set(names)) != len(CLASSES) or len(names) != len(CLASSES):
        raise DataError(f"names {len(names)} classes, not {len(CLASSES)} different ones", where=file, hint=HINT)
    return names


def pooled(pixels: np.ndarray, pool: int) -> np.ndarray:
    """Means of squares of ``pool`` x ``pool`` pixels: uint8 (n, 3, 32, 32) -> float32 (n, 3 (32 / pool)^2)."""
    side = SIDE // pool
    squares = pixels.reshape(len(pixels), 3, side, pool, side, pool)
    means = squares.sum(axis=(3, 5), dtype=np.uint32) / (255 * pool**2)
    return means.reshape(len(pixels), -1).astype(np.float32)
