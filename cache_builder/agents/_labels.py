"""A detector's labels and the dataset's classes: lists of names, and which of the one is which of the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import numpy as np

from l2d.data.errors import UsageError, nearest

#: COCO's names of Pascal VOC's classes where the two differ.
COCO_TO_VOC = {
    "airplane": "aeroplane",
    "motorcycle": "motorbike",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "tv": "tvmonitor",
}

#: What a recipe may say that labels stand for.
LabelList = Literal["coco80", "coco91", "dataset"] | list[str]


class Labelled(Protocol):
    """What is asked of an agent's settings here."""

    name: str
    label_map: dict[str, str]


def names_of(labels: LabelList, classes: tuple[str, ...]) -> list[str]:
    """Names in the order of a detector's labels.

    ``coco91`` are COCO's categories by their ids, 1 to 90, "N/A" where there is none; ``coco80`` the 80 that there are,
    in the same order; ``dataset`` the classes of the dataset.
    """
    if isinstance(labels, list):
        return labels
    if labels == "dataset":
        return list(classes)
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = list(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])
    return names if labels == "coco91" else [name for name in names if name != "N/A"]


def class_index(names: Iterable[str | None], classes: tuple[str, ...], label_map: dict[str, str]) -> np.ndarray:
    """Index of the dataset's class for each of a detector's labels, -1 where the dataset has no such class, (labels,).

    A name counts as ``label_map`` says, else as it is, else by :data:`COCO_TO_VOC`.
    """
    index = {name: position for position, name in enumerate(classes)}
    found = []
    for name in names:
        others = (label_map.get(name or ""), name, COCO_TO_VOC.get(name or ""))
        found.append(next((index[other] for other in others if other in index), -1))
    return np.array(found, dtype=np.int32)


def class_labels(names: list[str], classes: tuple[str, ...], config: Labelled) -> np.ndarray:
    """:func:`class_index` of an agent's labels, with a check of its ``label_map``.

    Raises:
        UsageError: the map names a label or a class that there is not, or none of the labels is one of the classes.
    """
    where = f"agent {config.name!r}"
    for label, name in config.label_map.items():
        for what, value, known in (("label", label, names), ("class", name, classes)):
            if value not in known:
                owner = "the detector" if what == "label" else "the dataset"
                raise UsageError(
                    f"label_map: {owner} has no {what} {value!r}", where=where, hint=nearest(value, known, "it has")
                )
    found = class_index(names, classes, config.label_map)
    if (found < 0).all():
        raise UsageError(
            "none of the detector's labels is a class of the dataset",
            where=where,
            hint=f"name them with label_map; the classes are {', '.join(classes)}",
        )
    return found
