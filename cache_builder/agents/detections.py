"""Detections that somebody else's program has made: COCO's results format, or a table."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from l2d.cache_builder.agents._base import Agent, AgentConfig, file_digest
from l2d.cache_builder.agents._detector import class_index, summary_of_detections
from l2d.cache_builder.answers import Answers
from l2d.data.errors import DataError, UsageError, close_to, nearest
from l2d.data.samples.boxes import Boxes
from l2d.data.samples.dataset import Batch, Dataset
from l2d.data.sources._annotated import is_file

NUMBERS = ("x1", "y1", "x2", "y2", "score")
COLUMNS = ("image", "label", *NUMBERS)
READERS = {".json": "_read_results", ".parquet": "_read_table", ".csv": "_read_table"}
FORMAT_HINT = "see https://cocodataset.org/#format-results"


class DetectionsConfig(AgentConfig):
    """``kind = "detections"``: a detection is an entry of ``file``; on an image without entries nothing was found.

    * ``.json``: COCO's results, ``[{"image_id", "category_id", "bbox": [x, y, width, height], "score"}, …]``.
    * ``.parquet``, ``.csv``: columns ``image``, ``label``, ``x1``, ``y1``, ``x2``, ``y2`` (pixels) and ``score``.

    Images are named by sample id, or as the dataset's column ``image_id`` has them. A label of a table is the name of a
    class, COCO's names of VOC's classes included; a ``category_id`` is that of a COCO dataset. ``labels`` maps what is
    neither to a class: ``{ "1" = "person" }``.
    """

    kind: Literal["detections"]
    file: Path
    features: list[Literal["detections"]] = []
    labels: dict[str, str] = {}
    others: Literal["refuse", "drop"] = "refuse"  # detections on images or of labels that the dataset has not


class Found(NamedTuple):
    """The detections of a file, m in all, as it has them."""

    image: list[str | int]
    label: list[str | int]
    xyxy: np.ndarray  # float64 (m, 4)
    score: np.ndarray  # float64 (m,)


class DetectionsAgent(Agent):
    config: DetectionsConfig
    can_answer = ("boxes",)
    can_show = ("detections",)
    reads = ("classes", "column image_id")

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        """The whole file is read and checked, so that what is wrong with it is said at once."""
        path, where = self.config.file, f"agent {self.config.name!r}"
        if path.suffix.lower() not in READERS:
            raise UsageError(
                f"{where}: cannot read {path.suffix or 'a file without suffix'}",
                where=path,
                hint=f"there are {', '.join(READERS)}",
            )
        if not is_file(path):
            raise UsageError(
                f"{where}: there is no such file", where=path, hint="relative paths are relative to the recipe"
            )
        for label, name in self.config.labels.items():
            if name not in dataset.classes:
                raise UsageError(
                    f"labels: {label!r} is to be {name!r}, which is no class",
                    where=where,
                    hint=nearest(name, dataset.classes, "the classes are"),
                )
        self.boxes = self._by_image(dataset)

    def _by_image(self, dataset: Dataset) -> Boxes:
        """What was found on each image of the dataset, in the file's order."""
        found = self._found
        image = np.array([self._position(name, row, dataset) for row, name in enumerate(found.image)], dtype=np.int64)
        label = self._labels(found.label, dataset)
        keep = np.flatnonzero((image >= 0) & (label >= 0))
        keep = keep[np.argsort(image[keep], kind="stable")]
        return Boxes(
            offsets=np.searchsorted(image[keep], np.arange(len(dataset) + 1)).astype(np.int64),
            xyxy=found.xyxy[keep].astype(np.float32),
            label=label[keep].astype(np.int32),
            score=found.score[keep].astype(np.float32),
            ignore=np.zeros(len(keep), bool),
            crowd=np.zeros(len(keep), bool),
        )

    def _position(self, name: str | int, row: int, dataset: Dataset) -> int:
        """Which sample an image is, -1 if it is none and may be left out."""
        found = self._positions(dataset).get(str(name), -1)
        if found == -2:
            raise self._error(f"two images of the dataset have the image_id {name}", row, "use sample ids, train/17")
        if found == -1 and self.config.others == "refuse":
            raise self._error(
                f"image {name!r} is not in the dataset",
                row,
                f'ids are like {dataset.ids[0]!r}; others = "drop" leaves out what is on other images',
            )
        return found

    def _positions(self, dataset: Dataset) -> dict[str, int]:
        """Image as it may be named -> its position; -2 for a name that two have."""
        if not hasattr(self, "_known"):
            self._known: dict[str, int] = {}
            if "image_id" in dataset.columns.columns:
                for position, name in enumerate(dataset.columns["image_id"].to_list()):
                    self._known[str(name)] = -2 if str(name) in self._known else position
            self._known |= {name: position for position, name in enumerate(dataset.ids)}
        return self._known

    def _labels(self, labels: list[str | int], dataset: Dataset) -> np.ndarray:
        """Index of the class of each detection, -1 if it is none and may be left out."""
        own = {str(category): label for label, category in enumerate(dataset.inputs.get("category_ids", ()))}
        by_id = self.config.file.suffix.lower() == ".json"
        index = {}
        for row, label in enumerate(labels):
            name = str(label)
            if name in index:
                continue
            if name in self.config.labels:
                index[name] = dataset.classes.index(self.config.labels[name])
            else:
                index[name] = own.get(name, -1) if by_id else int(class_index([name], dataset.classes, {})[0])
            if index[name] < 0 and self.config.others == "refuse":
                what = f"category_id {label}" if by_id else f"label {label!r}"
                raise self._error(
                    f"{what} is none of the dataset's",
                    row,
                    f'map it, labels = {{ "{label}" = "{dataset.classes[0]}" }}, or leave such out: others = "drop"',
                )
        return np.array([index[str(label)] for label in labels], dtype=np.int64)

    @cached_property
    def _found(self) -> Found:
        found = getattr(self, READERS[self.config.file.suffix.lower()])(self.config.file)
        x1, y1, x2, y2 = found.xyxy.T
        with np.errstate(over="ignore"):
            finite = np.isfinite(found.xyxy.astype(np.float32)).all(axis=1)
        rules = (
            (finite, found.xyxy, "box", "is not finite"),
            ((x2 >= x1) & (y2 >= y1), found.xyxy, "box", "has its corners the wrong way round"),
            ((found.score >= 0) & (found.score <= 1), found.score, "score", "is not from 0 to 1"),
        )
        for good, values, name, what in rules:
            if not good.all():
                row = int(good.argmin())
                raise self._error(f"{name} {values[row].tolist()} {what}", row, "correct it, or leave it out")
        return found

    def _read_results(self, path: Path) -> Found:
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"is not JSON: {error}", where=path, hint="restore the file") from error
        if not isinstance(content, list):
            raise DataError("is no list of detections", where=path, hint=FORMAT_HINT)
        boxes, scores = np.zeros((len(content), 4)), np.zeros(len(content))
        for row, entry in enumerate(content):
            if not isinstance(entry, dict):
                raise self._error(f"is {entry!r:.60}, no object", row, FORMAT_HINT)
            for key, kinds in (("image_id", (int, str)), ("category_id", (int,)), ("score", (int, float))):
                if type(entry.get(key)) not in kinds:  # True is an int, and no id
                    shown = f"{entry[key]!r:.60}" if key in entry else "missing"
                    raise self._error(f"{key!r} is {shown}", row, FORMAT_HINT)
            bbox = entry.get("bbox")
            if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(value) in (int, float) for value in bbox):
                raise self._error(f"bbox is {bbox!r:.60}, not four numbers", row, FORMAT_HINT)
            try:
                boxes[row], scores[row] = bbox, entry["score"]
            except OverflowError as error:  # an integer of hundreds of digits
                raise self._error("has a number that is out of range", row, "correct it, or leave it out") from error
        boxes[:, 2:] += boxes[:, :2]
        return Found(
            [entry["image_id"] for entry in content], [entry["category_id"] for entry in content], boxes, scores
        )

    def _read_table(self, path: Path) -> Found:
        try:
            csv = path.suffix.lower() == ".csv"
            table = pl.read_csv(path, infer_schema=False) if csv else pl.read_parquet(path)
        except Exception as error:  # whatever polars makes of damaged bytes
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"cannot be read: {reason}", where=path, hint="restore the file") from error
        for name in COLUMNS:
            if name not in table.columns:
                near = close_to(name, table.columns)
                hint = f"is it {near!r}? " if near else ""
                raise DataError(f"has no column {name!r}", where=path, hint=f"{hint}it needs {', '.join(COLUMNS)}")
        try:
            text = table.select(pl.col("image", "label").cast(pl.String))
            numbers = table.select(pl.col(NUMBERS).cast(pl.Float64, strict=False))
        except pl.exceptions.PolarsError as error:  # a list, say
            reason = str(error).splitlines()[0]
            raise DataError(f"has columns of other types: {reason}", where=path, hint="texts and numbers") from error
        for name in COLUMNS:
            column = (text if name in text.columns else numbers)[name]
            if column.null_count():
                row = int(column.is_null().arg_max())
                raise self._error(f"{name} is {table[name][row]!r}", row, "correct it, or leave it out")
        values = numbers.to_numpy()
        return Found(text["image"].to_list(), text["label"].to_list(), values[:, :4], values[:, 4])

    def _error(self, what: str, row: int, hint: str) -> DataError:
        return DataError(
            f"agent {self.config.name!r}: {what}", where=f"{self.config.file}, detection at position {row}", hint=hint
        )

    def ask(self, batch: Batch) -> Answers:
        answers = Answers(boxes=self.boxes[batch.rows.start : batch.rows.stop])
        if self.config.features:
            area = (batch.columns["width"] * batch.columns["height"]).to_numpy()
            answers.features = summary_of_detections(answers.boxes, area, self.num_classes)
        return answers

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        self.num_classes = len(dataset.classes)

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        fields = super().fingerprint(dataset)
        fields["file"] = file_digest(self.config.file) if is_file(self.config.file) else None
        if "category_ids" in dataset.inputs:
            fields["category_ids"] = list(dataset.inputs["category_ids"])
        return fields
