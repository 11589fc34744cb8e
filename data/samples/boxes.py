"""Boxes of many images as flat arrays: ground truth of a dataset, or what a detector found.

Coordinates are continuous pixels, corners, origin at the image's top left: a box that covers exactly the first pixel is
``(0, 0, 1, 1)``. Pascal VOC's files count pixels from 1 and name the last one covered, so their ``xmin, ymin`` become
``xmin - 1, ymin - 1`` when read. That makes the plain overlap of two boxes equal to VOC's, which adds 1 to every width.

Everything is kept in 64 bits: in 32 bits the scores 0.9 and 0.9 + 1e-9 are equal, and an overlap of exactly 0.5 is not.
COCO's files have widths and heights, of which corners are made by adding; subtracting again need not give the same
numbers, so both are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from l2d.data.cache import schema

#: The greatest coordinate, in pixels, that a detection may have: areas are far from overflowing then.
LARGEST = 1e9

#: What there is of each box.
BY_BOX = ("xyxy", "size", "label", "score", "ignore", "crowd")

#: Stands for the sizes that corners give.
AS_CORNERS = np.empty((0, 2))


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Boxes of n images, m in all; image ``i`` has ``offsets[i]:offsets[i + 1]``.

    Attributes:
        offsets: int64 (n + 1,), from 0 to m.
        xyxy: float64 (m, 4): x1, y1, x2, y2 in pixels.
        label: int32 (m,): index into the dataset's classes.
        score: float64 (m,): confidence; 1 for ground truth.
        ignore: bool (m,): need not be found, and finding it is not an error (VOC's ``difficult``, COCO's crowds).
        crowd: bool (m,): COCO's ``iscrowd``: stands for many objects, so several may match it. Implies ignore.
        size: float64 (m, 2): width and height as they were given, the corners' differences where none were.
    """

    offsets: np.ndarray
    xyxy: np.ndarray
    label: np.ndarray
    score: np.ndarray
    ignore: np.ndarray
    crowd: np.ndarray
    size: np.ndarray = field(default_factory=lambda: AS_CORNERS)

    def __post_init__(self):
        if self.size is AS_CORNERS:
            object.__setattr__(self, "size", _size_of(self.xyxy))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """Boxes of each image, int64 (n,)."""
        return np.diff(self.offsets)

    @property
    def image(self) -> np.ndarray:
        """Position of the image of each box, int64 (m,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    @classmethod
    def from_images(cls, images: Iterable[Mapping[str, Any]]) -> Boxes:
        """From one mapping an image.

        Args:
            images: each with ``boxes`` (k, 4) and ``labels`` (k,); ``scores``, ``ignore`` and ``crowd``, all (k,), are
                1, False and False where left out. Anything ``np.asarray`` takes.

        Raises:
            ValueError: the lengths of one image's arrays differ, or they are not of these shapes.
        """
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ("xyxy", "label", "score", "ignore", "crowd")}
        counts = [0]
        for entry in images:
            xyxy = np.asarray(entry["boxes"], dtype=np.float64).reshape(-1, 4)
            size = len(xyxy)
            given: dict[str, np.ndarray] = {
                "label": np.asarray(entry["labels"], dtype=np.int32),
                "score": np.asarray(entry.get("scores", np.ones(size)), dtype=np.float64),
                "ignore": np.asarray(entry.get("ignore", np.zeros(size)), dtype=bool),
                "crowd": np.asarray(entry.get("crowd", np.zeros(size)), dtype=bool),
            }
            for name, values in given.items():
                if values.shape != (size,):
                    raise ValueError(f"{size} boxes, but {name} of shape {values.shape}")
                columns[name].append(values)
            columns["xyxy"].append(xyxy)
            counts.append(size)
        empty = cls.empty(0)
        joined = {name: np.concatenate([getattr(empty, name), *parts]) for name, parts in columns.items()}
        joined["ignore"] = joined["ignore"] | joined["crowd"]
        return cls(offsets=np.cumsum(counts, dtype=np.int64), **joined)

    @classmethod
    def empty(cls, images: int) -> Boxes:
        """No box on any of a number of images."""
        return cls(
            offsets=np.zeros(images + 1, np.int64),
            xyxy=np.zeros((0, 4)),
            label=np.zeros(0, np.int32),
            score=np.zeros(0),
            ignore=np.zeros(0, bool),
            crowd=np.zeros(0, bool),
        )

    @classmethod
    def concatenate(cls, parts: list[Boxes]) -> Boxes:
        """Images of several sets one after another."""
        starts = np.cumsum([0] + [len(part.xyxy) for part in parts])
        offsets = [np.zeros(1, np.int64)] + [
            part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)
        ]
        return cls(
            offsets=np.concatenate(offsets),
            **{name: np.concatenate([getattr(p, name) for p in [cls.empty(0), *parts]]) for name in BY_BOX},
        )

    def select(self, keep: np.ndarray) -> Boxes:
        """The same images with only the boxes where ``keep`` (bool, (m,)) says so."""
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep, dtype=np.int64)])[self.offsets]
        return Boxes(offsets=offsets, **{name: getattr(self, name)[keep] for name in BY_BOX})

    def take(self, images: np.ndarray | slice) -> Boxes:
        """Some images, by position and in that order, or by a slice."""
        positions = np.arange(len(self))[images]
        counts = self.counts[positions]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[positions] - offsets[:-1], counts)
        return Boxes(offsets=offsets, **{name: getattr(self, name)[rows] for name in BY_BOX})

    __getitem__ = take

    def of(self, image: int) -> dict[str, np.ndarray]:
        """The boxes of one image: boxes, labels, scores, ignore, crowd."""
        part = slice(self.offsets[image], self.offsets[image + 1])
        names = {"boxes": "xyxy", "labels": "label", "scores": "score", "ignore": "ignore", "crowd": "crowd"}
        return {key: getattr(self, name)[part] for key, name in names.items()}

    def to_arrow(self, missing: np.ndarray | None = None) -> pa.Array:
        """As a column of :data:`l2d.data.cache.schema.BOXES`, null in the images of ``missing`` (bool, (n,))."""
        fields = [*self.xyxy.T, self.score, self.label, self.ignore, self.crowd, *self.size.T]
        item = schema.BOXES.value_type
        arrays = [pa.array(np.ascontiguousarray(v), field.type) for v, field in zip(fields, item, strict=True)]
        values = pa.StructArray.from_arrays(arrays, fields=list(item))
        offsets = pa.array(self.offsets, pa.int32())
        mask = None if missing is None else pa.array(missing)
        return pa.ListArray.from_arrays(offsets, values, type=schema.BOXES, mask=mask)

    @classmethod
    def from_arrow(cls, column: pa.Array | pa.ChunkedArray) -> Boxes:
        """Inverse of :meth:`to_arrow`; an image without an answer has no boxes."""
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        counts = np.asarray(array.value_lengths().fill_null(0), dtype=np.int64)
        item = array.flatten()
        field = {name: item.field(name).to_numpy(zero_copy_only=False) for name in item.type.names}
        sized = "width" in field  # caches built before sizes were kept have none
        return cls(
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
            xyxy=np.stack([field[name] for name in ("x1", "y1", "x2", "y2")], axis=1).astype(np.float64),
            size=np.stack([field["width"], field["height"]], axis=1) if sized else AS_CORNERS,
            label=field["label"].astype(np.int32),
            score=field["score"].astype(np.float64),
            ignore=field["ignore"].astype(bool),
            crowd=field["crowd"].astype(bool),
        )


def _size_of(xyxy: np.ndarray) -> np.ndarray:
    """Width and height of corners (m, 4): float64 (m, 2)."""
    corners = xyxy.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused where boxes are checked
        return corners[:, 2:] - corners[:, :2]
