"""Detections that another program has made, or boxes that a person has drawn, from a file."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from l2d.cache_builder.agents._base import Agent, file_digest
from l2d.cache_builder.agents._detection_config import DetectionsConfig
from l2d.cache_builder.agents._detection_files import FORMATS, DetectionFile, Found
from l2d.cache_builder.agents._detection_names import ImageNames, LabelNames
from l2d.cache_builder.agents._summary import summary_of_detections
from l2d.cache_builder.answers import Answers
from l2d.data.cache.schema import NO_ANSWER
from l2d.data.errors import DataError, UsageError, nearest
from l2d.data.samples.boxes import Boxes
from l2d.data.samples.dataset import Batch, Dataset
from l2d.data.sources._annotated import is_file, is_folder

_DEFAULTS = {name: field.default for name, field in DetectionsConfig.model_fields.items()}


class DetectionsAgent(Agent):
    config: DetectionsConfig
    can_answer = ("boxes",)
    can_show = ("detections",)
    reads = ("classes", "column image_id", "column file_name")

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        """The whole file is read and checked, so that what is wrong with it is said at once."""
        path, where = self.config.file, f"agent {self.config.name!r}"
        folder = is_folder(path)
        if not folder and path.suffix.lower() not in FORMATS:
            raise UsageError(
                f"{where}: cannot read {path.suffix or 'a file without suffix'}",
                where=path,
                hint=f"it reads {', '.join(FORMATS)}, and folders of text files",
            )
        if not folder and not is_file(path):
            raise UsageError(
                f"{where}: there is no such file", where=path, hint="relative paths are relative to the recipe"
            )
        for label, name in self.config.labels.items():
            if name not in dataset.classes:
                raise UsageError(
                    f"labels: {label!r} is to be {name!r}, which is not a class",
                    where=where,
                    hint=nearest(name, dataset.classes, "the classes are"),
                )
        self._place(dataset)

    @cached_property
    def _file(self) -> DetectionFile:
        return DetectionFile(self.config.file, self.config.name, gaps=self.config.partial, line=self.config.line)

    @cached_property
    def _found(self) -> Found:
        return self._file.read()

    def _place(self, dataset: Dataset) -> None:
        """Give each image of the dataset what was found on it, in the file's order; say what is not as usual."""
        found = self._found
        images = ImageNames(self._file, found, self.config, dataset)
        position = np.array(
            [images.position(name, found.file_name[row], row) for row, name in enumerate(found.image)], dtype=np.int64
        )
        label = LabelNames(self._file, found, self.config, dataset).index(position)
        boxed = np.array([name is not None for name in found.label], dtype=bool)
        keep = np.flatnonzero((position >= 0) & (label >= 0) & boxed)
        self._say_what_is_dropped(found, position, label, boxed, len(keep))
        keep = keep[np.argsort(position[keep], kind="stable")]
        xyxy, size = self._in_pixels(found.xyxy[keep], found.size[keep], position[keep], dataset)
        self.boxes = Boxes(
            offsets=np.searchsorted(position[keep], np.arange(len(dataset) + 1)).astype(np.int64),
            xyxy=xyxy,
            size=size,
            label=label[keep].astype(np.int32),
            score=np.ones(len(keep)) if found.score is None else found.score[keep],
            ignore=np.zeros(len(keep), bool),
            crowd=np.zeros(len(keep), bool),
        )
        self.looked_at = np.zeros(len(dataset), dtype=bool)
        self.looked_at[position[position >= 0]] = True
        for row, (name, file_name) in enumerate(found.looked_at or ()):
            at = images.position(name, file_name, row)
            if at >= 0:
                self.looked_at[at] = True
        if found.score is None and len(keep):
            self.remarks.append("no scores: each box counts with score 1, and boxes of a class keep the file's order")
        if self.config.partial:
            self.remarks.append(f"{int((~self.looked_at).sum()):,} images that the file does not name have no answer")

    def _in_pixels(
        self, xyxy: np.ndarray, size: np.ndarray, position: np.ndarray, dataset: Dataset
    ) -> tuple[np.ndarray, np.ndarray]:
        """Corners (k, 4) and sizes (k, 2) in continuous pixels of the images at these positions (k,)."""
        if self.config.coordinates == "pixels_from_1":
            file = self.config.file
            by_corners = "x1" in self.config.line.split() if is_folder(file) else file.suffix.lower() != ".json"
            # a far corner is the last pixel covered, which ends at its own number; a width is a width
            return (xyxy - [1, 1, 0, 0], size + 1) if by_corners else (xyxy - 1, size)
        if self.config.coordinates == "fractions":
            sides = dataset.columns.select("width", "height").to_numpy().astype(np.float64)[position]
            if len(xyxy) and (np.abs(xyxy) > 2).any():
                raise DataError(
                    f"agent {self.config.name!r}: a box reaches to {np.abs(xyxy).max():g} widths of its image",
                    where=self.config.file,
                    hint='coordinates = "pixels" or "pixels_from_1"',
                )
            return xyxy * np.tile(sides, 2), size * sides
        return xyxy, size

    def _say_what_is_dropped(
        self, found: Found, position: np.ndarray, label: np.ndarray, boxed: np.ndarray, kept: int
    ) -> None:
        elsewhere = boxed & (position < 0)
        foreign = boxed & ~elsewhere & (label < 0)
        if boxed.any() and not kept:
            example = int(boxed.argmax())
            raise DataError(
                f'agent {self.config.name!r}: others = "drop" leaves out all {int(boxed.sum()):,} detections, '
                f"{int(elsewhere.sum()):,} for their image and {int(foreign.sum()):,} for their label",
                where=f"{self.config.file}, detection at position {example}",
                hint=f"the first names image {found.image[example]!r}, label {found.label[example]!r}; say "
                'match = "file_name" or "stem", categories = "from_0" or labels = {…}',
            )
        for count, names, what in (
            (int(elsewhere.sum()), found.image, "images that the dataset has not"),
            (int(foreign.sum()), found.label, "labels that it has not"),
        ):
            if count:
                rows = np.flatnonzero(elsewhere if names is found.image else foreign)
                most = [str(name) for name, _ in Counter(names[row] for row in rows).most_common(3)]
                self.remarks.append(
                    f"left out {count:,} of {int(boxed.sum()):,} detections: {what} ({', '.join(most)} …)"
                )

    def ask(self, batch: Batch) -> Answers:
        part = slice(batch.rows.start, batch.rows.stop)
        answers = Answers(boxes=self.boxes[part])
        if self.config.features:
            area = (batch.columns["width"] * batch.columns["height"]).to_numpy()
            answers.features = summary_of_detections(answers.boxes, area, self.num_classes)
        if self.config.partial and not self.looked_at[part].all():
            answers.failure = np.where(self.looked_at[part], None, NO_ANSWER)
        return answers

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        self.num_classes = len(dataset.classes)

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        fields = super().fingerprint(dataset)
        for name, default in (("line", _DEFAULTS["line"]), ("coordinates", "pixels")):  # came after caches were built
            if fields[name] == default:
                del fields[name]
        fields["file"] = _digest(self.config.file)
        for name in ("category_ids", "category_ids_of"):
            if name in dataset.inputs:
                fields[name] = dataset.inputs[name]
        return fields


def _digest(path: Path) -> str | dict[str, str] | None:
    """Of a file, or of each text file of a folder; None where there is nothing."""
    if is_folder(path):
        return {file.name: file_digest(file) for file in sorted(path.glob("*.txt"))}
    return file_digest(path) if is_file(path) else None
