"""What detectors have in common: batches of images in, detections of the dataset's classes and features out."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from l2d.cache_builder.agents._base import Agent, AgentConfig
from l2d.cache_builder.agents._image_batches import ImageReader, order_by_shape
from l2d.cache_builder.agents._summary import summary_of_detections
from l2d.cache_builder.answers import Answers
from l2d.data.samples.boxes import Boxes
from l2d.data.samples.dataset import Batch, Dataset


class DetectorConfig(AgentConfig):
    """Keys of every kind of detector."""

    features: list[Literal["backbone", "detections"]] = []
    """What the first agent gives the rejector as input. Only torchvision's detectors have `backbone`."""
    min_score: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Detections with a lower score are dropped."""
    max_detections: Annotated[int, Field(ge=1)] = 100
    """Detections kept of an image: the best of the dataset's classes."""
    label_map: dict[str, str] = {}
    """The detector's name of a class -> the dataset's: `{ human = "person" }`. COCO's names of VOC's classes are known.
    """
    expected: Path | None = None
    """A file with a few answers that the model's own library gave; they are compared before the build."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Images on the device at once."""
    workers: Annotated[int, Field(ge=1)] = min(8, os.cpu_count() or 1)
    """Threads that decode images. By default one per core, at most 8."""


class DetectorAgent(Agent):
    """Asks a model about images, batch by batch. A batch that does not fit into memory is halved from then on."""

    config: DetectorConfig
    timed = True
    repeats = True
    can_answer = ("boxes",)
    can_show = ("detections",)
    reads = ("images", "classes")
    unfingerprinted: ClassVar[set[str]] = Agent.unfingerprinted | {"batch_size", "workers"}

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        self.device, self.num_classes, self.batch_size = device, len(dataset.classes), self.config.batch_size
        gpu = torch.device(device).type == "cuda"
        self.reader = ImageReader(workers=self.config.workers, ahead=2 * self.batch_size, pin=gpu)

    @abstractmethod
    def detect(self, images: list[torch.Tensor]) -> tuple[list[dict[str, np.ndarray]], np.ndarray | None]:
        """Detections on images.

        Args:
            images: uint8 (3, H, W), on the CPU.

        Returns:
            For each image ``boxes`` (k, 4) in its pixels, ``labels`` (k,) as indices of the dataset's classes, negative
            for a class it has not, and ``scores`` (k,); and pooled features (n, width), if ``backbone`` is asked for.
        """

    def shape_in_batch(self, height: int, width: int) -> object:
        """What images have to have in common to be in one batch.

        Padding an image further changes what a network finds near its edge. Batched only with what needs the same
        padding, an image's answer does not depend on which others it was asked with, nor on the batch size.
        """
        return None

    def ask(self, batch: Batch) -> Answers:
        count = len(batch.ids)
        found: list[dict[str, np.ndarray]] = [_nothing() for _ in range(count)]
        shown: list[np.ndarray | None] = [None] * count
        failure = np.full(count, None, dtype=object)
        width, height = (batch.columns[name].to_numpy().astype(np.float64) for name in ("width", "height"))
        waiting: list[tuple[int, torch.Tensor]] = []

        def look(images: list[tuple[int, torch.Tensor]]) -> None:
            for part, answers, rows in self._detect_within_memory(images):
                for index, (position, _) in enumerate(part):
                    found[position], failure[position] = self._tidy(answers[index])
                    shown[position] = None if rows is None or failure[position] is not None else rows[index]

        for position, image in self.reader.read(batch.images, order_by_shape(width, height)):
            if isinstance(image, str):
                failure[position] = image
                continue
            if waiting and self.shape_in_batch(*image.shape[1:]) != self.shape_in_batch(*waiting[0][1].shape[1:]):
                look(waiting)
                waiting = []
            waiting.append((position, image))
            if len(waiting) >= self.batch_size:
                look(waiting)
                waiting = []
        if waiting:
            look(waiting)
        answers = Answers(boxes=Boxes.from_images(found))
        if self.config.features:
            answers.features = self._features(answers.boxes, shown, width * height)
        if any(reason is not None for reason in failure):
            answers.failure = failure
        return answers

    def _detect_within_memory(self, images: list[tuple[int, torch.Tensor]]) -> Iterable[tuple]:
        """Parts of a batch with what was found on them; parts are as large as memory lets them be."""
        while images:
            part = images[: self.batch_size]
            try:
                answers, rows = self.detect([image for _, image in part])
            except (MemoryError, RuntimeError) as error:  # torch's OutOfMemoryError is a RuntimeError, the CPU's is one
                out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
                if len(part) == 1 or not (out_of_memory or "can't allocate memory" in str(error)):
                    raise
                answers = None
            if answers is None:  # here, what the failed attempt held is free
                self.batch_size = len(part) // 2
                if torch.device(self.device).type == "cuda":
                    torch.cuda.empty_cache()
                continue
            yield part, answers, rows
            images = images[len(part) :]

    def _tidy(self, answer: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str | None]:
        """The best detections of known classes, best first; or why there is no answer."""
        boxes, labels, scores = answer["boxes"], answer["labels"], answer["scores"]
        if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
            return _nothing(), "it answered with scores or boxes that are not finite"
        keep = np.flatnonzero((labels >= 0) & (scores >= self.config.min_score))
        keep = keep[np.argsort(-scores[keep], kind="stable")][: self.config.max_detections]
        return {"boxes": boxes[keep], "labels": labels[keep], "scores": scores[keep]}, None

    def _features(self, boxes: Boxes, shown: list[np.ndarray | None], area: np.ndarray) -> np.ndarray:
        """Rows of the rejector's input, (n, width); zeros where an image could not be read."""
        parts = []
        if "backbone" in self.config.features:
            known = [row for row in shown if row is not None]
            if not known:  # not one image could be read: how wide would the rows be?
                known = list(self.detect([torch.zeros((3, 64, 64), dtype=torch.uint8)])[1])
            blank = np.zeros_like(known[0])
            parts.append(np.stack([blank if row is None else row for row in shown]))
        if "detections" in self.config.features:
            parts.append(summary_of_detections(boxes, area, self.num_classes))
        return np.hstack(parts)


def _nothing() -> dict[str, np.ndarray]:
    return {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int32), "scores": np.zeros(0, np.float32)}
