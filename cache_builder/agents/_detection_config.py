"""What a recipe says of an agent that answers out of a file of detections."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import field_validator

from l2d.cache_builder.agents._base import AgentConfig
from l2d.cache_builder.agents._detection_texts import form_of


class DetectionsConfig(AgentConfig):
    """``kind = "detections"``: a detection is an entry of ``file``; on an image without entries nothing was found.

    * ``.json``: COCO's results, ``[{"image_id", "category_id", "bbox": [x, y, width, height], "score"}, …]``, or COCO's
      annotations, ``{"images", "annotations", "categories"}``, whose categories count by their names.
    * ``.parquet``, ``.csv``: columns ``image``, ``label``, ``x1``, ``y1``, ``x2``, ``y2`` (pixels) and ``score``.

    * a folder: a text file for each image, a detection a line, its fields in the order of ``line``.

    Without any scores, as people draw boxes, each counts with score 1. Equal scores keep the file's order.

    Images are named by sample id, or as the dataset's column ``image_id`` has them; with ``match = "file_name"`` or
    ``"stem"`` (``0001`` for ``0001.jpg``) by their files. An entry whose ``file_name`` is not that of the image with
    its ``image_id`` is refused.

    A label of a table or a text file is the name of a class, COCO's names of VOC's classes included. A ``category_id``
    is that of the image's set (``categories = "ids"``), or the position of a class counted ``"from_0"`` or
    ``"from_1"``, as a label of a text file may be too. ``labels`` maps what is neither to a class: ``{ "1" = "person"
    }``.

    With ``partial`` there is no answer on an image that the file does not name; one that was looked at in vain is named
    by a row without label and box, an entry without ``bbox`` and ``category_id``, in the ``images`` of annotations, or
    by an empty text file.
    """

    kind: Literal["detections"]
    file: Path
    """COCO's results or annotations (`.json`), a table (`.parquet`, `.csv`), or a folder of text files."""
    line: str = "label score x1 y1 x2 y2"
    """Fields of a text file's line: `label`, `score` (may be left out) and `x1 y1 x2 y2`, `x y width height` or
    `cx cy width height`, in the order in which they stand.
    """
    coordinates: Literal["pixels", "pixels_from_1", "fractions"] = "pixels"
    """What coordinates count: continuous pixels from the corner; pixels from 1, the last one covered being named, as
    VOC's tools do; or shares of the image's width and height, as YOLO's do.
    """
    features: list[Literal["detections"]] = []
    """What the first agent gives the rejector as input."""
    match: Literal["id", "file_name", "stem"] = "id"
    """What names an image: the sample's id, its file's name, or that name without suffix."""
    categories: Literal["ids", "from_0", "from_1"] = "ids"
    """What a `category_id`, or a text file's label, is: the set's own id, or a position counted from 0 or 1."""
    labels: dict[str, str] = {}
    """A label as the file has it -> a class: `{ "1" = "person" }`."""
    others: Literal["refuse", "drop"] = "refuse"
    """What becomes of detections on images, or of labels, that the dataset does not have."""
    partial: bool = False
    """An image that the file does not name has no answer, instead of no objects."""

    @field_validator("line")
    @classmethod
    def _line_of_one_form(cls, line: str) -> str:
        form_of(line)
        return line
