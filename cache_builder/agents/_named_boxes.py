"""The boxes that a user's own function found on an image, their labels as indices of the dataset's classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from l2d.cache_builder.agents._labels import class_index


def boxes_of(
    image: Mapping[str, Any],
    classes: tuple[str, ...],
    positions: np.ndarray | None,
    label_map: dict[str, str],
    min_score: float,
) -> dict[str, np.ndarray]:
    """An image's boxes as :meth:`l2d.data.samples.boxes.Boxes.from_images` takes them.

    Args:
        image: ``boxes`` (k, 4), ``labels`` (k,) and ``scores`` (k,), 1 if left out. A label is a name, a position in
            ``positions``, or without these the index of a class.
        classes: of the dataset.
        positions: index of the dataset's class for each of the agent's labels, -1 where the dataset has it not.
        label_map: the agent's name of a class -> the dataset's.
        min_score: boxes with a lower score are left out, as are those of other classes.

    Raises:
        ValueError: a position is not in the list.
    """
    labels = np.asarray(image["labels"])
    boxes = np.asarray(image["boxes"], dtype=np.float64).reshape(-1, 4)
    scores = np.asarray(image.get("scores", np.ones(len(boxes))), dtype=np.float64)
    if labels.dtype.kind in "UO" and labels.size:
        labels = class_index([str(name) for name in labels], classes, label_map)
    elif positions is not None:
        labels = labels.astype(np.int64)
        outside = labels[(labels < 0) | (labels >= len(positions))]
        if len(outside):
            raise ValueError(f"label {outside[0]} is not a position in `labels`, which has {len(positions)} names")
        labels = positions[labels]
    elif not min_score:
        return {"boxes": boxes, "labels": labels, "scores": scores}
    if not labels.shape == scores.shape == (len(boxes),):
        raise ValueError(f"{len(boxes)} boxes, but labels of shape {labels.shape} and scores of shape {scores.shape}")
    named = positions is not None or np.asarray(image["labels"]).dtype.kind in "UO"
    keep = ~(scores < min_score) & ((labels >= 0) if named else np.full(len(labels), True))
    return {"boxes": boxes[keep], "labels": labels[keep], "scores": scores[keep]}
