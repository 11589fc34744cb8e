"""What models that answer about tables or images have in common: their inputs, and what their outputs mean."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from l2d.cache_builder.agents._base import Agent, AgentConfig
from l2d.cache_builder.agents._image_batches import ImageReader
from l2d.cache_builder.answers import Answers
from l2d.data.errors import AgentFailure, DataError, UsageError
from l2d.data.samples.dataset import Batch, Dataset
from l2d.data.samples.expressions import TEMPORAL, days, evaluate_rows

Side = Annotated[int, Field(ge=1)]
Three = Annotated[list[float], Field(min_length=3, max_length=3)]
Output = Literal["logits", "prob", "reg"]
NAMES = ("logits", "prob", "cla", "reg")  # keys of a model that returns a dict


class ModelConfig(AgentConfig):
    """Keys of every kind of model.

    A table's model gets the rejector's features (float32, encoded), or the numbers that ``columns`` (SQL) give, NaN
    where they are null. A model of images gets them as RGB, float32 (n, 3, height, width), normalised.

    ``outputs`` says what it returns, in order: ``logits`` (n, classes), ``prob`` (n, classes), ``reg`` (n,); one column
    of logits or probabilities is that of the second of two classes. A model may also return a dict with these names.
    ``labels`` are the classes that the columns stand for, the dataset's in order if not given; others are left out.
    """

    columns: list[str] = []
    """SQL: the numbers that the model takes, in its order; the rejector's features if not given."""
    outputs: Annotated[list[Output], Field(min_length=1)] | None = None
    """What it returns, in order; if not given, logits and the number, as the costs need them."""
    labels: list[str] | None = None
    """Classes that its columns stand for; the dataset's in order if not given."""
    image_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    """Side of the images it takes in pixels, or `[height, width]`. By default 224, and CIFAR-10's own 32."""
    crop: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the shorter side that is kept, 0.875 in torchvision's presets. If not given, the image is squeezed."""
    mean: Three = [0.485, 0.456, 0.406]
    """Subtracted from each channel; ImageNet's by default."""
    std: Three = [0.229, 0.224, 0.225]
    """Divides each channel; ImageNet's by default."""
    expected: Path | None = None
    """A file with a few answers that the model's own library gave; they are compared before the build."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Samples on the device at once."""
    workers: Annotated[int, Field(ge=1)] = min(8, os.cpu_count() or 1)
    """Threads that decode images. By default one per core, at most 8."""


class ModelAgent(Agent):
    """Asks a model, ``batch_size`` samples at a time."""

    config: ModelConfig
    can_answer = ("cla", "reg")
    timed = True
    repeats = True
    reads = ("features", "images", "pixels", "classes")
    unfingerprinted = Agent.unfingerprinted | {"batch_size", "workers"}
    image_side = 224  # where neither recipe nor model says

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        config, where = self.config, f"agent {self.config.name!r}"
        self.wanted = tasks
        self.sees = dataset.images is not None or dataset.pixels is not None  # images, rather than a table
        if not self.sees and dataset.features is None and not config.columns:
            raise UsageError("there is nothing to look at: neither features nor images", where=where)
        if self.sees and config.columns:
            raise UsageError(
                "`columns` are those of a table; this dataset has images", where=where, hint="leave it out"
            )
        self.labels = self.labels_of(dataset)
        for name in dataset.classes:
            if name not in self.labels:
                raise UsageError(
                    f"labels: no column stands for the class {name!r}",
                    where=where,
                    hint=f"name what the model's columns are, in order; the classes are {', '.join(dataset.classes)}",
                )
        try:
            self.matrix = self._matrix(dataset)
        except DataError as error:
            raise DataError(error.what, where=where, hint=error.hint) from error

    def labels_of(self, dataset: Dataset) -> list[str]:
        """The classes that the columns of what :meth:`run` returns stand for."""
        return list(dataset.classes) if self.config.labels is None else self.config.labels

    def _matrix(self, dataset: Dataset) -> np.ndarray | None:
        """A table's inputs, float32 (n, width)."""
        if self.sees:
            return None
        if not self.config.columns:
            return dataset.matrix
        columns = [evaluate_rows(dataset.columns, expression) for expression in self.config.columns]
        try:
            timed = [days(column) if column.dtype in TEMPORAL else column for column in columns]
            numbers = [column.cast(pl.Float64).fill_null(float("nan")).to_numpy() for column in timed]
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"columns: no number: {str(error).splitlines()[0]}", hint="CAST it, or leave it out"
            ) from error
        with np.errstate(over="ignore"):
            return np.stack(numbers, axis=1).astype(np.float32)

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        self.device, self.classes = device, dataset.classes
        own = None if dataset.pixels is None else list(dataset.pixels.shape[2:])
        size = self.config.image_size or own or self.image_side
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        if dataset.images is not None:
            self.reader = ImageReader(workers=self.config.workers, ahead=2 * self.config.batch_size, pin=False)

    @abstractmethod
    def run(self, inputs: Tensor) -> Any:
        """What the model returns.

        Args:
            inputs: float32 (n, width), or (n, 3, height, width), on the CPU.

        Returns:
            An array or tensor, a tuple of them in the order of ``outputs``, or a dict with keys of :data:`NAMES`.
        """

    def ask(self, batch: Batch) -> Answers:
        if not self.sees:
            rows = torch.from_numpy(np.ascontiguousarray(self.matrix[batch.rows.start : batch.rows.stop]))
            return Answers.concatenate([self._answers(part) for part in rows.split(self.config.batch_size)])
        if batch.pixels is not None:
            images = [torch.stack([self.prepare(one) for one in part]) for part in self._split(batch.pixels)]
            return Answers.concatenate([self._answers(part) for part in images])
        failure = np.full(len(batch.ids), None, dtype=object)
        parts: list[Answers] = []
        waiting: list[Tensor] = []
        for position, image in self.reader.read(batch.images, np.arange(len(batch.ids))):
            if isinstance(image, str):
                failure[position] = image
                image = torch.zeros((3, *self.size), dtype=torch.uint8)  # asked with the others and not used
            waiting.append(self.prepare(image))
            if len(waiting) == self.config.batch_size:
                parts.append(self._answers(torch.stack(waiting)))
                waiting = []
        if waiting:
            parts.append(self._answers(torch.stack(waiting)))
        answers = Answers.concatenate(parts)
        if any(reason is not None for reason in failure):
            answers.failure = failure
        return answers

    def _split(self, pixels: np.ndarray) -> tuple[Tensor, ...]:
        return torch.from_numpy(np.ascontiguousarray(pixels)).split(self.config.batch_size)

    def prepare(self, image: Tensor) -> Tensor:
        """An image (uint8 (3, H, W)) as the model takes it: scaled, cropped, normalised; float32 (3, *size)."""
        config = self.config
        if config.crop is None:
            scaled = self.size
        else:  # as torchvision's presets: the shorter side to size / crop, then the middle of it
            scale = max(side / config.crop / own for side, own in zip(self.size, image.shape[1:], strict=True))
            scaled = tuple(
                max(side, int(own * scale + 1e-9)) for side, own in zip(self.size, image.shape[1:], strict=True)
            )
        pixels = image[None].float() / 255
        if tuple(image.shape[1:]) != scaled:
            pixels = functional.interpolate(pixels, scaled, mode="bilinear", antialias=True).clamp_(0, 1)
        top, left = (round((own - side) / 2) for own, side in zip(scaled, self.size, strict=True))
        middle = pixels[0, :, top : top + self.size[0], left : left + self.size[1]]
        mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
        return (middle - mean) / std

    def _answers(self, inputs: Tensor) -> Answers:
        returned = self.run(inputs)
        if isinstance(returned, Mapping):
            found = {name: value for name, value in returned.items() if name in NAMES}
            if not found:
                raise self._refused(
                    f"returned a dict of {', '.join(map(str, returned))}", f"its keys are {', '.join(NAMES)}"
                )
        else:
            outputs = self.config.outputs or [{"cla": "logits", "reg": "reg"}[task] for task in self.wanted]
            values = list(returned) if isinstance(returned, tuple | list) else [returned]
            if len(values) != len(outputs):
                raise self._refused(
                    f"returned {len(values)} arrays", f"`outputs` says {', '.join(outputs)}: name what it returns"
                )
            found = dict(zip(outputs, values, strict=True))
        arrays = {name: _array(value) for name, value in found.items()}
        answers = Answers(cla=arrays.get("cla"))
        for name in ("logits", "prob"):
            if name in arrays:
                answers.prob = self._probabilities(arrays[name], name)
        if "reg" in arrays:
            answers.reg = (
                arrays["reg"].reshape(len(inputs), -1)[:, 0] if arrays["reg"].size == len(inputs) else arrays["reg"]
            )
        return answers

    def _probabilities(self, values: np.ndarray, name: str) -> np.ndarray:
        """Probabilities of the dataset's classes, float64 (n, classes), from logits or probabilities of the model's."""
        labels = self.labels
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim == 2 and values.shape[1] == 1 and len(labels) == 2:  # of the second class
            values = np.concatenate([np.zeros_like(values) if name == "logits" else 1 - values, values], axis=1)
        if values.ndim != 2 or values.shape[1] != len(labels):
            shown = "x".join(map(str, values.shape))
            raise self._refused(
                f"returned `{name}` of shape {shown}", f"{len(labels)} columns are expected; `labels` names them"
            )
        values = values[:, [labels.index(label) for label in self.classes]]
        if name == "logits":
            values = np.exp(values - values.max(axis=1, keepdims=True))
            return values / values.sum(axis=1, keepdims=True)
        if np.isfinite(values).all() and (np.abs(values.sum(axis=1) - 1) > 1e-2).any() and self.config.labels is None:
            raise self._refused(
                "returned `prob` that does not sum to 1", 'say outputs = ["logits"] if these are logits'
            )
        with np.errstate(invalid="ignore", divide="ignore"):  # rows of zeros are refused as not finite
            return values / values.sum(axis=1, keepdims=True)

    def _refused(self, what: str, hint: str) -> AgentFailure:
        return AgentFailure(f"agent {self.config.name!r} {what}", where=self.config.kind, hint=hint)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().double().cpu().numpy()
    return np.asarray(value, dtype=np.float64)
